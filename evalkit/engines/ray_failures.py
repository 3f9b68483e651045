"""What Ray itself fails in: whether a task is worth another attempt, and what the user is told."""

from __future__ import annotations

from typing import Any, Final

from evalkit.errors import EngineError

_CLUSTER: Final = "the Ray cluster"


def is_of_ray(cause: Any) -> bool:
    """Whether Ray failed in a task, as when it cannot bring the shared value to the node, and not the task itself."""
    from ray import exceptions

    is_ray = isinstance(cause, exceptions.RayError) and not isinstance(cause, exceptions.RayTaskError)
    return is_ray and type(cause) is not exceptions.RayError  # which stands for an exception that has no pickle


def is_final(error: Exception) -> bool:
    """Whether a task that ended so is not to be handed out again: Ray has done so itself, or never can do it."""
    from ray import exceptions

    never = (exceptions.TaskUnschedulableError, exceptions.LocalRayletDiedError, exceptions.TaskCancelledError)
    return isinstance(error, (*_lost(), *never))


def _lost() -> tuple[type[Exception], ...]:
    from ray import exceptions

    return exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError


def told(error: Exception, n_times: int, n_by_ray: int) -> EngineError:
    """Return what a user is told of a task that Ray could not do, at the last of `n_times`, and what to do.

    Parameters
    ----------
    error
        Of Ray.
    n_times
        How often this process has handed the task out.
    n_by_ray
        How often Ray does it whose workers are lost.
    """
    from ray import exceptions

    if isinstance(error, _lost()):
        return EngineError(
            f"the workers of a task were lost {n_by_ray} times ({first_line(error)})",
            where=_CLUSTER,
            do="Perhaps memory ran out: give the command fewer --workers, and give it again; what was finished is kept",
        )
    advice = (
        (exceptions.RuntimeEnvSetupError, "Look at runtime_env_setup*.log among the nodes' logs"),
        (exceptions.OutOfDiskError, "Make room where the nodes keep Ray's files (/tmp/ray, or `ray start --temp-dir`)"),
        (exceptions.TaskUnschedulableError, "See in `ray status` whether a node with a free processor is there"),
        (exceptions.LocalRayletDiedError, "Look for raylet.err among this node's logs, and start the node again"),
        (
            (exceptions.ObjectLostError, exceptions.ObjectStoreFullError),
            "Give the nodes a larger object store (`ray start --object-store-memory`), and see that they stay",
        ),
    )
    do = next((text for kinds, text in advice if isinstance(error, kinds)), "Look at `ray status` and the nodes' logs")
    times = "" if n_times == 1 else f" in {n_times} attempts"
    return EngineError(
        f"Ray could not do a task{times} ({type(error).__name__}: {first_line(error)})",
        where=_CLUSTER,
        do=f"{do} (logs: /tmp/ray/session_latest/logs); then give the command again: what was finished is kept",
    )


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
