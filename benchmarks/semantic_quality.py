"""Recall and precision of `--semantic` on rewritten and translated benchmark items, without a judge.

python benchmarks/semantic_quality.py --json

Rewritten items are planted between two lines of documents of the real corpus, one each; all other documents stay as
they are. What is judged is a pair of an item and a document, as in `contamination_quality`:

- *recall*: share of the planted items that are found in their document.
- *precision*: found plants / (found plants + false pairs), where all pairs in unplanted documents are false, and those
  in planted documents with another item. Items with the same question are one.

The threshold and its weights were set on the even half of the rewritten GSM8K questions, whose row is `calibration`;
what counts is the odd half. Two rows are harder than the issue asks for. `among_train` has the 7,473 questions of
GSM8K's training set, with their answers, as further documents: other problems of the same kind, by the same authors,
none of which should be found. `codealpaca` has no plants but 164 programs from CodeAlpaca, each of which was nearest to
a HumanEval item, and of which a language model called 18 the same problem: those should be found, the others not.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import arguments, finish, show
from models import DATA
from planting import Item, plant, read_benchmarks, read_documents, read_lines, read_rewritten, write_lines

from evalkit.contamination.semantic.embedding import find_model
from evalkit.contamination.semantic.evidence import THRESHOLD, score
from evalkit.contamination.semantic.search import search
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine

BASE, TRAIN, CODEALPACA = "unplanted", "gsm8k_train", "codealpaca"
TARGETS = {"rewritten_gsm8k": (0.9, 0.9)}


@dataclass(frozen=True)
class Way:
    """A file of planted documents: its name, and the item of each of its documents, None for none."""

    name: str
    items: Sequence[int | None]
    documents: Sequence[str]


@dataclass(frozen=True)
class Score:
    """Planted and found items, and false pairs: in planted documents, unplanted ones, and those of the same kind."""

    n: int
    n_found: int
    n_false_in_plants: int
    n_false_elsewhere: int
    n_false_alike: int = 0

    @property
    def recall(self) -> float:
        """Share of the plants that were found."""
        return self.n_found / max(self.n, 1)

    @property
    def precision(self) -> float | None:
        """Share of the found pairs that are plants; None when there are none."""
        n_pairs = self.n_found + self.n_false_in_plants + self.n_false_elsewhere + self.n_false_alike
        return self.n_found / n_pairs if n_pairs else None


def gsm8k_ways(items: Sequence[Item], rewritten: Mapping[tuple[str, int], str], hosts: Sequence[str]) -> list[Way]:
    """Rewritten GSM8K questions in two halves, and the training set, which holds none of them."""
    train = [f"{row['question']}\n{row['answer']}" for row in read_lines(DATA / "benchmarks" / "gsm8k_train.jsonl.gz")]
    whole = planted("", items, rewritten, hosts)
    halves = [
        Way(
            name,
            [item for item in whole.items if item is not None and item % 2 == odd],
            [
                text
                for item, text in zip(whole.items, whole.documents, strict=True)
                if item is not None and item % 2 == odd
            ],
        )
        for name, odd in (("calibration", 0), ("rewritten_gsm8k", 1))
    ]
    return [*halves, Way(TRAIN, [None] * len(train), train)]


def codealpaca() -> Way:
    """Programs, each with the item that it is the same as, if any."""
    rows = list(read_lines(DATA / "rephrase" / "CodeAlpacaDB.jsonl.gz"))
    return Way(
        CODEALPACA,
        [number if row["results"][0] else None for number, row in enumerate(rows)],
        [row["train"][0] for row in rows],
    )


def planted(name: str, items: Sequence[Item], rewritten: Mapping[tuple[str, int], str], hosts: Sequence[str]) -> Way:
    """Plant every rewritten item in a host of its own."""
    rng = random.Random(f"semantic {name}")
    numbers = [number for number, item in enumerate(items) if (item.benchmark, item.number) in rewritten]
    documents = [
        plant(items[number], rewritten[items[number].benchmark, items[number].number], host, rng).document
        for number, host in zip(numbers, hosts, strict=False)
    ]
    return Way(name, numbers, documents)


def run(
    items: Sequence[Item], ways: Sequence[Way], base: Sequence[str], model: Path, folder: Path, n_shown: int
) -> dict[str, Score]:
    """Search for all items in all documents at once, and count for each way."""
    folder.mkdir()
    write_lines(folder / f"{BASE}.jsonl", ({"text": text} for text in base))
    for way in ways:
        write_lines(folder / f"{way.name}.jsonl", ({"text": text} for text in way.documents))
    questions = list(dict.fromkeys(item.question for item in items))
    begun = time.perf_counter()
    work = folder / "work"
    pairs, lexicon = search(find_shards([str(folder)]), questions, work, model=model, engine=LocalEngine(2))
    print(
        f"{items[0].benchmark}: {time.perf_counter() - begun:.0f} s; {int(lexicon.is_judged.sum())} of "
        f"{len(questions)} questions say enough to be judged; {pairs.n_searched} documents, {pairs.n_windows} windows, "
        f"{pairs.n_kept} with rare words, {pairs.n_embedded} embedded",
        file=sys.stderr,
    )
    found = pairs.table.to_pandas()
    found = found[score(*(found[name].to_numpy() for name in ("similarity", "margin", "numbers"))) >= THRESHOLD]
    found = found.assign(file=found.file.map(lambda name: Path(name).stem))
    by_way = {}
    for way in ways:
        wanted = {
            (row, questions.index(items[item].question)) for row, item in enumerate(way.items) if item is not None
        }
        mine, elsewhere = (
            set(zip(one.row, one.item, strict=True))
            for one in (found[found.file == way.name], found[found.file == BASE])
        )
        by_way[way.name] = Score(len(wanted), len(mine & wanted), len(mine - wanted), len(elsewhere))
    false = found[found.file.isin([BASE, TRAIN])]
    for pair in false.head(n_shown).itertuples():
        print(f"false: {pair.file}:{pair.row}\n  {questions[pair.item]!r}\n  {pair.text!r}", file=sys.stderr)
    return by_way


def main() -> None:
    """Plant, search, and print recall and precision by way."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, help="unplanted documents (default: all)")
    parser.add_argument("--benchmarks", nargs="+", default=["gsm8k_test", "mmlu_test", "humaneval"])
    parser.add_argument("--model", help="folder or hub name of the embedding model (default: the packaged one)")
    parser.add_argument("--show", type=int, default=0, help="print so many false pairs of each benchmark")
    options = parser.parse_args()
    model = find_model(options.model)
    documents = read_documents(DATA)
    random.Random(0).shuffle(documents)
    hosts, base = documents[:1400], documents[1400:][: options.documents]
    rewritten = read_rewritten(DATA)
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for benchmark in read_benchmarks(DATA, Path(temporary)):
            if benchmark.name not in options.benchmarks:
                continue
            items = benchmark.items
            if benchmark.name == "gsm8k_test":
                ways = gsm8k_ways(items, rewritten["rewritten_gsm8k"], hosts)
            else:
                ways = [
                    planted(name, items, texts, hosts)
                    for name, texts in rewritten.items()
                    if next(iter(texts))[0] == benchmark.name
                ]
                ways += [codealpaca()] if benchmark.name == "humaneval" else []
            scores |= run(items, ways, base, model, Path(temporary) / f"{benchmark.name}_corpus", options.show)
    if train := scores.pop(TRAIN, None):
        one = scores["rewritten_gsm8k"]
        scores["among_train"] = Score(
            one.n, one.n_found, one.n_false_in_plants, one.n_false_elsewhere, train.n_false_in_plants
        )
    report(scores, len(base))
    finish(options, figures_of(scores))


def report(scores: Mapping[str, Score], n_documents: int) -> None:
    """Print the table."""
    header = ("way", "planted", "recall", "precision", "false in plants", "false elsewhere", "false in train", "")
    rows = []
    for way, one in scores.items():
        recall, precision = TARGETS.get(way, (0.0, 0.0))
        said = "" if way not in TARGETS else "target reached" if reaches(one, recall, precision) else "target missed"
        shown = "none found" if one.precision is None else f"{one.precision:.3f}"
        counts = map(str, (one.n_false_in_plants, one.n_false_elsewhere, one.n_false_alike))
        rows.append((way, str(one.n), f"{one.recall:.3f}", shown, *counts, said))
    show(f"Rewritten items, no judge; {n_documents} unplanted documents", header, rows)


def reaches(one: Score, recall: float, precision: float) -> bool:
    """Whether both are reached."""
    return one.recall >= recall and (one.precision or 0.0) >= precision


def figures_of(scores: Mapping[str, Score]) -> dict[str, float | str]:
    """Recall and precision by way; a precision that does not exist is left out."""
    figures: dict[str, float | str] = {}
    for way, one in scores.items():
        figures[f"{way}/recall"] = round(one.recall, 4)
        if one.precision is not None:
            figures[f"{way}/precision"] = round(one.precision, 4)
    return figures


if __name__ == "__main__":
    main()
