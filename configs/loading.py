"""Builds a `RunConfig` from defaults, a preset or file, and `key=value` overrides.

Invariant: any error in the input is one `ConfigError` that names the key, what was got, what was wanted, and the
nearest valid name.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checks import ConfigError, validate
from configs.errors import did_you_mean
from configs.fields import NAME, field_docs
from configs.paths import with_user_paths
from configs.schema import RunConfig
from configs.yaml_text import TRUTH, Plain, guess, kind_of, read_yaml

PRESETS = Path(__file__).parent / "presets"
FREE_KEYS = ("env.options", "terms.NAME.model")
"""Mappings whose inner keys are not in the schema."""
WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text; in a file put it in quotes",
    list: "a list of texts, such as [one, two]; in quotes where they hold a colon",
    dict: "keys with values, such as {size: 3}",
}
OF_THE_MACHINE = {
    "env": "stepping share_engine_code",
    "actors": "device inference torch_threads",
    "policy": "reuse_crops",
    "learner": "device torch_threads",
    "annotator": "address tls_ca tls_cert tls_key token_file batch_size max_in_flight max_labels_per_s"
    " request_timeout_s max_backoff_s wait_for_first_table_s must_answer",
    "writer": "address max_per_s",
    "service": "device batch_size host port nice torch_threads store max_items_per_request script_delay_s"
    " hang_timeout_s engine_timeout_s vllm_python tensor_parallel gpu_memory_utilization max_model_len endpoint"
    " endpoint_key_env endpoint_concurrency",
}
"""Settings, by section, of the machine and its load: they affect what is learnt only through rounding and timing."""
MAY_CHANGE_ON_RESUME = {
    *("total_env_steps", "max_time_s", "run_dir", "cluster", "logging", "checkpoint", "evaluation"),
    *(f"{section}.{name}" for section, names in OF_THE_MACHINE.items() for name in names.split()),
}
"""Keys (or sections) that a resumed run may change and remain the same experiment."""
DECIDE_THE_REWARD_MODEL = ("seed", "annotator", "reward_model", "terms")
"""Keys and sections that affect a reward model trained on judgements before the policy."""


def preset_names() -> list[str]:
    """The names that `--preset` accepts."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(
    *,
    preset: str | None = None,
    file: str | None = None,
    layers: Sequence[Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
) -> RunConfig:
    """Defaults, then the differences of the preset or file, then those of `layers`, nested or with dotted keys, then
    `key=value` overrides; validated.

    A preset or file with `extends: PRESET` holds differences from that preset. An empty `run_dir` becomes runs/<preset
    or file name>. Raises ConfigError.
    """
    if preset is not None and file is not None:
        raise ConfigError("--preset and --config were both given; give one")
    path = _preset_path(preset) if preset is not None else None if file is None else Path(file).expanduser()
    below = [] if path is None else _read_layers(path)
    config = with_user_paths(_built([_values(layer) for layer in (*below, *layers, *map(_parse_override, overrides))]))
    if not config.run_dir:
        config = dataclasses.replace(config, run_dir=str(Path("runs") / (path.stem if path else "run")))
    validate(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; ConfigError for unknown keys."""
    return _built([_values(values)])


def with_values(config: RunConfig, layer: Mapping[str, Any]) -> RunConfig:
    """A copy in which the values of `layer` replace its own; not validated. Raises ConfigError for unknown keys and
    values of the wrong type."""
    return _built([_values(to_dict(config)), _values(layer)])


def experiment_diff(old: Mapping[str, Any], new: Mapping[str, Any], *, of_reward_model: bool = False) -> list[str]:
    """One line `key: old -> new` per difference that would make a resumed run another experiment; with
    `of_reward_model`, only those that would change a reward model trained before the policy. A key that `old` does not
    have yet, because it was written by an earlier version, counts as its default."""
    before, after = _defaults() | dict(_flatten(old)), dict(_flatten(new))
    before = {key: value for key, value in before.items() if NAME not in key.split(".")}
    keys = sorted(key for key in before.keys() | after.keys() if not {key, key.split(".")[0]} & MAY_CHANGE_ON_RESUME)
    absent = object()
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
        and (not of_reward_model or key.split(".")[0] in DECIDE_THE_REWARD_MODEL)
    ]


def experiment_settings(config: RunConfig) -> dict[str, Any]:
    """The settings by dotted key, as JSON values, that make the run the experiment it is and are not the defaults."""
    defaults, absent = _defaults(), object()
    values = json.loads(json.dumps(dict(_flatten(to_dict(config)))))
    return {
        key: value
        for key, value in sorted(values.items())
        if value != defaults.get(key, absent) and not {key, key.split(".")[0]} & MAY_CHANGE_ON_RESUME
    }


def _preset_path(name: Any) -> Path:
    if name not in preset_names():
        near = did_you_mean(str(name), preset_names())
        raise ConfigError(f"unknown preset {name!r}{near}; there are: {', '.join(preset_names())}")
    return PRESETS / f"{name}.yaml"


def _read_layers(path: Path, extending: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The differences in a file, after those of the preset that it extends."""
    if path in extending:
        raise ConfigError(f"preset {path.stem} extends itself, through {' and '.join(step.stem for step in extending)}")
    values = _read_yaml(path)
    below = _read_layers(_preset_path(values.pop("extends")), (*extending, path)) if "extends" in values else []
    return [*below, values]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {path} is not text in UTF-8: {error}") from None
    except ValueError as error:
        raise ConfigError(f"configuration {path}: {error}") from None
    if isinstance(values, Plain) and not values:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration {path} must hold keys and values, got {kind_of(values)}")
    return values


def _parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` -> {a: {b: 1}}. The value is the unquoted text; only lists and mappings are read as YAML."""
    key, separator, raw = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"got {text!r}, wanted key=value, for example learner.learning_rate=0.0002")
    value: Any = raw
    if raw:
        try:
            value = read_yaml(raw)
        except ValueError as error:
            value = error
        in_quotes = type(value) is str and raw[0] in "'\"" and raw[0] == raw[-1]
        default = _defaults().get(_without_name(key))
        if not in_quotes and (isinstance(value, str) or isinstance(default, str | int | float)):
            value = Plain(raw)
        if isinstance(value, ValueError):
            raise ConfigError(f"{key}: got {raw!r}, {value}")
    return _nested({key: value})


def _values(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, each of the type in the schema. Raises ConfigError for the first invalid key or value."""
    defaults = _defaults()
    sections = {key.rsplit(".", 1)[0] for key in defaults if "." in key}
    values: dict[str, Any] = {}
    for key, value in _flatten(layer):
        known_as = _without_name(key)
        if known_as in sections:
            example = next(known for known in defaults if known.startswith(f"{known_as}."))
            example = example.replace(known_as, key, 1)
            raise ConfigError(f"{key} is a section, got {value!r}; set one of its keys, for example {example}")
        if known_as not in defaults:
            near = did_you_mean(known_as, defaults).replace(known_as.rpartition(".")[0], key.rpartition(".")[0])
            raise ConfigError(f"unknown key {key}{near}; `delphi train --keys` lists them all")
        if key in values:
            raise ConfigError(
                f"{key} is given twice, once in its section and once by its full name; remove one of the two"
            )
        values[key] = _value(key, value, defaults[known_as])
    return values


def _value(key: str, value: Any, default: Any) -> Any:
    """`value` converted to the type of `default`."""
    if isinstance(default, str) and isinstance(value, str):
        if "${" in value or value == "???":
            raise ConfigError(f"{key}: got {str(value)!r}, but nothing is interpolated; give the value itself")
        return str(value)
    if isinstance(default, bool):
        known = value if isinstance(value, bool) else TRUTH.get(str(value).strip().lower())
        if known is not None:
            return known
    elif isinstance(default, int | float) and isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return _whole(value) if isinstance(default, int) else float(value)
    elif isinstance(default, list) and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [str(item) for item in value]
    elif isinstance(default, dict) and isinstance(value, Mapping):
        return guess(dict(value))
    got = repr(value) if isinstance(value, str | int | float) else kind_of(value)
    if isinstance(default, list) and isinstance(value, list):
        got = f"{next(item for item in value if not isinstance(item, str))!r} in a list"
    raise ConfigError(f"{key}: got {got}, wanted {WANTED[type(default)]}")


def _whole(value: str | int | float) -> int:
    with contextlib.suppress(ValueError):
        if not isinstance(value, float):
            return int(value)
    if not float(value).is_integer():
        raise ValueError(value)
    return int(float(value))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, as nested sections."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return nested


def _built(layers: Sequence[Mapping[str, Any]]) -> RunConfig:
    """The defaults, overridden by the layers of dotted key -> value in turn."""
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), *map(_nested, layers)))
    except OmegaConfBaseException as error:  # ${...} within a list or an option
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}; give the value itself") from None
    assert isinstance(config, RunConfig)
    return config


@functools.cache
def _schema() -> Any:
    return OmegaConf.structured(RunConfig)


@functools.cache
def _defaults() -> dict[str, Any]:
    return {key: default for key, default, _ in field_docs(RunConfig)}


def _without_name(key: str) -> str:
    """`key` as the schema has it: `terms.fight.pays` -> `terms.NAME.pays`."""
    section, *rest = key.split(".", 2)
    return ".".join([section, NAME, *rest[1:]]) if section == "terms" and rest else key


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping) and _without_name(full) not in FREE_KEYS:
            yield from _flatten(value, f"{full}.")
        else:
            yield full, value
