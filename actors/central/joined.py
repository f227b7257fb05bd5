"""The policy of an inference server: one step of the environments of several workers in one batch.

Invariant: each environment has its own row of the core states, whichever batch it is in; rows of a batch that nobody
uses read zeros or old observations, and change only a spare state.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from actors.central.exchange import Exchange
from actors.environments.vector import EnvironmentSpec
from actors.inference import BatchedInference
from actors.policy import PolicyNet
from configs.schema import ActorsConfig


class Share(NamedTuple):
    """One part of a worker's environments in a batch."""

    first_row: int  # of its core states
    exchange: Exchange


class JoinedInference(BatchedInference):
    """One version of the policy. Those of a server share their core states."""

    def __init__(
        self,
        net: PolicyNet,
        spec: EnvironmentSpec,
        config: ActorsConfig,
        *,
        batch_rows: int,
        state_rows: int,
        pads: bool | None = None,
        beside: "JoinedInference | None" = None,
    ) -> None:
        """Batches have at most `batch_rows` of `state_rows` environments, and with `pads` always as many, as a CUDA
        graph must (None: on a GPU); `beside` has the core states. Raises ValueError for a device that does not
        exist."""
        super().__init__(net, spec, batch_rows, config)
        self._core = net.initial_state(state_rows + 1) if beside is None else beside._core
        self._spare_row = state_rows
        self._pads = self._on_gpu if pads is None else pads
        self._host_rows = torch.full((batch_rows,), self._spare_row, pin_memory=self._on_gpu)
        self._rows = self._host_rows.to(self.device)
        self._num_used = batch_rows

    def step_joined(self, shares: Sequence[Share]) -> None:
        """From the observations of all shares to their outputs; the rows of core states that they mark are zeroed
        before. Within `computing`."""
        self.reset_marked(shares)
        bounds = np.cumsum([0, *(len(share.exchange.outputs) for share in shares)]).tolist()
        for share, start, stop in zip(shares, bounds, bounds[1:], strict=False):
            for name, array in share.exchange.obs.items():
                np.copyto(self._host[name][start:stop].numpy(), array)
            self._host_rows[start:stop] = torch.arange(share.first_row, share.first_row + stop - start)
        self._host_rows[bounds[-1] :] = self._spare_row
        self._num_used = len(self._host_rows) if self._pads else bounds[-1]
        outputs = self._run()
        for share, start, stop in zip(shares, bounds, bounds[1:], strict=False):
            share.exchange.outputs[:] = outputs[start:stop]

    def values_of(self, share: Share) -> None:
        """The values that a share asks for, into its memory. Within `computing`."""
        exchange, num_rows = share.exchange, int(share.exchange.num_rows[0])
        obs = {name: array[:num_rows] for name, array in exchange.last_obs.items()}
        exchange.values[:num_rows] = self.values(obs, (share.first_row + exchange.rows[:num_rows]).tolist())

    def reset_marked(self, shares: Sequence[Share]) -> None:
        """Zero the core states of the rows that these shares mark in `resets`, and unmark them."""
        rows: list[int] = []
        for share in shares:
            rows += (share.first_row + share.exchange.resets.nonzero()[0]).tolist()
            share.exchange.resets[:] = False
        if rows:
            self.reset(rows)

    def save(self, share: Share) -> None:
        """Copy the share's core states into its memory."""
        for name, array in share.exchange.core.items():
            array[:] = self._core[name][share.first_row : share.first_row + len(array)].cpu().numpy()

    def load_states(self, share: Share) -> None:
        """Replace the share's core states by those in its memory."""
        for name, array in share.exchange.core.items():
            self._core[name][share.first_row : share.first_row + len(array)] = torch.from_numpy(array).to(self.device)

    @property
    def core_sizes(self) -> dict[str, int]:
        """Widths of the core states by name; empty without a core."""
        return {name: tensor.shape[1] for name, tensor in self._core.items()}

    def _compute(self) -> None:
        used = self._num_used
        rows = self._rows[:used]
        inputs = {name: tensor[:used] for name, tensor in self._inputs.items()}
        logits, values, core = self._net.step(inputs, {name: tensor[rows] for name, tensor in self._core.items()})
        for name, tensor in core.items():
            self._core[name].index_copy_(0, rows, tensor)
        torch.cat([logits, values.unsqueeze(-1)], -1, out=self._results[:used])

    def _step_on_gpu(self) -> None:
        self._rows.copy_(self._host_rows, non_blocking=True)
        super()._step_on_gpu()
