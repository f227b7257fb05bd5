"""Configuration of goals: where they come from, when they count as achieved, what that pays, which of them the policy
is given; and of the model that writes them."""

from dataclasses import dataclass, field

from configs.fields import number, one_of

GOAL_TERM = "goals"
"""The name of the reward's term that pays goals."""
MAX_GOALS = 256
"""Goals in one run, those that are no longer active included."""
SOURCES = ("config", "rubric", "missions", "suggest", "closed", "decompose", "relabel", "compose", "vary")
WRITTEN = ("suggest", "decompose", "relabel", "compose", "vary")
"""Sources that ask a language model to write."""
DERIVED = ("closed", "compose", "vary")
"""Sources that make nothing without goals of others."""
OF_STATES = ("suggest", "closed")
"""Sources that say which goals are suggested in a state."""

GOAL_WIDTH = 384
"""Numbers of a goal's vector that policies read: those of the encoder minilm."""


@dataclass(frozen=True)
class GoalsConfig:
    """Goals in words: a term of the reward pays those that are achieved, and the policy may be given one to reach."""

    sources: list[str] = field(default_factory=list)
    """Where goals come from, any of: `config` (`goals.texts`), `rubric` (the positive examples of the term's rubric),
    `missions` (the instructions that the environment gives), `suggest` (written for each described state, ELLM),
    `closed` (for each described state, those that the judge calls sensible, ELLM's closed form), `decompose` (written
    once for `goals.task`: a plan), `relabel` (written about new accomplishments, LMA3; with achieved_by=similarity
    about whatever is new), `compose` (chains of mastered goals, LMA3), `vary` (variants of goals that fail, WebRL).
    Empty: a run without goals."""
    texts: list[str] = field(default_factory=list)
    """Goals of the source `config`, each a short phrase."""
    task: str = ""
    """What the agent is to do, in one sentence: what `decompose` divides, and what relevance is measured against."""
    ordered: bool = False
    """The goals of `config` or `decompose` are a plan: each is paid, and given, only after the one before it."""
    reads: str = one_of("caption", "change")
    """What is matched against goals: the caption of a step, or what changed in the described state."""
    rubric: str = ""
    """Name or YAML file of the rubric that says whether an item is an accomplishment; empty uses annotator.rubric."""
    achieved_by: str = one_of("both", "similarity", "judged")
    """When an item achieves a goal: `both` (the rubric calls it an accomplishment, and the goal is its nearest or
    within 0.03 of that, above `similarity`), `similarity` (the latter alone) or `judged` (the rubric, which must have
    an about_label, says so about the item and each of its four nearest goals)."""
    sensible_rubric: str = "sensible_goal"
    """For `closed`: name or YAML file of a rubric with an about_label, which says whether a goal makes sense in a
    state."""
    similarity: float = number(0.4, -1, 1)
    """The cosine of sentence embeddings above which an item may achieve a goal."""
    merge_similarity: float = number(0.9, -1, 1)
    """A new goal whose cosine with a known one is at least this is the known one."""
    scope: str = one_of("any", "suggested", "current")
    """Which achieved goals are paid: `any`, those `suggested` in the state before the action (ELLM), or the `current`
    one that the policy was given."""
    coefficient: float = number(1.0, -1e6, 1e6)
    """What a goal pays, times its relevance."""
    once: bool = True
    """A goal is paid once per episode."""
    neutralise: bool = False
    """Where an episode succeeds and terminates, take back what goals were paid in it, discounted to that step, so that
    the task's optimal policy stays optimal (ELLA, Mirchandani et al. 2021)."""
    relevance: str = one_of("none", "learned")
    """`learned`: a goal pays the probability that an episode in which it is achieved is a success, were there as many
    successes as failures, by a logistic model of the vectors of `task` and goal, learnt from the episodes so far (after
    ELLA); 1 before there are ten successes."""
    sampling: str = one_of("uniform", "difficulty", "progress")
    """How the policy's goal is drawn: `uniform`ly, among those of middling `difficulty` (a success rate in 0.05 to
    0.75, or never tried: WebRL), or by learning `progress` (the change of the success rate: LMA3)."""
    patience_steps: int = number(0, 0, 1e9)
    """Steps after which the policy is given another goal within an episode; 0 keeps it until it is achieved."""


@dataclass(frozen=True)
class WriterConfig:
    """How often a language model is asked to write goals."""

    address: str = ""
    """host:port of an annotation service that writes, with a larger model for example; empty asks the judge's. It is
    shown the certificate and the token for annotator.address, if any."""
    max_per_s: float = number(1.0, 0.001, 1e6)
    """Maximum rate of writings asked for."""
    max_writings: int = number(0, 0, 1e12)
    """Maximum writings of the run; 0 sets no limit."""
    per_turn: int = number(1, 0, 1000)
    """In `inline`: writings asked for after each rollout."""
    attempts: int = number(2, 1, 100)
    """How often a writing is asked for with another seed where nothing usable was written."""
