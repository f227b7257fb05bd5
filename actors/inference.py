"""Batched policy inference of a worker: all environments of a step in one forward pass, on the worker's device.

Invariant: the recurrent state is kept here, in float32 and in place, and advances with each `step`; a rollout is
computed under the weights loaded before it, and caches end with it.

The CUDA path (pinned copies, the step recorded as a CUDA graph) is tested only where the tests find a GPU: see
tests/actors/test_inference.py.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from actors.environments.vector import EnvironmentSpec
from actors.networks.repeated_rows import EncodingCache
from actors.policy import PolicyNet, PolicySnapshot, load_weights, resolve_precision
from actors.rollout import Version
from configs.devices import resolve_device
from configs.schema import ActorsConfig

WARM_UP_STEPS = 3
"""Steps before a CUDA graph is recorded, in which libraries choose their kernels and allocate memory."""


class BatchedInference:
    """The policy, its recurrent state and its precision, for B environments stepped together."""

    def __init__(self, net: PolicyNet, spec: EnvironmentSpec, num_envs: int, config: ActorsConfig) -> None:
        """Raises ValueError for a device that does not exist."""
        self.device = resolve_device(config.device, "actors.device")
        self.policy_version: Version | None = None
        self._autocast = resolve_precision(config.precision, self.device, net, "the policy")
        self._net, self._num_envs, self._on_gpu = net.to(self.device).eval(), num_envs, self.device.type == "cuda"
        if self._autocast is not None:
            net.hold_layers_in(self._autocast)
        # Host memory that the device reads by itself; on a CPU host and device tensors are the same.
        self._host = {
            name: torch.zeros(num_envs, *array.shape, dtype=_torch_dtype(array.dtype), pin_memory=self._on_gpu)
            for name, array in spec.observations.items()
        }
        self._inputs = {name: tensor.to(self.device) for name, tensor in self._host.items()}
        self._outputs = torch.empty(num_envs, spec.num_actions + 1, pin_memory=self._on_gpu)  # logits and value
        self._results = self._outputs.to(self.device)
        self._core = net.initial_state(num_envs)
        self._caches: dict[str, EncodingCache] = {}
        self._asked: Mapping[str, np.ndarray] = {}
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, snapshot: PolicySnapshot) -> None:
        """Load the snapshot's weights; raises RuntimeError for those of another network."""
        load_weights(self._net, snapshot.weights)
        self.policy_version = snapshot.policy_version

    def load_goals(self, vectors: np.ndarray) -> None:
        """Use these goal vectors [G, D], if the policy reads goals; ValueError for those of another width."""
        self._net.set_goal_vectors(vectors)

    @contextlib.contextmanager
    def rollout(self, num_steps: int) -> Iterator[None]:
        """Context for at most `num_steps` calls of `step` under unchanged weights."""
        self._caches = self._net.make_caches(num_steps * self._num_envs)
        with self.computing():
            yield
        self._caches = {}

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Context for computations under unchanged weights, without caches."""
        enabled = self._autocast is not None
        dtype = self._autocast or torch.bfloat16
        # Nothing to cache: the weights are held in the dtype.
        autocast = torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False)
        with torch.inference_mode(), autocast:
            yield

    def step(self, obs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Logits [B, A] and values [B] f32 of observations name -> [B, ...], valid until the next step."""
        for name, array in obs.items():
            np.copyto(self._host[name].numpy(), array)
        outputs = self._run()
        return outputs[:, :-1], outputs[:, -1]

    def ask(self, part: int, obs: Mapping[str, np.ndarray]) -> None:
        """Set the observations of the next `answer`, name -> [B, ...], unchanged until then; there is one part, 0."""
        self._asked = obs

    def answer(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """`step` of what was asked."""
        return self.step(self._asked)

    def values(self, obs: Mapping[str, np.ndarray], rows: Sequence[int]) -> np.ndarray:
        """Values [N] f32 of other observations name -> [N, ...], with the core states of the environments `rows`."""
        inputs = {name: torch.from_numpy(array).to(self.device) for name, array in obs.items()}
        _, values, _ = self._net.step(inputs, {name: tensor[rows] for name, tensor in self._core.items()})
        return values.float().cpu().numpy()

    def reset(self, rows: Sequence[int]) -> None:
        """Zero the core state of the environments `rows`, where new episodes begin."""
        for tensor in self._core.values():
            tensor[rows] = 0.0

    def core_state(self) -> dict[str, np.ndarray]:
        """A copy of the core state, name -> [B, H] f32."""
        return {name: tensor.cpu().numpy().copy() for name, tensor in self._core.items()}

    def load_core_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a copy made by `core_state`."""
        for name, tensor in self._core.items():
            tensor.copy_(torch.as_tensor(state[name]))

    def close(self) -> None:
        """Nothing is held open."""

    def _run(self) -> np.ndarray:
        """One step on the device, from the host's observations to its logits and values [B, A + 1]."""
        if self._on_gpu:
            self._step_on_gpu()
        else:
            self._compute()
        return self._outputs.numpy()

    def _compute(self) -> None:
        """One step on the device, from the inputs to the results."""
        logits, values, core = self._net.step(self._inputs, self._core, self._caches)
        for name, tensor in core.items():
            self._core[name].copy_(tensor)
        torch.cat([logits, values.unsqueeze(-1)], -1, out=self._results)

    def _step_on_gpu(self) -> None:
        for name, tensor in self._host.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        self._outputs.copy_(self._results, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()

    def _record(self) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph over this object's own tensors; restores the core state."""
        before = {name: tensor.clone() for name, tensor in self._core.items()}
        beside, graph = torch.cuda.Stream(self.device), torch.cuda.CUDAGraph()
        beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_STEPS):
                self._compute()
        torch.cuda.current_stream(self.device).wait_stream(beside)
        with torch.cuda.graph(graph):
            self._compute()
        for name, tensor in self._core.items():
            tensor.copy_(before[name])
        return graph


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
