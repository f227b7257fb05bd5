"""From text to Python's syntax tree, which is all that Python does with a program: nothing is compiled or run.

Invariant: any text gives a tree or a `ProgramError`, in a time bounded by its limit of 8 KB.
"""

import ast
import re
import textwrap
import threading
import warnings

from configs.errors import one_line
from reward_models.programs.language import FORMS, MAX_BYTES
from reward_models.programs.refusal import Source, refusal_at

WANTED = " or ".join(f"`def {name}({', '.join(given)}):`" for name, given in FORMS.items())
"""How a program begins."""
UNREADABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FILTERS = threading.Lock()


def parsed(text: str) -> tuple[ast.Module, Source]:
    """The tree of `text`, and the source that explains refusals of its parts. Raises ProgramError."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    _check_characters(text)
    even = textwrap.dedent(text)
    source = Source(even.split("\n"), text.split("\n"))
    try:
        with _FILTERS, warnings.catch_warnings():  # of odd escapes in texts and the like: they are checked here
            warnings.simplefilter("ignore")
            return ast.parse(even), source
    except SyntaxError as error:
        line, column = max(1, error.lineno or 1), max(1, error.offset or 1)
        what = f"which is not Python's syntax ({one_line(error.msg, 80)})"
        raise source.refusal_from(line, column, what, f"only {WANTED}, or one expression") from None
    except (RecursionError, MemoryError, SystemError):  # the last: before Python 3.11.5, in place of the first
        what = "a text that Python's parser gives up on: it is nested too deeply, or is prose"
        raise refusal_at(1, 1, "", what, f"{WANTED}, with local names for long parts") from None


def _check_characters(text: str) -> None:
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise refusal_at(1, 1, "", f"{size} bytes", f"a program of at most {MAX_BYTES}")
    found = UNREADABLE.search(text)
    if found:
        line, begin = text.count("\n", 0, found.start()) + 1, text.rfind("\n", 0, found.start()) + 1
        what = f"the character U+{ord(found[0]):04X}"
        raise refusal_at(line, found.start() - begin + 1, "", what, "printable text")
