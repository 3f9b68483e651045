"""What an answer looks like: its length and its Markdown, which judges are known to be swayed by."""

from __future__ import annotations

import re
from typing import Any, Final

STYLES: Final = ("lists", "headings", "bold")
"""Countable marks of style, as Chatbot Arena controls for them (Li, Angelopoulos and Chiang 2024)."""

_PATTERNS: Final = {
    "lists": re.compile(r"^\s*(?:[-*+]|\d+[.)])\s", re.MULTILINE),
    "headings": re.compile(r"^\s{0,3}#{1,6}\s", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_FENCED: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)


def marks(text: str) -> dict[str, int]:
    """Count list items, headings and bold passages outside of code blocks."""
    prose = _FENCED.sub("", text)
    return {name: sum(1 for _ in pattern.finditer(prose)) for name, pattern in _PATTERNS.items()}


def looks(text_a: str, text_b: str) -> dict[str, Any]:
    """Columns of the verdicts table that two answers fill: lengths in characters, marks, and whether they are equal."""
    found: dict[str, Any] = {"length_a": len(text_a), "length_b": len(text_b), "identical": text_a == text_b}
    for side, text in (("a", text_a), ("b", text_b)):
        found |= {f"{name}_{side}": count for name, count in marks(text).items()}
    return found
