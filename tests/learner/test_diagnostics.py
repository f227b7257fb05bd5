import math

import pytest
import torch

from learner.diagnostics import core_metrics, mean_kl, state_information


def test_a_policy_that_does_the_same_everywhere_has_no_information() -> None:
    assert state_information(torch.randn(5).expand(7, 3, 5)).item() == pytest.approx(0.0, abs=1e-6)


def test_a_policy_that_answers_each_state_with_its_own_action_has_all_there_is() -> None:
    logits = 100 * torch.eye(4).reshape(2, 2, 4)
    assert state_information(logits).item() == pytest.approx(math.log(4), rel=1e-5)


def test_information_is_the_mean_divergence_from_the_mean_policy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5, 3, dtype=torch.float64)
    pi = logits.softmax(-1).reshape(-1, 3)
    assert state_information(logits).item() == pytest.approx(
        (pi * (pi / pi.mean(0)).log()).sum(-1).mean().item(), rel=1e-5
    )


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
    assert {name: figure.item() for name, figure in core_metrics(outputs).items()} == {
        "core_saturated_fraction": 0.25,
        "core_dead_fraction": 0.5,
    }
