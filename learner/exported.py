"""Loads what `delphi export` wrote, from a folder or a Hugging Face id:

    from learner.exported import load_policy
    policy = load_policy("first_policy")
    action = policy.act(obs)  # one observation as the environment gives it; policy.reset() at an episode's start

    from learner.exported import load_reward
    reward = load_reward("first_reward")
    rewards = reward.score(["You kill the newt!"])

Invariant: the folder is all that is read: no run directory, no judge, no environment. It is read as data (JSON and
safetensors), nothing in it is unpickled or executed. A policy acts as the policy of `delphi eval` does with the same
random numbers.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from actors.captions import caption_id, normalize
from actors.environments.single import SingleReader, make_reader
from actors.environments.vector import ArraySpec, EnvironmentSpec
from actors.goals.entry import GOAL
from actors.policy import PolicyNet
from actors.previous_step import ACTION, REWARD, previous_step_entries
from configs.annotation_schema import RewardModelConfig
from configs.errors import did_you_mean, named, one_line
from configs.reward_schema import RobustConfig
from configs.schema import PolicyConfig
from learner.checkpoint_format import DECODING_ERRORS, MAX_TREE_BYTES, decode_tree, parse_json, read_regular
from llm_server.annotation import Caption
from reward_models.building import build_reward_model
from reward_models.classification import ClassificationModel
from reward_models.interface import Asks, RewardModel
from reward_models.ranking import RankingModel
from reward_models.table import RewardTable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
GOAL_VECTORS = "goal_vectors"
"""The tensor of a policy that reads goals which is no weight."""
POLICY_FORMAT, REWARD_FORMAT, FORMAT_VERSION = "delphi-policy", "delphi-reward", 1
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class LoadedPolicy:
    """A trained policy that plays one environment; keeps the recurrent state, and the previous action where its network
    reads it."""

    def __init__(self, net: PolicyNet, reader: SingleReader, config: Mapping[str, Any], seed: int) -> None:
        """`config`: the folder's config.json."""
        interface = config["interface"]
        self.config = config
        self.action_names: list[str] = config["action_names"]
        self._net, self._reader, self._first_action = net.eval(), reader, int(interface["first_action"])
        self._previous = previous_step_entries(config["num_actions"], PolicyConfig(**config["policy"]))
        self.goals: list[str] = config.get("goals", [])
        """What `pursue` takes."""
        self._goal: int | None = None if net.goal_vectors is not None else 0
        self._rng = np.random.default_rng(seed)
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget the last one, but not the goal."""
        self._core, self._last_action = self._net.initial_state(1), 0

    def pursue(self, goal: str | None) -> None:
        """Act towards this one of `goals` from now on, or with None towards none: for networks that read a goal, which
        in training was another one as soon as it was achieved. Raises ValueError for any other."""
        if goal is not None and goal not in self.goals:
            known = f"wanted None or one of its {len(self.goals)} `goals`"
            raise ValueError(f"goal: got {goal!r}{did_you_mean(goal, self.goals)}, {known}")
        self._goal = 0 if goal is None else self.goals.index(goal) + 1

    @torch.no_grad()
    def evaluate(self, obs: Any, reward: float | None = None) -> tuple[np.ndarray, float]:
        """Logits [A] f32 and the value of one observation as the environment returns it; the recurrent state moves on.
        `reward`: the environment's reward that came with it, for networks that read it. Raises ValueError."""
        tensors = {name: torch.from_numpy(array) for name, array in self._reader.read(obs).items()}
        if REWARD in self._previous and self._last_action and reward is None:
            raise ValueError("this policy reads the previous reward: wanted act(obs, reward=...) after the first step")
        if self._goal is None:
            raise ValueError("this policy reads a goal: wanted pursue(GOAL), with one of its `goals` or None, before")
        if self._net.goal_vectors is not None:
            tensors[GOAL] = torch.full((1,), self._goal, dtype=torch.int16)
        previous = {ACTION: self._last_action, REWARD: (reward or 0.0) if self._last_action else 0.0}
        for name, spec in self._previous.items():
            tensors[name] = torch.from_numpy(np.full(1, previous[name], spec.dtype))
        logits, values, self._core = self._net.step(tensors, self._core)
        return logits[0].numpy(), float(values[0])

    def act(self, obs: Any, reward: float | None = None, *, greedy: bool = False) -> int:
        """An action for the environment's `step`, drawn from the policy, or with `greedy` its most likely one; for the
        arguments see `evaluate`."""
        logits, _ = self.evaluate(obs, reward)
        noise = 0.0 if greedy else self._rng.gumbel(size=(1, len(logits)))[0]
        action = int((logits + noise).argmax())
        self._last_action = action + 1
        return action + self._first_action


class LoadedReward:
    """A trained reward model."""

    def __init__(self, table: RewardTable, model: RewardModel, config: Mapping[str, Any]) -> None:
        """`config`: the folder's config.json."""
        self.config = config
        self._table, self._model = table, model
        self._settings = RewardModelConfig(**config["reward_model"])

    @property
    def scores_any_caption(self) -> bool:
        """Whether captions that the run never saw have a reward: it is a function of the text alone."""
        is_of_text = isinstance(self._model, ClassificationModel | RankingModel) or self._model.asks is Asks.NOTHING
        return is_of_text and not self._settings.permute

    def score(self, captions: Sequence[str]) -> np.ndarray:
        """R of each caption, [N] f32, normalised as in training: the run's own reward where the run knew it, else what
        the model gives, or NaN (see `scores_any_caption`)."""
        folds = {name: self.config["environment"][name] for name in ("fold_case", "fold_digits")}
        texts = [normalize(caption.encode("utf-8", "replace"), **folds) for caption in captions]
        ids = np.array([caption_id(text) for text in texts], np.uint64)
        rewards, known = self._table.look_up(ids)
        if known.all():
            return rewards
        given = np.full(len(ids), np.nan, np.float32)
        if self.scores_any_caption:
            asked = [Caption(id=int(number), text=text) for number, text in zip(ids, texts, strict=True)]
            given = self._model.score(asked, np.ones(len(ids), np.int64))
            clip = self._settings.clip
            given = np.clip(given, -clip, clip) if clip else given
        return np.where(known, rewards, given)


def load_policy(place: str | Path, *, seed: int = 0, revision: str | None = None) -> LoadedPolicy:
    """The policy in an exported folder, or in the Hugging Face repository of that id (at `revision`); `seed` draws its
    actions. Raises ValueError for anything else there."""
    config, tensors = _read(place, POLICY_FORMAT, revision)
    try:
        settings = PolicyConfig(**config["policy"])
        observations = {name: _spec(entry) for name, entry in config["observations"].items()}
        net = PolicyNet(EnvironmentSpec(observations=observations, num_actions=config["num_actions"]), settings)
        vectors = tensors.pop(GOAL_VECTORS, None)
        net.load_state_dict(tensors)
        if vectors is not None:
            net.set_goal_vectors(vectors.numpy())
        return LoadedPolicy(net, make_reader(config["interface"], config["environment"]["id"]), config, seed)
    except (RuntimeError, *DECODING_ERRORS) as error:
        raise ValueError(f"the policy in {place} does not fit this version of Delphi: {named(error)}") from None


def load_reward(place: str | Path, *, revision: str | None = None) -> LoadedReward:
    """The reward model in an exported folder or Hugging Face repository. Raises ValueError for anything else there."""
    config, tensors = _read(place, REWARD_FORMAT, revision)
    try:
        state = decode_tree(config["state"], tensors)
        model = build_reward_model(
            RewardModelConfig(**config["reward_model"]), robust=RobustConfig(**config.get("robust", {}))
        )
        model.load_state_dict(state["model"])
        table = RewardTable.build(state["ids"], state["rewards"], (0, 1))
        return LoadedReward(table, model, config)
    except (RuntimeError, *DECODING_ERRORS) as error:
        raise ValueError(f"the reward model in {place} does not fit this version of Delphi: {named(error)}") from None


def spec_as_json(spec: ArraySpec) -> dict[str, Any]:
    """An observation entry for config.json."""
    values = {"num_values": spec.num_values, "is_text": spec.is_text}
    return {"shape": list(spec.shape), "dtype": spec.dtype.name, **values}


def _spec(entry: Mapping[str, Any]) -> ArraySpec:
    return ArraySpec(**{**entry, "shape": tuple(entry["shape"]), "dtype": np.dtype(entry["dtype"])})


def _read(place: str | Path, wanted: str, revision: str | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """config.json and the tensors of a folder. Raises ValueError."""
    folder = _folder(place, revision)
    try:
        # In the hub's cache they are links.
        config = parse_json(read_regular((folder / CONFIG).resolve(), MAX_TREE_BYTES))
        weights = (folder / WEIGHTS).resolve()
        tensors = safetensors.torch.load(read_regular(weights, weights.stat().st_size))
    except (OSError, SafetensorError, *DECODING_ERRORS) as error:
        raise ValueError(f"{place} holds no export of Delphi that can be read: {named(error)}") from None
    got = config.get("format") if isinstance(config, dict) else None
    if got != wanted:
        raise ValueError(f"{place} holds {got or 'no export of Delphi'}, wanted {wanted}")
    if config.get("format_version") != FORMAT_VERSION:
        version = config.get("format_version")
        raise ValueError(f"{place} has format version {version!r}, this version of Delphi reads {FORMAT_VERSION}")
    return config, tensors


def _folder(place: str | Path, revision: str | None) -> Path:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    if not REPOSITORY.fullmatch(str(place)):
        raise ValueError(f"there is no folder {place}, and it is no Hugging Face id (owner/name)")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ValueError(f"there is no folder {place}; for Hugging Face ids: pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(str(place), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the network, the login, the repository: one line for the user
        raise ValueError(f"{place} could not be had from Hugging Face: {one_line(error)}") from None
