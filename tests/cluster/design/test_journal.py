"""The journal: each step once, whatever happened to the last line."""

import threading

import pytest

from cluster.design.journal import Journal
from configs.checks import ConfigError


def test_a_step_is_done_once_and_found_again(tmp_path):
    done = []

    def do():
        done.append(1)
        return {"text": "é\n", "number": 0.1}

    journal = Journal(tmp_path / "j")
    first = journal.once("write", do, round=0, sample=1)
    again = Journal(tmp_path / "j")
    assert again.once("write", do, sample=1, round=0) == first
    assert done == [1]
    assert again.find("write", round=0) is None
    assert again.all("write") == [first]


def test_a_line_that_was_cut_off_counts_as_not_written(tmp_path):
    file = tmp_path / "j"
    Journal(file).add("a", {"x": 1}, n=0)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole + whole[:length])
        journal = Journal(file)
        assert len(journal.all("a")) == 1
        assert file.read_bytes() == whole
    journal.add("a", {"x": 2}, n=1)
    assert [record["x"] for record in Journal(file).all("a")] == [1, 2]


@pytest.mark.parametrize("line", ["{", "[]", '{"step": "a"}', "\xff"])
def test_a_damaged_line_is_refused_by_its_number(tmp_path, line):
    (tmp_path / "j").write_text(f'{{"step": "a", "of": {{}}}}\n{line}\n{{"step": "b", "of": {{}}}}\n', "latin-1")
    with pytest.raises(ConfigError, match=r"damaged in line 2 .*remove that line and those after it"):
        Journal(tmp_path / "j")


def test_threads_write_whole_lines(tmp_path):
    journal = Journal(tmp_path / "j")
    threads = [
        threading.Thread(target=journal.add, args=("a", {"text": "x" * 5000}), kwargs={"n": n}) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(tmp_path / "j").all("a")) == 8
