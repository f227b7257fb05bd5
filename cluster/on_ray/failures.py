"""What a Ray error says of the actor that failed, in words for the user.

Invariant: a node's loss is told apart from a crash, which alone is the actor's own fault.
"""

import os
import re
from dataclasses import dataclass

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError

from cluster.supervision import last_line

KILL_S = 6.0
"""`ray.kill` ends a process within this, also one that hangs in C (at once) or is stopped (its node waits 5 s before it uses force)."""
NODE_DIED = re.compile(
    r"node (was|is|has) (died|dead|terminated|unreachable)|its node has died|owner's? node has died", re.IGNORECASE
)
EXIT_CODE = re.compile(r"exit code (\d+)")
FATAL = re.compile(r"Fatal Python error: (?!none)(.+)")
NO_TRACE = (
    "it was killed, or exited at once; where nobody did that, its machine was out of memory, and `dmesg` there says so"
)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process somewhere in the cluster."""

    node_id: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an actor is no more."""

    cause: str
    is_node_loss: bool


def this_process() -> ProcessId:
    """The process that calls."""
    return ProcessId(ray.get_runtime_context().get_node_id(), os.uname().nodename, os.getpid())


def failure_of(error: Exception, process: ProcessId | None, stderr: str) -> Failure:
    """What `error` (a RayError, or a TimeoutError of our own) says of an actor; `stderr` are its last words."""
    text = str(error)
    if (
        isinstance(error, NodeDiedError)
        or NODE_DIED.search(text)
        or (process is not None and not _is_alive(process.node_id))
    ):
        return Failure(f"its node{f' {process.host}' if process else ''} is gone", True)
    if isinstance(error, RayTaskError):
        cause = error.cause
        return Failure(
            f"{type(cause).__name__}: {last_line(str(cause))}" if isinstance(cause, Exception) else last_line(text),
            False,
        )
    if isinstance(error, OutOfMemoryError):
        return Failure(f"out of memory, ended by Ray: {last_line(text)}", False)
    if isinstance(error, ActorUnavailableError):
        return Failure("it could not be reached any more", False)
    if not isinstance(error, RayError):
        return Failure(text, False)
    fatal, code = FATAL.search(stderr), EXIT_CODE.search(text)
    if fatal:
        return Failure(f"it crashed in native code: {fatal[1]}", False)
    if code:
        return Failure(f"it exited with code {code[1]}", False)
    if "Traceback" in text or getattr(error, "actor_init_failed", False):
        return Failure(last_line(text), False)
    return Failure(NO_TRACE, False)


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
