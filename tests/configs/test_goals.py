"""Goals in the configuration: the term that they make, and what is refused in one line."""

import pytest

from configs.checks import ConfigError
from configs.goal_schema import GOAL_TERM
from configs.loading import experiment_diff, load_config, to_dict
from configs.reward_schema import MAIN_TERM
from configs.terms import has_reward_tables, read_channels, resolved_terms, term_runs

TEXTS = ("goals.sources=[config]", "goals.texts=[open the door, leave]")


def test_goals_are_a_term_that_takes_the_rest_from_the_other_sections() -> None:
    config = load_config(overrides=[*TEXTS, "goals.coefficient=0.3", "learner.gamma=0.9", "annotator.max_labels=7"])
    term = resolved_terms(config)[GOAL_TERM]
    assert (term.reads, term.pays, term.coefficient, term.rubric) == ("caption", "goals", 0.3, "nethack_progress")
    assert (term.gamma, term.max_labels, term.count_exponent) == (0.9, 7, 0)
    assert GOAL_TERM not in resolved_terms(load_config())


def test_the_goal_term_is_a_run_whose_reward_model_matches_goals_and_no_other_term_has_them() -> None:
    overrides = [*TEXTS, "goals.rubric=nethack_combat", "terms.x.rubric=nethack_gold", "reward_model.threshold=0.3"]
    config = load_config(overrides=overrides)
    runs = term_runs(config)
    assert [*runs] == [MAIN_TERM, "x", GOAL_TERM]
    assert (runs[GOAL_TERM].reward_model.name, runs[GOAL_TERM].reward_model.threshold) == (GOAL_TERM, -1)
    assert runs[GOAL_TERM].annotator.rubric == "nethack_combat"
    assert runs[GOAL_TERM].goals == config.goals
    assert not runs["x"].goals.sources
    assert runs[GOAL_TERM].seed != config.seed


def test_goals_need_reward_tables_whatever_the_main_term_is() -> None:
    assert has_reward_tables(load_config(overrides=[*TEXTS, "reward_model.name=none"]))
    assert not has_reward_tables(load_config(overrides=["reward_model.name=none"]))


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        ((), {"caption"}),
        (("goals.reads=change", "env.describer=nethack"), {"change"}),
        (("goals.sources=[config, suggest]", "env.describer=nethack"), {"caption", "state"}),
        (("goals.sources=[config, closed]", "env.describer=nethack", "goals.scope=suggested"), {"caption", "state"}),
        (("terms.x.reads=history",), {"caption", "history"}),
    ],
)
def test_the_channels_that_are_read_are_those_of_terms_and_of_what_goals_come_from(
    overrides: tuple[str, ...], channels: set[str]
) -> None:
    assert read_channels(load_config(overrides=[*TEXTS, *overrides])) == channels


def test_other_goals_make_another_experiment_but_another_address_of_the_writer_does_not() -> None:
    before = to_dict(load_config(overrides=TEXTS))
    after = load_config(overrides=[*TEXTS, "goals.similarity=0.5", "writer.address=h:1", "writer.max_per_s=9"])
    assert experiment_diff(before, to_dict(after)) == ["goals.similarity: 0.4 -> 0.5"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["goals.sources=[sugest]"], "goals.sources: got 'sugest' (did you mean 'suggest'?), wanted any of config"),
        (["goals.sources=[rubric, rubric]"], "goals.sources: got ['rubric', 'rubric'], wanted each source once"),
        (["goals.sources=[config]"], "goals.texts: got 0 with goals.sources=['config'], wanted texts if and only if"),
        (["goals.texts=[leave]"], "goals.texts: got 1 with goals.sources=[], wanted texts if and only if"),
        (["goals.sources=[suggest]"], "env.describer: got '', wanted nethack, minigrid or module:function: goals with"),
        (["goals.sources=[closed]"], "env.describer: got ''"),
        ([*TEXTS, "goals.reads=change"], "env.describer: got ''"),
        ([*TEXTS, "goals.scope=current"], "goals.scope: got 'current' with policy.reads_goal=False, wanted"),
        ([*TEXTS, "goals.scope=suggested"], "goals.scope: got 'suggested' with goals.sources=['config'], wanted"),
        (["goals.sources=[decompose]"], "goals.task: got '', wanted what the agent is to do, in one sentence: decomp"),
        ([*TEXTS, "goals.relevance=learned"], "goals.task: got '', wanted what the agent is to do, in one sentence"),
        (["goals.sources=[rubric]", "goals.ordered=true"], "goals.ordered: got True without a plan, wanted `config`"),
        (["policy.reads_goal=true"], "policy.reads_goal: got true without goals, wanted goals.sources"),
        ([*TEXTS, "terms.goals.reads=caption"], "terms.goals: got a term with goals.sources=['config']: goals.sources"),
        (["goals.sources=[vary]", "service.engine=none"], "service.engine: got none with goals.sources=['vary'], want"),
        (
            ["goals.sources=[vary, compose]"],
            "goals.sources: got ['vary', 'compose'], wanted another source beside: vary",
        ),
        ([*TEXTS, "goals.achieved_by=judge"], "goals.achieved_by: got 'judge' (did you mean 'judged'?)"),
        ([*TEXTS, "goals.rubric=~no_such/x.yaml"], "goals.rubric: got '~no_such/x.yaml', but ~no_such is no user"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=overrides)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["reward_model.name=goals", "terms.x.model={name: goals}"])
def test_goals_are_no_reward_model_to_choose(key: str) -> None:
    with pytest.raises(ConfigError, match="got goals, wanted another: goals are a term of their own"):
        term_runs(load_config(overrides=[key]))


def test_a_term_named_goals_is_any_term_where_there_are_no_goals() -> None:
    assert resolved_terms(load_config(overrides=["terms.goals.rubric=nethack_gold"]))[GOAL_TERM].pays == "event"
