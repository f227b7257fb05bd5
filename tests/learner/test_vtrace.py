"""V-trace against its formula, written as sums and products over plain floats; and the running scale of its targets."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.schema import LearnerConfig
from learner.vtrace import HORIZON, ReturnScale, VtraceTargets, vtrace_targets

GAMMA = 0.9
PLAIN = LearnerConfig(
    gamma=GAMMA, vtrace_rho_clip=1.0, vtrace_c_clip=1.0, trace_lambda=1.0, rho_weighted_advantage=False
)
CPU = torch.device("cpu")


def make_arguments(seed: int, *, num_steps: int = 12, num_envs: int = 7) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shape = (num_steps, num_envs)
    terminated = rng.random(shape) < 0.15
    truncated = (rng.random(shape) < 0.15) & ~terminated
    return {
        "ratios": torch.tensor(np.exp(rng.normal(0, 1, shape))),
        "rewards": torch.tensor(rng.normal(size=shape)),
        "values": torch.tensor(rng.normal(size=shape)),
        "next_values": torch.tensor(rng.normal(size=shape)),
        "terminated": torch.tensor(terminated),
        "truncated": torch.tensor(truncated),
        "final_values": torch.tensor(np.where(truncated, rng.normal(size=shape), np.nan)),
    }


def by_the_formula(
    arguments: dict[str, torch.Tensor], *, rho_clip: float, c_clip: float, trace_lambda: float, rho_weighted: bool
) -> VtraceTargets:
    """vs = V + sum over t of gamma^(t-s) (product of lambda c) delta, up to the episode's or the rollout's end (IMPALA
    eq. 1, remark 2)."""
    ratios, rewards, values, next_values, terminated, truncated, final_values = (
        tensor.tolist() for tensor in arguments.values()
    )
    num_steps, num_envs = len(values), len(values[0])

    def done(t: int, b: int) -> bool:
        return terminated[t][b] or truncated[t][b]

    def value_after(t: int, b: int) -> float:
        return 0.0 if terminated[t][b] else final_values[t][b] if truncated[t][b] else next_values[t][b]

    def vs(s: int, b: int) -> float:
        last = next((t for t in range(s, num_steps) if done(t, b)), num_steps - 1)
        terms = []
        for t in range(s, last + 1):
            delta = min(rho_clip, ratios[t][b]) * (rewards[t][b] + GAMMA * value_after(t, b) - values[t][b])
            terms.append(
                GAMMA ** (t - s) * math.prod(trace_lambda * min(c_clip, ratios[i][b]) for i in range(s, t)) * delta
            )
        return values[s][b] + math.fsum(terms)

    def advantage(s: int, b: int) -> float:
        after = value_after(s, b)
        if not done(s, b) and s < num_steps - 1:
            after = (1 - trace_lambda) * after + trace_lambda * vs(s + 1, b)
        weight = min(rho_clip, ratios[s][b]) if rho_weighted else 1.0
        return weight * (rewards[s][b] + GAMMA * after - values[s][b])

    return VtraceTargets(
        *(
            torch.tensor([[f(t, b) for b in range(num_envs)] for t in range(num_steps)], dtype=torch.float64)
            for f in (vs, advantage)
        )
    )


@pytest.mark.parametrize("rho_weighted", [False, True])
@pytest.mark.parametrize("trace_lambda", [1.0, 0.8, 0.0])
@pytest.mark.parametrize(("rho_clip", "c_clip"), [(1.0, 1.0), (2.5, 0.7), (math.inf, math.inf)])
def test_targets_equal_the_formula_with_ends_in_mid_rollout(
    rho_clip: float, c_clip: float, trace_lambda: float, rho_weighted: bool
) -> None:
    for seed in range(3):
        arguments = make_arguments(seed)
        # The formula reads next_values[t] as V(obs[t+1]), so within an episode it must agree with values[t+1].
        arguments["next_values"][:-1] = arguments["values"][1:]
        config = replace(
            PLAIN,
            vtrace_rho_clip=rho_clip,
            vtrace_c_clip=c_clip,
            trace_lambda=trace_lambda,
            rho_weighted_advantage=rho_weighted,
        )
        got = vtrace_targets(**arguments, config=config)
        wanted = by_the_formula(
            arguments, rho_clip=rho_clip, c_clip=c_clip, trace_lambda=trace_lambda, rho_weighted=rho_weighted
        )
        torch.testing.assert_close(got.vs, wanted.vs, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.pg_advantages, wanted.pg_advantages, rtol=1e-12, atol=1e-12)


def test_on_policy_the_advantages_are_gae() -> None:
    arguments = make_arguments(0)
    arguments["ratios"] = torch.ones_like(arguments["ratios"])
    arguments["next_values"][:-1] = arguments["values"][1:]
    rewards, values, next_values, terminated, truncated, final_values = list(arguments.values())[1:]
    after = torch.where(truncated, final_values, next_values).masked_fill(terminated, 0.0)
    advantages, following = torch.zeros_like(values), torch.zeros_like(values[0])
    for t in reversed(range(len(values))):  # Schulman et al. 2016, eq. 16
        following = rewards[t] + GAMMA * after[t] - values[t] + GAMMA * 0.95 * following * ~(terminated | truncated)[t]
        advantages[t] = following
    torch.testing.assert_close(
        vtrace_targets(**arguments, config=replace(PLAIN, trace_lambda=0.95)).pg_advantages, advantages
    )


def column(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def hand_case(*, terminated: tuple[bool, ...], truncated: tuple[bool, ...], ratios: tuple[float, ...]) -> VtraceTargets:
    """Rewards 1, 2, 4; values 10, 20, 30, then 40; the truncated episode's own last observation is worth 100; gamma
    1/2."""
    return vtrace_targets(
        ratios=column(*ratios),
        rewards=column(1, 2, 4),
        values=column(10, 20, 30),
        next_values=column(20, 30, 40),
        terminated=torch.tensor(terminated)[:, None],
        truncated=torch.tensor(truncated)[:, None],
        final_values=column(*(100.0 if cut else math.nan for cut in truncated)),
        config=replace(PLAIN, gamma=0.5),
    )


NEVER = (False, False, False)


def test_on_policy_without_ends_the_target_is_the_discounted_return() -> None:
    targets = hand_case(terminated=NEVER, truncated=NEVER, ratios=(1, 1, 1))
    torch.testing.assert_close(targets.vs, column(8, 14, 24))  # 4 + 40/2, 2 + 24/2, 1 + 14/2
    torch.testing.assert_close(targets.pg_advantages, column(-2, -6, -6))


def test_a_termination_is_worth_nothing_afterwards() -> None:
    targets = hand_case(terminated=(False, True, False), truncated=NEVER, ratios=(1, 1, 1))
    torch.testing.assert_close(targets.vs, column(2, 2, 24))


def test_a_truncation_is_worth_its_own_last_observation() -> None:
    targets = hand_case(terminated=NEVER, truncated=(False, True, False), ratios=(1, 1, 1))
    torch.testing.assert_close(targets.vs, column(27, 52, 24))  # 2 + 100/2, then 1 + 52/2


def test_ratios_below_one_shrink_corrections_and_ratios_above_one_do_not_grow_them() -> None:
    targets = hand_case(terminated=NEVER, truncated=NEVER, ratios=(4, 0.5, 1))
    # Step 1: 20 + (2 + 30/2 - 20)/2 + (24 - 30)/4 = 17. Step 0, where 4 counts as 1: 10 + (1 + 20/2 - 10) + (17 - 20)/2
    # = 9.5.
    torch.testing.assert_close(targets.vs, column(9.5, 17, 24))
    torch.testing.assert_close(targets.pg_advantages, column(-0.5, -6, -6))


def test_targets_carry_no_gradient() -> None:
    arguments = make_arguments(0)
    arguments["values"].requires_grad_()
    targets = vtrace_targets(**arguments, config=PLAIN)
    assert not targets.vs.requires_grad
    assert not targets.pg_advantages.requires_grad


def test_the_units_are_the_mean_and_deviation_of_all_targets_at_first() -> None:
    scale, targets = ReturnScale(), 40 * torch.randn(50, 8, 4) + 7
    assert [unit.item() for unit in scale.unit(CPU)] == [0.0, 1.0]
    for each in targets:
        scale.observe(each)
    mean, deviation = scale.unit(CPU)
    assert mean.item() == pytest.approx(targets.mean().item(), rel=1e-4)
    assert deviation.item() == pytest.approx(targets.std(correction=0).item(), rel=1e-3)


def test_old_targets_are_forgotten() -> None:
    scale = ReturnScale()
    for number in range(6 * HORIZON):
        scale.observe(torch.tensor([[-1.0, 1.0]]) * (100.0 if number < HORIZON else 1.0))
    assert scale.unit(CPU)[1].item() == pytest.approx(8.2, abs=0.5)  # sqrt(1 + 9999 exp(-5))


def test_without_any_reward_the_unit_does_not_vanish() -> None:
    scale = ReturnScale()
    scale.observe(torch.zeros(4, 4))
    assert scale.unit(CPU)[1].item() > 0


def test_targets_that_are_no_numbers_are_left_out_and_the_state_goes_on() -> None:
    scale, resumed = ReturnScale(), ReturnScale()
    scale.observe(torch.tensor([[1.0, 3.0], [float("nan"), float("inf")]]))
    scale.observe(torch.tensor([[float("nan")]]))
    resumed.load_state_dict(scale.state_dict())
    assert [unit.item() for unit in resumed.unit(CPU)] == [2.0, 1.0]
