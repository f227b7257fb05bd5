"""Builds the vector environment that a configuration describes."""

from actors.environments.camera import Camera
from actors.environments.errors import close_quietly
from actors.environments.lookup import find_environment, load_creator
from actors.environments.vector import SeedStream, VectorEnvironment
from actors.goals.entry import GoalEntryEnvironment
from configs.schema import EnvConfig, PolicyConfig


def make_environment(
    config: EnvConfig,
    *,
    num_envs: int,
    run_seed: int,
    worker_index: int,
    stream: str = "train",
    policy: PolicyConfig | None = None,
    first_env: int = 0,
    camera: Camera | None = None,
) -> VectorEnvironment:
    """`num_envs` environments as `config` describes them, seeded by (run_seed, stream, worker_index, environment,
    episode). `policy` (None: the defaults) decides what is observed: NetHack's window, the instruction word by
    word, the previous action and reward, and the goal. `first_env` is the first environment's number. With a
    `camera`, a single environment also shows what people see: NetHack in the observations `tty_chars`, `tty_colors`
    and `tty_cursor`, any other on the camera's film. Raises ValueError, in one line, for an unknown id, options
    that the environment does not take, a captioner that does not fit, and spaces that no network here reads;
    EnvironmentFailure for whatever the environment raises."""
    policy = policy or PolicyConfig()
    seeds = SeedStream(run_seed=run_seed, stream=stream, worker_index=worker_index, first_env=first_env)
    env = _make(config, policy, num_envs, seeds, camera)
    try:
        if policy.instruction != "none":
            _check_instruction(policy.instruction, env, config.id)
        if policy.previous_action or policy.previous_reward:
            from actors.previous_step import PreviousStepEnvironment

            env = PreviousStepEnvironment(env, policy)
        return GoalEntryEnvironment(env) if policy.reads_goal else env
    except BaseException:
        env.close()
        raise


def _check_instruction(name: str, env: VectorEnvironment, env_id: str) -> None:
    entries = env.spec.observations
    if name not in entries or not entries[name].is_text:
        what = f"got {name!r}, but {env_id!r} observes no text of that name (it has {', '.join(entries)})"
        raise ValueError(f"policy.instruction: {what}; wanted none")


def _make(
    config: EnvConfig, policy: PolicyConfig, num_envs: int, seeds: SeedStream, camera: Camera | None
) -> VectorEnvironment:
    from actors.environments.gymnasium_vector import GymnasiumEnvironment, make_single
    from actors.environments.wrappers import descends_from_nethack, nethack_within

    spec = find_environment(config.id)
    if not descends_from_nethack(load_creator(spec)) or spec.additional_wrappers:
        first = make_single(spec, config, camera)  # it may still be NetHack, whatever its registration says
        is_nethack, notices = nethack_within(first, spec.id, config.captioner)
        if not is_nethack:
            instruction = None if policy.instruction == "none" else policy.instruction
            return GymnasiumEnvironment(spec, config, num_envs, seeds, first, notices, camera, instruction)
        close_quietly(first)
    from actors.environments.nethack.vector import NetHackEnvironment

    return NetHackEnvironment(spec, config, num_envs, seeds, policy, shows_terminal=camera is not None)
