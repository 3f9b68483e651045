"""The published contamination rules: YAML definitions, evaluated on the runs that a scan has recorded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import yaml

from evalkit.errors import SpecError
from evalkit.resources import resource_dir

CLEAN, DIRTY = "clean", "dirty"

DEFAULT_RULES: Final = ("gpt3-clean", "llama3")
"""What an audit applies unless it is told otherwise: the strictest common rule, and one with a share."""

FUZZY: Final = "fuzzy"
"""The rule for edited items."""

ALL: Final = "all"
"""Stands for every rule that ships."""

MAX_N = 1000
"""Longest n-gram of a rule, in tokens; the published ones have 8 to 50."""


Measure = Literal[
    "any_ngram",
    "ngram_share",
    "token_coverage",
    "skipgram_coverage",
    "longest_match",
    "whole_field",
    "substring",
    "common_subsequence",
    "edit_similarity",
    "weighted_overlap",
]
FIELD_KINDS: Final = ("question", "answer", "choices", "passage")
"""What a rule may be restricted to; `choices` are all choices of an item."""


SEVERITY: Final = {"keep": 0, "cut": 1, "drop": 2}
"""What rules do with documents, the strictest highest."""

SHORT_FIELD: Final = 8
LONG_FIELD: Final = 30
_TIE: Final = 1e-9


@dataclass(frozen=True)
class Rule:
    """One contamination rule.

    Attributes
    ----------
    name, summary, source
        What it is called, what it says, and the paper that states it.
    measure
        What the contamination of a field is, between 0 and 1.
        `any_ngram`: 1 when one n-gram of the field was seen, else 0.
        `ngram_share`: the share of its n-grams that were seen.
        `token_coverage`: the share of its tokens that lie in a seen n-gram.
        `skipgram_coverage`: the same, where an n-gram whose first 10 tokens are common may differ in 4 later ones.
        `longest_match`: the share of its tokens in the longest stretch seen in one piece.
        `whole_field`: 1 when the whole of it was seen in one piece, else 0.
        `substring`: 1 when one of `n_samples` random stretches of `length` letters and digits was seen, else 0.
        `common_subsequence`: longest common subsequence of the field and the surroundings of a common n-gram, as a
        share of the shorter of field and document.
        `edit_similarity`: 1 less the share of the field's weight to insert, delete or replace so that the whole field
        stands there; the weight of a token is its inverse document frequency among the benchmarks' fields.
        `weighted_overlap`: decon's score of question, answer and passage.
    n
        Length of the n-grams in tokens; a question shorter than that is matched as a whole.
    n_high, n_percentile
        When given, the length differs between benchmarks: this percentile of the lengths of its questions, but at
        least `n` and at most `n_high`.
    threshold
        A field with at least this contamination is dirty.
    short_threshold
        When given, so it is of fields of at most SHORT_FIELD tokens; between these and LONG_FIELD tokens it changes
        evenly.
    is_strict
        Only more than the threshold is dirty.
    document_action
        What the rule does with a corpus document that makes an item dirty: drop, cut or keep.
    fields
        The kinds of fields that the rule looks at.
    one_document
        What was seen must have been seen in one document.
    shortest_question
        Fewest tokens of a question that is matched as a whole.
    unsupported_threshold
        Of `edit_similarity`, when given: the threshold for questions of fewer than LONG_FIELD tokens without half of
        their choices, or of their answer, near the copy.
    length, n_samples
        Of `substring`.
    filled_in
        What the paper leaves open or we do differently.
    """

    name: str
    summary: str
    source: str
    measure: Measure
    n: int
    threshold: float
    document_action: Literal["drop", "cut", "keep"]
    n_high: int | None = None
    n_percentile: float | None = None
    is_strict: bool = False
    fields: tuple[str, ...] = FIELD_KINDS
    one_document: bool = False
    shortest_question: int = 1
    short_threshold: float | None = None
    unsupported_threshold: float | None = None
    length: int = 50
    n_samples: int = 3
    filled_in: tuple[str, ...] = ()

    def is_dirty(self, contamination: Any, n_tokens: Any) -> Any:
        """Compare contaminations of fields with the threshold for fields of so many tokens; both may be arrays."""
        threshold = self.threshold
        if self.short_threshold is not None:
            threshold = np.interp(n_tokens, (SHORT_FIELD, LONG_FIELD), (self.short_threshold, threshold))
        # A share of 0.7 can be computed as 0.6999...
        return contamination > threshold + _TIE if self.is_strict else contamination >= threshold - _TIE


def rule_names() -> list[str]:
    """Names of the rules that evalkit ships."""
    return sorted(path.stem for path in (resource_dir("audits") / "rules").glob("*.yaml"))


def load_rules(names: Sequence[str]) -> list[Rule]:
    """Load rules by name, or a user's own by the path of its YAML file; `all` are all that ship.

    Raises
    ------
    SpecError
        A name is unknown, a file is not a rule, or two rules have the same name.
    """
    if not names:
        raise SpecError("no rule was named", where="--rule", do=f"Known rules: {', '.join(rule_names())}")
    names = [one for name in names for one in (rule_names() if name == ALL else [name])]
    rules = [_load(name) for name in dict.fromkeys(names)]
    seen: set[str] = set()
    for rule in rules:
        if rule.name in seen:
            raise SpecError(f"two rules are called '{rule.name}'", where="--rule", do="Rename your own in its file")
        seen.add(rule.name)
    return rules


def _load(name: str) -> Rule:
    path = Path(name) if name.endswith((".yaml", ".yml")) else resource_dir("audits") / "rules" / f"{name}.yaml"
    try:
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        close = difflib.get_close_matches(name, rule_names(), n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise SpecError(
            f"there is no rule '{name}'",
            where="--rule",
            do=f"{hint}Known rules: {', '.join(rule_names())}; or give the path of a YAML file",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(
            f"this is not valid YAML ({' '.join(str(error).split())})", where=str(path), do="Mend the file"
        ) from None
    return _parse(definition, path)


def _parse(definition: Any, path: Path) -> Rule:
    """Check a definition field by field and say which one is wrong."""

    def refuse(what: str) -> SpecError:
        return SpecError(what, where=str(path), do="audits/rules/llama3.yaml shows the form")

    if not isinstance(definition, dict):
        raise refuse("a rule is a YAML mapping")
    wanted = ("name", "summary", "source", "measure", "n", "threshold", "document_action")
    if missing := [field for field in wanted if field not in definition]:
        raise refuse(f"the rule has no '{missing[0]}'")
    if unknown := [field for field in definition if field not in (*wanted, *_OPTIONAL)]:
        raise refuse(f"the rule has an unknown field '{unknown[0]}'")
    if definition["measure"] not in get_args(Measure):
        raise refuse(f"'measure' must be one of {', '.join(get_args(Measure))}")
    if definition["document_action"] not in ("drop", "cut", "keep"):
        raise refuse("'document_action' must be drop, cut or keep")
    for field in ("name", "summary", "source"):
        if not isinstance(definition[field], str) or not definition[field].strip():
            raise refuse(f"'{field}' must be a text, not {definition[field]!r} (put it in quotes)")
    lengths = _lengths(definition["n"])
    if lengths is None:
        raise refuse(
            f"'n' must be a whole number of tokens from 1 to {MAX_N}, or a mapping of percentile, low and high: the "
            "percentile of a benchmark's questions, between two such numbers"
        )
    threshold = definition["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise refuse("'threshold' must be a number above 0 and at most 1")
    for field, (is_right, what) in _OPTIONAL.items():
        if field in definition and not is_right(definition[field]):
            raise refuse(f"'{field}' must be {what}; leave it out when there is nothing to say")
    lists = {field: tuple(definition[field]) for field in ("fields", "filled_in") if field in definition}
    return Rule(**{**definition, "threshold": float(threshold), **lists, **lengths})


def _lengths(n: Any) -> dict[str, Any] | None:
    """What `n` says, as the fields of a rule; None when it says nothing that makes sense."""
    if _is_length(n):
        return {"n": n}
    if not isinstance(n, dict) or set(n) != {"percentile", "low", "high"}:
        return None
    low, high, percentile = n["low"], n["high"], n["percentile"]
    is_number = isinstance(percentile, int | float) and not isinstance(percentile, bool)
    if not (_is_length(low) and _is_length(high) and low <= high and is_number and 0 <= percentile <= 100):
        return None
    return {"n": low, "n_high": high, "n_percentile": float(percentile)}


def _is_length(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_N


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_OPTIONAL: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "is_strict": (lambda value: isinstance(value, bool), "true or false"),
    "one_document": (lambda value: isinstance(value, bool), "true or false"),
    "fields": (
        lambda value: _are_texts(value) and bool(value) and set(value) <= set(FIELD_KINDS),
        f"a list of some of {', '.join(FIELD_KINDS)}",
    ),
    "shortest_question": (_is_length, f"a whole number of tokens from 1 to {MAX_N}"),
    "short_threshold": (lambda value: isinstance(value, float) and 0 < value <= 1, "a number above 0 and at most 1"),
    "unsupported_threshold": (
        lambda value: isinstance(value, float) and 0 < value <= 1,
        "a number above 0 and at most 1",
    ),
    "length": (_is_length, f"a whole number of characters from 1 to {MAX_N}"),
    "n_samples": (_is_length, f"a whole number from 1 to {MAX_N}"),
    "filled_in": (_are_texts, "a list of texts"),
}
