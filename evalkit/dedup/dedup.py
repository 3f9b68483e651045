"""Deduplication of a corpus: sign it, find and compare candidates, cluster them, write the tables and the record."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evalkit import tables
from evalkit.corpora.shards import AUDIT_RECORD, DEDUP_RECORD, Shard
from evalkit.corpora.split import row_offsets, split_shard
from evalkit.dedup.candidates import (
    PARTITION_DOCUMENTS,
    CandidateTask,
    Exact,
    find_candidates,
    find_exact,
    least_equal,
    read_candidates,
)
from evalkit.dedup.clusters import Clusters, make_clusters, reaches
from evalkit.dedup.compare import (
    PAIRS,
    CompareTask,
    Estimates,
    Sets,
    compare,
    ranges_of,
    read_pairs,
    wanted_documents,
)
from evalkit.dedup.lsh import FALSE_NEGATIVE_WEIGHT, Bands, choose_bands
from evalkit.dedup.parts import (
    BandTask,
    Part,
    SetTask,
    SignTask,
    read_counts,
    read_documents,
    save_array,
    sign_part,
    sort_bands,
    write_sets,
)
from evalkit.dedup.shingles import Shingling
from evalkit.dedup.signatures import MinHashing
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError, SpecError
from evalkit.files import atomic_path, plain_values, to_json, write_json, write_text
from evalkit.progress import progress_bar, say

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

COMPARED_PAIRS: Final = 2_000_000
"""About so many candidates are in memory at a time."""

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

    Raises
    ------
    SpecError
        `out` holds another run and `overwrite` is not set, or an audit.
    InputError
        A corpus file cannot be read.
    """
    begun = time.monotonic()
    spec = spec or DedupSpec()
    run = Run(shards, out, spec, text_column, id_column, engine)
    if not overwrite and run.is_finished():
        say(f"{out}: this deduplication is complete, and its result is taken")
        return read_result(out)
    check_target(out, RECORD, overwrite=overwrite)
    run.known = Known.load(out, run.parts, spec)
    run.sign()
    exact = run.find_exact()
    pairs, similarities, n_candidates, n_large = run.find_pairs(exact)
    clusters = make_clusters(pairs, similarities, run.rank(), spec.threshold, run.measure, split=spec.split)
    return run.finish(exact, pairs, similarities, clusters, n_candidates, n_large, begun)


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
    """One deduplication under way: the parts, what is known of them, and the files in between."""

    def __init__(
        self,
        shards: Sequence[Shard],
        out: Path,
        spec: DedupSpec,
        text_column: str | Sequence[str],
        id_column: str | None,
        engine: Engine | None,
    ) -> None:
        self.out, self.spec = out, spec
        self.engine = engine_for(shards, engine)
        self.tasks: list[SignTask] = []
        for shard in sorted(shards, key=lambda shard: str(shard.path)):
            self.add(shard, text_column, id_column)
        self.bands = spec.chosen_bands
        self.firsts: tuple[int, ...] = ()
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
        what = [*(part.stem.name for part in self.parts), asdict(self.spec), self.known.stems]
        return self.out / WORK / _MINE / hashlib.sha256(to_json(what)).hexdigest()[:16]

    @property
    def wanted(self) -> Path:
        """File with the numbers of the documents that are in a pair."""
        return self.work / "wanted.npy"

    @property
    def representatives(self) -> Path:
        """File that says which documents take part."""
        return self.work / "representatives.npy"

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
        """Sign the parts that are not signed, and sort their band keys."""
        left = [task for task, part in zip(self.tasks, self.parts, strict=True) if not part.is_signed]
        if 0 < len(left) < len(self.tasks):
            say(f"{len(self.tasks) - len(left)} of {len(self.tasks)} parts were signed before and are kept")
        self._all("signing", sign_part, left)
        sizes = [len(part.signatures) for part in self.parts]
        self.firsts = tuple(np.append(0, np.cumsum(sizes, dtype=np.int64)).tolist())
        self._missing("sorting band keys", sort_bands, [BandTask(part, self.bands) for part in self.parts])

    def find_exact(self, n_alike: int | None = None) -> Exact:
        """Find equal texts among the first `n_alike` documents, or all.

        Of each the first takes part in what follows, with all other documents; but texts without shingles do not.
        """
        exact = find_exact(self.parts, n_alike)
        takes_part = (exact.first_equal == np.arange(self.n_documents)) & (self.n_tokens > 0)
        save_array(self.representatives, takes_part)
        return exact

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        found = [read_documents(part, ["n_tokens"])["n_tokens"].to_numpy() for part in self.parts]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def rank(self) -> npt.NDArray[np.int64]:
        """Which document of a cluster is kept: that of the lowest number."""
        numbers = np.arange(self.n_documents)
        if self.spec.keep == "first":
            return numbers
        rank = np.empty_like(numbers)
        rank[np.lexsort((numbers, -self.n_tokens))] = numbers
        return rank

    def find_pairs(self, exact: Exact) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], int, int]:
        """Return the similar pairs, their similarities, and how many were compared; and how many large buckets."""
        spec, n_partitions = self.spec, max(1, -(-self.n_documents // PARTITION_DOCUMENTS))
        candidate_tasks = [
            CandidateTask(
                self.parts, self.firsts, self.bands, band, partition, n_partitions,
                least_equal(spec.threshold, spec.how.num_perm, verify=spec.verify), self.representatives,
                tuple(part.stem.name in self.known.stems for part in self.parts),
                self.work / f"candidates-{band}-{partition}.npy",
            )
            for band in range(self.bands.n_bands)
            for partition in range(n_partitions)
        ]  # fmt: skip
        self._missing("finding candidates", find_candidates, candidate_tasks)
        candidates = tuple(task.path for task in candidate_tasks)
        n_large = sum(read_candidates(path)[1] for path in candidates)
        old_pairs, old_similarities = self.known.pairs(self.parts, self.firsts, exact.first_equal)
        wanted = np.union1d(wanted_documents(candidates, self.n_documents), old_pairs)
        save_array(self.wanted, wanted)
        how: Sets | Estimates = Estimates(self.parts, self.firsts)
        if spec.verify:
            how = Sets(tuple(self._set_tasks()))
            self._missing("reading candidates again", write_sets, how.tasks)
        compare_tasks = [
            CompareTask(candidates, low, high, how, spec.threshold, self.work / f"pairs-{low}-{high}.parquet")
            for low, high in ranges_of(candidates, self.n_documents, COMPARED_PAIRS)
        ]
        self._missing("comparing", compare, compare_tasks)
        found = [read_pairs(task.path) for task in compare_tasks]
        table = pa.concat_tables([PAIRS.empty_table(), *(one.replace_schema_metadata(None) for one, _ in found)])
        pairs = np.concatenate([np.column_stack([table["one"].to_numpy(), table["other"].to_numpy()]), old_pairs])
        similarities = np.concatenate([table["similarity"].to_numpy(), old_similarities])
        pairs, first = np.unique(pairs.astype(np.int64), axis=0, return_index=True)
        self.how = how
        return pairs, similarities[first], sum(n for _, n in found), n_large

    def measure(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Compare further pairs of the documents that are in one."""
        return self.how.measure(pairs)

    def _set_tasks(self) -> list[SetTask]:
        return [
            SetTask(task, self.wanted, first, stop - first, self.work / f"sets-{part.stem.name}.npy")
            for task, part, first, stop in zip(self.tasks, self.parts, self.firsts, self.firsts[1:], strict=False)
        ]

    def finish(
        self,
        exact: Exact,
        pairs: npt.NDArray[np.int64],
        similarities: npt.NDArray[np.float64],
        clusters: Clusters,
        n_candidates: int,
        n_large: int,
        begun: float,
    ) -> DedupResult:
        """Write the tables and the record."""
        numbers = np.arange(self.n_documents)
        kept, similarity = numbers.copy(), np.ones(self.n_documents)
        kept[clusters.documents], similarity[clusters.documents] = clusters.kept, clusters.similarities
        # An equal document is as similar as the one that took part in its place.
        kept, similarity = kept[exact.first_equal], similarity[exact.first_equal]
        members = np.flatnonzero(np.bincount(kept, minlength=self.n_documents)[kept] > 1)
        table = self._table(members, kept, similarity)
        tables.write(self.out / CLUSTERS, table, tables.CLUSTERS)
        with atomic_path(self.out / PAIRS_FILE) as temporary:
            pq.write_table(pa.table([*pairs.T, similarities], schema=PAIRS), temporary, compression="zstd")
        is_removed = kept != numbers
        by_part = [(int(is_removed[a:b].sum()), b - a) for a, b in zip(self.firsts, self.firsts[1:], strict=False)]
        removed, there = Counter[str](), Counter[str]()
        for task, (n_removed, n) in zip(self.tasks, by_part, strict=True):
            removed[task.shard.corpus] += n_removed
            there[task.shard.corpus] += n
        sizes = np.unique(np.unique(kept[members], return_counts=True)[1], return_counts=True)
        n_equal = int((exact.first_equal != numbers).sum())
        n_empty, n_bad = self.write_bad_rows()
        result = DedupResult(
            directory=self.out,
            spec=self.spec,
            bands=self.bands,
            n_documents=self.n_documents,
            n_empty=n_empty,
            n_bad_rows=n_bad,
            n_same_text=int(exact.is_same_raw.sum()),
            n_same_normalised=n_equal,
            n_candidates=n_candidates,
            n_pairs=len(pairs),
            n_clusters=len(np.unique(kept[members])),
            n_removed=int(is_removed.sum()),
            cluster_sizes=dict(zip(*(one.tolist() for one in sizes), strict=True)),
            largest=_largest(table),
            largest_group=clusters.largest_component,
            n_split_groups=clusters.n_split,
            n_large_buckets=n_large,
            removed_by_corpus=dict(removed),
            documents_by_corpus=dict(there),
            removed_at=_removed_at(self.spec.threshold, pairs, similarities, n_equal),
            seconds=time.monotonic() - begun,
        )
        self._write_record(result)
        self.clear()
        return result

    def clear(self) -> None:
        """Remove what only a run under way needs."""
        remove_work(self.out / WORK / _MINE)

    def _table(
        self, members: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], similarity: npt.NDArray[np.float64]
    ) -> pa.Table:
        """The `clusters` table: clusters are numbered as their first documents stand in the corpus."""
        heads, first, cluster = np.unique(kept[members], return_index=True, return_inverse=True)
        order = np.argsort(first)
        number = np.empty(len(heads), dtype=np.int64)
        number[order] = np.arange(len(heads))
        is_kept = kept[members] == members
        described = self.describe(members)
        return tables.from_columns(
            tables.CLUSTERS,
            {
                **{name: described[name].combine_chunks() for name in described.column_names},
                "cluster_id": number[cluster],
                "keep": is_kept,
                "similarity": pa.array(similarity[members], mask=is_kept),
            },
        )

    def describe(self, documents: npt.NDArray[np.int64], more: Sequence[str] = ()) -> pa.Table:
        """Return the corpus, file, row and doc_id of documents (rising numbers), and more columns of their parts."""
        shards = [task.shard for task in self.tasks]
        offsets = row_offsets(shards, [read_counts(part)["n_lines"] for part in self.parts])
        cuts = np.searchsorted(documents, self.firsts)
        found = []
        for k, (shard, part) in enumerate(zip(shards, self.parts, strict=True)):
            mine = documents[cuts[k] : cuts[k + 1]] - self.firsts[k]
            table = read_documents(part, ["row", "doc_id", *more]).take(mine)
            columns = {
                "corpus": pa.array([shard.corpus] * len(mine), pa.string()),
                "file": pa.array([str(shard.path)] * len(mine), pa.string()),
                **{name: table[name] for name in table.column_names},
            }
            found.append(pa.table({**columns, "row": pa.array(table["row"].to_numpy() + offsets[k], pa.int64())}))
        return pa.concat_tables(found)

    def write_bad_rows(self) -> tuple[int, int]:
        """List the rows that could not be read, if any, and return how many rows are empty and how many are bad."""
        counts = [read_counts(part) for part in self.parts]
        offsets = row_offsets([task.shard for task in self.tasks], [one["n_lines"] for one in counts])
        listed = [
            {**row, "row": row["row"] + offset}
            for one, offset in zip(counts, offsets, strict=True)
            for row in one["bad_rows"]
        ]
        path = self.out / BAD_ROWS
        path.unlink(missing_ok=True)
        if listed:
            write_text(path, "".join(f"{to_json(row).decode()}\n" for row in listed))
        return sum(one["n_empty"] for one in counts), sum(one["n_bad"] for one in counts)

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

    def _missing(self, what: str, function: Callable[[_T], None], tasks: Sequence[_T]) -> None:
        """Do the tasks whose file is not there."""
        self._all(what, function, [task for task in tasks if not _is_done(task)])

    def _all(self, what: str, function: Callable[[Any], None], tasks: Sequence[Any]) -> None:
        with progress_bar(what, len(tasks) or None) as bar:
            for _ in self.engine.map(function, tasks):
                bar.advance()


def remove_work(folder: Path) -> None:
    """Remove a folder of files in between, and the one around it when nothing else is there."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def finished_now() -> str:
    """The time, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _largest(table: pa.Table) -> tuple[LargeCluster, ...]:
    """The largest clusters of the table."""
    kept = table.filter(table["keep"]).sort_by("cluster_id")
    grouped = table.group_by("cluster_id").aggregate([("row", "count"), ("similarity", "min")]).sort_by("cluster_id")
    order = np.argsort(-grouped["row_count"].to_numpy(), kind="stable")[:LARGEST]
    found = []
    for head, group in zip(kept.take(order).to_pylist(), grouped.take(order).to_pylist(), strict=True):
        where = head["file"], head["row"], head["doc_id"]
        found.append(LargeCluster(group["row_count"], *where, group["similarity_min"]))
    return tuple(found)


def _is_done(task: _Task) -> bool:
    return (task.bounds_path if isinstance(task, SetTask) else task.path).exists()


def _removed_at(
    threshold: float, pairs: npt.NDArray[np.int64], similarities: npt.NDArray[np.float64], n_equal: int
) -> list[tuple[float, int]]:
    """How many documents each threshold would remove, those of equal text among them."""
    found = []
    steps = np.round(np.arange(0.05, 1.001, 0.05), 2).tolist()
    for higher in sorted({threshold, *(one for one in steps if one > threshold)}):
        documents, places = np.unique(pairs[reaches(similarities, higher)], return_inverse=True)
        n = len(documents)
        ones, other = places.reshape(-1, 2).T
        n_groups = connected_components(coo_array((np.ones(len(ones)), (ones, other)), shape=(n, n)))[0] if n else 0
        found.append((higher, n_equal + n - n_groups))
    return found


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
    """

    stems: tuple[str, ...] = ()
    firsts: tuple[int, ...] = ()
    path: Path | None = None

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
        return cls(tuple(record["parts"]), tuple(record["firsts"]), out / PAIRS_FILE)

    def pairs(
        self, parts: Sequence[Part], firsts: Sequence[int], first_equal: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The pairs that are known, with the numbers of now and of the documents that take part now."""
        if self.path is None:
            return np.empty((0, 2), dtype=np.int64), np.empty(0)
        table = pq.read_table(self.path)
        pairs = np.column_stack([table["one"].to_numpy(), table["other"].to_numpy()])
        new_first = dict(zip((part.stem.name for part in parts), firsts, strict=False))
        moved_by = np.array([new_first[stem] - old for stem, old in zip(self.stems, self.firsts, strict=False)])
        if len(pairs):
            pairs = pairs + moved_by[np.searchsorted(self.firsts, pairs, side="right") - 1]
        return np.sort(first_equal[pairs], axis=1), table["similarity"].to_numpy()
