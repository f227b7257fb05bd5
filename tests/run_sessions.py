"""A run's session for tests of what takes one, without a run."""

from pathlib import Path

from cluster.plan import plan_run
from cluster.run.console import Console
from cluster.run.directory import RunDirectory
from cluster.run.session import RunSession, StopRequest
from configs.loading import load_config
from configs.schema import RunConfig


def session_in(path: Path, config: RunConfig | None = None) -> RunSession:
    """The session of the first start of a run at `path`, which is not created; of the preset debug by default."""
    config = config or load_config(preset="debug")
    console = Console(config.logging, config.total_env_steps, config.cluster.mode)
    return RunSession(
        plan=plan_run(config),
        spec=None,  # type: ignore[arg-type]  # no environment is needed
        rubric_hash=None,
        run=RunDirectory(path),
        epoch=1,
        temporary=path,
        console=console,
        stop=StopRequest(console.say),
    )
