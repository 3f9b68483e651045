"""Reads verdicts that others collected, in their own formats or with named columns, into the verdicts table.

No row is dropped silently: a row that cannot be used is listed with file, row and column, and a verdict that cannot be
read is kept as an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

from evalkit import tables
from evalkit.errors import InputError, SpecError
from evalkit.judges.style import STYLES, looks

Row = Mapping[str, Any]

_TIES: Final = frozenset(
    {"tie", "draw", "c", "both", "neither", "equal", "same", "tie (inconsistent)", "tie (bothbad)"}
)
_A: Final = frozenset({"a", "model_a", "model_1", "output_1", "1", "[[a]]"})
_B: Final = frozenset({"b", "model_b", "model_2", "output_2", "2", "[[b]]"})
_FIRST_A: Final = frozenset({"ab", "original", "first", "a", "false", "0"})
_FIRST_B: Final = frozenset({"ba", "swapped", "second", "b", "true", "1"})
_PASSED_ON: Final = ("length_a", "length_b", "preference", *(f"{s}_{side}" for s in STYLES for side in "ab"))


@dataclass(frozen=True)
class Trouble:
    """A row that could not be used as it is: where, why, and what became of it (`dropped` or `error`)."""

    file: str
    row: int
    column: str
    reason: str
    kept_as: str = "dropped"

    @property
    def kind(self) -> str:
        """What became of it and why, without the value that it was about."""
        return f"{self.kept_as}: {self.reason.split(' (')[0]}"

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, column {self.column}: {self.reason} ({self.kept_as})"


@dataclass(frozen=True)
class Collected:
    """Verdicts from files.

    Attributes
    ----------
    table
        The verdicts table.
    formats
        What each file was read as.
    n_rows
        Rows of all files; a row may hold several verdicts.
    troubles
        Rows that were dropped, and verdicts that were kept as errors.
    """

    table: pa.Table
    formats: Mapping[str, str]
    n_rows: int
    troubles: tuple[Trouble, ...] = field(default=())

    def counts(self) -> dict[str, int]:
        """Rows by what became of them and why."""
        return dict(Counter(one.kind for one in self.troubles).most_common())


class _BadRowError(Exception):
    def __init__(self, column: str, reason: str) -> None:
        self.column, self.reason = column, reason
        super().__init__(reason)


def read_verdicts(
    paths: Sequence[Path],
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    judge: str | None = None,
) -> Collected:
    """Read files of verdicts.

    Parameters
    ----------
    paths
        JSON, JSON lines (also .gz and .zst), CSV or Parquet.
    kind
        One of `FORMATS`; None finds it by the columns of each file's first row.
    columns
        Their names of our columns, such as {"winner": "choice"}; for `named`.
    judge
        The judge's name, where the file does not say it; else the file's name, with its folder where two are alike.

    Raises
    ------
    InputError
        A file cannot be read, is of no known format, or not one of its verdicts can be used.
    SpecError
        There is no such format.
    """
    if kind is not None and kind not in FORMATS:
        raise SpecError(f"'{kind}' is no format of verdicts", where="--format", do=f"Choose of {', '.join(FORMATS)}")
    paths = list(dict.fromkeys(paths))
    troubles: list[Trouble] = []
    found: list[dict[str, Any]] = []
    own: dict[Path, pa.Table] = {}
    formats, n_rows = {}, 0
    stems = Counter(path.name.split(".")[0] for path in paths)
    for given in paths:
        path = given / "verdicts.parquet" if given.is_dir() else given
        if kind is None and not columns and _is_ours(path):
            ready = tables.read(path, tables.VERDICTS)
            formats[str(path)], n_rows = "verdicts table", n_rows + ready.num_rows
            own[path] = ready
            troubles += _errors(path, ready)
            continue
        rows = rows_of(path, troubles)
        first = next((row for _, row in rows), None)
        if first is None:
            raise InputError("there is no row", where=str(path), do="Give a file with verdicts")
        chosen = kind or ("named" if columns else _kind_of(first, path))
        if chosen == "named":
            _check_columns(first, columns or {}, path)
        formats[str(path)] = chosen
        n_rows += len(rows)
        stem = path.name.split(".")[0]
        named = judge or (stem if stems[stem] == 1 else str(path.parent / stem))
        found += _normalised(path, chosen, rows, columns or {}, named, troubles)
    if len(own) == 1 and not found:
        (table,) = own.values()
    else:
        table = tables.from_rows(tables.VERDICTS, _settled([*_own_rows(own), *found], troubles))
    if not pc.any(pc.not_equal(table.column("winner"), "error")).as_py():
        shown = f"; the first: {troubles[0]}" if troubles else ""
        raise InputError(
            f"not one of {n_rows} rows has a verdict that can be used{shown}",
            where=", ".join(map(str, paths)),
            do="Name the columns with --columns winner=..., or the format with --format",
        )
    return Collected(table, formats, n_rows, tuple(troubles))


def _own_rows(own: Mapping[Path, pa.Table]) -> Iterator[dict[str, Any]]:
    """Rows of several tables of ours; a judge that was asked in several ways is one judge for each way."""
    asked = {path: _asked(path) for path in own}
    ways: dict[str, set[str]] = {}
    for path, table in own.items():
        for judge in pc.unique(table.column("judge")).to_pylist():
            ways.setdefault(judge, set()).add(asked[path])
    for path, table in own.items():
        for number, row in enumerate(table.to_pylist(), 1):
            if asked[path] and len(ways[row["judge"]]) > 1:
                row["judge"] += f" ({asked[path]})"
            yield row | {"prompt": row["doc_hash"], "where": (str(path), number)}


def _asked(path: Path) -> str:
    """The name of the prompt of an own judging, and whether reasons were asked for; empty where nothing says it."""
    try:
        settings = json.loads((path.parent / "judge.json").read_text(encoding="utf-8"))["settings"]
        return str(settings["prompt"]["name"]) + (", with reasons" if settings["reasons"] else "")
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _is_ours(path: Path) -> bool:
    """Whether evalkit wrote the file."""
    if not path.name.endswith(".parquet"):
        return False
    try:
        return (pq.read_schema(path).metadata or {}).get(b"evalkit.table") is not None
    except (OSError, pa.ArrowInvalid):
        return False


def _errors(path: Path, table: pa.Table) -> Iterator[Trouble]:
    failed = np.flatnonzero(pc.equal(table.column("winner"), "error").to_numpy(zero_copy_only=False))
    for row in failed.tolist():
        yield Trouble(str(path), row + 1, "winner", "the judge failed", "error")


def _kind_of(row: Row, path: Path) -> str:
    keys = set(row)
    for name, needed in _SIGNS.items():
        if needed <= keys:
            return name
    raise InputError(
        f"these are no verdicts of a known format (columns: {', '.join(sorted(keys)[:12])})",
        where=str(path),
        do=f"Name the columns, e.g. --columns winner=choice,pair_id=id; formats: {', '.join(FORMATS)}",
    )


def _check_columns(row: Row, columns: Mapping[str, str], path: Path) -> None:
    known = {field.name for field in tables.VERDICTS.schema} | {"prompt_id", "answer_a", "answer_b"}
    if unknown := [name for name in columns if name not in known]:
        raise SpecError(
            f"there is no column '{unknown[0]}' of verdicts", where="--columns", do=f"Known: {', '.join(sorted(known))}"
        )
    for name in ("pair_id", "model_a", "model_b", "winner"):
        theirs = columns.get(name, name)
        if theirs not in row and not (name == "winner" and columns.get("preference", "preference") in row):
            raise InputError(
                f"there is no column '{theirs}' (there are: {', '.join(list(row)[:12])})",
                where=str(path),
                do=f"Name it: --columns {name}=THEIR_NAME",
            )


# -- Files as rows ---------------------------------------------------------------------------------------------------


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return next(iter(str(error).splitlines()), type(error).__name__)


def rows_of(path: Path, troubles: list[Trouble]) -> list[tuple[int, Row]]:
    """All rows with their numbers, from 1; lines that are no JSON objects are listed."""
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return list(enumerate(pq.read_table(path).to_pylist(), 1))
        content = path.read_bytes()
        if name.endswith(".gz"):
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        elif name.endswith(".zst"):
            # Frames that were written as a stream do not tell their size.
            with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as stream:
                content, name = stream.read(), name.removesuffix(".zst")
        text = content.decode("utf-8-sig")
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(
            f"the file cannot be read ({_reason(error)})",
            where=str(path),
            do="Give JSON, JSON lines, CSV or Parquet",
        ) from None
    if name.endswith((".csv", ".tsv")):
        return _csv_rows(path, text, "excel-tab" if name.endswith(".tsv") else "excel", troubles)
    if name.endswith(".json"):
        try:
            whole = _json(text)
        except ValueError:
            whole = None  # JSON lines are often called .json
        if whole is not None:
            listed = enumerate(_listed(whole), 1)
            rows = [(number, row) for number, row in listed if _is_object(row, path, number, troubles)]
            return _unfolded(rows, path, troubles)
    rows = []
    # Not splitlines(): JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = _json(line)
        except ValueError as error:
            troubles.append(Trouble(str(path), number, "-", f"this line is no JSON ({error})"))
            continue
        if _is_object(row, path, number, troubles):
            rows.append((number, row))
    return _unfolded(rows, path, troubles)


def _json(text: str) -> Any:
    """Read JSON; half a surrogate pair, as of a text cut off by bytes, becomes a question mark."""
    found = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    return found


def _csv_rows(path: Path, text: str, dialect: str, troubles: list[Trouble]) -> list[tuple[int, Row]]:
    """Rows of a CSV file; row 1 is the first below the header."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    rows: list[tuple[int, Row]] = []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), dialect=dialect), 1):
            if None in row:
                troubles.append(Trouble(str(path), number, "-", "the row has more cells than the header"))
            else:
                rows.append((number, row))
    except csv.Error as error:
        raise InputError(f"this is no CSV ({error})", where=f"{path}, row {len(rows) + 1}", do="Mend the row") from None
    return rows


def _unfolded(rows: list[tuple[int, Row]], path: Path, troubles: list[Trouble]) -> list[tuple[int, Row]]:
    """Rows that hold a whole run (`verdicts`, beside its judge or model) as one row for each verdict."""
    if not any(isinstance(row.get("verdicts"), list) for _, row in rows):
        return rows
    flat: list[Row] = []
    for number, row in rows:
        shared = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        listed = row.get("verdicts")
        if not isinstance(listed, list):
            troubles.append(Trouble(str(path), number, "verdicts", f"this is no list but {type(listed).__name__}"))
            continue
        for one in listed:
            if _is_object(one, path, number, troubles):
                flat.append({**shared, **one})
    # The running number, as nothing else names a verdict.
    return list(enumerate(flat, 1))


def _listed(whole: Any) -> list[Any]:
    if isinstance(whole, dict):
        inner = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        return inner[0] if len(inner) == 1 and "games" not in whole and "results" not in whole else [whole]
    return whole if isinstance(whole, list) else [whole]


def _is_object(row: Any, path: Path, number: int, troubles: list[Trouble]) -> bool:
    if isinstance(row, dict):
        return True
    troubles.append(Trouble(str(path), number, "-", f"this is no object but {type(row).__name__}"))
    return False


# -- Formats ---------------------------------------------------------------------------------------------------------


def _named(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    def get(name: str) -> Any:
        return row.get(columns.get(name, name))

    a, b = _text(get("model_a"), "model_a"), _text(get("model_b"), "model_b")
    made: dict[str, Any] = {
        "judge": get("judge"),
        "pair_id": _text(get("pair_id"), "pair_id"),
        "task": get("task"),
        "prompt": get("prompt_id") or get("doc_hash"),
        "model_a": a,
        "model_b": b,
        "order": _order(get("order"), a, b),
        "repeat": None if _missing(get("repeat")) else _whole(get("repeat"), "repeat"),
        "label": _label(get("label"), a, b),
        "raw": get("raw"),
    }
    for name in _PASSED_ON:
        if not _missing(value := get(name)):
            made[name] = _number(value, name) if name == "preference" else _whole(value, name)
    if isinstance(get("identical"), bool):
        made["identical"] = get("identical")
    if isinstance(get("answer_a"), str) and isinstance(get("answer_b"), str):
        made |= looks(get("answer_a"), get("answer_b"))
    preference = made.get("preference")
    if preference is not None and not 0 <= preference <= 1:
        raise _BadRowError("preference", f"this is not from 0 to 1 ({preference})")
    if _missing(get("winner")) and preference is not None:
        made["side"] = "a" if preference < 0.5 else "b" if preference > 0.5 else "tie"
    yield made | {"winner": get("winner")}


def _alpaca_eval(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """AlpacaEval's annotations: preference 1 is output_1, 2 is output_2, 0 a draw; the order shown is not recorded."""
    value = row.get("preference")
    a, b = _text(row.get("generator_1"), "generator_1"), _text(row.get("generator_2"), "generator_2")
    made: dict[str, Any] = {
        "judge": row.get("annotator") or row.get("judge"),
        "pair_id": _text(row.get("item", row.get("instruction")), "instruction")
        + (f" {row['dataset']}" if "dataset" in row else ""),
        "model_a": a,
        "model_b": b,
        "order": None,
        "repeat": None,
        "raw": row.get("raw_completion"),
    }
    made["prompt"] = str(row.get("instruction") or made["pair_id"])
    made |= _answers(row, "output_1", "output_2")
    if _missing(value):
        yield made | {"winner": None}
        return
    preference = _number(value, "preference")
    preference = 1.5 if preference == 0 else preference
    if not 1 <= preference <= 2:
        raise _BadRowError("preference", f"this is neither 0 nor from 1 to 2 ({preference})")
    side = "a" if preference < 1.5 else "b" if preference > 1.5 else "tie"
    yield made | {"side": side, "preference": preference - 1}


def _mt_bench(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """FastChat's pairwise judgements: game 1 shows model_1 first, game 2 model_2; winners are named by model."""
    judge = row.get("judge")
    turn = row.get("turn", 1)
    base: dict[str, Any] = {
        "judge": " ".join(map(str, judge)) if isinstance(judge, list | tuple) else judge,
        "pair_id": f"{_text(row.get('question_id'), 'question_id')}, turn {turn}",
        "prompt": str(row["question_id"]),
        "task": f"turn {turn}",
        "model_a": _text(row.get("model_1"), "model_1"),
        "model_b": _text(row.get("model_2"), "model_2"),
        "repeat": None,
    }
    if not {"g1_winner", "g2_winner"} & set(row):
        raise _BadRowError("g1_winner", "there is no game")
    for game, order in (("g1", "ab"), ("g2", "ba")):
        if f"{game}_winner" in row:
            yield base | {"order": order, "winner": row[f"{game}_winner"], "raw": row.get(f"{game}_judgment")}


def _mt_bench_human(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """The published votes of experts and of GPT-4: one winner a row, and not which answer was shown first."""
    judge = row.get("judge")
    turn = row.get("turn", 1)
    made: dict[str, Any] = {
        "judge": " ".join(map(str, judge)) if isinstance(judge, list | tuple) else judge,
        "pair_id": f"{_text(row.get('question_id'), 'question_id')}, turn {turn}",
        "prompt": str(row["question_id"]),
        "task": f"turn {turn}",
        "model_a": _text(row.get("model_a"), "model_a"),
        "model_b": _text(row.get("model_b"), "model_b"),
        "order": None,
        "repeat": None,
    }
    texts = [_last_turn(row.get(f"conversation_{side}")) for side in "ab"]
    if texts[0] is not None and texts[1] is not None:
        made |= looks(texts[0], texts[1])
    yield made | {"winner": row.get("winner")}


def _llmbar(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """LLMBar's results, as its evaluators write them: the winner is named by output in either order."""
    results = row.get("results")
    if not isinstance(results, list) or not results:
        raise _BadRowError("results", "there is no list of results")
    base: dict[str, Any] = {
        "judge": row.get("judge"),
        "pair_id": str(number),
        "prompt": str(row.get("input") or number),
        "model_a": "output_1",
        "model_b": "output_2",
        "label": _label(row.get("label"), "output_1", "output_2"),
    } | _answers(row, "output_1", "output_2")
    for repeat, result in enumerate(results):
        for key, order in (("swap = False", "ab"), ("swap = True", "ba")):
            one = result.get(key) if isinstance(result, dict) else None
            one = one if isinstance(one, dict) else {}
            yield base | {
                "order": order,
                "repeat": repeat,
                "winner": one.get("winner"),
                "raw": one.get("completion"),
            }


def _both_orders(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """One row a pair with the winner in the original and in the swapped order, as "1" or "2", and a gold label."""
    base: dict[str, Any] = {
        "judge": " ".join(str(row[name]) for name in ("judge", "prompt") if row.get(name)) or None,
        "pair_id": f"{row.get('subset', '')} {row.get('item', number)}".strip(),
        "model_a": "output_1",
        "model_b": "output_2",
        "repeat": None,
        "label": _label(row.get("gold"), "output_1", "output_2"),
    } | _answers(row, "output_1", "output_2")
    base["prompt"] = base["pair_id"]
    if row.get("subset"):
        base["task"] = str(row["subset"])
    for key, order in (("original_order", "ab"), ("swapped_order", "ba")):
        yield base | {"order": order, "winner": row.get(key)}


def _arena_hard(row: Row, columns: Mapping[str, str], number: int) -> Iterator[dict[str, Any]]:
    """Arena-Hard's judgements: game 1 shows the baseline first, game 2 the model; labels are by position."""
    games = row.get("games")
    if not isinstance(games, list) or not 1 <= len(games) <= 2:
        raise _BadRowError("games", "this is no list of one or two games")
    question = _text(row.get("question_id", row.get("uid")), "question_id")
    base: dict[str, Any] = {
        "judge": row.get("judge"),
        "pair_id": question,
        "prompt": question,
        "task": row.get("category"),
        "model_a": str(row.get("baseline") or "baseline"),
        "model_b": _text(row.get("model"), "model"),
        "repeat": None,
    }
    for game, (order, first) in zip(games, (("ab", "a"), ("ba", "b")), strict=False):
        score = game.get("score") if isinstance(game, dict) else None
        label = str(score or "").replace(">>", ">").replace("<<", "<").strip("[]").upper()
        second = "b" if first == "a" else "a"
        won = {"A>B": first, "B<A": first, "B>A": second, "A<B": second, "A=B": "tie", "B=A": "tie"}
        raw = (game.get("judgment") or score) if isinstance(game, dict) else None
        # "A" and "B" alone would be positions here, not models.
        yield base | {"order": order, "raw": raw, "side": won.get(label)}


_Reader = Callable[[Row, Mapping[str, str], int], Iterator[dict[str, Any]]]
FORMATS: Final[Mapping[str, _Reader]] = {
    "named": _named,
    "alpaca_eval": _alpaca_eval,
    "mt_bench": _mt_bench,
    "mt_bench_human": _mt_bench_human,
    "llmbar": _llmbar,
    "both_orders": _both_orders,
    "arena_hard": _arena_hard,
}
_SIGNS: Final = {
    "mt_bench": {"g1_winner", "model_1", "model_2"},
    "arena_hard": {"games", "model"},
    "llmbar": {"results", "label"},
    "both_orders": {"original_order", "swapped_order"},
    "alpaca_eval": {"preference", "generator_1", "generator_2"},
    "mt_bench_human": {"question_id", "model_a", "model_b", "winner", "turn"},
    "named": {"pair_id", "model_a", "model_b", "winner"},
}


def _normalised(
    path: Path,
    kind: str,
    rows: Iterable[tuple[int, Row]],
    columns: Mapping[str, str],
    judge: str,
    troubles: list[Trouble],
) -> Iterator[dict[str, Any]]:
    """Rows of one file as verdicts with a winner of a, b, tie or error."""
    read = FORMATS[kind]
    for number, row in rows:
        try:
            for made in read(row, columns, number):
                made["judge"] = str(made.get("judge") or judge)
                made["raw"] = _plain_text(made.get("raw"))
                made["task"] = None if _missing(made.get("task")) else str(made["task"])
                made["winner"] = made.pop("side", None) or _winner(
                    made, Trouble(str(path), number, "winner", "", "error"), troubles
                )
                if made["winner"] == "error":
                    made.pop("preference", None)
                yield made | {"where": (str(path), number)}
        except _BadRowError as bad:
            troubles.append(Trouble(str(path), number, columns.get(bad.column, bad.column), bad.reason))


def _winner(made: dict[str, Any], place: Trouble, troubles: list[Trouble]) -> str:
    value = made.get("winner")
    said = _said(value)
    try:
        if side := _side(said, made["model_a"], made["model_b"], "winner"):
            return side
        reason = f"the verdict cannot be read ({said[:40]!r})"
    except _BadRowError as ambiguous:
        reason = ambiguous.reason
    if said.lower() != "error":
        made["raw"] = made.get("raw") or (str(value) if said else None)
    if said.lower() in ("", "error"):
        reason = "the judge failed" if said else "there is no verdict"
    troubles.append(Trouble(place.file, place.row, place.column, reason, "error"))
    return "error"


def _said(value: Any) -> str:
    """A cell as text; whole numbers without their point, as gaps in a column make floats of them."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if _missing(value) else str(value).strip()


@lru_cache(maxsize=4096)
def _side(
    said: str, a: str, b: str, column: str, words_a: frozenset[str] = _A, words_b: frozenset[str] = _B
) -> str | None:
    """a, b or tie, from a model's own name, or else a word; None where it is neither."""
    low = said.lower()
    word = "a" if low in words_a else "b" if low in words_b else "tie" if low in _TIES else None
    # Names that differ in their case only are told apart by it.
    named = [side for side, name in (("a", a), ("b", b)) if said == name.strip()]
    named = named or [side for side, name in (("a", a), ("b", b)) if said and low == name.strip().lower()]
    if len(named) > 1 or (named and word in ("a", "b") and word != named[0]):
        raise _BadRowError(column, f"this may mean either side ({said[:40]!r}, with models {a!r} and {b!r})")
    return named[0] if named else word


def _label(value: Any, a: str, b: str) -> str | None:
    if _missing(value):
        return None
    if (side := _side(_said(value), a, b, "label")) is None:
        raise _BadRowError("label", f"this is neither a, b nor tie ({str(value)[:40]!r})")
    return side


def _order(value: Any, a: str, b: str) -> str | None:
    if _missing(value):
        return None
    said = _said(value)
    side = _side(said, a, b, "order", _FIRST_A, _FIRST_B)
    if side in ("a", "b"):
        return "ab" if side == "a" else "ba"
    if said.lower() == "none":
        return "none"
    raise _BadRowError("order", f"this does not say which answer was shown first, ab or ba ({str(value)[:40]!r})")


def _answers(row: Row, first: str, second: str) -> dict[str, Any]:
    """Lengths and looks of two answers, from their texts or from columns `len_...`."""
    a, b = row.get(first), row.get(second)
    if isinstance(a, str) and isinstance(b, str):
        return looks(a, b)
    lengths = [row.get(f"len_{name}") for name in (first, second)]
    if any(map(_missing, lengths)):
        return {}
    return {
        f"length_{side}": _whole(value, f"len_{name}")
        for side, name, value in zip("ab", (first, second), lengths, strict=True)
    }


def _last_turn(conversation: Any) -> str | None:
    try:
        return str(conversation[-1]["content"])
    except (TypeError, KeyError, IndexError):
        return None


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, column: str) -> str:
    if _missing(value):
        raise _BadRowError(column, "it is empty")
    return str(value)


def _number(value: Any, column: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise _BadRowError(column, f"this is no number ({str(value)[:40]!r})") from None
    if not math.isfinite(found):
        raise _BadRowError(column, f"this is no finite number ({found})")
    return found


def _whole(value: Any, column: str) -> int:
    found = _number(value, column)
    if found != int(found) or abs(found) > 2**53:
        raise _BadRowError(column, f"this is no whole number ({found})")
    return int(found)


def _plain_text(value: Any) -> str | None:
    return None if _missing(value) else value if isinstance(value, str) else json.dumps(value, default=str)


# -- One name for one pair -------------------------------------------------------------------------------------------


def _settled(found: Sequence[dict[str, Any]], troubles: list[Trouble]) -> list[dict[str, Any]]:
    """Give each pair one orientation and one name, and each call a repeat; list what stands there twice."""
    facing: dict[tuple[str, str, str], tuple[str, str]] = {}
    models: dict[str, set[frozenset[str]]] = {}
    for row in found:
        models.setdefault(row["pair_id"], set()).add(frozenset((row["model_a"], row["model_b"])))
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    kept = []
    dropped_errors: Counter[tuple[str, int]] = Counter()
    for given in found:
        row, a, b = given, given["model_a"], given["model_b"]
        pair = (row["pair_id"], *sorted((a, b)))
        if facing.setdefault(pair, (a, b)) != (a, b):
            row = _turned(row)
            a, b = b, a
        prompt = row.pop("prompt", None)
        row["doc_hash"] = str(prompt) if not _missing(prompt) else row["pair_id"]
        if len(models[row["pair_id"]]) > 1:
            row["pair_id"] = f"{row['pair_id']}: {a} / {b}"
        file, number = row.pop("where")
        key = (row["judge"], row["pair_id"], row.get("order"), row.get("repeat") or 0)
        if (before := seen.get(key)) is not None:
            same = before["winner"] == row["winner"]
            what = (
                "the same verdict stands there before" if same else "another verdict of this call stands there before"
            )
            hint = "" if row.get("repeat") is not None else " (a column `repeat` would make it a repetition)"
            troubles.append(Trouble(file, number, "pair_id", f"{what}{hint}"))
            dropped_errors[file, number] += row["winner"] == "error"
            continue
        seen[key] = row
        kept.append(row | {"repeat": row.get("repeat") or 0})
    if dropped_errors:
        troubles[:] = [one for one in troubles if not _is_dropped(one, dropped_errors)]
    return kept


def _is_dropped(trouble: Trouble, dropped_errors: Counter[tuple[str, int]]) -> bool:
    """Whether it is of a verdict that could not be read and was then dropped; each such verdict counts once."""
    place = trouble.file, trouble.row
    if trouble.kept_as != "error" or dropped_errors[place] <= 0:
        return False
    dropped_errors[place] -= 1
    return True


def _turned(row: dict[str, Any]) -> dict[str, Any]:
    """The same call with A and B changing names."""
    other = {"a": "b", "b": "a", "ab": "ba", "ba": "ab"}
    turned = dict(row)
    for name, value in row.items():
        if name.endswith(("_a", "_b")):
            turned[name[:-1] + other[name[-1]]] = value
    for name in ("winner", "order", "label"):
        turned[name] = other.get(row.get(name) or "", row.get(name))
    if row.get("preference") is not None:
        turned["preference"] = 1 - row["preference"]
    return turned


@dataclass(frozen=True)
class HumanLabels:
    """Human labels (a, b, tie) by `pair_id` or `doc_hash`; of several raters the majority, which may be a tie.

    `ratings` has each pair's label by rater, for the agreement of humans with each other.
    """

    labels: Mapping[str, str]
    ratings: Mapping[str, Mapping[str, str]]


def read_labels(path: Path) -> HumanLabels:
    """Read human labels: columns `pair_id` (or `doc_hash`), `label` (or `winner`; a, b or tie), and perhaps `rater`.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, has an unknown label, or a rater labels a pair twice in different ways.
    """
    troubles: list[Trouble] = []
    rows = rows_of(path, troubles)
    if troubles:
        raise InputError(troubles[0].reason, where=f"{path}, row {troubles[0].row}", do="Mend the file")
    ratings: dict[str, dict[str, str]] = {}
    for number, row in rows:
        where = f"{path}, row {number}"
        name = next((row[key] for key in ("pair_id", "doc_hash") if not _missing(row.get(key))), None)
        value = next((row[key] for key in ("label", "winner") if not _missing(row.get(key))), None)
        if name is None or value is None:
            raise InputError("a label needs the columns pair_id (or doc_hash) and label", where=where, do="Add them")
        try:
            label = _label(value, "a", "b")
        except _BadRowError as bad:
            raise InputError(bad.reason, where=where, do="Write a, b or tie") from None
        rater = str(row.get("rater") or "")
        if label is not None and ratings.setdefault(str(name), {}).setdefault(rater, label) != label:
            raise InputError(f"'{name}' has two labels of one rater", where=where, do="Keep one, or name the raters")
    if not ratings:
        raise InputError("there is no label", where=str(path), do="Give rows with pair_id and label")
    return HumanLabels({name: _majority(of.values()) for name, of in ratings.items()}, ratings)


def _majority(labels: Iterable[str]) -> str:
    counted = Counter(labels)
    best = max(counted.values())
    most = [label for label, count in counted.items() if count == best]
    return most[0] if len(most) == 1 else "tie"
