"""The table of reward models, and what of a configuration does not fit the one it names."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.plan import build_model
from configs.loading import load_config
from reward_models.building import check_safeguards

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["reward_model.name=retreival"], ["reward_model.name", "'retreival'", "did you mean 'retrieval'", "ranking"]),
        (["service.engine=none"], ["service.engine", "none", "retrieval", "judgements"]),
        (["reward_model.goal_once_per_episode=true"], ["reward_model.goal_once_per_episode", "retrieval"]),
        (["reward_model.name=counts", "reward_model.judgements=x"], ["reward_model.judgements", "counts"]),
        (["reward_model.epsilon=1.5", "reward_model.name=ranking"], ["reward_model.epsilon", "epsilon_quantile=-1"]),
        (["reward_model.warmup_labels=9", "reward_model.name=counts"], ["warmup_labels", "asks nothing"]),
    ],
)
def test_a_setting_that_does_not_fit_the_reward_model_is_one_line(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        build_model(load_config(preset="nethack_score", overrides=overrides))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["retrieval", "embedding", "counts", "none"])
@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("ensemble=5", "5"),
        ("noise_rate=0.2", "0.2"),
        ("pseudo_confidence=0.9", "0.9"),
        ("pseudo_share=2", "2.0"),
    ],
)
def test_a_safeguard_of_networks_without_a_network_is_one_line(name: str, override: str, got: str) -> None:
    settings = [f"reward_model.name={name}", f"robust.{override}"]
    with pytest.raises(ValueError) as caught:
        check_safeguards(load_config(preset="nethack_score", overrides=settings))
    key = override.partition("=")[0]
    wanted = "set it to its default, or take classification or ranking"
    got_it = f"robust.{key}: got {got} with reward_model.name={name}, which trains no network"
    assert str(caught.value) == f"{got_it}; {wanted}"


def test_a_safeguard_is_for_the_terms_that_have_a_network() -> None:
    settings = ["robust.ensemble=2", "terms.x.model={name: ranking}"]
    check_safeguards(load_config(preset="nethack_score", overrides=settings))
    check_safeguards(load_config(preset="nethack_score", overrides=["robust.distance_alarm=0.3"]))


MODEL = '''"""A reward model of a test: short captions are good."""

from reward_models.interface import Asks, RewardModel
import numpy as np


class ShortModel(RewardModel):
    """R = 1 for captions of at most ten characters."""

    name = "short"
    asks = Asks.NOTHING

    def score(self, captions, counts):
        """[N] f32."""
        return np.array([float(0 < len(caption.text) <= 10) for caption in captions], np.float32)

    def margins(self, captions):
        """[N] f64."""
        return np.array([10.0 - len(caption.text) for caption in captions])
'''


def test_a_new_model_is_a_file_and_a_line(tmp_path: Path) -> None:
    for package in ("configs", "actors", "llm_server", "reward_models", "learner", "cluster"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "toy_environments.py", tmp_path)
    (tmp_path / "reward_models" / "short.py").write_text(MODEL)
    building = tmp_path / "reward_models" / "building.py"
    text = building.read_text()
    line = "CountsModel, NoneModel)\n"
    assert line in text
    building.write_text(
        text.replace(line, "CountsModel, NoneModel, __import__('reward_models.short').short.ShortModel)\n")
    )
    settings = [
        "env.id=toy_environments:Corridor-v0",
        "total_env_steps=1024",
        "actors.envs_per_worker=4",
        "policy.core=none",
        "policy.hidden_size=16",
        "learner.epochs=1",
        "learner.minibatches=1",
        "logging.tensorboard=false",
    ]
    command = [
        sys.executable,
        "-m",
        "cluster.train",
        "--preset",
        "debug",
        "reward_model.name=short",
        "run_dir=run",
        *settings,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "reward model short" in done.stdout
    assert "1.00" in done.stdout, "the table of what was rewarded most"
