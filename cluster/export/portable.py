"""The policy's network as a program of `torch.export`, which PyTorch runs without Delphi.

Invariant: the file holds no pickled object, so that loading it executes none: weights and constants are raw bytes, and
the sample inputs are left out. Delphi writes such files and never loads one.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.environments.vector import EnvironmentSpec
from actors.policy import PolicyNet
from configs.schema import PolicyConfig


class PolicyStep(nn.Module):
    """One step of a policy: (observations name -> [B, ...], core state name -> [B, H]) -> logits [B, A], values [B] and
    the next core state."""

    def __init__(self, net: PolicyNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Mapping[str, Tensor], core: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return self.net.step(obs, core)


def write_portable(net: PolicyNet, spec: EnvironmentSpec, config: PolicyConfig, path: Path) -> dict[str, Any]:
    """Write `net` as `path`; what config.json says about it. Raises ValueError for a network that PyTorch cannot
    export."""
    # Reusing repeated rows is done on the host, outside PyTorch; the results are the same.
    plain = PolicyNet(spec, replace(config, reuse_crops=False)).eval()
    plain.load_state_dict(net.state_dict())
    if net.goal_vectors is not None:
        plain.set_goal_vectors(net.goal_vectors[1:].cpu().numpy())
    obs = {
        name: torch.from_numpy(np.zeros((2, *entry.shape), entry.dtype)) for name, entry in spec.observations.items()
    }
    core = plain.initial_state(2)
    batch = torch.export.Dim("batch")
    shapes: Any = tuple({name: {0: batch} for name in group} for group in (obs, core))
    try:
        with torch.no_grad():
            program = torch.export.export(PolicyStep(plain), (obs, core), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of PyTorch's tracing, of many kinds
        raise ValueError(
            f"--format: torch.export cannot trace this network ({type(error).__name__}: {error})"
        ) from None
    program.example_inputs = None  # they would be pickled
    torch.export.save(program, path)
    if pickled := pickled_parts(path):
        raise ValueError(f"--format: this version of PyTorch pickles {', '.join(pickled)}, so the file is not written")
    shapes_of_core = {name: list(tensor.shape[1:]) for name, tensor in core.items()}
    return {"file": path.name, "torch": str(torch.__version__), "core": shapes_of_core}


def pickled_parts(path: Path) -> list[str]:
    """The parts of a .pt2 file that hold pickles: payloads that its tables mark as such, and sample inputs."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                payloads = json.loads(archive.read(name)).get("config", {})
                found += [key for key, payload in payloads.items() if payload.get("use_pickle")]
            elif "/sample_inputs/" in name and archive.getinfo(name).file_size:
                found.append(name)
    return found
