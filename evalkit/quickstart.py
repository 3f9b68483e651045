"""The whole job once, on embedded defaults: two real checkpoints, a planted leak, an audit, a verdict."""

from __future__ import annotations

import random
import shlex
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalkit.errors import SpecError
from evalkit.files import atomic_path, to_json, write_json

if TYPE_CHECKING:
    from evalkit.contamination.benchmarks import Benchmark

TASKS: Final = ("gen_patterns", "gen_series", "gen_grammar")
RULE: Final = "llama3"
PLANTED_SHARE: Final = 0.25
"""Share of the evaluated items that are planted in the corpus."""

MIN_LIMIT: Final = 20
_ORDER: Final = ("passage", "question", "choices", "answer")
_N_SHARDS: Final = 2


@dataclass(frozen=True)
class _Story:
    """Tells the user what is being done, and the ordinary command that does the same."""

    console: Any

    def step(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/]")

    def command(self, *words: object) -> None:
        line = shlex.join(["evalkit", *map(str, words)])
        self.console.print(f"  $ {line}", style="cyan", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", markup=False, soft_wrap=True)


def quickstart(out: Path, *, limit: int, console: Any) -> Path:
    """Run the demonstration in `out` and return the report; models and runs that are there already are used again.

    Parameters
    ----------
    out
        Folder for everything that is made.
    limit
        Items of each task.
    console
        A rich console to tell the story on.

    Raises
    ------
    SpecError
        `limit` is too small to say anything.
    ModelError
        The package with the demonstration model is not installed.
    """
    if limit < MIN_LIMIT:
        raise SpecError(f"{limit} items of each task say nothing", where="--limit", do=f"Give at least {MIN_LIMIT}")
    from evalkit.reports.comparison import compare
    from evalkit.reports.significance import with_evidence, write_report
    from evalkit.reports.terminal import render

    begun = time.monotonic()
    story = _Story(console)
    models = _make_models(story, out)
    story.step(f"2. Evaluate both on {limit} items of each of {', '.join(TASKS)}")
    runs = [_evaluate(story, model, out / "runs" / model.name, limit) for model in models]
    planted = _make_corpus(story, out / "corpus", runs[0])
    audited = _audit(story, out, planted)
    story.step("5. Compare: is the quantised model worse, on all items and on the clean ones?")
    story.command("compare", *runs, "--audit", audited, "--rule", RULE)
    comparison = compare(*runs, audit=audited, rule=RULE)
    render(comparison, console)
    page = out / "report.html"
    story.step("6. Report: the same on one page, to look at and to send around")
    story.command("report", *runs, "--audit", audited, "--rule", RULE, "-o", page)
    made, collect = with_evidence(*runs, audit=audited, rule=RULE)
    write_report(made, page, collect)
    story.note(page.resolve().as_uri())
    story.note(f"{time.monotonic() - begun:.0f} seconds in all; everything lies in {out}")
    return page


def _make_models(story: _Story, out: Path) -> tuple[Path, Path]:
    """Save the demonstration model as an ordinary checkpoint, and a second one with its weights rounded to 4 bits."""
    from evalkit.runs.demo_model import quantise_checkpoint, save_demo_model

    story.step("1. Two checkpoints: SmolLM2-135M-Instruct, and the same with its weights rounded to 4 bits")
    base, quantised = out / "models" / "smollm2-135m", out / "models" / "smollm2-135m-4bit"
    if not base.is_dir():
        save_demo_model(base)
    if not quantised.is_dir():
        quantise_checkpoint(base, quantised)
    story.note(f"{base}\n  {quantised}\n  Yours: any folder that transformers can load, or a name on the hub.")
    return base, quantised


def _evaluate(story: _Story, model: Path, out: Path, limit: int) -> Path:
    """Evaluate one checkpoint on the generated tasks."""
    from evalkit.runs.evaluate import run
    from evalkit.runs.spec import make_spec

    story.command("run", "--model", model, "--tasks", ",".join(TASKS), "--limit", limit, "--out", out)
    spec = make_spec(None, {"model": str(model), "tasks": ",".join(TASKS), "limit": limit, "out": out})
    try:
        result = run(spec)
    except SpecError as error:
        if error.where != str(out):
            raise
        # `run` would advise its own --overwrite, which the quickstart does not have.
        raise SpecError(
            error.what,
            where=error.where,
            do=f"Give another --out, or the --limit of before; or delete {out.parent} to evaluate anew",
        ) from None
    for row in result.to_frame().drop_duplicates("task").itertuples():
        story.note(f"{row.task}: {row.metric} {row.score:.3f} on {row.n_items} items")
    return out


def _evaluated(run_dir: Path) -> list[Benchmark]:
    """The evaluated items of each task, as the audit will look for them."""
    from dataclasses import replace

    from evalkit import tables
    from evalkit.contamination.benchmarks import from_task
    from evalkit.tasks import load_tasks

    samples = tables.read(run_dir / "samples.parquet", tables.SAMPLES)
    hashes = set(samples.column("doc_hash").to_pylist())
    benchmarks = [from_task(name, task) for name, task in load_tasks(TASKS).tasks.items()]
    return [replace(one, items=tuple(item for item in one.items if item.doc_hash in hashes)) for one in benchmarks]


def _make_corpus(story: _Story, out: Path, run_dir: Path) -> Mapping[str, str]:
    """Write a corpus with a known leak; return where each planted item lies, by its hash."""
    from evalkit.contamination.benchmarks import kind_of_field

    story.step("3. A training corpus with a known leak: Python's own source files, and some of the items among them")
    rng = random.Random("quickstart corpus")
    documents = [(str(path), path.read_text(encoding="utf-8", errors="replace")) for path in _source_files()]
    planted = {}
    for benchmark in _evaluated(run_dir):
        chosen = rng.sample(benchmark.items, round(PLANTED_SHARE * len(benchmark.items)))
        for item, number in zip(chosen, rng.sample(range(len(documents)), len(chosen)), strict=True):
            name, text = documents[number]
            lines = text.split("\n")
            # As people would post it: the question, the choices, the answer last.
            fields = sorted(item.fields.items(), key=lambda one: _ORDER.index(kind_of_field(one[0])))
            lines.insert(rng.randrange(len(lines) + 1), "\n".join(text for _, text in fields))
            documents[number] = (name, "\n".join(lines))
            planted[item.doc_hash] = name
    for shard in range(_N_SHARDS):
        _write_shard(out / f"part-{shard}.jsonl.zst", documents[shard::_N_SHARDS])
    write_json(out / "planted.json", planted)
    story.note(f"{len(documents):,} documents in {out}; {len(planted)} items planted, listed in planted.json")
    return planted


def _source_files() -> Sequence[Path]:
    """The modules of Python's standard library: real text that every machine has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    files = (path for path in folder.rglob("*.py") if skipped.isdisjoint(path.relative_to(folder).parts))
    return sorted(path for path in files if path.stat().st_size > 0)


def _write_shard(path: Path, documents: Sequence[tuple[str, str]]) -> None:
    import zstandard

    lines = b"".join(to_json({"id": name, "text": text}) + b"\n" for name, text in documents)
    with atomic_path(path) as temporary:
        temporary.write_bytes(zstandard.compress(lines))


def _audit(story: _Story, out: Path, planted: Mapping[str, str]) -> Path:
    """Scan the corpus for the tasks' items, and hold what is found against what was planted."""
    from evalkit import tables
    from evalkit.contamination.audit import audit
    from evalkit.contamination.benchmarks import from_task
    from evalkit.contamination.rules import CLEAN, load_rules
    from evalkit.corpora.shards import find_shards
    from evalkit.tasks import load_tasks

    story.step("4. Audit: which items does the corpus contain?")
    pattern, audited = out / "corpus" / "*.jsonl.zst", out / "audit"
    story.command("audit", "--corpus", pattern, "--benchmark", *TASKS, "--rule", RULE, "--out", audited)
    benchmarks = [from_task(name, task) for name, task in load_tasks(TASKS).tasks.items()]
    result = audit(find_shards([str(pattern)]), benchmarks, load_rules([RULE]), audited, overwrite=True)
    items = tables.read(audited / "items.parquet", tables.ITEMS).to_pylist()
    found = {item["doc_hash"] for item in items if item["label"] != CLEAN}
    story.note(
        f"{result.n_documents:,} documents, {result.n_bytes / 1e6:.1f} MB scanned in {result.seconds:.1f} s: "
        f"{len(found & planted.keys())} of the {len(planted)} planted items found, "
        f"and {len(found - planted.keys())} that nobody planted"
    )
    return audited
