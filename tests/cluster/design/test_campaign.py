"""Campaigns with a scripted author and trainer: what is written, trained, chosen, and done again after an end."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.design import material
from cluster.design.campaign import Campaign
from cluster.design.journal import Journal, Record
from cluster.design.plan import Stopped
from cluster.design.report import write_report
from configs.reward_schema import TermConfig
from configs.schema import RunConfig
from learner.episodes import Episodes
from reward_models.gates import Verdict
from tests.cluster.design.scripted_campaign import (
    BROKEN,
    STEPS,
    RefusingGate,
    ScriptedAuthor,
    ScriptedTrainer,
    make_campaign,
    make_episode,
    make_plan,
)

ALL_STEPS = {
    "rounds": 2,
    "samples": 2,
    "seeds": 1,
    "critic": True,
    "analyse": True,
    "attempts": 2,
    "select": "judge",
    "gates": ("static", "preference"),
}
TEXTS = [
    "2 * after.position",
    BROKEN,
    "3 * after.velocity",
    "6 * after.position",
    "5 * after.velocity",
    "after.position",
]


class Killed(BaseException):
    """As by kill -9: nothing that the campaign could catch."""


class DyingJournal(Journal):
    """Ends the process, so to speak, at the `lives`-th of: a step was done but not written, half of its line was, and
    all of it was."""

    def __init__(self, path: Path, lives: int) -> None:
        super().__init__(path)
        self._file, self._lives = path, lives

    def add(self, step: str, result: Mapping[str, Any], **of: Any) -> Record:
        self._live()
        before = self._file.read_bytes()
        record = super().add(step, result, **of)
        if self._lives == 0:
            line = self._file.read_bytes()[len(before) :]
            self._file.write_bytes(before + line[: len(line) // 2])
        self._live()
        self._live()
        return record

    def _live(self) -> None:
        self._lives -= 1
        if self._lives == -1:
            raise Killed


def quick_run_of(base: RunConfig, kind: Any, program: str, *, steps: int, seed: int, run_dir: Path) -> RunConfig:
    """`run_of` without checks."""
    terms = {"design": TermConfig(reads="features", program=program)}
    return dataclasses.replace(base, terms=terms, seed=seed, total_env_steps=steps, run_dir=str(run_dir))


def end_to_end(folder: Path, lives: int, gates: Any, author: Any) -> tuple[Campaign, int]:
    """A campaign that dies once, and goes on."""
    deaths = 0
    while True:
        journal = DyingJournal(folder / "campaign.jsonl", lives if not deaths else -2)
        campaign = make_campaign(make_plan(folder, **ALL_STEPS), author, gates=gates, journal=journal)
        try:
            campaign.run()
            return campaign, deaths
        except Killed:
            deaths += 1


def content(journal: Journal) -> dict[str, Record]:
    steps = ("write", "criticise", "gate", "train", "prefer", "select", "analyse")
    return {f"{step}{record['of']}": record for step in steps for record in journal.all(step)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(material, "LOOK_STEPS", 2)
    monkeypatch.setattr("cluster.design.campaign.run_of", quick_run_of)


def test_a_campaign_that_dies_at_any_step_goes_on_to_the_same_winner(tmp_path: Path) -> None:
    def run(name: str, lives: int) -> tuple[Campaign, int]:
        (tmp_path / name).mkdir()
        return end_to_end(tmp_path / name, lives, RefusingGate(5.0), ScriptedAuthor(TEXTS, "first or wrong"))

    whole, _ = run("whole", -2)
    assert whole.winner is not None
    wanted = {key: str(record).replace("whole", "") for key, record in content(whole.journal).items()}
    assert {key.split("{")[0] for key in wanted} == {
        *("write", "criticise", "gate", "train", "prefer", "select", "analyse")
    }
    lives, deaths = 0, 1
    while deaths:
        campaign, deaths = run(str(lives), lives)
        assert campaign.winner
        assert campaign.winner.program == whole.winner.program
        found = {
            key: str(record).replace(f"/{lives}/runs", "//runs") for key, record in content(campaign.journal).items()
        }
        assert found == wanted
        lives += 1
    assert lives > 3 * len(wanted)


def test_the_best_score_wins_over_all_rounds_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    texts = ["2 * after.position", "6 * after.position", "6 * after.velocity", "1 * after.velocity"]
    trainer = ScriptedTrainer()
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=2), ScriptedAuthor(texts), trainer)
    winner = campaign.run()
    assert winner
    assert winner.name == "1.2"
    assert len(trainer.trained) == 4
    assert campaign.spent_steps == 4 * STEPS


def test_runs_at_the_same_time_give_the_same_campaign(tmp_path: Path) -> None:
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=5, seeds=2, jobs=4))
    winner = campaign.run()
    assert winner
    assert winner.name == "2.1"  # 6 of 1 to 10 modulo 7
    assert len(campaign.journal.all("train")) == 20


def test_a_text_that_is_no_program_is_written_again_with_what_was_wrong(tmp_path: Path) -> None:
    author = ScriptedAuthor([BROKEN, "", "after.speed", "after.velocity"])
    campaign = make_campaign(make_plan(tmp_path, rounds=1, samples=1, attempts=4), author)
    assert campaign.run()
    told = [(fields.get("refused"), fields.get("refusal", "")) for _, fields in author.asked]
    assert told[0] == (None, "")
    assert told[1][0] == BROKEN
    assert "line 1, column 1" in told[1][1]
    assert told[2] == (None, "nothing usable came, wanted one block of code with one function")
    assert told[3][0] == "after.speed"
    assert "velocity" in told[3][1]
    assert len(campaign.room.problems()) == 3


def test_a_campaign_whose_author_never_writes_a_program_is_given_up(tmp_path: Path) -> None:
    campaign = make_campaign(make_plan(tmp_path, rounds=9, samples=4), ScriptedAuthor([BROKEN]))
    assert campaign.run() is None
    assert campaign.ended == "none of 24 writings is a program"
    late = make_campaign(make_plan(tmp_path / "late", "card"), ScriptedAuthor([*[BROKEN] * 7, "after.velocity"]))
    assert late.run()
    assert late.ended == ""


def test_a_program_that_was_there_before_is_not_trained_again(tmp_path: Path) -> None:
    author, trainer = ScriptedAuthor(["after.velocity", "(after.velocity)  # the same"]), ScriptedTrainer()
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=2, attempts=2), author, trainer)
    campaign.run()
    assert len(trainer.trained) == 1
    assert "this is program 1.1 again" in author.asked[2][1]["refusal"]


def test_a_run_that_dies_counts_as_failed_and_its_last_line_is_told(tmp_path: Path) -> None:
    texts = ['def reward(before, after, start, action): return {"die": 9 * after.velocity}', "1 * after.velocity"]
    author = ScriptedAuthor(texts)
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=2), author)
    winner = campaign.run()
    assert winner
    assert winner.name == "1.2"
    assert "the run of another program died: ended with exit code 1: boom" in author.asked[-1][1]["reflection"]
    assert campaign.spent_steps == STEPS + 100
    only = make_campaign(
        make_plan(tmp_path / "b", rounds=1, samples=1),
        ScriptedAuthor(texts),
    )
    assert only.run() is None


def test_gates_save_the_runs_of_what_they_refuse(tmp_path: Path) -> None:
    gates, author = RefusingGate(2.0, 3.0), ScriptedAuthor()
    plan = make_plan(tmp_path, "card", rounds=4, gates=("static", "preference"))
    campaign = make_campaign(plan, author, gates=gates)
    winner = campaign.run()
    assert winner
    assert winner.name == "4.1"
    assert campaign.saved_steps == 2 * STEPS
    first = tmp_path / "runs" / "1.1" / "0"
    assert gates.seen == [(0, None), (1, first), (1, first), (1, first)]
    shown = author.asked[3][1]
    assert "another program was refused by the gate preference: failures earn more" in shown["reflection"]
    assert shown["features"] == "position: 0 to 2, quartiles 0.5 1 1.5\nvelocity: always 1 so far"
    assert shown["best"].startswith("def reward(")
    assert "component reward during training: 0.5 1" in shown["reflection"]


def test_the_gates_read_the_run_that_has_both_successes_and_failures(tmp_path: Path) -> None:
    gates, asked = RefusingGate(), list[Path]()

    def episodes(archive: Path) -> Episodes:
        asked.append(archive)
        num_successes = {"1.1": 0, "2.1": 3, "3.1": 1}[archive.parent.name]
        made = [make_episode([[0, 1], [2, 1]], number < num_successes) for number in range(4)]
        return Episodes(episodes=made, seen=(2, 2), features=("position", "velocity"))

    gates.episodes = episodes  # type: ignore[method-assign]
    assert make_campaign(make_plan(tmp_path, "card", rounds=4), gates=gates).run()
    assert [archive and archive.parent.name for _, archive in gates.seen] == [None, "1.1", "2.1", "2.1"]


def test_verdicts_of_gates_that_the_kind_does_not_ask_refuse_nothing(tmp_path: Path) -> None:
    campaign = make_campaign(make_plan(tmp_path, rounds=3, samples=1), gates=RefusingGate(1.0, 2.0, 3.0))
    assert campaign.run()
    assert campaign.saved_steps == 0


@pytest.mark.parametrize(("most", "num_trained"), [(1000, 1), (2999, 2), (3000, 3), (0, 6)])
def test_no_run_begins_that_would_exceed_the_budget(tmp_path: Path, most: int, num_trained: int) -> None:
    trainer = ScriptedTrainer()
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=3, max_env_steps=most), trainer=trainer)
    assert campaign.run()
    assert len(trainer.trained) == num_trained
    assert bool(campaign.ended) == bool(most)
    assert campaign.spent_steps == num_trained * STEPS
    more = make_campaign(make_plan(tmp_path, rounds=2, samples=3, max_env_steps=5000), trainer=trainer)
    winner = more.run()
    assert len(trainer.trained) == max(5, num_trained)
    assert winner
    assert winner.name == ("2.2" if num_trained < 6 else "2.3")


def test_the_steps_of_a_program_are_those_of_whole_batches(tmp_path: Path) -> None:
    assert make_plan(tmp_path, steps=1001, seeds=2).cost == 2 * 1100


def test_no_writing_begins_that_would_exceed_the_budget(tmp_path: Path) -> None:
    author = ScriptedAuthor()
    campaign = make_campaign(make_plan(tmp_path, rounds=2, samples=3, max_writings=4), author)
    winner = campaign.run()
    assert len(author.asked) == 4
    assert campaign.ended == "--max-writings 4 are used up"
    assert winner
    assert winner.name == "2.1"  # what was written is still trained


def test_a_critic_sends_a_program_back_while_there_are_attempts(tmp_path: Path) -> None:
    author = ScriptedAuthor(words="Wrong: the sign.")
    campaign = make_campaign(make_plan(tmp_path, rounds=1, samples=1, attempts=3, critic=True), author)
    winner = campaign.run()
    assert [brief for brief, _ in author.asked] == ["write_reward", "criticise_program"] * 2 + ["write_reward"]
    assert author.asked[2][1]["refusal"] == "Wrong: the sign."
    assert winner
    assert "3 * after.position" in winner.program.text


def test_an_analysis_is_shown_in_the_next_round(tmp_path: Path) -> None:
    author = ScriptedAuthor(words="It waits.")
    make_campaign(make_plan(tmp_path, rounds=2, samples=1, analyse=True), author).run()
    assert [brief for brief, _ in author.asked] == ["write_reward", "analyse_failures", "write_reward"]
    assert "It waits." in author.asked[2][1]["reflection"]


def test_a_model_that_prefers_what_is_shown_first_leaves_the_order_by_score(tmp_path: Path) -> None:
    author = ScriptedAuthor(words="first")
    plan = make_plan(tmp_path, "icpl", rounds=1, samples=3, select="judge")
    winner = make_campaign(plan, author).run()
    assert winner
    assert winner.name == "1.3"
    assert sum(brief == "prefer_run" for brief, _ in author.asked) == 6


def test_a_person_orders_programs_and_best_and_worst_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1.9 1.1\n1.1 1.3\n1.1 2.2\n"))
    author = ScriptedAuthor()
    campaign = make_campaign(make_plan(tmp_path, "icpl", rounds=2, samples=3), author)
    winner = campaign.run()
    assert winner
    assert winner.name == "1.1"
    assert "1 * after.position" in author.asked[-1][1]["best"]
    assert "3 * after.position" in author.asked[-1][1]["worst"]
    assert "delphi replay" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(EOFError):
        make_campaign(make_plan(tmp_path, "icpl", rounds=3, samples=3), author).run()


def test_each_remark_of_a_person_adds_a_round(tmp_path: Path) -> None:
    author = ScriptedAuthor()
    make_campaign(make_plan(tmp_path, "text2reward", remarks=("slower", "and safer")), author).run()
    assert [fields.get("remarks") for _, fields in author.asked] == [None, "slower", "slower\nand safer"]


def test_a_campaign_that_is_asked_to_stop_begins_no_step_and_goes_on_later(tmp_path: Path) -> None:
    trainer, requests = ScriptedTrainer(), iter([False] * 6 + [True] * 100)
    with pytest.raises(Stopped):
        make_campaign(
            make_plan(tmp_path, rounds=2, samples=2), trainer=trainer, is_stopped=lambda: next(requests)
        ).run()
    assert len(trainer.trained) < 4
    assert make_campaign(make_plan(tmp_path, rounds=2, samples=2), trainer=trainer).run()
    assert len(trainer.trained) == 4


def test_the_report_tells_of_every_program_and_the_winner_is_a_file_that_a_run_takes(tmp_path: Path) -> None:
    campaign = make_campaign(
        make_plan(tmp_path, "card", rounds=3, gates=("static", "preference")),
        ScriptedAuthor([BROKEN, "2 * after.position", "3 * after.velocity", "4 * after.velocity"]),
        gates=RefusingGate(3.0),
        on_round=write_report,
    )
    winner = campaign.run()
    assert winner
    report = (tmp_path / "report.md").read_text()
    assert "| 2.1 | **refused** by preference: failures earn more; pass: static |" in report
    assert "- saved by gates: 1,000 (1 program not trained)" in report
    assert "1 x line 1, column 1" in report
    assert "| 3.1 | pass: static, preference | 4 | 200 | **wins** |" in report
    assert winner.program.text in (tmp_path / "winner.py").read_text()


def test_what_was_written_is_no_markup_in_the_report(tmp_path: Path) -> None:
    image, link = "<img src=//x.y/z>", "![](http://x.y/z)"
    plan = make_plan(tmp_path, rounds=1, samples=2, attempts=1, task=f"Reach {image} {link}", remarks=(image,))
    gates = RefusingGate()
    gates.verdicts = lambda *_: [Verdict(gate="static", passed=False, figure=None, message=f"{image} | {link}")]  # type: ignore[method-assign]
    campaign = make_campaign(
        plan, ScriptedAuthor([f"after.position.{link}", "9 * after.position"]), gates=gates, on_round=write_report
    )
    campaign.run()
    report = (tmp_path / "report.md").read_text()
    assert "<img" not in report
    assert "![" not in report
    assert r"Reach &#60;img src=//x.y/z&#62; !\[\](http:\//x.y/z)" in report
    (row,) = [line for line in report.splitlines() if line.startswith("| 1.2 ")]
    assert "&#60;img src=//x.y/z&#62; &#124; " in row
