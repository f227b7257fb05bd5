"""`ScriptedWritings`: what the scripted engine writes, from a file of JSON lines.

Invariant: a file with a mistake is refused in one line that names the line, before anything is served.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from configs.paths import user_path
from llm_server.annotation import Written
from llm_server.writing.brief import Brief
from llm_server.writing.loading import load_brief

SETTING = "service.script_writings"
WANTED = '{"brief": ID, "matches": REGEX, "texts": [TEXT, ...]}'


class ScriptedWritings:
    """The writings in the file at `path`; none where it is empty. ValueError for a file that cannot be read or has
    another form."""

    def __init__(self, path: str) -> None:
        self.content = ""
        """The text of the file."""
        self._rules: list[tuple[str, re.Pattern[str], Iterator[str]]] = []
        if path:
            try:
                self.content = Path(user_path(path)).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{SETTING}: '{path}' cannot be read ({error}): give a file of JSON lines") from None
            lines = enumerate(self.content.split("\n"), 1)
            self._rules = [_rule(f"{SETTING}: line {n} of '{path}'", line) for n, line in lines if line.strip()]

    def next(self, brief: Brief, text: str) -> Written:
        """The next text of the first line for this brief whose expression is found in what is asked about; nothing
        where no line matches."""
        for name, expression, texts in self._rules:
            if name == brief.id and expression.search(text):
                said = next(texts)
                return Written(said, len(said.split()))
        return Written("", 0)


def _rule(place: str, line: str) -> tuple[str, re.Pattern[str], Iterator[str]]:
    try:
        match json.loads(line):
            case {"brief": str(brief), "matches": str(expression), "texts": [*texts], **others} if texts and not others:
                if all(isinstance(text, str) for text in texts):
                    return load_brief(brief).id, re.compile(expression), itertools.cycle(texts)
    except (ValueError, re.error, RecursionError) as error:
        raise ValueError(f"{place} is not of the form {WANTED}: {error}") from None
    raise ValueError(f"{place} is not of the form {WANTED}: got {line[:100]}")
