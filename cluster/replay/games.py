"""The games of a run's evaluation, and the recording of one of them.

Invariant: a recording is made by taking the logged actions in the same environment from the same seed, and has exactly
the metrics of the evaluation; where it has not, there is an error and no recording.
"""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.environments.camera import Camera
from actors.environments.factory import make_environment
from actors.rollout import EpisodeStatistics
from cluster.replay.paid_captions import paid_captions
from cluster.replay.recording import Moment, Recording
from cluster.run.evaluation import PLAYERS, STREAM, Evaluation, Games, Say, Subject, kept_games, load_subject
from configs.checks import ConfigError
from configs.errors import did_you_mean
from configs.features import without_features
from learner.checkpoint_format import CheckpointError
from learner.evaluation import metrics_of
from llm_server.progress import say_on_stderr


class NotReproducible(RuntimeError):
    """A game that was played again went differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """One finished game of an evaluation (kept file -> replay, report)."""

    place: tuple[int, int, int]
    """Its round, environment and episode, each from 0 on."""
    metrics: dict[str, float]
    """Return, length, and the environment's own metrics."""
    seed: int
    """`delphi eval --seed`."""
    actions: np.ndarray
    """[T] ints."""
    values: np.ndarray | None
    """[T] f32: the policy's value estimate before each action; None for other players."""
    before: np.ndarray
    """The actions of the games that the same environment played before."""
    first_episode: int
    """The number of the first of these."""


def evaluated_games(
    run_dir: str,
    *,
    player: str = "policy",
    episodes: int = 64,
    envs: int = 16,
    seed: int = 0,
    say: Say = say_on_stderr,
) -> list[Game]:
    """The games of a player in the evaluation `delphi eval` with the same numbers, in order of environment and episode.
    They are played now where that has not kept them. Raises ConfigError, and OSError where nothing can be read."""
    if player not in PLAYERS:
        raise ConfigError(f"player: got {player!r}{did_you_mean(player, PLAYERS)}, wanted one of {', '.join(PLAYERS)}")
    subject = _load(run_dir)
    envs = min(envs, episodes)
    games = Games(num_envs=envs, per_env=-(-episodes // envs), seed=seed)
    kept = kept_games(subject, games)
    played = kept.players.get(player) or Evaluation(subject, games, say, kept=kept).of(player)
    found = []
    for (env, episode), statistics in sorted(played.episodes.items()):
        actions, values, before = played.of(env, episode)
        found.append(
            Game(
                place=(games.round, env, episode),
                metrics=metrics_of(statistics),
                seed=seed,
                actions=actions,
                values=values,
                before=before,
                first_episode=int(played.places[played.places[:, 0] == env][0, 1]),
            )
        )
    return found


def record(run_dir: str, game: Game, player: str = "policy") -> Recording:
    """Play a game again and record it. Raises NotReproducible where it goes differently, and ConfigError."""
    subject = _load(run_dir)
    # Only an environment that remembers earlier games, such as a count or a generator of its own, needs them too.
    for with_earlier in (False, True) if len(game.before) else (False,):
        take = _play_again(subject, game, with_earlier=with_earlier)
        if take is not None and take.metrics == game.metrics:
            return _recording(subject, game, player, take)
    got = "it does not end with the last of them" if take is None else f"it has return {take.metrics['return']:g}"
    raise NotReproducible(
        f"{subject.config.env.id} does not repeat its games: one of return {game.metrics['return']:g} was played again"
        f" with the same actions, and {got}. Either it does not follow its seeds, or it has changed since the"
        " evaluation, which `delphi eval --again` repeats"
    )


def _load(run_dir: str) -> Subject:
    try:
        return load_subject(run_dir)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Take:
    """A game played again; moments are the reset and each step."""

    metrics: dict[str, float]
    captions: list[bytes]  # raw, of each moment
    rewards: list[float]  # of each step
    terminals: list[tuple[np.ndarray, np.ndarray, np.ndarray] | None]  # of each moment: characters, colours, cursor
    film: list[np.ndarray | None]  # of each moment
    action_names: tuple[str, ...]


def _play_again(subject: Subject, game: Game, *, with_earlier: bool) -> _Take | None:
    """The environment alone takes the game's actions, from the game's start or from that of the first game before it;
    None where the game does not end with its last action."""
    config, camera = subject.config, Camera()
    round_, number, episode = game.place
    env_config = without_features(config.env)
    make = functools.partial(make_environment, env_config, policy=config.policy, stream=STREAM, camera=camera)
    env = make(num_envs=1, first_env=number, run_seed=game.seed, worker_index=round_)
    with contextlib.closing(env):
        first = game.first_episode if with_earlier else episode
        env.load_state_dict({"exact": False, "episodes": np.array([first])})
        obs, captions = env.reset()
        for action in game.before if with_earlier else ():
            step = env.step(np.array([action], np.int64))
            obs, captions = step.obs, [step.losses.get(0) or (step.ends[0].reset_caption if step.ends else b"")]
        if int(env.running_episodes[0]) != episode:
            return None
        terminals, rewards, film, total = [_terminal(obs, 0)], [], camera.film, 0.0
        for t, action in enumerate(game.actions):
            step = env.step(np.array([action], np.int64))
            is_over = bool(step.ends)
            if step.losses or is_over != (t == len(game.actions) - 1):
                return None
            captions.append(step.captions[0])
            rewards.append(float(step.rewards[0]))
            total += rewards[-1]
            terminals.append(_terminal(step.ends[0].final_obs, ...) if is_over else _terminal(step.obs, 0))
        names = env.spec.action_names
    statistics = EpisodeStatistics(
        episode_return=total, length=len(rewards), terminated=bool(step.terminated[0]), info=step.ends[0].info
    )
    return _Take(
        metrics=metrics_of(statistics),
        captions=captions,
        rewards=rewards,
        terminals=terminals,
        film=film or [None] * len(terminals),
        action_names=names,
    )


def _terminal(obs: Mapping[str, np.ndarray], row: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Copies of the terminal's characters, colours and cursor, where there is one."""
    if "tty_chars" not in obs:
        return None
    return obs["tty_chars"][row].copy(), obs["tty_colors"][row].copy(), obs["tty_cursor"][row].copy()


def _recording(subject: Subject, game: Game, player: str, take: _Take) -> Recording:
    paid = paid_captions(subject, take.captions)
    known: dict[str, str] = {}  # most rows of a screen are as they were a step ago: kept once
    moments = []
    for t, (caption, terminal, picture) in enumerate(zip(paid, take.terminals, take.film, strict=True)):
        action = int(game.actions[t - 1]) if t else None
        values = game.values
        screen, colours, cursor = (None, None, None) if terminal is None else _shown(*terminal, known)
        moments.append(
            Moment(
                step=t,
                action=None if action is None else take.action_names[action] if take.action_names else str(action),
                reward=take.rewards[t - 1] if t else 0.0,
                caption=caption.text,
                intrinsic=caption.intrinsic,
                probability=caption.probability,
                value=float(values[t]) if values is not None and t < len(values) else None,
                screen=screen,
                colours=colours,
                picture=picture if screen is None else None,
                cursor=cursor,
            )
        )
    return Recording(
        environment=subject.config.env.id,
        player=player,
        game=game.place,
        metrics=take.metrics,
        moments=tuple(moments),
    )


def _shown(
    characters: np.ndarray, colours: np.ndarray, cursor: np.ndarray, known: dict[str, str]
) -> tuple[tuple[str, ...], np.ndarray, tuple[int, int]]:
    rows = ["".join(c if c.isprintable() else " " for c in row.tobytes().decode("latin-1")) for row in characters]
    row, column = cursor.tolist()
    return tuple(known.setdefault(text, text) for text in rows), (colours & 15).astype(np.uint8), (row, column)
