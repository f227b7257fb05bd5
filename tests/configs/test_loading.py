import ast
from pathlib import Path

import pytest

from configs.loading import experiment_diff, field_docs, from_dict, load_config, preset_names, to_dict
from configs.validation import CHOICES, RANGES, ConfigError

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_survives_json(name: str) -> None:
    config = load_config(preset=name)
    assert config.run_dir == str(Path("runs") / name)
    assert from_dict(to_dict(config)) == config


def test_every_field_has_a_docstring_and_a_check_names_real_fields() -> None:
    docs = {key: doc for key, _, doc in field_docs()}
    assert not [key for key, doc in docs.items() if not doc]
    assert not ({*CHOICES, *RANGES} - docs.keys())
    numbers = {key for key, default, _ in field_docs() if isinstance(default, int | float) and not isinstance(default, bool)}
    assert not numbers - RANGES.keys(), "every number has a range"


def test_every_field_is_read_somewhere() -> None:
    read: set[str] = set()
    for package in ("actors", "llm_server", "reward_models", "learner", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not [key for key, _, _ in field_docs() if key.rsplit(".", 1)[-1] not in read]


def test_no_section_grows_beyond_25_fields() -> None:
    sections: dict[str, int] = {}
    for key, _, _ in field_docs():
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
        (["actors.num_workers=1.5"], ["actors.num_workers", "1.5", "int"]),
        (["cluster.mode=cloud"], ["cluster.mode", "'cloud'", "inline, local, connect"]),
        (["learner=3"], ["learner is a section"]),
        (["seed"], ["'seed'", "key=value"]),
        (["seed=[1"], ["seed", "YAML"]),
        (["cluster.mode=connect", "run_dir=runs/x"], ["run_dir", "absolute"]),
        (["policy.crop_size=8"], ["policy.crop_size", "odd"]),
        (["annotator.max_labels_per_s=5", "cluster.mode=inline"], ["annotator.max_labels_per_s", "labels_per_turn"]),
        (["reward_model.goals=['']"], ["reward_model.goals", "none empty"]),
        (["reward_model.goal_once_per_episode=true"], ["reward_model.goal_once_per_episode", "retrieval"]),
        (["reward_model.name=embedding", "reward_model.goal_once_per_episode=true", "reward_model.permute=true"], ["permute"]),
        (["reward_model.name=counts", "reward_model.judgements=x"], ["reward_model.judgements", "counts"]),
        (["reward_model.epsilon_quantile=-0.5"], ["reward_model.epsilon_quantile", "-0.5"]),
        (["reward_model.epsilon=1.5", "reward_model.name=ranking"], ["reward_model.epsilon", "epsilon_quantile=-1"]),
        (["service.engine=none"], ["service.engine", "none", "retrieval", "judgements"]),
        (["reward_model.warmup_labels=9", "annotator.max_labels=5"], ["warmup_labels", "9", "max_labels (5)"]),
        (["reward_model.warmup_labels=9", "reward_model.name=counts"], ["warmup_labels", "asks nothing"]),
        (["reward.max_intrinsic_share=0"], ["reward.max_intrinsic_share", "got 0"]),
        (["actors.device=cuda:0"], ["actors.device", "got 'cuda:0'", "cluster.worker_gpus=0"]),
        (["service.engine=vllm", "service.tensor_parallel=4"], ["service.tensor_parallel", "got 4", "cluster.service_gpus=0"]),
        (["service.endpoint_key_env=sk-SECRET"], ["service.endpoint_key_env", "OPENAI_API_KEY", "is not repeated"]),
        (["service.engine=vlm"], ["service.engine", "'vlm'", "transformers, vllm, openai"]),
        (["annotator.batch_size=2000"], ["annotator.batch_size", "max_items_per_request"]),
        (["actors.num_workers=64"], ["actors.num_workers", "max_policy_lag"]),
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


def test_unknown_presets_and_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'debug'"):
        load_config(preset="debgu")
    with pytest.raises(ConfigError, match="No such file"):
        load_config(file=str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_config(file=str(broken))


def test_only_keys_that_change_the_experiment_are_in_the_diff() -> None:
    old = to_dict(load_config(preset="debug"))
    new = to_dict(
        load_config(
            preset="debug",
            overrides=["total_env_steps=5", "logging.console=plain", "cluster.mode=local", "env.stepping=gymnasium", "learner.gamma=0.5"],
        )
    )
    assert experiment_diff(old, new) == ["learner.gamma: 0.99 -> 0.5"]


def test_a_resumed_run_may_find_its_judge_elsewhere() -> None:
    old = to_dict(load_config(preset="debug", overrides=["annotator.address=a:1"]))
    moved = ["annotator.address=b:2,c:3", "annotator.tls_ca=ca.pem", "annotator.token_file=token", "service.hang_timeout_s=5"]
    moved += ["annotator.wait_for_first_table_s=60"]
    assert experiment_diff(old, to_dict(load_config(preset="debug", overrides=moved))) == []


def test_credentials_without_the_service_that_they_are_for_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"annotator\.token_file: got a file without annotator\.address"):
        load_config(preset="debug", overrides=["annotator.token_file=token"])
