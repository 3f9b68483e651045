"""A place for one server of a sweep over a cluster: it evaluates the checkpoints that it is given, one by one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evalkit.errors import EngineError, EvalkitError
from evalkit.progress import bars_to, log_to, logger, say
from evalkit.runs.backends import make_server, on_server, open_backend
from evalkit.runs.evaluate import RunResult, evaluate, finished_run, load
from evalkit.runs.lease import Lease
from evalkit.runs.mirror import PUBLISH_S, Mirror, local_folder, remove_old_folders
from evalkit.runs.provenance import hash_weights
from evalkit.runs.server import VllmServer
from evalkit.runs.spec import RunSpec
from evalkit.runs.sweep import SWEEP_ID, Checkpoint, Swapper
from evalkit.runs.sweep_news import News, Reporter
from evalkit.tasks import LoadedTasks

# A full disk, a stale file handle, a device that is lost: torch raises `RuntimeError` and what is derived from it.
_OF_THE_MACHINE: Final = (OSError, sqlite3.Error, RuntimeError)
_LOOKS: Final = 20
_LOOK_S: Final = 0.25


@dataclass(frozen=True)
class Job:
    """A checkpoint, what is to be run with it, and the hash of what it must share with another to be swapped for it."""

    checkpoint: Checkpoint
    spec: RunSpec
    key: str


@dataclass(frozen=True)
class Setup:
    """What every slot of a sweep is told.

    Attributes
    ----------
    spec
        Of the whole sweep.
    sweep_id
        What the file `sweep.id` in its directory says: who reads the same there shares the file system.
    folder
        The working directory of the driver, in which relative paths count.
    publish_s
        Seconds between two copies of a journal: see `Mirror`.
    """

    spec: RunSpec
    sweep_id: str
    folder: str
    publish_s: float = PUBLISH_S


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its run, or why there is none.

    `unfit` blames the slot, not the checkpoint; `spoilt` says that its process may not be fit for another job.
    """

    result: RunResult | None = None
    failure: EvalkitError | None = None
    unfit: bool = False
    spoilt: bool = False


class Slot:
    """Runs in a process of its own on a node of the cluster, which may be lost at any time.

    It takes one call at a time, so that jobs run in the main thread: see `sweep_news`. What it has to tell meanwhile
    goes to `post`, which also says when all is to end.
    """

    def __init__(self, number: int, setup: Setup, post: Callable[[News], bool | None]) -> None:
        self._number, self._setup = number, setup
        self._reporter = Reporter(post, self._end)
        self._loaded: LoadedTasks | None = None
        self._server: VllmServer | None = None
        self._swapper: Swapper | None = None
        self._mirror: Mirror | None = None
        self._ahead = ThreadPoolExecutor(max_workers=1)

    def begin(self) -> tuple[str, EvalkitError | None]:
        """Return the node's id, and what makes it unfit for this sweep, if something does."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        gpus, threads = os.environ.get("CUDA_VISIBLE_DEVICES") or "none", os.environ.get("OMP_NUM_THREADS")
        logger.info("on node %s, process %d, threads: %s, GPUs: %s", node, os.getpid(), threads, gpus)
        try:
            self._check_files()
            remove_old_folders()
        except EvalkitError as error:
            return node, error
        return node, None

    def work(self, job: Job, name: str, others: Sequence[str]) -> Outcome:
        """Evaluate one checkpoint; `others` may come later, the first of them probably next.

        When it returns, all that was logged about it is told. A bug is raised.
        """
        # Not before: now the driver has a name for this slot.
        self._reporter.start()
        try:
            with bars_to(self._show):
                return self._outcome(job, name, others)
        finally:
            self._reporter.bar = None
            self._reporter.send()

    def _end(self) -> None:
        """Copy the journal to where it belongs, and end the server, while a job may be under way."""
        if self._mirror is not None:
            with contextlib.suppress(Exception):  # it is on its way out
                self._mirror.publish()
        if self._server is not None:
            with contextlib.suppress(Exception):
                self._server.stop()

    def _outcome(self, job: Job, name: str, others: Sequence[str]) -> Outcome:
        try:
            loaded = self._ready(job)
        except EvalkitError as error:
            return Outcome(failure=error, unfit=True)
        except _OF_THE_MACHINE as error:
            return Outcome(failure=_machine_error(job, error), unfit=True)
        try:
            return Outcome(result=self._evaluate(job, loaded, name, others))
        except EvalkitError as error:
            return Outcome(failure=error)
        except _OF_THE_MACHINE as error:
            # After an error of CUDA nothing works in this process any more.
            return Outcome(failure=_machine_error(job, error), spoilt=isinstance(error, RuntimeError))

    def _show(self, text: str, done: float, total: float | None) -> None:
        self._reporter.bar = (text, done, total)

    def _check_files(self) -> None:
        """Refuse a node that does not see the driver's files.

        Raises
        ------
        EngineError
            The directory of the sweep is another one here, or the working directory is not there.
        """
        with contextlib.suppress(OSError):
            # Relative paths stay as they are in the records, so that a sweep goes on with either engine.
            os.chdir(self._setup.folder)
        out, found = self._setup.spec.out, None
        for _ in range(_LOOKS):
            with contextlib.suppress(OSError):
                found = (out / SWEEP_ID).read_text(encoding="utf-8").strip()
            if found == self._setup.sweep_id:
                return
            # Network file systems remember for some seconds that a file was not there.
            time.sleep(_LOOK_S)
        raise EngineError(
            f"the node does not see {out.absolute()} as the driver does",
            where=_host(),
            do="Give --out on a file system that all nodes share, and start from a folder that they share",
        )

    def _ready(self, job: Job) -> LoadedTasks:
        """Launch the server, load the tasks while it starts."""
        spec = self._setup.spec
        if spec.backend == "vllm" and self._server is None:
            self._server = make_server(spec.model_copy(update={"model": job.spec.model}), swappable=True)
            self._server.log = spec.out / f"server-{self._number}.log"
            self._swapper = Swapper(self._server)
            self._server.launch()
        if self._loaded is None:
            self._loaded = load(spec)
        return self._loaded

    def _evaluate(self, job: Job, loaded: LoadedTasks, name: str, others: Sequence[str]) -> RunResult:
        spec = job.spec
        with Lease(spec.out, name) as lease, log_to(spec.out / "log.jsonl"):
            # A slot of a driver that was killed may have gone on for a moment, and finished the run.
            if (finished := finished_run(spec, overwrite=False)) is not None:
                return finished
            folder = local_folder(spec.out, self._setup.sweep_id)
            self._mirror = Mirror(folder, every_s=self._setup.publish_s, check=lease.check)
            with contextlib.ExitStack() as stack:
                if self._swapper is None:
                    backend = stack.enter_context(open_backend(spec))()
                else:
                    self._swapper.serve(spec.model, others)
                    backend = on_server(self._swapper.server, spec)
                if others:
                    self._ahead.submit(hash_weights, Path(others[0]))
                result = evaluate(spec, loaded, backend, job.checkpoint.place, open_journal=self._mirror.open)
        say(f"{job.checkpoint.path}: {result.summary()}")
        return result


def _machine_error(job: Job, error: Exception) -> EngineError:
    """One server's trouble, which the others need not have: its traceback is for the log."""
    logger.error("%s\n%s", job.checkpoint.path, "".join(traceback.format_exception(error)))
    first = str(error).partition("\n")[0]
    return EngineError(
        f"{type(error).__name__}: {first}" if first else type(error).__name__,
        where=_host(),
        do="The traceback is in sweep.jsonl; look at the node's disk and devices, and give the same command again",
    )


def _host() -> str:
    import platform

    return f"node {platform.node()}"
