import os
import subprocess
import sys
from pathlib import Path

from cluster.run.logs import MAX_BYTES, MAX_FILES, prune, stderr_path, stderr_tail

ROOT = Path(__file__).parents[3]


def run(path: Path, code: str) -> int:
    """A process that turns its standard error to `path` and runs `code`, in which the file is `file`."""
    program = (
        "import os, sys, ctypes\nfrom pathlib import Path\nfrom cluster.run.logs import StderrFile\nfile ="
        f" StderrFile(Path({str(path)!r}))\n{code}"
    )
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode


def test_a_crash_in_c_leaves_its_traceback(tmp_path: Path) -> None:
    path = stderr_path(tmp_path, "0.1-2")
    assert path == tmp_path / "logs" / "worker-0.1-2.err"
    assert run(path, "def crash():\n    ctypes.string_at(0)\ncrash()") < 0
    assert "Fatal Python error: Segmentation fault" in path.read_text()
    assert stderr_tail(path).startswith("Fatal Python error: Segmentation fault")
    assert "in crash" in stderr_tail(path)


def test_what_is_written_outside_python_is_there_too_and_the_file_stays_small(tmp_path: Path) -> None:
    path = stderr_path(tmp_path, "0.1-0")
    flood = (
        f"for _ in range(40):\n    os.write(2, b'x' * {MAX_BYTES // 10} + b'\\n')\n    file.trim()\nos.system('echo"
        " last >&2')"
    )
    assert run(path, flood) == 0
    assert path.stat().st_size < 2 * MAX_BYTES
    assert stderr_tail(path).endswith("last")
    assert len(stderr_tail(path)) < 20_000


def test_a_worker_that_ends_well_leaves_no_file(tmp_path: Path) -> None:
    path = stderr_path(tmp_path, "0.1-0")
    assert run(path, "print('a warning', file=sys.stderr)\nfile.discard()") == 0
    assert not path.exists()
    assert stderr_tail(path) == ""


def test_a_folder_that_cannot_be_written_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    assert run(stderr_path(tmp_path, "0.1-0"), "file.trim()\nfile.discard()") == 0


def test_the_newest_files_are_kept_and_empty_ones_go(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 5):
        path = stderr_path(tmp_path, f"{number}.1-0")
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if number == MAX_FILES else "why")
        os.utime(path, (1000 + number, 1000 + number))
    prune(tmp_path)
    left = {int(path.name.removeprefix("worker-").partition(".")[0]) for path in (tmp_path / "logs").iterdir()}
    assert left == set(range(4, MAX_FILES + 5)) - {MAX_FILES}
