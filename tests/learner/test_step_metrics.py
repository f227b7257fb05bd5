import math

import pytest
import torch

from learner.step_metrics import GradientStep, state_information, update_metrics


def step(value_loss: float, mean: float, variance: float, of_targets: float, grad_norm: float) -> GradientStep:
    metrics = {"value_loss": value_loss, "residual_mean": mean, "residual_variance": variance}
    tensors = {name: torch.tensor(metric) for name, metric in metrics.items()}
    is_clipped = torch.tensor(float(grad_norm > 1))
    return GradientStep(tensors, 1.0, torch.tensor(of_targets), torch.tensor(grad_norm), is_clipped, True)


def test_metrics_are_means_over_steps_and_the_explained_variance_is_that_of_the_first_pass() -> None:
    steps = [step(1.0, 5.0, 1.0, 4.0, 0.5), step(2.0, -3.0, 2.0, 4.0, 1.5), step(6.0, 0.0, 9.0, 4.0, 4.0)]
    means = {name: metric.item() for name, metric in update_metrics(steps, 2, None).items()}
    assert means == pytest.approx(
        {"value_loss": 3.0, "grad_norm": 2.0, "grad_clipped_fraction": 2 / 3, "explained_variance": (0.75 + 0.5) / 2}
    )


def test_a_step_that_does_not_define_a_metric_does_not_count_in_its_mean() -> None:
    steps = [step(1.0, 0.0, 1.0, 4.0, 0.5), step(math.nan, 0.0, 0.0, 0.0, 1.5)]
    means = update_metrics(steps, 2, None)
    assert means["value_loss"].item() == 1.0
    assert means["explained_variance"].item() == 0.75


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
