"""Evaluates one model on tasks through lm-eval and writes the run directory."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from evalkit import tables
from evalkit.errors import SpecError, TaskError
from evalkit.files import atomic_path, write_json
from evalkit.progress import log_to, logger, progress_bar, say, warn
from evalkit.runs.engine import Answer, sampling_of
from evalkit.runs.health import Finding, Thresholds, answer_health, combine, symptom_findings, warn_of
from evalkit.runs.journal import Journal
from evalkit.runs.lease import Lease, remove_abandoned
from evalkit.runs.preflight import check_generation_config, check_stop_strings, check_template
from evalkit.runs.provenance import git_state, hardware, hash_weights, package_versions
from evalkit.runs.records import ItemAnswer, all_groups, group_scores, item_answers, sample_rows, scores_of
from evalkit.runs.spec import RunSpec
from evalkit.tasks import LoadedTasks, load_tasks

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.runs.backends import Backend
    from evalkit.runs.lm import Asked
    from evalkit.runs.preflight import PreflightFinding

RECORD: Final = "run.json"
SAMPLES: Final = "samples.parquet"
JOURNAL: Final = "journal.sqlite"
OWNER: Final = "evalkit run"
"""Who holds the lease of a run directory on one machine."""
REQUESTS: Final = "requests.parquet"
"""Which answer of the journal belongs to which request; `evalkit rescore` reads it."""
# In this order: the record first, so that a run that is being removed is no run.
_FILES: Final = (RECORD, SAMPLES, REQUESTS, JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", "log.jsonl")
# lm-eval's own default for Python's random numbers. It stays the same for every seed, because some tasks shuffle
# their documents with it, and seeds must answer the same questions.
_PYTHON_SEED: Final = 0
_REPEATS: Final = "repeats"
_SEVERAL: Final = frozenset({"majority_vote", "take_first_k", "custom"})


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory and its scores, as lm-eval aggregates them, by seed, task and "metric,filter"."""

    name: str
    directory: Path
    results: Mapping[str, Mapping[str, Mapping[str, float]]]
    tasks: Mapping[str, Mapping[str, Any]]
    wall_seconds: float
    n_requests: int
    n_from_journal: int
    n_errors: int
    suspect: bool

    def to_frame(self) -> pd.DataFrame:
        """One row per task, metric and filter: the mean over the seeds."""
        import pandas as pd

        rows = []
        for name, task in self.tasks.items():
            for metric in task["metrics"]:
                key = f"{metric['metric']},{metric['filter']}"
                scores = [of_seed[name][key] for of_seed in self.results.values() if key in of_seed.get(name, {})]
                if scores:
                    rows.append(
                        {
                            "task": name,
                            "metric": metric["metric"],
                            "filter": metric["filter"],
                            "score": sum(scores) / len(scores),
                            "n_items": task["n_evaluated"],
                            "n_seeds": len(scores),
                        }
                    )
        return pd.DataFrame(rows, columns=["task", "metric", "filter", "score", "n_items", "n_seeds"])

    def summary(self) -> str:
        """Each task's first metric, in one line."""
        rows = self.to_frame().drop_duplicates("task")
        return ", ".join(f"{row.task} {row.metric} {row.score:.4f}" for row in rows.itertuples())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**vars(self), "directory": str(self.directory)}


def run(spec: RunSpec, *, overwrite: bool = False) -> RunResult:
    """Evaluate `spec.model` on `spec.tasks` and write `run.json`, `samples.parquet`, `journal.sqlite`, `log.jsonl`.

    A directory that holds the same run, unfinished, is resumed: no finished request is asked again. A finished one is
    returned as it is.

    Parameters
    ----------
    spec
        What to run.
    overwrite
        Remove a different run in the directory first.

    Raises
    ------
    SpecError
        The directory holds a different run.
    TaskError
        A task is unknown, its documents cannot be had, or it executes generated code without consent.
    ModelError
        The model cannot be loaded.
    InputError
        Another process works in the directory, and does not end within a minute.
    """
    check_directory(spec.out)
    if not overwrite and (finished := finished_run(spec, overwrite=False)) is not None:
        return finished
    from evalkit.runs.backends import open_backend
    from evalkit.runs.hf import check_model_path

    if spec.backend != "openai":
        # A wrong path is found at once, before tasks are loaded and gigabytes of weights are read.
        check_model_path(spec.model)
    with Lease(spec.out, OWNER) as lease:
        # Whoever had the lease may have finished the run.
        if (finished := finished_run(spec, overwrite=overwrite)) is not None:
            return finished
        with open_backend(spec) as ready:
            loaded = load(spec)
            with log_to(spec.out / "log.jsonl"):
                return evaluate(spec, loaded, ready(), open_journal=journal_under(lease))


def journal_under(lease: Lease) -> Callable[[Path], AbstractContextManager[Journal]]:
    """Return what opens a journal that is written only as long as the lease is held; the block's end checks it, too."""

    @contextmanager
    def open_journal(path: Path) -> Iterator[Journal]:
        with Journal(path, check=lease.check) as journal:
            yield journal
        lease.check()

    return open_journal


def load(spec: RunSpec) -> LoadedTasks:
    """Load the tasks with the run's settings."""
    loaded = load_tasks(
        spec.tasks,
        tasks_dirs=(spec.tasks_dir,) if spec.tasks_dir else (),
        data_dir=spec.data,
        task_seed=spec.task_seed,
    )
    _configure(loaded, spec)
    return loaded


def evaluate(
    spec: RunSpec,
    loaded: LoadedTasks,
    backend: Backend,
    checkpoint: Mapping[str, Any] | None = None,
    *,
    open_journal: Callable[[Path], AbstractContextManager[Journal]] = Journal,
) -> RunResult:
    """Run all passes on a model that is ready, then write the table and the finished record.

    `checkpoint` says where in a training run the model stands: its `step` and its `series`. `open_journal` opens the
    journal whose place is given; it is complete there before the record is finished.
    """
    from evalkit.runs.lm import EvalLM

    begun, model = time.monotonic(), backend.fingerprint
    place = {"step": None, "series": None} | dict(checkpoint or {})
    record = begin_record(spec, backend, place)
    subset = {name: _subset(name, task, spec) for name, task in loaded.tasks.items()}
    logger.info("run of %s on %s", model.name, ", ".join(loaded.tasks))
    thresholds = Thresholds.parse(spec.health, where="--health")
    early = _preflight(spec, backend, loaded)
    total = sum(
        _n_requests(task, len(subset[name] or task.eval_docs))
        for *_, tasks in _passes(spec, loaded, quiet=True)
        for name, task in tasks
    )
    journal_path = spec.journal or spec.out / JOURNAL
    with open_journal(journal_path) as journal, progress_bar(model.name, total, unit="requests") as bar:
        lm = EvalLM(backend.engine, backend.tokenizer, journal, backend.answer_key, bar.advance)
        common = {"model": model.name, "checkpoint": model.path, "step": place["step"]}
        rows, results, answers = run_passes(spec, loaded, lm, subset, common)
    _warn_of_missing_scores(rows)
    health = judge_health(thresholds, [*early, *lm.preflight], answers)
    _write_requests(spec.out / REQUESTS, lm.asked)
    tables.write(spec.out / SAMPLES, tables.from_rows(tables.SAMPLES, rows), tables.SAMPLES)
    record |= {
        "status": "complete",
        **outcome(loaded, rows, results, subset),
        "health": health,
        "engine": backend.describe(),
        "finished": now(),
        "wall_seconds": time.monotonic() - begun,
        "request_seconds": lm.request_seconds,
        "n_requests": lm.n_requests,
        "n_from_journal": lm.n_from_journal,
        "n_errors": lm.n_errors,
        "tokens": {"prompt": lm.n_prompt_tokens, "output": lm.n_output_tokens},
    }
    write_json(spec.out / RECORD, record)
    return result_of(spec.out, record)


class PassLM(Protocol):
    """An lm-eval model that knows of passes: the one that asks, or one that reads what was answered."""

    answers: Mapping[tuple[str, int], Sequence[Answer]]

    def begin_pass(self, seed: int, repeat: int, subset: Mapping[str, Sequence[int] | None]) -> None:
        """Say which seed, repeat and documents the next requests belong to."""

    def failed(self) -> dict[str, set[int]]:
        """Items of the current pass, by task, of which a request failed."""


Results = dict[str, dict[str, list[dict[str, float]]]]
"""Scores of each repeat, by seed and task; those of a group are one, of its tasks' means over their repeats."""


def run_passes(
    spec: RunSpec,
    loaded: LoadedTasks,
    lm: PassLM,
    subset: Mapping[str, list[int] | None],
    common: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], Results, dict[str, list[ItemAnswer]]]:
    """Evaluate all seeds and repeats; return the rows of the samples table, the scores, and the answers by task."""
    rows: list[dict[str, Any]] = []
    results: Results = {}
    answers: dict[str, list[ItemAnswer]] = {}
    n_items: dict[str, int] = {}
    incomplete: set[tuple[str, str]] = set()
    for seed, repeat, some in _passes(spec, loaded):
        tasks = dict(some)
        output = _one_pass(lm, tasks, subset, spec, seed, repeat)
        of_pass = {**common, "run_id": f"{common['model']}:seed{seed}", "seed": seed, "repeat": repeat}
        for name, samples in output["samples"].items():
            rows.extend(sample_rows(tasks[name], samples, of_pass, lm.answers))
        failed = lm.failed()
        incomplete |= {(str(seed), name) for name, items in failed.items() if items}
        for name, scores in scores_of(output, tasks, failed).items():
            results.setdefault(str(seed), {}).setdefault(name, []).append(scores)
            n_items[name] = output["results"][name]["sample_len"]
        for name, some_answers in item_answers(output, tasks, lm.answers).items():
            answers.setdefault(name, []).extend(some_answers)
    _add_groups(results, all_groups(loaded.groups), incomplete, n_items)
    return rows, results, answers


def _add_groups(
    results: Results, groups: Mapping[str, Any], incomplete: set[tuple[str, str]], n_items: Mapping[str, int]
) -> None:
    """Add the groups' scores to those of each seed; `incomplete` has the seeds and tasks with failed requests."""
    for seed, of_seed in results.items():
        # Without the items that failed, a group would average something else.
        whole = {
            name: group
            for name, group in groups.items()
            if not any((seed, task.task_name) in incomplete for task in group.get_all_tasks())
        }
        means = {name: _mean(scores) for name, scores in of_seed.items()}
        of_seed.update({name: [scores] for name, scores in group_scores(whole, means, n_items).items()})


def outcome(
    loaded: LoadedTasks, rows: Sequence[Mapping[str, Any]], results: Results, subset: Mapping[str, list[int] | None]
) -> dict[str, Any]:
    """What a finished record says of tasks and scores."""
    return {
        "tasks": {name: _task_record(task, rows, subset[name]) for name, task in loaded.tasks.items()},
        "groups": {name: list(members) for name, members in loaded.group_map.items()},
        "results": {seed: {name: _mean(scores) for name, scores in by.items()} for seed, by in results.items()},
    }


def begin_record(spec: RunSpec, backend: Backend, place: Mapping[str, Any] | None) -> dict[str, Any]:
    """Write and return the record of a run that begins.

    Raises
    ------
    SpecError
        The directory holds a run of other weights.
    """
    if (older := read_record(spec.out)) is not None:
        theirs = (older.get("model") or {}).get("weights_sha256")
        if theirs != backend.fingerprint.weights_sha256:
            # The path may be the same and the weights not.
            _refuse_weights(spec, theirs, backend.fingerprint.weights_sha256)
        again = f" with {older['n_errors']} failed requests; they are asked again" if older.get("n_errors") else ""
        say(f"resuming the run in {spec.out}{again}")
    record = {
        "schema_version": ".".join(map(str, tables.VERSION)),
        "name": backend.fingerprint.name,
        "status": "running",
        "spec": spec.settings(),
        "model": asdict(backend.fingerprint),
        "checkpoint": dict(place or {"step": None, "series": None}),
        "journal": str(spec.journal.resolve()) if spec.journal else None,
        "packages": package_versions(),
        "git": git_state(),
        "hardware": hardware(),
        "started": now(),
    }
    write_json(spec.out / RECORD, record)
    return record


def _write_requests(path: Path, asked: Sequence[Asked]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist([one._asdict() for one in asked]), temporary, compression="zstd")


def judge_health(
    thresholds: Thresholds, early: Sequence[PreflightFinding], asked: Mapping[str, Sequence[ItemAnswer]]
) -> dict[str, Any]:
    """Judge the run by what was found before and after; say what is wrong."""
    found: list[Finding | PreflightFinding] = list(early)
    answers = {}
    for name, of_task in asked.items():
        health = answer_health(
            name,
            [one.answer for one in of_task],
            items=[one.doc_id for one in of_task],
            identity=of_task[0].identity if of_task else (),
        )
        found += symptom_findings(health, thresholds)
        answers[name] = health.to_dict()
    warn_of(found[len(early) :])
    return combine(found, thresholds) | {"answers": answers}


def _preflight(spec: RunSpec, backend: Backend, loaded: LoadedTasks) -> list[PreflightFinding]:
    """What can be known before the first request; the prompts themselves are checked as lm-eval makes them."""
    stops = {
        name: sampling_of(task.config.generation_kwargs or {}).stop
        for name, task in loaded.tasks.items()
        if task.OUTPUT_TYPE == "generate_until"
    }
    has_template = backend.fingerprint.chat_template_sha256 is not None
    found = check_stop_strings(stops, backend.stop_limit)
    if stops:
        found += check_generation_config(backend.generation_config)
    if backend.tokenizer is not None:
        found += check_template(spec.chat_template, has_template, has_template)
    warn_of(found)
    return found


def finished_run(spec: RunSpec, *, overwrite: bool) -> RunResult | None:
    """Return the finished run that the directory holds, or make it ready to begin or to resume.

    Raises
    ------
    SpecError
        The directory holds a different run.
    """
    check_directory(spec.out)
    record = read_record(spec.out)
    if overwrite:
        for name in _FILES:
            (spec.out / name).unlink(missing_ok=True)
        return None
    if record is None:
        return None
    settings = json.loads(json.dumps(spec.settings()))
    theirs = record.get("spec", {})
    differing = [name for name in settings if settings[name] != theirs.get(name)]
    if differing == ["base_url"] and _may_move(spec, record):
        say(f"the run was begun on {theirs.get('base_url')}; {settings['base_url']} counts as the same server")
    elif differing:
        name = differing[0]
        raise SpecError(
            f"the directory holds a run with other settings ({', '.join(differing)}): "
            f"{name} was {theirs.get(name)!r}, now {settings[name]!r}",
            where=str(spec.out),
            do="Give another --out, or --overwrite",
        )
    _check_unchanged(spec, record)
    is_complete = record.get("status") == "complete" and not record.get("n_errors")
    if is_complete and (spec.out / SAMPLES).exists():
        remove_abandoned(spec.out)
        say(f"{spec.out} holds this run, finished {record['finished']}; nothing was computed again")
        return result_of(spec.out, record)
    return None


def check_directory(out: Path) -> None:
    """Refuse a file in the place of a run directory.

    Raises
    ------
    SpecError
        There is one.
    """
    if out.exists() and not out.is_dir():
        raise SpecError("this is a file, not a directory", where=str(out), do="Give another --out")


def _may_move(spec: RunSpec, record: Mapping[str, Any]) -> bool:
    """Whether a server's address says nothing of the answers in this directory: see `_open_foreign` in `backends`."""
    return spec.journal is None and (record.get("model") or {}).get("weights_sha256") is not None


def _check_unchanged(spec: RunSpec, record: Mapping[str, Any]) -> None:
    """Refuse a folder whose weights have changed since: training goes on writing to `checkpoint-last`."""
    folder = Path(spec.model).expanduser()
    theirs = (record.get("model") or {}).get("weights_sha256")
    if theirs and folder.is_dir() and (mine := hash_weights(folder)) != theirs:
        _refuse_weights(spec, theirs, mine)


def _refuse_weights(spec: RunSpec, theirs: Any, mine: Any) -> NoReturn:
    raise SpecError(
        f"the run in this directory was begun with other weights ({str(theirs)[:12]}..., now {str(mine)[:12]}...)",
        where=str(spec.out),
        do="Give another --out, or --overwrite",
    )


def read_record(directory: Path) -> dict[str, Any] | None:
    """Read `run.json`; None when there is none.

    Raises
    ------
    SpecError
        The file is no JSON object.
    """
    path = directory / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise SpecError(f"this is not a run's record ({error})", where=str(path), do="Give another --out") from None
    if not isinstance(record, dict):
        raise SpecError("this is not a run's record", where=str(path), do="Give another --out")
    return record


def _configure(loaded: LoadedTasks, spec: RunSpec) -> None:
    """Give the tasks the run's settings, as lm-eval's own command does."""
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not spec.confirm_unsafe_code:
            raise TaskError(
                "the task executes code that the model writes", where=name, do="Consent with --confirm-unsafe-code"
            )
        if spec.backend == "openai" and spec.endpoint == "chat" and task.OUTPUT_TYPE != "generate_until":
            raise TaskError(
                "the task needs log-probabilities of given texts, and a chat endpoint has none",
                where=name,
                do="Use --endpoint completions, or tasks that generate their answers",
            )
        if task.OUTPUT_TYPE == "generate_until" and spec.gen_kwargs:
            task.set_config(key="generation_kwargs", value=dict(spec.gen_kwargs), update=True)
        _score_all_repeats(task)
        default = task.get_config("num_fewshot")
        if spec.num_fewshot is not None and default == 0 and spec.num_fewshot != 0:
            warn(
                f"{name} is defined with 0 examples in its prompt; --num-fewshot does not change that (nor in lm-eval)"
            )
        elif spec.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        elif default is None:
            task.set_config(key="num_fewshot", value=0)


def _passes(
    spec: RunSpec, loaded: LoadedTasks, *, quiet: bool = False
) -> Iterator[tuple[int, int, list[tuple[str, Any]]]]:
    """Yield (seed, repeat, tasks); a task whose answers are not sampled takes part in the first repeat only."""
    everything = list(loaded.tasks.items())
    wanted = {name: max(spec.repeats, (task.config.metadata or {}).get(_REPEATS, 1)) for name, task in everything}
    equal = [name for name, task in everything if wanted[name] > 1 and not _is_sampled(task)]
    if equal and not quiet:
        warn(
            f"{', '.join(equal)}: answers are not sampled, so all {wanted[equal[0]]} repeats would be equal; evaluated "
            "once (to sample: --gen-kwargs do_sample=true,temperature=0.7)"
        )
    for seed in spec.seeds:
        yield seed, 0, everything
        for repeat in range(1, max(wanted.values(), default=1)):
            if some := [(name, task) for name, task in everything if repeat < wanted[name] and name not in equal]:
                yield seed, repeat, some


def _score_all_repeats(task: Any) -> None:
    """Let a task's own repeats be passes of ours, where its filters would look at the first answer alone.

    lm-eval's default filter is `take_first`: of `repeats: 5` it scores one answer. Filters that look at several
    (a majority vote, say) keep their repeats.
    """
    repeats = task.config.repeats or 1
    filters = task.config.filter_list or [{"filter": [{"function": "take_first"}]}]
    functions = [{step["function"] for step in one["filter"]} for one in filters]
    looks_at_first = all("take_first" in some and some.isdisjoint(_SEVERAL) for some in functions)
    if repeats > 1 and looks_at_first:
        task.set_config(key="repeats", value=1)
        task.set_config(key="metadata", value={**(task.config.metadata or {}), _REPEATS: repeats})


def _is_sampled(task: Any) -> bool:
    return task.OUTPUT_TYPE == "generate_until" and sampling_of(task.config.generation_kwargs or {}).temperature > 0


def _subset(name: str, task: Any, spec: RunSpec) -> list[int] | None:
    """The documents to evaluate, ascending, or None for all.

    The first `limit` of a shuffle that depends on the task's name and size and on the subset seed only: a random
    subset, not the head, and 50 documents are among 100. lm-eval needs them in ascending order.
    """
    n_docs = len(task.eval_docs)
    if spec.limit is None or spec.limit >= n_docs:
        return None
    order = list(range(n_docs))
    random.Random(f"{name}:{n_docs}:{spec.subset_seed}").shuffle(order)
    return sorted(order[: spec.limit])


def _n_requests(task: Any, n_docs: int) -> int:
    """About how many requests a task makes, for the progress bar."""
    if task.config.doc_to_choice is None or task.OUTPUT_TYPE == "generate_until":
        return n_docs * (task.config.repeats or 1)
    return n_docs * len(task.doc_to_choice(task.eval_docs[0]))


def _one_pass(
    lm: PassLM,
    tasks: Mapping[str, Any],
    subset: Mapping[str, list[int] | None],
    spec: RunSpec,
    seed: int,
    repeat: int,
) -> dict[str, Any]:
    """Evaluate `tasks` once, with lm-eval's prompts, filters and metrics."""
    import lm_eval

    # Every repeat sees the same prompts: the few-shot draw depends on the seed alone.
    for task in tasks.values():
        task.set_fewshot_seed(seed=seed)
    _seed_everything(seed)
    lm.begin_pass(seed, repeat, subset)
    chosen = {name: documents for name in tasks if (documents := subset[name]) is not None}
    output: dict[str, Any] = lm_eval.evaluate(
        lm=lm,
        # Without the groups: a pass may be over some of their tasks only.
        task_dict={"tasks": dict(tasks)},
        samples=chosen or None,
        bootstrap_iters=0,
        system_instruction=spec.system_instruction,
        apply_chat_template=spec.chat_template,
        fewshot_as_multiturn=spec.chat_template,
        confirm_run_unsafe_code=spec.confirm_unsafe_code,
    )
    return output


def _seed_everything(seed: int) -> None:
    import numpy as np

    random.seed(_PYTHON_SEED)
    np.random.seed(seed)  # some metrics draw from the global generator; answers have seeds of their own


def _warn_of_missing_scores(rows: Sequence[Mapping[str, Any]]) -> None:
    missing = sorted({f"{row['task']}: {row['metric']}" for row in rows if row["score"] is None})
    if missing:
        warn(f"no number per item, so only the aggregate in {RECORD}: {', '.join(missing)}")


def _task_record(task: Any, rows: Sequence[Mapping[str, Any]], subset: Sequence[int] | None) -> dict[str, Any]:
    """What a reader must know of a task; its first metric is the primary one."""
    mine = [row for row in rows if row["task"] == task.config.task]
    metrics = dict.fromkeys((row["metric"], row["filter"]) for row in mine)
    hashes = list(dict.fromkeys(row["doc_hash"] for row in mine))
    better = task.higher_is_better()
    return {
        "version": task.VERSION,
        "n_docs": len(task.eval_docs),
        "n_evaluated": len({row["doc_id"] for row in mine}),
        "num_fewshot": task.get_config("num_fewshot"),
        "output_type": task.OUTPUT_TYPE,
        "cluster_field": (task.config.metadata or {}).get("cluster_field"),
        "doc_hashes_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "subset": subset,
        "metrics": [
            {"metric": metric, "filter": name, "higher_is_better": bool(better.get(metric, True))}
            for metric, name in metrics
        ],
    }


def _mean(of_repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over the repeats of a seed."""
    return {key: sum(one[key] for one in of_repeats) / len(of_repeats) for key in of_repeats[0]}


def result_of(directory: Path, record: Mapping[str, Any]) -> RunResult:
    """Read a finished run's record."""
    return RunResult(
        name=record["name"],
        directory=directory,
        results=record["results"],
        tasks=record["tasks"],
        wall_seconds=record["wall_seconds"],
        n_requests=record["n_requests"],
        n_from_journal=record["n_from_journal"],
        n_errors=record.get("n_errors", 0),
        suspect=bool(record.get("health", {}).get("suspect")),
    )


def now() -> str:
    """The time, UTC, in ISO format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
