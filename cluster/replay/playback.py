"""Where a player in a terminal is: the moment shown, whether it runs and how fast, and what each key does.

Invariant: the moment is always one of the recording.
"""

from dataclasses import dataclass

HELP = (
    "space           pause, go on (at the end: from the start)",
    "right .         one step forth",
    "left ,          one step back",
    "down up         100 steps forth, back",
    "home end        to the start, to the end",
    "+ -             faster, slower",
    "g or digits     to a step: its number, then enter",
    "n p             to the next, the previous reward (either kind)",
    "?               this help",
    "q               quit",
)
SPEEDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)
"""Steps per second."""
JUMP = 100


@dataclass
class Playback:
    """The state; `last` is the last moment, `rewarded` are those with a reward of either kind."""

    last: int
    rewarded: tuple[int, ...] = ()
    speed: float = 10.0
    at: float = 0.0
    """The moment shown, with the fraction of time passed until the next."""
    is_running: bool = True
    typed: str | None = None
    """Digits of a jump that is being typed."""
    shows_help: bool = False
    is_over: bool = False

    @property
    def moment(self) -> int:
        """The moment shown."""
        return int(self.at)

    def pass_time(self, seconds: float) -> None:
        """Go on for this long, up to the last moment, where it stops."""
        if self.is_running and not self.shows_help and self.typed is None:
            self.at += seconds * self.speed
            if self.at >= self.last:
                self.at, self.is_running = self.last, False

    def press(self, key: str) -> None:
        """A key: a character, or `left`, `right`, `up`, `down`, `home`, `end`, `enter`, `escape`, `backspace`."""
        if self.typed is not None or key.isdigit() or key == "g":
            self._type(key)
        elif self.shows_help:
            self.shows_help = False
        elif key == " ":
            if self.moment == self.last and not self.is_running:
                self.at = 0.0
            self.is_running = not self.is_running
        elif key in ("+", "=", "-"):
            self._change_speed(faster=key != "-")
        elif key in ("?", "h"):
            self.shows_help = True
        elif key in ("q", "escape"):
            self.is_over = True
        else:
            self._move(key)

    def _move(self, key: str) -> None:
        moment = self.moment
        to = {
            "right": moment + 1,
            ".": moment + 1,
            "left": moment - 1,
            ",": moment - 1,
            "down": moment + JUMP,
            "up": moment - JUMP,
            "home": 0,
            "end": self.last,
            "n": next((t for t in self.rewarded if t > moment), moment),
            "p": next((t for t in reversed(self.rewarded) if t < moment), moment),
        }.get(key)
        if to is not None:
            self.at, self.is_running = float(min(max(to, 0), self.last)), False

    def _type(self, key: str) -> None:
        typed = self.typed or ""
        if key.isdigit() and key.isascii():
            self.typed = (typed + key)[:9]
        elif key == "g":
            self.typed = ""
        elif key == "backspace":
            self.typed = typed[:-1]
        else:
            if key == "enter" and typed:
                self.at, self.is_running = float(min(int(typed), self.last)), False
            self.typed = None

    def _change_speed(self, *, faster: bool) -> None:
        if faster:
            self.speed = next((speed for speed in SPEEDS if speed > self.speed), self.speed)
        else:
            self.speed = next((speed for speed in reversed(SPEEDS) if speed < self.speed), self.speed)
