"""The connection to a Ray cluster, and what each of its nodes must have: the same versions, and the same files."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import evalkit
from evalkit.engines.local import THREADS_OF_LIBRARIES
from evalkit.errors import EngineError
from evalkit.files import write_text
from evalkit.progress import say

AUTO: Final = "auto"
_WHERE: Final = "--ray-address"
_REACH_S: Final = 10.0
_CHECK_S: Final = 120.0

_NOTES: Final = b"evalkit"

# One thread for each task: a node runs as many tasks as it has processors.
_RUNTIME: Final = {"env_vars": dict.fromkeys(THREADS_OF_LIBRARIES, "1")}


@dataclass(frozen=True)
class Caller:
    """What gives the tasks: the versions that workers must have, too, and the folder that relative names start from.

    And files that workers must see, each for a folder that they and the caller write in.
    """

    evalkit: str
    python: str
    folder: str
    tokens: tuple[str, ...] = ()

    @classmethod
    def here(cls) -> Caller:
        """This process."""
        return cls(evalkit.__version__, platform.python_version(), str(Path.cwd()))


def check_caller(caller: Caller) -> None:
    """Refuse, in a worker, tasks from another version.

    Raises
    ------
    EngineError
        This worker has another version of evalkit or Python.
    """
    _check_versions((caller.evalkit, caller.python), (evalkit.__version__, platform.python_version()), platform.node())


_seen: set[str] = set()
"""Tokens that this worker has seen."""


def check_tokens(tokens: Sequence[str]) -> None:
    """Refuse, in a worker, tasks whose files this node would not share; it looks once.

    Raises
    ------
    EngineError
        This node does not see a token.
    """
    for token in tokens:
        if token not in _seen:
            if not _sees(token):
                raise _unseen(_this_node(), Path(token).parent)
            _seen.add(token)


@contextlib.contextmanager
def tokens(folders: Iterable[Path]) -> Iterator[tuple[str, ...]]:
    """Let a file lie in each folder that is still there, for workers to look for, until the end of the block."""
    made = [_token(folder) for folder in folders if folder.is_dir()]
    try:
        yield tuple(map(str, made))
    finally:
        for one in made:
            one.unlink(missing_ok=True)


def _token(folder: Path) -> Path:
    token = folder / f".seen-{uuid.uuid4().hex[:8]}.tmp"
    write_text(token, "written by the command, looked for by each node of the cluster\n")
    return token


def _sees(token: str) -> bool:
    with contextlib.suppress(OSError):  # a listing makes a network file system look again
        list(Path(token).parent.iterdir())
    return Path(token).exists()


def _unseen(node: str, folder: Path) -> EngineError:
    return EngineError(
        f"the node does not see {folder}",
        where=node,
        do="Give an --out that all nodes see under the same name (a shared file system), and a corpus likewise",
    )


def _this_node() -> str:
    import ray

    name, address = platform.node(), ray.util.get_node_ip_address()
    return f"node {name} ({address}, {ray.get_runtime_context().get_node_id()[:8]})"


def _check_versions(wanted: tuple[str, str], found: tuple[str, str], node: str) -> None:
    for name, mine, other in zip(("evalkit", "Python"), wanted, found, strict=True):
        if mine != other:
            raise EngineError(
                f"this node of the Ray cluster has {name} {other}, and the command was given with {mine}",
                where=node,
                do=f"Let all nodes have the same {name}",
            )


def connect(address: str) -> None:
    """Connect this process to a cluster, unless it is connected; see `RayEngine`.

    Raises
    ------
    EngineError
        Ray is not installed, this is no address, nothing is there, or this process is connected to another cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise EngineError(
            f"Ray is not installed ({error})", where="--engine ray", do="pip install 'evalkit-harness[ray]'"
        ) from None
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    if address not in (AUTO, "local"):
        _check_address(address)
    if ray.is_initialized():
        mine = ray.get_runtime_context().gcs_address
        if address not in (AUTO, "local", mine) and _resolved(address) != _resolved(mine):
            raise EngineError(
                f"this process is connected to the Ray cluster at {mine} already, and {address} is another one",
                where=_WHERE,
                do="Leave the address out, or use another process",
            )
        return
    if address != "local":
        if address != AUTO:
            _reach(address)
        if _connected(address):
            return
    # Nothing of a user's work is told to the makers of Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _init(include_dashboard=False, address="local")
    except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        raise EngineError(
            f"a Ray cluster of this machine cannot be started ({' '.join(str(error).split())})",
            where=_WHERE,
            do="Look at its logs in /tmp/ray/session_latest/logs; where Ray speaks of a token, set RAY_AUTH_MODE=token "
            "before the program imports ray, or take ~/.ray/auth_token away",
        ) from error
    say("there is no Ray cluster here: one of this machine alone was started, and ends with this command")


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        raise EngineError(
            "this is an address for Ray's client, which keeps the work of a driver in a proxy on the cluster",
            where=f"{_WHERE} {address}",
            do="Give the command on a node of the cluster (`ray start --address=HOST:6379` makes a machine one), with "
            "--ray-address HOST:6379 or none",
        )
    if not re.fullmatch(r"[\w.-]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", address):
        raise EngineError(
            "this is no address", where=f"{_WHERE} {address}", do="Write HOST:PORT (6379 by default), or auto"
        )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _resolved(address: str) -> tuple[str, int]:
    host, port = _split(address)
    with contextlib.suppress(OSError):
        host = socket.gethostbyname(host)
    return host, port


def _reach(address: str) -> None:
    """Refuse an address at which nothing answers: Ray would try for a minute."""
    try:
        socket.create_connection(_split(address), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(
            f"nothing answers there ({error})",
            where=f"{_WHERE} {address}",
            do="Start the cluster (`ray start --head` on its first node), or check host and port",
        ) from None


def _connected(address: str) -> bool:
    """Connect to a running cluster; say whether there is one."""
    import ray

    try:
        _init(address=address)
    except ConnectionError as error:
        if address == AUTO:
            return False
        _refuse(address, error)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        _refuse(address, error)
    return True


def _refuse(address: str, error: Exception) -> NoReturn:
    raise EngineError(
        f"the Ray cluster does not let this process in ({' '.join(str(error).split())})",
        where=f"{_WHERE} {address}",
        do="Give the command on a node of the cluster, with its versions of Ray and Python; where it asks for a token, "
        "set RAY_AUTH_MODE=token, and have the token where Ray looks for it (~/.ray/auth_token)",
    ) from error


def _init(**options: Any) -> None:
    import logging

    import ray

    ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env=_RUNTIME, **options)


def remote(function: Callable[..., Any], *, max_retries: int) -> Any:
    """Return a function that runs on the cluster: on one processor, on the nodes in turn."""
    import ray

    return ray.remote(num_cpus=1, max_retries=max_retries, scheduling_strategy="SPREAD", runtime_env=_RUNTIME)(function)


def on_node(function: Any, node: str, *, soft: bool) -> Any:
    """Return a remote function that runs on one node; a soft wish is forgotten when the node is gone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return function.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=soft))


@contextlib.contextmanager
def noted(name: str) -> Iterator[None]:
    """Let all who ask for notes see this name until the end of the block; nothing fails for want of it.

    Notes lie in the table that the head keeps anyhow: an actor that knew as much would be a process of its own.
    """
    with contextlib.suppress(Exception):
        _table()._internal_kv_put(name, b"", namespace=_NOTES)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):
            _table()._internal_kv_del(name, namespace=_NOTES)


def notes(beginning: str) -> list[str] | None:
    """Return the names that are noted now and begin like this, up to a slash; None when nobody answers."""
    with contextlib.suppress(Exception):
        return [name.decode() for name in _table()._internal_kv_list(f"{beginning}/", namespace=_NOTES)]
    return None


def forget_notes(beginning: str) -> None:
    """Remove what `notes` returns."""
    with contextlib.suppress(Exception):
        _table()._internal_kv_del(f"{beginning}/", del_by_prefix=True, namespace=_NOTES)


def _table() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


def n_processors() -> int:
    """Processors that the cluster has now; where nodes come when they are needed, that may be none, and 1 is said."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def others(node: str) -> list[str]:
    """Ids of the nodes that live and are not `node`, those with processors."""
    return [one["NodeID"] for one in _nodes() if one["NodeID"] != node and one["Resources"].get("CPU")]


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def check_nodes(caller: Caller, folder: Path | None = None) -> None:
    """Let each node say its versions, and whether it sees what is written in `folder`.

    Raises
    ------
    EngineError
        A node has other versions, or none, or does not see the folder.
    """
    import ray

    token = _token(folder) if folder else None
    try:
        look = ray.remote(num_cpus=0, max_retries=1, runtime_env=_RUNTIME)(_inspection())
        nodes = _nodes()
        asked = [on_node(look, node["NodeID"], soft=False).remote(str(token or "")) for node in nodes]
        ray.wait(asked, num_returns=len(asked), timeout=_CHECK_S)
        for node, answer in zip(nodes, asked, strict=True):
            _check_answer(node, answer, caller, folder)
    finally:
        if token:
            token.unlink(missing_ok=True)


def _inspection() -> Callable[[str], tuple[str, str, bool]]:
    """A function that travels as code, not by its name: a node may have another evalkit, or none."""

    def inspect(token: str) -> tuple[str, str, bool]:
        try:
            version = importlib.import_module("evalkit").__version__
        except ImportError:
            version = "none"
        if token:  # a listing makes a network file system look again
            with contextlib.suppress(OSError):
                list(Path(token).parent.iterdir())
        return version, platform.python_version(), not token or Path(token).exists()

    return inspect


def _check_answer(node: dict[str, Any], answer: Any, caller: Caller, folder: Path | None) -> None:
    import ray

    name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
    try:
        version, python, is_seen = ray.get(answer, timeout=0.1)
    except ray.exceptions.RayError as error:
        if node["NodeID"] not in {one["NodeID"] for one in _nodes()}:
            return  # it is gone, and does no harm
        raise EngineError(
            f"the node does not start a worker within {_CHECK_S:.0f} s ({type(error).__name__})",
            where=name,
            do="Look at its logs in /tmp/ray/session_latest/logs, or take it out of the cluster",
        ) from error
    _check_versions((caller.evalkit, caller.python), (version, python), name)
    if not is_seen and folder is not None:
        raise _unseen(name, folder)
