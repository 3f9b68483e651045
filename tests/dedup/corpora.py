"""Small corpora with exact and near duplicates, and what brute force finds in them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from evalkit.dedup.shingles import Shingling, shingles_of

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("n", "rst", "ß", "ck", "xé")]


def edited(words: list[str], n: int, rng: random.Random) -> list[str]:
    words = list(words)
    for _ in range(n):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return words


def documents(n: int, seed: int = 0) -> list[str]:
    """About half are copies of one before, with some words replaced, or in other case and lines, or as they are."""
    rng = random.Random(seed)
    made: list[list[str]] = []
    texts = []
    for _ in range(n):
        if made and rng.random() < 0.5:
            words = edited(rng.choice(made), rng.choice([0, 0, 1, 1, 2, 3, 5, 8]), rng)
        else:
            words = rng.choices(WORDS, k=rng.choice([3, 20, 40, 80]))
        made.append(words)
        text = " ".join(words)
        texts.append(rng.choice([text, text, text.upper(), ",\n".join(words)]))
    texts[n // 2] = texts[n // 3] = "?!"
    texts[n // 4] = "!?"
    return texts


def write(folder: Path, texts: list[str], n_files: int) -> Path:
    """Write the texts to some files, one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        mine = range(number * len(texts) // n_files, (number + 1) * len(texts) // n_files)
        lines = [json.dumps({"id": f"d{k}", "text": texts[k]}, ensure_ascii=False) for k in mine]
        # A row that is none, and a blank line: rows and documents are not the same.
        (folder / f"{number:02}.jsonl").write_text("\n".join(['{"id": 1}', "", *lines]) + "\n", encoding="utf-8")
    return folder


def similar(texts: list[str], shingling: Shingling, threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of documents whose shingles have that Jaccard similarity, by comparing all."""
    sets = [shingles_of(text, shingling) for text in texts]
    found = {}
    for i, j in itertools.combinations(range(len(texts)), 2):
        if sets[i] or sets[j]:
            value = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            if value >= threshold:
                found[i, j] = value
    return found
