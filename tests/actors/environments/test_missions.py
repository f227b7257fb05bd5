"""Instructions that environments give: read as the numbers of their words, and told as texts."""

import json
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from actors.environments.factory import make_environment
from actors.environments.single import SpaceReader
from actors.environments.split import SplitEnvironment
from actors.environments.vector import MISSION, VectorEnvironment
from actors.environments.word_numbers import MAX_WORDS, NUM_BUCKETS, word_numbers
from actors.networks.words import WordEncoder
from actors.policy import PolicyNet
from configs.schema import EnvConfig, PolicyConfig

TEXTS = ["put the Red ball next to the 12 blue boxes, please! ünï", "", "a " * 70, "don't", "x" * 400, "Go. Stop"]
READS = PolicyConfig(hidden_size=16, core_size=8, instruction="mission")


class Messenger(gymnasium.Env):
    """Carries one of several missions, drawn by the seed; it can be saved."""

    observation_space = spaces.Dict({"number": spaces.Discrete(4), "mission": spaces.Text(80)})
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._mission = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._mission = f"carry letter {'abcdefgh'[self.np_random.integers(8)] * 2}"
        return self._obs(), {"text": ""}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._obs(), 0.0, bool(action), False, {"text": ""}

    def _obs(self) -> dict[str, Any]:
        return {"number": 0, "mission": self._mission}

    def state_dict(self) -> dict[str, Any]:
        return {"mission": self._mission}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mission = state["mission"]


gymnasium.register("Messenger-v0", entry_point=Messenger)
MESSENGER = EnvConfig(id="Messenger-v0", captioner="info:text", max_episode_steps=5)


def make(policy: PolicyConfig = READS, config: EnvConfig = MESSENGER, num_envs: int = 6) -> VectorEnvironment:
    return make_environment(config, num_envs=num_envs, run_seed=1, worker_index=0, policy=policy)


def test_words_have_the_numbers_that_the_network_computes_from_bytes() -> None:
    encoder = WordEncoder(512)
    for text in TEXTS:
        raw = np.frombuffer(text.encode(), np.uint8)
        row = torch.zeros(1, 512, dtype=torch.uint8)
        row[0, : len(raw)] = torch.from_numpy(raw.copy())
        assert encoder.words(row)[0].tolist() == word_numbers(text.encode()).tolist()
    assert word_numbers(b"Go to the RED ball").tolist() == word_numbers(b"go, to the red  ball!").tolist()
    numbers = word_numbers(TEXTS[2].encode())
    assert (numbers.dtype, numbers.shape) == (np.int32, (MAX_WORDS,))
    assert 0 < numbers.min() <= numbers.max() < NUM_BUCKETS


def test_every_process_has_the_same_numbers() -> None:
    program = "import sys, json; from actors.environments.word_numbers import word_numbers as n; "
    program += f"from actors.captions import caption_id as c; t = {TEXTS!r}; "
    program += "print(json.dumps([[n(x.encode()).tolist() for x in t], [c(x) for x in t]]))"
    here = None
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        told = json.loads(run.stdout)
        assert told[0] == [word_numbers(text.encode()).tolist() for text in TEXTS]
        assert here in (None, told)
        here = told


def test_a_mission_is_observed_by_its_words_and_told_as_a_text_of_the_running_episode() -> None:
    env = make()
    obs, _ = env.reset()
    seen = set()
    for _ in range(4):
        assert env.missions is not None
        missions = [*env.missions]
        assert obs[MISSION].tolist() == [word_numbers(mission).tolist() for mission in missions]
        step = env.step(np.array([1, 0, 1, 0, 1, 0]))
        for end in step.ends:
            assert end.final_obs[MISSION].tolist() == word_numbers(missions[end.index]).tolist(), "its own"
        obs, seen = step.obs, seen | {*missions}
    assert len(seen) > 3
    env.close()


def test_a_saved_environment_goes_on_with_its_missions() -> None:
    env, other = make(), make()
    env.reset()
    env.step(np.array([1, 0, 1, 0, 1, 0]))
    other.reset()
    state = json.loads(json.dumps(env.state_dict(), default=lambda array: array.tolist()))
    state |= {name: np.array(state[name]) for name in ("episodes", "steps")}
    assert other.load_state_dict(state) is not None
    assert other.missions == env.missions
    env.close()
    other.close()


def test_the_policy_reads_words_and_an_exported_one_the_same_from_single_observations() -> None:
    env = make(num_envs=8)
    obs, _ = env.reset()
    net = PolicyNet(env.spec, READS)
    torch.nn.init.orthogonal_(net.policy_head.weight, 3.0)
    with torch.no_grad():
        logits, _, _ = net.step({name: torch.from_numpy(x) for name, x in obs.items()}, net.initial_state(8))
    missions = env.missions
    assert missions is not None
    for i, mission in enumerate(missions):
        for j, another in enumerate(missions):
            assert bool((logits[i] - logits[j]).abs().max() < 1e-6) == (mission == another)
    interface = json.loads(json.dumps(env.interface()))
    single = SpaceReader(interface, "Messenger-v0").read({"number": 0, "mission": missions[0].decode()})
    assert single[MISSION][0].tolist() == obs[MISSION][0].tolist()
    env.close()


def test_without_it_a_mission_is_read_as_any_text() -> None:
    env = make(PolicyConfig())
    obs, _ = env.reset()
    assert (obs[MISSION].dtype, obs[MISSION].shape) == (np.uint8, (6, 256))
    assert "is_numbered" not in json.dumps(env.interface())
    env.close()


def test_parts_of_a_worker_tell_their_missions_together() -> None:
    parts = [make(num_envs=3), make(num_envs=2)]
    env = SplitEnvironment(parts)
    env.reset()
    assert env.missions == [*(parts[0].missions or ()), *(parts[1].missions or ())]
    env.close()


@pytest.mark.parametrize("env_id", ["tests.toy_environments:Corridor-v0", "NetHackScore-v0"])
def test_an_environment_without_a_mission_is_refused_in_one_line(env_id: str) -> None:
    with pytest.raises(ValueError, match=r"policy\.instruction: got 'mission', but .* observes no text of that name"):
        make(config=EnvConfig(id=env_id))
    env = make(PolicyConfig(), EnvConfig(id=env_id), num_envs=1)
    assert env.missions is None
    env.close()


def test_babyais_missions_are_read() -> None:
    pytest.importorskip("minigrid")
    config = EnvConfig(id="BabyAI-GoToLocal-v0", captioner="actors.minigrid_captions:describe")
    env = make(config=config)
    obs, _ = env.reset()
    assert env.missions is not None
    assert all(mission.startswith(b"go to ") for mission in env.missions)
    assert len({*env.missions}) > 2
    assert np.count_nonzero(obs[MISSION][0]) == len(env.missions[0].split())
    net = PolicyNet(env.spec, READS)
    net.step({name: torch.from_numpy(array) for name, array in obs.items()}, net.initial_state(6))
    env.close()
