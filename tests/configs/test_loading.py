import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.checks import ConfigError
from configs.fields import complaint, field_docs
from configs.loading import MAY_CHANGE_ON_RESUME, experiment_diff, from_dict, load_config, preset_names, to_dict
from configs.schema import RunConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_json(name: str) -> None:
    config = load_config(preset=name)
    assert config.run_dir == str(Path("runs") / name)
    assert from_dict(to_dict(config)) == config


def test_every_field_has_a_docstring() -> None:
    docs = {key: doc for key, _, doc in field_docs(RunConfig)}
    assert not [key for key, doc in docs.items() if not doc]


def test_every_number_has_a_range_and_every_default_lies_in_its_own() -> None:
    def walk(section: object, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, object]]:
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{prefix}{field.name}.")
            else:
                yield f"{prefix}{field.name}", field, value

    numbers = {
        key: field
        for key, field, value in walk(RunConfig())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert not [key for key, field in numbers.items() if "range" not in field.metadata]
    assert not [key for key, field, value in walk(RunConfig()) if complaint(field, value)]


def test_every_field_is_read_somewhere() -> None:
    read: set[str] = set()
    for package in ("actors", "llm_server", "reward_models", "learner", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not [key for key, _, _ in field_docs(RunConfig) if key.rsplit(".", 1)[-1] not in read]


def test_no_section_grows_beyond_25_fields() -> None:
    sections: dict[str, int] = {}
    for key, _, _ in field_docs(RunConfig):
        section = key.rpartition(".")[0]
        sections[section] = sections.get(section, 0) + 1
    assert max(sections.values()) <= 25


def test_overrides_go_before_the_file_and_the_file_before_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("learner: {gamma: 0.9, learning_rate: 1e-3}\nenv: {options: {character: mon-hum}}\n")
    config = load_config(file=str(file), overrides=["learner.gamma=0.5", "total_env_steps=1e6", "env.options.size=3"])
    assert (config.learner.gamma, config.learner.learning_rate, config.total_env_steps) == (0.5, 1e-3, 1_000_000)
    assert config.env.options == {"character": "mon-hum", "size": 3}
    assert config.run_dir == str(Path("runs") / "mine")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learner.learnng_rate=1"], ["learner.learnng_rate", "did you mean 'learner.learning_rate'"]),
        (["gamma=0.9"], ["unknown key gamma", "learner.gamma"]),
        (["learner.gamma=2"], ["learner.gamma", "got 2.0", "from 0 to"]),
        (["learner.gamma=nan"], ["learner.gamma", "got nan"]),
        (["actors.num_workers=1.5"], ["actors.num_workers", "1.5", "a whole number"]),
        (["cluster.mode=cloud"], ["cluster.mode", "'cloud'", "local, inline, connect"]),
        (["learner=3"], ["learner is a section"]),
        (["seed"], ["'seed'", "key=value"]),
        (["reward_model.goals=[1"], ["reward_model.goals", "'[1'", "not YAML"]),
        (["reward_model.goals=gold"], ["reward_model.goals", "'gold'", "a list of texts"]),
        (["reward_model.goals=[it says: gold]"], ["reward_model.goals", "a list of texts"]),
        (["env.options=3"], ["env.options", "'3'", "keys with values"]),
        (["env.options={a: 1, b: 2, a: 3}"], ["env.options", "'a' is given twice"]),
        (["seed=010 # x"], ["seed", "'010 # x'", "a whole number"]),
        (["checkpoint.interval_s=10:00"], ["checkpoint.interval_s", "'10:00'", "a number"]),
        (["env.fold_case=maybe"], ["env.fold_case", "'maybe'", "true or false"]),
        (["run_dir=${HOME}/runs"], ["run_dir", "${", "give the value itself"]),
        (["run_dir=???"], ["run_dir", "'???'", "give the value itself"]),
        (["env.options={size: '${x}'}"], ["env.options", "give the value itself"]),
        (["cluster.mode=connect", "run_dir=runs/x"], ["run_dir", "absolute"]),
        (["policy.crop_size=8"], ["policy.crop_size", "odd"]),
        (["annotator.max_labels_per_s=5", "cluster.mode=inline"], ["annotator.max_labels_per_s", "labels_per_turn"]),
        (["reward_model.goals=['']"], ["reward_model.goals", "none empty"]),
        (
            ["reward_model.name=embedding", "reward_model.goal_once_per_episode=true", "reward_model.permute=true"],
            ["permute"],
        ),
        (["reward_model.epsilon_quantile=-0.5"], ["reward_model.epsilon_quantile", "-0.5"]),
        (["reward_model.warmup_labels=9", "annotator.max_labels=5"], ["warmup_labels", "9", "max_labels (5)"]),
        (["reward.max_intrinsic_share=0"], ["reward.max_intrinsic_share", "got 0"]),
        (["actors.device=cuda:0"], ["actors.device", "got 'cuda:0'", "cluster.worker_gpus=0"]),
        (
            ["actors.device=cuda", "actors.inference=central", "cluster.worker_gpus=1"],
            ["actors.device", "got 'cuda'", "cluster.inference_gpus=0", "an inference actor"],
        ),
        (["actors.inference=central", "cluster.mode=inline"], ["actors.inference", "'central'", "wanted worker"]),
        (
            ["actors.inference=central", "cluster.inference_actors=2"],
            ["cluster.inference_actors", "got 2", "actors.num_workers (1)"],
        ),
        (
            ["service.engine=vllm", "service.tensor_parallel=4"],
            ["service.tensor_parallel", "got 4", "cluster.service_gpus=0"],
        ),
        (["service.endpoint_key_env=sk-SECRET"], ["service.endpoint_key_env", "OPENAI_API_KEY", "is not repeated"]),
        (["service.engine=vlm"], ["service.engine", "'vlm'", "transformers, vllm, openai"]),
        (["annotator.batch_size=2000"], ["annotator.batch_size", "max_items_per_request"]),
        (["actors.num_workers=64"], ["actors.num_workers", "max_policy_lag"]),
        (
            ["cluster.num_learners=2", "learner.rollouts_per_batch=2", "cluster.mode=inline"],
            ["cluster.num_learners", "got 2 with cluster.mode=inline", "one process"],
        ),
        (
            ["cluster.num_learners=2", "learner.rollouts_per_batch=3"],
            ["learner.rollouts_per_batch", "multiple of", "2"],
        ),
        (["learner.num_learners=2"], ["learner.num_learners", "cluster.num_learners"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_remedy(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(preset="nethack_score", overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "SECRET" not in message
    for word in words:
        assert word in message


def test_a_file_may_hold_differences_from_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: oni_oracle\nlearner: {gamma: 0.9}\n")
    config = load_config(file=str(file))
    oracle, score = load_config(preset="oni_oracle"), load_config(preset="oni_score")
    assert (config.learner.gamma, config.env.id) == (0.9, oracle.env.id)
    assert config.policy == oracle.policy == score.policy
    assert oracle.env.id != score.env.id
    file.write_text("extends: oni_oracel\n")
    with pytest.raises(ConfigError, match=r"unknown preset 'oni_oracel'.*did you mean 'oni_oracle'"):
        load_config(file=str(file))
    file.write_text("extends: [debug]\n")
    with pytest.raises(ConfigError, match="unknown preset"):
        load_config(file=str(file))


@pytest.mark.parametrize(
    "text",
    [
        "1.10",
        "010",
        "1_000",
        "1e3",
        "0x1F",
        "20240501_1200",
        "2024-05-01",
        "12:30:00",
        "off",
        "no",
        "~",
        "null",
        "",
        ".inf",
        "=",
        "<<",
        "true",
    ],
)
def test_text_stays_what_was_typed(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"service:\n  model: {text}\nreward_model:\n  name: embedding\n  goals:\n  - {text or 'a'}\n")
    config = load_config(file=str(file), overrides=[f"annotator.rubric={text}", f"env.id={text}"])
    assert (config.service.model, config.annotator.rubric, config.env.id) == (text, text, text)
    assert config.reward_model.goals == [text or "a"]
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "text",
    [
        "runs/exp #3",
        "[::1]:7431",
        "[Kk]ill=0.9",
        "*=0.9",
        "&a",
        "!x",
        "@x",
        "`x",
        "%a",
        "a: b",
        "{a}",
        "'a' or 'b'",
        "- a",
        "|",
    ],
)
def test_signs_of_yaml_mean_nothing_in_the_text_of_an_override(text: str) -> None:
    assert load_config(preset="debug", overrides=[f"service.script={text}"]).service.script == text
    quoted = "'" + text.replace("'", "''") + "'"
    assert load_config(preset="debug", overrides=[f"service.script={quoted}"]).service.script == text


def test_numbers_and_truth_values_are_read_by_what_the_setting_wants(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "seed: 010\ntotal_env_steps: 1e6\nlearner: {gamma: 0, learning_rate: '1e-3'}\n"
        "env: {fold_case: on, fold_digits: 'yes'}\n"
    )
    config = load_config(file=str(file), overrides=["policy.core_skip=No", "actors.num_workers=2.0"])
    assert (config.seed, config.total_env_steps, config.actors.num_workers) == (10, 1_000_000, 2)
    assert (config.learner.gamma, config.learner.learning_rate) == (0.0, 1e-3)
    assert (config.env.fold_case, config.env.fold_digits, config.policy.core_skip) == (True, True, False)


def test_options_that_no_setting_describes_are_what_they_look_like(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "env: {options: {a: 1, b: -2.5, c: 1e-3, d: off, e: ~, f: '1', g: 2024-05-01, h: 007, i: [no, x],"
        " 3: {on: 1:30}, s: 00.5, t: !!str 3, u: 1e999}}\n"
    )
    options = load_config(
        file=str(file), overrides=["env.options.j=a #b", "env.options.k='2'", "env.options.l=", "env.options.i=[3]"]
    ).env.options
    assert options == {
        "a": 1, "b": -2.5, "c": 1e-3, "d": False, "e": None, "f": "1", "g": "2024-05-01", "h": "007", "i": [3],
        "3": {"on": "1:30"}, "s": "00.5", "t": "3", "u": "1e999", "j": "a #b", "k": "2", "l": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: 1\nseed: 7\n", "'seed' is given twice, in lines 1 and 2"),
        (
            "env: {id: CartPole-v1}\nlearner: {gamma: 0.9}\nenv: {captioner: 'info:event'}\n",
            "'env' is given twice, in lines 1 and 3",
        ),
        ("env:\n  options:\n    size: 3\n    'size': 3\n", "'size' is given twice, in lines 3 and 4"),
        ("learner: {gamma: 0.9}\nlearner.gamma: 0.8\n", "learner.gamma is given twice"),
        ("[a]: 1\n", "line 1: a key must be text"),
        ("seed: !!int '3'\n", "line 1 has the tag"),
        ("seed: &a [*a]\n", "nested too deeply"),
        ("env: {options: {<<: x}}\n", "line 1: << merges keys with values, got a scalar"),
        ("env: {options: {<<: [[[a, b]]]}}\n", "line 1: << merges keys with values, got a sequence"),
        ('run_dir: "\\ud83d"\n', "line 1: '\\ud83d' has an escape that is half of a character"),
        (
            "reward_model:\n  goals:\n  - You see: a door\n",
            "got {'You see': 'a door'} in a list, wanted a list of texts",
        ),
        ("run_dir: [a]\n", "run_dir: got a list, wanted text; in a file put it in quotes"),
        ("run_dir: {a: b}\n", "unknown key run_dir.a"),
        ("- seed\n", "must hold keys and values, got a list"),
        ("seed\n", "must hold keys and values, got text"),
    ],
)
def test_a_file_that_says_less_than_it_seems_to_is_refused(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(file=str(file))


def test_the_settings_of_a_run_are_a_configuration(tmp_path: Path) -> None:
    config = load_config(overrides=["run_dir=runs/é \U0001f600", "env.options={a: '1', b: ~, c: 1e-5}"])
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_dict(config), indent=2))
    assert load_config(file=str(saved)) == config


def test_a_mapping_may_be_merged_into_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("env: {options: {x: &x {a: 1, b: 1}, y: {<<: *x, b: 2}, z: {<<: [{a: 3}, *x]}}}\n")
    options = load_config(file=str(file)).env.options
    assert options == {"x": {"a": 1, "b": 1}, "y": {"a": 1, "b": 2}, "z": {"a": 3, "b": 1}}


def test_unknown_presets_and_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'debug'"):
        load_config(preset="debgu")
    with pytest.raises(ConfigError, match="No such file"):
        load_config(file=str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not YAML: .* goes in quotes"):
        load_config(file=str(broken))


def test_only_keys_that_change_the_experiment_are_in_the_diff() -> None:
    old = to_dict(load_config(preset="debug"))
    new = to_dict(
        load_config(
            preset="debug",
            overrides=[
                "total_env_steps=5",
                "logging.console=plain",
                "cluster.mode=local",
                "env.stepping=gymnasium",
                "learner.gamma=0.5",
            ],
        )
    )
    assert experiment_diff(old, new) == ["learner.gamma: 0.99 -> 0.5"]


def test_a_key_that_an_older_version_did_not_write_counts_as_its_default() -> None:
    old, new = to_dict(load_config(preset="debug")), to_dict(load_config(preset="debug"))
    del old["reward"]["trust"], old["robust"], old["terms"], old["env"]["describer"]
    assert experiment_diff(old, new) == []
    new["reward"]["trust"] = "outcome"
    assert experiment_diff(old, new) == ['reward.trust: "none" -> "outcome"']
    del new["learner"]["gamma"]
    assert "learner.gamma: 0.99 -> null" in experiment_diff(old, new)


def test_a_resumed_run_may_find_its_judge_elsewhere() -> None:
    old = to_dict(load_config(preset="debug", overrides=["annotator.address=a:1"]))
    moved = ["annotator.address=b:2,c:3", "annotator.tls_ca=ca.pem", "annotator.token_file=token"]
    assert experiment_diff(old, to_dict(load_config(preset="debug", overrides=moved))) == []


@pytest.mark.parametrize(
    "change",
    [
        *(
            "learner.device=cuda:1",
            "actors.device=cuda",
            "service.device=cpu",
            "learner.torch_threads=4",
            "service.torch_threads=4",
        ),
        *(
            "actors.torch_threads=2",
            "service.nice=0",
            "service.port=7431",
            "service.host=0.0.0.0",
            "service.store=/scratch/j.sqlite",
        ),
        *(
            "service.endpoint=https://other.example/v1",
            "service.endpoint_key_env=OTHER_API_KEY",
            "service.endpoint_concurrency=4",
        ),
        *(
            "service.vllm_python=/opt/vllm/bin/python",
            "service.gpu_memory_utilization=0.5",
            "service.tensor_parallel=2",
        ),
        *(
            "service.max_model_len=2048",
            "service.batch_size=8",
            "service.engine_timeout_s=120",
            "service.hang_timeout_s=5",
        ),
        *(
            "checkpoint.interval_s=60",
            "checkpoint.keep=5",
            "checkpoint.interval_env_steps=7",
            "annotator.max_in_flight=4",
        ),
        *(
            "annotator.batch_size=8",
            "annotator.request_timeout_s=9",
            "annotator.wait_for_first_table_s=60",
            "annotator.max_labels_per_s=0",
        ),
        *(
            "cluster.worker_timeout_s=300",
            "logging.console=quiet",
            "policy.reuse_crops=false",
            "env.stepping=gymnasium",
        ),
    ],
)
def test_a_resumed_run_may_find_another_machine(change: str) -> None:
    here = to_dict(load_config(preset="debug"))
    there = to_dict(load_config(preset="debug", overrides=[change]))
    assert experiment_diff(here, there) == []


@pytest.mark.parametrize(
    "change",
    [
        *(
            "seed=2",
            "env.id=CartPole-v1",
            "env.max_episode_steps=7",
            "env.fold_case=true",
            "actors.envs_per_worker=3",
            "actors.precision=bf16",
        ),
        *(
            "policy.core=gru",
            "learner.gamma=0.5",
            "learner.precision=bf16",
            "learner.rollouts_per_batch=2",
            "reward.count_exponent=1",
        ),
        *(
            "annotator.rubric=nethack_gold",
            "annotator.policy=frequency",
            "annotator.labels_per_turn=1",
            "annotator.max_labels=9",
        ),
        *(
            "service.engine=transformers",
            "service.model=other",
            "service.encoder=other",
            "service.dtype=bfloat16",
            "service.script=a=1",
        ),
        *(
            "service.max_item_bytes=999",
            "reward_model.name=counts",
            "reward_model.threshold=0.3",
            "reward_model.labels=hard",
        ),
    ],
)
def test_a_resumed_run_stays_the_same_experiment(change: str) -> None:
    here = to_dict(load_config(preset="debug"))
    there = to_dict(load_config(preset="debug", overrides=[change]))
    assert [line.split(":")[0] for line in experiment_diff(here, there)] == [change.split("=")[0]]


def test_what_may_change_on_a_resume_exists() -> None:
    keys = {key for key, _, _ in field_docs(RunConfig)}
    assert {*keys, *(key.split(".")[0] for key in keys)} >= MAY_CHANGE_ON_RESUME


def test_credentials_without_the_service_that_they_are_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"annotator\.token_file: got '.*' without annotator\.address"):
        load_config(preset="debug", overrides=["annotator.token_file=token"])
