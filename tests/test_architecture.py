"""The design's folder rules, held against the source: who may import whom, in no circle, and how large things may
grow."""

import ast
import graphlib
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "actors", "llm_server", "reward_models", "learner", "cluster")
MAY_IMPORT = {
    "configs": {"configs"},
    "actors": {"configs", "actors"},
    "llm_server": {"configs", "llm_server"},
    "reward_models": {"configs", "llm_server", "reward_models"},
    "learner": {"configs", "actors", "llm_server", "reward_models", "learner"},
    "cluster": set(PACKAGES),
}
ONLY_IN = {
    "ray": ("cluster/",),
    "vllm": ("llm_server/",),
    "grpc": ("llm_server/",),
    "grpc_health": ("llm_server/",),
    "grpc_reflection": ("llm_server/",),
    "transformers": ("llm_server/",),
    "nle": ("actors/environments/nethack/",),
    "minihack": ("actors/environments/nethack/",),
}
MAX_MODULES = 16
"""Of one folder, without those that a compiler writes."""
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: imports are absolute"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    names, place = imported(path), path.relative_to(ROOT).as_posix()
    forbidden = (names & set(PACKAGES)) - MAY_IMPORT[place.split("/")[0]]
    assert not forbidden, f"{place} imports {forbidden}"
    for library, homes in ONLY_IN.items():
        assert library not in names or place.startswith(homes), f"{library} belongs in {homes}, not in {place}"


def imported_modules(path: Path, modules: frozenset[str]) -> set[str]:
    """Modules of the project that `path` imports anywhere, also within a function or for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found & modules


def test_no_modules_import_each_other_in_a_circle() -> None:
    name_of = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES if path.name != "__init__.py"
    }
    modules = frozenset(name_of.values())
    graph = {name: imported_modules(path, modules) for path, name in name_of.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_no_folder_holds_more_modules_than_one_look_takes_in() -> None:
    sizes = Counter(path.parent.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py")
    assert {folder: size for folder, size in sizes.items() if size > MAX_MODULES} == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_reads_pickles(path: Path) -> None:
    assert not imported(path) & {"pickle", "dill", "cloudpickle", "shelve", "joblib"}
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    assert not calls & {"torch.load", "torch.save", "numpy.load", "np.load"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500, "split it: one file, one idea"
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a module docstring says what it is and which invariant it keeps"


def test_only_the_agreed_packages_lie_at_the_top() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    code = [path for path in tracked if not path.startswith("docs/results/")]  # there: reward programs of experiments
    assert {path.split("/")[0] for path in code} == {*PACKAGES, "tests"}
    assert not [path for path in tracked if path.startswith("tests/") and path.endswith("__init__.py")]
    assert not [path for path in tracked if Path(path).stem in ("utils", "helpers", "common", "misc")]
