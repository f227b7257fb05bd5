"""`ProgramError`, and `Source`, the text of a program as its refusals show it.

Invariant: a refusal is one line of at most 300 printable characters, whatever the text holds: where, what was met, and
what to write instead. Lines and columns are those of the text as it was given, in characters, from 1.
"""

import ast
from collections.abc import Iterable

from configs.errors import one_line

MAX_MESSAGE = 300
MAX_SHOWN = 40
MAX_LISTED = 110


class ProgramError(ValueError):
    """A text that is no program, or breaks a limit."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line, self.column = line, column


def refusal_at(line: int, column: int, shown: str, what: str, wanted: str) -> ProgramError:
    """The error that says that what is `shown` there, which is `what`, should be `wanted`."""
    got = f"{shown}, {what}" if shown else what
    text = one_line(f"line {line}, column {column}: got {got}; wanted {wanted}", MAX_MESSAGE)
    return ProgramError(text, line, column)


class Source:
    """The lines that were parsed, from which the common indentation of the `given` ones is taken."""

    def __init__(self, lines: list[str], given: list[str]) -> None:
        self._lines = lines
        self._margins = [len(line) - len(rest) for line, rest in zip(given, lines, strict=True)]

    def refusal(self, node: ast.AST, what: str, wanted: str) -> ProgramError:
        """The error that says that `node`, which is `what`, should be `wanted`."""
        assert isinstance(node, ast.expr | ast.stmt | ast.keyword)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        line = node.lineno
        begin, end = self._characters(line, node.col_offset), self._characters(node.end_lineno, node.end_col_offset)
        shown = self._lines[line - 1][begin:]
        shown = shown[: end - begin] if node.end_lineno == line else f"{shown}…"
        return refusal_at(line, begin + 1 + self._margins[line - 1], quoted(shown), what, wanted)

    def refusal_from(self, line: int, column: int, what: str, wanted: str) -> ProgramError:
        """As `refusal`, of the rest of a line of those that were parsed."""
        line = min(line, len(self._lines))
        shown = quoted(self._lines[line - 1][column - 1 :]) or "the end of a line"
        return refusal_at(line, column + self._margins[line - 1], shown, what, wanted)

    def _characters(self, line: int, num_bytes: int) -> int:
        return len(self._lines[line - 1].encode()[:num_bytes].decode(errors="ignore"))


def quoted(text: str) -> str:
    """`text` in backticks, cut to 40 characters; empty where it is only spaces."""
    printable = (char if char.isprintable() or char.isspace() else "?" for char in text.strip()[: 2 * MAX_SHOWN])
    shown = one_line("".join(printable), MAX_SHOWN)
    return f"`{shown}`" if shown else ""


def listed(names: Iterable[str]) -> str:
    """The first of `names` with commas, as many as fit on a line."""
    shown = ""
    for name in names:
        if len(shown) + len(name) > MAX_LISTED:
            return f"{shown}, ..." if shown else f"{name[:MAX_LISTED]}..."
        shown += f", {name}" if shown else name
    return shown
