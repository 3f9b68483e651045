"""Results at addresses: a copy here of what is read, and a folder here for what is written, published when it is whole.

Folders of both kinds lie in the user's cache. They are named by a hash of the address, without any secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Final

import orjson

from evalkit.addresses import has_password, name_place, without_query
from evalkit.corpora.objects import (
    Stored,
    end_uploads,
    fetch,
    fetch_all,
    join,
    listed,
    put,
    put_all,
    put_name,
    remove,
)
from evalkit.corpora.remote import file_system, is_web
from evalkit.errors import InputError, SpecError
from evalkit.files import write_json
from evalkit.progress import say, warn

RECORDS: Final = (
    *("audit.json", "dedup.json", "against.json", "substrings.json", "run.json", "judge.json", "clean.json"),
    "sweep.json",
)
"""What says that the results in a folder are ours, and complete: published last, and taken away first."""

UNFINISHED: Final = ".unfinished"
"""Hidden folder at an address with what is needed to go on; gone when the results are complete."""

_MARKER: Final = f"{UNFINISHED}/evalkit.json"

# What an audit leaves away when it has nothing to say: one that is left from an earlier audit would be wrong.
_OPTIONAL: Final = ("bad_rows.jsonl", "score_split.json")

# A prefix that holds files of such names and no record is somebody else's.
_KNOWN: Final = frozenset(
    {*RECORDS, *_OPTIONAL, "samples.parquet", "requests.parquet", "journal.sqlite", "log.jsonl", "verdicts.parquet"}
    | {f"{name}.parquet" for name in ("matches", "items", "documents", "texts", "scan", "clusters", "substrings")}
)

# What others may well call their files, and what is ours only beside a record.
_OURS: Final = _KNOWN | {
    *("items.jsonl", "sweep.jsonl", "scan.files.parquet", "scan.near.parquet", "semantic.parquet"),
    *("pairs.parquet", "near_duplicates.parquet"),
}

_WORK: Final = re.compile(
    rf"{re.escape(UNFINISHED)}/(evalkit\.json|[0-9a-f]{{64}}(\.\w+)*|index-[0-9a-f]{{16}}/[\w.]+)"
)

# Beside a database that is open; nothing that could be opened elsewhere.
_NEVER: Final = ("*-wal", "*-shm", "*.lock")

_LARGE_BYTES: Final = 100 << 20

_N_LOOKS: Final = 3


def cache_folder() -> Path:
    """Return the folder for copies: `EVALKIT_CACHE`, or `evalkit` in the user's cache folder."""
    named = os.environ.get("EVALKIT_CACHE")
    folder = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "evalkit"
    return folder.expanduser().resolve()


def local_copy(address: str, skip: Iterable[str] = ()) -> Path:
    """Return a copy, on this machine, of the file or folder at an address.

    What was copied before is not fetched again where size, and time or tag, are the same. What is hidden is left out.
    A folder that is written meanwhile is copied anew, so that files of two versions never stand side by side.

    Parameters
    ----------
    address
        The file or folder.
    skip
        Names (globs) that are not needed.

    Raises
    ------
    InputError
        Nothing is there, it cannot be read, or it changes all the time.
    """
    place = _place("copies", address)
    with _Lock(place, wait=True):
        state_path = place / "copy.json"
        have = _read_state(state_path)
        found = _looked_at(address, skip)
        if not found:
            if not is_web(address) and re.search(r"[*?\[\]]", address):
                raise InputError("patterns are not read here", where=address, do="Name one file, or a folder")
            raise InputError("nothing is at this address", where=address, do="Check it, and the end point")
        is_file = set(found) == {""}
        target = place / ("file" if is_file else "files") / _last_name(address)
        for _ in range(_N_LOOKS):
            stale = {name: one for name, one in found.items() if not _is_same(one, have.get(name), target / name)}
            if not stale:
                break
            n_bytes = sum(one.size for one in stale.values())
            if n_bytes > _LARGE_BYTES:
                say(f"fetching {len(stale):,} files ({n_bytes / 1e6:,.0f} MB) from {address}")
            if is_file:
                target.parent.mkdir(parents=True, exist_ok=True)
            fetch_all(address, stale, target)
            before, found = found, _looked_at(address, skip)
            have |= {name: [one.size, one.stamp] for name, one in stale.items()}
            write_json(state_path, have)
            if found == before:
                break
        else:
            raise InputError(
                f"this changed each of the {_N_LOOKS} times that it was fetched",
                where=address,
                do="Wait until it is complete",
            )
        if not is_file:
            _forget_others(target, set(listed(address)))
    name_place(str(target), without_query(address))
    return target


def _looked_at(address: str, skip: Iterable[str]) -> dict[str, Stored]:
    skip = (*skip, *_NEVER)
    found = {
        name: one
        for name, one in listed(address).items()
        if not name or not (_is_hidden(name) or any(fnmatch(PurePosixPath(name).name, s) for s in skip))
    }
    if odd := [name for name in found if name and not _can_be_path(name)]:
        warn(f"{len(odd)} files at {address} have names that no file here can have, and are left out ({odd[0]!r})")
    return {name: one for name, one in found.items() if name not in odd}


def _can_be_path(name: str) -> bool:
    """Whether a name at an address is one of a file in a folder, too: keys of object stores can be any text."""
    parts = name.split("/")
    return "::" not in name and "\0" not in name and not any(part in ("", ".", "..") for part in parts)


def _is_same(now: Stored, had: Any, local: Path) -> bool:
    """Whether a file here is the version there. Where nothing tells versions apart, nobody knows."""
    is_known = bool(now.stamp) and had == [now.size, now.stamp]
    return is_known and local.is_file() and local.stat().st_size == now.size


def _forget_others(folder: Path, names: set[str]) -> None:
    for path in _files_in(folder):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink(missing_ok=True)


class AlreadyPublishedError(Exception):
    """The results of this very command were waiting to be published, and are at their address now."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


class Results:
    """A results directory at an address: worked on in a folder here, published when it is whole.

    `begin`, work in `folder`, then `publish`; or `leave`, when the work failed: what is in the folder stays for the
    next time.

    Parameters
    ----------
    address
        The directory.
    seed
        Which of the files that are there the work needs, by their names; None: all. Only files that can be ours are
        asked about.
    has_parts
        Whether the work is an audit's, which has its parts at the address: they go when it is published.
    together
        Commands of which each does a share of the work, at the same time, here and elsewhere. None of them publishes.

    Attributes
    ----------
    folder
        The folder on this machine.
    """

    def __init__(
        self,
        address: str,
        seed: Callable[[str], bool] | None = None,
        *,
        has_parts: bool = False,
        together: bool = False,
    ) -> None:
        check_writable(address)
        self._has_parts, self._together = has_parts, together
        self.address = address.rstrip("/")
        self._seed = seed or (lambda name: True)
        self._place = _place("outputs", self.address)
        self.folder = self._place / "results" / _last_name(address)
        self._lock = _Lock(self._place, wait=False, shared=together)
        self._state: dict[str, Any] = {}

    def begin(self, command: str) -> None:
        """Make the folder ready: with what the address holds already, if the work needs it.

        Parameters
        ----------
        command
            What is asked for, with all that the results depend on, in any form. Only its hash is kept.

        Raises
        ------
        AlreadyPublishedError
            This command had ended, but was killed before all of its results were at the address. They are now.
        SpecError
            The address holds files of others by names of ours, or another command works for it on this machine.
        InputError
            The address cannot be read or written; it has changed since unfinished work began here; or results that wait
            to be published would replace what somebody else has written there meanwhile.
        """
        self._lock.acquire(self.address)
        try:
            if self._together:
                self._join()
                return
            self._begin(hashlib.sha256(command.encode()).hexdigest())
        except BaseException:
            self._lock.release()
            raise

    def _join(self) -> None:
        """Make the folder ready for a share of the work: others may be working in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name_place(str(self.folder), self.address)
        found = listed(self.address)
        if complete := [name for name in RECORDS if name in found]:
            raise SpecError(
                f"the address already holds results ({complete[0]}), and shares of the work do not replace any",
                where=self.address,
                do="Give another --out, or give the command without --share",
            )
        self._mark(self._read_mark() if _MARKER in found else ())

    def _begin(self, command: str) -> None:
        self._state = _read_state(self._place / "state.json")
        name_place(str(self.folder), self.address)
        if waiting := self._state.get("publishing"):
            say(f"an earlier command had ended here without all of its results being at {self.address}; going on")
            self._check_meanwhile(going_on=True)
            self._publish()
            if waiting["command"] == command:
                raise AlreadyPublishedError(waiting["exit_code"])
        if not self._state:  # what a killed clearing, or a killed beginning, has left is nobody's work
            shutil.rmtree(self._place / "results", ignore_errors=True)
        found = listed(self.address)
        if "" in found:
            raise SpecError("a file is at this address", where=self.address, do="Give another --out")
        self._state["begun"] = self._read_mark() if _MARKER in found else []
        foreign = [name for name in found if PurePosixPath(name).name in _KNOWN and not self._is_ours(name, found)]
        if foreign:
            raise SpecError(
                f"files with names of ours are there ({', '.join(sorted(foreign)[:3])}), but no record that says that "
                "they are ours",
                where=self.address,
                do="Give another --out, or remove them",
            )
        self._seed_folder({name: one for name, one in found.items() if self._may_be_seeded(name, found)})
        self._state |= {"address": self.address, "command": command, "there": _plain(found)}
        self._save()
        # As it was: what somebody had begun to publish is still so, whatever becomes of this command.
        self._mark(self._state["begun"])

    def _may_be_seeded(self, name: str, found: Mapping[str, Stored]) -> bool:
        """Whether a file there can be a result of ours: whatever else lies below an address is not fetched."""
        is_file = PurePosixPath(name).name in _OURS and not _is_hidden(name) and _can_be_path(name)
        return is_file and self._is_ours(name, found)

    def _seed_folder(self, found: Mapping[str, Stored]) -> None:
        """Take over what is at the address, unless unfinished work here has gone on from the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        seeded: dict[str, Any] = self._state.get("seeded", {})
        for name in self._state.pop("fetching", ()):  # a kill has cut it short; no work can have begun
            (self.folder / name).unlink(missing_ok=True)
        stale = {}
        for name, one in found.items():
            had, local = seeded.get(name), self.folder / name
            if not self._seed(name) or (had and had["there"] == [one.size, one.stamp] and one.stamp):
                continue
            if local.exists() and not (had and had["here"] == _mark_of(local)):
                raise InputError(
                    f"{name} has changed there since unfinished work with it began on this machine",
                    where=self.address,
                    do=f"Remove {self._place} to give that work up, or give another --out",
                )
            stale[name] = one
        for name in [name for name in seeded if name not in found]:
            if (self.folder / name).exists() and seeded[name]["here"] == _mark_of(self.folder / name):
                (self.folder / name).unlink()
            del seeded[name]
        self._state["seeded"] = seeded
        if self._state.get("command"):  # unfinished work is here
            self._state["fetching"] = list(stale)
            self._save()
        n_bytes = sum(one.size for one in stale.values())
        if n_bytes > _LARGE_BYTES:
            say(f"fetching {len(stale):,} files ({n_bytes / 1e6:,.0f} MB) from {self.address}, to go on from them")
        fetch_all(self.address, stale, self.folder)
        for name, one in stale.items():
            seeded[name] = {"there": [one.size, one.stamp], "here": _mark_of(self.folder / name)}
        self._state.pop("fetching", None)

    def publish(self, exit_code: int = 0) -> None:
        """Put what the work has made at the address, the record last, and clear the folder.

        Until the record is there the results are not complete for any reader. Killed, it goes on with the next `begin`.

        Raises
        ------
        InputError
            Somebody else has written there meanwhile; or it cannot be written. The folder stays.
        """
        if self._together:
            self._lock.release()
            return
        try:
            self._check_meanwhile()
            self._state["publishing"] = {
                "command": self._state["command"],
                "exit_code": exit_code,
                "has_parts": self._has_parts,
                "gone": self._gone(),  # now: later, nobody could tell it from what a kill has left
            }
            self._save()
            self._publish()
        finally:
            self._lock.release()

    def _check_meanwhile(self, *, going_on: bool = False) -> None:
        """Refuse to replace what others have put there since the work began; a killed publishing has put its own."""
        now, before = listed(self.address), self._state["there"]
        mine = self._changed()
        for name, one in now.items():
            if name not in mine and name not in RECORDS:
                continue
            is_same = before.get(name) == [one.size, one.stamp]
            if (is_same and (name not in mine or self._is_ours(name, now) or going_on)) or (
                going_on and name in mine and self._is_put(name, one, mine[name])
            ):
                continue
            raise InputError(
                f"{name} was written there by somebody else meanwhile; the results of a command are still here",
                where=self.address,
                do=f"Remove {self._place} to give them up, or that file; or give the command again with another --out",
            )

    def _is_put(self, name: str, there: Stored, local: Path) -> bool:
        """Whether a killed publishing has put this file; of a record, which says so of others, each byte counts."""
        if there.size != local.stat().st_size:
            return False
        if PurePosixPath(name).name not in RECORDS:
            return True
        copy = self._place / "record.json"
        fetch(join(self.address, name), copy)
        is_same = copy.read_bytes() == local.read_bytes()
        copy.unlink()
        return is_same

    def _gone(self) -> list[str]:
        """What is to be removed: results that were there, that a record of ours covers, and that the work has not."""
        there, changed = self._state["there"], self._changed()
        gone = {name for name in self._state["seeded"] if not (self.folder / name).exists()}
        if any(name in RECORDS for name in changed):
            gone |= {name for name in _OPTIONAL if name not in changed}
        return sorted(n for n in gone if n in there and PurePosixPath(n).name in _OURS and self._is_ours(n, there))

    def _publish(self) -> None:
        """Put all that has changed; called again after a kill it does the same again."""
        changed = self._changed()
        publishing, begun = self._state["publishing"], self._state["begun"]
        gone = [name for name in publishing["gone"] if name not in changed]
        if not changed:
            self._clear()
            if not begun:
                remove(self.address, [_MARKER])
            return
        records = [name for name in changed if PurePosixPath(name).name in RECORDS]
        if records:
            there = self._state["there"]
            # Those, too, that only the record says are ours, which goes now.
            covered = [n for n in there if PurePosixPath(n).name in _OURS and self._is_ours(n, there)]
            self._mark({*changed, *begun, *covered})
            remove(self.address, [name for name in records if name in self._state["there"]])
        others = {name: changed[name] for name in changed if name not in records}
        put_all(others, self.address)
        remove(self.address, gone)
        for name in sorted(records, key=lambda name: (-name.count("/"), name)):
            put(changed[name], join(self.address, name))
        n_bytes = sum(path.stat().st_size for path in changed.values())
        say(f"{len(changed):,} files ({n_bytes / 1e6:,.1f} MB) are at {self.address} now")
        # From here on the results are there. What follows only tidies up, and nothing is put again.
        self._clear()
        self._clean(changed, has_parts=publishing["has_parts"])

    def _clean(self, names: Iterable[str], *, has_parts: bool) -> None:
        """Remove what unfinished work and killed puts have left, as far as it has names of ours."""
        mine = {*names, _MARKER}

        def is_ours(name: str) -> bool:
            return name in mine or (has_parts and _is_work(name))

        end_uploads(self.address, is_ours)
        try:
            left = [
                name
                for name in listed(self.address)
                if name == _MARKER or (has_parts and _is_work(name)) or is_ours(put_name(name) or "")
            ]
            remove(self.address, left)
        except InputError as error:
            warn(f"what the work has left under {UNFINISHED} is still there: {error}")

    def leave(self) -> None:
        """Stop without publishing. Unfinished work stays for the next time; where there is none, nothing stays."""
        if self._together:
            self._lock.release()
            return
        try:
            with contextlib.suppress(InputError):  # why the work failed is worth more to the user
                work = [name for name in listed(self.address) if _is_work(name) and name != _MARKER]
                if not self._changed() and not work:
                    if not self._state["begun"]:
                        remove(self.address, [_MARKER])
                    self._clear()
        finally:
            self._lock.release()

    def _changed(self) -> dict[str, Path]:
        """The files that the work has made or changed, by name."""
        seeded = self._state.get("seeded", {})
        files = {path.relative_to(self.folder).as_posix(): path for path in _files_in(self.folder)}
        return {
            name: path
            for name, path in sorted(files.items())
            if not _is_hidden(name)
            and not any(fnmatch(name, pattern) for pattern in _NEVER)
            and not (name in seeded and seeded[name]["here"] == _mark_of(path))
        }

    def _is_ours(self, name: str, found: Iterable[str]) -> bool:
        """Whether a record in its folder or above says that a file is ours, or a publishing that was killed."""
        folders = list(PurePosixPath(name).parents)
        return name in self._state["begun"] or any(
            str(folder / record) in found for folder in folders for record in RECORDS
        )

    def _mark(self, names: Iterable[str] = ()) -> None:
        """Say at the address that work for it is under way; that shows, too, that one can write there."""
        marker = self._place / "evalkit.json"
        # The same each time, so that commands which share the work do not disturb each other.
        write_json(marker, {"evalkit": "these results are not complete", "files": sorted(names)})
        put(marker, join(self.address, _MARKER))

    def _read_mark(self) -> list[str]:
        """What somebody, here or elsewhere, had begun to publish."""
        copy = self._place / "begun.json"
        fetch(join(self.address, _MARKER), copy)
        files = _read_state(copy).get("files", [])
        copy.unlink()
        return [str(name) for name in files]

    def _save(self) -> None:
        write_json(self._place / "state.json", self._state)

    def _clear(self) -> None:
        # First what gives the folder a meaning: a folder without it is removed, and never published.
        for name in ("state.json", "evalkit.json"):
            (self._place / name).unlink(missing_ok=True)
        shutil.rmtree(self._place / "results", ignore_errors=True)
        self._state = {}


class ResultFile:
    """One file to be written at an address: made in a folder here, then put there in place of what has this name.

    `begin`, write `path`, then `publish`; `leave` in any case.
    """

    def __init__(self, address: str) -> None:
        check_writable(address)
        self.address = address
        place = _place("outputs", address)
        self.path = place / "file" / _last_name(address)
        self._lock = _Lock(place, wait=False)

    def begin(self) -> None:
        """Make the folder.

        Raises
        ------
        SpecError
            Another command on this machine writes this file.
        """
        self._lock.acquire(self.address)
        self.path.parent.mkdir(exist_ok=True)
        self.path.unlink(missing_ok=True)
        name_place(str(self.path), self.address)

    def publish(self) -> None:
        """Put the file at its address.

        Raises
        ------
        InputError
            The command has made no such file, or it cannot be put there; then it stays here until the next time.
        """
        if not self.path.is_file():
            raise InputError("the command has made no file to put there", where=self.address, do="Give a path, and see")
        try:
            put(self.path, self.address)
        except InputError:
            warn(f"the file is in {self.path.parent} until the command is given again")
            raise
        say(f"{self.address} is written")
        self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Let others write the file."""
        self._lock.release()


def check_writable(address: str) -> None:
    """Refuse an address at which no results can lie.

    Raises
    ------
    SpecError
        It is a web address, a pattern, has a password in it, or names no folder.
    InputError
        Its file system is unknown, or needs a package that is not installed.
    """
    if has_password(address):
        file_system(address)  # says so
    why = None
    if is_web(address):
        why = "a web server takes no files"
    elif re.search(r"[*?\[\]]", address):
        why = "this is a pattern, and no place to write"
    elif ".." in address.split("/") or not address.partition("://")[2].strip("/"):
        why = "this names no folder"
    if why:
        raise SpecError(why, where=address, do="Give a path, or an address such as s3://bucket/folder")
    file_system(address)


class _Lock:
    """Held by one process of this machine at a time; the system lets it go when the process dies."""

    def __init__(self, place: Path, *, wait: bool, shared: bool = False) -> None:
        self._path, self._file = place / ".lock", -1
        self._how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)

    def acquire(self, address: str = "") -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, self._how)
        except OSError:
            self.release()
            raise SpecError(
                "another command on this machine writes to this address", where=address, do="Wait until it has ended"
            ) from None

    def release(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def _place(kind: str, address: str) -> Path:
    """The folder for an address. Another end point may have other files at the same address."""
    fs, _ = file_system(address)
    options = getattr(fs, "storage_options", {}) or {}
    end_point = options.get("endpoint_url") or (options.get("client_kwargs") or {}).get("endpoint_url")
    end_point = end_point or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    what = [without_query(address).rstrip("/"), without_query(str(end_point)).rpartition("@")[2]]
    return cache_folder() / kind / hashlib.sha256(orjson.dumps(what)).hexdigest()[:24]


def _last_name(address: str) -> str:
    return PurePosixPath(without_query(address).partition("://")[2]).name or "results"


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_work(name: str) -> bool:
    return _WORK.fullmatch(name) is not None


def _files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _mark_of(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _plain(found: Mapping[str, Stored]) -> dict[str, list[Any]]:
    return {name: [one.size, one.stamp] for name, one in found.items()}


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return state
