"""The terms of a run's intrinsic reward: each with all its settings, and as a run that had this term alone.

Invariant: the main term comes first and is the run's own configuration, unchanged.
"""

import zlib
from dataclasses import asdict, replace

from configs.annotation_schema import RewardModelConfig
from configs.checks import ConfigError, validate
from configs.goal_schema import GOAL_TERM, OF_STATES, GoalsConfig
from configs.loading import with_values
from configs.reward_schema import MAIN_TERM, TermConfig
from configs.schema import RunConfig

GOALS_ARE_A_TERM = "goals are a term of their own, which a run has if goals.sources is not empty"
OF_MAIN_ONLY = {"judgements": "", "goals": []}
"""Settings of `reward_model` that belong to the main term's question, with what another term has instead."""


def terms_with_tables(config: RunConfig) -> tuple[str, ...]:
    """The terms whose reward tables can pay something: all but programs and a main one of `none`."""
    judged = (name for name, term in config.terms.items() if not term.program)
    others = (*judged, *((GOAL_TERM,) if config.goals.sources else ()))
    return others if config.reward_model.name == "none" else (MAIN_TERM, *others)


def has_reward_tables(config: RunConfig) -> bool:
    """Whether any term has reward tables, so that an annotator is needed."""
    return bool(terms_with_tables(config))


def setting_of(term: str) -> str:
    """The section that describes a term other than the main one, as messages name it."""
    return GOAL_TERM if term == GOAL_TERM else f"terms.{term}"


def read_channels(config: RunConfig) -> set[str]:
    """The channels that the run reads, `caption` perhaps among them: those of the terms beside the main one, what
    goals come from, and what the episode archive keeps."""
    reads = {term.reads for name, term in resolved_terms(config).items() if name != MAIN_TERM}
    goals = config.goals
    if goals.sources and (goals.scope == "suggested" or not {*OF_STATES}.isdisjoint(goals.sources)):
        reads.add("state")
    if config.archive.keep and config.env.features:
        reads.add("features")
    return reads


def resolved_terms(config: RunConfig) -> dict[str, TermConfig]:
    """Every term by name, with what it takes from other sections filled in; but `model` still holds differences."""
    reward = config.reward
    main = TermConfig(
        rubric=config.annotator.rubric,
        coefficient=reward.intrinsic_coefficient,
        gamma=config.learner.gamma,
        count_exponent=reward.count_exponent,
        episode_cap=reward.episode_cap,
        anneal_env_steps=reward.anneal_env_steps,
        trust=reward.trust,
        max_labels=config.annotator.max_labels,
    )
    others = {
        name: replace(
            term,
            rubric=term.rubric or main.rubric,
            gamma=main.gamma if term.gamma < 0 else term.gamma,
            count_exponent=main.count_exponent if term.count_exponent < 0 else term.count_exponent,
            max_labels=main.max_labels if term.max_labels < 0 else term.max_labels,
        )
        for name, term in config.terms.items()
    }
    return {MAIN_TERM: main, **others, **_goal_term(config.goals, main)}


def _goal_term(goals: GoalsConfig, main: TermConfig) -> dict[str, TermConfig]:
    """The term that pays goals, in a run that has any."""
    if not goals.sources:
        return {}
    return {
        GOAL_TERM: TermConfig(
            reads=goals.reads,
            rubric=goals.rubric or main.rubric,
            pays=GOAL_TERM,
            coefficient=goals.coefficient,
            gamma=main.gamma,
            count_exponent=0.0,
            max_labels=main.max_labels,
        )
    }


def term_runs(config: RunConfig) -> dict[str, RunConfig]:
    """For each term the configuration of a run that had it as its only one, with a seed of its own; the main term's is
    `config`. So whatever builds annotation and reward model from a configuration builds any term's. Programs are left
    out: they ask nobody. Raises ConfigError for a term whose `model` has an unknown key or an invalid value, or pays
    nothing."""
    if config.reward_model.name == GOAL_TERM:
        raise ConfigError(f"reward_model.name: got goals, wanted another: {GOALS_ARE_A_TERM}")
    return {
        name: config if name == MAIN_TERM else _run_of(config, name, term)
        for name, term in resolved_terms(config).items()
        if not term.program
    }


def _run_of(config: RunConfig, name: str, term: TermConfig) -> RunConfig:
    model = {**asdict(config.reward_model), **OF_MAIN_ONLY, **term.model}
    if name == GOAL_TERM and config.goals.sources:  # settings of the main term's model mean nothing to it
        interval_s = config.reward_model.publish_interval_s
        model = asdict(RewardModelConfig(name=GOAL_TERM, publish_interval_s=interval_s))
    elif model["name"] == GOAL_TERM:
        raise ConfigError(f"terms.{name}.model.name: got goals, wanted another: {GOALS_ARE_A_TERM}")
    try:
        run = with_values(  # a copy with values of the schema's types
            replace(config, terms={}, goals=config.goals if name == GOAL_TERM else GoalsConfig()),
            {
                "reward_model": model,
                "annotator": {"rubric": term.rubric, "max_labels": term.max_labels},
                "seed": zlib.crc32(f"{config.seed}/{name}".encode()),
            },
        )
        validate(run)
        if run.reward_model.name == "none":
            wanted = "give the term a reward model, for example model: {name: retrieval}"
            raise ConfigError(f"reward_model.name: got none, which pays nothing; {wanted}")
    except ConfigError as error:
        raise ConfigError(f"{setting_of(name)}: {error}") from None
    return run
