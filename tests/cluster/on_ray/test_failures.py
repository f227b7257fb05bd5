"""What the user is told of an actor that failed, by the errors that Ray gives."""

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayTaskError

from cluster.on_ray.failures import NO_TRACE, actor_failure

KILLED = (
    "The actor died unexpectedly before finishing this task. Its process has died because all references were dropped."
)
EXITED = "Worker unexpectedly exits with a connection error code 2. End of file. Its exit code 77, or so. exit code 77"


def died(message: str) -> ActorDiedError:
    return ActorDiedError(
        ActorDiedErrorContext(error_message=message, actor_id=b"a" * 16, class_name="WorkerActor", pid=7)
    )


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("collect", f"Traceback (most recent call last):\n  ...\n{type(cause).__name__}: {cause}", cause)


@pytest.mark.parametrize(
    ("error", "stderr", "cause"),
    [
        (task_error(ValueError("first\nsecond")), "", "ValueError: second"),
        (
            OutOfMemoryError("long\nthe node ran out of memory"),
            "",
            "out of memory, ended by Ray: the node ran out of memory",
        ),
        (ActorUnavailableError("no answer", b"a" * 16), "", "it could not be reached any more"),
        (TimeoutError("no rollout within 5 s"), "", "no rollout within 5 s"),
        (died(KILLED), "Fatal Python error: Segmentation fault", "it crashed in native code: Segmentation fault"),
        (died(KILLED), "Fatal Python error: none of that", NO_TRACE),
        (died(EXITED), "", "it exited with code 77"),
        (ActorDiedError(task_error(OSError("no such game"))), "", "OSError: no such game"),
        (died(KILLED), "a warning of some library", NO_TRACE),
    ],
)
def test_the_cause_is_said_in_a_line_and_is_the_actors_own(error: Exception, stderr: str, cause: str) -> None:
    failure = actor_failure(error, None, stderr)
    assert (failure.cause, failure.is_node_loss) == (cause, False)


@pytest.mark.parametrize(
    "error",
    [
        NodeDiedError("gone"),
        died("The actor died because its node has died. Node Id: 0123."),
        died("The actor's owner's node has died."),
    ],
)
def test_a_lost_node_is_not_the_actors_fault(error: Exception) -> None:
    failure = actor_failure(error, None, "")
    assert failure.is_node_loss
    assert failure.cause == "its node is gone"
