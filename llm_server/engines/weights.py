"""Loading a Hugging Face model whole, or not at all.

Invariant: no weight is random: one that the files lack, or have in another shape, is refused with its name. Safetensors only: no
pickle is read.
"""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_NAMES = 8
INDEX, ADAPTER = "model.safetensors.index.json", "adapter_config.json"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FETCH = "fetch the whole model again, or give another"


def check_files(folder: Path, model: str) -> None:
    """ValueError where a file is missing that another one names, or there is an adapter: what can be seen without loading anything."""
    if (folder / ADAPTER).is_file() or ((folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").is_file()):
        raise ValueError(
            f"model '{model}' holds an adapter (adapter_model.safetensors), which is no whole model: merge it into the model that it was"
            " trained on (peft's merge_and_unload, then save_pretrained) and give the folder that comes of it"
        )
    index = folder / INDEX
    if not index.is_file() or (folder / "model.safetensors").is_file():
        return
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"model '{model}': {index} cannot be read ({type(error).__name__}: {error}): {FETCH}") from None
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise ValueError(f"model '{model}' lacks {_listed(missing)} of the {len(shards)} files that {INDEX} names: {FETCH}")


def load_whole(auto_class: Any, source: str | Path, model: str, *, unread: str = "", **options: Any) -> tuple[Any, list[str]]:
    """`auto_class.from_pretrained(source, **options)`, and the names of tensors in the files that the model has no place for.

    ValueError, which names them, for weights that are missing or have another shape than config.json says, save those whose names match
    the pattern `unread`. `model` is what to call it. Beyond that it raises whatever the files provoke: OSError, KeyError, ...
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    report: list[str] = []
    reporting = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:  # what is said here in one line is there a table of many
        report.append(COLOUR.sub("", record.getMessage()))
        return False

    reporting.addFilter(keep)
    try:
        loaded, found = auto_class.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except RuntimeError as error:
        # Weights that are made of several of the files' (experts, one by one) where one of those is missing.
        if names := set(re.findall(r"^(\S.*?) *\| (?:MISSING|CONVERSION)", "\n".join(report), re.MULTILINE)):
            raise IncompleteWeights(f"model '{model}' lacks parts of {_listed(names)}: {FETCH}") from error
        raise
    finally:
        reporting.removeFilter(keep)
    num_weights = len(loaded.state_dict())
    if missing := [name for name in found["missing_keys"] if not (unread and re.search(unread, name))]:
        raise IncompleteWeights(
            f"model '{model}' lacks {len(missing)} of the {num_weights} weights that its config.json asks for ({_listed(missing)}): {FETCH}"
        )
    if other := {name: shapes for name, *shapes in found["mismatched_keys"]}:
        name = min(other)
        has, wanted = (tuple(shape) for shape in other[name])
        raise IncompleteWeights(
            f"model '{model}' has {len(other)} weights of another shape than its config.json says ({_listed(other)}; the first is {has},"
            f" wanted {wanted}): give the config.json that belongs to them"
        )
    return loaded, sorted(found["unexpected_keys"])


class IncompleteWeights(ValueError):
    """The files do not hold what the model consists of."""


def unused_advice(unused: Sequence[str]) -> str:
    """What to say of tensors that the model has no place for: an extra head does no harm, a config.json of fewer layers does."""
    return f"{len(unused)} tensors of its files are not used ({_listed(unused)}): make sure that config.json belongs to them"


def _listed(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    shown = ", ".join([first, *others[: MAX_NAMES - 1]])
    return f"{shown} and {len(others) + 1 - MAX_NAMES} more" if len(others) >= MAX_NAMES else shown
