"""Addresses on the command line: what an option names at `s3://...` is fetched before the command, or published after.

Every option that takes a path has a role here, or refuses addresses: none makes a folder called `s3:`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import typer

from evalkit.addresses import has_password, is_address, local_part, with_plain_scheme

if TYPE_CHECKING:
    from evalkit.corpora.results import ResultFile, Results

_Work = TypeVar("_Work", bound=Callable[..., Any])

_PATH: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?!/)")

Role = Literal["read", "write", "update", "write file", "refuse"]

# What most commands do not read of an audit and of a run, and what can be large.
_SCAN: Final = ("scan.parquet", "scan.*.parquet")
_JOURNAL: Final = ("journal.sqlite", "log.jsonl")

_ROLES: Final[Mapping[str, Role]] = {
    **dict.fromkeys(("directory", "run_a", "run_b", "others", "audit", "control", "pilot", "checkpoints"), "read"),
    **dict.fromkeys(("judge", "judge_labels", "labels", "verdicts", "spec_file", "task", "run"), "read"),
    "out": "write",
    **dict.fromkeys(("figure", "junit", "summary"), "write file"),
}
"""By the parameter's name. Any other that takes a path takes no address."""

_ROLES_OF: Final[Mapping[tuple[str, str], Role]] = {
    ("report", "out"): "write file",
    ("quickstart", "out"): "refuse",
    # They add to an audit, in its directory.
    ("audit semantic", "directory"): "update",
    ("audit score", "directory"): "update",
}
"""By the command and the parameter's name."""

_TEXTS: Final = frozenset({("audit", "run"), ("audit score", "run"), ("audit", "benchmark"), ("dedup", "against")})
"""Parameters that are taken for texts, and can be paths."""

_SKIPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "report": _SCAN,
    "view": _SCAN,
    "judge": _SCAN,
    "rescore": _SCAN,
    "audit judge": _JOURNAL,
}
"""What a command does not read of a directory; any other command does not read either."""

_SEEDED: Final[Mapping[str, tuple[str, ...]]] = {"audit": ("audit.json",)}
"""What a command needs of results that it goes on from, or replaces; any other command needs all."""

_WHY_NOT: Final = {
    "to": "a cleaned corpus is written to this machine",
    "clean": "a cleaned corpus is written to this machine",
    "write": "the corpus is written to this machine",
    "journal": "a database of answers lies on this machine",
}


class Commands(typer.Typer):
    """Commands of which the options take addresses where `_ROLES` says so, and refuse them elsewhere.

    Parameters
    ----------
    group
        The command that these are subcommands of, if any.
    """

    def __init__(self, group: str = "", **options: Any) -> None:
        super().__init__(**options)
        self._group = group

    def command(self, name: str | None = None, **options: Any) -> Callable[[_Work], _Work]:
        """Register a command, as typer does."""
        register = super().command(name, **options)

        def decorate(work: _Work) -> _Work:
            own = name or work.__name__.replace("_", "-")
            register(_with_places(f"{self._group} {own}".strip(), work))
            return work

        return decorate

    def callback(self, **options: Any) -> Callable[[_Work], _Work]:
        """Register what the command does without a subcommand, as typer does."""
        register = super().callback(**options)

        def decorate(work: _Work) -> _Work:
            register(_with_places(self._group, work))
            return work

        return decorate


def _with_places(command: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def run(**given: Any) -> Any:
        named = {
            name: value
            for name, value in given.items()
            if any(_address_of(one, is_text=(command, name) in _TEXTS) for one in _each(value))
        }
        if not named:
            return work(**given)
        session = _Session(command, given)
        for name, value in named.items():
            change = functools.partial(session.place, name)
            given[name] = type(value)(map(change, value)) if isinstance(value, list | tuple) else change(value)
        return session.run(lambda: work(**given))

    return run


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _address_of(value: Any, *, is_text: bool = True) -> str | None:
    """Return the address that was given, or None when it is none; a path has swallowed the second slash of `s3://`."""
    if isinstance(value, Path):
        return with_plain_scheme(_PATH.sub(r"\1://", str(value), count=1)) if _PATH.match(str(value)) else None
    return with_plain_scheme(value) if is_text and isinstance(value, str) and is_address(value) else None


class _Session:
    """What a command reads and writes at addresses, from before it begins until after it has ended."""

    def __init__(self, command: str, given: Mapping[str, Any]) -> None:
        self._command, self._given = command, given
        plain = {name: str(value) for name, value in given.items() if not isinstance(value, typer.Context)}
        self._what = json.dumps([command, plain], sort_keys=True)
        self._results: list[Results] = []
        self._files: list[ResultFile] = []

    def _role(self, name: str) -> Role:
        from evalkit.errors import SpecError

        if (self._command, name) in _TEXTS:
            return "read"
        if self._command == "audit judge" and name == "directory" and self._given.get("out") is None:
            return "update"
        if self._command == "rescore" and name == "run" and self._given.get("out") is None:
            raise SpecError("the run is at an address", where="--out", do="Say where the new scores are to be written")
        return _ROLES_OF.get((self._command, name)) or _ROLES.get(name, "refuse")

    def place(self, name: str, value: Any) -> Any:
        """Return the path on this machine that stands for an address; what is none stays."""
        address = _address_of(value)
        if address is None:
            return value
        return type(value)(self._local(name, address))

    def _local(self, name: str, address: str) -> Path:
        if (path := local_part(address)) is not None:
            return Path("/", path)
        role = self._role(name)
        if has_password(address):
            from evalkit.corpora.remote import file_system

            file_system(address)  # says so, and does not repeat it
        if role == "refuse":
            self._refuse(f"--{name.replace('_', '-')}", address)
        # Costs a second, and only who needs it pays.
        from evalkit.corpora.results import ResultFile, Results, local_copy

        if role == "read":
            return local_copy(address, _SKIPPED.get(self._command, (*_SCAN, *_JOURNAL)))
        if role == "write file":
            file = ResultFile(address)
            self._files.append(file)
            return file.path
        patterns = _SEEDED.get(self._command) if role == "write" else None
        skipped = () if role == "write" or self._command == "audit judge" else _SCAN
        together = self._given.get("share") is not None  # Slurm's tasks, on this machine and others
        # Only sweeps have results in folders below.
        is_deep = self._given.get("checkpoints") is not None
        results = Results(
            address,
            lambda file: (is_deep or "/" not in file) and _is_needed(file, patterns, skipped),
            has_parts=self._command == "audit",
            together=together,
        )
        self._results.append(results)
        return results.folder

    def run(self, work: Callable[[], Any]) -> Any:
        """Run the command between the beginning and the end of what it writes."""
        from evalkit.corpora.results import AlreadyPublishedError

        begun: list[Results] = []
        try:
            for file in self._files:
                file.begin()
            for one in self._results:
                one.begin(self._what)
                begun.append(one)
            try:
                value = work()
            except typer.Exit as ended:  # done, but a stated bar was not met
                self._publish(begun, ended.exit_code)
                raise
            self._publish(begun, 0)
        except AlreadyPublishedError as done:
            raise typer.Exit(done.exit_code) from None
        finally:
            for one in begun:
                one.leave()
            for file in self._files:
                file.leave()
        return value

    def _publish(self, begun: list[Results], exit_code: int) -> None:
        for file in self._files:
            file.publish()
        while begun:
            begun.pop(0).publish(exit_code)

    def _refuse(self, option: str, address: str) -> None:
        from evalkit.errors import SpecError

        why = _WHY_NOT.get(option.lstrip("-"), "this option takes a path of this machine's")
        raise SpecError(
            f"{why}, and {address} is an address", where=option, do="Give a path; copy to or from the address yourself"
        )


def _is_needed(name: str, patterns: tuple[str, ...] | None, skipped: tuple[str, ...]) -> bool:
    last = name.rpartition("/")[2]
    if any(fnmatch(last, pattern) for pattern in skipped):
        return False
    return patterns is None or any(fnmatch(last, pattern) for pattern in patterns)
