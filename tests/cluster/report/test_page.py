"""The page holds what it should and nothing that a run's texts could do; in a real browser it is used as a person
would."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.report import page
from cluster.report.command import main
from cluster.report.page import shown
from cluster.report.replays import encoded
from llm_server.rubrics.loading import load_rubric
from tests.browser import Browser, chromium, needs_chromium
from tests.cluster.report.small_run import (
    HOSTILE,
    add_captions,
    data_of,
    minigrid_recording,
    nethack_recording,
    trained,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = trained(tmp_path_factory.mktemp("runs") / "run")
    add_captions(path, HOSTILE)
    return path


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    """The page of the run, with replays of NetHack and MiniGrid in place of its own."""
    recordings = {"good": nethack_recording(), "bad": minigrid_recording()}

    def played(*arguments: Any) -> list[dict[str, Any]]:
        return [{"label": label, **encoded(recording)} for label, recording in recordings.items()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "replays", played)
        assert main([str(run_dir)]) == 0
    return run_dir / "report.html"


def test_the_page_loads_nothing_and_allows_its_own_style_and_program_alone(report: Path) -> None:
    text = report.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "script-src", "base-uri", "form-action"}
    assert all(re.fullmatch(r"'sha256-[^' ]+'", rules[name]) for name in ("style-src", "script-src"))
    assert not re.search(
        r"\b(?:src|href)=\"(?!#)", text.split("<main>")[0] + text.split("</main>")[1].split("<script")[0]
    )
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_escaped_and_its_control_characters_are_seen(text: str) -> None:
    html = shown(text)
    assert not re.search(r"[<>\"'\x00-\x1f\u202e]", html)


def test_a_run_without_anything_has_a_page_that_says_what_is_missing(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(run_dir / "config.json", tmp_path / "bare")
    assert main([str(tmp_path / "bare")]) == 0
    text = (tmp_path / "bare" / "report.html").read_text()
    for missing in ("metrics.jsonl", "no complete checkpoint", "no captions.sqlite"):
        assert missing in text


def test_replays_that_fail_cost_only_themselves(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> list[dict[str, Any]]:
        raise RuntimeError("it does not repeat its games")

    monkeypatch.setattr(page, "replays", fail)
    assert main([str(run_dir), "--out", str(tmp_path / "page.html")]) == 0
    assert "replays are left out: it does not repeat its games" in capsys.readouterr().err
    assert "it does not repeat its games" in (tmp_path / "page.html").read_text()


def test_the_page_stays_below_its_limit_and_says_how_many_captions_are_left_out(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = Path(shutil.copytree(run_dir, tmp_path / "big"))
    add_captions(big, tuple(f"{hash((n, 'a'))} bites {hash((n, 'b'))}!" for n in range(5000)))
    assert main([str(big), "--no-replays"]) == 0
    limit = (big / "report.html").stat().st_size - 50_000
    monkeypatch.setattr(page, "MAX_BYTES", limit)
    assert main([str(big), "--no-replays"]) == 0
    assert (big / "report.html").stat().st_size <= limit
    captions = data_of(big / "report.html")["runs"][0]["captions"]
    assert 0 < captions["shown"] < captions["total"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, report: Path) -> Browser:
    browser.look()
    browser.open(report)
    browser.complaints()
    return browser


def rows(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.list button.text')].map((node) => node.textContent)")


def unpacked(browser: Browser) -> None:
    browser.run("document.querySelector('.captions').scrollIntoView()")
    browser.wait("return document.querySelector('.captions').dataset.loaded")


def searched(browser: Browser, text: str) -> list[str]:
    """Type into the search box, and wait for what it finds."""
    browser.run("const box = document.querySelector('input[type=search]'); box.value = ''; box.focus()")
    browser.press(*text)
    browser.wait(
        "const box = document.querySelector('input[type=search]'), state = document.querySelector('[role=status]');"
        "return box.value === arguments[0] && !state.textContent.startsWith('Searching')",
        text,
    )
    return rows(browser)


@needs_chromium
def test_hostile_captions_are_shown_and_do_nothing(opened: Browser) -> None:
    unpacked(opened)
    (row,) = searched(opened, "</script>")
    assert row == HOSTILE[0]
    assert searched(opened, "opposite") == ["reversed ⟨U+202E⟩opposite"]
    assert len(searched(opened, "onerror")) == 1
    assert opened.run("return window.taken === undefined && !document.querySelector('main img')")
    assert opened.complaints() == []


@needs_chromium
def test_an_opened_caption_shows_the_prompt_that_the_judge_was_asked(opened: Browser) -> None:
    unpacked(opened)
    before, after = load_rubric("nethack_progress").question().completion_prompt()
    (row,) = searched(opened, "reach the treasure")
    opened.press("Tab", "Tab", "Enter")  # past the order, to the row
    opened.wait("return document.querySelector('.prompt')")
    assert opened.run("return document.querySelector('.prompt').textContent") == f"{before} {row}{after}"
    facts = opened.run("return document.querySelector('.opened dl').textContent")
    assert "StatusOK" in facts
    assert "Probability0.95" in facts
    assert "Threshold θ0.5" in facts
    opened.press("Enter")
    assert opened.run("return document.querySelector('.prompt')") is None


@needs_chromium
@pytest.mark.parametrize(
    "text", ["One.  Two!  One.", "  ".join(f"part {n}." for n in range(20)), "x" * 300, "a   b  c"]
)
def test_the_page_divides_a_caption_as_the_rubric_does(opened: Browser, text: str) -> None:
    rubric = load_rubric("nethack_progress")
    wanted = [rubric.item_text(part) for part in rubric.parts(text.encode())]
    assert opened.run("return askedTexts(DATA.runs[0].terms[0].prompt, arguments[0])", text) == wanted


@needs_chromium
@pytest.mark.parametrize(
    ("order", "key", "descends"), [("paid", 2, True), ("reward", 1, True), ("count", 3, True), ("firstSeen", 4, False)]
)
def test_captions_are_sorted(opened: Browser, order: str, key: int, descends: bool) -> None:
    unpacked(opened)
    opened.run(
        "const order = document.querySelector('.captions select'); order.value = arguments[0];"
        "order.dispatchEvent(new Event('change'))",
        order,
    )
    opened.wait("return !document.querySelector('[role=status]').textContent.startsWith('Searching')")
    cells = f"return [...document.querySelectorAll('.list tbody td:nth-child({key})')].map((cell) => cell.textContent)"
    values = [number(text) for text in opened.run(cells)]
    assert len(set(values)) > 1
    assert values == sorted(values, reverse=descends)


def number(text: str) -> float:
    """A cell's; nothing counts as 0."""
    if not text[-1].isascii():
        return 0.0
    return 1000 * float(text[:-1]) if text.endswith("k") else float(text.replace(",", ""))


@needs_chromium
def test_a_chart_is_read_by_keys_and_has_its_table(opened: Browser) -> None:
    chart = "const chart = document.querySelector('.charts figure');"
    opened.run(chart + "chart.querySelector('svg').focus()")
    opened.press("End")
    read = chart + "return chart.querySelector('.readout').textContent"
    last = opened.run(read)
    opened.press("ArrowLeft")
    assert last.startswith("step ")
    assert opened.run(read) != last
    opened.press("ArrowRight")
    assert opened.run(read) == last
    opened.run(chart + "chart.querySelector('details:last-of-type summary').click()")
    opened.wait(chart + "return chart.querySelector('table')")
    cells = opened.run(chart + "return [...chart.querySelectorAll('tr:last-child td')].map((cell) => cell.textContent)")
    assert last == f"step {cells[0]}: {cells[1]}"


@needs_chromium
def test_a_replay_shows_the_games_screens_by_keys(opened: Browser) -> None:
    opened.run("document.querySelector('.replays').scrollIntoView()")
    opened.wait("return document.querySelectorAll('.player').length === 2")
    recording = nethack_recording()

    def screen() -> Sequence[str]:
        return opened.run("return document.querySelector('.screen').textContent").split("\n")[:24]

    opened.run("document.querySelector('.player').focus()")
    assert tuple(screen()) == recording.moments[0].screen
    opened.press("ArrowRight", "ArrowRight")
    assert tuple(screen()) == recording.moments[2].screen
    opened.press("End")
    assert tuple(screen()) == recording.moments[-1].screen
    assert "caption 12" in opened.run("return document.querySelector('.player dl').textContent")
    opened.press("Home", "+", "+", " ")
    opened.wait("return document.querySelector('.player output').textContent === 'step 12 of 12'")
    pixel = (
        "const canvas = document.querySelector('canvas'), data = canvas.getContext('2d').getImageData(0, 0, 9, 9).data;"
    )
    picture = minigrid_recording().moments[0].picture
    assert picture is not None
    shown_pixel = opened.run(pixel + "return [...data.slice(4 * (5 * 9 + 5), 4 * (5 * 9 + 5) + 3)]")
    assert shown_pixel == picture[5, 5].tolist()


@needs_chromium
def test_the_page_follows_the_users_colours_and_its_button_and_fits_a_phone(opened: Browser, report: Path) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.look(dark=True, width=400)
    dark = opened.run(paper)
    assert light != dark
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == light
    unpacked(opened)
    assert opened.run("return document.documentElement.scrollWidth") == 400
    opened.look(dark=True, media="print")
    assert opened.run("return getComputedStyle(document.querySelector('nav')).display") == "none"


@needs_chromium
def test_several_runs_have_a_table_their_curves_together_and_sections_that_open(
    browser: Browser, run_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 2}))
    assert main([str(run_dir), str(other), "--no-replays", "--out", str(tmp_path / "runs.html")]) == 0
    browser.open(tmp_path / "runs.html")
    assert browser.run("return document.querySelectorAll('main > section table tbody tr').length") == 2
    assert browser.run("return document.querySelectorAll('[data-charts=groups] figure .band').length") > 3
    is_seen = "return document.querySelector('#run-1 figure').checkVisibility()"
    assert not browser.run(is_seen)
    browser.run("document.querySelector('#run-1 summary').click()")
    assert browser.run(is_seen)
    browser.run("document.querySelector('#run-1 .captions').scrollIntoView()")
    browser.wait("return document.querySelector('#run-1 .list button.text')")
    browser.wait("return document.querySelector('#run-1 figure svg path')")
    assert browser.complaints() == []
