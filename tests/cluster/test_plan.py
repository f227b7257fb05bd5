"""What a run needs follows from its terms: which rubrics, which engine, and what is refused under which name."""

from pathlib import Path

import pytest

from cluster.plan import RunPlan, check_rubrics, plan_run
from configs.checks import ConfigError
from configs.loading import load_config
from configs.reward_schema import MAIN_TERM
from llm_server.rubrics.loading import load_rubric
from reward_models.interface import Asks

FIGHT, GOLD = "terms.fight.rubric=nethack_combat", "terms.gold.rubric=nethack_gold"


def plan(*overrides: str) -> RunPlan:
    return plan_run(load_config(preset="debug", overrides=overrides))


def test_one_service_has_the_rubrics_of_all_terms_that_ask_each_once() -> None:
    made = plan(FIGHT, GOLD, "terms.again.rubric=nethack_gold", "terms.new.model={name: counts}")
    assert [*made.terms] == [MAIN_TERM, "fight", "gold", "again", "new"]
    assert made.rubrics == ["nethack_progress", "nethack_combat", "nethack_gold"]
    assert [*made.asking] == [MAIN_TERM, "fight", "gold", "again"]
    assert made.main.config is made.config


@pytest.mark.parametrize(
    ("overrides", "engine", "starts"),
    [
        ([], "scripted", True),
        (["reward_model.name=embedding"], "none", True),
        (["reward_model.name=embedding", "terms.x.model={name: retrieval}"], "scripted", True),
        (["reward_model.name=none"], "scripted", False),
        (["reward_model.name=none", "terms.x.model={name: embedding}"], "none", True),
        (["reward_model.name=none", "terms.x.model={name: retrieval}"], "scripted", True),
        (["reward_model.name=counts", "terms.x.model={name: counts}"], "scripted", False),
    ],
)
def test_a_language_model_is_loaded_if_any_term_is_judged(overrides: list[str], engine: str, starts: bool) -> None:
    made = plan(*overrides)
    assert (made.service.engine, made.starts_service, made.asks_judge) == (engine, starts, starts)


GOALS = ("reward_model.name=none", "goals.sources=[config]", "goals.texts=[leave]")
SUGGESTED = (
    *("reward_model.name=none", "goals.sources=[suggest]", "env.describer=nethack"),
    "goals.achieved_by=similarity",
)


@pytest.mark.parametrize(
    ("overrides", "engine", "rubrics"),
    [
        ([*GOALS], "scripted", ["nethack_progress"]),
        ([*GOALS, "goals.achieved_by=similarity", "goals.rubric=nethack_combat"], "none", ["nethack_combat"]),
        ([*SUGGESTED], "scripted", ["nethack_progress"]),
        ([*SUGGESTED, "writer.address=127.0.0.1:7431"], "none", ["nethack_progress"]),
        ([*SUGGESTED, "goals.sources=[rubric, closed]"], "scripted", ["nethack_progress", "sensible_goal"]),
        ([*GOALS, "goals.achieved_by=judged", "goals.rubric=minihack_subgoal"], "scripted", ["minihack_subgoal"]),
    ],
)
def test_goals_need_a_language_model_where_it_judges_or_writes(
    overrides: list[str], engine: str, rubrics: list[str]
) -> None:
    made = plan(*overrides)
    assert (made.service.engine, made.rubrics, made.starts_service) == (engine, rubrics, True)
    assert check_rubrics(made)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([*GOALS, "goals.rubric=nethack_combt"], "goals: no rubric 'nethack_combt'"),
        ([*GOALS, "goals.achieved_by=judged"], "goals: rubric 'nethack_progress' has no about_label"),
        ([*GOALS, "goals.rubric=minihack_subgoal"], "goals: rubric 'minihack_subgoal' judges every item about some"),
        (
            [*SUGGESTED, "goals.sources=[rubric, closed]", "goals.sensible_rubric=nethack_gold"],
            "rubric 'nethack_gold' has no",
        ),
        ([*GOALS, "service.engine=none"], "goals: service.engine: got none with reward_model.name=goals, which learns"),
        ([*GOALS, f"goals.texts=[{'x' * 101}]"], "wanted one printable line of at most 100 characters"),
        ([*GOALS, "goals.texts=[leave, ' leave']"], "goals: goals.texts: got a text twice"),
    ],
)
def test_what_is_wrong_with_goals_is_one_line(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        check_rubrics(plan(*overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_hash_of_one_rubric_stands_alone_and_others_follow_with_their_terms() -> None:
    hashes = {name: load_rubric(name) for name in ("nethack_progress", "nethack_combat")}
    one, two = ("/".join(filter(None, (each.content_hash, each.pairs_hash))) for each in hashes.values())
    assert check_rubrics(plan()) == one
    assert check_rubrics(plan(FIGHT)) == f"{one} fight={two}"
    assert check_rubrics(plan(FIGHT, "reward_model.name=counts", "terms.fight.model={name: retrieval}")) == (
        f"fight={two}"
    )
    assert check_rubrics(plan("reward_model.name=none")) is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["terms.x.rubric=nethack_combt"], "terms.x: "),
        (["terms.x.model={name: rankng}"], "terms.x: reward_model.name: got 'rankng' (did you mean 'ranking'?)"),
        (["terms.x.about=a door"], "terms.x: rubric 'nethack_progress' has no about_label"),
        (["terms.x.model={name: none}"], "terms.x: reward_model.name: got none, which pays nothing"),
        (["reward_model.name=none", FIGHT], "terms.fight: reward_model.name: got none, which pays nothing"),
        (["terms.x.model={judgements: f, name: counts}"], "terms.x: reward_model.judgements: got a file"),
        (
            ["annotator.pairs=compared", "terms.x.model={name: ranking}", "terms.x.rubric=history_relevance"],
            "terms.x: annotator.pairs: got compared, but rubric",
        ),
    ],
)
def test_what_is_wrong_with_a_term_is_one_line_that_names_it(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError) as error:
        check_rubrics(plan(*overrides))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_two_rubrics_that_a_service_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: nethack_progress\ngoal: another\n")
    with pytest.raises(ConfigError, match=r"terms\.x: two different rubrics have the id 'nethack_progress'"):
        check_rubrics(plan(f"terms.x.rubric={mine}"))


def test_goals_and_judgements_of_the_main_term_are_not_those_of_others() -> None:
    made = plan("reward_model.name=embedding", "reward_model.goals=[gold]", "terms.x.rubric=nethack_combat")
    assert made.terms["x"].asks is Asks.EMBEDDINGS
    assert made.terms["x"].config.reward_model.goals == []
    assert made.main.config.reward_model.goals == ["gold"]
