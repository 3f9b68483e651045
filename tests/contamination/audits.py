"""Small corpora with items planted in them, audited, for the tests of what reads an audit back."""

from __future__ import annotations

import json
import random
from pathlib import Path

from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import Benchmark, Item
from evalkit.contamination.rules import load_rules
from evalkit.corpora.shards import find_shards

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "rst", "ß", "ck", "xé")]


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n)).capitalize() + "."


def benchmark(n: int = 8, *, code: bool = False) -> Benchmark:
    """Items of 20 words, with an answer of 10; their ids are i0, i1 ..."""
    rng = random.Random("items")
    items = [
        Item(f"{number:02x}{'0' * 62}", {"question": sentence(rng, 20), "answer": sentence(rng, 10)}, f"i{number}")
        for number in range(n)
    ]
    return Benchmark("b", "test", tuple(items), 0, code_fields=frozenset({"answer"} if code else ()))


def documents(items: Benchmark, n: int = 60) -> list[dict[str, str]]:
    """Every sixth document holds an item: question and answer verbatim, the question alone, or the question edited."""
    rng = random.Random("documents")
    rows = []
    for number in range(n):
        parts = [sentence(rng, 30), sentence(rng, 30)]
        if number % 6 == 0:
            fields = items.items[number // 6 % len(items.items)].fields
            words = fields["question"].split()
            if number % 18 == 12:
                words[6], words[13:13] = "REPLACED", ["INSERTED"]
            kept = [" \n".join(words).upper() if number % 12 else " ".join(words)]
            parts[1:1] = kept if number % 18 == 6 else [*kept, fields["answer"]]
        rows.append({"id": f"d{number}", "text": " ".join(parts)})
    return rows


def write_lines(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def audited(corpus: Path | str, out: Path, items: Benchmark, rules: tuple[str, ...] = ("llama3", "fuzzy"), **options):
    audit(find_shards([str(corpus)]), [items], load_rules(rules), out, overwrite=True, **options)
    return out
