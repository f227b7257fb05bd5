"""Terms of the reward in the configuration: what they take from other sections, and what is refused."""

from pathlib import Path

import pytest

from configs.checks import ConfigError
from configs.loading import experiment_diff, from_dict, load_config, to_dict
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from configs.terms import read_channels, resolved_terms, term_runs, terms_with_tables

TERMS = (
    "env.describer=minigrid",
    "terms.fight.rubric=nethack_combat",
    "terms.fight.coefficient=0.2",
    "terms={depth: {reads: state, pays: potential, model: {name: classification, learning_rate: 1e-4}}}",
)


def test_terms_come_from_sections_and_dotted_keys_alike_and_survive_json() -> None:
    config = load_config(overrides=TERMS)
    assert [*config.terms] == ["fight", "depth"]
    assert config.terms["depth"].model == {"name": "classification", "learning_rate": 1e-4}
    assert from_dict(to_dict(config)) == config


def test_a_term_takes_what_it_does_not_say_from_the_other_sections() -> None:
    config = load_config(overrides=[*TERMS, "learner.gamma=0.9", "reward.count_exponent=2", "annotator.max_labels=7"])
    terms = resolved_terms(config)
    assert [*terms] == [MAIN_TERM, "fight", "depth"]
    assert (terms["depth"].gamma, terms["depth"].rubric, terms["depth"].max_labels) == (0.9, "nethack_progress", 7)
    assert (terms["fight"].count_exponent, terms["fight"].rubric, terms["fight"].coefficient) == (
        2,
        "nethack_combat",
        0.2,
    )
    main = terms[MAIN_TERM]
    assert (main.reads, main.pays, main.coefficient, main.count_exponent) == ("caption", "event", 0.4, 2)


def test_each_term_is_a_run_of_its_own_and_the_main_one_is_the_run_itself() -> None:
    config = load_config(overrides=TERMS)
    runs = term_runs(config)
    assert runs[MAIN_TERM] is config
    depth = runs["depth"]
    assert (depth.reward_model.name, depth.reward_model.learning_rate) == ("classification", 1e-4)
    assert runs["fight"].annotator.rubric == "nethack_combat"
    assert len({run.seed for run in runs.values()}) == 3
    assert depth.reward_model.batch_size == config.reward_model.batch_size


def test_other_terms_make_another_experiment() -> None:
    before, after = load_config(overrides=TERMS), load_config(overrides=[*TERMS, "terms.fight.coefficient=0.3"])
    assert experiment_diff(to_dict(before), to_dict(after)) == ["terms.fight.coefficient: 0.2 -> 0.3"]
    assert experiment_diff(to_dict(before), to_dict(load_config(overrides=TERMS[:3])))
    assert not experiment_diff(to_dict(RunConfig()), to_dict(RunConfig()))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("terms.fight.ruberic=x", "did you mean 'terms.fight.rubric'?"),
        ("terms.fight=3", "terms.fight is a section, got '3'; set one of its keys, for example terms.fight.reads"),
        ("terms.main.reads=caption", "terms.main: wanted another name"),
        ("terms.Fight.reads=caption", "got the name 'Fight', wanted small letters"),
        ("terms.x.reads=state", "env.describer: got '', wanted nethack, minigrid or module:function"),
        ("terms.x.reads=sounds", "terms.x.reads: got 'sounds', wanted one of caption, state"),
        ("terms.x.pays=potential", "terms.x.pays: got 'potential' with reads=caption, wanted reads=state"),
        ("terms.x.pays=potentail", "did you mean 'potential'?"),
        ("terms.x.pays=goals", "terms.x.pays: got 'goals', wanted one of event, potential"),
        ("terms.x.coefficient=much", "terms.x.coefficient: got 'much', wanted a number"),
        ("terms.x.episode_cap=-1", "terms.x.episode_cap: got -1.0, wanted a number from 0"),
        ("terms.x.reads=features", "terms.x.program: got none with reads=features, wanted a program if and only if"),
        ("terms.x.program=state.x", "terms.x.program: got 'state.x' with reads=caption, wanted a program if and only"),
        (
            "terms.x={reads: features, program: state.x}",
            "env.features: got [], wanted blstats, minigrid, obs, info:KEY",
        ),
        ("terms.x={reads: features, program: nowhere.py}", "terms.x.program: got 'nowhere.py' ([Errno 2]"),
        (
            "terms.x={reads: features, program: ~no_such_user/x.py}",
            "terms.x.program: got '~no_such_user/x.py', but ~no_such_user is no user here",
        ),
        ("env.captioner=none", "env.captioner: got none, wanted where captions come from: reward_model.name=retrieval"),
        ("robust.noise_rate=0.5", "robust.noise_rate: got 0.5, wanted a number from 0 to 0.499"),
        (
            "robust.pessimism=1",
            "robust.pessimism: got 1 with robust.ensemble=1, which cannot disagree; wanted robust.ens",
        ),
        ("annotator.policy=disagreement", "annotator.policy: got disagreement with robust.ensemble=1"),
        ("robust.pseudo_confidence=0.5", "robust.pseudo_confidence: got 0.5, wanted above 0.5"),
    ],
)
def test_what_is_wrong_with_a_term_is_one_clear_line(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{nam: counts}", "terms.x: unknown key reward_model.nam (did you mean 'reward_model.name'?)"),
        ("{clip: x}", "terms.x: reward_model.clip: got 'x', wanted a number"),
        ("{clip: -1}", "terms.x: reward_model.clip: got -1.0, wanted a number from 0"),
    ],
)
def test_the_differences_of_a_terms_model_are_checked_like_its_section(model: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        term_runs(load_config(overrides=[f"terms.x.model={model}"]))
    assert said in str(error.value)


def test_pseudo_labels_need_held_out_answers() -> None:
    with pytest.raises(ConfigError, match=r"pseudo_confidence: got 0.9 with reward_model.held_out_fraction=0"):
        load_config(overrides=["robust.pseudo_confidence=0.9", "reward_model.held_out_fraction=0"])


PROGRAM = {"reads": "features", "program": "after.height - before.height"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("terms.x.rubric=nethack_gold", "terms.x.rubric: got 'nethack_gold' with a program, which asks nobody"),
        ("terms.x.max_labels=5", "terms.x.max_labels: got 5 with a program"),
        ("terms.x.model={name: counts}", "terms.x.model: got {'name': 'counts'} with a program"),
    ],
)
def test_what_means_nothing_to_a_program_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(overrides=["env.features=[blstats]", f"terms.x={PROGRAM}", setting])
    assert said in str(error.value)


def test_a_program_comes_from_a_file_into_the_configuration_and_has_no_model(tmp_path: Path) -> None:
    file = tmp_path / "climb.py"
    file.write_text("def progress(state):\n    return state.depth\n")
    config = load_config(overrides=["env.features=[blstats]", f"terms.x={{reads: features, program: {file}}}"])
    assert config.terms["x"].program == file.read_text()
    assert [*resolved_terms(config)] == ["main", "x"]
    assert [*term_runs(config)] == [*terms_with_tables(config)] == ["main"]
    assert read_channels(config) == {"features"}
