"""The recurrent core, LSTM or GRU, over whole sequences with resets in mid-sequence; gradients are written by hand.

PyTorch's automatic differentiation of a loop over steps computes one product per step for the gradient of the recurrent
weights, and casts, copies and stores intermediate results at every operation. Here the backward loop keeps only the
product that the recurrence needs; the weights' gradient is one product over the whole sequence.

Invariant: a sequence gives the same results as its steps one after another, for any length, with or without gradients.
Products are in the dtype of the gates (bf16 under autocast), everything else and the state in the state's dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

sigmoid_backward, tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


class LstmSequence(torch.autograd.Function):
    """LSTM (Hochreiter & Schmidhuber 1997, with forget gates); gates in the order input, forget, candidate, output."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, h: Tensor, c: Tensor, resets: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Outputs h [T, B, H] and the last c [B, H]; `gates` [T, B, 4H] is the input's half of the gates, `weight` [4H,
        H] of the same dtype, `h`, `c` [B, H] the state before step 0; `resets` [T] are masks [B, 1] bool that zero the
        state before a step (None: nowhere)."""
        num_steps, num_rows, size = len(gates), *h.shape
        h_before = gates.new_empty(num_steps, num_rows, size)
        c_before = c.new_empty(num_steps + 1, num_rows, size)
        activations = c.new_empty(gates.shape)
        outputs, squashed = c.new_empty(2, num_steps, num_rows, size).unbind()  # h and tanh(c)
        summed, weight_t = torch.empty_like(gates[0]), weight.t()
        c_before[0] = c
        for t in range(num_steps):
            h_before[t] = h
            if (reset := resets[t]) is not None:
                h_before[t].masked_fill_(reset, 0.0)
                c_before[t].masked_fill_(reset, 0.0)
            torch.addmm(gates[t], h_before[t], weight_t, out=summed)
            activated = activations[t].copy_(summed)
            i, f, g, o = activated.chunk(4, -1)
            g *= 2  # tanh(x) = 2 sigmoid(2 x) - 1
            activated.sigmoid_()
            g.mul_(2).sub_(1)
            c = torch.mul(f, c_before[t], out=c_before[t + 1]).addcmul_(i, g)
            h = torch.mul(o, tanh(c, out=squashed[t]), out=outputs[t])
        ctx.save_for_backward(weight, h_before, c_before, activations, squashed)
        ctx.resets = resets
        return outputs, c_before[num_steps].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor, d_last_c: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `gates`, `weight`, `h` and `c`."""
        weight, h_before, c_before, activations, squashed = ctx.saved_tensors
        d_gates = torch.empty_like(activations, dtype=weight.dtype)
        d_step, product = torch.empty_like(activations[0]), torch.empty_like(d_last_c)
        d_i, d_f, d_g, d_o = d_step.chunk(4, -1)
        d_h, d_c = torch.zeros_like(d_last_c), d_last_c.clone()
        for t in reversed(range(len(activations))):
            i, f, g, o = activations[t].chunk(4, -1)
            d_h += d_outputs[t]
            sigmoid_backward(torch.mul(d_h, squashed[t], out=product), o, grad_input=d_o)
            d_c += tanh_backward(torch.mul(d_h, o, out=product), squashed[t])
            sigmoid_backward(torch.mul(d_c, g, out=product), i, grad_input=d_i)
            sigmoid_backward(torch.mul(d_c, c_before[t], out=product), f, grad_input=d_f)
            tanh_backward(torch.mul(d_c, i, out=product), g, grad_input=d_g)
            d_gates[t] = d_step
            d_h.copy_(d_gates[t] @ weight)
            d_c *= f
            if (reset := ctx.resets[t]) is not None:
                d_h.masked_fill_(reset, 0.0)
                d_c.masked_fill_(reset, 0.0)
        return d_gates, d_gates.flatten(0, 1).t() @ h_before.flatten(0, 1), d_h, d_c, None


def lstm_step(gates: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """`LstmSequence` over one step's `gates` [B, 4H] without a reset, bit-identical, without gradients and so without
    stored results: h, c [B, H]."""
    activated = torch.addmm(gates, h.to(gates.dtype), weight.t()).to(c.dtype)
    i, f, g, o = activated.chunk(4, -1)
    g *= 2  # as above
    activated.sigmoid_()
    g.mul_(2).sub_(1)
    c = torch.mul(f, c).addcmul_(i, g)
    return tanh(c, out=torch.empty_like(c)).mul_(o), c


class GruSequence(torch.autograd.Function):
    """GRU (Cho et al. 2014; the reset gate acts on the recurrent product); gate order: reset, update, candidate."""

    @staticmethod
    def forward(
        ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor, h: Tensor, resets: Sequence[Tensor | None]
    ) -> Tensor:
        """Outputs h [T, B, H]; `gates` [T, B, 3H] is the input's half of the gates, `weight` [3H, H] and `bias` [3H] of
        the same dtype, `h` [B, H] the state before step 0, `resets` as for the LSTM."""
        num_steps, num_rows, size = len(gates), *h.shape
        h_before, kept_h = gates.new_empty(num_steps, num_rows, size), h.new_empty(num_steps, num_rows, size)
        hidden, activations = h.new_empty(2, *gates.shape).unbind()
        outputs, product = h.new_empty(num_steps, num_rows, size), torch.empty_like(gates[0])
        weight_t = weight.t()
        for t in range(num_steps):
            kept_h[t] = h
            if (reset := resets[t]) is not None:
                kept_h[t].masked_fill_(reset, 0.0)
            h_before[t] = kept_h[t]
            hidden[t] = torch.addmm(bias, h_before[t], weight_t, out=product)
            activations[t] = gates[t]
            r, z, n = activations[t].chunk(3, -1)
            activations[t, :, : 2 * size].add_(hidden[t, :, : 2 * size]).sigmoid_()
            n.addcmul_(r, hidden[t, :, 2 * size :])
            tanh(n, out=n)
            h = torch.lerp(n, kept_h[t], z, out=outputs[t])
        ctx.save_for_backward(weight, h_before, kept_h, hidden, activations)
        ctx.resets = resets
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of `gates`, `weight`, `bias` and `h`."""
        weight, h_before, kept_h, hidden, activations = ctx.saved_tensors
        size = kept_h.shape[-1]
        d_gates = torch.empty_like(activations, dtype=weight.dtype)
        d_hidden, d_step = torch.empty_like(d_gates), torch.empty_like(activations[0])
        d_r, d_z, d_n = d_step.chunk(3, -1)
        d_h = torch.zeros_like(kept_h[0])
        for t in reversed(range(len(activations))):
            r, z, n = activations[t].chunk(3, -1)
            d_h += d_outputs[t]
            sigmoid_backward(d_h * (kept_h[t] - n), z, grad_input=d_z)
            tanh_backward(d_h * (1 - z), n, grad_input=d_n)
            sigmoid_backward(d_n * hidden[t, :, 2 * size :], r, grad_input=d_r)
            d_gates[t] = d_step
            d_n *= r
            d_hidden[t] = d_step
            d_h = (d_h * z).add_(d_hidden[t] @ weight)
            if (reset := ctx.resets[t]) is not None:
                d_h.masked_fill_(reset, 0.0)
        d_hidden = d_hidden.flatten(0, 1)
        return d_gates, d_hidden.t() @ h_before.flatten(0, 1), d_hidden.sum(0), d_h, None


def tanh(x: Tensor, out: Tensor) -> Tensor:
    """The hyperbolic tangent by a sigmoid: on CPUs torch's own takes three times as long."""
    return torch.mul(x, 2, out=out).sigmoid_().mul_(2).sub_(1)


GATES = {"lstm": 4, "gru": 3}


class RecurrentCore(nn.Module):
    """LSTM or GRU of one layer (or `none`, which passes its input on), with a float32 state. It loops over steps,
    because on CPUs that is as fast as `nn.LSTM` in bf16, keeps the state in float32, needs no splitting at resets, and
    is the same arithmetic for one step and for many."""

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
        # A GRU's candidate has a separate recurrent bias, inside the reset gate.
        self.recurrent = nn.Linear(size, num_gates, bias=kind == "gru")
        for layer in (self.input, self.recurrent):
            for gate in layer.weight.detach().chunk(GATES[kind]):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(self.input.bias)
        if kind == "lstm":
            nn.init.ones_(self.input.bias.detach()[size : 2 * size])  # forget gates start open (Jozefowicz et al. 2015)

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zeros: `h` (and `c` for an LSTM) [B, H] f32; empty without a core."""
        device = next(self.parameters(), torch.empty(0)).device
        names = {"lstm": ("h", "c"), "gru": ("h",), "none": ()}[self.kind]
        return {name: torch.zeros(batch_size, self.size, device=device) for name in names}

    def forward(
        self, inputs: Tensor, state: dict[str, Tensor], reset_before: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Outputs [T, B, H] and the state after the last step, from inputs [T, B, F]; `reset_before` [T, B] bool zeroes
        the state before a step (None: nowhere). Keep it on the CPU: the host looks up the steps with resets."""
        if self.kind == "none":
            return inputs, state
        return self.run(self.input(inputs), state, reset_before)

    def run(
        self, gates: Tensor, state: dict[str, Tensor], reset_before: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`forward` from the input's half of the gates, `self.input(inputs)` [T, B, gates]; not for `none`."""
        resets: list[Tensor | None] = [None] * len(gates)
        if reset_before is not None and reset_before.any():
            masks = reset_before.to(gates.device).unsqueeze(-1)
            resets = [masks[t] if resets_any else None for t, resets_any in enumerate(reset_before.any(1).tolist())]
        weight = self.recurrent.weight.to(gates.dtype)
        if self.kind == "gru":
            bias = self.recurrent.bias.to(gates.dtype)
            outputs = GruSequence.apply(gates, weight, bias, state["h"], resets)
            return outputs, {"h": outputs[-1]}
        if len(gates) == 1 and resets[0] is None and not torch.is_grad_enabled():
            h, c = lstm_step(gates[0], weight, state["h"], state["c"])
            return h.unsqueeze(0), {"h": h, "c": c}
        outputs, c = LstmSequence.apply(gates, weight, state["h"], state["c"], resets)
        return outputs, {"h": outputs[-1], "c": c}
