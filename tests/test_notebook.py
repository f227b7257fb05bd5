"""The notebook in docs/ can be executed, and shows outputs of the code that stands in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.notebook import code_cells, code_hash

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "your_environment.ipynb"


@pytest.mark.timeout(300)
def test_all_cells_run_and_print_in_the_same_places(tmp_path: Path) -> None:
    copy = tmp_path / NOTEBOOK.name
    shutil.copy(NOTEBOOK, copy)
    command = [sys.executable, "-m", "tests.notebook", str(copy)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    stored, executed = (code_cells(json.loads(path.read_text())) for path in (NOTEBOOK, copy))
    assert [bool(cell["outputs"]) for cell in stored] == [bool(cell["outputs"]) for cell in executed]


def test_its_outputs_are_of_its_code_and_small() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    advice = "run: python -m tests.notebook docs/your_environment.ipynb"
    assert notebook["metadata"]["executed_code_sha256"] == code_hash(notebook), advice
    assert NOTEBOOK.stat().st_size < 60_000
    assert str(Path.home()) not in NOTEBOOK.read_text()


def test_the_document_shows_the_same_folder() -> None:
    document = (ROOT / "docs" / "environments.md").read_text()
    looked = "".join(code_cells(json.loads(NOTEBOOK.read_text()))[1]["outputs"][0]["text"])
    told, _, source = looked.partition('"""')
    assert told.strip() in document
    measured = [line for line in source.splitlines() if line.startswith("#   ")]
    assert len(measured) == 5
    assert "\n".join(measured) in document
