"""Writes the documents that are made from the code: `python -m tests.generated_documents`.

    docs/configuration.md    every setting: default, range or choices, meaning       from the schema's fields
    docs/metrics.md          every metric                                            from the catalogue
    docs/architecture.md     the tree, one line per module, between two comments     from the modules' docstrings

A test holds the files to what this makes, so that none of them can lie.
"""

import ast
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

from cluster.metrics import OF_TERMS, markdown_table
from configs.fields import field_docs
from configs.fields import settings as settings_of
from configs.schema import RunConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TREE = ("<!-- tree -->\n", "<!-- end of tree -->\n")
PACKAGES = {
    "configs": "what a run is: settings, presets, how they are read and checked",
    "actors": "act: environments, captions, the policy network, rollouts",
    "llm_server": "ask a language model: rubrics, engines, the annotation service and its clients",
    "reward_models": "turn judgements into one number per caption",
    "learner": "train the policy on extrinsic + intrinsic reward",
    "cluster": "wire the parts, run them in one process or on Ray, show what happens",
}
CONFIGURATION = """# Settings

Every setting with its default, its range or choices, and its meaning. `delphi train --keys` prints the same. Set them
in a file (`--config FILE`) or as overrides (`learner.learning_rate=0.0002`). [Running](running.md) explains how
presets, files and overrides are combined.

`python -m tests.generated_documents` generates this page from `configs/schema.py`, `configs/reward_schema.py` and
`configs/annotation_schema.py`.
"""
METRICS = """# Metrics

`metrics.jsonl`, TensorBoard and Ray's metrics have the same names. In Ray's metrics they have the prefix `ray_delphi_`,
all of them are gauges, and one that is null in `metrics.jsonl` has the label `undefined="yes"`.
[Dashboards](dashboards.md) shows them in Grafana. [When a gauge is red](../cluster/README.md#when-a-gauge-is-red) says
what to do outside the healthy range.

`python -m tests.generated_documents` generates this page from `cluster/metrics.py`.

"""
METRICS_OF_TERMS = """
## Of each term of the reward

In a run with further `terms`, a line has these metrics of each of its terms too, the main one included:
`term_mean` as `terms.NAME.mean`, and so on, `problem`: why its items are no longer judged, or null, and if it is a
program `component_NAME`: the mean of each of its components per step. In TensorBoard
they are `terms/NAME/mean`; in Ray's metrics `ray_delphi_term_mean`, with the label `term`.

"""


def configuration() -> str:
    """docs/configuration.md."""
    parts = [CONFIGURATION]
    sections: dict[str, list[tuple[str, Any, str]]] = {}
    for key, default, doc in field_docs(RunConfig):
        sections.setdefault(key.rpartition(".")[0], []).append((key, default, doc))
    fields = {key: field for key, field, _ in settings_of(RunConfig)}
    for section, entries in sections.items():
        parts.append(f"\n## {section or 'The run'}\n\n| key | default | may be | meaning |\n|---|---|---|---|\n")
        for key, default, doc in entries:
            shown = (
                "(empty)"
                if default in ("", [], {})
                else f"`{str(default).lower() if isinstance(default, bool) else default}`"
            )
            parts.append(f"| `{key}` | {shown} | {_allowed(fields[key], default)} | {doc.replace('|', '&#124;')} |\n")
    return "".join(parts)


def tree() -> str:
    """The modules of each package with the first sentence of their docstrings."""
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    lines = []
    for package, words in PACKAGES.items():
        lines.append(f"\n### `{package}/`: {words}\n")
        folder = ""
        for path in sorted(
            (name for name in tracked if name.startswith(f"{package}/") and "_pb2" not in name), key=_by_folder
        ):
            doc = ast.get_docstring(ast.parse((ROOT / path).read_text()))
            if doc is None:
                continue
            parent, _, name = path.rpartition("/")
            if parent != folder:
                folder = parent
                lines.append(f"\n| `{parent}/` | |\n|---|---|")
            lines.append(f"| [`{name}`](../{path}) | {first_sentence(doc).replace('|', '&#124;')} |")
    return "\n".join(lines).strip() + "\n"


def first_sentence(doc: str) -> str:
    """The first paragraph of a docstring on one line, up to its first full stop."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


def documents() -> dict[Path, str]:
    """Path -> whole text of each document that is made, or holds what is made."""
    architecture = (DOCS / "architecture.md").read_text()
    before, _, rest = architecture.partition(TREE[0])
    after = rest.partition(TREE[1])[2]
    return {
        DOCS / "configuration.md": configuration(),
        DOCS / "metrics.md": f"{METRICS}{markdown_table()}\n{METRICS_OF_TERMS}{markdown_table(OF_TERMS)}\n",
        DOCS / "architecture.md": f"{before}{TREE[0]}\n{tree()}\n{TREE[1]}{after}",
    }


def _allowed(field: "dataclasses.Field[Any]", default: Any) -> str:
    if choices := field.metadata.get("choices"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if bounds := field.metadata.get("range"):
        return f"{bounds[0]:.10g} to {bounds[1]:.10g}"
    names = {bool: "`true`, `false`", str: "text", list: "a list of texts", dict: "keys with values"}
    return names[type(default)]


def _by_folder(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
