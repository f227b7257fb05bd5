"""What terms pay for archived episodes: what the learner pays for the rollouts that these were made of."""

import dataclasses

import numpy as np
import pytest

from configs.reward_schema import MAIN_TERM, RewardConfig, TermConfig
from configs.schema import ArchiveConfig
from learner.episode_archive import EpisodeArchive
from learner.episodes import Episodes
from learner.reward.archived import archived_rewards, judged_program, program_rewards, summed
from learner.reward.mixer import RewardMixer
from reward_models.goals.masks import masks_of
from reward_models.published import PublishedReward
from reward_models.table import RewardTable
from tests.learner.reward.slow_rewards import FEATURES, ITEMS, PROGRESS_PROGRAM, REWARD_PROGRAM, played_rollouts

TABLE = RewardTable.build(
    ITEMS[1:-1], np.array([0.5, -0.2, 1.0, 0.3, 0.7]), (1, 1), masks_of(np.array([0, 0, 63, -1, -1]))
)
"""Without the last item, which is not known."""
TERMS = {
    "caption": TermConfig(coefficient=0.4, count_exponent=3.0),
    "change": TermConfig(reads="change", count_exponent=1.0, coefficient=-0.2),
    "climb": TermConfig(reads="state", pays="improvement", coefficient=1.5),
    "rise": TermConfig(reads="features", program=REWARD_PROGRAM, coefficient=0.3, program_clip=0.9),
    "far": TermConfig(reads="features", program=PROGRESS_PROGRAM, pays="improvement"),
    "there": TermConfig(reads="features", program=PROGRESS_PROGRAM, coefficient=0.1),
}


def archived(config: TermConfig | None = None) -> Episodes:
    """The episodes of a worker's rollouts; with a term, what the learner pays for it in place of extrinsic rewards."""
    archive = EpisodeArchive(ArchiveConfig(keep=True, max_episodes=10_000), FEATURES, (), seed=1)
    terms = {MAIN_TERM: TermConfig()} | ({"term": config} if config else {})
    mixer = RewardMixer(RewardConfig(), terms, features=FEATURES)
    for rollout in played_rollouts("0.0", 30, seed=4, num_steps=5):
        mixed = mixer.mix([rollout], PublishedReward(tables={MAIN_TERM: RewardTable.empty(), "term": TABLE}))
        paid = mixed.terms["term"].rewards if config else rollout.extrinsic_rewards
        archive.observe(dataclasses.replace(rollout, extrinsic_rewards=paid))
    return archive.episodes


@pytest.mark.parametrize("name", TERMS)
def test_episodes_are_paid_what_the_learner_paid(name: str) -> None:
    archive = archived(TERMS[name])
    found = archived_rewards(TERMS[name], archive, TABLE)
    for rewards, episode in zip(found, archive.episodes, strict=True):
        np.testing.assert_array_equal(np.nan_to_num(rewards), episode.steps["extrinsic_rewards"])
    steps = np.concatenate(found)
    assert 0.02 < np.isnan(steps).mean() < 0.4
    assert np.nanstd(steps) > 0


@pytest.mark.parametrize("pays", ["potential", "visits"])
def test_a_potential_and_visits_are_judged_by_what_each_step_gains(pays: str) -> None:
    archive = archived()
    term = TermConfig(reads="features", program=PROGRESS_PROGRAM, pays=pays, gamma=0.5, coefficient=2.0)
    for rewards, episode in zip(archived_rewards(term, archive), archive.episodes, strict=True):
        assert episode.features is not None
        height, gold = episode.features.T
        reached = np.where(np.isnan(gold), np.nan, height + 0.5 * (gold > 0.5))
        np.testing.assert_allclose(rewards, 2.0 * np.diff(reached), atol=1e-6)
    term = TermConfig(reads="state", pays=pays, gamma=0.5)
    values = {0: 0.0, **dict(zip(TABLE.ids.tolist(), TABLE.rewards.tolist(), strict=True))}
    for rewards, episode in zip(archived_rewards(term, archive, TABLE), archive.episodes, strict=True):
        before, after = ([values.get(i, np.nan) for i in episode.steps[n].tolist()] for n in ("state_before", "state"))
        np.testing.assert_allclose(rewards, np.subtract(after, before), atol=1e-6)


def test_a_program_is_judged_by_its_number_or_by_how_it_grows() -> None:
    archive = archived()
    whole = program_rewards(REWARD_PROGRAM, archive)
    clipped = archived_rewards(TermConfig(reads="features", program=REWARD_PROGRAM, program_clip=0.9), archive)
    for one, other in zip(whole, clipped, strict=True):
        np.testing.assert_array_equal(np.clip(one, -0.9, 0.9), other)
    assert np.nanmax(np.concatenate(whole)) > 1
    gains = TermConfig(reads="features", program=PROGRESS_PROGRAM, pays="potential")
    for one, other in zip(program_rewards(PROGRESS_PROGRAM, archive), archived_rewards(gains, archive), strict=True):
        np.testing.assert_array_equal(one, other)
    verdicts = judged_program(REWARD_PROGRAM, archive, {"same": whole})
    assert [verdict.gate for verdict in verdicts] == ["static", "run", "preference", "distance", "farming"]
    assert verdicts[3].passed is False
    rare = judged_program(
        " and ".join(f"{at}.{name} == 3" for at in ("start", "before", "after") for name in FEATURES), archive, {}
    )
    assert [verdict.gate for verdict in rare] == [verdict.gate for verdict in verdicts]  # the others judge on
    assert rare[0].passed is None
    (refused,) = judged_program("open('x')", archive, {})
    assert (refused.gate, refused.passed) == ("static", False)


def test_what_the_episodes_do_not_hold_is_named() -> None:
    archive = archived()
    with pytest.raises(ValueError, match="the episodes hold caption, state, change, and the term reads history"):
        archived_rewards(TermConfig(reads="history"), archive, TABLE)
    bare = dataclasses.replace(archive, features=())
    for judging in (program_rewards, lambda text, episodes: judged_program(text, episodes, {})):
        with pytest.raises(ValueError, match=r"no features, which a program reads: train a new run with env\.features"):
            judging(REWARD_PROGRAM, bare)
    assert archived_rewards(TERMS["rise"], dataclasses.replace(archive, episodes=[])) == []


def test_a_sum_of_terms_is_known_where_any_of_them_is() -> None:
    one, other = np.array([1, np.nan, np.nan], np.float32), np.array([2, 3, np.nan], np.float32)
    np.testing.assert_array_equal(summed([[one], [other]])[0], [3, 3, np.nan])
