"""Joins the message lines that one game of NetHack shows during an environment step to a raw caption.

Invariant: no text that the player typed reaches a caption, so an agent that can type cannot create captions without
bound.
"""

import functools
import re
from collections import deque
from collections.abc import Collection

SEPARATOR = b"  "
"""Between the lines of one caption; NetHack itself puts two spaces between messages that share a line."""
TYPED = b"***"
"""Replaces text that the player typed."""
MAX_TYPED = 64
"""Typed texts remembered per episode; the oldest is forgotten."""
MIN_WORD = 3
"""A typed text of at least this many bytes is masked wherever it occurs as a word, a shorter one only as a name."""
CAPTIONS = 4096
"""Captions that are remembered, by their lines: the usual ones are very few."""

_ECHOES = {b"# ": b"#", b"Count: ": b"Count:", b"Search for: ": b"Search for:"}
"""Prompts that echo typed text unannounced (extended commands, counts, menu searches), and their replacements."""
_ECHOING = tuple(_ECHOES)
_UNKNOWN_COMMAND = b": unknown extended command"
_ENGRAVING = re.compile(rb'(You read: ").*(")', re.DOTALL)
_ANNOTATION = re.compile(rb'(Replace annotation ").*(" with\?)', re.DOTALL)


class MessageLog:
    """Collects the lines of a step, engine step by engine step."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._typed: deque[bytes] = deque(maxlen=MAX_TYPED)
        self._answer = b""
        self.prompt: bytes | None = None  # the open text prompt, as it read before anything was typed

    def start_episode(self) -> None:
        """Forget the last episode."""
        self._typed.clear()
        self._answer, self.prompt = b"", None
        self.start_step()

    def start_step(self) -> None:
        """Begin the next environment step."""
        self._lines.clear()

    def add(self, line: bytes, text_prompt: bool) -> None:
        """Record the message line after one engine step; `text_prompt`: the game is reading a line of text."""
        if text_prompt:
            if self.prompt is None:
                self.prompt = line
            self._answer = line.removeprefix(self.prompt)
            line = self.prompt
        elif self.prompt is not None:
            typed = b" ".join(self._answer.split())
            if typed and typed not in self._typed:
                self._typed.append(typed)
            self._answer, self.prompt = b"", None
        line = _mask(line, self._typed)
        # A line that stays on the screen while the engine continues is recorded once.
        if line and not (self._lines and self._lines[-1] == line):
            self._lines.append(line)

    def caption(self) -> bytes:
        """The step's raw caption, UTF-8; NetHack's messages are Latin-1."""
        return _to_utf8(SEPARATOR.join(self._lines))

    def caption_of(self, line: bytes) -> bytes:
        """The raw caption of a step with one line and no text prompt: as from `start_step`, `add` and `caption`."""
        return _to_utf8(_mask(line, self._typed)) if self._typed else _untyped_caption(line)


@functools.lru_cache(CAPTIONS)
def _untyped_caption(line: bytes) -> bytes:
    """The caption of a line in an episode in which nothing has been typed."""
    return _to_utf8(_mask(line, ()))


def _mask(line: bytes, typed_texts: Collection[bytes]) -> bytes:
    if line.startswith(_ECHOING):
        return next(masked for echo, masked in _ECHOES.items() if line.startswith(echo))
    if _UNKNOWN_COMMAND in line:
        return line[line.rindex(_UNKNOWN_COMMAND) + 2 :]
    if line.startswith(b"Replace annotation"):
        return _ANNOTATION.sub(rb"\1" + TYPED + rb"\2", line)
    if typed_texts:
        line = _ENGRAVING.sub(rb"\1" + TYPED + rb"\2", line)  # engravings lose letters: no literal match
    for typed in typed_texts:
        before = rb"(?<![0-9A-Za-z])" if len(typed) >= MIN_WORD else rb'(?<=named |alled |.... ")'
        line = re.sub(before + re.escape(typed) + rb"(?![0-9A-Za-z])", TYPED, line)
    return line


def _to_utf8(line: bytes) -> bytes:
    return line if line.isascii() else line.decode("latin-1").encode()
