"""The Reward Report in the run directory, reward_report.md and reward_report.json, written during the run and at its
end.

Invariant: each file is whole or absent. Every text in the Markdown is data: escaped, it is shown as it is and can be no
markup. Writing costs a run at most SHARE of its time, and a report that cannot be written costs nothing else.
"""

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.report.checkpoints import Learnt, with_checkpoint
from cluster.report.reading import read_run
from cluster.report.reward_facts import reward_facts
from cluster.report.sections import SOURCE, Section, Table, alarms, sections
from cluster.report.words import visible
from cluster.run.directory import write_atomically

LOG = logging.getLogger(__name__)
MARKDOWN = "reward_report.md"
SHARE = 0.01
"""Of the time since the last report that the next one may take."""
MARKUP = re.compile(r"[&<>|`\\*_\[\]~$#@]|(?<=:)//|(?<=www)\.")
"""What could be markup or a link inside a line."""
BY_NUMBER = "&<>|`"
"""Of these, the characters that some readers of Markdown take for markup even after a backslash."""


class RewardReportWriter:
    """Writes the report of a run that goes on, from the states that it saves."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._learnt, self._due = run_dir, Learnt(), 0.0

    def note(self, env_steps: int, state: Mapping[str, Any]) -> None:
        """Write the report of a checkpoint that was saved with `state`, unless reports would take more than SHARE of
        the time. Never raises."""
        began = time.monotonic()
        if began < self._due:
            return
        try:
            self._learnt = with_checkpoint(self._learnt, env_steps, state)
            write_reward_report(str(self._run_dir), self._learnt)
        except Exception as error:  # training is worth more than its report
            LOG.warning("%s could not be written: %r", self._run_dir / MARKDOWN, error, exc_info=True)
        self._due = began + (time.monotonic() - began) / SHARE


def write_at_end(run_dir: Path) -> None:
    """Write the report of a run that has ended. Never raises."""
    try:
        write_reward_report(str(run_dir))
    except Exception as error:  # the run has ended well
        LOG.warning("%s could not be written: %r", run_dir / MARKDOWN, error, exc_info=True)


def write_reward_report(run_dir: str, learnt: Learnt | None = None, out: Path | None = None) -> dict[str, Any]:
    """Write the report of the run, as Markdown to `out` (by default in the run directory) and as JSON beside it, and
    return its facts. `learnt` is what the checkpoints say, where that is known already. Raises ConfigError where there
    is no run, and OSError."""
    run = read_run(run_dir, learnt)
    facts = reward_facts(run)
    path = out or run.directory.path / MARKDOWN
    write_atomically(path.with_suffix(".json"), json.dumps(facts, indent=1, allow_nan=False) + "\n")
    write_atomically(path, markdown(facts))
    return facts


def markdown(facts: Mapping[str, Any]) -> str:
    """The report of these facts."""
    of_run = f"Run {facts['run']} on {facts['environment']}, at step {facts['env_steps']:,}"
    parts = ["# Reward Report", escaped(f"{of_run} of {facts['total_env_steps']:,}."), escaped(SOURCE)]
    missing = [Section("Missing", facts["missing"])] if facts["missing"] else []
    for section in [alarms(facts), *sections(facts), *missing]:
        parts.append(f"## {escaped(section.title)}")
        if section.lines:
            parts.append("\n".join(f"- {escaped(line)}" for line in section.lines))
        parts += [f"**{escaped(table.title)}**\n\n{_table(table)}" for table in section.tables]
        parts += [f"**{escaped(title)}**\n\n{fenced(text)}" for title, text in section.texts]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text` on one line, as Markdown shows it unchanged; control and format characters are shown by their code."""
    return MARKUP.sub(_spelt, visible(text))


def _spelt(found: re.Match[str]) -> str:
    return f"&#{ord(found[0])};" if found[0] in BY_NUMBER else f"\\{found[0]}"


def _table(table: Table) -> str:
    names = list(table.rows[0])
    rows = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in table.rows)]
    return "\n".join(_row(row, is_rule=number == 1) for number, row in enumerate(rows))


def _row(cells: Sequence[str], *, is_rule: bool) -> str:
    return f"| {' | '.join(cells if is_rule else map(escaped, cells))} |"


def fenced(text: str, language: str = "") -> str:
    """A text of several lines, in `language`, as it is, in a fence that is longer than any in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(map(visible, text.split("\n")))
    return f"{fence}{language}\n{lines}\n{fence}"
