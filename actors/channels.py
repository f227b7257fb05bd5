"""What further terms of the reward read beside captions: the channels `state`, `change` and `history` of one worker's
environments, each with a tracker of its own, as captions have.

- `state`: what `env.describer` says of the state that an action led to.
- `change`: which of its sentences no longer hold, which are new, and the step's caption, for example `No longer: a
  closed door. New: an open door. Message: The door opens.` Empty where no sentence changed and no caption was shown.
- `history`: what the episode's actions so far mostly were (`actors.action_history`).
- `features`: no texts, but the numbers of `env.features` (`actors.features.signals`).

Texts have at most 256 bytes, like captions, since rubrics and caption networks read no more. A state that is too long
loses its last sentences; so does a change, and its caption the beginning. Case and digits are folded in captions only.
100,000 random steps of NetHackScore gave 3,700 distinct changes.

Invariant: every item belongs to the action that led to it, an episode's last one included; a new episode begins with
the state of its reset, and with no changes and no actions. Equal texts have equal ids.
"""

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from actors.action_history import ActionHistory
from actors.captions import MAX_CAPTION_BYTES, CaptionTracker, latest_messages, normalize, printable
from actors.environments.vector import VectorStep
from actors.features.signals import FEATURES, FeatureSignals
from actors.rollout import Acknowledgement

STATE, CHANGE, HISTORY = "state", "change", "history"
STATE_BEFORE = "state_before"
MAX_STATES = 8_192
"""States, pairs of states and changes of which it is remembered what they say."""
EVENT = "Message: "
MAX_DISTINCT = 50_000
"""Distinct items of a channel since the worker began from which on it is not coarse enough."""
ADVICE = {
    STATE: "make the describer (env.describer) coarser",
    CHANGE: "make the describer (env.describer) coarser, or captions (env.fold_digits)",
    HISTORY: "give the term another channel to read",
}

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s{2,}")
_CLAUSE_END = re.compile(r"[.!?;](?=\s)")


def channel_text(raw: bytes) -> str:
    """The text of a state or history that is hashed, shown and judged: printable, and whole sentences of at most 256
    bytes."""
    return first_sentences(printable(raw), MAX_CAPTION_BYTES)


def first_sentences(text: str, max_bytes: int) -> str:
    """The first sentences, or clauses before a semicolon, that fit; the beginning of the first if none does."""
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    fitting = encoded[: max_bytes + 1].decode("utf-8", "ignore")
    ends = [found.end() for found in _CLAUSE_END.finditer(fitting)]
    if not ends:
        return encoded[:max_bytes].decode("utf-8", "ignore").strip()
    kept = fitting[: ends[-1]]
    return f"{kept[:-1]}." if kept.endswith(";") else kept


def change_text(told: str, message: str) -> str:
    """What a step changed: the differences of two states, and the caption of the step between them; at most 256
    bytes."""
    if not message:
        return first_sentences(told, MAX_CAPTION_BYTES)
    text = f"{told} {EVENT}{message}" if told else f"{EVENT}{message}"
    if len(text) <= MAX_CAPTION_BYTES and (text.isascii() or len(text.encode()) <= MAX_CAPTION_BYTES):
        return text
    # What does not fit is divided: half for the facts, the rest for the message.
    room = MAX_CAPTION_BYTES - len(f" {EVENT}{message}".encode())
    told = first_sentences(told, max(room, MAX_CAPTION_BYTES // 2))
    room = MAX_CAPTION_BYTES - len(f"{told} {EVENT}".lstrip().encode())
    return f"{told} {EVENT}{latest_messages(message, room)}".lstrip()


@functools.lru_cache(MAX_STATES)
def differences(before: bytes, after: bytes) -> str:
    """`No longer: a closed door. New: an open door.` of two raw states; empty if their sentences are the same."""
    old, new = _facts(before), _facts(after)
    gone, come = [fact for fact in old if fact not in new], [fact for fact in new if fact not in old]
    return " ".join(f"{how}: {'; '.join(facts)}." for how, facts in (("No longer", gone), ("New", come)) if facts)


class Channels:
    """The channels of B environments that some term reads; with none, nothing is done."""

    def __init__(
        self,
        reads: Collection[str] = (),
        num_envs: int = 1,
        action_names: Sequence[str] = (),
        caption_text: Callable[[bytes], str] = normalize,
        num_features: int = 0,
    ) -> None:
        """`reads`: what terms read (`caption` has its own tracker). `caption_text`: the normalised text of a raw
        caption. `num_features`: F of the environments. Raises ValueError for `history` without `action_names`."""
        if HISTORY in reads and not action_names:
            got = "got none, and the environment names none itself"
            raise ValueError(f"env.action_names: {got}, wanted a word for each action: a term reads `history`")
        self._trackers = {
            name: CaptionTracker(num_envs, channel_text) for name in (STATE, CHANGE, HISTORY) if name in reads
        }
        self._features = FeatureSignals(num_envs, num_features) if FEATURES in reads else None
        self._describes = not {STATE, CHANGE}.isdisjoint(self._trackers)
        self._num_envs = num_envs
        self._states = [b""] * num_envs  # raw, in which the next actions are taken
        self._state_ids = np.zeros(num_envs, np.uint64)
        self._history = ActionHistory(num_envs, action_names)
        self._caption_text = caption_text
        self._told = functools.lru_cache(MAX_STATES)(self._tell)
        self._distinct: dict[str, set[int]] = {name: set() for name in self._trackers}
        self._notices: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._trackers) or self._features is not None

    @property
    def state_ids(self) -> np.ndarray | None:
        """[B] u64: the states that the next actions are taken in; None where the channel `state` is not read."""
        return self._state_ids if STATE in self._trackers else None

    def begin(self, states: list[bytes] | None, features: np.ndarray | None = None) -> None:
        """New episodes have begun everywhere, in these states, in words and in features [B, F]."""
        self.resume(states, features)
        if self._features is not None:
            self._features.begin()
        for index in range(self._num_envs):
            self._restart(index)

    def resume(self, states: list[bytes] | None, features: np.ndarray | None = None) -> None:
        """The running episodes of a loaded state go on, from these states."""
        if self._features is not None:
            self._features.resume(features)
        if self._describes:
            self._states = _given(states)[:]

    def arrays(self, num_steps: int) -> dict[str, np.ndarray]:
        """Arrays for `Rollout.signals`, of `num_steps` steps."""
        shape = num_steps, self._num_envs
        signals: dict[str, np.ndarray] = {} if self._features is None else self._features.arrays(num_steps)
        for name in self._trackers:
            signals |= {name: np.zeros(shape, np.uint64), f"{name}_counts": np.zeros(shape, np.int32)}
        return signals | ({STATE_BEFORE: np.zeros(shape, np.uint64)} if STATE in self._trackers else {})

    def observe(
        self,
        signals: Mapping[str, np.ndarray],
        t: int,
        rows: slice,
        actions: np.ndarray,
        step: VectorStep,
        states: list[bytes] | None,
        features: np.ndarray | None = None,
    ) -> None:
        """Write step `t` of the environments `rows`, which took `actions`, into `signals`; `states` are those that
        they are in now, of new episodes where any has begun, and `features` [N, F] are theirs."""
        if self._features is not None:
            self._features.observe(signals, t, rows, step, features)
        if not self._trackers:
            return
        for name, items in self._items(rows, actions, step):
            for lost in step.losses:
                items[lost] = b""
            ids, signals[f"{name}_counts"][t, rows] = self._trackers[name].observe(items, rows.start)
            signals[name][t, rows] = ids
            if name == STATE:
                signals[STATE_BEFORE][t, rows] = self._state_ids[rows]
                self._state_ids[rows] = ids
        if self._describes:
            self._states[rows] = _given(states)
        for index in itertools.chain((end.index for end in step.ends), step.losses):
            self._restart(rows.start + index)

    def report(self, sequence_number: int) -> dict[str, tuple[dict[int, str], dict[int, int]]]:
        """For each channel what `CaptionTracker.report` gives, for `CaptionReport.channels`."""
        reports = {name: tracker.report(sequence_number) for name, tracker in self._trackers.items()}
        for name, seen in list(self._distinct.items()):
            seen |= reports[name][1].keys()
            if len(seen) > MAX_DISTINCT:
                what = f"a worker has seen more than {MAX_DISTINCT:,} distinct items of the channel `{name}`"
                self._notices.append(f"{what}; what does not repeat is not paid: {ADVICE[name]}")
                del self._distinct[name]
        return reports

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Stop sending texts that the books hold."""
        for tracker in self._trackers.values():
            tracker.acknowledge(acknowledgement)

    def take_notices(self) -> tuple[str, ...]:
        """New notices for the user since the last call, one line each."""
        taken, self._notices = tuple(self._notices), []
        return taken

    def state_dict(self) -> dict[str, Any]:
        """State from which, with the environments' states, signals and reports continue exactly."""
        trackers = {name: tracker.state_dict() for name, tracker in self._trackers.items()}
        features = {} if self._features is None else {FEATURES: self._features.state_dict()}
        return {**trackers, "state_ids": self._state_ids.copy(), "actions": self._history.state_dict(), **features}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`; then call `begin` or `resume`."""
        for name, tracker in self._trackers.items():
            tracker.load_state_dict(state[name])
        if self._features is not None:
            self._features.load_state_dict(state[FEATURES])
        self._state_ids[:] = state["state_ids"]
        self._history.load_state_dict(state["actions"])

    def _items(self, rows: slice, actions: np.ndarray, step: VectorStep) -> Iterator[tuple[str, list[bytes]]]:
        """The raw items of one step, channel by channel."""
        if STATE in self._trackers:
            yield STATE, _given(step.states)
        if CHANGE in self._trackers:
            both = zip(self._states[rows], _given(step.states), step.captions, strict=True)
            yield CHANGE, [self._change(*parts) if parts[2] or parts[0] != parts[1] else b"" for parts in both]
        if HISTORY in self._trackers:
            yield HISTORY, self._history.observe(actions, rows)

    def _restart(self, index: int) -> None:
        """A new episode has begun in environment `index`, in the state that is noted."""
        for name, tracker in self._trackers.items():
            id_ = tracker.restart(index, self._states[index] if name == STATE else b"")
            if name == STATE:
                self._state_ids[index] = id_
        self._history.restart(index)

    def _change(self, before: bytes, after: bytes, caption: bytes) -> bytes:
        return self._told("" if before == after else differences(before, after), caption)

    def _tell(self, told: str, caption: bytes) -> bytes:
        return change_text(told, self._caption_text(caption)).encode()


@functools.lru_cache(MAX_STATES)
def _facts(state: bytes) -> dict[str, None]:
    """The sentences of a raw state, as parts of one: without full stop, with a small first letter unless capitals
    follow."""
    sentences = (sentence.rstrip(".") for sentence in _SENTENCE_END.split(channel_text(state)))
    return dict.fromkeys(
        f"{fact[0].lower()}{fact[1:]}" if fact[1:2].islower() or fact.startswith("A ") else fact
        for fact in sentences
        if fact
    )


def _given(states: list[bytes] | None) -> list[bytes]:
    if states is None:
        raise ValueError("a term reads states, but the environments were made without env.describer")
    return states
