"""The benchmark index: which n-grams of which fields to look for, as flat arrays that the scan kernel reads."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from evalkit.addresses import is_address
from evalkit.contamination import kernels
from evalkit.contamination.benchmarks import ANSWER, CANARY, CHOICES, QUESTION, Benchmark, kind_of_field
from evalkit.corpora.objects import join, put, put_all, remove
from evalkit.corpora.results import check_writable, local_copy
from evalkit.errors import InputError
from evalkit.files import atomic_path, write_json
from evalkit.text.buffers import arrow_buffers, make_read_only
from evalkit.text.kernels import BASE, tokenise_all
from evalkit.text.normalise import VERSION, FoldTable, code_table, fold_table

# Bits of the filter per n-gram: at 16, about one window in 50 that is in no benchmark still costs a table look-up.
_FILTER_BITS_PER_KEY = 16
# Short questions are few, and three of their windows are looked up at each token.
_SHORT_BITS_PER_KEY = 128
# A window of a near match that stands in more places is no sign of any of them; it would only cost time.
_RARE: Final = 32
SHORTEST_NEAR: Final = 8
"""Tokens of the shortest field that near matches are looked for; a shorter one is found as a whole, or not at all."""

_INDEX_VERSION: Final = 5
_DESCRIPTION: Final = "index.json"
_FOLDS: Final = ("fold", "code_fold")
_ARRAYS: Final = (
    *("field_hashes", "field_bounds", "token_sizes", "weights", "table_keys", "table_slots", "bitmap"),
    *("beginnings", "short_beginnings", "posting_start", "posting_field", "posting_place", "lengths", "powers"),
    *("seed_keys", "seed_slots", "seed_start", "seed_field", "seed_place"),
    *("support_start", "support_bounds", "support_hashes", "n_supports_needed"),
)


_Number = TypeVar("_Number", np.int64, np.uint64)


@dataclass(frozen=True, slots=True)
class Field:
    """One text of one benchmark item: numbers into the list of benchmarks and their items, and the item's hash."""

    benchmark: int
    item: int
    name: str
    doc_hash: str
    is_code: bool = False


@dataclass(frozen=True)
class Index:
    """Everything that a scan needs to know of the benchmarks.

    Attributes
    ----------
    n
        Shortest run recorded, in tokens; a question shorter than that is recorded when the whole of it occurs.
    fields
        The indexed fields; a field's number is its place here.
    field_hashes, field_bounds
        uint64 hashes of all fields' tokens, and the n_fields + 1 bounds of the fields in them.
    token_sizes
        Characters of each of these tokens.
    weights
        Inverse document frequency of each of these tokens: ln((N + 1) / df) among the N fields.
    table_keys, table_slots, bitmap
        Open-addressing table of window hashes, and its filter.
    beginnings
        Filter of the windows of the longer fields, of `kernels.SEED` tokens, or n where that is less.
    short_beginnings
        Filter of the first 1, 2 or 4 tokens of the fields that are shorter than n.
    posting_start, posting_field, posting_place
        Where each window occurs: fields and token positions.
    lengths, powers
        Window lengths in the table, ascending, and the hash base to the power of each.
    seed_keys, seed_slots, seed_start, seed_field, seed_place
        Table and postings of the rare windows of `kernels.SEED` tokens of the fields that near matches are looked for.
    support_start, support_bounds, support_hashes
        For each field the texts that show that a short question is the item's and no phrase, and their tokens.
    n_supports_needed
        How many of them must stand after it; 0 for other fields, and for items without such texts.
    n_not_indexed
        Fields left out: without a word, or too short to be evidence (fewer than n words and not the question).
    fold, code_fold
        The normalisation of text and of code, so that all who use the index normalise alike.
    fingerprint
        sha256 over the fields, n and the version of the normalisation.
    """

    n: int
    fields: tuple[Field, ...]
    field_hashes: npt.NDArray[np.uint64]
    field_bounds: npt.NDArray[np.int64]
    token_sizes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    table_keys: npt.NDArray[np.uint64]
    table_slots: npt.NDArray[np.int64]
    bitmap: npt.NDArray[np.uint64]
    beginnings: npt.NDArray[np.uint64]
    short_beginnings: npt.NDArray[np.uint64]
    posting_start: npt.NDArray[np.int64]
    posting_field: npt.NDArray[np.int64]
    posting_place: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    powers: npt.NDArray[np.uint64]
    seed_keys: npt.NDArray[np.uint64]
    seed_slots: npt.NDArray[np.int64]
    seed_start: npt.NDArray[np.int64]
    seed_field: npt.NDArray[np.int64]
    seed_place: npt.NDArray[np.int64]
    support_start: npt.NDArray[np.int64]
    support_bounds: npt.NDArray[np.int64]
    support_hashes: npt.NDArray[np.uint64]
    n_supports_needed: npt.NDArray[np.int64]
    n_not_indexed: int
    fold: FoldTable
    code_fold: FoldTable
    fingerprint: str

    def __post_init__(self) -> None:
        make_read_only(vars(self).values())

    @cached_property
    def field_sizes(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each field."""
        return np.diff(self.field_bounds)

    @cached_property
    def kinds(self) -> npt.NDArray[Any]:
        """The kind of each field; see `benchmarks.kind_of_field`."""
        return np.array([kind_of_field(field.name) for field in self.fields], dtype=str)

    @cached_property
    def benchmarks(self) -> npt.NDArray[np.int64]:
        """Number of the benchmark of each field."""
        return np.array([field.benchmark for field in self.fields], dtype=np.int64)

    @cached_property
    def items(self) -> npt.NDArray[np.int64]:
        """Number of the item of each field in its benchmark."""
        return np.array([field.item for field in self.fields], dtype=np.int64)

    @cached_property
    def is_question(self) -> npt.NDArray[np.bool_]:
        """Whether each field is a question."""
        return np.asarray(self.kinds == QUESTION)

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint64] | npt.NDArray[np.int64], ...]:
        """The arrays in the order that the scan kernel takes them."""
        return (
            self.table_keys,
            self.table_slots,
            self.bitmap,
            self.beginnings,
            self.short_beginnings,
            self.posting_start,
            self.posting_field,
            self.posting_place,
            self.field_hashes,
            self.field_bounds,
        )

    @property
    def fold_arrays(self) -> tuple[tuple[npt.NDArray[Any], ...], ...]:
        """The normalisation of text and of code in the form that the kernels take."""
        return self.fold.arrays, self.code_fold.arrays

    @cached_property
    def is_code(self) -> npt.NDArray[np.bool_]:
        """Whether each field is code."""
        return np.array([field.is_code for field in self.fields], dtype=bool)

    @property
    def n_modes(self) -> int:
        """2 when a field is code, so that each document must be read as code, too; otherwise 1."""
        return 1 + int(self.is_code.any())

    @property
    def seed_arrays(self) -> tuple[npt.NDArray[np.uint64] | npt.NDArray[np.int64], ...]:
        """The arrays of the seeds in the order that the scan kernel takes them."""
        return self.seed_keys, self.seed_slots, self.seed_start, self.seed_field, self.seed_place

    @property
    def support_arrays(self) -> tuple[npt.NDArray[np.uint64] | npt.NDArray[np.int64], ...]:
        """The arrays of the supporting texts in the order that the scan kernel takes them."""
        return self.support_start, self.support_bounds, self.support_hashes


def build_index(benchmarks: Sequence[Benchmark], n: int) -> Index:
    """Index all fields of all items for runs of at least `n` tokens."""
    fields, texts = [], []
    for b, benchmark in enumerate(benchmarks):
        is_code = cache(benchmark.is_code)
        for i, item in enumerate(benchmark.items):
            for name, text in item.fields.items():
                fields.append(Field(b, i, name, item.doc_hash, is_code(name)))
                texts.append(text)
    hashes, token_sizes, bounds = tokenise(texts, [field.is_code for field in fields])
    sizes = np.diff(bounds)
    is_canary = np.array([field.name == CANARY for field in fields], dtype=bool)
    is_always_kept = is_canary | np.array([field.name == QUESTION for field in fields], dtype=bool)
    kept = np.flatnonzero((sizes >= n) | (is_always_kept & (sizes > 0)))
    keys, posting_fields, posting_places, lengths = _windows(hashes, bounds, sizes, kept, n)
    table = _postings(keys, posting_fields, posting_places)
    beginning_keys, *_ = kernels.window_hashes(hashes, bounds, min(n, kernels.SEED), kept[sizes[kept] >= n])
    is_edited = (sizes[kept] >= max(n, SHORTEST_NEAR)) & ~is_canary[kept]
    windows = kernels.window_hashes(hashes, bounds, kernels.SEED, kept[is_edited])
    seeds = _postings(*windows, most=_RARE)
    # Fields are renumbered to those kept; their tokens stay where they are, one field after the other.
    renumbered = np.full(len(fields), -1, dtype=np.int64)
    renumbered[kept] = np.arange(len(kept))
    is_kept = np.repeat(np.isin(np.arange(len(sizes)), kept), sizes)
    supports = _supports(benchmarks, [fields[k] for k in kept], sizes[kept])
    support_hashes, _, support_bounds = tokenise(
        [text for some in supports for text in some],
        [fields[k].is_code for k, some in zip(kept, supports, strict=True) for _ in some],
    )
    support_start = np.cumsum([0, *map(len, supports)])
    return Index(
        n=n,
        fields=tuple(fields[k] for k in kept),
        field_hashes=hashes[is_kept],
        field_bounds=np.concatenate([[0], np.cumsum(sizes[kept])]).astype(np.int64),
        token_sizes=token_sizes[is_kept],
        weights=_weights(hashes[is_kept], sizes[kept], ~is_canary[kept]),
        table_keys=table.keys,
        table_slots=table.slots,
        bitmap=_filter(table.distinct),
        beginnings=_filter(beginning_keys),
        short_beginnings=_filter(keys[sizes[posting_fields] < n], _SHORT_BITS_PER_KEY),
        posting_start=table.start,
        posting_field=renumbered[table.texts],
        posting_place=table.places,
        lengths=np.array(lengths, dtype=np.int64),
        powers=np.array([pow(int(BASE), length, 1 << 64) for length in lengths], dtype=np.uint64),
        seed_keys=seeds.keys,
        seed_slots=seeds.slots,
        seed_start=seeds.start,
        seed_field=renumbered[seeds.texts],
        seed_place=seeds.places,
        support_start=support_start,
        support_bounds=support_bounds,
        support_hashes=support_hashes,
        n_supports_needed=_n_needed(sizes[kept], support_start, support_bounds),
        n_not_indexed=len(fields) - len(kept),
        fold=fold_table(),
        code_fold=code_table(),
        fingerprint=_fingerprint(benchmarks, n),
    )


def _supports(
    benchmarks: Sequence[Benchmark], fields: Sequence[Field], sizes: npt.NDArray[np.int64]
) -> list[list[str]]:
    """For each field, what should follow a short question: its choices, or else its answer."""
    supports: list[list[str]] = [[] for _ in fields]
    for number in np.flatnonzero(sizes < SHORTEST_NEAR).tolist():
        field = fields[number]
        if field.name == QUESTION:
            texts: dict[str, list[str]] = {CHOICES: [], ANSWER: []}
            for name, text in benchmarks[field.benchmark].items[field.item].fields.items():
                if kind_of_field(name) in texts and any(map(str.isalnum, text)):
                    texts[kind_of_field(name)].append(text)
            supports[number] = texts[CHOICES] or texts[ANSWER][:1]
    return supports


def _n_needed(
    sizes: npt.NDArray[np.int64], start: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many of its supports each question needs: three in four, or all if there are fewer than 8 words in all."""
    n = np.diff(start)
    is_little = sizes + bounds[start[1:]] - bounds[start[:-1]] < SHORTEST_NEAR
    return np.asarray(n - np.where(is_little, 0, n // 4))


def save_index(index: Index, folder: Path | str) -> None:
    """Write the index for other processes; the description comes last, so a folder that has it is whole.

    The folder is a path, or an address such as `s3://bucket/index`.

    Raises
    ------
    InputError, SpecError
        Nothing can be written at the address.
    """
    if isinstance(folder, str) and is_address(folder):
        check_writable(folder)
        with tempfile.TemporaryDirectory() as name:
            here = Path(name)
            save_index(index, here)
            remove(folder, [_DESCRIPTION])
            put_all({one.name: one for one in here.iterdir() if one.name != _DESCRIPTION}, folder)
            put(here / _DESCRIPTION, join(folder, _DESCRIPTION))
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DESCRIPTION).unlink(missing_ok=True)
    for name in _ARRAYS:
        _save_array(folder / f"{name}.npy", getattr(index, name))
    for fold in _FOLDS:
        for name in FoldTable.__dataclass_fields__:
            _save_array(folder / f"{fold}.{name}.npy", getattr(getattr(index, fold), name))
    write_json(
        folder / _DESCRIPTION,
        {
            "version": _INDEX_VERSION,
            "normalisation_version": VERSION,
            "n": index.n,
            "n_not_indexed": index.n_not_indexed,
            "fingerprint": index.fingerprint,
            "fields": list(map(attrgetter(*Field.__slots__), index.fields)),
        },
    )


def load_index(folder: Path | str) -> Index:
    """Open a saved index; its arrays are mapped from the files, so that processes share them.

    Of one at an address, a copy is made on this machine, and mapped.

    Raises
    ------
    InputError
        The folder holds no index, or one of another version.
    """
    folder = local_copy(folder) if isinstance(folder, str) and is_address(folder) else Path(folder)
    try:
        description = orjson.loads((folder / _DESCRIPTION).read_bytes())
        if description["version"] != _INDEX_VERSION:
            raise InputError(
                f"the index has version {description['version']}, and this evalkit reads {_INDEX_VERSION}",
                where=str(folder),
                do="Delete it; it is made again",
            )
        arrays: dict[str, Any] = {name: _load_array(folder / f"{name}.npy") for name in _ARRAYS}
        for fold in _FOLDS:
            names = FoldTable.__dataclass_fields__
            arrays[fold] = FoldTable(**{name: _load_array(folder / f"{fold}.{name}.npy") for name in names})
        return Index(
            n=description["n"],
            fields=tuple(Field(*field) for field in description["fields"]),
            n_not_indexed=description["n_not_indexed"],
            fingerprint=description["fingerprint"],
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the index cannot be opened ({type(error).__name__}: {error})",
            where=str(folder),
            do="Delete the folder; the index is made again",
        ) from None


def keep_index(index: Index, folder: Path) -> Index:
    """Open the index in a folder on this machine; if it is not there, it is put there first, whole at once.

    Processes may do so at the same time, and others may read: what can be opened is never written again.

    Raises
    ------
    InputError
        The folder cannot be opened though it was just written.
    """
    if (found := _opens(folder, index.fingerprint)) is not None:
        return found
    unique = uuid.uuid4().hex[:8]
    beside, damaged = (folder.with_name(f"{folder.name}.{unique}.{what}") for what in ("tmp", "damaged"))
    try:
        save_index(index, beside)
        with contextlib.suppress(OSError):  # another process was first, or what lies there is damaged
            beside.rename(folder)
        if (found := _opens(folder, index.fingerprint)) is not None:
            return found
        with contextlib.suppress(OSError):  # out of the way, so that the new one appears whole, too
            folder.rename(damaged)
        with contextlib.suppress(OSError):
            beside.rename(folder)
        return load_index(folder)
    finally:
        for one in (beside, damaged):
            shutil.rmtree(one, ignore_errors=True)


def _opens(folder: Path, fingerprint: str) -> Index | None:
    try:
        index = load_index(folder)
    except InputError:
        return None
    return index if index.fingerprint == fingerprint else None


@dataclass(frozen=True)
class SavedIndex:
    """An index in files, which each process maps once.

    Attributes
    ----------
    folder
        Where `save_index` put it.
    fingerprint
        Of the index that is meant.
    """

    folder: Path
    fingerprint: str

    @classmethod
    def of(cls, index: Index, folder: Path) -> SavedIndex:
        """Put an index into a folder as `keep_index` does.

        Raises
        ------
        InputError
            As there.
        """
        kept, opened = cls(folder, index.fingerprint), keep_index(index, folder)
        _opened.clear()
        _opened[kept] = opened
        return kept

    def get(self) -> Index:
        """Open the index.

        Raises
        ------
        InputError
            The folder holds none, or another one.
        """
        index = _opened.get(self)
        if index is None:
            index = load_index(self.folder)
            if index.fingerprint != self.fingerprint:
                raise InputError(
                    "the index is that of another audit",
                    where=str(self.folder),
                    do="Let only one audit run in a directory",
                )
            _opened.clear()
            _opened[self] = index
        return index


_opened: dict[SavedIndex, Index] = {}
"""The index that this process opened last."""


def _save_array(path: Path, array: npt.NDArray[Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _load_array(path: Path) -> npt.NDArray[Any]:
    # As a plain array: what the kernels are compiled for.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def tokenise(
    texts: Sequence[str], is_code: Sequence[bool] | None = None
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the hashes of all tokens of all texts, their sizes in characters, and the bounds of the texts."""
    # Lone surrogates cannot be encoded; they match nothing, so they may become any separator.
    safe = [text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    data, offsets = arrow_buffers(pa.array(safe, type=pa.large_string()))

    def by(table: FoldTable) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return tokenise_all(data, offsets, table.arrays)

    as_text = by(fold_table())
    if is_code is None or not any(is_code):
        return as_text
    both, chosen = (as_text, by(code_table())), [int(one) for one in is_code]
    spans = [slice(both[k][2][number], both[k][2][number + 1]) for number, k in enumerate(chosen)]
    hashes = np.concatenate([both[k][0][span] for k, span in zip(chosen, spans, strict=True)])
    sizes = np.concatenate([both[k][1][span] for k, span in zip(chosen, spans, strict=True)])
    bounds = np.cumsum([0, *(span.stop - span.start for span in spans)])
    return hashes, sizes, bounds


def distinct_of(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return the different values, ascending: by sorting, which is several times as fast as `numpy.unique` is."""
    ordered = np.sort(values)
    return ordered[_is_first(ordered)]


def first_of_each(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each different value stands first, in the order of the values."""
    order = np.argsort(values, kind="stable")
    return order[_is_first(values[order])]


def numbers_of(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rank of each value among the different ones: fast where they lie nearly in order."""
    order = np.argsort(values, kind="stable")
    numbers = np.empty(len(values), dtype=np.int64)
    numbers[order] = np.cumsum(_is_first(values[order])) - 1
    return numbers


def _is_first(ordered: npt.NDArray[_Number]) -> npt.NDArray[np.bool_]:
    """Whether each of some values in order is the first of its equals."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def _windows(
    hashes: npt.NDArray[np.uint64],
    bounds: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    kept: npt.NDArray[np.int64],
    n: int,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
    """Hash every window of n tokens of the long fields, and the beginning of each short one.

    A short field is looked for by its first 1, 2 or 4 tokens, as many as it has: every further window length costs the
    scan one more look at each token. The scan itself compares the field to its end.
    """
    parts, lengths = [], []
    seeds = np.where(sizes[kept] >= n, n, 1 << np.log2(np.clip(sizes[kept], 1, 4)).astype(np.int64))
    for length in np.unique(seeds).tolist():
        keys, fields, places = kernels.window_hashes(hashes, bounds, length, kept[seeds == length])
        wanted = (places == 0) | (length == n)
        parts.append((keys[wanted], fields[wanted], places[wanted]))
        lengths.append(length)
    if not parts:
        empty = np.empty(0, dtype=np.int64)
        return np.empty(0, dtype=np.uint64), empty, empty, []
    keys, fields, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    return keys, fields, places, lengths


@dataclass(frozen=True)
class _Postings:
    """An open-addressing table of the distinct keys, at most half full, and where each of them occurs."""

    distinct: npt.NDArray[np.uint64]
    keys: npt.NDArray[np.uint64]
    slots: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    texts: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def _postings(
    keys: npt.NDArray[np.uint64],
    texts: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    *,
    most: int | None = None,
) -> _Postings:
    """Group windows by their keys; leave out those that occur in more than `most` places."""
    slots, n_slots = kernels.group(keys, *_empty_table(len(keys)))
    n_places = np.bincount(slots, minlength=n_slots)
    if most is not None:
        is_rare = n_places <= most
        chosen = np.flatnonzero(is_rare[slots])
        slots, texts, places = (np.cumsum(is_rare) - 1)[slots[chosen]], texts[chosen], places[chosen]
        keys, n_places = keys[chosen], n_places[is_rare]
    start = np.append(0, np.cumsum(n_places))
    order = kernels.order_of_groups(slots, start)
    distinct = keys[order[start[:-1]]]
    table_keys, table_slots = _empty_table(len(distinct))
    kernels.fill_table(distinct, table_keys, table_slots)
    return _Postings(distinct, table_keys, table_slots, start, texts[order], places[order])


def _empty_table(n_keys: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """An open-addressing table that so many keys fill to a half at most."""
    size = 1 << max(4, int(2 * n_keys).bit_length())
    return np.zeros(size, dtype=np.uint64), np.full(size, -1, dtype=np.int64)


def _weights(
    hashes: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Inverse document frequency of each token of each field, among the fields that are counted."""
    distinct, number = np.unique(hashes, return_inverse=True)
    fields = np.repeat(np.arange(len(sizes)), sizes)
    pairs = distinct_of((number * np.int64(len(sizes)) + fields)[counted[fields]])
    n_fields = np.bincount(pairs // max(len(sizes), 1), minlength=len(distinct))
    return np.asarray(np.log((counted.sum() + 1) / np.maximum(n_fields, 1))[number])


def _filter(keys: npt.NDArray[np.uint64], bits_per_key: int = _FILTER_BITS_PER_KEY) -> npt.NDArray[np.uint64]:
    """A filter of the keys; see `kernels.fill_filter`."""
    words = np.zeros(1 << max(4, (bits_per_key * len(keys) // 64).bit_length()), dtype=np.uint64)
    kernels.fill_filter(keys, words)
    return words


def _fingerprint(benchmarks: Sequence[Benchmark], n: int) -> str:
    digest = hashlib.sha256(f"normalisation {VERSION}, n {n}".encode())
    for benchmark in benchmarks:
        digest.update(b"\x00benchmark\x00" + benchmark.name.encode())
        is_code = cache(benchmark.is_code)
        for item in benchmark.items:
            if item.fields:
                texts = "".join(f"\x00{name}\x00{is_code(name)}\x00{text}" for name, text in item.fields.items())
                digest.update(f"\x00item\x00{item.doc_hash}{texts}".encode("utf-8", "replace"))
    return digest.hexdigest()
