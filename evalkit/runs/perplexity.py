"""Bits per byte of a model on text files, by domain, with intervals over documents."""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalkit import tables
from evalkit.corpora import find_shards, read_shard
from evalkit.errors import InputError
from evalkit.files import write_json
from evalkit.progress import log_to, progress_bar, say, warn
from evalkit.runs.backends import Backend, open_backend
from evalkit.runs.evaluate import (
    JOURNAL,
    OWNER,
    RECORD,
    SAMPLES,
    begin_record,
    check_directory,
    finished_run,
    journal_under,
    judge_health,
    now,
)
from evalkit.runs.health import Thresholds
from evalkit.runs.hf import check_model_path
from evalkit.runs.lease import Lease
from evalkit.runs.lm import EvalLM, Rolled
from evalkit.runs.records import ItemAnswer, chosen_answer
from evalkit.runs.spec import RunSpec
from evalkit.stats.ratio import ratio_of_totals
from evalkit.stats.results import Estimate

if TYPE_CHECKING:
    import pandas as pd

METRIC = "bits_per_byte"


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    domain: str
    file: str
    row: int
    text: str

    @property
    def doc_hash(self) -> str:
        """The sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class PerplexityResult:
    """Bits per byte by domain, and what the documents came to."""

    name: str
    directory: Path
    domains: Mapping[str, Estimate]
    n_bytes: Mapping[str, int]
    n_tokens: Mapping[str, int]
    n_errors: int

    def to_frame(self) -> pd.DataFrame:
        """One row per domain."""
        import pandas as pd

        return pd.DataFrame(
            {
                "domain": name,
                METRIC: one.estimate,
                "low": one.low,
                "high": one.high,
                "documents": one.n,
                "bytes": self.n_bytes[name],
                "tokens": self.n_tokens[name],
            }
            for name, one in self.domains.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        domains = {
            name: one.to_dict() | {"n_bytes": self.n_bytes[name], "n_tokens": self.n_tokens[name]}
            for name, one in self.domains.items()
        }
        return {"name": self.name, "directory": str(self.directory), "domains": domains, "n_errors": self.n_errors}


def perplexity(spec: RunSpec, *, overwrite: bool = False) -> PerplexityResult:
    """Score the documents of `spec.perplexity` and write a run directory.

    A document's log-likelihood is lm-eval's rolling one: windows of the model's length, each predicting the tokens
    that the window before did not, the first after BOS (or EOS). By default windows do not overlap; `spec.stride`
    gives the tokens by which a window moves on, so that the others are context. Bits per byte is
    -log2-likelihood / UTF-8 bytes, over all documents of a domain together.

    The samples table has one row per document: task `perplexity:DOMAIN`, metric `bits_per_byte`.

    Raises
    ------
    InputError
        A file cannot be read, or there is no document, or another process works in the directory.
    SpecError, ModelError
        As `run`.
    """
    check_directory(spec.out)
    if not overwrite and finished_run(spec, overwrite=False) is not None:
        return _stored(spec.out)
    if spec.backend != "openai":
        check_model_path(spec.model)
    with Lease(spec.out, OWNER) as lease:
        # Whoever had the lease may have finished the run.
        if finished_run(spec, overwrite=overwrite) is not None:
            return _stored(spec.out)
        with open_backend(spec) as ready:
            documents = _read(spec)
            with log_to(spec.out / "log.jsonl"):
                return _score(spec, documents, ready(), lease)


def _read(spec: RunSpec) -> list[Document]:
    """Read the documents, of each domain a seeded random sample where a limit is set."""
    found: dict[str, list[Document]] = {}
    seen: dict[str, int] = {}
    draws = random.Random(spec.subset_seed)
    n_bad = n_empty = 0
    for shard in find_shards(spec.perplexity):
        with read_shard(shard, text_column=spec.text_column, id_column=spec.source_column) as reader:
            for batch in reader:
                for row, source, text in zip(
                    batch.rows.tolist(), batch.doc_ids.to_pylist(), batch.texts.to_pylist(), strict=True
                ):
                    domain = source if source is not None else shard.path.name.split(".")[0]
                    seen[domain] = seen.get(domain, 0) + 1
                    kept = found.setdefault(domain, [])
                    document = Document(domain, str(shard.path), row, text)
                    if spec.limit is None or len(kept) < spec.limit:
                        kept.append(document)
                    elif (place := draws.randrange(seen[domain])) < spec.limit:
                        # Reservoir sampling (Vitter 1985, algorithm R): one pass, any number of documents.
                        kept[place] = document
            n_bad, n_empty = n_bad + reader.counts.n_bad, n_empty + reader.counts.n_empty
    if n_bad or n_empty:
        warn(f"{n_bad} rows could not be read and {n_empty} have no text; they are left out")
    if not found:
        raise InputError("there is no document", where="--perplexity", do="Check the files and --text-column")
    return [one for name in sorted(found) for one in sorted(found[name], key=lambda one: (one.file, one.row))]


def _score(spec: RunSpec, documents: Sequence[Document], backend: Backend, lease: Lease) -> PerplexityResult:
    begun = time.monotonic()
    model = backend.fingerprint
    thresholds = Thresholds.parse(spec.health, where="--health")
    record = begin_record(spec, backend, None)
    rows: list[dict[str, Any]] = []
    answers: dict[str, list[ItemAnswer]] = {}
    scored: dict[str, list[tuple[float, int, int]]] = {}
    n_bytes = [len(one.text.encode()) for one in documents]
    say(f"{len(documents)} documents, {sum(n_bytes):,} bytes")
    with (
        journal_under(lease)(spec.journal or spec.out / JOURNAL) as journal,
        progress_bar(model.name, None, unit="windows") as bar,
    ):
        lm = EvalLM(backend.engine, backend.tokenizer, journal, backend.answer_key, bar.advance)
        rolled = lm.roll([one.text for one in documents], stride=spec.stride)
    for number, (document, size, one) in enumerate(zip(documents, n_bytes, rolled, strict=True)):
        bits = None if one.error else -one.logprob / math.log(2)
        if bits is not None:
            scored.setdefault(document.domain, []).append((bits, size, one.n_tokens))
        rows.append(_row(document, number, model.name, model.path, one, bits, size))
        answers.setdefault(f"perplexity:{document.domain}", []).append(chosen_answer(number, one.error))
    tables.write(spec.out / SAMPLES, tables.from_rows(tables.SAMPLES, rows), tables.SAMPLES)
    domains = {
        name: ratio_of_totals([bits for bits, _, _ in some], [size for _, size, _ in some])
        for name, some in scored.items()
    }
    result = PerplexityResult(
        model.name,
        spec.out,
        domains,
        {name: sum(size for _, size, _ in some) for name, some in scored.items()},
        {name: sum(tokens for *_, tokens in some) for name, some in scored.items()},
        sum(one.error is not None for one in rolled),
    )
    record |= {
        "status": "complete",
        "tasks": {f"perplexity:{name}": _task_record(name, documents) for name in domains},
        "results": {
            str(spec.seeds[0]): {f"perplexity:{n}": {f"{METRIC},none": d.estimate} for n, d in domains.items()}
        },
        # The directory would be wrong once the record is moved or published.
        "perplexity": {name: value for name, value in result.to_dict().items() if name != "directory"}
        | {"stride": spec.stride, "window": backend.engine.max_scored - 1},
        "health": judge_health(thresholds, lm.preflight, answers),
        "engine": backend.describe(),
        "finished": now(),
        "wall_seconds": time.monotonic() - begun,
        "request_seconds": lm.request_seconds,
        "n_requests": lm.n_requests,
        "n_from_journal": lm.n_from_journal,
        "n_errors": lm.n_errors,
        # Of the documents: windows also hold the tokens that are their context.
        "tokens": {"prompt": sum(result.n_tokens.values()), "output": 0},
    }
    write_json(spec.out / RECORD, record)
    return result


def _row(
    document: Document, number: int, name: str, path: str, rolled: Rolled, bits: float | None, size: int
) -> dict[str, Any]:
    return {
        "run_id": name,
        "task": f"perplexity:{document.domain}",
        "doc_id": number,
        "repeat": 0,
        "filter": "none",
        "metric": METRIC,
        "model": name,
        "checkpoint": path,
        "doc_hash": document.doc_hash,
        "score": None if bits is None else bits / size,
        "prompt_tokens": rolled.n_tokens,
        "error": rolled.error,
    }


def _task_record(domain: str, documents: Sequence[Document]) -> dict[str, Any]:
    hashes = [one.doc_hash for one in documents if one.domain == domain]
    return {
        "version": 1.0,
        "n_docs": len(hashes),
        "n_evaluated": len(hashes),
        "num_fewshot": 0,
        "output_type": "loglikelihood_rolling",
        "cluster_field": None,
        "doc_hashes_sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "subset": None,
        "metrics": [{"metric": METRIC, "filter": "none", "higher_is_better": False}],
    }


def _stored(directory: Path) -> PerplexityResult:
    """Read a finished result from its record."""
    from evalkit.runs.evaluate import read_record

    stored = (read_record(directory) or {})["perplexity"]
    domains, known = {}, set(asdict(Estimate(0, 0, 0, 0, "", "", "", 0, 0)))
    for name, values in stored["domains"].items():
        domains[name] = Estimate.from_dict({key: value for key, value in values.items() if key in known})
    counts = {part: {name: one[part] for name, one in stored["domains"].items()} for part in ("n_bytes", "n_tokens")}
    return PerplexityResult(
        stored["name"], directory, domains, counts["n_bytes"], counts["n_tokens"], stored["n_errors"]
    )
