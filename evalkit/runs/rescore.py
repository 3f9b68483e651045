"""Applies other filters and metrics to the stored answers of a run, without a model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evalkit import tables
from evalkit.addresses import named
from evalkit.errors import InputError, SpecError, TaskError
from evalkit.files import write_json
from evalkit.runs.engine import Answer, Sampling, sampling_of
from evalkit.runs.evaluate import (
    JOURNAL,
    RECORD,
    REQUESTS,
    SAMPLES,
    RunResult,
    judge_health,
    load,
    now,
    outcome,
    read_record,
    result_of,
    run_passes,
)
from evalkit.runs.health import Thresholds
from evalkit.runs.journal import Journal
from evalkit.runs.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

Pass = tuple[int, int]
"""Seed and repeat."""


@dataclass(frozen=True)
class Rescored:
    """The new scores, and those that the run had."""

    before: RunResult
    after: RunResult

    def to_frame(self) -> pd.DataFrame:
        """Both scorings, one under the other."""
        import pandas as pd

        whole: pd.DataFrame = pd.concat([one.to_frame().assign(scored=name) for name, one in vars(self).items()])
        return whole

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict()}


def rescore(run: Path, task_file: Path, *, out: Path | None = None, stored_task: str | None = None) -> Rescored:
    """Score the answers of `run` by the task definition in `task_file`, and write a run directory.

    The definition must ask what the run asked: its documents, prompts and generation settings are compared.

    Parameters
    ----------
    run
        The run directory, with its journal.
    task_file
        A YAML file of one task. It may name Python functions, which are run.
    out
        Where to write; None is `RUN/rescored/TASK`.
    stored_task
        The run's task whose answers are meant; None is the one of the same name, or the only one.

    Raises
    ------
    InputError
        The run is absent, unfinished, or lacks answers.
    TaskError
        The definition cannot be loaded, or asks something else.
    """
    record = read_record(run)
    if record is None or record.get("status") != "complete" or not (run / REQUESTS).exists():
        raise InputError(
            "there is no finished run here", where=str(run), do="Give a run directory; finish the run first"
        )
    name = _name_of(task_file)
    stored = stored_task or (name if name in record["tasks"] else next(iter(record["tasks"])))
    if stored not in record["tasks"] or (stored_task is None and stored != name and len(record["tasks"]) > 1):
        known = ", ".join(record["tasks"])
        raise SpecError(f"which of the run's tasks is '{name}'?", where=str(run), do=f"Give --stored-task: {known}")
    out = out or run / "rescored" / name
    if (out / RECORD).exists() and read_record(out).get("rescored_from") is None:  # type: ignore[union-attr]
        raise SpecError("the directory holds a run", where=str(out), do="Give another --out")
    spec = _spec(record, task_file, name, out)
    loaded = load(spec)
    lm = StoredLM(run, record, stored, name, chat=spec.chat_template)
    subset = {name: record["tasks"][stored]["subset"]}
    model = record["model"]
    common = {"model": model["name"], "checkpoint": model["path"], "step": (record.get("checkpoint") or {}).get("step")}
    rows, results, answers = run_passes(spec, loaded, lm, subset, common)
    _check_documents(run, stored, task_file, rows)
    tables.write(out / SAMPLES, tables.from_rows(tables.SAMPLES, rows), tables.SAMPLES)
    fresh = {**record, **outcome(loaded, rows, results, subset), "spec": spec.settings()}
    fresh |= {
        "rescored_from": named(str(run.resolve())),
        "rescored": now(),
        "task_file": named(str(task_file.resolve())),
    }
    health = record.get("health") or {}
    fresh["health"] = judge_health(Thresholds(**health.get("thresholds", {})), [], answers)
    # What was wrong before the first request is still wrong.
    before_requests = [one for one in health.get("findings", []) if "check" in one]
    fresh["health"]["findings"] = before_requests + fresh["health"]["findings"]
    fresh["health"]["suspect"] |= any(one["severity"] == "suspect" for one in before_requests)
    write_json(out / RECORD, fresh)
    before = {**record, "tasks": {stored: record["tasks"][stored]}}
    return Rescored(result_of(run, before), result_of(out, fresh))


def _name_of(task_file: Path) -> str:
    class Loader(yaml.SafeLoader):
        """Safe, and blind to `!function`: only the name is wanted here."""

    Loader.add_constructor("!function", lambda loader, node: None)
    try:
        content = yaml.load(task_file.read_text(encoding="utf-8"), Loader)  # noqa: S506 - a subclass of SafeLoader
        return str(content["task"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise TaskError(
            f"this is no task definition ({type(error).__name__}: {error})",
            where=str(task_file),
            do="Give a task's YAML",
        ) from None


def _spec(record: Mapping[str, Any], task_file: Path, name: str, out: Path) -> RunSpec:
    known = {key: value for key, value in record["spec"].items() if key in RunSpec.model_fields}
    return RunSpec(**{**known, "tasks": (name,), "tasks_dir": task_file.parent, "out": out})


def _check_documents(run: Path, stored: str, task_file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse other documents: an answer must be scored against its own question."""
    data = tables.read(run / SAMPLES, tables.SAMPLES).select(["task", "doc_id", "doc_hash"]).to_pylist()
    hashes = {row["doc_id"]: row["doc_hash"] for row in data if row["task"] == stored}
    if differing := [row["doc_id"] for row in rows if hashes.get(row["doc_id"]) != row["doc_hash"]]:
        raise TaskError(
            f"{len(set(differing))} documents are not those of the run (document {differing[0]} first)",
            where=str(task_file),
            do="Point the definition to the run's data; process_docs must not have changed either",
        )


class StoredLM(LM):  # type: ignore[misc]
    """An lm-eval model that reads what a run's model has answered."""

    def __init__(self, run: Path, record: Mapping[str, Any], stored: str, name: str, *, chat: bool) -> None:
        super().__init__()
        self.answers: dict[tuple[str, int], list[Answer]] = {}
        self._name, self._chat = name, chat
        self._subset: Sequence[int] | None = None
        asked = [one for one in pq.read_table(run / REQUESTS).to_pylist() if one["task"] == stored]
        journal = Path(record["journal"]) if record.get("journal") else run / JOURNAL
        if not journal.exists():
            raise InputError("the journal with the run's answers is gone", where=str(journal), do="Bring it back")
        with Journal(journal) as opened:
            found = opened.entries(one["key"] for one in asked)
        if not record.get("n_errors") and (n := sum(one["key"] not in found for one in asked)):
            raise InputError(f"the journal lacks {n} of the run's answers", where=str(journal), do="Bring it back")
        self._passes: defaultdict[Pass, defaultdict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for one in sorted(asked, key=lambda one: one["place"]):
            self._passes[one["seed"], one["repeat"]][one["doc_id"]].append(found.get(one["key"]))
        self._current: Mapping[int, list[Any]] = {}

    def begin_pass(self, seed: int, repeat: int, subset: Mapping[str, Sequence[int] | None]) -> None:
        """Say which seed, repeat and documents the next requests belong to."""
        self._current, self._subset = self._passes[seed, repeat], subset.get(self._name)
        self.answers.clear()

    def failed(self) -> dict[str, set[int]]:
        """Items of the current pass whose requests had failed in the run."""
        return {self._name: {d for (_, d), some in self.answers.items() if any(one.error for one in some)}}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the stored log-likelihoods."""
        return [
            (float("nan") if one.logprob is None else one.logprob, bool(one.greedy))
            for one in map(self._next, requests)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Rolling log-likelihoods have no filters and one metric: there is nothing to score anew."""
        raise TaskError("a perplexity task cannot be rescored", where=self._name, do="Run it")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the stored texts."""
        return [one.text or "" for one in map(self._next, requests)]

    def _next(self, request: Instance) -> Answer:
        doc_id = request.doc_id if self._subset is None else self._subset[request.doc_id]
        mine = self.answers.setdefault((self._name, doc_id), [])
        stored = self._current.get(doc_id, [])
        if len(mine) >= len(stored):
            raise TaskError(
                f"the run has {len(stored)} answers for document {doc_id}, and the definition asks for more",
                where=self._name,
                do="Run the new definition: its choices or repeats differ",
            )
        entry = stored[len(mine)]
        if entry is None:
            mine.append(Answer(error="the request had failed in the run"))
        else:
            _, asked, answer = entry
            self._check(request, asked, doc_id)
            mine.append(Answer(**answer))
        return mine[-1]

    def _check(self, request: Instance, asked: Mapping[str, Any], doc_id: int) -> None:
        """Refuse a definition that asks something else than the run did."""
        differs = None
        if not self._chat and asked["context"] != request.args[0]:
            differs = "prompt"
        elif "sampling" in asked:
            stored = Sampling(**{**asked["sampling"], "stop": tuple(asked["sampling"]["stop"]), "seed": None})
            if stored != sampling_of(request.args[1]):
                differs = "generation settings"
        elif "sampling" not in asked and asked["continuation_text"] != request.args[1]:
            differs = "choices"
        if differs:
            raise TaskError(
                f"the definition's {differs} are not what the run asked (document {doc_id})",
                where=self._name,
                do="Change filters, metrics and targets only, or run the new definition",
            )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Nothing is sent, so the look of the prompt does not matter."""
        return json.dumps(chat_history)

    @property
    def tokenizer_name(self) -> str:
        """No tokenizer is needed."""
        return "stored"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """No template is needed."""
        return ""
