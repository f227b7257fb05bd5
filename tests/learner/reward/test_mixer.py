import dataclasses

import numpy as np
import pytest

from actors.captions import caption_id
from configs.reward_schema import RewardConfig
from learner.reward.mixer import MixedRewards, mix_rewards
from learner.reward.paid import PaidRewards, paid_rewards
from reward_models.table import RewardTable

NO_EXTRINSIC = RewardConfig(extrinsic_coefficient=0.0, intrinsic_coefficient=1.0, count_exponent=3.0)
KILL, DEATH, UNKNOWN = (caption_id(text) for text in ("You kill the newt!", "You die...", "Never judged."))
TABLE = RewardTable.build(np.array([KILL, DEATH], np.uint64), np.array([1.0, 0.5]), (0, 1))


def mix(
    captions: list[int],
    *,
    counts: list[int] | None = None,
    extrinsic: list[float] | None = None,
    config: RewardConfig = NO_EXTRINSIC,
) -> MixedRewards:
    """One environment's rewards; [T, 1]."""
    return mix_rewards(
        extrinsic_rewards=np.array(extrinsic or [0.0] * len(captions), np.float32)[:, None],
        caption_ids=np.array(captions, np.uint64)[:, None],
        caption_counts=np.array(counts or [1] * len(captions), np.int32)[:, None],
        table=TABLE,
        config=config,
    )


def test_a_caption_pays_the_step_that_led_to_it_the_last_of_an_episode_included() -> None:
    rewards = mix([0, KILL, 0, DEATH, 0])  # the episode ends at step 3; step 4 is the next one's first
    assert rewards.total[:, 0].tolist() == [0.0, 1.0, 0.0, 0.5, 0.0]


def test_the_empty_caption_earns_nothing_and_is_never_unknown() -> None:
    rewards = mix([0, 0, 0])
    assert not rewards.total.any()
    assert rewards.unknown_fraction == 0.0


def test_an_unknown_caption_earns_nothing_and_is_counted() -> None:
    rewards = mix([KILL, UNKNOWN, UNKNOWN, 0])
    assert rewards.total[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert rewards.unknown_fraction == 0.5


@pytest.mark.parametrize(
    ("beta", "wanted"), [(3.0, [1.0, 1 / 8, 1 / 27]), (0.5, [1.0, 2**-0.5, 3**-0.5]), (0.0, [1.0, 1.0, 1.0])]
)
def test_the_nth_occurrence_in_an_episode_earns_one_nth_to_the_beta(beta: float, wanted: list[float]) -> None:
    rewards = mix([KILL, KILL, KILL], counts=[1, 2, 3], config=dataclasses.replace(NO_EXTRINSIC, count_exponent=beta))
    assert rewards.intrinsic[:, 0].tolist() == pytest.approx(wanted)


def test_large_counts_do_not_overflow() -> None:
    assert mix([KILL], counts=[2**31 - 1]).total[0, 0] == pytest.approx(0.0, abs=1e-20)


def test_the_environments_reward_is_scaled_then_clipped_then_weighted() -> None:
    config = RewardConfig(
        extrinsic_coefficient=0.1, intrinsic_coefficient=0.4, extrinsic_scale=2.0, extrinsic_clip=10.0
    )
    rewards = mix([KILL, 0, 0, 0], extrinsic=[1.0, 4.0, 50.0, -50.0], config=config)
    assert rewards.total[:, 0].tolist() == pytest.approx([0.1 * 2 + 0.4, 0.1 * 8, 0.1 * 10, -0.1 * 10])
    assert rewards.intrinsic[:, 0].tolist() == pytest.approx([0.4, 0.0, 0.0, 0.0])
    assert rewards.total.dtype == rewards.intrinsic.dtype == np.float32


def test_rewards_add_up_by_caption_whatever_their_sign() -> None:
    paid = PaidRewards()
    paid.note(np.array([[5, 7], [5, 0]], np.uint64), np.array([[0.5, -0.25], [0.0, 0.0]], np.float32))
    paid.note(np.array([[7, 9]], np.uint64), np.array([[0.25, 0.0]], np.float32))
    assert paid_rewards(paid.state_dict()) == {5: 0.5, 7: 0.5}


def test_the_largest_sums_come_first_beside_the_total() -> None:
    paid = PaidRewards()
    assert paid.largest(2) == (0, [])
    paid.note(np.array([5, 7, 9], np.uint64), np.array([0.5, 1.0, 0.25], np.float32))
    assert paid.largest(2) == (1.75, [(7, 1.0), (5, 0.5)])


def test_a_resumed_run_goes_on_adding() -> None:
    first = PaidRewards()
    first.note(np.array([5], np.uint64), np.array([0.5], np.float32))
    again = PaidRewards()
    again.load_state_dict(first.state_dict())
    again.note(np.array([5, 2**63 + 1], np.uint64), np.array([0.25, 1.0], np.float32))
    assert paid_rewards(again.state_dict()) == {5: 0.75, 2**63 + 1: 1.0}


def test_with_their_sign_rewards_of_one_item_cancel_out_and_the_costliest_come_first() -> None:
    paid = PaidRewards(with_sign=True)
    paid.note(np.array([5, 7, 9], np.uint64), np.array([0.5, -1.0, -0.25], np.float32))
    paid.note(np.array([5, 7, 9], np.uint64), np.array([-0.25, 0.25, -0.25], np.float32))
    assert paid_rewards(paid.state_dict()) == {5: 0.25, 7: -0.75, 9: -0.5}
    assert paid.costliest(5) == [(7, -0.75), (9, -0.5)]
    assert paid.largest(1) == (-1.0, [(5, 0.25)])
