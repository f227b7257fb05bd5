"""Turns a Ray error into the cause of an actor's failure, in a line for the user, and replaces the actor within its
budget.

Invariant: the loss of a node is distinguished from a crash, which is the actor's own fault and alone costs budget.
"""

import logging
import os
import re
from dataclasses import dataclass

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayError, RayTaskError

from cluster.on_ray.slot import Slot
from cluster.supervision import Notices, last_line, restart_pause_s
from configs.errors import one_line

LOG = logging.getLogger(__name__)
KILL_S = 6.0
"""`ray.kill` ends any process in this time: one that hangs in C at once, a stopped one after its node's 5 s."""
NODE_DIED = re.compile(
    r"node (was|is|has) (died|dead|terminated|unreachable)|its node has died|owner's? node has died", re.IGNORECASE
)
EXIT_CODE = re.compile(r"exit code (\d+)")
FATAL = re.compile(r"Fatal Python error: (?!none)(.+)")
NO_TRACE = "it was killed, or exited at once; its machine may have run out of memory (see `dmesg` there)"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process somewhere in the cluster."""

    node_id: str
    host: str
    pid: int


class LearnerLost(RuntimeError):
    """A learner besides the first has died or hangs, so the first cannot go on either; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an actor has failed."""

    cause: str
    is_node_loss: bool


def this_process() -> ProcessId:
    """The calling process."""
    return ProcessId(ray.get_runtime_context().get_node_id(), os.uname().nodename, os.getpid())


def actor_failure(error: Exception, process: ProcessId | None, stderr: str) -> Failure:
    """The failure that `error` (a RayError, or our own TimeoutError) reports; `stderr` is the actor's stderr tail."""
    text = str(error)
    is_lost = isinstance(error, NodeDiedError) or NODE_DIED.search(text)
    if is_lost or (process is not None and not _is_alive(process.node_id)):
        return Failure(f"its node{f' {process.host}' if process else ''} is gone", True)
    return Failure(_crash_cause(error, text, stderr), False)


def replace_failed(
    slot: Slot,
    error: Exception,
    *,
    who: str,
    process: ProcessId | None,
    stderr: str,
    notices: Notices,
    limit: int,
) -> None:
    """Kill the slot's actor, `who` to the user, report why, and let its successor start after the back-off; raises
    GiveUp after more than `limit` (cluster.max_worker_restarts) failures in a row."""
    failure = actor_failure(error, process, stderr)
    where = f" on {process.host}" if process else ""
    text = f"{who}{where} is replaced: {failure.cause}"
    tail = f"; stderr tail: {stderr}" if stderr else ""
    times = notices.note(failure.cause, text + tail)
    if times == 1:
        LOG.error("%s%s\n%s", text, tail, error)
    else:
        LOG.error("%s (%d times by now)", text, times)
    slot.lost(is_own_fault=not failure.is_node_loss)
    if not failure.is_node_loss:
        what = one_line(f"{who} failed: {failure.cause}{tail}")
        slot.back_off(restart_pause_s(slot.failures, what, limit, "cluster.max_worker_restarts"))


def _crash_cause(error: Exception, text: str, stderr: str) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, LearnerLost):
            return str(cause)
        return f"{type(cause).__name__}: {last_line(str(cause))}" if isinstance(cause, Exception) else last_line(text)
    if isinstance(error, OutOfMemoryError):
        return f"out of memory, ended by Ray: {last_line(text)}"
    if isinstance(error, ActorUnavailableError):
        return "it could not be reached any more"
    if not isinstance(error, RayError):
        return text
    if fatal := FATAL.search(stderr):
        return f"it crashed in native code: {fatal[1]}"
    if code := EXIT_CODE.search(text):
        return f"it exited with code {code[1]}"
    return last_line(text) if "Traceback" in text or getattr(error, "actor_init_failed", False) else NO_TRACE


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
