"""The terms of a run's intrinsic reward: each with all its settings, and as a run that had this term alone.

Invariant: the main term comes first and is the run's own configuration, unchanged.
"""

import zlib
from dataclasses import asdict, replace

from configs.checks import ConfigError, validate
from configs.loading import with_values
from configs.reward_schema import MAIN_TERM, TermConfig
from configs.schema import RunConfig

OF_MAIN_ONLY = {"judgements": "", "goals": []}
"""Settings of `reward_model` that belong to the main term's question, with what another term has instead."""


def has_reward_tables(config: RunConfig) -> bool:
    """Whether any term has reward tables, so that an annotator is needed: every term but a main one of `none`."""
    return bool(config.terms) or config.reward_model.name != "none"


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
    return {MAIN_TERM: main, **others}


def term_runs(config: RunConfig) -> dict[str, RunConfig]:
    """For each term the configuration of a run that had it as its only one, with a seed of its own; the main term's is
    `config`. So whatever builds annotation and reward model from a configuration builds any term's. Raises ConfigError
    for a term whose `model` has an unknown key or an invalid value, or pays nothing."""
    return {
        name: config if name == MAIN_TERM else _run_of(config, name, term)
        for name, term in resolved_terms(config).items()
    }


def _run_of(config: RunConfig, name: str, term: TermConfig) -> RunConfig:
    try:
        run = with_values(  # a copy with values of the schema's types
            replace(config, terms={}),
            {
                "reward_model": {**asdict(config.reward_model), **OF_MAIN_ONLY, **term.model},
                "annotator": {"rubric": term.rubric, "max_labels": term.max_labels},
                "seed": zlib.crc32(f"{config.seed}/{name}".encode()),
            },
        )
        validate(run)
        if run.reward_model.name == "none":
            wanted = "give the term a reward model, for example model: {name: retrieval}"
            raise ConfigError(f"reward_model.name: got none, which pays nothing; {wanted}")
    except ConfigError as error:
        raise ConfigError(f"terms.{name}: {error}") from None
    return run
