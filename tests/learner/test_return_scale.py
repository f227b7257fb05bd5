import pytest
import torch

from learner.vtrace import HORIZON, ReturnScale

CPU = torch.device("cpu")


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
