"""What a run needs besides a policy to train: what each term of its reward asks, and whether the run starts an
annotation service for them, and which.

Invariant: all of it follows from the configuration and from what the reward models ask; each model is built once to
learn that."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from configs.annotation_schema import ServiceConfig
from configs.checks import ConfigError
from configs.goal_schema import GOAL_TERM, WRITTEN
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from configs.terms import resolved_terms, setting_of, term_runs
from llm_server.rubrics.loading import distinct_rubrics, load_rubric
from llm_server.rubrics.rubric import Rubric
from reward_models.building import MODELS, check_reward_model
from reward_models.embedding import MAX_GOALS
from reward_models.interface import Asks, RewardModel

SENSIBLE = "goals.sensible"
"""Names the rubric of goals in states among the hashes."""
LOCAL_ENGINES = ("transformers", "vllm")
"""Engines that load a language model on the machine of the service."""


@dataclass(frozen=True, slots=True)
class TermPlan:
    """A term of the reward, and what follows from its settings."""

    config: RunConfig
    """Of a run that had this term alone (`configs.terms.term_runs`)."""
    asks: Asks
    """What its reward model learns from."""
    reads: str = "caption"
    """The channel whose items it rewards."""
    about: str = ""
    """What items are judged about."""

    @property
    def asks_judge(self) -> bool:
        """Whether an annotation service is asked while the policy trains."""
        return self.asks is not Asks.NOTHING and not self.config.reward_model.judgements

    @property
    def judges(self) -> bool:
        """Whether it asks for judgements, of single items, of pairs, or of items about goals."""
        by_vectors = self.asks is Asks.GOALS and self.config.goals.achieved_by == "similarity"
        return self.asks_judge and self.asks is not Asks.EMBEDDINGS and not by_vectors

    @property
    def any_about(self) -> str:
        """What items are judged about, or where that is goals, any goal; empty for nothing."""
        about_goals = self.asks is Asks.GOALS and self.config.goals.achieved_by == "judged"
        return "open the door" if about_goals else self.about

    @property
    def rubric(self) -> str:
        """Name or path of its rubric."""
        return self.config.annotator.rubric


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A configuration and what follows from it."""

    config: RunConfig
    terms: Mapping[str, TermPlan]
    """The terms of the reward by name, the main one first."""

    @property
    def main(self) -> TermPlan:
        """The main term, that of captions."""
        return self.terms[MAIN_TERM]

    @property
    def asking(self) -> dict[str, TermPlan]:
        """The terms that ask a judge while the policy trains."""
        return {name: term for name, term in self.terms.items() if term.asks_judge}

    @property
    def asks_judge(self) -> bool:
        """Whether any term asks an annotation service while the policy trains."""
        return bool(self.asking)

    @property
    def embeds(self) -> bool:
        """Whether any term asks for embeddings."""
        return any(term.asks in (Asks.EMBEDDINGS, Asks.GOALS) for term in self.asking.values())

    @property
    def judges(self) -> bool:
        """Whether a language model judges: items of any term, or goals about states."""
        return any(term.judges for term in self.asking.values()) or bool(self.sensible_rubric)

    @property
    def sensible_rubric(self) -> str:
        """Name or path of the rubric that says which goals make sense in a state; empty where that is not asked."""
        goals = self.config.goals
        return goals.sensible_rubric if "closed" in goals.sources else ""

    @property
    def writes(self) -> bool:
        """Whether a language model writes goals."""
        return not {*WRITTEN}.isdisjoint(self.config.goals.sources)

    @property
    def rubrics(self) -> list[str]:
        """The rubrics of the service that all terms ask, each once."""
        rubrics = [term.rubric for term in self.asking.values()]
        return list(dict.fromkeys([*rubrics, self.sensible_rubric] if self.sensible_rubric else rubrics))

    @property
    def starts_service(self) -> bool:
        """Whether the run starts its own judge: services as child processes, or in `inline` one in its own process."""
        return self.asks_judge and not self.config.annotator.address

    @property
    def service(self) -> ServiceConfig:
        """Of the service that the run starts; embeddings take no language model."""
        service = self.config.service
        needs_model = self.judges or (self.writes and not self.config.writer.address)
        return replace(service, engine="none") if self.embeds and not needs_model else service

    @property
    def loads_language_model(self) -> bool:
        """Whether the service that the run starts loads a language model."""
        return self.starts_service and self.service.engine in LOCAL_ENGINES


def plan_run(config: RunConfig) -> RunPlan:
    """The plan of a configuration. Raises ValueError for a reward model that does not fit it."""
    settings, plans = resolved_terms(config), {}
    for name, run in term_runs(config).items():
        with of_term(name):
            plans[name] = TermPlan(run, build_model(run).asks, settings[name].reads, settings[name].about)
    return RunPlan(config, plans)


@contextmanager
def of_term(name: str) -> Iterator[None]:
    """Around the use of a term's settings: a ValueError about them becomes one that names the term, unless it is the
    main one."""
    try:
        yield
    except ValueError as error:
        if name == MAIN_TERM:
            raise
        raise ConfigError(f"{setting_of(name)}: {error}") from None


def build_model(config: RunConfig) -> RewardModel:
    """The reward model of a configuration, goals filled in. Raises ValueError for a wrong setting."""
    model = MODELS.get(config.reward_model.name)
    if model is not None and model.takes_goals:
        config = replace(config, reward_model=replace(config.reward_model, goals=embedding_goals(config)))
    return check_reward_model(config)


def embedding_goals(config: RunConfig) -> list[str]:
    """What `embedding` compares with: `reward_model.goals`, else the rubric's positive examples, else its goal."""
    if config.reward_model.goals:
        return list(config.reward_model.goals)
    rubric = load_rubric(config.annotator.rubric)
    return [example.item for example in rubric.examples if example.positive][:MAX_GOALS] or [rubric.goal]


def check_rubrics(plan: RunPlan) -> str | None:
    """The hashes of the rubrics that the terms ask under, as `check_parts` returns them. Raises ConfigError for one
    that cannot be read, or asks otherwise than its term."""
    hashes: list[str] = []
    rubrics: list[Rubric] = []
    for name, term in plan.asking.items():
        with of_term(name):
            rubric, asks = load_rubric(term.rubric), term.config.annotator
            if term.asks is Asks.PAIRS and asks.pairs == "compared" and rubric.pairs is None:
                raise ConfigError(
                    f"annotator.pairs: got compared, but rubric '{rubric.id}' has no `pairs` section; write one, or"
                    " take annotator.pairs=pointwise"
                )
            if name == MAIN_TERM and rubric.about_label:
                what = f"rubric '{rubric.id}' judges items about something ({rubric.about_label})"
                raise ConfigError(f"annotator.rubric: {what}, which only a term of `terms` can say, by its `about`")
            rubric.check_about(bool(term.any_about))
            rubrics = distinct_rubrics([*rubrics, rubric])
        found = "/".join(hash for hash in (rubric.content_hash, rubric.pairs_hash) if hash)
        hashes.append(found if name == MAIN_TERM else f"{name}={found}")
    if plan.sensible_rubric:
        with of_term(GOAL_TERM):
            rubric = load_rubric(plan.sensible_rubric)
            rubric.check_about(True)
            distinct_rubrics([*rubrics, rubric])
        hashes.append(f"{SENSIBLE}={rubric.content_hash}")
    return " ".join(hashes) or None
