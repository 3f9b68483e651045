"""The audit: scan a corpus for benchmark items once, apply the rules, write the tables and the record."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from evalkit.addresses import address_of
from evalkit.contamination.benchmarks import CANARY, Benchmark, Item, kind_of_field
from evalkit.contamination.canaries import CANARIES, canary_benchmark
from evalkit.contamination.findings import AuditResult, apply_rules, summarise
from evalkit.contamination.index import Index, SavedIndex, build_index
from evalkit.contamination.outputs import SCAN, write_audit
from evalkit.contamination.part_files import PartFiles
from evalkit.contamination.parts import PART_BYTES, Parts, Progress, ScanTask, scan_part, warm_up
from evalkit.contamination.record import AuditDirectory, open_audit
from evalkit.contamination.recorded import Found, FoundJoiner, load
from evalkit.contamination.rules import Rule
from evalkit.contamination.texts import TEXTS
from evalkit.corpora.objects import join
from evalkit.corpora.shards import AUDIT_RECORD, Shard
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError, SpecError
from evalkit.files import remove_folder
from evalkit.progress import progress_bar, say

WORK: Final = ".unfinished"
"""Hidden folder in an audit directory with what is needed to go on after a kill; gone when the audit is complete."""

RECORDED_N: Final = 8
"""Runs of at least so many tokens are recorded, whatever the rules, so that other rules can be applied later."""


FILES_OF_SHARE: Final = 16
"""Where each share has at least so many files, it has whole ones: they are enough to be alike."""


@dataclass(frozen=True)
class Share:
    """The `number`-th of `n` shares of a corpus, from 1.

    Where there are many more files than shares, it has the files number, number + n, number + 2n, ..., so that no share
    looks into another's files; elsewhere the parts of the corpus with these numbers.
    """

    number: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read `I/N`.

        Raises
        ------
        SpecError
            It is no such thing, or I is not in 1..N.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise SpecError(
                f"'{text}' is no share", where="--share", do="Write I/N with I from 1 to N, such as 1/8 for the first"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.n}"

    def is_of_files(self, parts: Parts) -> bool:
        """Whether it has whole files."""
        return len(parts.shards) >= FILES_OF_SHARE * self.n

    def tasks(self, parts: Parts) -> Iterator[ScanTask]:
        """Its tasks."""
        first = self.number - 1
        if self.is_of_files(parts):
            return parts.of_files(range(first, len(parts.shards), self.n))
        return itertools.islice(parts, first, None, self.n)


@dataclass(frozen=True)
class ShareResult:
    """What became of a share.

    Attributes
    ----------
    directory
        The audit directory, in which nothing but the parts is written.
    share
        Which one.
    n_parts
        Parts of the corpus; None where each share has its own files, and does not know the others'.
    n_before, n_scanned
        Parts of the share that were scanned before, and now.
    n_left
        Parts of the corpus that no share has scanned yet; None where that is not known, either.
    """

    directory: Path
    share: Share
    n_parts: int | None
    n_before: int
    n_scanned: int
    n_left: int | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {**vars(self), "directory": str(self.directory), "share": str(self.share)}


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

    Is `out` the folder of `evalkit.corpora.results.Results`, parts of the work lie at its address, where workers on
    other machines can put them.

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
    looked_for = [*benchmarks, canary_benchmark()]
    index, parts = _prepared(shards, looked_for, rules, out, text_column, id_column, engine)
    files = PartFiles(parts.store)
    _scan(parts, files, engine)
    found = _join(parts, files)
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
    remove_folder(out / WORK)
    return result


def scan_share(
    shards: Sequence[Shard],
    benchmarks: Sequence[Benchmark],
    rules: Sequence[Rule],
    out: Path,
    share: Share,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    overwrite: bool = False,
    engine: Engine | None = None,
) -> ShareResult:
    """Scan a share of the parts of the corpus, and leave what was found for `audit`, called in the same way.

    Shares may be scanned at the same time by processes on several machines that see the same files: each part is
    written whole, by the share that it belongs to. `audit` takes the parts that are there and scans what is missing.

    Parameters
    ----------
    shards, benchmarks, rules, out, text_column, id_column, overwrite, engine
        See `audit`. Of the rules, only the length of their n-grams matters here.
    share
        Which parts.

    Raises
    ------
    SpecError, InputError
        As `audit` does.
    """
    _check_target(out, benchmarks, rules, overwrite)
    engine = engine or LocalEngine()
    looked_for = [*benchmarks, canary_benchmark()]
    _, parts = _prepared(shards, looked_for, rules, out, text_column, id_column, engine)
    files = PartFiles(parts.store)
    n_before, n_now = _scan(parts, files, engine, share)
    if share.is_of_files(parts):
        return ShareResult(out, share, None, n_before, n_now, None)
    return ShareResult(out, share, parts.n_known, n_before, n_now, sum(not files.has(task) for task in parts))


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


def _prepared(
    shards: Sequence[Shard],
    looked_for: Sequence[Benchmark],
    rules: Sequence[Rule],
    out: Path,
    text_column: str | Sequence[str],
    id_column: str | None,
    engine: Engine,
) -> tuple[Index, Parts]:
    """Make the index and share it; return it and the parts of the corpus."""
    address, work = address_of(out), out.absolute() / WORK
    if address is None:
        engine.shares_files(work)
    if sum(shard.size for shard in shards) > PART_BYTES:  # there will be several parts
        engine.start(warm_up)
    index = build_index(looked_for, min(RECORDED_N, *(rule.n for rule in rules)))
    if all(field.name == CANARY for field in index.fields):
        raise InputError("no benchmark item has a word to look for", where=looked_for[0].source, do="Check its fields")
    # By its name: should another audit run in the same directory, neither works with the other's. From the root: a
    # worker may have another current folder.
    place = work / f"index-{index.fingerprint[:16]}"
    work.mkdir(parents=True, exist_ok=True)
    shared = engine.share(index, partial(SavedIndex.of, index, place))
    # From here on its arrays are in the memory that the workers map, too.
    index = shared.get()
    store = None if address is None else join(address, WORK)
    return index, Parts(shards, shared, index.fingerprint, work, text_column, id_column, PART_BYTES, store)


def _scan(parts: Parts, files: PartFiles, engine: Engine, share: Share | None = None) -> tuple[int, int]:
    """Scan all parts, or a share of them, that were not scanned before; return how many were, and how many now.

    Tasks are made when the engine asks for them, and what they find goes to files: however many there are, this
    process's memory does not grow with them.
    """
    n_before = n_now = 0
    total = sum(shard.size for shard in parts.shards)
    with progress_bar("scanning", total // (share.n if share else 1) or None, unit="bytes") as bar:
        progress = Progress(bar)

        def left() -> Iterator[ScanTask]:
            nonlocal n_before
            for task in share.tasks(parts) if share else parts:
                if files.has(task):
                    n_before += 1
                    progress.skip(task)
                else:
                    progress.begin(task)
                    yield task

        with progress.shown():
            for number, _ in engine.map(scan_part, left()):
                n_now += 1
                progress.done(number)
    if n_before:
        say(f"{n_before} of {n_before + n_now} parts were scanned before and are kept")
    engine.stop()  # their memory is needed for what follows
    files.look()
    return n_before, n_now


def _join(parts: Parts, files: PartFiles) -> Found:
    """Put together what was found in the parts, file by file."""
    joiner, read = FoundJoiner(parts.shards), files.read(parts)
    for number in range(len(parts.shards)):
        joiner.add([next(read) for _ in parts.of(number)])
    return joiner.found()


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
