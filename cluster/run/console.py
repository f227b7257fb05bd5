"""The run's output for the user: a live display on a terminal, plain lines elsewhere, and the summary at the end.

Invariant: printing never slows training: a display is refreshed by time, from existing metrics.
"""

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.metrics import TERMS
from cluster.run.stage_timing import bottleneck
from configs.reward_schema import MAIN_TERM
from configs.schema import LoggingConfig

ROWS = (
    ("return", "episode_return_extrinsic_mean", "{:.2f}"),
    ("intrinsic return", "episode_return_intrinsic_mean", "{:.2f}"),
    ("intrinsic reward/step", "intrinsic_reward_mean", "{:.4f}"),
    ("unknown captions", "intrinsic_unknown_fraction", "{:.1%}"),
    ("captions", "captions_distinct", "{:,.0f}"),
    ("labels", "annotations_total", "{:,.0f}"),
    ("labels/s", "annotations_per_s", "{:.1f}"),
    ("annotator up", "annotator_up", "{:.0f}"),
    ("policy lag", "policy_lag_mean", "{:.1f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("state information", "policy_state_information", "{:.4f}"),
)

STATES = (
    ("problem", "no more rewards from the judge, training goes on: {}", "the judge is back"),
    ("notice", "{}", ""),
    ("storage_problem", "training goes on, but: {}", "the disk takes what is written again"),
)
"""What is said when the text of a state changes, and when it ends."""


class Console:
    """The display of a run's progress; `update` may be called at any rate."""

    def __init__(self, config: LoggingConfig, total_env_steps: int, mode: str, *, max_time_s: float = 0.0) -> None:
        """`mode` is `cluster.mode`, which decides how the bottleneck is described."""
        self._rich = RichConsole(soft_wrap=True)
        kind = config.console
        self._kind = ("rich" if _can_redraw(self._rich) else "plain") if kind == "auto" else kind
        self._interval_s = config.console_interval_s
        self._total, self._mode, self._max_time_s = total_env_steps, mode, max_time_s
        self._started = self._shown = time.monotonic()
        self._first_step: int | None = None
        self._live: Live | None = None
        self._told: set[str] = set()
        self._states: dict[str, str | None] = {}

    def say(self, text: str) -> None:
        """One line for the user, above the live display where there is one; nothing for an empty text."""
        if text and self._kind != "quiet":
            self._rich.print(text, highlight=False, markup=False, emoji=False)

    def update(self, line: Mapping[str, Any]) -> None:
        """Show the newest metrics."""
        now = time.monotonic()
        for text in line.get("problems", ()):
            if text not in self._told:
                self._told.add(text)
                self.say(text)
        for name, text, recovery in STATES:
            if line.get(name) != self._states.get(name):
                self._states[name] = line[name]
                self.say(text.format(line[name]) if line[name] else recovery)
        if self._first_step is None:
            self._first_step, self._started = line["env_steps"], now
        if self._kind == "rich":
            if self._live is None:
                self._live = Live(console=self._rich, refresh_per_second=4, transient=True)
                self._live.start()
            if now - self._shown > 0.25:
                self._shown = now
                self._live.update(self._table(line, now))
        elif self._kind == "plain" and now - self._shown >= self._interval_s:
            self._shown = now
            print(self._plain(line, now), flush=True)

    def close(self) -> None:
        """End the live display."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def summarise(self, summary: Mapping[str, Any], run_dir: str) -> None:
        """The end of the run: steps, returns, and the captions rewarded most."""
        self.close()
        if self._kind == "quiet":
            return
        word = "finished" if summary["finished"] else "stopped; the same command continues it"
        if summary.get("ended_by") == "max_time_s":
            word = f"finished, its time is up (max_time_s = {self._max_time_s:g} s),"
        extrinsic, intrinsic = (
            summary.get("episode_return_extrinsic_mean"),
            summary.get("episode_return_intrinsic_mean"),
        )
        self.say(
            f"{run_dir}: {word} at {summary['env_steps']:,} environment steps, {summary.get('episodes_total') or 0:,}"
            " episodes"
        )
        self.say(f"mean return of the last episodes: {_number(extrinsic)} extrinsic, {_number(intrinsic)} intrinsic")
        self.say(
            f"captions: {_number(summary.get('captions_distinct'), ',.0f')} distinct,"
            f" {_number(summary.get('annotations_total'), ',.0f')} labels"
            f" ({_number(summary.get('forward_passes'), ',.0f')} forward passes), unknown"
            f" {_number(summary.get('intrinsic_unknown_fraction'), '.1%')} of steps"
        )
        without_table = summary.get("steps_without_table_fraction")
        if without_table is not None:
            self.say(f"trained before the first reward table came: {without_table:.1%} of steps")
        if summary["top_rewarded"]:
            has_terms = any(caption["term"] != MAIN_TERM for caption in summary["top_rewarded"])
            table = Table(title="captions rewarded most (seen at least 3 times)", title_justify="left")
            for heading in (*["term"] * has_terms, "R", "p", "count", "caption"):
                table.add_column(heading, justify="left" if heading in ("term", "caption") else "right")
            for caption in summary["top_rewarded"]:
                table.add_row(
                    *[caption["term"]] * has_terms,
                    f"{caption['reward']:.2f}",
                    _number(caption["probability"]),
                    f"{caption['count']:,}",
                    Text(caption["text"]),
                )
            self._rich.print(table)

    def _table(self, line: Mapping[str, Any], now: float) -> Table:
        table = Table.grid(padding=(0, 2))
        steps = line["env_steps"]
        table.add_row("steps", f"{steps:,} / {self._total:,}")
        table.add_row("", ProgressBar(total=1.0, completed=self._share(line), width=40))
        table.add_row("steps/s", f"{self._rate(line, now):,.0f}")
        table.add_row("time left", self._eta(line, now))
        for title, name, form in ROWS:
            value = line.get(name)
            table.add_row(title, "-" if value is None else form.format(value))
        if terms := line.get(TERMS):
            shares = (f"{name} {_number(term.get('share'), '.0%')}" for name, term in terms.items())
            table.add_row("intrinsic by term", ", ".join(shares))
        table.add_row("bottleneck", bottleneck(line, self._mode) or "-")
        return table

    def _plain(self, line: Mapping[str, Any], now: float) -> str:
        fields = [
            f"{line['env_steps']:,}/{self._total:,} steps",
            f"{self._rate(line, now):,.0f} steps/s",
            f"{self._eta(line, now)} left",
        ]
        fields += [f"{title} {form.format(line[name])}" for title, name, form in ROWS if line.get(name) is not None]
        return " | ".join(filter(None, [*fields, bottleneck(line, self._mode)]))

    def _rate(self, line: Mapping[str, Any], now: float) -> float:
        return (line["env_steps"] - (self._first_step or 0)) / max(now - self._started, 1e-9)

    def _share(self, line: Mapping[str, Any]) -> float:
        by_time = (line.get("time_s") or 0.0) / self._max_time_s if self._max_time_s else 0.0
        return max(line["env_steps"] / self._total, by_time)

    def _eta(self, line: Mapping[str, Any], now: float) -> str:
        rate = self._rate(line, now)
        by_steps = (self._total - line["env_steps"]) / rate if rate > 0 else math.inf
        left_s = min(by_steps, self._max_time_s - (line.get("time_s") or 0.0) if self._max_time_s else math.inf)
        if left_s == math.inf:
            return "?"
        seconds = max(0, int(left_s))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _can_redraw(console: RichConsole) -> bool:
    """Whether a live display works: rich calls a file a terminal under FORCE_COLOR, and draws nothing on a dumb one."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)
