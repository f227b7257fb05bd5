"""Plays a run's newest checkpoint on held-out games, beside a blind player, a random one, and a judge that plays.

Invariant: the seeds are of the stream `eval`, which training never uses, and all players meet the same games. The games
of a player that has finished are kept in the run directory, unless there is a time limit.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from actors.environments.factory import make_environment
from actors.environments.vector import EnvironmentSpec, VectorEnvironment
from actors.goals.entry import GoalEntryEnvironment
from actors.goals.sheet import ARRAYS, GoalSheet
from actors.policy import PolicyNet, load_weights
from cluster.run.directory import RunDirectory, find_run
from cluster.run.judge_seat import JUDGE, JudgeSeat
from cluster.run.kept_games import KeptGames, subject_hash
from cluster.wiring import build_guide
from configs.checks import ConfigError
from configs.errors import one_line
from configs.features import without_features
from configs.loading import from_dict
from configs.schema import RunConfig
from learner.checkpoint import load_latest
from learner.evaluation import BlindPlayer, JudgePlayer, Player, PolicyPlayer, RandomPlayer, play
from learner.game_log import LoggedPlayer, PlayedGames
from llm_server.progress import progress

PLAYERS = ("policy", "blind", "random")
"""Played by default; `judge` plays where it is given a seat."""
STREAM = "eval"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is evaluated: a run at its newest checkpoint."""

    run: RunDirectory
    saved: dict[str, Any]  # config.json
    config: RunConfig
    weights: dict[str, Any]  # the policy's, by parameter name
    annotation: dict[str, Any]  # state of the reward pipeline; empty without one
    env_steps: int
    goals: GoalSheet | None  # the newest that its workers were told; None without


@dataclass(frozen=True, slots=True, kw_only=True)
class Games:
    """Which games: `per_env` episodes of each environment, from the seeds of one round."""

    num_envs: int
    per_env: int
    seed: int
    round: int = 0


def load_subject(run_dir: str) -> Subject:
    """Raises ConfigError where there is no run or no checkpoint, and CheckpointError for damaged ones."""
    run, saved = find_run(run_dir)
    state = load_latest(run.checkpoints, parts=("learner", "loop"))
    if state is None:
        advice = "train it for a while, or stop it with Ctrl-C, which writes one"
        raise ConfigError(f"{run_dir} has no complete checkpoint yet; {advice}")
    return Subject(
        run=run,
        saved=saved,
        config=from_dict(saved),
        weights=state["learner"]["weights"],
        annotation=state.get("annotation") or {},
        env_steps=state["loop"]["env_steps"],
        goals=GoalSheet.from_state_dict(state["goals"]) if "goals" in state else None,
    )


def policy_net(subject: Subject, spec: EnvironmentSpec) -> PolicyNet:
    """The run's policy for its environment, with the vectors of its goals. Raises ConfigError where they do not fit."""
    config = subject.config
    net = PolicyNet(spec, config.policy)
    try:
        load_weights(net, subject.weights)
    except RuntimeError as error:
        raise ConfigError(
            f"the checkpoint's policy does not fit {config.env.id} and config.json as they are here"
            f" ({one_line(error, 300)}); take the versions that it was trained with (provenance.json)"
        ) from None
    if subject.goals is not None:
        net.set_goal_vectors(subject.goals.vectors)
    return net


def kept_games(subject: Subject, games: Games) -> KeptGames:
    """The file of these games, which may not exist yet."""
    which = f"episodes_{games.num_envs * games.per_env}_envs_{games.num_envs}_seed_{games.seed}"
    settings = {name: subject.saved.get(name) for name in ("env", "policy")}
    file = subject.run.evaluations / f"step_{subject.env_steps}_{which}.safetensors"
    goals = {} if subject.goals is None else {name: getattr(subject.goals, name) for name in ARRAYS}
    return KeptGames(file, subject_hash(settings, {**subject.weights, **goals}))


class Evaluation:
    """The players' games, each played when it is asked for."""

    def __init__(
        self,
        subject: Subject,
        games: Games,
        say: Say,
        *,
        kept: KeptGames | None = None,
        is_time_up: Callable[[], bool] = lambda: False,
        seat: JudgeSeat | None = None,
    ) -> None:
        """`seat`: of the player `judge`."""
        self._subject, self._games, self._say, self._kept = subject, games, say, kept
        self._is_time_up, self._seat = is_time_up, seat
        self._played: dict[str, PlayedGames] = {}

    def of(self, name: str) -> PlayedGames:
        """The games of a player; the blind one has the action frequencies of the policy in these games. Raises
        OutOfTime, and ConfigError where they cannot be played."""
        if name not in self._played:
            key = self._seat.key_of(name) if self._seat else name
            if self._kept is not None and key in self._kept.players:
                self._played[name] = self._kept.players[key]
                self._say(f"{name}: all games were played before and are kept in {self._kept.file}")
            else:
                if name == "blind":
                    self.of("policy")
                self._played[name] = self._play(name)
                if self._kept is not None:
                    self._kept.keep(key, self._played[name])
        return self._played[name]

    def _play(self, name: str) -> PlayedGames:
        games, env_id = self._games, self._subject.config.env.id
        number = games.num_envs * games.per_env
        with _bounded_threads(self._subject.config), contextlib.closing(self._make(name)) as env:
            player = self._player(name, env)
            logged = LoggedPlayer(player, env)
            seen = {"show": player.see} if isinstance(player, JudgePlayer) else {}
            self._say(f"playing {number} episodes: {name}")
            began = time.monotonic()
            with progress(name, number, self._say) as advance:
                finished = play(env, logged, games.per_env, self._is_time_up, advance, **seen)
            if self._seat and isinstance(player, JudgePlayer):
                self._say(self._seat.summary(player.num_states, time.monotonic() - began))
            if not finished:
                first = env.take_errors()[1].strip().splitlines()[-1]
                raise ConfigError(f"{env_id} raised in every episode, the first time: {first}")
        return logged.games(finished, games.per_env)

    def _make(self, name: str) -> VectorEnvironment:
        config, games = self._subject.config, self._games
        env = self._seat.env if self._seat and name == JUDGE else config.env
        make = partial(make_environment, without_features(env), policy=config.policy, stream=STREAM)
        made = make(num_envs=games.num_envs, run_seed=games.seed, worker_index=games.round)
        if name == "policy" and isinstance(made, GoalEntryEnvironment):
            self._guide(made)
        return made

    def _guide(self, env: GoalEntryEnvironment) -> None:
        """Let a keeper give the policy its goals, as in training."""
        subject, games = self._subject, self._games
        if subject.goals is None:
            self._say("the run had no goals yet at this checkpoint: its policy plays without one")
        else:
            env.guide = build_guide(subject.config, env, subject.goals, f"{STREAM}/{games.seed}/{games.round}")

    def _player(self, name: str, env: VectorEnvironment) -> Player:
        num_envs, seed = self._games.num_envs, self._games.seed + self._games.round
        if name == "random":
            return RandomPlayer(env.spec.num_actions, num_envs, seed)
        if name == "blind":
            frequencies = self._played["policy"].frequencies
            assert frequencies is not None
            return BlindPlayer(frequencies, num_envs, seed)
        if name == JUDGE:
            assert self._seat is not None
            return self._seat.player(env, seed)
        return PolicyPlayer(policy_net(self._subject, env.spec), num_envs, seed)


@contextlib.contextmanager
def _bounded_threads(config: RunConfig) -> Iterator[None]:
    """Torch has the workers' number of threads: more do not help such small batches, and slow the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(config.actors.torch_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
