import dataclasses
import math

import numpy as np
import pytest
import torch

from configs.schema import LearnerConfig
from learner.loss import action_log_probs, clamped_ratios, core_metrics, mean_kl, policy_loss, standardized
from learner.vtrace import VtraceTargets

PLAIN = LearnerConfig(normalize_advantages=False, entropy_coefficient=0.0, value_coefficient=0.0)
SHAPE = (4, 3)


def loss_of(
    config: LearnerConfig,
    *,
    ratios: torch.Tensor,
    advantages: torch.Tensor,
    values: torch.Tensor | None = None,
    behaviour_values: torch.Tensor | None = None,
    vs: torch.Tensor | None = None,
    logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    zeros = torch.zeros_like(ratios)
    return policy_loss(
        logits=torch.zeros(*ratios.shape, 5) if logits is None else logits,
        ratios=ratios,
        values=zeros if values is None else values,
        behaviour_values=zeros if behaviour_values is None else behaviour_values,
        targets=VtraceTargets(
            zeros if vs is None else vs, standardized(advantages) if config.normalize_advantages else advantages
        ),
        config=config,
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [
        (1.0, 1.0, True),
        (1.09, 1.0, True),
        (1.11, 1.0, False),  # above 1 + x, and wants to go further up
        (1.11, -1.0, True),  # above, but wants to come back
        (0.92, -1.0, True),
        (1 / 1.1 - 0.001, -1.0, False),  # below 1 / (1 + x), which is not 1 - x, and wants to go further down
        (1 / 1.1 + 0.001, -1.0, True),
        (0.5, 1.0, True),
    ],
)
def test_a_ratio_outside_the_clip_range_moves_only_back_into_it(ratio: float, advantage: float, moves: bool) -> None:
    ratios = torch.full((1, 1), ratio, requires_grad=True)
    loss, metrics = loss_of(PLAIN, ratios=ratios, advantages=torch.full((1, 1), advantage))
    loss.backward()
    assert ratios.grad is not None
    assert ratios.grad.item() == (-advantage if moves else 0.0)
    assert metrics["clip_fraction"].item() == (not 1 / 1.1 <= ratio <= 1.1)


def test_ratios_are_clamped_against_overflow_and_pass_no_gradient_there() -> None:
    log_probs = torch.tensor([[0.0, -200.0, math.log(0.5)]], requires_grad=True)
    ratios = clamped_ratios(log_probs, torch.tensor([[-200.0, 0.0, math.log(0.25)]]), 20.0)
    torch.testing.assert_close(ratios, torch.tensor([[20.0, 0.05, 2.0]]))
    ratios.sum().backward()
    torch.testing.assert_close(log_probs.grad, torch.tensor([[0.0, 0.0, 2.0]]))


def test_action_log_probs_pick_the_taken_action() -> None:
    logits = torch.log(torch.tensor([[[0.2, 0.5, 0.3]], [[0.1, 0.1, 0.8]]]))
    torch.testing.assert_close(action_log_probs(logits, torch.tensor([[1], [2]])).exp(), torch.tensor([[0.5], [0.8]]))


def test_a_value_far_from_the_behaviour_value_gets_no_gradient_for_going_further() -> None:
    values = torch.tensor([[0.5, 3.0, -3.0]], requires_grad=True)
    config = dataclasses.replace(PLAIN, value_coefficient=1.0)
    ones = torch.ones(1, 3)
    # Targets are 10, 0 and -10: the first may move, the second must come back, the third is clipped on its way down.
    loss, _ = loss_of(config, ratios=ones, advantages=0 * ones, values=values, vs=torch.tensor([[10.0, 0.0, -10.0]]))
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[2 * (0.5 - 10) / 3, 2 * 3.0 / 3, 0.0]]))


def test_the_loss_equals_its_formula_in_plain_floats() -> None:
    rng = np.random.default_rng(0)
    ratios, advantages, values, behaviour_values, vs = np.exp(rng.normal(0, 0.3, SHAPE)), *rng.normal(0, 2, (4, *SHAPE))
    logits = rng.normal(size=(*SHAPE, 5))
    config = LearnerConfig(entropy_coefficient=0.1, value_coefficient=0.5)
    normal = (advantages - advantages.mean()) / advantages.std()
    policy, value, entropy = 0.0, 0.0, 0.0
    for i in np.ndindex(*SHAPE):
        policy -= min(ratios[i] * normal[i], min(max(ratios[i], 1 / 1.1), 1.1) * normal[i])
        clipped = behaviour_values[i] + min(max(values[i] - behaviour_values[i], -1.0), 1.0)
        value += max((values[i] - vs[i]) ** 2, (clipped - vs[i]) ** 2)
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        entropy -= sum(p * np.log(p))
    n = ratios.size
    loss, metrics = loss_of(
        config,
        **{
            name: torch.tensor(array)
            for name, array in zip(
                ("ratios", "advantages", "values", "behaviour_values", "vs", "logits"),
                (ratios, advantages, values, behaviour_values, vs, logits),
                strict=True,
            )
        },
    )
    assert loss.item() == pytest.approx(policy / n + 0.5 * value / n - 0.1 * entropy / n)
    assert {name: metric.item() for name, metric in metrics.items()} == pytest.approx(
        {
            "policy_loss": policy / n,
            "value_loss": value / n,
            "entropy": entropy / n,
            "approx_kl": np.mean(ratios - 1 - np.log(ratios)),
            "clip_fraction": np.mean((ratios < 1 / 1.1) | (ratios > 1.1)),
            "rho_clipped_fraction": np.mean(ratios > 1.0),
            "residual_mean": np.mean(vs - values),
            "residual_variance": np.var(vs - values),
        }
    )


def test_equal_advantages_are_normalised_to_zero_and_not_to_infinity() -> None:
    ratios = torch.ones(SHAPE, requires_grad=True)
    loss, _ = loss_of(
        LearnerConfig(entropy_coefficient=0.0, value_coefficient=0.0), ratios=ratios, advantages=torch.full(SHAPE, 7.0)
    )
    assert loss.item() == 0.0


def test_the_divergence_of_two_policies_has_a_direction() -> None:
    before, after = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    assert mean_kl(before, after).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-5
    )
    assert mean_kl(after, before).item() == pytest.approx(
        0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-5
    )


def test_a_cores_dead_and_saturated_units_are_told_apart() -> None:
    varied = torch.linspace(-0.5, 0.5, 6).reshape(3, 2)
    outputs = torch.stack([varied, torch.full((3, 2), 0.3), torch.full((3, 2), -0.97), varied], -1)
    assert {name: metric.item() for name, metric in core_metrics(outputs).items()} == {
        "core_saturated_fraction": 0.25,
        "core_dead_fraction": 0.5,
    }
