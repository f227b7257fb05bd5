"""Building a `RunConfig` from defaults, a preset or file, and `key=value` overrides.

Invariant: whatever is wrong with the input, the error is one `ConfigError` that names the key, what was got, what was
wanted, and the nearest thing that exists.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.paths import with_user_paths
from configs.schema import RunConfig
from configs.suggestions import did_you_mean
from configs.validation import ConfigError, validate

PRESETS = Path(__file__).parent / "presets"
FREE_KEYS = ("env.options",)
"""Mappings whose inner keys the schema does not know."""
MAY_CHANGE_ON_RESUME = {"total_env_steps", "run_dir", "cluster", "logging", "env.stepping", "env.share_engine_code"} | {
    *(f"annotator.{name}" for name in ("address", "tls_ca", "tls_cert", "tls_key", "token_file", "request_timeout_s", "max_backoff_s")),
    "annotator.wait_for_first_table_s",
    "service.hang_timeout_s",
}
"""Keys (or sections) that do not make a resumed run another experiment."""


def preset_names() -> list[str]:
    """Names that `--preset` takes."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(*, preset: str | None = None, file: str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Defaults, then the preset's or file's differences, then `key=value` overrides; validated.

    A preset or file that says `extends: PRESET` holds differences from that one. An empty `run_dir` becomes
    runs/<preset or file name>. Raises ConfigError.
    """
    layers: list[dict[str, Any]] = []
    name = "run"
    if preset is not None and file is not None:
        raise ConfigError("--preset and --config were both given; give one")
    if preset is not None:
        layers = _read_layers(_preset_path(preset))
        name = preset
    if file is not None:
        layers = _read_layers(Path(file).expanduser())
        name = Path(file).stem
    layers.extend(_parse_override(text) for text in overrides)
    merged = OmegaConf.structured(RunConfig)
    for layer in layers:
        _check_keys(layer)
        try:
            merged = OmegaConf.merge(merged, _read_numbers(layer))
        except OmegaConfBaseException as error:
            raise ConfigError(_explain(error, layer)) from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}; give the value itself") from None
    assert isinstance(config, RunConfig)
    try:
        config = with_user_paths(config)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not config.run_dir:
        config = dataclasses.replace(config, run_dir=str(Path("runs") / name))
    validate(config)
    return config


def field_docs(section: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, default, docstring) of every setting, in the schema's order."""
    docs = _docstrings(section)
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.type) and isinstance(field.type, type):
            yield from field_docs(field.type, f"{prefix}{field.name}.")
        else:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            yield f"{prefix}{field.name}", default, docs.get(field.name, "")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved configuration as JSON values."""
    return dataclasses.asdict(config)


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; keys that this version does not know are refused."""
    _check_keys(dict(values))
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), dict(values)))
    assert isinstance(config, RunConfig)
    return config


def experiment_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line `key: old -> new` per difference that would make a resumed run another experiment."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    keys = sorted(key for key in before.keys() | after.keys() if not {key, key.split(".")[0]} & MAY_CHANGE_ON_RESUME)
    absent = object()
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]


@functools.cache
def _docstrings(section: type) -> dict[str, str]:
    """Field name -> the string literal under it; read from the source because Python keeps none at run time."""
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def _preset_path(name: Any) -> Path:
    if name not in preset_names():
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(str(name), preset_names())}; there are: {', '.join(preset_names())}")
    return PRESETS / f"{name}.yaml"


def _read_layers(path: Path, extending: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """The differences that a file holds, those of the preset that it extends first."""
    if path in extending:
        raise ConfigError(f"preset {path.stem} extends itself, by way of {' and '.join(step.stem for step in extending)}")
    values = _read_yaml(path)
    below = _read_layers(_preset_path(values.pop("extends")), (*extending, path)) if "extends" in values else []
    return [*below, values]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, got {type(values).__name__}")
    return values


def _parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` -> {a: {b: 1}}; the value is read as YAML."""
    key, separator, raw = text.partition("=")
    if not separator or not key:
        raise ConfigError(f"got {text!r}, wanted key=value, for example learner.learning_rate=0.0002")
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError:
        raise ConfigError(f"{key}: cannot read the value {raw!r} as YAML") from None
    *sections, name = key.split(".")
    nested: dict[str, Any] = {name: value}
    for section in reversed(sections):
        nested = {section: nested}
    return nested


def _read_numbers(layer: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Scientific notation where the schema wants a number: YAML takes `1e-4` for text, and `1e6` is a whole number too."""
    defaults = {key: default for key, default, _ in field_docs()}

    def convert(key: str, value: Any) -> Any:
        default = defaults.get(key)
        if isinstance(default, bool) or not isinstance(default, int | float) or not isinstance(value, str | float):
            return value
        try:
            number = float(value)
        except ValueError:
            return value
        return int(number) if isinstance(default, int) and number.is_integer() else number

    return {
        key: _read_numbers(value, f"{prefix}{key}.") if isinstance(value, Mapping) else convert(f"{prefix}{key}", value)
        for key, value in layer.items()
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        full = f"{prefix}{key}"
        if isinstance(value, Mapping) and full not in FREE_KEYS:
            yield from _flatten(value, f"{full}.")
        else:
            yield full, value


def _check_keys(layer: dict[str, Any]) -> None:
    known = {key: default for key, default, _ in field_docs()}
    sections = {key.rsplit(".", 1)[0] for key in known if "." in key}
    for key, value in _flatten(layer):
        if key in sections:
            raise ConfigError(
                f"{key} is a section, got {value!r}; set one of its keys, for example {next(k for k in known if k.startswith(key + '.'))}"
            )
        if key not in known:
            raise ConfigError(f"unknown key {key}{did_you_mean(key, known)}; `delphi train --keys` lists them all")


def _explain(error: OmegaConfBaseException, layer: dict[str, Any]) -> str:
    got = dict(_flatten(layer))
    key = str(error.full_key or next(iter(got)))
    defaults = {name: default for name, default, _ in field_docs()}
    wanted = type(defaults[key]).__name__ if key in defaults else "another type"
    return f"{key}: got {got.get(key)!r}, wanted {wanted}"
