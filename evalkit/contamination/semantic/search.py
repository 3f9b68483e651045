"""Finds rewritten items in a corpus: windows with rare words in common, and their similarity as sentence embeddings.

Two kinds of tasks, each with a file of its own that appears whole, so that a killed search goes on from those that are
there: `find_windows` reads a part of the corpus, `compare_windows` embeds some thousand different windows of it.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.contamination.semantic.embedding import best_device, embed, fingerprint_model
from evalkit.contamination.semantic.evidence import score, weigh
from evalkit.contamination.semantic.lexicon import Lexicon, build_lexicon, load_lexicon, save_lexicon
from evalkit.contamination.semantic.windows import LENGTHS, Int64, Pieces, cut, windows
from evalkit.corpora.readers import read_shard
from evalkit.corpora.shards import Shard
from evalkit.corpora.split import row_offsets, split_shard
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError
from evalkit.files import atomic_path, to_json
from evalkit.progress import progress_bar, say
from evalkit.text.tokens import tokens

VERSION: Final = 1
"""Version of the search; another one finds other windows, or weighs them otherwise."""

_PART_BYTES: Final = 16 << 20
_BATCH_BYTES: Final = 2 << 20
_TEXTS_A_TASK: Final = 1024
_KEPT_WINDOWS: Final = 3
_SAMPLED_PARTS, _SAMPLED_BYTES = 8, 4 << 20
_TOTALS: Final = b"evalkit.totals"
_PLACES: Final = pa.schema(
    [
        ("row", pa.int64()),
        ("doc_id", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("hash", pa.uint64()),
        ("text", pa.large_string()),
    ]
)

_SIMILAR: Final = pa.schema(
    [
        ("hash", pa.uint64()),
        ("text", pa.large_string()),
        ("item", pa.int64()),
        *((name, pa.float64()) for name in ("similarity", "margin", "share", "numbers")),
    ]
)
_Task = TypeVar("_Task", bound="FindTask | EmbedTask | CompareTask")


@dataclass(frozen=True)
class FindTask:
    """A part of the corpus to be read for windows with rare words. Like the others, it needs nothing but files.

    Attributes
    ----------
    shard
        The part.
    lexicon, fingerprint
        The saved lexicon, and what tells it from others.
    out
        Folder of the result.
    text_column, id_column
        As `read_shard` takes them.
    sample
        Share of the documents that are searched, chosen by their text.
    """

    shard: Shard
    lexicon: Path
    fingerprint: str
    out: Path
    text_column: str | tuple[str, ...]
    id_column: str | None
    sample: float

    @property
    def path(self) -> Path:
        """The part's file. A file of the corpus is told by its name, size and time of change."""
        shard = self.shard
        changed = shard.path.stat().st_mtime_ns if isinstance(shard.path, Path) else None
        what = [VERSION, self.fingerprint, str(shard.path), shard.size, changed, shard.start, shard.stop]
        return self.out / f"{_digest([*what, self.text_column, self.id_column, self.sample])}.windows.parquet"


@dataclass(frozen=True)
class EmbedTask:
    """Texts in a file, of which the vectors are wanted."""

    texts: Path
    model: Path
    device: str

    @property
    def path(self) -> Path:
        """The vectors' file."""
        return self.texts.with_suffix(".npy")


@dataclass(frozen=True)
class CompareTask:
    """Windows in a file, which are to be compared with all items.

    Attributes
    ----------
    texts
        The windows; the name says what the result depends on.
    items, vectors
        The items' texts and vectors.
    lexicon, fingerprint, model, device
        As above.
    """

    texts: Path
    items: Path
    vectors: Path
    lexicon: Path
    fingerprint: str
    model: Path
    device: str

    @property
    def path(self) -> Path:
        """The result's file."""
        return self.texts.with_suffix(".similar")


def find_windows(task: FindTask) -> None:
    """Write the windows of one part that share enough rare words with an item.

    Raises
    ------
    InputError
        The corpus cannot be read.
    """
    path = task.path  # before reading: a file that changes meanwhile gets another name next time
    lexicon = _lexicon(task.lexicon, task.fingerprint)
    n_searched = n_windows = n_kept = 0
    reader = read_shard(task.shard, text_column=task.text_column, id_column=task.id_column, batch_bytes=_BATCH_BYTES)
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, _PLACES, compression="zstd") as writer:
        for batch in reader:
            texts = batch.texts.to_pylist()
            chosen = [k for k, text in enumerate(texts) if is_sampled(text, task.sample)]
            pieces = cut([texts[k] for k in chosen])
            first, last = windows(pieces, lexicon.lengths)
            items, shares = lexicon.search(pieces, first, last)
            kept = _best_windows(pieces, first, last, items, shares, lexicon)
            documents = np.array(chosen, dtype=np.int64)[pieces.texts[first[kept]]]
            starts, ends = pieces.starts[first[kept]], pieces.ends[last[kept] - 1]
            found = [texts[d][start:end] for d, start, end in zip(documents, starts, ends, strict=True)]
            columns = [batch.rows[documents], batch.doc_ids.take(pa.array(documents)).cast(pa.string()), starts, ends]
            hashes = np.array([_hash(text) for text in found], dtype=np.uint64)
            writer.write_table(pa.table([*columns, hashes, pa.array(found, pa.large_string())], schema=_PLACES))
            n_searched, n_windows, n_kept = n_searched + len(chosen), n_windows + len(first), n_kept + len(kept)
        counts = {"n_documents": reader.counts.n_documents, "n_lines": reader.counts.n_lines}
        totals = counts | {"n_searched": n_searched, "n_windows": n_windows, "n_kept": n_kept}
        writer.add_key_value_metadata({_TOTALS: to_json(totals)})


def embed_texts(task: EmbedTask) -> None:
    """Write the vectors of some texts."""
    texts = pq.read_table(task.texts, columns=["text"]).column("text").to_pylist()
    with atomic_path(task.path) as temporary, temporary.open("wb") as file:
        np.save(file, embed(texts, task.model, task.device), allow_pickle=False)


def compare_windows(task: CompareTask) -> None:
    """Embed some windows and write what each has in common with the items that it is most like."""
    table = pq.read_table(task.texts)
    texts, hashes = table.column("text").to_pylist(), table.column("hash").to_numpy()
    items, vectors = _items(task.items, task.vectors)
    found = weigh(
        texts, embed(texts, task.model, task.device), items, vectors, _lexicon(task.lexicon, task.fingerprint)
    )
    columns = [hashes[found.texts], table.column("text").take(pa.array(found.texts)), found.items]
    columns += [found.similarity, found.margin, found.share, found.numbers]
    with atomic_path(task.path) as temporary:
        pq.write_table(pa.table(columns, schema=_SIMILAR), temporary, compression="zstd")


def is_sampled(text: str, share: float) -> bool:
    """Whether a document belongs to the sample: decided by its text, so that copies are all in it or all out."""
    return share >= 1 or _hash(text) < share * 2**64


@dataclass(frozen=True)
class Pairs:
    """Documents and the items that they are most like, one row each with the best window, and what was read.

    Attributes
    ----------
    table
        Columns: `corpus`, `file`, `row`, `doc_id`; `start`, `end` of the window in characters; `item`, its number;
        `text`, the window; and those of `Evidence`.
    n_documents, n_searched
        Documents of the corpus, and those of them that were searched.
    n_windows, n_kept, n_embedded
        Windows looked at, those that share enough rare words with an item, and the different texts among these.
    """

    table: pa.Table
    n_documents: int
    n_searched: int
    n_windows: int
    n_kept: int
    n_embedded: int


def search(
    shards: Sequence[Shard],
    items: Sequence[str],
    work: Path,
    *,
    model: Path,
    text_column: str | Sequence[str] = "text",
    id_column: str | None = "id",
    sample: float = 1.0,
    engine: Engine | None = None,
) -> tuple[Pairs, Lexicon]:
    """Look for windows of the corpus that are like one of the items.

    Parameters
    ----------
    shards
        The corpus files.
    items
        Different texts. Of one longer than the longest window, the beginning is looked for.
    work
        Folder for what is needed to go on after a kill.
    model
        Folder of the sentence-embedding model, from `find_model`.
    text_column, id_column
        As `read_shard` takes them.
    sample
        Share of the documents that are searched.
    engine
        Where the work is done; on a GPU, the model runs in this process.

    Raises
    ------
    InputError
        The corpus cannot be read, or no item says enough to be judged.
    ModelError
        The model cannot be loaded.
    """
    engine, device = engine or LocalEngine(), best_device()
    engine.shares_files(work)
    of_model = engine if device == "cpu" else LocalEngine(1)
    columns = text_column if isinstance(text_column, str) else tuple(text_column)
    items = [_beginning(item) for item in items]
    parts = [part for shard in shards for part in split_shard(shard, _PART_BYTES)]
    has_words = any(tokens(item) for item in items)
    lexicon = build_lexicon(items, _sample(parts, columns)) if has_words else None
    if lexicon is None or not lexicon.is_judged.any():
        raise InputError(
            "no question says enough to be told from other texts when it is rewritten",
            where="the benchmarks",
            do="Leave the search for rewritten items out",
        )
    fingerprint = lexicon.fingerprint
    words = work / f"lexicon-{fingerprint[:16]}.npz"
    save_lexicon(lexicon, words)

    tasks = [FindTask(part, words, fingerprint, work, columns, id_column, sample) for part in parts]
    _do(engine, find_windows, tasks, "looking for rare words", [1] * len(tasks), "parts")

    key = _digest([VERSION, fingerprint_model(model), fingerprint])
    vectors = _vectors(of_model, items, work, key, model, device)
    compared = [
        CompareTask(path, vectors.with_suffix(".parquet"), vectors, words, fingerprint, model, device)
        for path in _distinct_windows(tasks, work, key)
    ]
    n_texts = [pq.read_metadata(task.texts).num_rows for task in compared]
    _do(of_model, compare_windows, compared, "comparing", n_texts, "windows")
    totals = [orjson.loads(pq.read_metadata(task.path).metadata[_TOTALS]) for task in tasks]
    pairs = Pairs(
        table=_join(tasks, [total["n_lines"] for total in totals], compared),
        n_embedded=sum(n_texts),
        **{name: sum(total[name] for total in totals) for name in ("n_documents", "n_searched", "n_windows", "n_kept")},
    )
    return pairs, lexicon


def _beginning(item: str) -> str:
    """As much of an item as a window can hold."""
    found = tokens(item)
    return item if len(found) <= LENGTHS[-1] else item[: found[LENGTHS[-1] - 1].end]


def _do(
    engine: Engine,
    function: Callable[[_Task], None],
    tasks: Sequence[_Task],
    description: str,
    sizes: Sequence[int],
    unit: str,
) -> None:
    """Do what an earlier search has not left done, and show how far it is."""
    left = [k for k, task in enumerate(tasks) if not task.path.exists()]
    if len(left) < len(tasks):
        say(f"{description}: {len(tasks) - len(left)} of {len(tasks)} parts were done before and are kept")
    with progress_bar(description, sum(sizes[k] for k in left), unit=unit) as bar, warnings.catch_warnings():
        # The model's buffers look to joblib like a leak, for which it starts a worker anew.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given")
        for number, _ in engine.map(function, [tasks[k] for k in left]):
            bar.advance(sizes[left[number]])


def _sample(parts: Sequence[Shard], columns: str | tuple[str, ...]) -> list[str]:
    """Some texts from the beginnings of some parts, spread over the corpus."""
    chosen = parts[:: max(1, -(-len(parts) // _SAMPLED_PARTS))]
    texts: list[str] = []
    for part in chosen:
        with read_shard(part, text_column=columns, id_column=None, batch_bytes=_SAMPLED_BYTES // len(chosen)) as reader:
            for batch in reader:
                texts += batch.texts.to_pylist()
                break
    return texts


def _best_windows(
    pieces: Pieces, first: Int64, last: Int64, items: Int64, shares: npt.NDArray[np.float64], lexicon: Lexicon
) -> Int64:
    """Choose, of the windows of each document that share most with the same item, the best few."""
    found = np.flatnonzero(items >= 0)
    document, item = pieces.texts[first[found]], items[found]
    # A longer window shares more, by what is not the item.
    length = pieces.bounds[last[found]] - pieces.bounds[first[found]]
    rank = shares[found] * np.minimum(1.0, lexicon.sizes[item] / length) ** 0.25
    order = np.lexsort((-rank, item, document))
    is_new = np.append(True, (np.diff(document[order]) != 0) | (np.diff(item[order]) != 0))[: len(order)]
    group_begins = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    return np.sort(found[order[np.arange(len(order)) - group_begins < _KEPT_WINDOWS]])


def _vectors(engine: Engine, items: Sequence[str], work: Path, key: str, model: Path, device: str) -> Path:
    """Embed the items, in several tasks, and return the file of all vectors."""
    path = work / f"{key}.items.npy"
    with atomic_path(path.with_suffix(".parquet")) as temporary:
        pq.write_table(pa.table({"text": pa.array(items, pa.large_string())}), temporary)
    if path.exists():
        return path
    tasks, sizes = [], []
    for number, begin in enumerate(range(0, len(items), _TEXTS_A_TASK)):
        texts = pa.array(items[begin : begin + _TEXTS_A_TASK], pa.large_string())
        tasks.append(EmbedTask(work / f"{key}.items.{number}.parquet", model, device))
        sizes.append(len(texts))
        with atomic_path(tasks[-1].texts) as temporary:
            pq.write_table(pa.table({"text": texts}), temporary)
    _do(engine, embed_texts, tasks, "embedding items", sizes, "items")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate([np.load(task.path, allow_pickle=False) for task in tasks]), allow_pickle=False)
    return path


def _distinct_windows(tasks: Sequence[FindTask], work: Path, key: str) -> list[Path]:
    """Write the different texts of all windows into files of some thousand, and return these.

    A file's name is a hash of what is in it, and of all else that its comparison depends on.
    """
    hashes = [pq.read_table(task.path, columns=["hash"]).column("hash").to_numpy() for task in tasks]
    is_first = np.zeros(sum(map(len, hashes)), dtype=bool)
    is_first[np.unique(np.concatenate(hashes), return_index=True)[1]] = True
    paths: list[Path] = []
    held: list[pa.Table] = []

    def write(table: pa.Table) -> None:
        digest = hashlib.sha256(key.encode() + table.column("hash").to_numpy().tobytes()).hexdigest()
        paths.append(work / f"{digest}.texts.parquet")
        if not paths[-1].exists():
            with atomic_path(paths[-1]) as temporary:
                pq.write_table(table, temporary, compression="zstd")

    begin = 0
    for task in tasks:
        for batch in pq.ParquetFile(task.path).iter_batches(columns=["hash", "text"]):
            held.append(pa.table(batch).filter(pa.array(is_first[begin : begin + len(batch)])))
            begin += len(batch)
            if sum(map(len, held)) >= _TEXTS_A_TASK:
                all_held = pa.concat_tables(held)
                n_whole = len(all_held) // _TEXTS_A_TASK * _TEXTS_A_TASK
                for start in range(0, n_whole, _TEXTS_A_TASK):
                    write(all_held.slice(start, _TEXTS_A_TASK))
                held = [all_held.slice(n_whole)]
    if any(map(len, held)):
        write(pa.concat_tables(held))
    return paths


def _join(tasks: Sequence[FindTask], n_lines: Sequence[int], compared: Sequence[CompareTask]) -> pa.Table:
    """Put places and evidence together: of each document and item the window for which most speaks."""
    similar = pa.concat_tables([_SIMILAR.empty_table(), *(pq.read_table(task.path) for task in compared)])
    hashes = similar.column("hash").to_numpy()
    order = np.argsort(hashes)
    found = []
    for task, offset in zip(tasks, row_offsets([task.shard for task in tasks], n_lines), strict=True):
        places = pq.read_table(task.path, columns=["row", "doc_id", "start", "end", "hash"])
        mine = places.column("hash").to_numpy()
        at = np.minimum(np.searchsorted(hashes[order], mine), max(len(order) - 1, 0))
        is_similar = hashes[order[at]] == mine if len(order) else np.zeros(len(mine), dtype=bool)
        pair = similar.take(pa.array(order[at[is_similar]])).drop_columns(["hash"])
        places = places.filter(pa.array(is_similar)).drop_columns(["hash"])
        n, shard = len(places), task.shard
        found.append(
            pa.table(
                {
                    "corpus": pa.array([shard.corpus] * n, pa.string()),
                    "file": pa.array([str(shard.path)] * n, pa.string()),
                    **{name: places.column(name) for name in places.column_names},
                    **{name: pair.column(name) for name in pair.column_names},
                    "row": places.column("row").to_numpy() + offset,
                }
            )
        )
    table = pa.concat_tables(found)
    file = np.unique(table.column("file").to_pylist(), return_inverse=True)[1] if len(table) else np.empty(0)
    start, item, row = (table.column(name).to_numpy() for name in ("start", "item", "row"))
    scores = score(*(table.column(name).to_numpy() for name in ("similarity", "margin", "numbers")))
    by_evidence = np.lexsort((start, -scores, item, row, file))
    key = np.stack([file, row, item])[:, by_evidence]
    is_new = np.append(True, (np.diff(key, axis=1) != 0).any(axis=0))[: len(table)]
    return table.take(pa.array(np.sort(by_evidence[is_new])))


@lru_cache(maxsize=1)
def _lexicon(path: Path, fingerprint: str) -> Lexicon:
    """The lexicon, read once in each process."""
    lexicon = load_lexicon(path)
    if lexicon.fingerprint != fingerprint:
        raise InputError(
            "the words are those of another search", where=str(path), do="Let only one search run in a directory"
        )
    return lexicon


@lru_cache(maxsize=1)
def _items(texts: Path, vectors: Path) -> tuple[list[str], npt.NDArray[np.float32]]:
    return pq.read_table(texts).column("text").to_pylist(), np.load(vectors, mmap_mode="r", allow_pickle=False)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _digest(what: Sequence[Any]) -> str:
    return hashlib.sha256(to_json(what)).hexdigest()
