"""A clean corpus: the audited files written anew without the flagged documents, or with the matched spans cut out.

Each file is one task for the engine, appears whole, and is checked by reading it again: its documents must be those
that the audit counted, less the dropped ones. A killed run goes on where it was when it is called again.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import evalkit
from evalkit.contamination.clean_file import (
    CHANGE,
    LEFTOVER,
    STAGED,
    WHY_DROPPED,
    WORK,
    CleanFile,
    CleanTask,
    clean_file,
)
from evalkit.contamination.clean_plan import digest, plan_changes
from evalkit.contamination.cutting import Cutting
from evalkit.contamination.record import AuditDirectory, CorpusFile, open_audit
from evalkit.corpora.fields import EACH, text_fields
from evalkit.corpora.layout import below, check_apart, layout
from evalkit.corpora.shards import Shard, format_of
from evalkit.corpora.writers import describe_saved
from evalkit.engines import Engine, LocalEngine
from evalkit.errors import InputError, SpecError
from evalkit.files import atomic_path, write_json
from evalkit.progress import progress_bar, say

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CLEAN_RECORD", "WHY_DROPPED", "CleanFile", "CleanResult", "actions_of", "check_target", "clean"]

CLEAN_RECORD: Final = "clean.json"
"""Written last; a folder without it holds no finished clean corpus."""

CHANGES: Final = "changes.parquet"

Action = Literal["rule", "drop", "cut"]
Pieces = Literal["rows", "join"]

_VERSION: Final = 1
_PLAN: Final = "plan.json"

_SUMMED: Final = (
    "n_documents", "n_kept", "n_cut", "n_dropped", "n_pieces", "n_documents_out", "n_empty", "n_bad_rows",
    "n_characters_removed",
)  # fmt: skip


@dataclass(frozen=True)
class CleanResult:
    """A clean corpus in `directory`.

    Attributes
    ----------
    directory, audit
        The clean corpus, and the audit that it follows.
    actions
        What was done with the documents that each rule flags: drop, cut or keep.
    files
        One entry per file.
    n_flagged_kept
        Documents that are flagged, but only by rules that keep them.
    seconds
        How long it took.
    """

    directory: Path
    audit: Path
    actions: Mapping[str, str]
    files: tuple[CleanFile, ...]
    n_flagged_kept: int
    seconds: float

    @property
    def totals(self) -> dict[str, int]:
        """The counts of all files together."""
        return {name: sum(getattr(one, name) for one in self.files) for name in _SUMMED}

    @property
    def reasons(self) -> dict[str, dict[str, int]]:
        """For each rule and benchmark the documents that it dropped and cut."""
        total: dict[str, dict[str, int]] = {}
        for one in self.files:
            for reason, counts in one.reasons.items():
                mine = total.setdefault(reason, {"dropped": 0, "cut": 0})
                for name, n in counts.items():
                    mine[name] += n
        return dict(sorted(total.items()))

    @property
    def why_dropped(self) -> dict[str, int]:
        """Dropped documents by `WHY_DROPPED`."""
        return dict(sum((Counter(one.why_dropped) for one in self.files), start=Counter()))

    def to_frame(self) -> pd.DataFrame:
        """One row per file."""
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self.files]).drop(columns=["reasons", "why_dropped"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "directory": str(self.directory),
            "audit": str(self.audit),
            "actions": dict(self.actions),
            "totals": self.totals,
            "reasons": self.reasons,
            "why_dropped": self.why_dropped,
            "n_flagged_kept": self.n_flagged_kept,
            "seconds": self.seconds,
            "files": [asdict(one) for one in self.files],
        }


def clean(
    audit_dir: Path,
    out: Path,
    *,
    rules: Sequence[str] | None = None,
    action: Action = "rule",
    cutting: Cutting | None = None,
    pieces: Pieces | None = None,
    overwrite: bool = False,
    engine: Engine | None = None,
) -> CleanResult:
    """Write the corpus of an audit to the folder `out` without what the audit flagged.

    Files keep their place below the corpus, their format and their compression. Rows that are not flagged stay as they
    are, byte for byte in JSON lines, also those that are no documents. `out` holds `clean.json` last, with all counts,
    and `.clean/changes.parquet`, with one row per changed document.

    Parameters
    ----------
    audit_dir
        A finished audit. Its corpus must still be where it was, and as it was.
    out
        A new or empty folder outside of the corpus.
    rules
        The rules that decide, of those that the audit applied; None: all of them. Documents with a canary string go in
        any case.
    action
        `drop` drops each document that one of the rules flags, `cut` cuts the matches of its dirty items out, `rule`
        does what each rule says (drop, cut or keep), and of several the strictest.
    cutting
        How spans are cut; None: as GPT-3's authors did.
    pieces
        `rows`: each piece that is left of a document becomes a row, with the other columns of its document. `join`: the
        document stays one row, its pieces joined by an empty line. None: `rows` where the text is one string of a
        row, else `join`, the only way there.
    overwrite
        Replace an earlier clean corpus in `out`. Files that are none of it are never touched.
    engine
        Where the files are written; by default in this machine's processes.

    Raises
    ------
    SpecError
        `out` is in use or overlaps the corpus, a rule is unknown, all rules keep what they flag, or `pieces` is `rows`
        where a document is made of several texts.
    InputError
        There is no finished audit, or the corpus is another than it was.
    """
    begun = time.monotonic()
    audit = open_audit(audit_dir)
    actions = actions_of(audit.record["rule_definitions"], rules, action)
    as_rows = _as_rows(pieces, audit.text_column)
    shards = [_check_size(file) for file in audit.files.values()]
    check_target(out, shards, overwrite=overwrite)
    plan, n_flagged_kept = plan_changes(audit, actions, shards)
    tasks = _tasks(audit, shards, plan, out.absolute(), cutting or Cutting(), as_rows=as_rows)
    key = hashlib.sha256("".join(task.key for task in tasks).encode()).hexdigest()
    _prepare(out, key, [task.output for task in tasks], overwrite=overwrite)
    for task, part in zip(tasks, plan, strict=True):
        if task.edits:
            pq.write_table(part, task.edits)
    engine = engine or LocalEngine()
    engine.shares_files(out)
    files = _run(tasks, engine)
    result = CleanResult(out, audit_dir, actions, files, n_flagged_kept, time.monotonic() - begun)
    _finish(result, tasks, key, audit.record)
    return result


def actions_of(
    definitions: Sequence[Mapping[str, Any]], rules: Sequence[str] | None = None, action: Action = "rule"
) -> dict[str, str]:
    """Return what is to be done with the documents that each chosen rule flags.

    Parameters
    ----------
    definitions
        The rules that the audit applied, as mappings with at least `name` and `document_action`.
    rules, action
        As `clean` takes them.

    Raises
    ------
    SpecError
        A rule was not applied, or nothing would be removed.
    """
    if action not in get_args(Action):
        raise SpecError(f"'{action}' is no action", where="--action", do=f"Give {', '.join(get_args(Action))}")
    known = {rule["name"]: rule["document_action"] for rule in definitions}
    for name in rules or ():
        if name not in known:
            raise SpecError(
                f"the audit did not apply the rule '{name}'", where="--rule", do=f"It applied: {', '.join(known)}"
            )
    chosen = {name: known[name] if action == "rule" else action for name in (rules or known)}
    if all(one == "keep" for one in chosen.values()):
        raise SpecError(
            f"no document is to be dropped or cut by {', '.join(chosen)}: the papers only measure",
            where="--action",
            do="Say --action drop or --action cut, or name another --rule",
        )
    return chosen


def check_target(out: Path, shards: Sequence[Shard], *, overwrite: bool = False) -> None:
    """Refuse a folder that a clean corpus cannot be written to.

    Raises
    ------
    SpecError
        It overlaps the corpus, holds a clean corpus and `overwrite` is not set, or holds anything else.
    """
    check_apart(out, shards)
    if out.exists() and not out.is_dir():
        raise SpecError("this is no folder", where=str(out), do="Give a new or empty folder")
    if (out / CLEAN_RECORD).exists() and not overwrite:
        raise SpecError("the folder holds a clean corpus already", where=str(out), do="Give another, or --overwrite")
    if out.is_dir() and not ((out / WORK / _PLAN).exists() or _is_empty(out)):
        raise SpecError("the folder holds other files", where=str(out), do="Give a new or empty folder")


def _is_empty(out: Path) -> bool:
    """Whether a folder holds nothing, or only what a run leaves that was killed before it had a plan."""
    leftovers = set((out / WORK).glob(LEFTOVER.format(_PLAN)))
    return all(path == out / WORK and path.is_dir() and set(path.iterdir()) == leftovers for path in out.iterdir())


def _check_size(file: CorpusFile) -> Shard:
    """Return the file, which must have the size that it had; whether it has the same bytes is seen in reading it."""
    shard = file.shard
    if isinstance(shard.path, Path):
        try:
            now = shard.path.stat().st_size
        except OSError as error:
            raise InputError(
                f"this file of the audited corpus cannot be looked at ({error.strerror})",
                where=str(shard.path),
                do="Put it back where it was, or audit again",
            ) from None
        if now != shard.size:
            raise InputError(
                f"the file has {now:,} bytes now, and had {shard.size:,} when it was audited",
                where=str(shard.path),
                do="Audit again",
            )
    return shard


def _tasks(
    audit: AuditDirectory,
    shards: Sequence[Shard],
    plan: Sequence[pa.Table],
    out: Path,
    cutting: Cutting,
    *,
    as_rows: bool,
) -> list[CleanTask]:
    columns = audit.text_column if isinstance(audit.text_column, str) else tuple(audit.text_column)
    entries = audit.record["corpus"]
    return [
        CleanTask(
            shard=shard,
            n_documents=entry["n_documents"],
            n_empty=entry["n_empty"],
            n_bad_rows=entry["n_bad_rows"],
            fingerprint=entry.get("fingerprint"),
            changed_ns=shard.path.stat().st_mtime_ns if isinstance(shard.path, Path) else None,
            edits=out / WORK / f"edits-{number}.parquet" if len(part) else None,
            digest=digest(part),
            output=name,
            out=out,
            cutting=cutting,
            as_rows=as_rows,
            text_column=columns,
            id_column=audit.id_column,
        )
        for number, (shard, part, entry, name) in enumerate(zip(shards, plan, entries, layout(shards), strict=True))
    ]


def _as_rows(pieces: Pieces | None, text_column: str | Sequence[str]) -> bool:
    if pieces is not None and pieces not in get_args(Pieces):
        raise SpecError(f"'{pieces}' is no way", where="--pieces", do=f"Give {' or '.join(get_args(Pieces))}")
    paths = text_fields(text_column, None).paths
    is_one_text = len(paths) == 1 and EACH not in paths[0].steps
    if pieces == "rows" and not is_one_text:
        raise SpecError(
            "a document that is made of several texts cannot become rows of its own",
            where="--pieces",
            do="Leave it out, or say --pieces join",
        )
    return is_one_text if pieces is None else pieces == "rows"


def _prepare(out: Path, key: str, outputs: Sequence[str], *, overwrite: bool) -> None:
    """Make the folder ready: what is unfinished goes on, and anything else that was cleaned goes, if it may."""
    work = out / WORK
    if (work / _PLAN).exists():
        earlier, earlier_outputs = (_read(work / _PLAN, name) for name in ("key", "outputs"))
        if (out / CLEAN_RECORD).exists() or earlier != key:
            if not overwrite:
                raise SpecError(
                    "the folder holds an unfinished clean corpus of another audit or with other options",
                    where=str(out),
                    do="Give another, or --overwrite",
                )
            _remove(out, earlier_outputs)
    work.mkdir(parents=True, exist_ok=True)
    for leftover in work.glob(LEFTOVER.format(_PLAN)):
        leftover.unlink()
    shutil.rmtree(work / STAGED, ignore_errors=True)
    write_json(work / _PLAN, {"version": _VERSION, "key": key, "outputs": list(outputs)})


def _remove(out: Path, outputs: Sequence[str]) -> None:
    """Remove a clean corpus, and nothing else: its record goes first, and the plan, by which it is known, last."""
    record = out / CLEAN_RECORD
    descriptions = _read(record, "descriptions") if record.exists() else []
    listed = {out / WORK / _PLAN: outputs, record: descriptions}
    paths = [_listed(out, name, by) for by, names in listed.items() for name in names]
    record.unlink(missing_ok=True)
    for path in paths:
        path.unlink(missing_ok=True)
        for folder in takewhile(lambda folder: folder != out, path.parents):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    for path in (out / WORK).iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _PLAN:
            path.unlink()
    shutil.rmtree(out / WORK)


def _listed(out: Path, name: str, by: Path) -> Path:
    """Where a file is that a clean corpus says is its own."""
    try:
        return below(out, name)
    except InputError as error:
        raise InputError(error.what, where=str(by), do="Remove the folder yourself, or give another") from None


def _read(path: Path, key: str) -> Any:
    """Read what a record of a clean corpus says under a key: `key` is a text, all others are lists of names."""
    try:
        record = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        record = None
    value = record.get(key) if isinstance(record, dict) else None
    texts = [value] if key == "key" else value
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise InputError("this is no record of a clean corpus", where=str(path), do="Give another folder")
    return value


def _run(tasks: Sequence[CleanTask], engine: Engine) -> tuple[CleanFile, ...]:
    done: dict[int, CleanFile] = {}
    n_before = 0
    with progress_bar("cleaning", sum(task.shard.size for task in tasks) or None, unit="bytes") as bar:
        for number, (one, was_done) in engine.map(clean_file, tasks):
            done[number] = one
            n_before += was_done
            bar.advance(tasks[number].shard.size)
    if n_before:
        say(f"{n_before} of {len(tasks)} files were written before and are kept")
    return tuple(done[number] for number in range(len(tasks)))


def _arrow_folders(tasks: Sequence[CleanTask]) -> dict[Path, Path]:
    """The folders of the corpus with Arrow files, and the new ones: any other `state.json` is not of `datasets`."""
    folders = {}
    for task in tasks:
        path, shard_format = task.shard.path, format_of(task.shard.path)
        if isinstance(path, Path) and shard_format is not None and shard_format.kind == "arrow":
            folders[path.parent] = task.target.parent
    return folders


def _finish(result: CleanResult, tasks: Sequence[CleanTask], key: str, record: Mapping[str, Any]) -> None:
    """Write the changed rows of all files, and last the record."""
    work = tasks[0].out / WORK
    changes = pa.concat_tables([pq.read_table(task.record).cast(CHANGE) for task in tasks])
    with atomic_path(work / CHANGES) as temporary:
        pq.write_table(changes, temporary, compression="zstd")
    described = describe_saved(_arrow_folders(tasks), key)
    options = {**asdict(tasks[0].cutting), "pieces": "rows" if tasks[0].as_rows else "join"}
    write_json(
        tasks[0].out / CLEAN_RECORD,
        {
            "version": _VERSION,
            "evalkit": evalkit.__version__,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **result.to_dict(),
            "audit": str(result.audit.absolute()),
            "audit_finished": record.get("finished"),
            "cutting": options,
            "text_column": tasks[0].text_column,
            "id_column": tasks[0].id_column,
            "changes": f"{WORK}/{CHANGES}",
            "descriptions": [path.relative_to(tasks[0].out).as_posix() for path in described],
        },
    )
    for path in work.glob("*.parquet"):
        if path.name != CHANGES:
            path.unlink()
    shutil.rmtree(work / STAGED, ignore_errors=True)
