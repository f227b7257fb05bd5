"""What captions were paid is summed by caption, over batches and over resumes."""

import numpy as np

from learner.rewards import PaidRewards, paid_rewards


def test_rewards_add_up_by_caption_whatever_their_sign():
    paid = PaidRewards()
    paid.note(np.array([[5, 7], [5, 0]], np.uint64), np.array([[0.5, -0.25], [0.0, 0.0]], np.float32))
    paid.note(np.array([[7, 9]], np.uint64), np.array([[0.25, 0.0]], np.float32))
    assert paid_rewards(paid.state_dict()) == {5: 0.5, 7: 0.5}


def test_a_resumed_run_goes_on_adding():
    first = PaidRewards()
    first.note(np.array([5], np.uint64), np.array([0.5], np.float32))
    again = PaidRewards()
    again.load_state_dict(first.state_dict())
    again.note(np.array([5, 2**63 + 1], np.uint64), np.array([0.25, 1.0], np.float32))
    assert paid_rewards(again.state_dict()) == {5: 0.75, 2**63 + 1: 1.0}
