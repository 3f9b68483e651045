"""Deduplication of a corpus: sign it, find and compare candidates, cluster them, write the tables and the record."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit import tables
from evalkit.corpora.shards import AUDIT_RECORD, DEDUP_RECORD, Shard
from evalkit.corpora.split import row_offsets, split_shard
from evalkit.dedup.arrays import PASSING, load_array, save_array
from evalkit.dedup.assemble import AssembleTask, assemble
from evalkit.dedup.candidates import (
    BandTask,
    BucketTask,
    CandidateTask,
    PackTask,
    Signatures,
    documents_within,
    find_buckets,
    find_candidates,
    least_equal,
    pack,
    sort_keys,
)
from evalkit.dedup.clusters import ClusterTask, LabelTask, cluster, label_pairs
from evalkit.dedup.compare import MOST_SET_FILES, CompareTask, Estimates, Sets, SetTask, compare, write_sets
from evalkit.dedup.exact import EqualTask, Group, HashTask, find_equal, sort_hashes
from evalkit.dedup.lsh import FALSE_NEGATIVE_WEIGHT, Bands, choose_bands
from evalkit.dedup.parts import Part, SignTask, read_documents, sign_part
from evalkit.dedup.shingles import Shingling
from evalkit.dedup.shuffle import (
    FAN_IN,
    MEMORY_BYTES,
    MergeTask,
    count_rows,
    equal_ranges,
    from_bits,
    merge_runs,
    ranges_of,
    replaced,
    rows_within,
    sorting,
    write_rows,
)
from evalkit.dedup.signatures import MinHashing
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError, SpecError
from evalkit.files import atomic_path, plain_values, to_json, write_json
from evalkit.progress import progress_bar, say

Int64 = npt.NDArray[np.int64]

RECORD: Final = DEDUP_RECORD
"""What says that a deduplication is complete."""

CLUSTERS: Final = "clusters.parquet"
PAIRS_FILE: Final = "pairs.parquet"
"""The similar pairs, by document numbers; with the record, what makes the next run incremental."""

BAD_ROWS: Final = "bad_rows.jsonl"
SIGNATURES: Final = ".signatures"
"""Folder of the signatures and bands, which are kept; hidden, as the next, from those who read a corpus around it."""

WORK: Final = ".unfinished"
_MINE: Final = "dedup"
PART_BYTES: Final = 64 << 20
ALONE_BYTES: Final = 128 << 20
"""A corpus of fewer bytes on the disk is worked on in this process: it would be done before others have started."""

LARGEST: Final = 10
"""So many of the largest clusters are named."""

COUNTED_PARTS: Final = 256
"""Parts whose counts one task reads."""

AT_ONCE: Final = 64
"""At least so many tasks are asked for at a time, where there are so many: so that no worker waits for long."""

LEAST_KEYS: Final = 1 << 20
"""Bands of few documents are worked on together, until they have so many keys."""

ROW_GROUP: Final = 1 << 15
"""Rows of each row group of the tables, whatever the memory: so the same tables are the same bytes."""

MOST_GROUPS: Final = 32
"""Row groups in memory at a time."""

_PARTS: Final = b"evalkit.parts"
"""In the metadata of the pairs: which parts they are of."""

PAIRS: Final = pa.schema([("one", pa.int64()), ("other", pa.int64()), ("similarity", pa.float64())])

Keep = Literal["first", "longest"]


@dataclass(frozen=True)
class DedupSpec:
    """What counts as a duplicate.

    Attributes
    ----------
    how
        How documents become signatures.
    threshold
        Least Jaccard similarity of the shingles of near duplicates, more than 0 and at most 1.
    bands
        None: those that datasketch would choose with `false_negative_weight`.
    false_negative_weight
        How much a missed pair weighs beside one that is compared in vain, as a share of 1; datasketch's default is 0.5.
    verify
        Compare the shingles of candidates; if not, what their signatures estimate decides.
    keep
        Of each cluster, the "first" document in the order of files and rows, or the "longest" in tokens.
    split
        Split groups in which only a chain connects documents: see `evalkit.dedup.clusters`.
    """

    how: MinHashing = field(default_factory=MinHashing)
    threshold: float = 0.8
    bands: Bands | None = None
    false_negative_weight: float = FALSE_NEGATIVE_WEIGHT
    verify: bool = True
    keep: Keep = "first"
    split: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise SpecError(
                f"the similarity {self.threshold}", where="--threshold", do="Use one above 0, and at most 1"
            )
        if self.keep not in ("first", "longest"):
            raise SpecError(f"no way to choose called '{self.keep}'", where="--keep", do="Use first or longest")
        if self.bands and self.bands.n_bands * self.bands.n_rows > self.how.num_perm:
            raise SpecError(
                f"{self.bands.n_bands} bands of {self.bands.n_rows} need more than {self.how.num_perm} permutations",
                where="--bands",
            )
        if self.bands is None:
            choose_bands(self.threshold, self.how.num_perm, 1 - self.false_negative_weight, self.false_negative_weight)

    @property
    def chosen_bands(self) -> Bands:
        """The bands."""
        weight = self.false_negative_weight
        return self.bands or choose_bands(self.threshold, self.how.num_perm, 1 - weight, weight)


@dataclass(frozen=True)
class LargeCluster:
    """One of the largest clusters: its documents, the kept one, and the least similarity of the others to that."""

    n_documents: int
    file: str
    row: int
    doc_id: str | None
    least_similarity: float


@dataclass(frozen=True)
class DedupResult:
    """What was found.

    Attributes
    ----------
    directory
        Where the tables and the record are.
    n_documents, n_empty, n_bad_rows
        Documents of the corpus; rows whose text is empty, and rows that could not be read.
    n_same_text, n_same_normalised
        Documents whose text, as written or normalised, an earlier document has; the first are among the second.
    n_candidates
        Pairs of documents that were compared now.
    n_pairs
        Pairs of different texts that are similar enough, those known from an earlier run among them.
    n_clusters, n_removed
        Clusters, and documents in them that are not kept.
    cluster_sizes
        How many clusters there are of each size.
    largest
        The largest clusters, the largest first.
    largest_group, n_split_groups
        Documents in the largest group that similar pairs connect; groups that were split, since a chain connects them.
    n_large_buckets
        Buckets in which not every document was compared with every other one.
    removed_by_corpus, documents_by_corpus
        Documents removed and there, for each corpus.
    spec, bands
        What counted as a duplicate.
    removed_at
        (threshold, documents that would be removed) from the threshold upwards, by connected groups without splitting.
    seconds
        That it took.
    """

    directory: Path
    spec: DedupSpec
    bands: Bands
    n_documents: int
    n_empty: int
    n_bad_rows: int
    n_same_text: int
    n_same_normalised: int
    n_candidates: int
    n_pairs: int
    n_clusters: int
    n_removed: int
    cluster_sizes: dict[int, int]
    largest: tuple[LargeCluster, ...]
    largest_group: int
    n_split_groups: int
    n_large_buckets: int
    removed_by_corpus: dict[str, int]
    documents_by_corpus: dict[str, int]
    removed_at: list[tuple[float, int]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON, with the curve: (similarity, probability to be compared)."""
        return {**plain_values(self), "curve": self.bands.curve()}


def dedup(
    shards: Sequence[Shard],
    out: Path,
    spec: DedupSpec | None = None,
    *,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    overwrite: bool = False,
    engine: Engine | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> DedupResult:
    """Find the exact and near duplicates of a corpus and write the directory `out`.

    Writes the table `clusters`, the signatures and similar pairs, and last `dedup.json`, whose presence means that all
    is complete. A killed run goes on where it was when it is called again in the same way; a complete one is read. When
    the directory holds an earlier run of the same kind, `overwrite` is set, and no file of that run is gone, only what
    is new is signed, and compared with all.

    Parameters
    ----------
    shards
        The corpus files, from `find_shards`; their order does not matter.
    out
        The directory.
    spec
        What counts as a duplicate.
    text_column, id_column
        Columns of the corpus that hold the text and the document's id.
    overwrite
        Replace an earlier run.
    engine
        Where the work is done; by default in this machine's processes, or for a small corpus in this one. The result
        does not depend on it.
    memory_bytes
        For the arrays of each worker, and of this process, beside the interpreter; the result does not depend on it.

    Raises
    ------
    SpecError
        `out` holds another run and `overwrite` is not set, or an audit.
    InputError
        A corpus file cannot be read.
    """
    begun = time.monotonic()
    spec = spec or DedupSpec()
    run = Run(shards, out, spec, text_column, id_column, engine, memory_bytes)
    if not overwrite and run.is_finished():
        say(f"{out}: this deduplication is complete, and its result is taken")
        return read_result(out)
    check_target(out, RECORD, overwrite=overwrite)
    run.known = Known.load(out, run.parts, spec)
    run.sign()
    n_same_text = run.find_exact()
    n_candidates, n_large = run.find_pairs()
    run.make_clusters()
    return run.finish(n_same_text, n_candidates, n_large, begun)


def read_result(directory: Path) -> DedupResult:
    """Read the result of a deduplication.

    Raises
    ------
    InputError
        There is none, or its record is damaged.
    """
    record = _read_record(directory)
    if record is None:
        raise InputError(f"there is no {RECORD}", where=str(directory), do="Run evalkit dedup first, to its end")
    try:
        spec = dict(record["spec"])
        how = dict(spec["how"])
        hashing = MinHashing(**{**how, "shingling": Shingling(**how["shingling"])})
        bands = None if spec["bands"] is None else Bands(**spec["bands"])
        plain = {one.name: record[one.name] for one in fields(DedupResult) if one.name != "directory"}
        special = {
            "spec": DedupSpec(**{**spec, "how": hashing, "bands": bands}),
            "bands": Bands(**record["bands"]),
            "cluster_sizes": {int(size): n for size, n in record["cluster_sizes"].items()},
            "largest": tuple(LargeCluster(**one) for one in record["largest"]),
            "removed_at": [(float(threshold), int(n)) for threshold, n in record["removed_at"]],
        }
        return DedupResult(**{**plain, **special, "directory": directory})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the record is not what evalkit dedup writes ({error!r})",
            where=str(directory / RECORD),
            do="Delete the directory",
        ) from None


def _read_record(directory: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = orjson.loads((directory / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"the record cannot be read ({error})", where=str(directory / RECORD), do="Delete the directory"
        ) from None
    return record


def check_target(out: Path, record: str, *, overwrite: bool) -> None:
    """Refuse a directory that holds such a result or an audit, and make the directory.

    A deduplication, a comparison with benchmarks and repeated passages of one corpus may share a directory: the first
    two share the signatures, too.

    Raises
    ------
    SpecError
        It holds one, or cannot be made.
    """
    if (out / AUDIT_RECORD).exists():
        raise SpecError(f"the directory holds an audit ({AUDIT_RECORD})", where=str(out), do="Give another --out")
    if (out / record).exists() and not overwrite:
        raise SpecError(
            f"the directory already holds a result ({record})",
            where=str(out),
            do="Give another --out, or --overwrite; where files were only added, that compares just these with all",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            f"the directory cannot be made ({error.strerror})", where=str(out), do="Give another --out"
        ) from None


def engine_for(shards: Sequence[Shard], engine: Engine | None) -> Engine:
    """Return where the work on a corpus is done: on the engine given, or in this machine's processes."""
    return engine or LocalEngine(1 if sum(shard.size for shard in shards) < ALONE_BYTES else None)


class _Task(Protocol):
    @property
    def path(self) -> Path: ...


_T = TypeVar("_T", bound=_Task)


class Run:
    """One deduplication under way: the parts, what is known of them, and the files in between.

    A step is a number of tasks, each of which writes a file; when all are there, what only this step needs is removed.
    This process holds a few numbers for each part and task, but nothing for each document or pair.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        out: Path,
        spec: DedupSpec,
        text_column: str | Sequence[str],
        id_column: str | None,
        engine: Engine | None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.out, self.spec, self.memory_bytes = out, spec, memory_bytes
        self.engine = engine_for(shards, engine)
        self.tasks: list[SignTask] = []
        for shard in sorted(shards, key=lambda shard: str(shard.path)):
            self.add(shard, text_column, id_column)
        self.bands = spec.chosen_bands
        self.firsts: tuple[int, ...] = ()
        self.n_lines: tuple[int, ...] = ()
        self.n_empty = self.n_bad = 0
        self.known = Known()

    def add(self, shard: Shard, text_column: str | Sequence[str], id_column: str | None) -> None:
        """Add a file behind the others."""
        columns = text_column if isinstance(text_column, str) else tuple(text_column)
        for part in split_shard(shard, PART_BYTES):
            self.tasks.append(SignTask(part, self.spec.how, self.out / SIGNATURES, columns, id_column))

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts, in their order. What is asked for once stays: a file may change meanwhile."""
        return tuple(task.part for task in self.tasks)

    @cached_property
    def work(self) -> Path:
        """Folder of what is needed to go on after a kill; what another kind of call has left would not fit this one."""
        what = [*(part.stem.name for part in self.parts), asdict(self.spec), self.known.stems or self.known.lost,
                self.memory_bytes]  # fmt: skip
        return self.out / WORK / _MINE / hashlib.sha256(to_json(what)).hexdigest()[:16]

    @property
    def equal(self) -> Path:
        """Run: document, the first one that is equal, for all others than this itself."""
        return self.work / "equal.npy"

    @property
    def pairs(self) -> Path:
        """Run: document, document, the bits of their similarity, for all similar pairs."""
        return self.work / "pairs.npy"

    @property
    def n_documents(self) -> int:
        """Documents of all parts."""
        return self.firsts[-1]

    def is_finished(self) -> bool:
        """Whether the directory holds the result of just this."""
        record = _read_record(self.out)
        mine = [[part.stem.name for part in self.parts], plain_values(self.spec)]
        return record is not None and [record.get("parts"), record.get("spec")] == mine

    def sign(self) -> None:
        """Sign the parts that are not signed, and count their documents."""
        left = [task for task, part in zip(self.tasks, self.parts, strict=True) if not part.is_signed]
        if 0 < len(left) < len(self.tasks):
            say(f"{len(self.tasks) - len(left)} of {len(self.tasks)} parts were signed before and are kept")
        self._all("signing", sign_part, left)
        some = [self.parts[k : k + COUNTED_PARTS] for k in range(0, len(self.parts), COUNTED_PARTS)]
        found = dict(self.engine.map(count_part, some))
        counts = np.array([row for k in range(len(some)) for row in found[k]], dtype=np.int64).reshape(-1, 4)
        self.firsts = tuple(np.append(0, np.cumsum(counts[:, 0])).tolist())
        self.n_lines = tuple(counts[:, 1].tolist())
        self.n_empty, self.n_bad = counts[:, 2:].sum(axis=0).tolist()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The parts, some together: of no more documents than fit into the memory, or one part."""
        most, cuts = documents_within(self.memory_bytes, self.bands), [0]
        for k in range(1, len(self.parts)):
            if self.firsts[k + 1] - self.firsts[cuts[-1]] > most:
                cuts.append(k)
        ends = [*cuts[1:], len(self.parts)]
        return tuple(
            Group(number, self.parts[a:b], self.firsts[a : b + 1])
            for number, (a, b) in enumerate(zip(cuts, ends, strict=True))
            if a < b
        )

    @cached_property
    def _band_sets(self) -> tuple[tuple[int, ...], ...]:
        """The bands; of a small corpus, several of them together, for fewer files."""
        most = min(LEAST_KEYS, rows_within(self.memory_bytes // 2, 2))
        n = max(1, most // max(1, self.n_documents))
        return tuple(tuple(range(k, min(k + n, self.bands.n_bands))) for k in range(0, self.bands.n_bands, n))

    def _n_partitions(self, n_columns: int) -> int:
        """Ranges of hashes of all documents of which each fits into the memory."""
        return max(1, -(-self.n_documents // rows_within(self.memory_bytes // 2, n_columns)))

    # --- Steps ---

    def find_exact(self, n_alike: int | None = None) -> int:
        """Find equal texts among the first `n_alike` documents, or all; return how many are equal as written.

        Of each the first takes part in what follows, with all other documents; but texts without shingles do not.
        """
        n_alike = self.n_documents if n_alike is None else n_alike
        counts_path = self.work / "equal-counts.npy"
        if not counts_path.exists():
            found: dict[str, tuple[Path, ...]] = {}
            for column in ("raw_hash", "text_hash"):
                hash_tasks = [
                    HashTask(group, column, n_alike, self.memory_bytes, self.work / f"{column}-{group.number}.npy")
                    for group in self.groups
                ]
                equal_tasks = [
                    EqualTask((), low, high, self.memory_bytes, column == "raw_hash",
                              self.work / f"equal-{column}-{number}.npy")
                    for number, (low, high) in enumerate(equal_ranges(self._n_partitions(3)))
                ]  # fmt: skip
                if not all(_is_done(task) for task in equal_tasks):
                    self._missing("sorting texts", sort_hashes, hash_tasks)
                    runs = self._fewer([task.path for task in hash_tasks], 3)
                    self._missing("finding equal texts", find_equal, [replace(one, runs=runs) for one in equal_tasks])
                self._remove(f"{column}-*.npy")
                found[column] = tuple(task.path for task in equal_tasks)
            self._one(found["text_hash"], 2, self.equal)
            n_same_text = sum(int(load_array(path)[0, 0]) for path in found["raw_hash"])
            save_array(counts_path, np.array([n_same_text]))
        self._remove("equal-*_hash-*.npy", PASSING)
        return int(load_array(counts_path)[0])

    def find_pairs(self) -> tuple[int, int]:
        """Find the similar pairs; return how many were compared, and how many large buckets there are."""
        counts_path = self.work / "pairs-counts.npy"
        if not counts_path.exists():
            spec = self.spec
            known = KnownTask(
                self.known, self.parts if self.known.path else (), self.firsts, self.equal, self.memory_bytes,
                self.work / "known-documents.npy", self.work / "known.npy",
            )  # fmt: skip
            self._missing("taking known pairs", take_known, [known])
            candidates, documents, n_large = self._find_candidates(known)
            self.how: Sets | Estimates = Estimates(self.signatures, self.memory_bytes // 4)
            if spec.verify:
                set_tasks = self._set_tasks((*documents, known.documents))
                self._missing("reading candidates again", write_sets, set_tasks)
                self.how = self._sets(set_tasks)
            compare_tasks = [
                CompareTask(candidates, low, high, self.how, spec.threshold, self.memory_bytes // 2,
                            self.work / f"compared-{number}.npy")
                for number, (low, high) in enumerate(ranges_of(candidates, rows_within(self.memory_bytes, 12)))
            ]  # fmt: skip
            self._missing("comparing", compare, compare_tasks)
            n_compared = sum(int(load_array(task.counts_path)[0]) for task in compare_tasks)
            self._one((*(task.path for task in compare_tasks), known.path), 3, self.pairs, unique=True)
            save_array(counts_path, np.array([n_compared, n_large]))
        elif self.spec.verify:
            self.how = self._sets(self._set_tasks(()))
        else:
            self.how = Estimates(self.signatures, self.memory_bytes // 4)
        self._remove("candidates-*.npy", "candidate-documents-*.npy", "compared-*.npy", "fewer-*.npy", PASSING)
        n_compared, n_large = load_array(counts_path).tolist()
        return n_compared, n_large

    @property
    def signatures(self) -> Signatures:
        """The signatures of the documents that share a band with another one."""
        firsts = (*(group.firsts[0] for group in self.groups), self.n_documents)
        packs = tuple(self.work / f"pack-{group.number}.npy" for group in self.groups)
        return Signatures(firsts, packs, self.spec.how.num_perm)

    def _find_buckets(self, known: KnownTask) -> list[Path]:
        """Find the documents that share a band, and lay their signatures together."""
        done = self.work / "buckets-done.npy"
        n_sets, ranges = len(self._band_sets), equal_ranges(self._n_partitions(2))
        runs = [[self.work / f"band-{k}-{group.number}.npy" for group in self.groups] for k in range(n_sets)]
        bucket_tasks = [
            [
                BucketTask((), low, high, self.memory_bytes, self.work / f"bucket-documents-{band}-{number}.npy",
                           self.work / f"buckets-{band}-{number}.npy")
                for number, (low, high) in enumerate(ranges)
            ]
            for band in range(n_sets)
        ]  # fmt: skip
        if not done.exists():
            if not all(_is_done(task) for tasks in bucket_tasks for task in tasks):
                band_tasks = [
                    BandTask(group, self.bands, self._band_sets, self.equal, self.memory_bytes,
                             tuple(one[group.number] for one in runs),
                             self.work / f"band-done-{group.number}.npy")
                    for group in self.groups
                ]  # fmt: skip
                self._missing("sorting band keys", sort_keys, band_tasks)
                at_once = max(1, AT_ONCE // len(ranges))
                for first in range(0, n_sets, at_once):
                    some = range(first, min(first + at_once, n_sets))
                    left = [task for band in some for task in bucket_tasks[band] if not _is_done(task)]
                    fewer = {band: self._fewer(runs[band], 2) for band in some} if left else {}
                    tasks = [
                        replace(task, runs=fewer[band])
                        for band in some for task in bucket_tasks[band] if not _is_done(task)
                    ]  # fmt: skip
                    self._missing("finding shared bands", find_buckets, tasks)
                    for band in some:
                        self._remove(f"band-{band}-*.npy")
            wanted = self._fewer([task.documents for tasks in bucket_tasks for task in tasks], 1, unique=True)
            pack_tasks = [
                PackTask(group, (*wanted, known.documents), self.spec.how.num_perm, self.memory_bytes // 4, path)
                for group, path in zip(self.groups, self.signatures.packs, strict=True)
            ]
            self._missing("packing signatures", pack, pack_tasks)
            save_array(done, np.empty(0, dtype=np.int64))
        self._remove("band-*.npy", "bucket-documents-*.npy", "fewer-*.npy", PASSING)
        return [task.path for tasks in bucket_tasks for task in tasks]

    def _find_candidates(self, known: KnownTask) -> tuple[tuple[Path, ...], tuple[Path, ...], int]:
        """Find the pairs that are worth comparing: their runs, those of their documents, and the large buckets."""
        spec, parts = self.spec, self.work / "parts.npy"
        done = self.work / "candidates-done.npy"
        names = [f"{band}-{number}" for band in range(len(self._band_sets)) for number in range(self._n_partitions(2))]
        paths, documents = (
            [self.work / f"{kind}-{name}.npy" for name in names] for kind in ("candidates", "candidate-documents")
        )
        if not done.exists():
            buckets = self._find_buckets(known)
            is_old = [part.stem.name in self.known.stem_set for part in self.parts]
            write_rows(parts, np.column_stack([self.firsts[:-1], is_old]).astype(np.int64).reshape(-1, 2))
            least = least_equal(spec.threshold, spec.how.num_perm, verify=spec.verify)
            tasks = [
                CandidateTask(bucket, self.signatures, least, parts, self.memory_bytes, more, path)
                for bucket, more, path in zip(buckets, documents, paths, strict=True)
            ]
            self._missing("finding candidates", find_candidates, tasks)
            save_array(done, np.array([sum(int(load_array(task.counts_path)[0]) for task in tasks)]))
        self._remove("buckets-[0-9]*.npy", "candidates-*.counts.npy")
        fewer = self._fewer(paths, 2, unique=True), self._fewer(documents, 1, unique=True)
        return *fewer, int(load_array(done)[0])

    def _set_tasks(self, wanted: tuple[Path, ...]) -> list[SetTask]:
        n = -(-len(self.tasks) // MOST_SET_FILES)
        return [
            SetTask(tuple(self.tasks[k : k + n]), self.firsts[k : k + n + 1], wanted, self.memory_bytes // 4,
                    self.work / f"sets-{k}.npy")
            for k in range(0, len(self.tasks), n)
        ]  # fmt: skip

    def _sets(self, tasks: Sequence[SetTask]) -> Sets:
        firsts = (*(task.firsts[0] for task in tasks), self.n_documents)
        return Sets(firsts, tuple(task.path for task in tasks), self.memory_bytes // 2)

    def make_clusters(self) -> None:
        """Cluster the documents by their similar pairs, and put equal ones to them."""
        if not self._assembling.path.exists():
            self._missing("connecting pairs", label_pairs, [self._labelling])
            cluster_tasks = self._cluster_tasks()
            self._missing("clustering", cluster, cluster_tasks)
            counts = np.array([load_array(task.counts_path) for task in cluster_tasks]).reshape(-1, 3)
            totals = [counts[:, 0].sum(), counts[:, 1].max(initial=0), counts[:, 2].sum()]
            save_array(self.work / "cluster-counts.npy", np.array(totals, dtype=np.int64))
            self._one([task.path for task in cluster_tasks], 3, self._assembling.clusters)
            self._missing("numbering clusters", assemble, [self._assembling])
        self._remove(PASSING)

    @property
    def _thresholds(self) -> tuple[float, ...]:
        steps = np.round(np.arange(0.05, 1.001, 0.05), 2).tolist()
        return tuple(sorted({self.spec.threshold, *(one for one in steps if one > self.spec.threshold)}))

    @property
    def _labelling(self) -> LabelTask:
        return LabelTask(self.pairs, self._thresholds, self.memory_bytes, self.work / "labelled.npy")

    def _cluster_tasks(self) -> list[ClusterTask]:
        spec, labelled = self.spec, self._labelling.path
        n_tokens = self.signatures if spec.keep == "longest" else None
        return [
            ClusterTask(labelled, low, high, self.how, n_tokens, spec.threshold, spec.split, self.memory_bytes,
                        self.work / f"clustered-{number}.npy")
            for number, (low, high) in enumerate(ranges_of([labelled], rows_within(self.memory_bytes, 32)))
        ]  # fmt: skip

    @property
    def _assembling(self) -> AssembleTask:
        return AssembleTask(
            self.work / "clusters.npy", self.equal, LARGEST, self.memory_bytes, self.work / "members.npy"
        )  # fmt: skip

    # --- Results ---

    def finish(self, n_same_text: int, n_candidates: int, n_large: int, begun: float) -> DedupResult:
        """Write the tables and the record."""
        n_removed_of = self._write_clusters()
        self._write_pairs()
        removed, there = Counter[str](), Counter[str]()
        for task, n_removed, first, stop in zip(self.tasks, n_removed_of, self.firsts, self.firsts[1:], strict=False):
            removed[task.shard.corpus] += n_removed
            there[task.shard.corpus] += stop - first
        n_equal = count_rows([self.equal])
        self.write_bad_rows()
        told = orjson.loads(self._assembling.counts_path.read_bytes())
        _, largest_group, n_split = load_array(self.work / "cluster-counts.npy").tolist()
        by_threshold = load_array(self._labelling.counts_path).tolist()
        result = DedupResult(
            directory=self.out,
            spec=self.spec,
            bands=self.bands,
            n_documents=self.n_documents,
            n_empty=self.n_empty,
            n_bad_rows=self.n_bad,
            n_same_text=n_same_text,
            n_same_normalised=n_equal,
            n_candidates=n_candidates,
            n_pairs=count_rows([self.pairs]),
            n_clusters=sum(n for _, n in told["sizes"]),
            n_removed=sum(n_removed_of),
            cluster_sizes={size: n for size, n in told["sizes"]},
            largest=self._largest(told["largest"]),
            largest_group=largest_group,
            n_split_groups=n_split,
            n_large_buckets=n_large,
            removed_by_corpus=dict(removed),
            documents_by_corpus=dict(there),
            removed_at=[(t, n_equal + n) for t, n in zip(self._thresholds, by_threshold, strict=True)],
            seconds=time.monotonic() - begun,
        )
        self._write_record(result)
        self.clear()
        return result

    def clear(self) -> None:
        """Remove what only a run under way needs."""
        remove_work(self.out / WORK / _MINE)

    def _write_clusters(self) -> list[int]:
        """Write the `clusters` table, in the order of the documents; return how many are removed of each part."""
        n_removed = np.zeros(len(self.parts) + 1, dtype=np.int64)
        with tables.writing(self.out / CLUSTERS, tables.CLUSTERS) as write:
            for rows in self._groups_of_rows(self._assembling.path, 32):
                is_kept = rows[:, 2].astype(bool)
                described = self.describe(rows[:, 0])
                columns = {name: described[name].combine_chunks() for name in described.column_names}
                similarity = pa.array(from_bits(rows[:, 3]), mask=is_kept)
                columns |= {"cluster_id": rows[:, 1], "keep": is_kept, "similarity": similarity}
                for some in _row_groups(tables.from_columns(tables.CLUSTERS, columns)):
                    write(some)
                part_of = np.searchsorted(self.firsts, rows[~is_kept, 0], side="right") - 1
                n_removed += np.bincount(part_of, minlength=len(n_removed))
        return [int(n) for n in n_removed[:-1]]

    def _write_pairs(self) -> None:
        with (
            atomic_path(self.out / PAIRS_FILE) as temporary,
            pq.ParquetWriter(temporary, PAIRS, compression="zstd") as writer,
        ):
            for rows in self._groups_of_rows(self.pairs, 6):
                table = pa.table([rows[:, 0], rows[:, 1], from_bits(rows[:, 2])], schema=PAIRS)
                for some in _row_groups(table):
                    writer.write_table(some)
            writer.add_key_value_metadata({_PARTS: _digest([part.stem.name for part in self.parts])})

    def _groups_of_rows(self, run: Path, n_columns: int) -> Iterator[Int64]:
        """The rows of a run, some whole row groups at a time, or none once."""
        n_groups = min(MOST_GROUPS, max(1, rows_within(self.memory_bytes, n_columns) // ROW_GROUP))
        rows, step = load_array(run), n_groups * ROW_GROUP
        for start in range(0, max(1, len(rows)), step):
            yield np.array(rows[start : start + step])

    def _largest(self, told: Sequence[tuple[int, int, int, float]]) -> tuple[LargeCluster, ...]:
        """The largest clusters, each by its kept document."""
        heads = np.array([head for _, _, head, _ in told], dtype=np.int64)
        order = np.argsort(heads)
        described = self.describe(heads[order]).select(["file", "row", "doc_id"]).to_pylist()
        where = dict(zip(heads[order].tolist(), described, strict=True))
        return tuple(LargeCluster(n_documents=n, **where[head], least_similarity=least) for n, _, head, least in told)

    def describe(self, documents: Int64, more: Sequence[str] = ()) -> pa.Table:
        """Return the corpus, file, row and doc_id of documents (rising numbers), and more columns of their parts."""
        cuts = np.searchsorted(documents, self.firsts).tolist()
        kinds = {"row": pa.int64(), "doc_id": pa.string(), **dict.fromkeys(more, pa.int64())}
        names = ["corpus", "file", *kinds]
        found = [pa.schema([(name, kinds.get(name, pa.string())) for name in names]).empty_table()]
        for k in np.flatnonzero(np.diff(cuts)).tolist():
            shard, mine = self.tasks[k].shard, documents[cuts[k] : cuts[k + 1]] - self.firsts[k]
            table = read_documents(self.parts[k], list(kinds)).take(mine)
            columns = {
                "corpus": pa.array([shard.corpus] * len(mine), pa.string()),
                "file": pa.array([str(shard.path)] * len(mine), pa.string()),
                **{name: table[name] for name in kinds},
            }
            rows = pa.array(table["row"].to_numpy() + self._row_offsets[k], pa.int64())
            found.append(pa.table({**columns, "row": rows}))
        return pa.concat_tables(found)

    @cached_property
    def _row_offsets(self) -> list[int]:
        return row_offsets([task.shard for task in self.tasks], self.n_lines)

    def write_bad_rows(self) -> None:
        """List the rows that could not be read, if any."""
        path = self.out / BAD_ROWS
        path.unlink(missing_ok=True)
        if not self.n_bad:
            return
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            for part, offset in zip(self.parts, self._row_offsets, strict=True):
                for row in part.counts["bad_rows"]:
                    file.write(to_json({**row, "row": row["row"] + offset}) + b"\n")

    def _write_record(self, result: DedupResult) -> None:
        write_json(
            self.out / RECORD,
            {
                **{name: value for name, value in result.to_dict().items() if name != "directory"},
                "finished": finished_now(),
                "parts": [part.stem.name for part in self.parts],
                "firsts": self.firsts,
                "files": sorted({(task.shard.corpus, str(task.shard.path), task.shard.size) for task in self.tasks}),
            },
        )

    # --- Tasks ---

    def _fewer(self, runs: Sequence[Path], n_columns: int, *, unique: bool = False) -> tuple[Path, ...]:
        """Merge runs that follow each other until no task has to open more than `FAN_IN`."""
        while len(runs) > FAN_IN:
            some = [tuple(runs[k : k + FAN_IN]) for k in range(0, len(runs), FAN_IN)]
            tasks = []
            for one in some:
                name = hashlib.sha256(to_json([path.name for path in one])).hexdigest()[:16]
                path = self.work / f"fewer-{name}.npy"
                tasks.append(MergeTask(one, n_columns, self.memory_bytes // 2, unique, path))
            self._missing("merging", merge_runs, tasks)
            runs = [task.path for task in tasks]
        return tuple(runs)

    def _one(self, runs: Sequence[Path], n_columns: int, path: Path, *, unique: bool = False) -> None:
        """Merge runs to one."""
        if not path.exists():
            task = MergeTask(
                self._fewer(runs, n_columns, unique=unique), n_columns, self.memory_bytes // 2, unique, path
            )
            self._missing("merging", merge_runs, [task])

    def _remove(self, *patterns: str) -> None:
        """Remove files in between that were used."""
        for pattern in patterns:
            for path in self.work.glob(pattern):
                path.unlink(missing_ok=True)

    def _missing(self, what: str, function: Callable[[_T], None], tasks: Sequence[_T]) -> None:
        """Do the tasks whose file is not there."""
        self._all(what, function, [task for task in tasks if not _is_done(task)])

    def _all(self, what: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        with progress_bar(what, len(tasks) or None) as bar:
            for _ in self.engine.map(function, tasks):
                bar.advance()


def _row_groups(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, max(1, len(table)), ROW_GROUP):
        yield table.slice(start, ROW_GROUP)


def _digest(names: Sequence[str]) -> bytes:
    return hashlib.sha256(to_json(list(names))).hexdigest().encode()


def _is_done(task: _Task) -> bool:
    return task.path.exists()


def remove_work(folder: Path) -> None:
    """Remove a folder of files in between, and the one around it when nothing else is there."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def finished_now() -> str:
    """The time, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Known:
    """What an earlier run in the same directory has found.

    Attributes
    ----------
    stems
        Names of the parts whose pairs with each other are known.
    firsts
        The numbers that their first documents had.
    path
        The pairs; None when there are none.
    lost
        Names of the parts of a run whose pairs are not there any more, since another one was killed when it had
        replaced them: they are compared again.
    """

    stems: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    path: Path | None = None
    lost: tuple[str, ...] = ()

    @cached_property
    def stem_set(self) -> frozenset[str]:
        """The names, to look them up."""
        return frozenset(self.stems)

    @classmethod
    def load(cls, out: Path, parts: Sequence[Part], spec: DedupSpec) -> Known:
        """Nothing when there is no such run, or one of another kind, or of files that are not there now."""
        record = _read_record(out)
        if record is None:
            return cls()
        asked = plain_values(spec)
        # How clusters are made of pairs may differ.
        same = all(record["spec"][name] == asked[name] for name in asked if name not in ("keep", "split"))
        if not same or not set(record["parts"]) <= {part.stem.name for part in parts}:
            return cls()
        stems = tuple(record["parts"])
        try:
            told = (pq.read_metadata(out / PAIRS_FILE).metadata or {}).get(_PARTS)
        except (OSError, pa.ArrowException):
            told = None
        if told != _digest(stems):
            return cls(lost=stems)
        return cls(stems, tuple(record["firsts"]), out / PAIRS_FILE)

    def moved(self, parts: Sequence[Part], firsts: Sequence[int]) -> Iterator[tuple[Int64, npt.NDArray[np.float64]]]:
        """Yield the pairs that are known, with the numbers of now, and their similarities, some at a time."""
        if self.path is None:
            return
        new_first = dict(zip((part.stem.name for part in parts), firsts, strict=False))
        moved_by = np.array([new_first[stem] - old for stem, old in zip(self.stems, self.firsts, strict=False)])
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches():
                pairs = np.column_stack([batch["one"].to_numpy(), batch["other"].to_numpy()])
                if len(pairs):
                    pairs = pairs + moved_by[np.searchsorted(self.firsts, pairs, side="right") - 1]
                    yield pairs, batch["similarity"].to_numpy()


@dataclass(frozen=True)
class KnownTask:
    """The pairs of an earlier run to be taken over."""

    known: Known
    parts: tuple[Part, ...]
    firsts: tuple[int, ...]
    equal: Path
    memory_bytes: int
    documents: Path
    path: Path


def take_known(task: KnownTask) -> None:
    """Write the pairs of an earlier run, of the documents that take part now, and before that these documents."""
    memory = task.memory_bytes // 4
    with (
        sorting(task.path, 3, memory, unique=True) as add,
        sorting(task.documents, 1, memory, unique=True) as add_documents,
    ):
        for pairs, similarities in task.known.moved(task.parts, task.firsts):
            now = np.sort(replaced(task.equal, pairs.ravel()).reshape(-1, 2), axis=1)
            add(np.column_stack([now, similarities.view(np.int64)]))
            add_documents(now.reshape(-1, 1))


def count_part(parts: tuple[Part, ...]) -> list[tuple[int, int, int, int]]:
    """Return n_documents, n_lines, n_empty and n_bad of some parts."""
    found = []
    for part in parts:
        counts = part.counts
        found.append((part.n_documents, counts["n_lines"], counts["n_empty"], counts["n_bad"]))
    return found
