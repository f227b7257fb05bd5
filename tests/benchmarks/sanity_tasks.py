"""The tasks of `sanity` as data: what is played, for how long, and both sides' settings, each with the published recipe
it follows.

Invariant: both arms of a task play the same environment for the same steps; the reference's settings are the recipe's
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENVIRONMENTS = "tests.benchmarks.sanity_environments"
EVALUATION_EPISODES = 100
EVALUATION_ENVS = 10
CURVE_POINTS = 20
CURVE_EPISODES = 100
"""A point of a training curve is the mean return of the newest episodes, this many at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task: the environment, the budget, and how each arm learns it."""

    env_id: str
    """gymnasium id, `module:Id`; the reference plays `reference_env_id` where that differs."""
    env_steps: int
    """Environment steps (of an Atari game: 4 frames each) in training, of all environments together."""
    source: str
    """Where the reference's settings are published."""
    requires: tuple[str, ...] = ()
    """Packages besides gymnasium that the environment imports, as pip names them."""
    env_options: Mapping[str, Any] = field(default_factory=dict)
    """Constructor arguments, of both arms."""
    evaluation_options: Mapping[str, Any] = field(default_factory=dict)
    """Constructor arguments in evaluation, over `env_options`."""
    max_episode_steps: int = 0
    """Step limit; 0 takes the environment's own."""
    reference_env_id: str = ""
    """Where the reference reads the game another way."""
    reference: Mapping[str, Any] = field(default_factory=dict)
    """Stable-Baselines3's PPO: its arguments, `num_envs`, `normalize_reward`; `lin_X` falls from X to 0. Empty: no
    reference arm."""
    overrides: tuple[str, ...] = ()
    """Ours, over `COMMON`."""
    solved: float | None = None
    """Success that counts as solved, of a task without a reference."""


COMMON = (
    "cluster.mode=inline",
    "reward_model.name=none",
    "service.engine=none",
    "reward.extrinsic_coefficient=1.0",
    "reward.intrinsic_coefficient=0.0",
    "reward.extrinsic_clip=1000",
    "env.captioner=tests.toy_environments:say_nothing",
    "actors.precision=fp32",
    "learner.precision=fp32",
    "learner.device=cpu",
    "learner.torch_threads=1",
    "learner.adam_epsilon=1e-5",  # as in Stable-Baselines3, like the next three
    "learner.max_grad_norm=0.5",
    "learner.value_coefficient=0.5",
    "learner.value_clip=1e9",
    "learner.entropy_coefficient=0.0",
    "learner.normalize_returns=false",
    "learner.final_learning_rate_fraction=1.0",
    "policy.core=none",
    "checkpoint.interval_env_steps=0",
    "logging.console=quiet",
    "logging.tensorboard=false",
    f"logging.episode_window={CURVE_EPISODES}",
)
ZOO = "RL Baselines3 Zoo, hyperparams/ppo.yml"


def _t_maze(core: str, *, skip: bool = True) -> Task:
    return Task(
        env_id="tests.toy_environments:TMaze-v0",
        env_options={"length": 10},
        max_episode_steps=100,
        env_steps=120_000,
        source="Bakker 2001",
        overrides=(
            f"policy.core={core}",
            f"policy.core_skip={skip}",
            "policy.core_size=64",
            "policy.hidden_size=64",
            "actors.envs_per_worker=32",
            "actors.rollout_steps=32",
            "learner.epochs=4",
            "learner.minibatches=4",
            "learner.learning_rate=0.001",
            "learner.gamma=0.99",
            "learner.trace_lambda=0.95",
            "learner.ppo_clip=0.2",
            "learner.entropy_coefficient=0.01",
        ),
        solved=0.95,
    )


TASKS: Mapping[str, Task] = {
    "tmaze-lstm": _t_maze("lstm"),
    "tmaze-gru": _t_maze("gru"),
    "tmaze-none": _t_maze("none"),
    "tmaze-lstm-no-skip": _t_maze("lstm", skip=False),
    "tmaze-gru-no-skip": _t_maze("gru", skip=False),
    "cartpole": Task(
        env_id="CartPole-v1",
        env_steps=100_000,
        source=f"{ZOO}, CartPole-v1",
        reference={
            "policy": "MlpPolicy",
            "num_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": "lin_0.001",
            "clip_range": "lin_0.2",
        },
        overrides=(
            "actors.envs_per_worker=8",
            "actors.rollout_steps=32",
            "policy.hidden_size=64",
            "learner.epochs=20",
            "learner.minibatches=1",
            "learner.trace_lambda=0.8",
            "learner.gamma=0.98",
            "learner.learning_rate=0.001",
            "learner.final_learning_rate_fraction=0.0",
            "learner.ppo_clip=0.2",
        ),
    ),
    "doorkey": Task(
        env_id=f"{ENVIRONMENTS}:OneHotDoorKey-v0",
        env_steps=100_000,
        source=(
            f"{ZOO}, MiniGrid-DoorKey-5x5-v0; in both arms observations one-hot instead of normalised, and 16"
            " environments of 64 steps instead of 8 of 128"
        ),
        requires=("minigrid",),
        reference={
            "policy": "MlpPolicy",
            "num_envs": 16,
            "n_steps": 64,
            "batch_size": 64,
            "gae_lambda": 0.95,
            "gamma": 0.99,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 2.5e-4,
            "clip_range": 0.2,
            "normalize_reward": True,
        },
        overrides=(
            "actors.envs_per_worker=16",
            "actors.rollout_steps=64",
            "policy.hidden_size=64",
            "learner.epochs=10",
            "learner.minibatches=16",
            "learner.trace_lambda=0.95",
            "learner.gamma=0.99",
            "learner.learning_rate=0.00025",
            "learner.ppo_clip=0.2",
            "learner.normalize_returns=true",
        ),
    ),
    "minihack": Task(
        env_id="MiniHack-Room-Random-5x5-v0",
        reference_env_id=f"{ENVIRONMENTS}:OneHotRoom-v0",
        max_episode_steps=15,
        env_steps=25_000,
        source=(
            "none is published for PPO on MiniHack's rooms: Stable-Baselines3's defaults with 8 environments of 128"
            " steps"
        ),
        requires=("nle", "minihack"),
        reference={
            "policy": "MlpPolicy",
            "num_envs": 8,
            "n_steps": 128,
            "batch_size": 128,
            "n_epochs": 10,
            "ent_coef": 0.01,
        },
        overrides=(
            "env.captioner=message",
            "actors.envs_per_worker=8",
            "actors.rollout_steps=128",
            "policy.hidden_size=64",
            "policy.embedding_size=16",
            "learner.epochs=10",
            "learner.minibatches=8",
            "learner.trace_lambda=0.95",
            "learner.gamma=0.99",
            "learner.learning_rate=0.0003",
            "learner.ppo_clip=0.2",
            "learner.entropy_coefficient=0.01",
        ),
    ),
    "freeway": Task(
        env_id=f"{ENVIRONMENTS}:Atari-v0",
        env_options={"game": "freeway", "size": 42},
        evaluation_options={"whole_games": True},
        max_episode_steps=27_000,
        env_steps=100_000,
        source=(
            f"{ZOO}, atari; 42 x 42 pixels instead of 84 x 84 in both arms, and the learning rate falls within this"
            " budget"
        ),
        requires=("ale-py", "opencv-python-headless"),
        reference={
            "policy": "CnnPolicy",
            "num_envs": 8,
            "n_steps": 128,
            "batch_size": 256,
            "n_epochs": 4,
            "ent_coef": 0.01,
            "vf_coef": 0.5,
            "learning_rate": "lin_2.5e-4",
            "clip_range": "lin_0.1",
        },
        overrides=(
            "actors.envs_per_worker=8",
            "actors.rollout_steps=128",
            "policy.hidden_size=512",
            "learner.epochs=4",
            "learner.minibatches=4",
            "learner.trace_lambda=0.95",
            "learner.gamma=0.99",
            "learner.learning_rate=0.00025",
            "learner.final_learning_rate_fraction=0.0",
            "learner.ppo_clip=0.1",
            "learner.entropy_coefficient=0.01",
        ),
    ),
}
