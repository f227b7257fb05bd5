"""What is shipped: the wheel holds every package with its data, and the declared dependencies are the ones imported."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_holds_packages_markers_presets_and_rubrics(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("actors", "learner", "llm_server", "reward_models", "configs", "cluster"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    assert {
        "configs/presets/nethack_score.yaml",
        "llm_server/rubrics/nethack_progress.yaml",
        "actors/environments/nethack/native.c",
        "llm_server/annotation.proto",
        "cluster/new_environment/templates/captioner.py.txt",
        *(f"cluster/report/page.{ending}" for ending in ("html", "css", "js")),
        *(f"cluster/report/{name}.js" for name in ("elements", "charts", "captions", "player")),
    } <= names
    assert not [name for name in names if name.startswith("tests/")]


def test_help_is_instant_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from cluster.cli import main\n"
        "from cluster.cli import VERBS\n"
        "for argv in (['--help'], *([verb, '--help'] for verb in VERBS), ['train', '--keys']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(argv)\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'grpc', 'nle', 'gymnasium') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", result.stdout
