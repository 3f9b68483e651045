"""What is looked for: benchmark items and their text fields, from a file of items or from an lm-eval task."""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from evalkit.addresses import named
from evalkit.corpora.shards import FORMATS, check_name, format_of
from evalkit.corpora.streams import READ_ERRORS, read_chunks
from evalkit.errors import EvalkitError, InputError, SpecError, TaskError
from evalkit.resources import resource_dir
from evalkit.tasks import doc_hash

QUESTION: Final = "question"
"""The field that identifies an item: it is looked for however short it is."""

CANARY: Final = "canary"
"""The only field of a canary string; it is looked for however short it is, and no rule judges it."""

CHOICES, ANSWER, PASSAGE = "choices", "answer", "passage"
_NAME_COLUMNS: Final = ("id", "task_id", "question_id", "qid", "idx")

FIELDS: Final = (QUESTION, CHOICES, ANSWER, PASSAGE)
"""What a column of a benchmark can be; each choice becomes a field of its own, `choice_0` and so on."""


@dataclass(frozen=True)
class Item:
    """One benchmark item: its hash, by which it meets its scores, its named texts, and its name in the benchmark."""

    doc_hash: str
    fields: Mapping[str, str]
    doc_id: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A named set of items.

    Attributes
    ----------
    name
        The task's name, or the file's name without its suffixes.
    source
        The file, or "task".
    items
        Distinct items in the order of the benchmark.
    n_duplicates
        Items left out because an earlier one is identical.
    definition
        Name of the definition in `audits/benchmarks/` whose columns were used; None: the task's or file's own.
    n_missing
        For each field that items should have, the items that have no text in it; a single empty choice stands there
        as `choice_2`, and items without any as `choices`.
    code_fields
        Those of `FIELDS` that hold program code.
    """

    name: str
    source: str
    items: tuple[Item, ...]
    n_duplicates: int
    definition: str | None = None
    n_missing: Mapping[str, int] = field(default_factory=dict)
    code_fields: frozenset[str] = frozenset()

    def is_code(self, name: str) -> bool:
        """Whether an item's field of this name (`answer`, `choice_0`) holds program code."""
        return kind_of_field(name) in self.code_fields


def kind_of_field(name: str) -> str:
    """Which of `FIELDS` an item's field is: each choice (`choice_0`) is one of `choices`."""
    return CHOICES if name.startswith("choice_") else name


class _MisfitError(Exception):
    """A row does not have the shape that a mapping expects: what, in which column, and how to name it instead."""

    def __init__(self, what: str, column: str, do: str) -> None:
        super().__init__(what)
        self.what, self.column, self.do = what, column, do


@dataclass(frozen=True)
class ColumnPath:
    """The way to a value inside a row: `choices.text`, `messages[].content`, `answers.text[0]`.

    A name leads into an object, `[0]` to one member of a list (`[-1]` is the last), `[]` to each of its members. A
    column whose own name is the whole path is meant before anything nested.

    Attributes
    ----------
    text
        The path as it was written.
    steps
        Names, positions, and None for `[]`.
    """

    text: str
    steps: tuple[str | int | None, ...]

    def read(self, row: Mapping[str, Any]) -> Any:
        """Return the value, None where there is none; after `[]`, a list of values.

        Raises
        ------
        _MisfitError
            The path leads into a value of another kind, such as by a name into a list.
        """
        return row[self.text] if self.text in row else self._follow(row, self.steps)

    def _follow(self, value: Any, steps: Sequence[str | int | None]) -> Any:
        if value is None or not steps:
            return value
        step, rest = steps[0], steps[1:]
        if isinstance(step, str):
            if not isinstance(value, Mapping):
                do = f"Write [].{step} for all members" if isinstance(value, list) else "Name the value itself"
                raise _MisfitError(f"'{step}' is looked for in {_kind(value)}", self.text, do)
            return self._follow(value.get(step), rest)
        if not isinstance(value, list):
            raise _MisfitError(f"[] is applied to {_kind(value)}", self.text, "Leave the brackets out")
        if step is None:
            return [self._follow(member, rest) for member in value]
        return self._follow(value[step], rest) if -len(value) <= step < len(value) else None


@dataclass(frozen=True)
class _Template:
    """A text composed of columns: `{ctx_a} {ctx_b}`."""

    text: str
    parts: tuple[str | ColumnPath, ...]

    def read(self, row: Mapping[str, Any]) -> str | None:
        """Return the composed text, None when one of its columns is absent."""
        texts = []
        for part in self.parts:
            value = part if isinstance(part, str) else part.read(row)
            if value is None:
                return None
            texts.append(" ".join(map(_text, _scalars(value, self.text))))
        return "".join(texts)


_Source = ColumnPath | _Template


@dataclass(frozen=True)
class _Texts:
    """The texts of one item by field, and the fields that should be there but have no text."""

    fields: Mapping[str, str]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class FieldMapping:
    """Which columns of a row hold the fields of an item.

    Attributes
    ----------
    columns
        For each of the `FIELDS` that an item has, where its texts stand. Several texts are joined by line breaks, those
        of `choices` are fields of their own.
    optional
        Fields that some items lack.
    code
        Fields that hold program code.
    first_choice
        What the answer's column says when the first choice is right: a number, or "A" for letters. None: a whole
        number is a position from 0, anything else is the answer itself. Counts only for items with choices.
    choice_labels
        Column with the labels of the choices, one of which is the answer; `first_choice` does not count then.
    gap
        A piece of the question in whose place the right answer belongs, as `_` in Winogrande.
    literal_columns
        Columns that hold Python literals as text, and are read as what they stand for.
    """

    columns: Mapping[str, tuple[_Source, ...]]
    optional: frozenset[str] = frozenset()
    code: frozenset[str] = frozenset()
    first_choice: int | str | None = None
    choice_labels: ColumnPath | None = None
    gap: str | None = None
    literal_columns: tuple[str, ...] = ()

    def column_of(self, name: str) -> str:
        """The columns of a field, as they were written."""
        return " + ".join(source.text for source in self.columns[name])

    def texts_of(self, row: Mapping[str, Any]) -> _Texts:
        """Return the texts of an item.

        Raises
        ------
        _MisfitError
            The row has another shape, or the answer names no choice.
        """
        row = self._with_literals(row)
        choices = [_text(value) for value in self._values(row, CHOICES)]
        fields = {name: "\n".join(_present(self._values(row, name))) for name in (QUESTION, PASSAGE)}
        fields[ANSWER] = "\n".join(self._answers(row, choices))
        if self.gap is not None:
            fields[QUESTION] = self._fill_gap(fields[QUESTION], fields[ANSWER])
        fields |= {f"choice_{position}": choice for position, choice in enumerate(choices)}
        present = {name: text for name, text in fields.items() if text.strip()}
        declared = [name for name in self.columns if name != CHOICES]
        if CHOICES in self.columns:
            some = any(name.startswith("choice_") for name in present)
            declared += [f"choice_{position}" for position in range(len(choices))] if some else [CHOICES]
        return _Texts(present, tuple(name for name in declared if name not in present))

    def _values(self, row: Mapping[str, Any], name: str) -> list[str | int | float | None]:
        sources = self.columns.get(name, ())
        found = [(source.read(row), source.text) for source in sources]
        if name == CHOICES and len(found) > 1:  # one choice a column: an absent one must not move those after it
            found = [([None] if value is None else value, column) for value, column in found]
        return [scalar for value, column in found for scalar in _scalars(value, column)]

    def _answers(self, row: Mapping[str, Any], choices: Sequence[str]) -> list[str]:
        """The right answers as texts: an answer that names a choice is the text of that choice."""
        values = [value for value in self._values(row, ANSWER) if _text(value).strip()]
        named_by_default = self.first_choice is None and self.choice_labels is None
        return [
            choices[self._position(value, row, len(choices))]
            if choices and (type(value) is int or not named_by_default)
            else _text(value)
            for value in values
        ]

    def _position(self, value: str | int | float | None, row: Mapping[str, Any], n_choices: int) -> int:
        """Which of the choices the answer's column means."""
        text = _text(value).strip()
        position = -1
        if self.choice_labels is not None:
            labels = [_text(label).strip() for label in _scalars(self.choice_labels.read(row), self.choice_labels.text)]
            position = labels.index(text) if text in labels else -1
        elif isinstance(self.first_choice, str):
            letter = text.strip("(). ")
            position = ord(letter) - ord(self.first_choice) if len(letter) == 1 else -1
        elif re.fullmatch(r"[0-9]+", text):
            position = int(text) - (self.first_choice or 0)
        if not 0 <= position < n_choices:
            raise _MisfitError(
                f"the answer {value!r} names none of the {n_choices} choices",
                self.column_of(ANSWER),
                "Say what it is for the first choice (first_choice=1, first_choice=A), or leave the answer out",
            )
        return position

    def _fill_gap(self, question: str, answer: str) -> str:
        if self.gap is None or self.gap not in question:
            raise _MisfitError(f"the question has no gap '{self.gap}'", self.column_of(QUESTION), "Leave `gap` out")
        return question.replace(self.gap, answer, 1)

    def _with_literals(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        found = {column: row[column] for column in self.literal_columns if isinstance(row.get(column), str)}
        try:
            return {**row, **{column: ast.literal_eval(text) for column, text in found.items()}} if found else row
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise _MisfitError(
                "a text is not the Python literal that it should be", ", ".join(found), "Mend the row"
            ) from None


def _scalars(value: Any, column: str) -> list[str | int | float | None]:
    """The texts and numbers of a value, flat and in order; null members of a list keep their places."""
    if value is None:
        return []
    if isinstance(value, Mapping) and "text" in value:  # as ARC has its choices: {"text": [...], "label": [...]}
        return _scalars(value["text"], column)
    if isinstance(value, list | tuple):
        return [scalar for member in value for scalar in (_scalars(member, column) or [None])]
    if isinstance(value, str | int | float):
        return [value]
    raise _MisfitError(
        f"the value is {_kind(value)}, not a text", column, "Name what is meant in it, as in answer.text"
    )


def _text(value: str | int | float | None) -> str:
    return "" if value is None else str(value)


def _present(values: Iterable[str | int | float | None]) -> list[str]:
    return [text for text in map(_text, values) if text.strip()]


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, Mapping):
        return f"an object (its names: {', '.join(map(str, value))})"
    if isinstance(value, list):
        return "a list"
    return {str: "a text", int: "a number", float: "a number"}.get(type(value), f"of type {type(value).__name__}")


_OWN_COLUMNS: Final = FieldMapping(
    columns={name: (ColumnPath(name, (name,)),) for name in FIELDS}, optional=frozenset(FIELDS) - {QUESTION}
)
"""The columns of a file for which no others are named."""


@dataclass(frozen=True)
class BenchmarkDefinition:
    """One file of `audits/benchmarks/`: a benchmark, the tasks that read it, and its columns.

    Attributes
    ----------
    name, title
        The file's name without its suffix, and the benchmark's.
    tasks
        Names and globs of the lm-eval tasks whose documents have these columns; one that begins with `!` takes out
        what it matches. Empty: no lm-eval task reads this benchmark.
    load
        The tasks, groups or tags that hold each document once: what the benchmark's name stands for.
    datasets, split
        On the hub, and the split that is evaluated. Without data sets: evalkit's own tasks.
    mapping
        Its columns.
    note
        What a reader should know of the columns.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    load: tuple[str, ...]
    datasets: tuple[str, ...]
    split: str
    mapping: FieldMapping
    note: str = ""

    def covers(self, task: str) -> bool:
        """Whether the documents of the lm-eval task have these columns."""
        taken_out = [pattern[1:] for pattern in self.tasks if pattern.startswith("!")]
        return _matches_any(task, self.tasks) and not _matches_any(task, taken_out)


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@functools.cache
def benchmark_definitions() -> Mapping[str, BenchmarkDefinition]:
    """Return the benchmarks whose columns evalkit knows, by name."""
    paths = sorted((resource_dir("audits") / "benchmarks").glob("*.yaml"))
    return {path.stem: load_definition(path) for path in paths}


def tasks_of(name: str) -> tuple[str, ...]:
    """Return the lm-eval tasks that a benchmark's name stands for; a name that is none of ours stands for itself.

    Raises
    ------
    SpecError
        No lm-eval task reads the benchmark.
    """
    definition = benchmark_definitions().get(name)
    if definition is None:
        return (name,)
    if not definition.load:
        raise SpecError(
            f"no lm-eval task reads {definition.title}",
            where=f"--benchmark {name}",
            do=f"Give a file of its items, and --fields {name}",
        )
    return definition.load


def load_definition(path: Path) -> BenchmarkDefinition:
    """Read one benchmark's definition.

    Raises
    ------
    SpecError
        The file cannot be read or is no definition.
    """
    try:
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"this cannot be read ({error.strerror})", where=str(path), do="Check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(
            f"this is not valid YAML ({' '.join(str(error).split())})", where=str(path), do="Mend the file"
        ) from None

    def refuse(what: str) -> NoReturn:
        raise SpecError(what, where=str(path), do="audits/benchmarks/arc.yaml shows the form")

    if not isinstance(definition, dict):
        refuse("a benchmark definition is a YAML mapping")
    wanted = ("name", "title", "tasks", "split", "fields")
    if missing := [key for key in wanted if key not in definition]:
        refuse(f"the definition has no '{missing[0]}'")
    if unknown := [key for key in definition if key not in (*wanted, "load", "dataset", "note", *_MAPPING_KEYS)]:
        refuse(f"the definition has an unknown key '{unknown[0]}'")
    for key in ("name", "title", "split", "note"):
        if not isinstance(definition.get(key, ""), str):
            refuse(f"'{key}' must be a text, not {definition[key]!r} (put it in quotes)")
    if definition["name"] != path.stem:
        refuse(f"'name' must be that of the file, '{path.stem}', not '{definition['name']}'")
    tasks = _texts_in(definition, "tasks", refuse)
    if "load" not in definition and any(re.search(r"[*?!\[]", pattern) for pattern in tasks):
        refuse("`load` must name the tasks that hold each document once, since `tasks` has globs")
    return BenchmarkDefinition(
        name=definition["name"],
        title=definition["title"],
        tasks=tasks,
        load=_texts_in(definition, "load", refuse) if "load" in definition else tasks,
        datasets=_texts_in(definition, "dataset", refuse),
        split=definition["split"],
        mapping=_parse_mapping(definition, refuse),
        note=definition.get("note", ""),
    )


_MAPPING_KEYS: Final = ("fields", "optional", "code", "first_choice", "choice_labels", "gap", "literal_columns")
_STEP: Final = re.compile(r"([^.\[\]{}]+)|\[(-?[0-9]*)\]")


def _parse_mapping(definition: Mapping[str, Any], refuse: Callable[[str], NoReturn]) -> FieldMapping:
    """Check the keys of a mapping one by one and say which is wrong."""
    fields = definition["fields"]
    if not isinstance(fields, dict) or QUESTION not in fields:
        refuse(f"'fields' must name a column for `{QUESTION}`, and can name one for {', '.join(FIELDS[1:])}")
    if unknown := [name for name in fields if name not in FIELDS]:
        refuse(f"there is no field '{unknown[0]}'; an item has {', '.join(FIELDS)}")
    columns = {name: tuple(_parse_source(one, refuse) for one in _texts_in(fields, name, refuse)) for name in fields}
    if empty := [name for name, sources in columns.items() if not sources]:
        refuse(f"'{empty[0]}' names no column")
    for key in ("optional", "code"):
        if stray := [name for name in _texts_in(definition, key, refuse) if name not in fields]:
            refuse(f"'{key}' names '{stray[0]}', which is not among the fields")
    if QUESTION in _texts_in(definition, "optional", refuse):
        refuse("every item must have a question: it cannot be optional")
    first, labels, gap = (definition.get(key) for key in ("first_choice", "choice_labels", "gap"))
    if not (first is None or type(first) is int or (isinstance(first, str) and len(first) == 1 and first.isalpha())):
        refuse(f"'first_choice' must be a whole number or one letter, not {first!r}")
    if (first is not None or labels is not None) and not {CHOICES, ANSWER} <= fields.keys():
        refuse("'first_choice' and 'choice_labels' need both `choices` and `answer`")
    if first is not None and labels is not None:
        refuse("an answer is named either by 'first_choice' or by 'choice_labels'")
    if gap is not None and (not isinstance(gap, str) or not gap or ANSWER not in fields):
        refuse("'gap' must be the text in whose place the `answer` belongs")
    return FieldMapping(
        columns=columns,
        optional=frozenset(_texts_in(definition, "optional", refuse)),
        code=frozenset(_texts_in(definition, "code", refuse)),
        first_choice=first,
        choice_labels=None if labels is None else _parse_path(labels, refuse),
        gap=gap,
        literal_columns=_texts_in(definition, "literal_columns", refuse),
    )


def _texts_in(definition: Mapping[str, Any], key: str, refuse: Callable[[str], NoReturn]) -> tuple[str, ...]:
    """The value of `key`, which may be one text or a list of texts."""
    value = definition.get(key, [])
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        refuse(f"'{key}' must be a text or a list of texts, not {value!r}")
    return tuple(texts)


def _parse_source(text: str, refuse: Callable[[str], NoReturn]) -> _Source:
    if "{" not in text and "}" not in text:
        return _parse_path(text, refuse)
    pieces = re.split(r"\{([^{}]*)\}", text)  # texts at even places, paths at odd ones
    if len(pieces) == 1 or any("{" in piece or "}" in piece for piece in pieces):
        refuse(f"the braces in '{text}' do not match; a template looks like '{{ctx_a}} {{ctx_b}}'")
    parts = [_parse_path(piece, refuse) if place % 2 else piece for place, piece in enumerate(pieces)]
    return _Template(text, tuple(part for part in parts if part != ""))


def _parse_path(text: Any, refuse: Callable[[str], NoReturn]) -> ColumnPath:
    """Parse a path such as `messages[].content`: names between dots, each with any number of brackets after it."""
    name = r"[^.\[\]{}]+(?:\[-?[0-9]+\]|\[\])*"
    if not isinstance(text, str) or not re.fullmatch(rf"{name}(?:\.{name})*", text):
        refuse(f"'{text}' is no column; write a name, choices.text, messages[].content or answers[0]")
    found = [match.groups() for match in _STEP.finditer(text)]
    return ColumnPath(text, tuple(name or (int(place) if place else None) for name, place in found))


def parse_fields(text: str) -> FieldMapping:
    """Read the option `--fields`: the name of a benchmark that evalkit knows, or columns for fields.

    `question=problem,answer=solution.text,choices=A+B+C+D` names columns; those joined by `+` belong together. The keys
    of a definition that are no fields (`first_choice`, `choice_labels`, `gap`, `code`) can stand there as well. A field
    other than the question may be missing in some items.

    Raises
    ------
    SpecError
        A benchmark or key is unknown, a column is not well-formed, or no question is named.
    """

    def refuse(what: str) -> NoReturn:
        raise SpecError(what, where="--fields", do="Write question=COLUMN,answer=COLUMN, or a benchmark's name")

    if "=" not in text:
        if text in benchmark_definitions():
            return benchmark_definitions()[text].mapping
        close = difflib.get_close_matches(text, benchmark_definitions(), n=1)
        refuse(f"there is no benchmark '{text}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    given: dict[str, str] = {}
    for pair in re.split(r",(?=\s*\w+\s*=)", text):  # a template may have commas of its own
        key, _, value = (part.strip() for part in pair.partition("="))
        if key in given:
            refuse(f"'{key}' is given twice")
        given[key] = value
    options = ("first_choice", "choice_labels", "gap", "code")
    if unknown := [key for key in given if key not in (*FIELDS, *options)]:
        refuse(f"'{unknown[0]}' is no field; there are {', '.join((*FIELDS, *options))}")
    fields = {key: value if "{" in value else value.split("+") for key, value in given.items() if key in FIELDS}
    definition: dict[str, Any] = {key: given[key] for key in options if key in given}
    if re.fullmatch(r"[0-9]+", first := given.get("first_choice", "")):
        definition["first_choice"] = int(first)
    if "code" in given:
        definition["code"] = given["code"].split("+")
    return _parse_mapping(
        {**definition, "fields": fields, "optional": [key for key in fields if key != QUESTION]}, refuse
    )


def is_file_benchmark(name: str) -> bool:
    """Whether `name` means a file of items rather than a task.

    A file that is there is meant even when it cannot be read: `from_file` then says what can.
    """
    path = Path(name)
    return format_of(path) is not None or ((path.suffix != "" or os.sep in name) and path.is_file())


def from_file(path: Path, *, fields: FieldMapping | None = None) -> Benchmark:
    """Read a file of items.

    Parameters
    ----------
    path
        JSON lines, Parquet or Arrow.
    fields
        Its columns, from `parse_fields`. None: `question`, and where there are such `answer`, `choices`, `passage`.

    Raises
    ------
    InputError
        The file is missing, empty or broken, an item has no question or another shape than `fields` says, or a field
        is named that no item has, or the name is not UTF-8. A benchmark is never read in part.
    """
    check_name(str(path.resolve()))
    rows = list(_read_rows(path))
    if not rows:
        raise InputError("the benchmark has no items", where=str(path), do="Give a file with one JSON object a line")
    mapping = fields or _present_columns(rows)
    texts = [
        _row_texts(row, mapping, where=f"{path}, row {number}", named=fields is not None)
        for number, row in enumerate(rows)
    ]
    for name in mapping.columns:
        if fields is not None and all(name in one.missing for one in texts):
            raise InputError(
                f"no item has a text for `{name}` (the columns of row 0: {', '.join(map(str, rows[0]))})",
                where=f"{path}, column '{mapping.column_of(name)}'",
                do="Name another column in --fields, or leave the field out",
            )
    suffix = next(suffix for suffix in FORMATS if path.name.lower().endswith(suffix))
    return _benchmark(path.name[: -len(suffix)], named(str(path.resolve())), rows, texts, mapping)


def _present_columns(rows: Sequence[Mapping[str, Any]]) -> FieldMapping:
    """Our own columns, without those that no row fills: a file of questions only lacks no answers."""
    columns = {
        name: sources
        for name, sources in _OWN_COLUMNS.columns.items()
        if name == QUESTION or any(row.get(name) not in (None, "", []) for row in rows)
    }
    return replace(_OWN_COLUMNS, columns=columns)


def _row_texts(row: Mapping[str, Any], mapping: FieldMapping, *, where: str, named: bool) -> _Texts:
    """The texts of one row of a file; `named` says that the user named the columns."""
    try:
        texts = mapping.texts_of(row)
    except _MisfitError as error:
        raise InputError(error.what, where=f"{where}, column '{error.column}'", do=error.do) from None
    for name in mapping.columns:
        if name in texts.missing and name not in mapping.optional:
            column, its_fields = mapping.column_of(name), ", ".join(map(str, row))
            raise InputError(
                f"the item has no text in '{column}' (its fields: {its_fields})",
                where=f"{where}, column '{column}'" if named else where,
                do="Name the column that holds it in --fields, as in --fields question=prompt"
                if named
                else "Every item needs `question`; `answer`, `choices` and `passage` are optional. "
                "--fields question=COLUMN names other columns",
            )
    return texts


def _read_rows(path: Path) -> Iterable[dict[str, Any]]:
    """Read the objects of a file, refusing whatever is not one."""
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard_format = format_of(path)
    if shard_format is None:
        raise InputError(
            "the name does not say how this file of items is to be read",
            where=str(path),
            do=f"Rename it, or convert it, to one of {', '.join(FORMATS)}",
        )
    try:
        if shard_format.kind != "jsonl":
            table = pq.ParquetFile(path).read() if shard_format.kind == "parquet" else _read_arrow(path)
            yield from table.to_pylist()
            return
        data = b"".join(read_chunks(path, shard_format.compression, lambda n_bytes: None))
    except (*READ_ERRORS, pa.ArrowInvalid) as error:
        raise InputError(
            f"the benchmark cannot be read ({error})", where=str(path), do="Check the path, and that it is whole"
        ) from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"broken JSON ({error})", where=f"{path}, line {number}", do="Mend the line") from None
        if not isinstance(row, dict):
            raise InputError("the line is not a JSON object", where=f"{path}, line {number}", do="Mend the line")
        yield row


def _read_arrow(path: Path) -> Any:
    """Read an Arrow file; `datasets` writes streams, others files with an index at the end."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def from_task(name: str, task: Any) -> Benchmark:
    """Take the documents that the task evaluates, with the texts that it makes of them.

    The fields are the task's own `doc_to_text`, `doc_to_choice` and `doc_to_target` without few-shot examples,
    unless a file in `audits/benchmarks/` names the document's fields: a prompt with lettered choices is not how
    a leaked item looks in a corpus. Such a file counts only when every document has the fields that it requires:
    a user's task may have the name of one of ours.
    """
    docs = list(task.eval_docs)
    definition = next((one for one in benchmark_definitions().values() if one.covers(name)), None)
    texts = None if definition is None else _mapped(definition.mapping, docs)
    if definition is not None and texts is not None:
        return _benchmark(name, "task", docs, texts, definition.mapping, definition=definition.name)
    rows = [_task_row(name, task, doc, number) for number, doc in enumerate(docs)]
    mapping = _present_columns(rows)
    return _benchmark(name, "task", docs, [mapping.texts_of(row) for row in rows], mapping)


def _mapped(mapping: FieldMapping, docs: Sequence[Any]) -> list[_Texts] | None:
    """The texts of all documents, None when the mapping does not fit one of them."""
    found = []
    for doc in docs:
        if not isinstance(doc, Mapping):
            return None
        try:
            texts = mapping.texts_of(doc)
        except _MisfitError:
            return None
        if any(name in mapping.columns and name not in mapping.optional for name in texts.missing):
            return None
        found.append(texts)
    return found


def _task_row(name: str, task: Any, doc: Any, number: int) -> dict[str, Any]:
    """The task's own texts of one document, under our names."""
    try:
        choices = list(map(str, task.doc_to_choice(doc))) if task.config.doc_to_choice is not None else []
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        # Tasks with one context per choice (Winogrande) give the number of the right context in place of the text.
        question = f"{choices[text]} {target}" if isinstance(text, int) else str(text)
    except EvalkitError:
        raise
    except Exception as error:
        raise TaskError(
            f"the texts of document {number} cannot be made ({type(error).__name__}: {error})",
            where=f"task {name}",
            do="Check the task's doc_to_text, doc_to_choice and doc_to_target",
        ) from error
    targets = target if isinstance(target, list) else [target]
    # A number is the place of a choice; without choices, or below 0, it is lm-eval's way to say that there is none.
    named = [choices[one] for one in targets if isinstance(one, int) and 0 <= one < len(choices)]
    return {QUESTION: question, CHOICES: choices, ANSWER: [*named, *(one for one in targets if isinstance(one, str))]}


def _own_name(row: Any) -> str | None:
    """What the benchmark calls an item, where it has one of the usual columns for that."""
    if not isinstance(row, Mapping):
        return None
    values = (row.get(column) for column in _NAME_COLUMNS)
    return next((str(value) for value in values if isinstance(value, str | int)), None)


def _benchmark(
    name: str,
    source: str,
    rows: Sequence[Any],
    texts: Sequence[_Texts],
    mapping: FieldMapping,
    *,
    definition: str | None = None,
) -> Benchmark:
    """Keep the first of items that are identical, since one hash names one item, and count what they lack."""
    distinct: dict[str, _Texts] = {}
    names: dict[str, str | None] = {}
    for row, one in zip(rows, texts, strict=True):
        key = doc_hash(row)
        distinct.setdefault(key, one)
        names.setdefault(key, _own_name(row))
    n_missing = Counter(dict.fromkeys(mapping.columns, 0))
    n_missing.update(name for one in distinct.values() for name in one.missing)
    return Benchmark(
        name=name,
        source=source,
        items=tuple(Item(key, one.fields, names[key]) for key, one in distinct.items()),
        n_duplicates=len(rows) - len(distinct),
        definition=definition,
        n_missing=dict(n_missing),
        code_fields=mapping.code,
    )
