"""Puts a report together: one HTML file with its style, its program and its data, which loads nothing.

Invariant: every text of a run is data: escaped in HTML, and in the program's hands never HTML. The page's policy
(Content-Security-Policy) allows exactly its own style and program. It stays below MAX_BYTES: captions get the room that
the rest leaves.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from cluster.report.alarms import Alarm
from cluster.report.captions import COLUMNS, PARTS, STATUSES, UNKNOWN, Captions, blocks, read_captions
from cluster.report.curves import LABELS, LEARNING, REWARD_MODEL, TIME, charts, reward_mass, term_charts
from cluster.report.groups import group_charts, grouped
from cluster.report.prompt import prompt_template
from cluster.report.reading import RunRecord, read_run
from cluster.report.replays import replays
from cluster.report.reward_facts import reward_facts
from cluster.report.sections import SOURCE, Section, sections
from cluster.report.words import facts, headline, table_row, visible
from cluster.run.directory import write_atomically
from configs.errors import one_line

MAX_BYTES = 19_500_000
SCRIPTS = ("elements.js", "charts.js", "captions.js", "player.js", "page.js")
LEVELS = {"alarm": "Alarm", "unknown": "Unknown", "good": "Good"}
CHARTS = {
    "Learning": ("learning", LEARNING),
    "Where time goes": ("time", TIME),
    "Label flow": ("labels", LABELS),
    "Reward model": ("reward", REWARD_MODEL),
}
Say = Callable[[str], None]


def write_page(run_dirs: Sequence[str], path: Path, episodes: int, say: Say) -> int:
    """Write the page about these runs, with replays chosen from `episodes` episodes (0: none), and return its size in
    bytes. Raises ValueError where one of them is no run."""
    runs = [read_run(run_dir) for run_dir in dict.fromkeys(run_dirs)]
    parts = []
    for number, run in enumerate(runs):
        if len(runs) > 1:
            say(f"{run.name} ({number + 1} of {len(runs)})")
        parts.append(_part(run, episodes, say))
    text = _page(parts)
    write_atomically(path, text)
    return len(text.encode())


class _Part:
    """What the page shows of one run."""

    def __init__(self, run: RunRecord, captions: Captions | None, replays: list[dict[str, Any]]) -> None:
        self.run, self.captions = run, captions
        self.facts = reward_facts(run)
        self.alarms = [Alarm(**alarm) for alarm in self.facts["alarms"]]
        self.data: dict[str, Any] = {
            "name": run.name,
            "charts": {key: charts(group, run.lines) for key, group in CHARTS.values()}
            | {"terms": term_charts(run.lines)},
            "mass": reward_mass(run.paid, captions),
            "replays": replays,
            "terms": [_asked(run, name) for name, term in self.facts["terms"].items() if not term["program"]],
        }


def _asked(run: RunRecord, term: str) -> dict[str, Any]:
    """What the page shows of a term beside its items: its name, what its judge was asked, and the judge's threshold."""
    judge = run.learnt.of(term).judge
    return {
        "name": term,
        "prompt": prompt_template(run, term),
        "judge": {key: judge.get(key) for key in ("threshold", "noise")},
    }


def _part(run: RunRecord, episodes: int, say: Say) -> _Part:
    """Reads the captions, and plays the replays; what fails is a line in `run.missing`."""
    captions = None
    try:
        captions = read_captions(run)
    except ValueError as error:
        run.missing.append(f"captions are left out: {one_line(error)}")
    return _Part(run, captions, _replays(run, episodes, say))


def _replays(run: RunRecord, episodes: int, say: Say) -> list[dict[str, Any]]:
    if not episodes or not run.learnt.env_steps:
        return []
    try:
        return replays(run.directory.path, episodes, say)
    except KeyboardInterrupt:
        run.missing.append("replays are left out: stopped by Ctrl-C")
    except Exception as error:  # of somebody else's environment, which must not cost the report
        run.missing.append(f"replays are left out: {one_line(error) or type(error).__name__}")
    say(run.missing[-1])
    return []


def _page(parts: Sequence[_Part]) -> str:
    """The whole page; captions get what room is left, in equal shares."""
    groups = grouped([part.run for part in parts])
    across = group_charts(groups) if len(parts) > 1 else []
    title = f"Delphi: {parts[0].run.name}" if len(parts) == 1 else f"Delphi: {len(parts)} runs"
    style = _own("page.css")
    script = "\n".join(_own(name) for name in SCRIPTS)
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"

    def filled(captions: Sequence[list[tuple[int, str]]]) -> str:
        data = {"groups": across, "runs": [_data(part, found) for part, found in zip(parts, captions, strict=True)]}
        scripts = (
            f'<script type="text/plain" class="block" data-run="{number}" data-rows="{rows}">{text}</script>'
            for number, found in enumerate(captions)
            for rows, text in found
        )
        return Template(_own("page.html")).substitute(
            policy=policy + "; form-action 'none'",
            title=shown(title),
            style=style,
            script=script,
            content=_content(parts, [(group.label, group.runs) for group in groups]),
            blocks="\n".join(scripts),
            data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        )

    rest = len(filled([[] for _ in parts]).encode())
    budget = max(MAX_BYTES - rest, 0) // len(parts)
    return filled([list(blocks(part.captions, budget)) if part.captions else [] for part in parts])


def _data(part: _Part, found: Sequence[tuple[int, str]]) -> dict[str, Any]:
    if part.captions is None:
        return part.data
    return part.data | {
        "captions": {
            "total": len(part.captions.texts),
            "shown": sum(rows for rows, _ in found),
            "stepUnit": part.captions.step_unit,
            "columns": list(COLUMNS.items()),
            "statuses": STATUSES,
            "parts": PARTS,
            "unknown": UNKNOWN,
        }
    }


def _content(parts: Sequence[_Part], groups: Sequence[tuple[str, Sequence[RunRecord]]]) -> str:
    if len(parts) == 1:
        return _run(0, parts[0])
    group_of = {id(run): label for label, runs in groups for run in runs}
    rows = [table_row(p.run, group_of[id(p.run)], sum(a.level == "alarm" for a in p.alarms)) for p in parts]
    about = (
        "Interquartile mean over the runs of a group and its 95 % interval (bootstrap over runs), where every run of"
    )
    about += " the group has a value. A group is one configuration but for the seed."
    runs = (
        f'<details class="run" id="run-{number}"><summary><h2>{shown(part.run.name)}</h2></summary>{_run(number, part)}'
        "</details>"
        for number, part in enumerate(parts)
    )
    return (
        f"<section><h2>Runs</h2>{_table(rows)}</section><section><h2>Over seeds</h2><p>{shown(about)}</p>"
        f'<div class="charts" data-charts="groups"></div></section>{"".join(runs)}'
    )


def _run(number: int, part: _Part) -> str:
    run = part.run
    missing = f"<h3>Missing</h3>{_list(run.missing)}" if run.missing else ""
    curves = (
        f'<section><h2>{title}</h2><div class="charts" data-run="{number}" data-charts="{key}"></div></section>'
        for title, (key, _) in CHARTS.items()
    )
    terms = f'<div class="charts" data-run="{number}" data-charts="terms"></div>' if run.config.terms else ""
    report = "".join(map(_section, sections(part.facts)))
    return (
        f'<section class="headline"><p class="lead">{shown(headline(run))}</p>{_facts(facts(run))}{missing}</section>'
        f"<section><h2>Alarms</h2>{_alarms(part.alarms)}</section>{''.join(curves)}"
        "<section><h2>Who was paid when</h2>"
        f'<div class="charts" data-run="{number}" data-charts="mass"></div>{terms}</section>'
        f'<section><h2>Captions</h2><div class="captions" data-run="{number}"></div></section>'
        f'<section><h2>Replays</h2><div class="replays" data-run="{number}"></div></section>'
        f"<section><h2>Reward Report</h2><p>{shown(SOURCE)}</p>{report}</section>"
    )


def _alarms(alarms: Sequence[Alarm]) -> str:
    def item(alarm: Alarm) -> str:
        return (
            f'<li class="{alarm.level}"><strong>{LEVELS[alarm.level]}: {shown(alarm.what)}.</strong>'
            f" {shown(alarm.found)}<br><span>{shown(alarm.advice)}</span></li>"
        )

    loud = [item(alarm) for alarm in alarms if alarm.level == "alarm"]
    quiet = [item(alarm) for alarm in alarms if alarm.level != "alarm"]
    first = f'<ul class="alarms">{"".join(loud)}</ul>' if loud else "<p>No alarm.</p>"
    summary = f"{len(quiet)} checks that are good or cannot be made"
    return f'{first}<details><summary>{summary}</summary><ul class="alarms">{"".join(quiet)}</ul></details>'


def _section(section: Section) -> str:
    tables = "".join(f"<h4>{shown(table.title)}</h4>{_table(table.rows)}" for table in section.tables)
    texts = (
        f"<details><summary>{shown(title)}</summary><pre>{shown_lines(text)}</pre></details>"
        for title, text in section.texts
    )
    return f"<h3>{shown(section.title)}</h3>{_list(section.lines)}{tables}{''.join(texts)}"


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<div><dt>{shown(t)}</dt><dd>{shown(text)}</dd></div>" for t, text in pairs) + "</dl>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{shown(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{shown(name)}</th>' for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{shown(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def shown(text: str) -> str:
    """`text` as HTML: escaped, with its control and format characters by code."""
    return escape(visible(text))


def shown_lines(text: str) -> str:
    """A text of several lines as HTML."""
    return "\n".join(map(shown, text.split("\n")))


def _own(name: str) -> str:
    return resources.files("cluster.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
