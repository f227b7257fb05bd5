"""`PlayRubric`: how a language model is asked for the next action, and which word answers with which action.

Invariant: no two actions have one answer, and every answer can be one token: a word of its own, or a letter for each
action, as the choices of a test have.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from configs.errors import did_you_mean
from configs.paths import user_path
from configs.yaml_text import read_yaml
from llm_server.rubrics.loading import STYLES, read_keys
from llm_server.rubrics.rubric import Example, GradedAnswer, Rubric

FOLDER = resources.files("llm_server").joinpath("playing")
ACTIONS = "{actions}"
"""What stands for the list of answers in `instructions`."""
LETTERS = (*string.ascii_uppercase, *(f"{first}{second}" for first in "AB" for second in string.ascii_uppercase))
"""The answers of `letters`, in the actions' order."""


@dataclass(frozen=True, kw_only=True)
class PlayExample:
    """A situation with the action to take, shown to the model before the question."""

    item: str
    action: str
    """The action's name."""


@dataclass(frozen=True, kw_only=True)
class ActionWord:
    """The word that answers with an action."""

    action: str
    """The action's name."""
    word: str
    """One token with the space before it."""


@dataclass(frozen=True, kw_only=True)
class PlayRubric:
    """The prompt of a model that plays; what it is asked about is a state in words, and the last step's caption."""

    id: str
    version: str
    style: str
    """`completion` (one text; right for small models) or `chat` (the model's chat template)."""
    instructions: str
    """What the model reads first; `{actions}` stands for the list of answers."""
    letters: bool = False
    """Whether actions are answered with letters (A, B, ..., Z, AA, ...) in place of words."""
    words: tuple[ActionWord, ...] = ()
    """Words of actions whose names are not one word; of actions that the environment lacks they are ignored."""
    examples: tuple[PlayExample, ...] = ()
    """Shown in this order, but for those of actions that the environment lacks."""
    item_label: str = "You see:"
    """Precedes a state."""
    message_label: str = "Message:"
    """Precedes the caption of the last step, after the state; empty for a prompt without captions."""
    answer_label: str = "Action:"
    """Precedes an answer, on a line of its own."""
    empty_state: str = "Nothing."
    """Shown for a state of which the describer says nothing."""
    max_item_chars: int = 512
    """Longer texts are cut."""
    answer_prefix: str = ""
    """Begins the model's turn in `chat` style."""

    def asked_text(self, state: str, caption: str) -> str:
        """What the model is asked about, on one line."""
        message = f" {self.message_label} {caption}" if self.message_label and caption else ""
        return f"{state or self.empty_state}{message}"

    def rubric(self, action_names: Sequence[str]) -> Rubric:
        """The rubric whose answers are these actions, in their order. ValueError where there is not one answer for
        each."""
        words = _letters(action_names) if self.letters else self._words(action_names)
        of_action = dict(zip(action_names, words, strict=True))
        told = ", ".join(f"{word}: {name}" if self.letters else word for name, word in of_action.items())
        return Rubric(
            id=self.id,
            version=self.version,
            goal="the next action",
            style=self.style,
            instructions=self.instructions.replace(ACTIONS, told),
            answers=tuple(GradedAnswer(word=f" {word}", value=0.0) for word in words),
            item_label=self.item_label,
            answer_label=self.answer_label,
            examples=tuple(
                Example(item=shown.item, positive=False, kind=f" {of_action[shown.action]}")
                for shown in self.examples
                if shown.action in of_action
            ),
            max_item_chars=self.max_item_chars,
            min_answer_mass=0.0,
            answer_prefix=self.answer_prefix,
        )

    def _words(self, action_names: Sequence[str]) -> list[str]:
        given = {named.action: named.word.strip() for named in self.words}
        words = [given.get(name, name) for name in action_names]
        advice = f"name another in `words` of play rubric '{self.id}', or let it say `letters: true`"
        first_with: dict[str, str] = {}
        for name, word in zip(action_names, words, strict=True):
            if len(word.split()) != 1:
                raise ValueError(f"the action {name!r} has the answer {word!r}, wanted one word: {advice}")
            if (other := first_with.setdefault(word.casefold(), name)) != name:
                raise ValueError(f"the actions {other!r} and {name!r} have the same answer {word!r}: {advice}")
        return words


def _letters(action_names: Sequence[str]) -> tuple[str, ...]:
    if len(action_names) > len(LETTERS):
        raise ValueError(f"the environment has {len(action_names)} actions, and there are {len(LETTERS)} letters")
    return LETTERS[: len(action_names)]


def built_in_play_rubrics() -> list[str]:
    """Names of the play rubrics that come with the package: those of describers (`env.describer`)."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_play_rubric(name_or_path: str) -> PlayRubric:
    """The built-in play rubric of that name, or the one in that YAML file; ValueError for any mistake."""
    names = built_in_play_rubrics()
    path = FOLDER.joinpath(f"{name_or_path}.yaml") if name_or_path in names else Path(user_path(name_or_path))
    if not path.is_file():
        wanted = f"give the path of a YAML file or one of {', '.join(names)}"
        raise ValueError(f"no play rubric '{name_or_path}'{did_you_mean(name_or_path, names)}: {wanted}")
    try:
        content = read_yaml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"play rubric '{name_or_path}' cannot be read: {error}") from None
    found: PlayRubric = read_keys(PlayRubric, content, name_or_path)
    if found.style not in STYLES:
        wrong = f"style is '{found.style}'{did_you_mean(found.style, STYLES)}: use {' or '.join(STYLES)}"
        raise ValueError(f"rubric '{name_or_path}': {wrong}")
    if found.max_item_chars < 1:
        raise ValueError(f"rubric '{name_or_path}': max_item_chars must be at least 1, not {found.max_item_chars}")
    return found
