"""Reads the logs of inspect_ai: `.eval`, a zip of JSON files that may be compressed with Zstandard, and `.json`.

A log is foreign data: nothing in it is executed, sizes are bounded before and while unpacking, and names in the archive
are never used as paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import orjson

from evalkit.errors import InputError
from evalkit.reports.adaptors import HIGHER, make_run
from evalkit.reports.inputs import Run

VERSION: Final = 2
"""Newest version of the log format that is known."""

MAX_ENTRY_BYTES: Final = 512 << 20
"""Largest unpacked file of a log: one sample with all its messages and events."""

MAX_LOG_BYTES: Final = 64 << 30
"""Largest log, unpacked. Only one of its files is in memory at a time."""

MAX_JSON_BYTES: Final = 2 << 30
"""Largest `.json` log, which must be read at once."""

_ZSTD: Final = 93
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
_CHUNK: Final = 1 << 20

_WORDS: Final = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""inspect's own `value_to_float`: correct, incorrect, partial and no answer; then words."""


def logs_in(folder: Path) -> list[Path]:
    """Return the logs in a folder."""
    return sorted(folder.glob("*.eval")) + sorted(path for path in folder.glob("*.json") if is_log(path))


def is_log(path: Path) -> bool:
    """Whether a JSON file begins as an inspect log does."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.lstrip().startswith(b"{") and b'"eval"' in head and b'"status"' in head and b'"task' in head


def read_logs(paths: Sequence[Path], path: Path) -> Run:
    """Read the logs of one model, one for each task.

    Items meet by their input, choices and target; epochs are repeats. Scores follow inspect's `value_to_float`: C is 1,
    P is 0.5, I and N are 0; a score of several values gives several metrics, SCORER/KEY. Values that are no number are
    no score.

    Raises
    ------
    InputError
        A log is broken, too large, of a newer format, or of a task or model that another one is of, too.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    documents: dict[str, dict[str, Mapping[str, Any]]] = {}
    tasks: dict[str, Any] = {}
    statuses: list[str] = []
    log_of: dict[str, Path] = {}
    for one in paths:
        header, samples = _open(one)
        task = str(_part(header, "eval").get("task") or one.stem)
        if task in tasks:
            raise InputError(
                f"two logs are of the task {task} ({log_of[task].name}, {one.name})",
                where=str(path),
                do="Give the log that is meant, not the folder",
            )
        log_of[task] = one
        model = str(_part(header, "eval").get("model") or "unknown")
        metrics: dict[str, None] = dict.fromkeys(_headline(header))
        rows: list[dict[str, Any]] = []
        unscored: list[dict[str, Any]] = []
        for name, sample in samples:
            key, fields = _document(sample)
            documents.setdefault(task, {})[key] = fields
            common = {**_common(sample, f"{one}, {name}"), "task": task, "doc_hash": key, "model": model}
            scores = dict(_values(sample))
            metrics |= dict.fromkeys(scores)
            rows += [{**common, "metric": metric, "score": _score(value, common)} for metric, value in scores.items()]
            unscored += [] if scores else [common]
        # A sample that failed has no scores, and is none that is missing: it has a row without a score for each metric.
        metrics = metrics or {"score": None}
        rows += [{**common, "metric": metric, "score": None} for common in unscored for metric in metrics]
        for column, values in columns.items():
            values.extend(row[column] for row in rows)
        if not documents.get(task):
            raise InputError("the log has no samples", where=str(one), do="Run it with samples logged")
        statuses.append(str(header.get("status", "started")))
        tasks[task] = {
            "version": _part(header, "eval").get("task_version"),
            "metrics": [{"metric": metric, "filter": "none", "higher_is_better": True} for metric in metrics],
        }
    bad = [status for status in statuses if status != "success"]
    record = {"assumed": HIGHER, "tasks": tasks, "status": bad[0] if bad else "complete"}
    return make_run(path, columns, record, documents)


_COLUMNS: Final = (
    "task", "doc_hash", "model", "prompt_hash", "filter", "metric", "score", "seed", "repeat", "response", "target",
    "cluster", "finish_reason", "error",
)  # fmt: skip


def _part(values: Any, *names: str) -> dict[str, Any]:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


def _headline(header: Mapping[str, Any]) -> list[str]:
    """The scores of the header, the one that inspect shows first."""
    results = _part(header, "results")
    listed = results.get("scores")
    named = [
        _metric_name(str(one.get("scorer")), str(one.get("name")))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict) and one.get("name") and one.get("scorer")
    ]
    headline = _part(results, "headline")
    first = _metric_name(str(headline.get("scorer")), str(headline.get("score")))
    return sorted(dict.fromkeys(named), key=lambda name: name != first)


def _metric_name(scorer: str, name: str) -> str:
    return scorer if name == scorer else f"{scorer}/{name}"


def _open(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, dict[str, Any]]]]:
    """Return a log's header, and its samples by name."""
    if path.suffix == ".eval":
        header = _eval_header(path)
        samples = _eval_samples(path)
    else:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                f"the log has {path.stat().st_size / 1e9:.0f} GB", where=str(path), do="Convert it to .eval"
            )
        header = _parse(path.read_bytes(), str(path))
        listed = header.pop("samples", None) or []
        if not isinstance(listed, list):
            raise InputError("'samples' is no list", where=str(path), do="Write the log again")
        samples = ((f"sample {number}", one) for number, one in enumerate(listed, start=1))
    version = header.get("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise InputError(
            f"the log has format {version}, and formats up to {VERSION} are known",
            where=str(path),
            do="Upgrade evalkit-harness, or write the log with an older inspect_ai",
        )
    return header, samples


def _eval_header(path: Path) -> dict[str, Any]:
    """The header; of a log that was never finished, its beginning."""
    with _archive(path) as (file, archive):
        for name in ("header.json", "_journal/start.json"):
            if name in archive.NameToInfo:
                header = _parse(_unpack(file, archive, name, path), f"{path}, {name}")
                return header if name == "header.json" else {**header, "status": "started"}
    raise InputError("this is no inspect log (no header.json)", where=str(path), do="Give a log that inspect wrote")


def _eval_samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _archive(path) as (file, archive):
        # A retried sample is written again under its name; the last one counts.
        for name in archive.NameToInfo:
            if name.startswith("samples/") and name.endswith(".json"):
                yield name, _parse(_unpack(file, archive, name, path), f"{path}, {name}")


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[tuple[IO[bytes], zipfile.ZipFile]]:
    """Open a zip file whose unpacked size is bounded; yield the file itself, too."""
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise InputError(f"this is no zip file ({error})", where=str(path), do="Copy the log again") from None
        if (total := sum(info.file_size for info in archive.infolist())) > MAX_LOG_BYTES:
            raise InputError(
                f"the log is {total / 1e9:,.0f} GB unpacked", where=str(path), do="It is no log of an evaluation"
            )
        yield file, archive


def _unpack(file: IO[bytes], archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """Return one file of the archive, no larger than it says and than is allowed."""
    info = archive.NameToInfo[name]
    where = f"{path}, {name}"
    if info.file_size > MAX_ENTRY_BYTES:
        raise InputError(f"it is {info.file_size / 1e6:,.0f} MB unpacked", where=where, do="Leave out that sample")
    if info.flag_bits & 1:
        raise InputError("it is encrypted", where=where, do="Write the log without encryption")
    try:
        if info.compress_type != _ZSTD:
            with archive.open(info) as packed:
                content = packed.read(info.file_size + 1)
        else:
            content = _unpack_zstd(file, info)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, struct.error) as error:
        raise InputError(f"it cannot be unpacked ({error})", where=where, do="Copy the log again") from None
    if len(content) != info.file_size:
        raise InputError("its size is not the one that the archive says", where=where, do="Copy the log again")
    return content


def _unpack_zstd(file: IO[bytes], info: zipfile.ZipInfo) -> bytes:
    """Zstandard in a zip is method 93, which this Python's zipfile does not know; there may be several frames."""
    import zlib

    import zstandard

    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if header[0] != b"PK\x03\x04":
        raise ValueError("no file begins where the archive says")
    file.seek(info.header_offset + _LOCAL_HEADER.size + header[9] + header[10])
    content = bytearray()
    packed: Any = _Window(file, info.compress_size)
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            packed, read_across_frames=True
        ) as stream:
            while len(content) <= info.file_size and (part := stream.read(_CHUNK)):
                content += part
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if zlib.crc32(content) != info.CRC:
        raise ValueError("its checksum is wrong")
    return bytes(content)


class _Window:
    """The next bytes of a file, and no more, for a decompressor that reads ahead."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left = file, size

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` of the bytes that are left."""
        found = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(found)
        return found


def _parse(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object, also with the NaN that Python writes."""
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"this is no JSON ({error})", where=where, do="Copy the log again") from None
    if not isinstance(found, dict):
        raise InputError("this is no JSON object", where=where, do="Copy the log again")
    return found


def _document(sample: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an item is told by, in all logs alike, and its fields: an id may be its place in a shuffled data set."""
    asked = [_said(sample.get("input")), sample.get("choices"), sample.get("target")]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    fields = {"id": sample.get("id"), "target": _text(sample.get("target")), **_part(sample, "metadata")}
    return digest.hexdigest(), fields


def _said(messages: Any) -> Any:
    """Messages without their ids, which are random."""
    if not isinstance(messages, list):
        return messages
    return [[one.get("role"), one.get("content")] if isinstance(one, dict) else one for one in messages]


def _prompt_hash(sample: Mapping[str, Any]) -> str | None:
    """A hash of what the model was told before its first answer; None where no messages were logged."""
    messages = sample.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    until = [isinstance(one, dict) and one.get("role") == "assistant" for one in messages]
    told = messages[: until.index(True)] if True in until else messages
    return hashlib.sha256(json.dumps(_said(told), default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _common(sample: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the rows of a sample's scores share; of one that failed, why."""
    epoch = sample.get("epoch", 1)
    if not isinstance(epoch, int) or epoch < 1:
        raise InputError(f"the epoch is {epoch!r}", where=where, do="Write the log again")
    error = sample.get("error")
    output = _part(sample, "output")
    choices = output.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    return {
        "prompt_hash": _prompt_hash(sample),
        "filter": "none",
        "seed": None,
        "repeat": epoch - 1,
        "response": _text(output.get("completion")),
        "target": _text(sample.get("target")),
        "cluster": None,
        "finish_reason": _text(first.get("stop_reason")),
        "error": None
        if error is None
        else (str(_part(error).get("message") or error) or "failed").splitlines()[0][:500],
    }


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or ["failed"])[0][:500]


def _values(sample: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    scores = _part(sample, "scores")
    if not scores and isinstance(sample.get("score"), dict):  # before version 2 of the format
        scores = {"score": sample["score"]}
    for scorer, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, dict):
            yield from ((_metric_name(str(scorer), str(name)), part) for name, part in value.items())
        else:
            yield str(scorer), value


def _score(value: Any, common: Mapping[str, Any]) -> float | None:
    return None if common["error"] else _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    if value in _WORDS or value.lower() in ("yes", "no", "true", "false"):
        return _WORDS.get(value, _WORDS.get(value.lower()))
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _text(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)
