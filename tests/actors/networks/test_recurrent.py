import pytest
import torch
from torch import Tensor

from actors.networks.recurrent import GruSequence, LstmSequence, RecurrentCore

KINDS = ["lstm", "gru"]
STEPS, ENVS, INPUTS, SIZE = 6, 3, 4, 5


def make_core(
    kind: str, num_inputs: int = INPUTS, size: int = SIZE, dtype: torch.dtype = torch.float64
) -> RecurrentCore:
    torch.manual_seed(0)
    core = RecurrentCore(kind, num_inputs, size).double()
    for parameter in core.parameters():
        torch.nn.init.normal_(parameter, std=num_inputs**-0.5)  # gates that are neither open nor shut
    return core.to(dtype)


def make_sequence(
    core: RecurrentCore, num_steps: int = STEPS, num_envs: int = ENVS, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = (
        torch.randn(num_steps, num_envs, core.input.in_features, generator=generator, dtype=torch.float64)
        .to(dtype)
        .requires_grad_()
    )
    state = {
        name: torch.randn(num_envs, core.size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name in core.initial_state(1)
    }
    reset_before = torch.rand(num_steps, num_envs, generator=generator) < 0.2
    reset_before[0, 0] = reset_before[num_steps // 2] = True
    return inputs, state, reset_before


def by_the_formula(core: RecurrentCore, x: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One step as the papers write it, gate by gate."""
    weights, biases, recurrent = (
        list(p.chunk(4 if core.kind == "lstm" else 3))
        for p in (core.input.weight, core.input.bias, core.recurrent.weight)
    )
    h = state["h"]
    from_input = [x @ w.T + b for w, b in zip(weights, biases, strict=True)]
    from_state = [h @ u.T for u in recurrent]
    if core.kind == "lstm":
        i, f, g, o = (a + b for a, b in zip(from_input, from_state, strict=True))
        c = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
        return {"h": torch.sigmoid(o) * torch.tanh(c), "c": c}
    from_state = [product + bias for product, bias in zip(from_state, core.recurrent.bias.chunk(3), strict=True)]
    r, z = (torch.sigmoid(a + b) for a, b in zip(from_input[:2], from_state[:2], strict=True))
    candidate = torch.tanh(from_input[2] + r * from_state[2])
    return {"h": (1 - z) * candidate + z * h}


def loop(
    core: RecurrentCore, inputs: Tensor, state: dict[str, Tensor], reset_before: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    outputs = []
    for x, reset in zip(inputs, reset_before, strict=True):
        state = by_the_formula(
            core, x, {name: torch.where(reset[:, None], 0.0, tensor) for name, tensor in state.items()}
        )
        outputs.append(state["h"])
    return torch.stack(outputs), state


def results_and_gradients(
    core: RecurrentCore, compute: object, sequence: tuple[Tensor, dict[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Outputs, last state, and the gradients of a loss over them for all parameters, inputs and the first state."""
    inputs, state, reset_before = sequence
    outputs, last = compute(inputs, state, reset_before)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(2)
    loss = sum(
        (t * torch.randn(t.shape, generator=generator, dtype=torch.float64)).sum() for t in (outputs, *last.values())
    )
    wanted = {
        "inputs": inputs,
        **{f"first {name}": tensor for name, tensor in state.items()},
        **dict(core.named_parameters()),
    }
    gradients = torch.autograd.grad(loss, list(wanted.values()))  # type: ignore[arg-type]
    last = {f"last {name}": tensor.detach() for name, tensor in last.items()}
    return {"outputs": outputs.detach(), **last, **dict(zip(wanted, gradients, strict=True))}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_with_resets_equals_the_papers_formulas_step_by_step_gradients_included(kind: str) -> None:
    core = make_core(kind)
    got = results_and_gradients(core, core, make_sequence(core))
    wanted = results_and_gradients(core, lambda *arguments: loop(core, *arguments), make_sequence(core))
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_written_by_hand_agree_with_finite_differences(kind: str) -> None:
    core = make_core(kind)
    inputs, state, reset_before = make_sequence(core)
    gates = core.input(inputs).detach().requires_grad_()
    parameters = list(core.recurrent.parameters())
    resets = [mask if mask.any() else None for mask in reset_before.unsqueeze(-1)]
    function = LstmSequence if kind == "lstm" else GruSequence
    assert torch.autograd.gradcheck(
        lambda *arguments: function.apply(*arguments, resets),
        (gates, *parameters, *state.values()),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_outputs_and_gradients_stay_within_one_percent_of_float64(kind: str) -> None:
    exact, core = make_core(kind, 48, 64), make_core(kind, 48, 64, torch.float32)
    wanted = results_and_gradients(exact, exact, make_sequence(exact, 32, 16))
    with torch.autocast("cpu", torch.bfloat16):
        got = results_and_gradients(core, core, make_sequence(core, 32, 16, torch.float32))
    for name, tensor in wanted.items():
        error = (got[name].double() - tensor).norm() / tensor.norm()
        assert error < 0.01, f"{name}: {error}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_sequence_gives_the_same_bits_again(kind: str) -> None:
    core = make_core(kind, 48, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        one, again = (results_and_gradients(core, core, make_sequence(core, 16, 8, torch.float32)) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_whether_gradients_are_wanted_changes_no_bit(kind: str) -> None:
    core = make_core(kind, dtype=torch.float32)
    inputs, state, reset_before = make_sequence(core, dtype=torch.float32)
    trained, _ = core(inputs, state, reset_before)
    with torch.no_grad():
        acted, _ = core(inputs, state, reset_before)
    assert torch.equal(trained, acted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_step_gives_the_same_bits_whether_or_not_it_keeps_anything_for_gradients(
    kind: str, dtype: torch.dtype
) -> None:
    core = make_core(kind, num_inputs=48, size=32, dtype=torch.float32)
    inputs, state, _ = make_sequence(core, num_envs=32, dtype=torch.float32)
    acted_state = state
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        for t in range(len(inputs)):
            trained, state = core(inputs[t : t + 1], state, None)
            with torch.no_grad():
                acted, acted_state = core(inputs[t : t + 1], acted_state, None)
            assert torch.equal(trained, acted)
    assert all(torch.equal(state[name], acted_state[name]) for name in state)
