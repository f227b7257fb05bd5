"""Executes the cells of a notebook in order, in one plain Python process, and keeps what they print:
`python -m tests.notebook docs/your_environment.ipynb` writes the new outputs into the notebook.

Invariant: a notebook's stored outputs are of the code that stands in it: their execution left the code's hash beside
them.
"""

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any]) -> list[str]:
    """What each code cell prints, to both streams; raises what a cell raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for cell in code_cells(notebook):
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            exec(compile("".join(cell["source"]), f"<cell {cell['id']}>", "exec"), names)
        printed.append(stream.getvalue())
    return printed


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Its cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def code_hash(notebook: dict[str, Any]) -> str:
    """Of all its code."""
    return hashlib.sha256("\0".join("".join(cell["source"]) for cell in code_cells(notebook)).encode()).hexdigest()


def with_outputs(notebook: dict[str, Any], printed: list[str]) -> dict[str, Any]:
    """The notebook with these outputs."""
    for number, (cell, text) in enumerate(zip(code_cells(notebook), printed, strict=True), 1):
        lines = text.splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
    notebook["metadata"]["executed_code_sha256"] = code_hash(notebook)
    return notebook


if __name__ == "__main__":
    path = Path(sys.argv[1]).absolute()
    content = json.loads(path.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        tempfile.tempdir = folder  # of the cells too
        outputs = execute(content)
    path.write_text(json.dumps(with_outputs(content, outputs), indent=1, ensure_ascii=False) + "\n", "utf-8")
