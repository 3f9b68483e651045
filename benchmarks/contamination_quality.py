"""Recall and precision of every rule of `evalkit audit` on planted benchmark items, beside decon's default.

python benchmarks/contamination_quality.py --json

Items of MMLU, GSM8K, HumanEval and BIG-Bench Hard are planted in documents of the real corpus in many ways (see
`planting`). The documents that carry plants are taken out of the corpus; the others stay as they are. Each way is
measured as if only its plants had been planted: evalkit audits the unplanted documents and those of the way; decon,
which judges each document by itself, reads all documents once, and of its reports those about the same documents count.
The same goes for evalkit's search for rewritten items (rule "semantic"), which is made with `--semantic` only;
`semantic_quality` has it by itself.

What is judged is a pair: a benchmark item and a document in which the tool says it found the item.

- *recall*: share of the planted items that are found in their document. Where two items have the same words
  throughout, finding either is right.
- *precision*: found plants / (found plants + false pairs). A pair is false, in planted and unplanted documents
  alike, unless the document holds a plant of that item, the question of the plant is the item's as well, or a whole
  field of at least 8 words of the item stands in the document. Pairs that are right for one of the last two reasons
  are not counted at all: benchmarks repeat themselves, and real text quotes what they quote (a famous speech).
  Both are judged in plain Python, without the normalisation of either tool. Counting pairs rather than items charges a
  tool for each document that it would take from the corpus without need.
- *precision of items*: the same for items, whose scores would be set aside: those found where they were planted /
  (these + others with a false pair).

The rule `fuzzy` is measured with higher thresholds as well (`fuzzy-0.9`), as a user's own rule may have them: a tool
is compared at the precision of the other.

"Best" is the rule with the highest recall among those at least as precise as decon in that row.

Of decon's settings only the number of workers is given. It gets what its own preparation makes of these benchmarks: one
record for each choice. Answers alone are planted when they have at least 8 words: shorter ones are everywhere.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from harness import arguments, finish, show, time_command
from models import DATA
from peer_decon import DETECT, decon_python, read_reports, write_references
from planting import (
    SHORT,
    Item,
    ItemFile,
    Plant,
    plant_all,
    read_benchmarks,
    read_documents,
    read_rewritten,
    vocabulary_of,
    ways,
    words,
    write_lines,
)

from evalkit import tables
from evalkit.contamination.audit import RECORDED_N, audit
from evalkit.contamination.benchmarks import Benchmark, from_file, parse_fields
from evalkit.contamination.canaries import canary_benchmark
from evalkit.contamination.findings import apply_rules
from evalkit.contamination.index import build_index
from evalkit.contamination.recorded import FoundJoiner
from evalkit.contamination.rules import DIRTY, FUZZY, Rule, load_rules
from evalkit.contamination.scan import ShardRuns, scan_shard
from evalkit.contamination.semantic.audit import RULE as SEMANTIC_RULE
from evalkit.contamination.semantic.audit import SEMANTIC, audit_semantic
from evalkit.contamination.semantic.embedding import find_model
from evalkit.corpora.shards import find_shards
from evalkit.engines import LocalEngine
from evalkit.errors import ModelError

Pair = tuple[tuple[str, int], tuple[str, int]]
"""(benchmark, item) and (corpus file, row)."""

BASE = "unplanted"
PEER = "decon"
N_WORKERS = 2
STRICTER = (0.7, 0.8, 0.9, 0.95, 0.99)
"""Higher thresholds with which `fuzzy` is measured, too."""

TARGETS = {
    **dict.fromkeys(("verbatim", "case_punctuation", "rewrapped", "embedded", "short"), (1.0, 0.99)),
    "edited_10": (0.95, 0.0),
    "rewritten_gsm8k": (0.9, 0.9),
}
"""Recall and precision that a rule should reach in these rows: of edits `fuzzy`, of the others any."""


@dataclass(frozen=True)
class Score:
    """Of one tool or rule in one way.

    Attributes
    ----------
    n, n_found
        Plants, and those of them that were found.
    n_false_in_plants, n_false_elsewhere
        False pairs in documents with plants and in others.
    n_false_items
        Items in these pairs that were not found where they were planted.
    """

    n: int
    n_found: int
    n_false_in_plants: int
    n_false_elsewhere: int
    n_false_items: int

    @property
    def recall(self) -> float:
        """Share of the plants that were found."""
        return self.n_found / self.n

    @property
    def precision(self) -> float | None:
        """Share of the counted pairs that are plants; None when there are no pairs."""
        n_pairs = self.n_found + self.n_false_in_plants + self.n_false_elsewhere
        return self.n_found / n_pairs if n_pairs else None

    @property
    def item_precision(self) -> float | None:
        """Share of the items found that were planted; None when there are none."""
        n_items = self.n_found + self.n_false_items
        return self.n_found / n_items if n_items else None


class Judge:
    """Knows all items and documents, and says which pairs are right."""

    def __init__(self, benchmarks: Sequence[ItemFile], base: Sequence[str], plants: Mapping[str, Sequence[Plant]]):
        self._items = {(item.benchmark, item.number): item for one in benchmarks for item in one.items}
        self._base, self._plants = base, plants
        self._normalised = lru_cache(maxsize=1 << 16)(lambda name, row: _joined(self._document(name, row)))
        self._is_there = lru_cache(maxsize=None)(self._stands_in)

    def score(self, way: str, pairs: Iterable[Pair]) -> Score:
        """Count what was found; pairs in documents of other ways are left out."""
        found, found_items, false_items, n_false = set(), set(), set(), {way: 0, BASE: 0}
        for item, (name, row) in pairs:
            if name == way and _same_text(self._items[item], self._plants[way][row].item):
                found.add(row)
                found_items.add(item)
            elif name in n_false and not self._is_excused(item, name, row):
                n_false[name] += 1
                false_items.add(item)
        n_false_items = len(false_items - found_items)
        return Score(len(self._plants[way]), len(found), n_false[way], n_false[BASE], n_false_items)

    def _document(self, name: str, row: int) -> str:
        return self._base[row] if name == BASE else self._plants[name][row].document

    def _is_excused(self, item: tuple[str, int], name: str, row: int) -> bool:
        if name != BASE and words(self._plants[name][row].item.question) == words(self._items[item].question):
            return True
        return self._is_there(item, name, row)

    def _stands_in(self, item: tuple[str, int], name: str, row: int) -> bool:
        document, one = self._normalised(name, row), self._items[item]
        fields = (one.question, one.answer, *one.choices)
        return any(len(words(field)) >= SHORT and _joined(field) in document for field in fields)


def _joined(text: str) -> str:
    return f" {' '.join(words(text))} "


def _same_text(one: Item, other: Item) -> bool:
    return one == other or words(one.text) == words(other.text)


def write_documents(path: Path, texts: Iterable[str]) -> None:
    """Write a corpus file."""
    write_lines(path, ({"id": f"{path.stem}/{row}", "text": text} for row, text in enumerate(texts)))


def found_by_decon(corpus: Path, benchmarks: Sequence[ItemFile], folder: Path) -> list[Pair]:
    """Run decon on all corpus files."""
    write_references(benchmarks, folder / "references")
    command = [decon_python(), "-c", DETECT, corpus, folder / "references", folder / "reports", N_WORKERS]
    print(f"decon: {time_command(command):.0f} s", file=sys.stderr)
    return [(item, (name.removesuffix(".jsonl"), row)) for item, (name, row) in read_reports(folder / "reports")]


def load(benchmarks: Sequence[ItemFile]) -> list[Benchmark]:
    """Read the benchmarks as evalkit does."""
    return [from_file(one.path, fields=parse_fields(one.fields) if one.fields else None) for one in benchmarks]


def found_in_other_words(files: Sequence[Path], benchmarks: Sequence[ItemFile], out: Path) -> set[Pair] | None:
    """Search all files for rewritten items; None when there is no embedding model on this machine.

    Like decon, the search judges each document by itself.
    """
    try:
        find_model()
    except ModelError as error:
        print(f"the rule {SEMANTIC_RULE} is left out: {error}", file=sys.stderr)
        return None
    loaded = load(benchmarks)
    numbers = {(one.name, item.doc_hash): (one.name, i) for one in loaded for i, item in enumerate(one.items)}
    engine = LocalEngine(N_WORKERS)
    audit(find_shards(list(map(str, files))), loaded, load_rules(["exact"]), out, engine=engine)
    audit_semantic(out, engine=engine)
    rows = tables.read(out / f"{SEMANTIC.name}.parquet", SEMANTIC).to_pylist()
    return {
        (numbers[row["benchmark"], row["doc_hash"]], (Path(row["file"]).stem, row["row"]))
        for row in rows
        if row["label"] == DIRTY
    }


class Auditor:
    """evalkit's audit of the unplanted documents, which are scanned once, and of those planted in one way."""

    def __init__(self, base: Path, benchmarks: Sequence[ItemFile]) -> None:
        loaded = load(benchmarks)
        self._numbers = {(b, i): (one.name, i) for b, one in enumerate(benchmarks) for i in range(len(loaded[b].items))}
        self._looked_for = [*loaded, canary_benchmark()]
        rules = load_rules(["all"])
        [fuzzy] = [rule for rule in rules if rule.name == FUZZY]
        self._rules = [*rules, *(stricter(fuzzy, threshold) for threshold in STRICTER)]
        self._index = build_index(self._looked_for, min(RECORDED_N, *(rule.n for rule in self._rules)))
        self._base = self._scan(base)

    def _scan(self, path: Path) -> ShardRuns:
        [shard] = find_shards([str(path)])
        return scan_shard(shard, self._index, text_column="text", id_column="id")

    def found_by_rules(self, planted: Path) -> dict[str, set[Pair]]:
        """Return the pairs that each rule finds: a dirty item, and a document that counts as evidence of it."""
        scanned = [self._base, self._scan(planted)]
        joiner = FoundJoiner([one.shard for one in scanned])
        for one in scanned:
            joiner.add([one])
        found = joiner.found()
        findings = apply_rules(
            self._rules,
            self._looked_for,
            self._index,
            found,
            keep_boilerplate=False,
            text_column="text",
            id_column="id",
        )
        names = [Path(str(shard.path)).stem for shard in found.shards]
        documents = [(names[shard], row) for shard, row in zip(found.shard.tolist(), found.rows.tolist(), strict=True)]
        fields = [self._index.fields[field] for field in findings.runs.fields]
        pairs = {}
        for name, score in findings.scores.items():
            which = np.flatnonzero(score.counts & score.dirty[findings.runs.fields])
            pairs[name] = {(self._numbers[fields[k].benchmark, fields[k].item], documents[k]) for k in which}
        return pairs


def stricter(rule: Rule, threshold: float) -> Rule:
    """The rule with at least this threshold for every field."""
    least = {
        name: max(threshold, getattr(rule, name) or 0.0)
        for name in ("threshold", "short_threshold", "unsupported_threshold")
    }
    return replace(rule, name=f"{rule.name}-{threshold:g}", **least)


def best_rule(scores: Mapping[str, Score]) -> str:
    """The rule with the highest recall among those at least as precise as decon, or among all when there is none."""
    least = scores[PEER].precision or 0.0
    rules = [name for name in scores if name != PEER]
    precise = [name for name in rules if (scores[name].precision or 0.0) >= least] or rules
    return max(precise, key=lambda name: (scores[name].recall, scores[name].precision or 0.0))


def main() -> None:
    """Plant, run both sides, and print recall and precision by way and rule."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100, help="planted items of each benchmark and way (default 100)")
    parser.add_argument("--documents", type=int, help="unplanted documents (default: all)")
    parser.add_argument("--semantic", action="store_true", help="also search for rewritten items (half an hour more)")
    parser.add_argument("--seed", type=int, default=0, help="of what is planted where (default 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = folder / "corpus"
        corpus.mkdir()
        rng = random.Random(options.seed)
        benchmarks = read_benchmarks(DATA, folder)
        items = [item for one in benchmarks for item in one.items]
        documents = read_documents(DATA)
        rng.shuffle(documents)
        n_hosts = len(benchmarks) * options.items
        hosts, base = documents[:n_hosts], documents[n_hosts:][: options.documents]
        changes = ways(vocabulary_of(hosts, rng), read_rewritten(DATA))
        plants = {
            way: plant_all(way, change, items, hosts, options.items, random.Random(f"{options.seed} {way}"))
            for way, change in changes.items()
        }
        write_documents(corpus / f"{BASE}.jsonl", base)
        for way, planted in plants.items():
            write_documents(corpus / f"{way}.jsonl", [one.document for one in planted])
        judge = Judge(benchmarks, base, plants)
        auditor = Auditor(corpus / f"{BASE}.jsonl", benchmarks)
        of_decon = found_by_decon(corpus, benchmarks, folder)
        files = [corpus / f"{name}.jsonl" for name in (BASE, *plants)]
        rewritten = found_in_other_words(files, benchmarks, folder / "audit") if options.semantic else None
        scores: dict[str, dict[str, Score]] = {}
        for way in plants:
            found = {PEER: of_decon, **auditor.found_by_rules(corpus / f"{way}.jsonl")}
            if rewritten is not None:
                found[SEMANTIC_RULE] = rewritten
            scores[way] = {name: judge.score(way, pairs) for name, pairs in found.items()}
    report(scores, len(base))
    finish(options, figures_of(scores))


def report(scores: Mapping[str, Mapping[str, Score]], n_documents: int) -> None:
    """Print every rule in every way, then the best beside decon."""
    rows = [
        (
            *(way, name, str(one.n), f"{one.recall:.3f}", _shown(one.precision), _shown(one.item_precision)),
            *(str(one.n_false_in_plants), str(one.n_false_elsewhere), str(one.n_false_items)),
        )
        for way, by_name in scores.items()
        for name, one in by_name.items()
    ]
    header = ("way", "rule", "planted", "recall", "precision", "of items", "false in plants", "elsewhere", "items")
    show(f"Planted items; {n_documents} unplanted documents", header, rows)
    print()
    rows = []
    for way, by_name in scores.items():
        best = best_rule(by_name)
        mine, peer = by_name[best], by_name[PEER]
        said = "below decon" if is_below(by_name) else ""
        if way in TARGETS:
            said = ", ".join(filter(None, (said, "target reached" if reaches(way, by_name) else "target missed")))
        shown = (f"{peer.recall:.3f}", _shown(peer.precision), best, f"{mine.recall:.3f}", _shown(mine.precision), said)
        rows.append((way, *shown))
    header = ("way", "decon: recall", "precision", "best rule", "recall", "precision", "")
    show("The best rule that is at least as precise as decon, beside decon", header, rows)


def _shown(precision: float | None) -> str:
    return "-" if precision is None else f"{precision:.3f}"


def is_below(scores: Mapping[str, Score]) -> bool:
    """Whether no rule is at least as precise as decon and finds at least as much."""
    peer = scores[PEER]
    return peer.n_found > 0 and not any(
        one.recall >= peer.recall and (one.precision or 0.0) >= (peer.precision or 0.0)
        for name, one in scores.items()
        if name != PEER
    )


def reaches(way: str, scores: Mapping[str, Score]) -> bool:
    """Whether one rule reaches the row's target."""
    recall, precision = TARGETS[way]
    return any(
        one.recall >= recall and (one.precision or 0.0) >= precision
        for name, one in scores.items()
        if name != PEER and (way != "edited_10" or name == FUZZY)
    )


def figures_of(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float | str]:
    """All figures by names such as `verbatim/llama3/recall`; a precision of nothing is left out."""
    figures: dict[str, float | str] = {
        "n_rows_below_decon": sum(map(is_below, scores.values())),
        "rows_below_decon": " ".join(way for way, some in scores.items() if is_below(some)),
        "targets_missed": " ".join(way for way in TARGETS if way in scores and not reaches(way, scores[way])),
    }
    for way, by_name in scores.items():
        figures[f"{way}/best"] = best_rule(by_name)
        for name, one in by_name.items():
            figures[f"{way}/{name}/recall"] = round(one.recall, 4)
            for kind in ("precision", "item_precision"):
                if (value := getattr(one, kind)) is not None:
                    figures[f"{way}/{name}/{kind}"] = round(value, 4)
    return figures


if __name__ == "__main__":
    main()
