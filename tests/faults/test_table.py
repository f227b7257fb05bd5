"""docs/reliability.md lists every injected fault."""

import json
from pathlib import Path

import pytest

from tests.faults import table


def test_every_fault_test_has_a_row_and_every_row_a_test() -> None:
    tests = table.fault_tests()
    assert (
        "tests/faults/test_disk_full.py::test_a_full_disk_costs_no_progress_and_never_the_last_good_checkpoint" in tests
    )
    rows = table.rows_of(table.DOCUMENT.read_text())
    assert {row.test for row in rows} == set(tests), "run `make faults` and then `python -m tests.faults.table`"
    assert all(row.fault and row.recovery for row in rows)


def test_every_file_of_fault_tests_records_what_it_measured() -> None:
    marked = [
        path
        for path in (table.ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.faults" in path.read_text() and path != Path(__file__)
    ]
    recorded = {test.partition("::")[0] for test in table.fault_tests()}
    assert {str(path.relative_to(table.ROOT)) for path in marked} == recorded


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "reliability.md"
    path.write_text(
        f"Before.\n\n{table.BEGIN}\n{table.HEADING}\n"
        "| an old fault | something | 9.0 s | [`test_gone`](../tests/faults/test_gone.py) |\n"
        f"| another | it holds | 3.0 s | [`test_kept`](../tests/faults/test_a.py) |\n{table.END}\n\nAfter.\n"
    )
    monkeypatch.setattr(table, "DOCUMENT", path)
    tests = [f"tests/faults/test_a.py::{name}" for name in ("test_kept", "test_new", "test_unmeasured")]
    monkeypatch.setattr(table, "fault_tests", lambda: tests)
    return path


def test_new_measurements_replace_old_ones_and_tests_that_are_gone_leave(document: Path, tmp_path: Path) -> None:
    report = tmp_path / "faults.jsonl"
    entries = [
        {"fault": "kill | -9", "holds": "first", "recovery_s": 1.0, "test": "tests/faults/test_a.py::test_new[x]"},
        {"fault": "kill | -9", "holds": "second", "recovery_s": 2.345, "test": "tests/faults/test_a.py::test_new[x]"},
        {"fault": "stop", "holds": "all", "recovery_s": None, "test": "tests/faults/test_a.py::test_new[y]"},
    ]
    report.write_text("\n".join(map(json.dumps, entries)))
    assert table.main([str(report)]) == 1, "one was not run"
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\n\nAfter.\n")
    rows = [(row.fault, row.recovery) for row in table.rows_of(text)]
    assert rows == [
        ("another", "3.0 s"),
        ("kill / -9", "2.3 s"),
        ("stop", "nothing to recover"),
        ("unmeasured", table.NOT_RUN),
    ]
    assert "second" in text
    assert table.main([str(tmp_path / "absent")]) == 1
    assert document.read_text() == text, "without a report nothing changes"


def test_marks_are_found_on_functions_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ROOT", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import pytest\n@pytest.mark.faults\ndef test_one(record_recovery): ...\ndef test_none(record_recovery): ...\n"
        "@pytest.mark.parametrize('a', [1])\n@pytest.mark.faults\ndef test_two(a, record_recovery): ...\n"
        "@pytest.mark.faults\ndef test_control(): ...\n"
    )
    (tmp_path / "test_y.py").write_text(
        "import pytest\npytestmark = [pytest.mark.faults, pytest.mark.slow]\ndef helper(): ...\ndef"
        " test_all(record_recovery): ...\n"
    )
    assert table.fault_tests(tmp_path) == ["test_x.py::test_one", "test_x.py::test_two", "test_y.py::test_all"]
