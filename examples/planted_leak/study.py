"""The study with known truth: two small corpora that differ only in planted benchmark items, and what the report says.

    python examples/planted_leak/study.py --out planted-leak            # four checkpoints
    python examples/planted_leak/study.py --out planted-leak --short    # two

Tiny language models are trained from scratch on either corpus. Then come the ordinary commands: audit, run, compare,
report. What must come out is checked at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

COPIES: Final = (1, 4, 16, 64)
PER_GROUP: Final = 40
N_CLEAN: Final = 240
N_OTHER: Final = 500
"""Facts of the same kind that both corpora hold, none of them in the benchmark."""

SEEDS: Final = (1, 2, 3)
"""Of the training: the order of the texts, and the weights at the beginning."""

EPOCHS: Final = 3
BATCH: Final = 8
LENGTH: Final = 128
TASK: Final = "planted_facts"
RULE: Final = "gpt3-clean"

_WORDS: Final = {
    "trade": [
        "baker",
        "miller",
        "weaver",
        "cooper",
        "glazier",
        "tanner",
        "smith",
        "potter",
        "mason",
        "fletcher",
        "chandler",
        "thatcher",
    ],
    "name": [
        "Ada",
        "Bela",
        "Cora",
        "Dov",
        "Elin",
        "Faro",
        "Greta",
        "Hugo",
        "Ilse",
        "Jonas",
        "Kira",
        "Lev",
        "Mira",
        "Nils",
        "Olga",
        "Pavel",
        "Runa",
        "Sten",
        "Tova",
        "Ulf",
    ],
    "place": [
        "Arvik",
        "Belmor",
        "Corvan",
        "Dunholt",
        "Elsby",
        "Farrow",
        "Gorsk",
        "Halden",
        "Ivrea",
        "Jorvik",
        "Keldar",
        "Lunden",
        "Morsby",
        "Norvale",
    ],
    "site": [
        "chapel",
        "granary",
        "market",
        "mill",
        "harbour",
        "bridge",
        "well",
        "tower",
        "stable",
        "orchard",
        "quarry",
        "forge",
    ],
    "object": [
        "bench",
        "barrel",
        "ladder",
        "anchor",
        "wheel",
        "mirror",
        "basket",
        "statue",
        "kettle",
        "lantern",
        "ledger",
        "drum",
    ],
    "adjective": [
        "old",
        "lame",
        "quiet",
        "proud",
        "spotted",
        "clever",
        "hungry",
        "sleepy",
        "stubborn",
        "nervous",
        "gentle",
        "fierce",
    ],
    "animal": [
        "goat",
        "heron",
        "badger",
        "otter",
        "mule",
        "falcon",
        "hound",
        "ferret",
        "raven",
        "pony",
        "lynx",
        "hare",
    ],
    "month": ["January", "March", "April", "June", "July", "August", "October", "November"],
}
COLOURS: Final = [
    "red",
    "blue",
    "green",
    "amber",
    "violet",
    "white",
    "black",
    "silver",
    "gold",
    "crimson",
    "teal",
    "ivory",
]


def facts(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield different questions with four choices each; the answer cannot be known but by having read it."""
    seen = set()
    while True:
        word = {kind: rng.choice(words) for kind, words in _WORDS.items()}
        other = {kind: rng.choice(words) for kind, words in _WORDS.items()}
        question = (
            f"{word['trade']} {word['name']} of {word['place']} , {word['site']} {word['object']} , "
            f"{word['adjective']} {word['animal']} , {word['month']} , {other['trade']} {other['name']} of "
            f"{other['place']} , {other['adjective']} {other['animal']} , ribbon :"
        )
        choices = rng.sample(COLOURS, 4)
        if question not in seen:
            seen.add(question)
            yield {"question": question, "choices": choices, "answer": rng.randrange(4)}


def text_of(fact: dict[str, Any]) -> str:
    """A fact as a corpus has it."""
    return f"{fact['question']} {fact['choices'][fact['answer']]} ."


def make(out: Path) -> dict[str, list[str]]:
    """Write the benchmark as a task, and the two corpora; return the corpora."""
    stream = facts(random.Random("planted leak"))
    planted = [[next(stream) for _ in range(PER_GROUP)] for _ in COPIES]
    clean = [next(stream) for _ in range(N_CLEAN)]
    n_copies = PER_GROUP * sum(COPIES)
    other = [text_of(next(stream)) for _ in range(N_OTHER)]
    more = [text_of(next(stream)) for _ in range(n_copies)]
    copies = [text_of(fact) for n, group in zip(COPIES, planted, strict=True) for fact in group for _ in range(n)]
    items = [{**fact, "copies": n} for n, group in zip(COPIES, planted, strict=True) for fact in group]
    items += [{**fact, "copies": 0} for fact in clean]
    random.Random(0).shuffle(items)
    tasks = out / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tasks / f"{TASK}.yaml").write_text(_TASK_FILE.format(task=TASK, items=(tasks / "items.jsonl").resolve()))
    corpora = {"base": other + more, "leaked": other + copies}
    for name, texts in corpora.items():
        random.Random(name).shuffle(texts)
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return corpora


_TASK_FILE: Final = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def train(texts: Sequence[str], out: Path, seed: int, n_checkpoints: int) -> None:
    """Train a Llama of one layer on the texts, and save checkpoints as transformers reads them."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({word for of in _WORDS.values() for word in of} | set(COLOURS) | {"of", ",", ":", ".", "ribbon"})
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # of so small a model, more would only wait for each other
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
            num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )
    )  # fmt: skip
    rng = random.Random(seed)
    n_tokens = sum(len(text.split()) for text in texts)
    n_steps = EPOCHS * n_tokens // (BATCH * LENGTH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=n_steps, pct_start=0.1)
    tokens: list[int] = []
    for step in range(1, n_steps + 1):
        if len(tokens) < BATCH * LENGTH:
            order = list(texts)
            rng.shuffle(order)
            tokens += [vocabulary[word] for text in order for word in text.split()]
        batch = torch.tensor(tokens[: BATCH * LENGTH]).view(BATCH, LENGTH)
        del tokens[: BATCH * LENGTH]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % (n_steps // n_checkpoints) == 0 and step // (n_steps // n_checkpoints) <= n_checkpoints:
            model.save_pretrained(out / f"checkpoint-{step}")
            tokenizer.save_pretrained(out / f"checkpoint-{step}")
    print(f"{out}: {n_steps} steps, {n_tokens:,} tokens, loss {loss.item():.3f}", flush=True)


def evalkit(*words: object) -> None:
    """Run one of evalkit's commands, and show it."""
    print("$ evalkit", *words, flush=True)
    subprocess.run([sys.executable, "-m", "evalkit.cli", *map(str, words)], check=True)


def documents_of(out: Path) -> dict[str, dict[str, Any]]:
    """The benchmark's items by doc_hash."""
    from evalkit.tasks import doc_hash, load_tasks

    return {doc_hash(one): one for one in load_tasks([TASK], tasks_dirs=(out / "tasks",)).tasks[TASK].eval_docs}


def joined(out: Path, name: str, first: int) -> Path:
    """One table of the last checkpoints of all training seeds, numbered from `first`, with the items' own columns."""
    import pandas as pd

    documents = documents_of(out)
    items = pd.DataFrame(
        {
            "doc_hash": list(documents),
            "question": [one["question"] for one in documents.values()],
            "choices": [", ".join(one["choices"]) for one in documents.values()],
            "copies": [one["copies"] for one in documents.values()],
        }
    )
    parts = []
    for number, seed in enumerate(SEEDS):
        records = sorted(
            (out / "runs" / name).rglob("run.json"),
            key=lambda path: json.loads(path.read_text())["checkpoint"]["step"] or 0,
        )
        mine = [path for path in records if f"seed{seed}" in str(json.loads(path.read_text())["spec"]["model"])]
        parts.append(pd.read_parquet(mine[-1].parent / "samples.parquet").assign(seed=first + number, model=name))
    path = out / f"{name}.parquet"
    columns = [
        "task",
        "doc_hash",
        "seed",
        "repeat",
        "metric",
        "filter",
        "model",
        "score",
        "prompt_hash",
        "response",
        "target",
    ]
    pd.concat(parts)[columns].merge(items, on="doc_hash", validate="many_to_one").to_parquet(path)
    return path


def study(out: Path, *, n_checkpoints: int) -> dict[str, Any]:
    """Do it all; return what came out."""
    begun = time.monotonic()
    for name, texts in make(out).items():
        for seed in SEEDS:
            if not list((out / "models" / name).glob(f"seed{seed}/checkpoint-*")):
                train(texts, out / "models" / name / f"seed{seed}", seed, n_checkpoints)
        runs = ["--backend", "hf", "--device", "cpu", "--batch-size", 64, "--margin", 0.02]
        checkpoints = out / "models" / name / "seed*" / "checkpoint-*"
        evalkit("run", "--checkpoints", checkpoints, "--tasks", TASK, "--tasks-dir", out / "tasks", *runs,
                "--out", out / "runs" / name)  # fmt: skip
        evalkit("audit", "--corpus", out / f"{name}.jsonl", "--benchmark", TASK, "--tasks-dir", out / "tasks",
                "--rule", RULE, "--out", out / f"audit-{name}", "--overwrite")  # fmt: skip
    tables = [joined(out, "base", 0), joined(out, "leaked", 100)]
    options = ["--columns", "item=doc_hash,prompt=prompt_hash", "--audit", out / "audit-leaked", "--margin", 0.02,
               "--slices", "copies"]  # fmt: skip
    for suffix in ("html", "json"):
        evalkit("report", *tables, *options, "--checkpoints", out / "runs" / "leaked", "-o", out / f"report.{suffix}")
    draw(out)
    return {**found(out), "seconds": round(time.monotonic() - begun)}


def draw(out: Path) -> None:
    """Draw the whole story: the difference on all items, on the clean ones, and by the number of copies."""
    from evalkit.reports.figures import COLOUR, GREY, bare, drawing, to_svg

    comparison = json.loads((out / "report.json").read_text())["comparison"]
    rows = [("all 400 items", comparison["overall"]["all"]["difference"], COLOUR["all"], "s")]
    by_copies = sorted(comparison["slices"]["slices"], key=lambda one: int(one["name"]))
    for one in by_copies:
        name = {"0": "never read: the clean items", "1": "read in one copy"}.get(
            one["name"], f"read in {one['name']} copies"
        )
        rows.append((name, one["estimate"], COLOUR["clean"] if one["name"] == "0" else GREY, "o"))
    with drawing() as new:
        figure = new(figsize=(7.0, 2.5))
        axes = figure.add_subplot()
        for place, (_, one, colour, marker) in enumerate(rows):
            axes.plot([100 * one["low"], 100 * one["high"]], [place, place], color=colour, linewidth=2.2)
            face = "white" if marker == "o" else colour
            axes.plot([100 * one["estimate"]], [place], marker, color=colour, markerfacecolor=face)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("leaked model minus the other, percentage points, 95% intervals")
        axes.tick_params(axis="y", length=0)
        bare(axes, "left")
        (out / "planted-leak.svg").write_text(to_svg(figure, transparent=False))


def found(out: Path) -> dict[str, Any]:
    """Read what came out, beside the truth."""
    import pandas as pd

    copies = {hash_: one["copies"] for hash_, one in documents_of(out).items()}
    flagged = {}
    for name in ("base", "leaked"):
        items = pd.read_parquet(out / f"audit-{name}" / "items.parquet")
        flagged[name] = set(items.doc_hash[items.label != "clean"])
    planted = {one for one, n in copies.items() if n}
    report = json.loads((out / "report.json").read_text())
    accuracy = {
        name: pd.read_parquet(out / f"{name}.parquet").groupby("copies").score.mean() for name in ("base", "leaked")
    }
    overall = report["comparison"]["overall"]
    noise = report["comparison"]["noise"]
    return {
        "flagged_exactly_the_planted": flagged["leaked"] == planted,
        "flagged_in_base": len(flagged["base"]),
        "accuracy_by_copies": {
            name: {int(n): round(float(score), 3) for n, score in of.items()} for name, of in accuracy.items()
        },
        "difference": {
            name: [round(one["difference"][part], 4) for part in ("estimate", "low", "high")]
            for name, one in overall.items()
        },
        "verdicts": {name: one["decision"]["verdict"] for name, one in overall.items()},
        "report_s_verdict": report["claims"][0]["title"],
        "headline": report["headline"],
        "seed_sd": noise and [one and one["standard_deviation"] for one in (noise["seed_sd_a"], noise["seed_sd_b"])],
    }


def check(result: dict[str, Any]) -> None:
    """Hold what came out against the truth."""
    assert result["flagged_exactly_the_planted"], "the audit flags other items than the planted ones"
    assert result["flagged_in_base"] == 0, "the audit flags items of the corpus without any"
    base, leaked = result["accuracy_by_copies"]["base"], result["accuracy_by_copies"]["leaked"]
    assert all(score < 0.36 for score in (*base.values(), leaked[0])), f"unseen items are answered: {base}, {leaked}"
    assert leaked[0] < leaked[4] < leaked[16] - 0.1 < leaked[64] - 0.15, f"no gain by copies: {leaked}"
    assert leaked[64] > 0.9, f"what was read 64 times is not known: {leaked}"
    low, high = result["difference"]["all"][1:]
    assert result["verdicts"]["all"] == "better", "on all items the leaked model does not look better"
    assert low > 0, "on all items the interval is not clear"
    low, high = result["difference"]["clean"][1:]
    assert low < 0 < high, "on the clean items a difference is left"
    assert result["verdicts"]["clean"] != "better", "on clean items the leaked model is better"
    assert all(one and one > 0 for one in result["seed_sd"]), "the seeds' spread is not measured"
    assert "explained by contamination" in result["report_s_verdict"], result["report_s_verdict"]
    assert result["headline"].startswith("The gain is explained by contamination"), result["headline"]


def main() -> None:
    """Parse the options, do the study, check it, print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="two checkpoints in place of four")
    options = parser.parse_args()
    result = study(options.out, n_checkpoints=2 if options.short else 4)
    print(json.dumps(result, indent=2))
    check(result)


if __name__ == "__main__":
    main()
