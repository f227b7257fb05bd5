"""The recurrent core over whole sequences, with resets in mid-sequence.

Invariant: a sequence gives what its steps give one after another; the input half of all gates is one matrix product, and a
reset costs one mask at its own step.
"""

import torch
from torch import Tensor, nn

from actors.recurrent_cells import GruSequence, LstmSequence, lstm_step

GATES = {"lstm": 4, "gru": 3}


class RecurrentCore(nn.Module):
    """LSTM or GRU of one layer (or `none`, which passes its input on), with a float32 state.

    A loop over steps, because on CPUs it is as fast as `nn.LSTM` in bf16, keeps the state in float32, needs no
    splitting at resets, and is the same arithmetic for one step and for many.
    """

    def __init__(self, kind: str, num_inputs: int, size: int) -> None:
        super().__init__()
        if kind != "none" and kind not in GATES:
            raise ValueError(f"policy.core: got {kind!r}, wanted one of lstm, gru, none")
        self.kind, self.size = kind, size
        self.num_features = num_inputs if kind == "none" else size
        if kind == "none":
            return
        num_gates = GATES[kind] * size
        self.input = nn.Linear(num_inputs, num_gates)
        self.recurrent = nn.Linear(size, num_gates, bias=kind == "gru")  # a GRU's candidate has its recurrent bias inside the reset gate
        for gate in (*self.input.weight.detach().chunk(GATES[kind]), *self.recurrent.weight.detach().chunk(GATES[kind])):
            nn.init.orthogonal_(gate)
        nn.init.zeros_(self.input.bias)
        if kind == "lstm":
            nn.init.ones_(self.input.bias.detach()[size : 2 * size])  # forget gates start open (Jozefowicz et al. 2015)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros: `h` (and `c` for an LSTM) [B, H] f32; empty without a core."""
        device = next(self.parameters(), torch.empty(0)).device
        names = {"lstm": ("h", "c"), "gru": ("h",), "none": ()}[self.kind]
        return {name: torch.zeros(batch_size, self.size, device=device) for name in names}

    def forward(self, inputs: Tensor, state: dict[str, Tensor], reset_before: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [T, B, H] and the state after the last step, from inputs [T, B, F].

        `reset_before` [T, B] bool zeroes the state before a step (None: nowhere). Keep it on the CPU: the host asks it at
        which steps there is anything to mask.
        """
        if self.kind == "none":
            return inputs, state
        return self.run(self.input(inputs), state, reset_before)

    def run(self, gates: Tensor, state: dict[str, Tensor], reset_before: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward` from the input's half of the gates, `self.input(inputs)` [T, B, gates]; not for `none`."""
        steps_with_reset = [False] * len(gates) if reset_before is None else reset_before.any(1).tolist()
        resets = reset_before.to(gates.device).unsqueeze(-1) if reset_before is not None and any(steps_with_reset) else None
        weight = self.recurrent.weight.to(gates.dtype)
        if self.kind == "lstm" and len(gates) == 1 and resets is None and not torch.is_grad_enabled():
            h, c = lstm_step(gates[0], weight, state["h"], state["c"])
            return h.unsqueeze(0), {"h": h, "c": c}
        if self.kind == "lstm":
            outputs, c = LstmSequence.apply(gates, weight, state["h"], state["c"], resets, steps_with_reset)
            return outputs, {"h": outputs[-1], "c": c}
        outputs = GruSequence.apply(gates, weight, self.recurrent.bias.to(gates.dtype), state["h"], resets, steps_with_reset)
        return outputs, {"h": outputs[-1]}
