"""Spreads the checkpoints of a sweep over the servers of a Ray cluster.

Each server has a slot: a process that holds GPUs and processors on some node. The driver keeps the queue and hands the
next checkpoint to whoever is free, so that a slow server gets fewer of them, and a lost node costs the checkpoint that
it was at, which another one resumes.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from evalkit.addresses import redact
from evalkit.engines import ray_cluster
from evalkit.engines.local import THREADS_OF_LIBRARIES
from evalkit.errors import EngineError, EvalkitError, ModelError
from evalkit.files import write_text
from evalkit.progress import Rows, progress_rows, say, warn
from evalkit.runs.evaluate import RunResult
from evalkit.runs.mirror import PUBLISH_S
from evalkit.runs.spec import RunSpec, gpus_of_flags
from evalkit.runs.sweep import SWEEP_ID, Checkpoint, swap_key
from evalkit.runs.sweep_news import Line, Mailbox, News, Post
from evalkit.runs.sweep_slot import Job, Outcome, Setup, Slot
from evalkit.terminal import safe

MAX_LOSSES: Final = 3
"""So many servers may be lost over one checkpoint: then it is probably what ends them."""
MAX_FAILURES: Final = 2
"""On so many servers a checkpoint may fail before it is given up."""
_MAX_FALSE_STARTS: Final = 3
_WAIT_S: Final = 1.0
_STOP_S: Final = 30.0
_STOP_POLL_S: Final = 0.2
_LISTEN_S: Final = 30.0
_NO_ROOM_S: Final = 60.0


# -- What the cluster has room for -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A node that is alive, and what it has in all."""

    node_id: str
    name: str
    gpus: float
    cpus: float


@dataclass(frozen=True)
class Plan:
    """How many servers there are to be, and what each of them holds."""

    n_servers: int
    gpus: int
    cpus: int

    def __str__(self) -> str:
        holds = [_counted(self.gpus, "GPU")] if self.gpus else []
        return f"{_counted(self.n_servers, 'server')} ({' and '.join([*holds, _counted(self.cpus, 'CPU')])} each)"


def make_plan(nodes: Sequence[Node], spec: RunSpec, n_jobs: int) -> Plan:
    """Decide on the servers.

    By default each gets the GPUs that vLLM's flags ask for, usually one, and an equal share of its node's processors;
    without any GPU in the cluster, one server gets the processors of a whole node, of the smallest one.

    Raises
    ------
    EngineError
        No node has room for a server.
    """
    gpus = spec.gpus_per_server
    if gpus is None:
        wanted = gpus_of_flags(spec.vllm_args) if spec.backend == "vllm" else 1
        gpus = wanted if any(node.gpus >= 1 for node in nodes) else 0
    most = int(max((node.gpus for node in nodes), default=0))
    if gpus > most:
        raise EngineError(
            f"no node of the cluster has {_counted(gpus, 'GPU')}; the most is {most}",
            where="--gpus-per-server" if spec.gpus_per_server is not None else "--vllm-args",
            do=f"Give --gpus-per-server {most} or less, or add such a node",
        )
    able = [node for node in nodes if node.gpus >= gpus and node.cpus >= 1]
    cpus = spec.cpus_per_server or min((_share(node, gpus) for node in able), default=1)
    n_room = sum(_room(node, gpus, cpus) for node in able)
    if n_room == 0:
        most = int(max((node.cpus for node in able), default=0))
        raise EngineError(
            f"no node of the cluster has room for a server with {_counted(gpus, 'GPU')} and {_counted(cpus, 'CPU')}",
            where="--cpus-per-server" if spec.cpus_per_server else "--engine ray",
            do=f"Give --cpus-per-server {most} or less" if most else "Add nodes with processors to the cluster",
        )
    return Plan(min(n_room, n_jobs, spec.servers or n_room), gpus, cpus)


def _share(node: Node, gpus: int) -> int:
    return max(1, int(node.cpus // (node.gpus // gpus))) if gpus else int(node.cpus)


def _room(node: Node, gpus: int, cpus: int) -> int:
    by_cpus = int(node.cpus // cpus)
    return min(by_cpus, int(node.gpus // gpus)) if gpus else by_cpus


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# -- Who gets what ---------------------------------------------------------------------------------------------------


@dataclass
class Ticket:
    """A job in the queue, the slots and nodes on which it has failed and why, and how many were lost over it."""

    job: Job
    slots: set[int] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    n_losses: int = 0
    why: str = ""


class Queue:
    """The jobs that nobody is at, in order.

    A slot goes on with checkpoints of the same architecture, whose weights can be swapped in. Otherwise it begins with
    the architecture that has the most left for each slot that is at it.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._left = [Ticket(job) for job in jobs]

    def __len__(self) -> int:
        return len(self._left)

    def take(self, slot: int, node: str, key: str | None, keys_of_others: Sequence[str]) -> Ticket | None:
        """Take the next job for a slot that was at `key`; None where the rest has failed there, or on its node."""
        fit = [one for one in self._left if slot not in one.slots and node not in one.nodes]
        if not fit:
            return None
        keys = list(dict.fromkeys(one.job.key for one in fit))
        if key not in keys:
            n_left = {name: sum(one.job.key == name for one in fit) for name in keys}
            key = max(keys, key=lambda name: n_left[name] / (1 + sum(other == name for other in keys_of_others)))
        chosen = next(one for one in fit if one.job.key == key)
        self._left.remove(chosen)
        return chosen

    def after(self, key: str, n_others: int) -> list[str]:
        """Models of `key` that are left, the one first that a slot will probably get next.

        The other slots that are at this architecture will be free before one that begins now.
        """
        models = [one.job.spec.model for one in self._left if one.job.key == key]
        return models[n_others:] + models[:n_others]

    def give_back(self, ticket: Ticket) -> None:
        """Put a job first again."""
        self._left.insert(0, ticket)

    def drop_unfit(self, slots: Mapping[int, str]) -> list[Ticket]:
        """Remove the jobs that have failed on each of these slots (their nodes, by number) or their nodes."""
        hopeless = [
            one for one in self._left if all(number in one.slots or node in one.nodes for number, node in slots.items())
        ]
        self._left = [one for one in self._left if not any(one is other for other in hopeless)]
        return hopeless


# -- The driver ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Held:
    """A slot as the driver sees it: not begun, free, or at a ticket."""

    number: int
    actor: Any
    node: str | None = None
    name: str = ""
    ticket: Ticket | None = None
    key: str | None = None


def sweep_cluster(
    spec: RunSpec,
    jobs: Sequence[tuple[Checkpoint, RunSpec]],
    results: dict[Path, RunResult],
    failed: dict[str, str],
) -> None:
    """Evaluate the checkpoints on a cluster; fill in their results, and why others have none, by path.

    Raises
    ------
    EngineError
        There is no such cluster, it has no room for a server, its nodes do not share the files, or none is left.
    TaskError
        The tasks cannot be loaded on any node.
    """
    ray_cluster.connect(spec.ray_address or ray_cluster.AUTO)
    ray_cluster.check_nodes(ray_cluster.Caller.here(), spec.out.resolve())
    plan = make_plan(_nodes(), spec, len(jobs))
    say(f"{_counted(len(jobs), 'checkpoint')} on {plan}")
    setup = Setup(spec, _sweep_id(spec.out), str(Path.cwd()), PUBLISH_S)
    with progress_rows("checkpoints", len(jobs)) as rows:
        driver = _Driver(plan, setup, Queue(_with_keys(jobs, failed)), rows, results, failed)
        try:
            driver.run()
        finally:
            driver.stop()


def _with_keys(jobs: Sequence[tuple[Checkpoint, RunSpec]], failed: dict[str, str]) -> Iterator[Job]:
    for checkpoint, spec in jobs:
        try:
            yield Job(checkpoint, spec, swap_key(spec.model))
        except ModelError as error:
            _note(checkpoint, str(error), failed)


def _note(checkpoint: Checkpoint, why: str, failed: dict[str, str]) -> None:
    failed[str(checkpoint.path)] = why
    warn(f"{checkpoint.path} could not be evaluated: {why}")


def _sweep_id(out: Path) -> str:
    """What every process of this sweep finds in its directory, also when it is resumed."""
    path = out / SWEEP_ID
    with contextlib.suppress(FileNotFoundError):
        if found := path.read_text(encoding="utf-8").strip():
            return found
    sweep_id = uuid.uuid4().hex
    write_text(path, f"{sweep_id}\n")
    return sweep_id


def _nodes() -> list[Node]:
    """The nodes that are alive; those of one name are told apart by their ids."""
    import ray

    listing: Any = ray.nodes
    alive = [one for one in listing() if one["Alive"]]
    n_named = Counter(one["NodeManagerHostname"] for one in alive)
    return [
        Node(
            one["NodeID"],
            name if n_named[name := one["NodeManagerHostname"]] == 1 else f"{name} ({one['NodeID'][:6]})",
            one["Resources"].get("GPU", 0.0),
            one["Resources"].get("CPU", 0.0),
        )
        for one in alive
    ]


class _Driver:
    """Keeps the queue, and the slots at work, until no job is left."""

    def __init__(
        self,
        plan: Plan,
        setup: Setup,
        queue: Queue,
        rows: Rows,
        results: dict[Path, RunResult],
        failed: dict[str, str],
    ) -> None:
        self._plan, self._setup, self._queue, self._rows = plan, setup, queue, rows
        self._results, self._failed = results, failed
        self._slots: dict[int, _Held] = {}
        # What is awaited, by reference: the slot, and whether it begins or works.
        self._awaited: dict[Any, tuple[_Held, str]] = {}
        self._n_made = self._n_false_starts = self._n_unfit = 0
        self._trouble: EvalkitError | None = None
        self._no_room_since: float | None = None
        self._idle_since: float | None = None
        self._taken_since: float | None = None
        self._is_wait_told = False
        self._mailbox = _make_mailbox()

    def run(self) -> None:
        """Evaluate all jobs."""
        import ray

        while len(self._queue) or self._busy():
            self._hand_out()
            if not self._slots:
                break
            done, _ = ray.wait(list(self._awaited), num_returns=1, timeout=_WAIT_S)
            for reference in done:
                slot, what = self._awaited.pop(reference)
                if slot.number in self._slots:
                    self._take(slot, what, reference)
            self._listen()
            self._look_for_room()

    def stop(self) -> None:
        """End all slots; those at work copy their journals first."""
        import ray

        left, deadline = {slot.number for slot in self._busy()}, time.monotonic() + _STOP_S
        with contextlib.suppress(Exception):  # they are ended in any case
            while left and time.monotonic() < deadline:
                left -= self._listen(is_over=True)
                at_work = [reference for reference, (slot, _) in self._awaited.items() if slot.number in left]
                ended, _ = ray.wait(at_work, num_returns=len(at_work), timeout=_STOP_POLL_S) if at_work else ([], [])
                # What was lost meanwhile tells nothing any more.
                left -= {self._awaited.pop(reference)[0].number for reference in ended if _is_lost(reference)}
        for slot in list(self._slots.values()):
            self._remove(slot)
        with contextlib.suppress(Exception):
            ray.kill(self._mailbox)

    def _busy(self) -> list[_Held]:
        return [slot for slot in self._slots.values() if slot.ticket is not None]

    # -- Slots ---------------------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give the free slots work, make as many slots as are needed, and end those that are not."""
        free = [slot for slot in self._slots.values() if slot.node is not None and slot.ticket is None]
        for slot in free:
            keys = [other.key for other in self._slots.values() if other is not slot and other.key is not None]
            ticket = self._queue.take(slot.number, str(slot.node), slot.key, keys)
            if ticket is not None:
                self._begin(slot, ticket)
        if not len(self._queue):
            # Whoever else uses the cluster may have what is not needed any more.
            for slot in [slot for slot in self._slots.values() if slot.ticket is None]:
                self._remove(slot)
            return
        wanted = min(self._plan.n_servers - self._n_unfit, len(self._queue) + len(self._busy()))
        while len(self._slots) < wanted:
            self._make()
        if not self._slots:
            raise self._trouble or EngineError("no server could be started", where="--engine ray")
        self._give_up_unfit()

    def _give_up_unfit(self) -> None:
        """Give up what has failed on all servers that are there; one that is on its way is waited for, for a while."""
        begun = {slot.number: slot.node for slot in self._slots.values() if slot.node is not None}
        if self._busy() or not begun:
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if len(begun) == len(self._slots) or now - self._idle_since > _NO_ROOM_S:
            for ticket in self._queue.drop_unfit(begun):
                _note(ticket.job.checkpoint, ticket.why, self._failed)
                self._rows.advance()

    def _make(self) -> None:
        import ray

        # Before any library counts them: a task of the other commands has one thread.
        threads = dict.fromkeys(THREADS_OF_LIBRARIES, str(self._plan.cpus))
        kind: Any = ray.remote(Slot)
        kind = kind.options(
            num_cpus=self._plan.cpus,
            num_gpus=self._plan.gpus,
            # One call at a time, and so in the main thread: see `sweep_news`.
            max_concurrency=1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": threads},
        )
        post = Post(self._mailbox, self._n_made)
        slot = _Held(self._n_made, kind.remote(self._n_made, self._setup, post))
        self._n_made += 1
        self._slots[slot.number] = slot
        self._awaited[slot.actor.begin.remote()] = (slot, "begin")

    def _begin(self, slot: _Held, ticket: Ticket) -> None:
        job = ticket.job
        slot.ticket, slot.key = ticket, job.key
        n_others = sum(other.key == job.key for other in self._busy() if other is not slot)
        others = self._queue.after(job.key, n_others)
        self._awaited[slot.actor.work.remote(job, slot.name, others)] = (slot, "work")
        self._log(slot, Line(time.time(), logging.INFO, "evalkit", f"begins with {job.checkpoint.path}", is_told=False))

    def _remove(self, slot: _Held) -> None:
        import ray

        self._slots.pop(slot.number, None)
        self._awaited = {reference: held for reference, held in self._awaited.items() if held[0] is not slot}
        self._rows.hide(slot.number)
        with contextlib.suppress(Exception):  # it may be gone
            # Its process ends, and with it, by the guardian, the server.
            ray.kill(slot.actor)

    def _look_for_room(self) -> None:
        """Wait for a node with room, but not for ever; where others have all of it, wait, and say so.

        Raises
        ------
        EngineError
            None has come.
        """
        if any(slot.node is not None for slot in self._slots.values()):
            self._no_room_since = self._taken_since = None
            return
        plan, now = self._plan, time.monotonic()
        if any(_room(node, plan.gpus, plan.cpus) for node in _nodes() if node.gpus >= plan.gpus):
            # It is only taken by others.
            self._no_room_since = None
            self._taken_since = self._taken_since or now
            if now - self._taken_since > _NO_ROOM_S and not self._is_wait_told:
                warn(
                    f"{_counted(len(self._queue), 'checkpoint')} waiting: no server has begun for "
                    f"{now - self._taken_since:.0f} s. Others probably hold the cluster's GPUs or processors "
                    "(`ray status` shows it)"
                )
                self._is_wait_told = True
            return
        self._no_room_since = self._no_room_since or now
        if now - self._no_room_since > _NO_ROOM_S:
            raise EngineError(
                f"{_counted(len(self._queue), 'checkpoint')} left, and no node is that could hold a server",
                where="the Ray cluster",
                do="Add nodes, and give the same command again: it goes on from here",
            )

    # -- What they say -------------------------------------------------------------------------------------------------

    def _take(self, slot: _Held, what: str, reference: Any) -> None:
        """Take what a slot has answered; errors that are no user's mistakes are raised."""
        import ray

        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._lose(slot, error)
            return
        if what == "begin":
            self._n_false_starts = 0
            self._begun(slot, *answer)
        else:
            self._finish(slot, answer)

    def _begun(self, slot: _Held, node: str, trouble: EvalkitError | None) -> None:
        slot.node = node
        host = next((one.name for one in _nodes() if one.node_id == node), node[:6])
        slot.name = f"server {slot.number} on {host}"
        if trouble is not None:
            self._dismiss(slot, trouble)

    def _finish(self, slot: _Held, outcome: Outcome) -> None:
        # The last words about the job that is done.
        self._listen()
        ticket, slot.ticket = slot.ticket, None
        assert ticket is not None
        self._rows.hide(slot.number)
        if outcome.result is not None:
            self._results[ticket.job.checkpoint.path] = outcome.result
            self._rows.advance()
        elif outcome.unfit:
            assert outcome.failure is not None
            self._queue.give_back(ticket)
            self._dismiss(slot, outcome.failure)
        else:
            # Perhaps it is the node that is ill: each of the checkpoints would fail there.
            ticket.slots.add(slot.number)
            if any(other.node not in (None, slot.node) for other in self._slots.values()):
                ticket.nodes.add(str(slot.node))
            ticket.why = str(outcome.failure)
            if outcome.spoilt:
                # Another process takes its place, if there is work for it.
                self._remove(slot)
            if self._plan.n_servers > 1 and len(ticket.slots) < MAX_FAILURES:
                self._warn(slot, f"{ticket.why}; another server tries it")
                self._queue.give_back(ticket)
                if len(self._slots) == 1:
                    # The others were not needed any more.
                    self._remove(slot)
            else:
                _note(ticket.job.checkpoint, ticket.why, self._failed)
                self._rows.advance()

    def _dismiss(self, slot: _Held, trouble: EvalkitError) -> None:
        """Do without a slot on a node that cannot take part."""
        self._warn(slot, f"takes no part: {trouble}")
        self._trouble = trouble
        self._n_unfit += 1
        self._remove(slot)

    def _lose(self, slot: _Held, error: Exception) -> None:
        """Go on without a slot whose process or node is gone."""
        self._listen()
        ticket, why = slot.ticket, _last_line(error)
        slot.ticket = None
        self._remove(slot)
        if slot.node is None:
            self._n_false_starts += 1
            if self._n_false_starts >= _MAX_FALSE_STARTS:
                raise EngineError(
                    f"servers cannot be started: {why}",
                    where="--engine ray",
                    do="See that evalkit and its models' libraries are installed on each node",
                )
            return
        if ticket is None:
            self._warn(slot, f"is lost ({why})")
            return
        ticket.n_losses += 1
        path = ticket.job.checkpoint.path
        if ticket.n_losses < MAX_LOSSES:
            self._warn(slot, f"is lost at {path}, and another goes on with it ({why})")
            self._queue.give_back(ticket)
        else:
            _note(ticket.job.checkpoint, f"{ticket.n_losses} servers were lost over it: {why}", self._failed)
            self._rows.advance()

    def _listen(self, *, is_over: bool = False) -> set[int]:
        """Take what the slots tell; return the numbers of those that have ended, where all is over."""
        import ray

        try:
            told: dict[int, News] = ray.get(self._mailbox.take.remote(is_over=is_over), timeout=_LISTEN_S)
        except ray.exceptions.RayError:
            # Ray starts it again; the slots keep what they could not send.
            return set()
        for number, news in told.items():
            if (slot := self._slots.get(number)) is not None:
                self._tell(slot, news)
        return {number for number, news in told.items() if news.has_ended}

    def _tell(self, slot: _Held, news: News) -> None:
        for line in news.lines:
            self._log(slot, line)
        if news.bar is not None and slot.ticket is not None:
            text, done, total = news.bar
            self._rows.show(slot.number, f"{slot.name}: {text}", done, total)

    def _warn(self, slot: _Held, message: str) -> None:
        self._log(slot, Line(time.time(), logging.WARNING, "evalkit", message, is_told=True))

    def _log(self, slot: _Held, line: Line) -> None:
        """Log for a slot, in the sweep's log with its name, and tell the user what it would have told."""
        message = redact(line.message)
        record = logging.makeLogRecord(
            {
                "name": line.logger,
                "levelno": line.level,
                "levelname": logging.getLevelName(line.level),
                "msg": message,
                "created": line.created,
                "server": slot.name,
            }
        )
        logging.getLogger(line.logger).handle(record)
        if line.is_told:
            prefix = "warning: " if line.level >= logging.WARNING else ""
            print(f"{prefix}[{safe(slot.name)}] {safe(message)}", file=sys.stderr)


def _make_mailbox() -> Any:
    """Start the mailbox, on the driver's own node: there it is lost only with the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind: Any = ray.remote(Mailbox)
    return kind.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _is_lost(reference: Any) -> bool:
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return True
    return False


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
