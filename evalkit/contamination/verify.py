"""Re-checks an audit against its corpus: are the files still the same, and does a sample of the matches stand there?"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from evalkit import tables
from evalkit.contamination.record import AuditDirectory, CorpusFile, open_audit
from evalkit.corpora.fingerprints import identity
from evalkit.corpora.hub import DatasetPart
from evalkit.corpora.remote import Address, sizes_of
from evalkit.corpora.rows import Document, Missing, read_rows
from evalkit.corpora.shards import Shard
from evalkit.errors import InputError, SpecError
from evalkit.progress import progress_bar
from evalkit.text.tokens import Token, edit_distance, find_words, tokens, words_of

Hashed = Literal["sampled", "all", "none"]
"""Which files are hashed: those with a match in the sample, all of the corpus, or none."""

Match = Mapping[str, Any]
"""A row of the `matches` table."""

_NEIGHBOURS: Final = 100
"""Rows before and after a match that is not in its own in which it is looked for."""

_LOOKED_FOR: Final = 5
"""Matches of a file that are looked for so."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as the audit says: where, and what; `row` is None when it is about the whole file."""

    file: str
    row: int | None
    what: str


@dataclass(frozen=True)
class Verification:
    """What was checked, and what was found wrong.

    Attributes
    ----------
    directory
        The audit.
    n_matches, n_sampled, seed
        Matches of the audit; those in the sample; its seed.
    n_right, n_wrong
        Those in the sample that stand where they should, and those that do not. The others are in files that are
        missing or cannot be read.
    n_files, n_hashed
        Files of the corpus, whose sizes were all compared; those whose contents were, too.
    n_without_hash
        Files that should have been hashed, but have no fingerprint in the record.
    problems
        In the order of the corpus.
    """

    directory: Path
    n_matches: int
    n_sampled: int
    seed: int
    n_right: int
    n_wrong: int
    n_files: int
    n_hashed: int
    n_without_hash: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            **vars(self),
            "directory": str(self.directory),
            "ok": self.ok,
            "problems": [vars(problem) for problem in self.problems],
        }


def verify(directory: Path, *, n: int = 200, seed: int = 0, hashed: str = "sampled") -> Verification:
    """Re-check an audit against its corpus.

    The sizes of all files are compared with the record, the fingerprints of those that `hashed` names, and a random
    sample of the matches with the corpus: the text at its place must have the tokens that it should. Texts are read
    and compared by plain Python that shares nothing with the scan but the readers and the table of the normalisation.

    Parameters
    ----------
    directory
        A complete audit.
    n
        Matches in the sample; all when there are fewer.
    seed
        The same seed draws the same sample.
    hashed
        Which files are read in full to compare their fingerprints, see `Hashed`.

    Raises
    ------
    SpecError
        `hashed` is none of these.
    InputError
        The directory holds no complete audit.
    """
    if hashed not in get_args(Hashed):
        raise SpecError(f"'{hashed}' is no choice of files", where="--hash", do=f"Give {', '.join(get_args(Hashed))}")
    audit = open_audit(directory)
    matches = audit.read(tables.MATCHES)
    chosen = np.random.default_rng(seed).choice(len(matches), min(n, len(matches)), replace=False)
    sample: dict[str, list[Match]] = {name: [] for name in audit.files}
    for match in matches.take(np.sort(chosen)).to_pylist():
        sample.setdefault(match["file"], []).append(match)
    problems: dict[str, list[Problem]] = {name: [] for name in sample}
    present = _compare_sizes(audit, problems)
    to_hash = [name for name in present if hashed == "all" or (hashed == "sampled" and sample[name])]
    n_hashed = _compare_hashes(audit, {name: present[name] for name in to_hash}, problems)
    n_right = n_wrong = 0
    with progress_bar("checking matches", len(chosen), unit="matches") as bar:
        for name, mine in sample.items():
            if name not in audit.files and mine:
                problems[name].append(Problem(name, None, "the record lists no such file, though matches name it"))
            elif name in present and mine:
                right, wrong = _compare_matches(audit, present[name], mine, problems[name])
                n_right, n_wrong = n_right + right, n_wrong + wrong
            bar.advance(len(mine))
    return Verification(
        directory=directory,
        n_matches=len(matches),
        n_sampled=len(chosen),
        seed=seed,
        n_right=n_right,
        n_wrong=n_wrong,
        n_files=len(audit.files),
        n_hashed=n_hashed,
        n_without_hash=sum(audit.files[name].fingerprint is None for name in to_hash),
        problems=tuple(problem for some in problems.values() for problem in some),
    )


def _compare_sizes(audit: AuditDirectory, problems: Mapping[str, list[Problem]]) -> dict[str, Shard]:
    """Return the files that are there, with their sizes now; what is missing or has another size is a problem."""
    present = {}
    for name, (file, size) in _sizes_now(audit.files).items():
        if isinstance(size, str):
            problems[name].append(Problem(name, None, size))
            continue
        if size != file.shard.size:
            what = f"the file has changed: it has {size:,} bytes, and had {file.shard.size:,} when it was audited"
            problems[name].append(Problem(name, None, what))
        present[name] = replace(file.shard, size=size)
    return present


def _sizes_now(files: Mapping[str, CorpusFile]) -> dict[str, tuple[CorpusFile, int | str]]:
    """For each file its bytes now, or why nobody can tell."""
    found: dict[str, tuple[CorpusFile, int | str]] = {}
    remote: dict[str, list[Address]] = {}
    for name, file in files.items():
        path = file.shard.path
        if isinstance(path, Address):
            remote.setdefault(path.url.partition("://")[0], []).append(path)
        elif isinstance(path, DatasetPart):
            found[name] = file, 0
        else:
            try:
                found[name] = file, path.stat().st_size
            except OSError as error:
                found[name] = file, f"the file is missing or cannot be read ({error.strerror})"
    for addresses in remote.values():
        found |= {str(address): (files[str(address)], size) for address, size in _remote_sizes(addresses)}
    return {name: found[name] for name in files}


def _remote_sizes(addresses: Sequence[Address]) -> Iterator[tuple[Address, int | str]]:
    """Ask for all at once; when that fails, one by one, to tell which is missing."""
    try:
        yield from zip(addresses, sizes_of(list(addresses)), strict=True)
    except InputError as error:
        if len(addresses) == 1:
            yield addresses[0], f"the file is missing or cannot be read ({error.what})"
        else:
            for address in addresses:
                yield from _remote_sizes([address])


def _compare_hashes(audit: AuditDirectory, shards: Mapping[str, Shard], problems: Mapping[str, list[Problem]]) -> int:
    """Compare the contents of files that have the recorded size; return how many were read for that."""
    wanted = {
        name: shard
        for name, shard in shards.items()
        if audit.files[name].fingerprint is not None and shard.size == audit.files[name].shard.size
    }
    with progress_bar("hashing", sum(shard.size for shard in wanted.values()), unit="bytes") as bar:
        for name, shard in wanted.items():
            path = shard.path
            try:
                is_same = identity(path, shard.size, bar.advance) == audit.files[name].fingerprint
            except InputError as error:
                problems[name].append(Problem(name, None, error.what))
                continue
            if not is_same:
                what = "the dataset has changed" if isinstance(path, DatasetPart) else "the file has changed"
                problems[name].append(Problem(name, None, f"{what}: its size is the same, its contents are not"))
    return len(wanted)


def _compare_matches(
    audit: AuditDirectory, shard: Shard, matches: Sequence[Match], problems: list[Problem]
) -> tuple[int, int]:
    """Compare matches with the rows of their file; return how many stand there, and how many do not."""
    name = str(shard.path)
    by_row: dict[int, list[Match]] = {}
    for match in matches:
        by_row.setdefault(match["row"], []).append(match)
    n_right, wrong = 0, []
    try:
        for row in _read(audit, shard, by_row):
            for match in by_row[row.row]:
                what = row.reason if isinstance(row, Missing) else difference(audit, match, row)
                n_right += what is None
                if what is not None:
                    wrong.append((match, f"{describe(match)}: {what}"))
    except InputError as error:
        n_left = len(matches) - n_right - len(wrong)
        problems.append(Problem(name, None, f"{n_left:,} matches of the sample could not be checked: {error.what}"))
    moved = _find_moved(audit, shard, [match for match, _ in wrong[:_LOOKED_FOR]])
    for (match, what), now in itertools.zip_longest(wrong, moved):
        where = f"; it stands in row {now} now" if now is not None else ""
        problems.append(Problem(name, match["row"], f"{what}{where}"))
    return n_right, len(wrong)


def _read(audit: AuditDirectory, shard: Shard, rows: Iterable[int]) -> Iterator[Document | Missing]:
    return read_rows(shard, rows, text_column=audit.text_column, id_column=audit.id_column)


def _find_moved(audit: AuditDirectory, shard: Shard, matches: Sequence[Match]) -> list[int | None]:
    """Look for matches in the rows around their own: the nearest with the same text at the same place."""
    found: list[int | None] = [None] * len(matches)
    rows = {row for match in matches for row in _around(match)}
    with contextlib.suppress(InputError):  # the rows themselves could be read, those further on may be damaged
        for document in _read(audit, shard, rows):
            for number, match in enumerate(matches):
                if isinstance(document, Missing) or document.row not in _around(match):
                    continue
                best = found[number]
                if best is not None and abs(best - match["row"]) <= abs(document.row - match["row"]):
                    continue
                if difference(audit, match, document) is None:
                    found[number] = document.row
    return found


def _around(match: Match) -> range:
    return range(max(0, match["row"] - _NEIGHBOURS), match["row"] + _NEIGHBOURS + 1)


def describe(match: Match) -> str:
    """Name a match in a few words."""
    return f"{match['benchmark']} {match['doc_hash'][:12]} {match['field']}, characters {match['start']}-{match['end']}"


def difference(audit: AuditDirectory, match: Match, document: Document) -> str | None:
    """Say how a document differs from what a match says of it; None when it does not."""
    key = match["benchmark"], match["doc_hash"]
    if match["field"] not in audit.texts.fields.get(key, {}):
        return "the audit does not hold this item's text"
    if match["doc_id"] is not None and document.doc_id != match["doc_id"]:
        return f"the row holds the document '{document.doc_id}', not '{match['doc_id']}'"
    if match["end"] > len(document.text):
        return f"the document has only {len(document.text):,} characters"
    stretch = document.text[match["start"] : match["end"]]
    return _text_difference(match, stretch, audit.texts.fields[key][match["field"]], is_code=is_code(audit, match))


def is_code(audit: AuditDirectory, match: Match) -> bool:
    """Whether a match is one of program code."""
    return (match["benchmark"], match["field"]) in audit.texts.code


def _text_difference(match: Match, stretch: str, text: str, *, is_code: bool) -> str | None:
    """Compare the text at the place of a match with the item's."""
    found, field = tokens(stretch, is_code=is_code), words_of(text, is_code=is_code)
    n_tokens, n_edits = match["n_tokens"], match["n_edits"] or 0
    possible = list(readings(found, len(stretch)))
    if n_edits:
        least = min(edit_distance(field, words) for words in possible)
        right = least == n_edits and n_tokens == max(len(field) - n_edits, 0)
        return None if right else f"the text there is {least} edits from the item's, not {n_edits}"
    as_long = [words for words in possible if len(words) == n_tokens]
    if not as_long:
        return f"the text there has {len(found)} tokens, not {n_tokens}"
    if all(find_words(words, field) is None for words in as_long):
        return "the text there is not in the item"
    return None


def readings(found: Sequence[Token], n_characters: int) -> Iterator[list[str]]:
    """The tokens of a match's text; a character at its ends may stand for several, of which the match has some.

    "½" is "1" and "2", for instance, and a match can begin with the "2".
    """
    words = [token.text for token in found]
    n_first = sum(token.end <= 1 for token in found)
    n_last = sum(token.start >= n_characters - 1 for token in found)
    for low in range(n_first + 1):
        for high in range(len(words), max(low, len(words) - n_last) - 1, -1):
            yield words[low:high]
