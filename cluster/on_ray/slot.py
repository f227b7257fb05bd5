"""The place of one supervised actor: whether an actor is in it, what that has answered, and when the next may start.

Invariant: at most one `call` of a slot is unanswered, so nothing piles up at an actor that hangs; an actor that waits
for resources or imports (STARTING) is told apart from one that has answered before and is silent (ALIVE).
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

import ray


class SlotState(Enum):
    """See `Slot`."""

    EMPTY = auto()
    STARTING = auto()
    ALIVE = auto()
    BACKING_OFF = auto()


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """One actor after the other.

        state        its actor                              becomes
        EMPTY        may be started                         STARTING by `start`
        STARTING     was requested, has answered nothing    ALIVE by `take_answer`, EMPTY by `lost`
        ALIVE        has answered                           EMPTY by `lost`
        BACKING_OFF  was lost, and a pause is not over      EMPTY by time

    `back_off`, called after `lost`, turns EMPTY into BACKING_OFF; with an actor present it delays its next call and the
    state stays. Giving up is its owner's, as it concerns all slots.
    """

    interval_s: float
    """The least time from one call to the next."""
    actor: Any = None
    call: Any = None
    """The unanswered call's reference, or None."""
    answer: Any = None
    """The newest answer of the present actor."""
    losses: int = 0
    """Actors lost so far."""
    failures: int = 0
    """Actors that have failed since the owner last set this to 0 for progress."""
    due_at: float = 0.0
    """When an actor may be started, or the present one called again."""
    _asked_at: float = 0.0
    _has_answered: bool = False

    @property
    def state(self) -> SlotState:
        """It follows from the actor, its answer, and the time."""
        if self.actor is None:
            return SlotState.BACKING_OFF if time.monotonic() < self.due_at else SlotState.EMPTY
        return SlotState.ALIVE if self._has_answered else SlotState.STARTING

    @property
    def may_ask(self) -> bool:
        """Whether the actor has answered its last call, and that was long enough ago."""
        return self.actor is not None and self.call is None and time.monotonic() >= self.due_at

    @property
    def silent_s(self) -> float:
        """For how long the actor has left its call unanswered; what that means depends on the state."""
        return time.monotonic() - self._asked_at if self.call is not None else 0.0

    def start(self, actor: Any) -> None:
        """Take in an actor that has just been requested; it may be asked at once."""
        self.actor, self.due_at = actor, time.monotonic()

    def ask(self, call: ray.ObjectRef) -> None:
        """`call` is the actor's next one; see `may_ask`."""
        self.call, self._asked_at = call, time.monotonic()
        self.due_at = self._asked_at + self.interval_s

    def take_answer(self) -> Any:
        """What the actor has answered (see `answered`). Raises its RayError, after which it may be asked again."""
        call, self.call = self.call, None
        self.answer = ray.get(call)
        self._has_answered = True
        return self.answer

    def lost(self, *, is_own_fault: bool = True) -> None:
        """End the actor; its failure is counted where it was its own."""
        self.end()
        self.losses += 1
        self.failures += is_own_fault

    def back_off(self, pause_s: float) -> None:
        """Postpone the next start by so long, or where there is an actor its next call."""
        self.due_at = time.monotonic() + pause_s

    def end(self) -> None:
        """Kill the actor if there is one; that also ends a process that hangs in C or is stopped."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self.call = self.answer = None
        self._has_answered, self.due_at = False, time.monotonic()


AnySlot = TypeVar("AnySlot", bound=Slot)


def answered(slots: Iterable[AnySlot]) -> list[AnySlot]:
    """Those slots whose call has been answered; it does not wait."""
    asked = {slot.call: slot for slot in slots if slot.call is not None}
    ready = ray.wait([*asked], num_returns=len(asked), timeout=0)[0] if asked else []
    return [asked[call] for call in ready]
