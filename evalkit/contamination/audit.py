"""The audit: scan a corpus for benchmark items once, apply the rules, write the tables and the record."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from evalkit.contamination.benchmarks import CANARY, Benchmark, Item, kind_of_field
from evalkit.contamination.canaries import CANARIES, canary_benchmark
from evalkit.contamination.findings import AuditResult, apply_rules, summarise
from evalkit.contamination.index import Index, build_index, load_index, save_index
from evalkit.contamination.outputs import SCAN, write_audit
from evalkit.contamination.parts import ScanTask, read_part, scan_part, shown_progress, warm_up
from evalkit.contamination.record import AuditDirectory, open_audit
from evalkit.contamination.recorded import join_parts, load
from evalkit.contamination.rules import Rule
from evalkit.contamination.scan import ShardRuns
from evalkit.contamination.texts import TEXTS
from evalkit.corpora.fingerprints import pieces_of
from evalkit.corpora.shards import AUDIT_RECORD, Shard
from evalkit.corpora.split import split_shard
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError, SpecError
from evalkit.progress import progress_bar, say

WORK: Final = ".unfinished"
"""Hidden folder in an audit directory with what is needed to go on after a kill; gone when the audit is complete."""

RECORDED_N: Final = 8
"""Runs of at least so many tokens are recorded, whatever the rules, so that other rules can be applied later."""

PART_BYTES: Final = 64 << 20
"""Bytes of a corpus file, as it lies on the disk, that one task scans: small enough to share out and to lose."""


def audit(
    shards: Sequence[Shard],
    benchmarks: Sequence[Benchmark],
    rules: Sequence[Rule],
    out: Path,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    keep_boilerplate: bool = False,
    overwrite: bool = False,
    engine: Engine | None = None,
) -> AuditResult:
    """Look for the items of `benchmarks` in the corpus and write the audit directory `out`.

    Writes the tables `matches`, `items`, `documents` and `texts`, what the scan has recorded (`scan.parquet`),
    `bad_rows.jsonl` when there are rows without a text that can be read, and last `audit.json`, whose presence means
    that the audit is complete. A killed audit goes on where it was when it is called again in the same way.

    Parameters
    ----------
    shards
        The corpus files, from `find_shards`.
    benchmarks, rules
        What to look for, and the rules to judge by; the corpus is read once for all rules.
    text_column, id_column
        Columns of the corpus that hold the text and the document's id.
    keep_boilerplate
        Let phrases that many items share, or that pass through the corpus without the item, count as evidence.
    overwrite
        Replace an audit that is there already.
    engine
        Where the parts of the corpus are scanned; by default in this machine's processes, one a processor. The result
        does not depend on it.

    Raises
    ------
    SpecError
        `out` holds an audit and `overwrite` is not set, there is no benchmark or no rule, or two benchmarks have the
        same name.
    InputError
        A corpus file cannot be read; no table in `out` is changed then.
    """
    _check_target(out, benchmarks, rules, overwrite)
    begun = time.monotonic()
    engine = engine or LocalEngine()
    if sum(shard.size for shard in shards) > PART_BYTES:  # there will be several parts
        engine.start(warm_up)
    looked_for = [*benchmarks, canary_benchmark()]
    index = build_index(looked_for, min(RECORDED_N, *(rule.n for rule in rules)))
    if all(field.name == CANARY for field in index.fields):
        raise InputError("no benchmark item has a word to look for", where=benchmarks[0].source, do="Check its fields")
    # By its name: should another audit run in the same directory, neither works with the other's.
    place = out / WORK / f"index-{index.fingerprint[:16]}"
    save_index(index, place)
    # From here on its arrays are in the memory that the workers map, too.
    index = load_index(place)
    found = _scan(shards, index, place, text_column, id_column, engine)
    findings = apply_rules(
        rules,
        looked_for,
        index,
        found,
        keep_boilerplate=keep_boilerplate,
        text_column=text_column,
        id_column=id_column,
    )
    result = summarise(out, findings, time.monotonic() - begun)
    write_audit(out, findings, result)
    shutil.rmtree(out / WORK, ignore_errors=True)
    return result


def judge(
    directory: Path,
    rules: Sequence[Rule],
    out: Path | None = None,
    *,
    keep_boilerplate: bool = False,
    overwrite: bool = False,
) -> AuditResult:
    """Apply other rules to what an audit has recorded; the corpus is not read.

    Parameters
    ----------
    directory
        A complete audit.
    rules, keep_boilerplate
        See `audit`.
    out
        Where to write; None: in the same directory, in place of what is there.
    overwrite
        Replace another audit in `out`.

    Raises
    ------
    InputError
        The directory holds no complete audit, or one by another version of evalkit's normalisation.
    SpecError
        A rule has shorter n-grams than were recorded, or `out` holds an audit and `overwrite` is not set.
    """
    opened = open_audit(directory)
    begun = time.monotonic()
    looked_for = _recorded_benchmarks(opened)
    recorded_n = int(opened.record["index"]["n"])
    for rule in rules:
        if rule.n < recorded_n:
            raise SpecError(
                f"rule '{rule.name}' has n-grams of {rule.n} words, and the scan recorded {recorded_n} or more",
                where="--rule",
                do="Audit again, with this rule",
            )
    target = out or directory
    if out is not None:
        _check_target(out, looked_for[:-1], rules, overwrite)
    index = build_index(looked_for, recorded_n)
    if index.fingerprint != opened.record["index"]["fingerprint"]:
        raise InputError("the items are not those of the scan", where=str(directory), do="Audit again")
    findings = apply_rules(
        rules,
        looked_for,
        index,
        load(directory / SCAN, [one.shard for one in opened.files.values()]),
        keep_boilerplate=keep_boilerplate,
        text_column=opened.text_column,
        id_column=opened.id_column,
    )
    result = summarise(target, findings, time.monotonic() - begun)
    write_audit(target, findings, result)
    return result


def _scan(
    shards: Sequence[Shard],
    index: Index,
    place: Path,
    text_column: str | Sequence[str],
    id_column: str | None,
    engine: Engine,
) -> list[ShardRuns]:
    """Scan all parts of the corpus that an earlier audit has not left scanned beside `place`; one result a file."""
    columns = text_column if isinstance(text_column, str) else tuple(text_column)
    tasks = []
    for shard in shards:
        parts = split_shard(shard, PART_BYTES)
        # Only what lies on this machine: an address would have to be read twice.
        pieces = pieces_of(shard.size) if isinstance(shard.path, Path) else []
        for number, part in enumerate(parts):
            mine = tuple(pieces[number :: len(parts)])
            tasks.append(ScanTask(part, place, index.fingerprint, place.parent, columns, id_column, mine))
    left = [task for task in tasks if not task.path.exists()]
    if len(left) < len(tasks):
        say(f"{len(tasks) - len(left)} of {len(tasks)} parts were scanned before and are kept")
    total = sum(shard.size for shard in shards)
    with progress_bar("scanning", total or None, unit="bytes") as bar, shown_progress(tasks, bar):
        for _ in engine.map(scan_part, left):
            pass
    engine.stop()  # their memory is needed for what follows
    return join_parts([read_part(task) for task in tasks])


def _check_target(out: Path, benchmarks: Sequence[Benchmark], rules: Sequence[Rule], overwrite: bool) -> None:
    """Refuse to overwrite unasked, to look for nothing, and benchmarks that the tables could not tell apart."""
    for option, given in (("--benchmark", benchmarks), ("--rule", rules)):
        if not given:
            raise SpecError("nothing was given to look for", where=option, do="Name at least one")
    if (out / AUDIT_RECORD).exists() and not overwrite:
        raise SpecError("the directory already holds an audit", where=str(out), do="Give another --out, or --overwrite")
    try:  # before hours of scanning, not after
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"the directory cannot be made ({error.strerror})", where=str(out), do="Give another --out"
        ) from None
    names = [*(benchmark.name for benchmark in benchmarks), CANARIES]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"two benchmarks are called '{name}'", where="--benchmark", do="Rename one of the files")


def _recorded_benchmarks(opened: AuditDirectory) -> list[Benchmark]:
    """What an audit has looked for: its benchmarks, and the canaries last."""
    items: dict[str, dict[str, Item]] = {}
    code: dict[str, set[str]] = {}
    for row in opened.read(TEXTS).to_pylist():
        mine = items.setdefault(row["benchmark"], {})
        item = mine.setdefault(row["doc_hash"], Item(row["doc_hash"], {}, row["doc_id"]))
        mine[row["doc_hash"]] = replace(item, fields={**item.fields, row["field"]: row["text"]})
        if row["is_code"]:
            code.setdefault(row["benchmark"], set()).add(kind_of_field(row["field"]))
    benchmarks = []
    for one in [*opened.record["benchmarks"], {"name": CANARIES, "source": "", "n_items": 0, "n_duplicates": 0}]:
        mine = items.get(one["name"], {})
        # Items without any text are counted, but nothing of them was kept.
        empty = [Item("", {})] * (one["n_items"] - len(mine))
        benchmarks.append(
            Benchmark(
                name=one["name"],
                source=one["source"],
                items=(*mine.values(), *empty),
                n_duplicates=one["n_duplicates"],
                definition=one.get("definition"),
                n_missing=one.get("n_missing", {}),
                code_fields=frozenset(code.get(one["name"], ())),
            )
        )
    return benchmarks
