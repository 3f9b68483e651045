"""What one worker does: write one file of a corpus anew without what was flagged, and check it.

The record of a file says what it was made from. When a clean corpus is begun again, the files that are there are kept.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.contamination.cutting import NOTHING_LEFT, TOO_MANY_PIECES, Cutting, Interval, cut
from evalkit.corpora.edits import reading_each
from evalkit.corpora.fields import SEPARATOR
from evalkit.corpora.fingerprints import identity
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.layout import below
from evalkit.corpora.readers import read_shard
from evalkit.corpora.remote import Address
from evalkit.corpora.shards import Shard
from evalkit.corpora.streams import read_chunks
from evalkit.corpora.writers import rewrite_shard
from evalkit.errors import InputError
from evalkit.files import atomic_path, to_json

WORK: Final = ".clean"
"""Hidden, since what lies beside it is read as a corpus: the changed rows, and at first what a resumption needs."""

STAGED: Final = "staged"
"""In it, the files that are being written."""

LEFTOVER: Final = ".{}." + 8 * "[0-9a-f]" + ".tmp"
"""Glob for what a kill leaves of a file that was to appear whole (see `atomic_path`), and for no other file's."""

GLUE: Final = "\n\n"
"""What joins the pieces of a text that stays one row."""

_VERSION: Final = 1
_COUNTS: Final = b"evalkit.counts"
_RULE_SAYS_SO: Final = "rule"
_NO_SPAN: Final = "no_span"
WHY_DROPPED: Final[Mapping[str, str]] = {
    _RULE_SAYS_SO: "the rule or the chosen action says so",
    TOO_MANY_PIECES: "cut into too many pieces",
    NOTHING_LEFT: "nothing long enough was left",
    _NO_SPAN: "to be cut, but for one of the reasons no place is recorded",
}
"""Reasons for which a document is dropped whole."""

CHANGE: Final = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("doc_id", pa.string()),
        ("action", pa.string()),
        ("why", pa.string()),
        ("reasons", pa.list_(pa.string())),
        ("n_characters_removed", pa.int64()),
        ("output", pa.string()),
        ("output_row", pa.int64()),
        ("n_rows", pa.int64()),
        ("pieces", pa.list_(pa.struct([("start", pa.int64()), ("end", pa.int64())]))),
    ]
)


@dataclass(frozen=True)
class CleanFile:
    """What became of the documents of one file; `n_documents = n_kept + n_cut + n_dropped`.

    Attributes
    ----------
    corpus, file, output
        The pattern that found the file, the file, and its path below the clean corpus.
    is_copy
        Nothing in it was flagged: it has the same bytes.
    n_documents, n_kept, n_cut, n_dropped
        Documents in the audited file, and how many of them stayed as they were, had spans cut out, and are gone.
    n_pieces
        Rows that the cut documents became.
    n_documents_out
        Documents in the new file, counted by reading it: `n_kept + n_pieces`.
    n_empty, n_bad_rows
        Rows without a text and rows that could not be read: they stay as they are.
    n_characters_removed
        Characters of text, those of dropped documents among them.
    size, sha256
        Bytes of the new file, and their hash.
    reasons
        For each rule and benchmark the documents that it dropped and cut. One document can have several reasons.
    why_dropped
        Dropped documents by `WHY_DROPPED`.
    """

    corpus: str
    file: str
    output: str
    is_copy: bool
    n_documents: int
    n_kept: int
    n_cut: int
    n_dropped: int
    n_pieces: int
    n_documents_out: int
    n_empty: int
    n_bad_rows: int
    n_characters_removed: int
    size: int
    sha256: str
    reasons: Mapping[str, Mapping[str, int]]
    why_dropped: Mapping[str, int]


@dataclass(frozen=True)
class CleanTask:
    """A file to be written anew. It can be pickled, and needs nothing but files.

    Attributes
    ----------
    shard
        The file.
    n_documents, n_empty, n_bad_rows
        What the audit counted in it.
    fingerprint, changed_ns
        Its fingerprint, if the audit recorded one, and its time of change, if it lies here.
    edits, digest
        A Parquet file with the rows to be changed, if there are any, and a hash of those.
    output, out
        Where it is written: a path below a folder.
    cutting, as_rows
        How spans are cut, and whether the pieces become rows.
    text_column, id_column
        As `read_shard` takes them.
    """

    shard: Shard
    n_documents: int
    n_empty: int
    n_bad_rows: int
    fingerprint: str | None
    changed_ns: int | None
    edits: Path | None
    digest: str
    output: str
    out: Path
    cutting: Cutting
    as_rows: bool
    text_column: str | tuple[str, ...]
    id_column: str | None

    @property
    def key(self) -> str:
        """Hash of all that the result depends on, but for the bytes of the file."""
        parts = [_VERSION, str(self.shard.path), self.shard.size, self.fingerprint, self.digest, self.output]
        options = [asdict(self.cutting), self.as_rows, self.text_column, self.id_column]
        return hashlib.sha256(to_json([*parts, *options])).hexdigest()

    @property
    def target(self) -> Path:
        """The new file; raises `InputError` when it would lie outside of `out`."""
        return below(self.out, self.output)

    @property
    def record(self) -> Path:
        """What was done, once the new file is there; when the old one changes, it has another name."""
        return self.out / WORK / f"{self.key}-{self.changed_ns}.parquet"


def clean_file(task: CleanTask) -> tuple[CleanFile, bool]:
    """Write one file anew, unless that was done before; return what was done, and whether it had been.

    Raises
    ------
    InputError
        The file is another than it was when it was audited; nothing appears then.
    """
    if (earlier := _done_before(task)) is not None:
        return earlier, True
    target = task.target
    for leftover in target.parent.glob(LEFTOVER.format(glob.escape(target.name))):
        leftover.unlink()
    staged = task.out / WORK / STAGED / task.key / target.name  # under its own name, which tells the format
    staged.parent.mkdir(parents=True, exist_ok=True)
    try:
        _check_fingerprint(task)
        editor = _Editor(task)
        is_copy = task.edits is None and not isinstance(task.shard.path, DatasetPart)
        if is_copy:
            _copy(task.shard, staged)
        else:
            rewrite_shard(
                task.shard, staged, editor.rows, editor, text_column=task.text_column, id_column=task.id_column
            )
        done = editor.result(is_copy, staged.stat().st_size, _sha256(staged))
        if not is_copy:
            _check_counts(task, done, staged)
        with atomic_path(target) as temporary:
            staged.replace(temporary)
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
    changes = pa.Table.from_pylist(editor.changes, CHANGE.with_metadata({_COUNTS: to_json(asdict(done))}))
    with atomic_path(task.record) as temporary:
        pq.write_table(changes, temporary, compression="zstd")
    return done, False


def _done_before(task: CleanTask) -> CleanFile | None:
    """What an earlier run did, if its file is there and as it was left."""
    try:
        done = CleanFile(**orjson.loads(pq.read_schema(task.record).metadata[_COUNTS]))
        is_there = task.target.stat().st_size == done.size and _sha256(task.target) == done.sha256
    except (OSError, pa.ArrowException):
        return None
    return done if is_there else None


class _Editor:
    """Drops and cuts the documents of one file, and keeps account."""

    def __init__(self, task: CleanTask) -> None:
        self.task = task
        self.changes: list[dict[str, Any]] = []
        edits = pq.read_table(task.edits).to_pylist() if task.edits else []
        self._edit_of = {edit["row"]: edit for edit in edits}
        self._n_more_rows = 0

    @property
    def rows(self) -> list[int]:
        """The rows to be changed, rising."""
        return sorted(self._edit_of)

    def __call__(self, row: int, doc_id: str | None, texts: Sequence[str]) -> list[list[str]]:
        edit = self._edit_of[row]
        spans = [(span["start"], span["end"]) for span in edit["spans"]]
        document = SEPARATOR.join(texts)
        if edit["doc_id"] not in (None, doc_id) or any(end > len(document) for _, end in spans):
            raise InputError(
                "this is another document than the audited one",
                where=f"{self.task.shard.path}, row {row}",
                do="Audit again",
            )
        why, kept = self._judge(edit["action"], texts, spans)
        rows = [] if why else self._rows(document, kept)
        n_left = sum(end - start for of_text in kept for start, end in of_text) if rows else 0
        self.changes.append(
            {
                "file": str(self.task.shard.path),
                "row": row,
                "doc_id": doc_id,
                "action": "cut" if rows else "drop",
                "why": why,
                "reasons": edit["reasons"],
                "n_characters_removed": sum(map(len, texts)) - n_left,
                "output": self.task.output,
                "output_row": row + self._n_more_rows if rows else None,
                "n_rows": len(rows),
                "pieces": [{"start": a, "end": b} for of_text in kept for a, b in of_text] if rows else [],
            }
        )
        self._n_more_rows += len(rows) - 1
        return rows

    def _judge(
        self, action: str, texts: Sequence[str], spans: Sequence[Interval]
    ) -> tuple[str | None, list[list[Interval]]]:
        """Why the document is dropped, or what is kept of each of its texts."""
        if action == "drop":
            return _RULE_SAYS_SO, []
        if not spans:
            return _NO_SPAN, []
        kept = cut(texts, spans, self.task.cutting)
        return (kept, []) if isinstance(kept, str) else (None, kept)

    def _rows(self, document: str, kept: Sequence[Sequence[Interval]]) -> list[list[str]]:
        texts = [[document[start:end] for start, end in of_text] for of_text in kept]
        if self.task.as_rows:
            return [[piece] for piece in texts[0]]
        return [[GLUE.join(of_text) for of_text in texts]]

    def result(self, is_copy: bool, size: int, sha256: str) -> CleanFile:
        """Add up."""
        reasons: dict[str, dict[str, int]] = {}
        for change in self.changes:
            for reason in change["reasons"]:
                mine = reasons.setdefault(reason, {"dropped": 0, "cut": 0})
                mine["cut" if change["action"] == "cut" else "dropped"] += 1
        n_cut = sum(change["action"] == "cut" for change in self.changes)
        n_kept = self.task.n_documents - len(self.changes)
        n_pieces = sum(change["n_rows"] for change in self.changes)
        return CleanFile(
            corpus=self.task.shard.corpus,
            file=str(self.task.shard.path),
            output=self.task.output,
            is_copy=is_copy,
            n_documents=self.task.n_documents,
            n_kept=n_kept,
            n_cut=n_cut,
            n_dropped=len(self.changes) - n_cut,
            n_pieces=n_pieces,
            n_documents_out=n_kept + n_pieces,
            n_empty=self.task.n_empty,
            n_bad_rows=self.task.n_bad_rows,
            n_characters_removed=sum(change["n_characters_removed"] for change in self.changes),
            size=size,
            sha256=sha256,
            reasons=reasons,
            why_dropped=dict(Counter(change["why"] for change in self.changes if change["why"])),
        )


def _check_fingerprint(task: CleanTask) -> None:
    """Compare the file with what the audit recorded of its contents."""
    path = task.shard.path
    if task.fingerprint is None:
        return
    if identity(path, task.shard.size) != task.fingerprint:
        raise InputError("the contents are others than when this was audited", where=str(path), do="Audit again")


def _check_counts(task: CleanTask, done: CleanFile, staged: Path) -> None:
    """Read the new file as the audit would, and compare the counts."""
    shard = Shard(task.shard.corpus, staged, done.size)
    with read_shard(shard, text_column=task.text_column, id_column=task.id_column) as reader:
        for _ in reader:
            pass
    counts = reader.counts
    found = {"documents": counts.n_documents, "empty rows": counts.n_empty, "bad rows": counts.n_bad}
    expected = {"documents": done.n_documents_out, "empty rows": done.n_empty, "bad rows": done.n_bad_rows}
    for what, n in expected.items():
        if found[what] != n:
            raise InputError(
                f"{found[what]:,} {what} are left where the audit's counts leave {n:,}: it is another file than then",
                where=str(task.shard.path),
                do="Audit again",
            )


def _copy(shard: Shard, target: Path) -> None:
    if isinstance(shard.path, Path):
        shutil.copyfile(shard.path, target)
    elif isinstance(shard.path, Address):
        chunks = read_chunks(shard.path, "", lambda n_bytes: None, size=shard.size)
        with target.open("wb") as out:
            out.writelines(reading_each(chunks, shard))
    if target.stat().st_size != shard.size:
        raise InputError("the file changed while it was copied", where=str(shard.path), do="Audit again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
