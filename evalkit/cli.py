"""The command line: each command parses its options, calls one function and prints the result.

Exit codes: 0 done; 1 done, but a stated bar was not met; 2 the user's mistake, with a message. Heavy imports stand
inside the commands, so that `evalkit --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from evalkit.addresses import named, redact
from evalkit.errors import EvalkitError
from evalkit.places import Commands
from evalkit.stats.margins import parse_margin
from evalkit.terminal import safe

if TYPE_CHECKING:
    from rich.table import Table

    from evalkit.contamination.audit import ShareResult
    from evalkit.contamination.benchmarks import Benchmark
    from evalkit.contamination.clean import CleanResult
    from evalkit.contamination.findings import AuditResult
    from evalkit.contamination.semantic.audit import SemanticResult
    from evalkit.contamination.semantic.judge import Judge
    from evalkit.contamination.verify import Verification
    from evalkit.corpora.shards import ShardList
    from evalkit.dedup.against import ItemText
    from evalkit.dedup.dedup import DedupSpec
    from evalkit.reports.contamination import ScoreSplits
    from evalkit.runs.evaluate import RunResult
    from evalkit.runs.spec import RunSpec

EXIT_BAR_NOT_MET = 1
EXIT_USER_ERROR = 2
_TRANSFORMERS = "Transformers in this process"
_SERVING = "Serving"
_CLUSTER = "Checkpoints on a cluster"


class AllCommands(TyperGroup):
    """The commands in the order in which they are used; typer would list those with subcommands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the commands: those that make what the others read come first."""
        return sorted(super().list_commands(ctx), key=lambda name: name not in ("run", "tasks", "audit", "dedup"))


app = Commands(
    cls=AllCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Is B really better than A? Run evaluations, audit the training data, compare with honest statistics.",
    epilog="Start with [bold]evalkit quickstart[/]: a real model, a real comparison, a real audit, in a few minutes.",
)


_MANY = ("--corpus", "--benchmark", "--against", "--rule", "--perplexity", "--run", "--verdicts")
"""Repeatable options that take several values at once: `--corpus a b` is `--corpus a --corpus b`."""


def _repeat_options(args: list[str]) -> list[str]:
    """Repeat an option that takes many values before each of them.

    A shell expands an unquoted glob into several words; without this the second word would be an error.
    """
    repeated: list[str] = []
    current = None
    for position, word in enumerate(args):
        if word.startswith("-") and word != "-":
            current = word if word in _MANY else None
        elif current is not None and args[position - 1] != current:
            repeated.append(current)
        repeated.append(word)
    return repeated


class ManyValues(TyperCommand):
    """A command with options that take many values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, then parse as usual."""
        result: list[str] = super().parse_args(ctx, _repeat_options(args))
        return result


class WithSubcommands(TyperGroup):
    """A command that has subcommands besides: `audit --corpus ...` and `audit show DIR`.

    A subcommand follows right after the command's name, and takes none of its options, not even the required ones.
    """

    allow_extra_args = False
    allow_interspersed_args = True

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Be a mere group of the subcommands when a name comes first."""
        if not args or args[0].startswith("-"):
            return super().make_context(info_name, args, parent, **extra)
        return TyperGroup(name=self.name, commands=dict(self.commands)).make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, then parse as usual."""
        result: list[str] = super().parse_args(ctx, _repeat_options(args))
        return result


class JudgeCommand(WithSubcommands):
    """`judge RUN_A RUN_B --judge MODEL` beside `judge probe`: only the subcommand's own name makes it a group."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Be a mere group of the subcommands when one of their names comes first."""
        if args and args[0] in self.commands:
            return super().make_context(info_name, args, parent, **extra)
        return TyperGroup.make_context(self, info_name, args, parent, **extra)


JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]

_WHERE = "Where the work is done"
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; default: one for each processor.", rich_help_panel=_WHERE),
]
EngineOption = Annotated[
    str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.", rich_help_panel=_WHERE)
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        help="HOST:PORT of the cluster's head; default: auto, the cluster in RAY_ADDRESS or that this machine is in.",
        rich_help_panel=_WHERE,
    ),
]


def _version(value: bool) -> None:
    if value:
        from evalkit import __version__

        typer.echo(f"evalkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    cls=ManyValues,
    epilog="Example: evalkit run --model ./checkpoints/step-1000 --tasks gen_tables,gen_calendar --out runs/step-1000  "
    "A training run on one vLLM server: evalkit run --checkpoints 'out/checkpoint-*' --backend vllm --tasks "
    "gen_tables --out runs/all  On a Ray cluster, one server a GPU: the same with --engine ray --gpus-per-server 1  "
    "Perplexity: evalkit run --model ./step-1000 --perplexity 'held-out/*.zst' --out runs/p",
)
def run(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.yaml]", help="A YAML file with the options below as keys.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint folder, or a name on the Hugging Face hub.")] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(help="Instead of --model: a glob of checkpoint folders, e.g. 'seed*/checkpoint-*' (quote it)."),
    ] = None,
    checkpoint_pattern: Annotated[
        str | None,
        typer.Option(help=r"Where their paths hold step and series: a regex with (?P<step>\d+) and (?P<series>...)."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Task names, comma-separated; globs, groups and tags work (see `evalkit tasks`).")
    ] = None,
    perplexity: Annotated[
        list[str] | None,
        typer.Option(help="Instead of --tasks: text files (globs) to score, in bits per byte by domain."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text (text).")] = None,
    source_column: Annotated[
        str | None, typer.Option(help="Column with a document's domain (source); without it, the file's name.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="New tokens in each window of a long document; default: no overlap.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run directory to write.")] = None,
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder with task definitions of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that the local_* tasks read their files from.")] = None,
    task_seed: Annotated[
        int | None, typer.Option(help="Seed of the generated tasks: a new one is a test set nobody has seen.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Evaluate N items of each task: a seeded random subset.")] = None,
    subset_seed: Annotated[int | None, typer.Option(help="Seed of that subset, the same for all models.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Sample K answers for each item; all are scored.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Run seeds, comma-separated: few-shot draw and sampling.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(help="Worked examples in each prompt.")] = None,
    chat_template: Annotated[
        bool | None, typer.Option("--chat-template", help="Use the model's chat template.")
    ] = None,
    system_instruction: Annotated[str | None, typer.Option(help="System message before each prompt.")] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option(help="Generation settings, e.g. do_sample=true,temperature=0.7.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Contexts per forward pass, or auto.", rich_help_panel=_TRANSFORMERS)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, mps; default: the best there is.", rich_help_panel=_TRANSFORMERS),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto (as stored).")] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="hf (transformers, in this process), vllm (a server started for the run) or openai (a running one).",
            rich_help_panel=_SERVING,
        ),
    ] = None,
    vllm_python: Annotated[
        Path | None, typer.Option(help="Interpreter of the environment with vLLM.", rich_help_panel=_SERVING)
    ] = None,
    vllm_args: Annotated[
        str | None,
        typer.Option(
            help="Engine flags, e.g. '--tensor-parallel-size 4 --max-model-len 8192'.", rich_help_panel=_SERVING
        ),
    ] = None,
    startup_timeout: Annotated[
        float | None, typer.Option(help="Seconds until the server must serve.", rich_help_panel=_SERVING)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(help="The running server; its key is read from OPENAI_API_KEY.", rich_help_panel=_SERVING),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name on that server; default: its first.", rich_help_panel=_SERVING)
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of another tokenizer than the model's own.")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="completions (token ids) or chat (messages, generation only).", rich_help_panel=_SERVING),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests in flight; default: adapts.", rich_help_panel=_SERVING)
    ] = None,
    max_retries: Annotated[
        int | None, typer.Option(help="Further tries of a failed request.", rich_help_panel=_SERVING)
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds for one try.", rich_help_panel=_SERVING)] = None,
    scoring: Annotated[
        str | None,
        typer.Option(help="auto shares the context of an item's choices after a probe; plain never does."),
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(help="File of all answers, to share between runs; default: in the run directory.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="local (checkpoints one after the other, here) or ray (on several servers of a Ray cluster).",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The cluster's address; default: auto.", rich_help_panel=_CLUSTER),
    ] = None,
    servers: Annotated[
        int | None,
        typer.Option(help="Servers at most; default: as many as there is room for.", rich_help_panel=_CLUSTER),
    ] = None,
    gpus_per_server: Annotated[
        int | None,
        typer.Option(
            help="GPUs of one server; default: what --vllm-args ask for, 1 at least, or 0 on a cluster without GPUs.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    cpus_per_server: Annotated[
        int | None,
        typer.Option(
            help="Processors of one server; default: its GPUs' share of the node's, or a whole node's without GPUs.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            parser=parse_margin,
            metavar="M",
            help="Smallest difference that matters (1pp or 0.01: one point), declared before the scores are seen.",
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(help="Shares of bad answers that make a run suspect, e.g. truncated=0.2,empty=0.05."),
    ] = None,
    trust_remote_code: Annotated[
        bool | None, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = None,
    confirm_unsafe_code: Annotated[
        bool | None, typer.Option("--confirm-unsafe-code", help="Allow tasks that execute what the model writes.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a different run in the directory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on tasks and write a run directory.

    A killed run resumes: give the same command again. Options on the command line override those of the YAML file.
    Exit code 1 means that requests failed for good; their items are not scored.
    """
    from evalkit.runs.evaluate import run as evaluate
    from evalkit.runs.spec import make_spec

    given = {
        "model": model,
        "checkpoints": checkpoints,
        "checkpoint_pattern": checkpoint_pattern,
        "tasks": tasks,
        "perplexity": perplexity or None,
        "text_column": text_column,
        "source_column": source_column,
        "stride": stride,
        "out": out,
        "tasks_dir": tasks_dir,
        "data": data,
        "task_seed": task_seed,
        "limit": limit,
        "subset_seed": subset_seed,
        "repeats": repeats,
        "seeds": seeds,
        "num_fewshot": num_fewshot,
        "chat_template": chat_template,
        "system_instruction": system_instruction,
        "gen_kwargs": gen_kwargs,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
        "backend": backend,
        "vllm_python": vllm_python,
        "vllm_args": vllm_args,
        "startup_timeout": startup_timeout,
        "base_url": base_url,
        "served_model": served_model,
        "tokenizer": tokenizer,
        "endpoint": endpoint,
        "concurrency": concurrency,
        "max_retries": max_retries,
        "timeout": timeout,
        "scoring": scoring,
        "journal": journal,
        "engine": engine,
        "ray_address": ray_address,
        "servers": servers,
        "gpus_per_server": gpus_per_server,
        "cpus_per_server": cpus_per_server,
        "margin": margin,
        "health": health,
        "trust_remote_code": trust_remote_code,
        "confirm_unsafe_code": confirm_unsafe_code,
    }
    spec = make_spec(spec_file, {name: value for name, value in given.items() if value is not None})
    if spec.perplexity:
        _perplexity(spec, overwrite=overwrite, as_json=as_json)
        return
    if spec.checkpoints:
        _sweep(spec, overwrite=overwrite, as_json=as_json)
        return
    result = evaluate(spec, overwrite=overwrite)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_run(result)
    if result.n_errors:
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _perplexity(spec: RunSpec, *, overwrite: bool, as_json: bool) -> None:
    """Score text files and print bits per byte by domain."""
    from evalkit.runs.perplexity import perplexity as score

    result = score(spec, overwrite=overwrite)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_frame(result.to_frame(), title=f"{result.name}: {result.directory}")
        if result.n_errors:
            typer.echo(
                f"{result.n_errors} documents are not scored, because requests failed for good. The same command asks "
                "them again."
            )
    if result.n_errors:
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _sweep(spec: RunSpec, *, overwrite: bool, as_json: bool) -> None:
    """Evaluate the checkpoints of a training run and print their scores."""
    from evalkit.runs.sweep import sweep

    swept = sweep(spec, overwrite=overwrite)
    if as_json:
        _print_json(swept.to_dict())
    else:
        _print_frame(swept.to_frame(), title=f"{spec.checkpoints}: {spec.out}")
        typer.echo(f"evalkit trend {spec.out} shows the scores against the step.")
    if swept.failed or any(run.n_errors for _, run in swept.runs):
        raise typer.Exit(EXIT_BAR_NOT_MET)


@app.command(
    name="tasks", epilog="Example: evalkit tasks 'gen_*'   or, with lm-eval's own: evalkit tasks --all 'mmlu*'"
)
def list_tasks(
    pattern: Annotated[str, typer.Argument(help="Show only names that match this glob.")] = "*",
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder with task definitions of your own.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Include lm-eval's own tasks (takes some seconds).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the tasks that can be run and audited by name."""
    import fnmatch

    from evalkit.tasks import list_tasks as find

    found = [
        task
        for task in find((tasks_dir,) if tasks_dir else (), include_lm_eval=everything)
        if fnmatch.fnmatchcase(task.name, pattern)
    ]
    if as_json:
        _print_json([{"name": t.name, "kind": t.kind, "tags": list(t.tags), "path": str(t.path or "")} for t in found])
        return
    table = _table("task", "kind", "tags")
    for task in found:
        table.add_row(task.name, task.kind, ", ".join(task.tags))
    _console().print(table)


audit_commands = Commands("audit")
app.add_typer(audit_commands, name="audit")

_REWRITTEN = "Rewritten items"
SemanticModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub name of the sentence-embedding model; default: all-MiniLM-L6-v2.",
        rich_help_panel=_REWRITTEN,
    ),
]
SemanticSampleOption = Annotated[
    float,
    typer.Option(
        help="Share of the documents to search; items not found in a sample are unknown.", rich_help_panel=_REWRITTEN
    ),
]
JudgeUrlOption = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server that decides on each shortlisted pair; its key is read from OPENAI_API_KEY.",
        rich_help_panel=_REWRITTEN,
    ),
]
JudgeModelOption = Annotated[
    str | None, typer.Option(help="The judge's name on that server.", rich_help_panel=_REWRITTEN)
]


@audit_commands.callback(
    cls=WithSubcommands,
    invoke_without_command=True,
    subcommand_metavar="| COMMAND ...",
    epilog="Example: evalkit audit --corpus 'data/**/*.jsonl.zst' --benchmark gen_tables items.jsonl --out leaks/v3",
)
def audit(
    corpus: Annotated[
        list[str],
        typer.Option(
            help="Corpus: files, folders, globs, addresses (s3://, https://, ...) of JSON lines, also compressed, "
            "Parquet or Arrow files; hf:NAME for a data set."
        ),
    ],
    benchmark: Annotated[
        list[str], typer.Option(help="Task names (also globs), or files of items (id, question, answer, choices).")
    ],
    out: Annotated[Path, typer.Option(help="The audit directory to write.")],
    rule: Annotated[
        list[str] | None, typer.Option(help="Rules by name or YAML file, or all; default: gpt3-clean and llama3.")
    ] = None,
    fuzzy: Annotated[
        bool, typer.Option("--fuzzy", help="Also apply the rule fuzzy: items with inserted, deleted or replaced words.")
    ] = False,
    keep_boilerplate: Annotated[
        bool, typer.Option("--keep-boilerplate", help="Count phrases that many items share, or that are common, too.")
    ] = False,
    fields: Annotated[
        str | None,
        typer.Option(help="Columns of files of items: question=COLUMN,answer=COLUMN, or a benchmark's name."),
    ] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(help="Columns with the text of a document, also nested (messages[].content); default: text."),
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column or field that holds the id of a document, if any.")] = "id",
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder with task definitions of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that the local_* tasks read their files from.")] = None,
    task_seed: Annotated[int | None, typer.Option(help="Seed of the generated tasks, as given to `run`.")] = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only scan every N-th part of the corpus, from the I-th (1 to N), for the same command without this, "
            "which takes what the shares have found: for array jobs.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    allow_bad_rows: Annotated[int, typer.Option(help="Unreadable rows accepted before the exit code is 1.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an audit in the directory.")] = False,
    run: Annotated[
        list[str] | None, typer.Option(help="Run directories: also say what the found items do to their scores.")
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="Also write the corpus here, as the rules say (audit clean has more options).")
    ] = None,
    semantic: Annotated[
        bool, typer.Option("--semantic", help="Also look for rewritten items, as `audit semantic` does.")
    ] = False,
    semantic_model: SemanticModelOption = None,
    semantic_sample: SemanticSampleOption = 1.0,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look for benchmark items in training data.

    Exit code 1 means that the audit is complete but more than --allow-bad-rows rows could not be read; they are
    listed in bad_rows.jsonl.
    """
    from evalkit.contamination.audit import Share, scan_share
    from evalkit.contamination.audit import audit as scan
    from evalkit.contamination.rules import DEFAULT_RULES, FUZZY, load_rules
    from evalkit.corpora.shards import find_shards
    from evalkit.engines import choose
    from evalkit.progress import say

    mine = Share.parse(share) if share else None
    if mine:
        _check_share({"--run": run, "--clean": clean, "--semantic": semantic})
    runs = [Path(one) for one in run or ()]
    if runs:  # before hours of scanning, not after
        from evalkit.reports.inputs import load_run

        for directory in runs:
            load_run(directory)
    rules = load_rules([*(rule or DEFAULT_RULES), *([FUZZY] if fuzzy else [])])
    shards = find_shards(corpus)
    if clean:
        from evalkit.contamination.clean import actions_of, check_target

        actions_of([vars(one) for one in rules])
        check_target(clean, shards, overwrite=overwrite)
    judge = _judge(judge_url, judge_model, concurrency=None)
    _check_semantic(semantic_model, semantic_sample, judge, is_asked_for=semantic)
    looked_for = _benchmarks(benchmark, fields, tasks_dir, data, task_seed)
    place = choose(engine, ray_address, workers)
    options: dict[str, Any] = {
        "text_column": text_column or "text",
        "id_column": id_column,
        "overwrite": overwrite,
        "engine": place,
    }
    if mine:
        _print_share(scan_share(shards, looked_for, rules, out, mine, **options), as_json=as_json)
        return
    result = scan(shards, looked_for, rules, out, keep_boilerplate=keep_boilerplate, **options)
    if not as_json:
        _print_audit(result)
    rewritten = None
    if semantic:
        say(f"the audit is complete; should the search for rewritten items end, `evalkit audit semantic {out}` goes on")
        rewritten = _semantic(out, semantic_model, semantic_sample, judge, place)
        if not as_json:
            _print_semantic(rewritten)
    splits = _score_splits(out, runs) if runs else None
    if splits and not as_json:
        _print_splits(splits)
    cleaned = _clean(out, clean, overwrite=overwrite, engine=place) if clean else None
    if as_json:
        more = {"semantic": rewritten, "score_split": splits, "clean": cleaned}
        _print_json({**result.to_dict(), **{name: one.to_dict() for name, one in more.items() if one}})
    elif cleaned:
        _print_clean(cleaned)
    if result.n_bad_rows > allow_bad_rows:
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _check_share(others: dict[str, Any]) -> None:
    """Refuse options that need a whole audit."""
    from evalkit.errors import SpecError

    for option, given in others.items():
        if given:
            raise SpecError(
                "this needs a whole audit, and --share scans a part of one",
                where=option,
                do="Give it to the command without --share, when all shares are done",
            )


def _check_semantic(model: str | None, sample: float, judge: Judge | None, *, is_asked_for: bool) -> None:
    """Refuse, before anything long, options of the search for rewritten items that cannot be meant."""
    from evalkit.errors import SpecError

    if is_asked_for:
        from evalkit.contamination.semantic.audit import check_options

        check_options(model, sample)
    elif judge or model or sample != 1.0:
        raise SpecError("an option of --semantic is given without it", where="--semantic", do="Give it, too")


@audit_commands.command(
    name="show",
    epilog="Example: evalkit audit show leaks/v3 --rule llama3   One item: evalkit audit show leaks/v3 --item 9f2c41  "
    "One document: evalkit audit show leaks/v3 --document part-0.jsonl.zst:4711",
)
def show_matches(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An audit directory.")],
    item: Annotated[
        str | None, typer.Option(help="Only this item: doc_id, doc_hash, or the beginning of the hash.")
    ] = None,
    benchmark: Annotated[str | None, typer.Option(help="Only items of this benchmark.")] = None,
    rule: Annotated[str | None, typer.Option(help="Only what this rule finds dirty.")] = None,
    document: Annotated[
        str | None, typer.Option(metavar="FILE:ROW", help="Only this document, or (FILE) only this file.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Show at most N; default: all on a terminal, 10 elsewhere.")
    ] = None,
    context: Annotated[int, typer.Option(min=0, help="Characters around what is shared.")] = 300,
) -> None:
    """Show what corpus and benchmark have in common: each document beside the item, the shared text marked.

    The largest shares come first. On a terminal, Enter shows the next, p the previous, q ends. Exit code 1 means that
    a document could not be read, or has changed since the audit.
    """
    from evalkit.contamination.pairs import find_pairs
    from evalkit.contamination.record import open_audit
    from evalkit.contamination.show import Viewer

    audit = open_audit(directory)
    pairs = find_pairs(audit, item=item, benchmark=benchmark, rule=rule, document=document)
    console, is_terminal = _console(), sys.stdin.isatty() and sys.stdout.isatty()
    n_shown = min(len(pairs), n or (len(pairs) if is_terminal else 10))
    viewer = Viewer(audit, pairs, console, context=context)
    if is_terminal:
        viewer.step_through(n_shown)
    else:
        for number in range(n_shown):
            viewer.show(number)
    if not len(pairs):
        typer.echo("nothing: the corpus and the benchmark have no such text in common")
    elif n_shown < len(pairs):
        typer.echo(f"{len(pairs) - n_shown:,} more; --n {len(pairs)} shows all")
    if viewer.n_unreadable:
        raise typer.Exit(EXIT_BAR_NOT_MET)


@audit_commands.command(
    name="clean",
    cls=ManyValues,
    epilog="Example: evalkit audit clean leaks/v3 --to data-v3-clean   Whole documents, by one rule: "
    "evalkit audit clean leaks/v3 --to data-v3-clean --rule llama3 --action drop",
)
def clean_corpus(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An audit directory; its corpus must be there.")],
    to: Annotated[Path, typer.Option(help="The folder to write: new or empty, and outside of the corpus.")],
    rule: Annotated[list[str] | None, typer.Option(help="Rules of the audit that decide; default: all.")] = None,
    action: Annotated[
        str, typer.Option(help="Flagged documents: drop them, cut the matches out, or what each rule says (rule).")
    ] = "rule",
    context: Annotated[int, typer.Option(help="Characters cut on each side of a match.")] = 200,
    min_piece: Annotated[int, typer.Option(help="Pieces with fewer characters are dropped.")] = 200,
    max_pieces: Annotated[int, typer.Option(help="A document that falls into more pieces is dropped.")] = 10,
    pieces: Annotated[
        str | None,
        typer.Option(help="A row for each piece (rows), or one row (join); default: rows where the text is one field."),
    ] = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a clean corpus in --to.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an audited corpus anew without the flagged documents, or with the matches cut out of them.

    Files keep their names, formats and compression; clean.json beside them counts what became of the documents. A
    killed run goes on when the same command is given again.
    """
    from evalkit.contamination.cutting import Cutting
    from evalkit.engines import choose

    result = _clean(
        directory,
        to,
        rules=rule or None,
        action=action,
        cutting=Cutting(context, min_piece, max_pieces),
        pieces=pieces,
        overwrite=overwrite,
        engine=choose(engine, ray_address, workers),
    )
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_clean(result)


def _clean(directory: Path, to: Path, **options: Any) -> CleanResult:
    from evalkit.contamination.clean import clean

    return clean(directory, to, **options)


@audit_commands.command(
    name="verify",
    epilog="Example: evalkit audit verify leaks/v3   All of it: evalkit audit verify leaks/v3 --sample 9999 --hash all",
)
def verify_audit(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An audit directory.")],
    sample: Annotated[int, typer.Option(min=0, help="Matches to check, drawn at random.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another sample.")] = 0,
    hashed: Annotated[
        str, typer.Option("--hash", help="Files whose contents are compared: sampled (with a match), all or none.")
    ] = "sampled",
    as_json: JsonOption = False,
) -> None:
    """Check an audit against its corpus: are the files the same, and do a sample of the matches stand where it says?

    Exit code 1 means that something is not as the audit says.
    """
    from evalkit.contamination.verify import verify

    result = verify(directory, n=sample, seed=seed, hashed=hashed)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_verification(result)
    if not result.ok:
        raise typer.Exit(EXIT_BAR_NOT_MET)


@audit_commands.command(
    "judge", cls=ManyValues, epilog="Example: evalkit audit judge leaks/v3 --rule palm mine.yaml --out leaks/v3-palm"
)
def judge_again(
    directory: Annotated[Path, typer.Argument(help="A complete audit.")],
    rule: Annotated[list[str], typer.Option(help="Rules by name or YAML file, or all.")],
    out: Annotated[
        Path | None, typer.Option(help="The audit directory to write; default: what is there is replaced.")
    ] = None,
    keep_boilerplate: Annotated[
        bool, typer.Option("--keep-boilerplate", help="Count phrases that many items share, or that are common, too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an audit in --out.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Apply other rules to what an audit has recorded, without reading the corpus again."""
    from evalkit.contamination.audit import judge
    from evalkit.contamination.rules import load_rules

    result = judge(directory, load_rules(rule), out, keep_boilerplate=keep_boilerplate, overwrite=overwrite)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_audit(result)


@audit_commands.command(
    "semantic",
    epilog="Example: evalkit audit semantic leaks/v3   With a judge: evalkit audit semantic leaks/v3 --judge-url "
    "http://localhost:8000 --judge-model qwen3-32b",
)
def find_rewritten(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A complete audit; its corpus must be there.")],
    semantic_model: SemanticModelOption = None,
    semantic_sample: SemanticSampleOption = 1.0,
    judge_url: JudgeUrlOption = None,
    judge_model: JudgeModelOption = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Questions in flight; default: adapts.")] = None,
    workers: WorkersOption = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find an audit's items in other words, by rare words, sentence embeddings and perhaps a judge.

    What is found is added to the audit as the rule `semantic`. A killed search goes on when the command is given again.
    Exit code 1 means that the judge did not answer on some pairs; the same command asks again.
    """
    from evalkit.engines import choose

    judge = _judge(judge_url, judge_model, concurrency=concurrency)
    place = choose(engine, ray_address, workers)
    result = _semantic(directory, semantic_model, semantic_sample, judge, place)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_semantic(result)
    if result.n_unclear:
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _semantic(directory: Path, model: str | None, sample: float, judge: Judge | None, engine: Any) -> SemanticResult:
    from evalkit.contamination.semantic.audit import audit_semantic

    return audit_semantic(directory, model=model, sample=sample, judge=judge, engine=engine)


def _judge(url: str | None, model: str | None, *, concurrency: int | None) -> Judge | None:
    """The judge model that the options name, if any; it must answer now."""
    from evalkit.errors import SpecError

    if url is None and model is None:
        return None
    if url is None or model is None:
        raise SpecError("a judge needs both an address and a name", where="--judge-url, --judge-model", do="Give both")
    from functools import partial

    from evalkit.contamination.semantic.judge import Judge
    from evalkit.runs.chat import ask_all, check_model

    check_model(url, model)
    return Judge(f"{model} at {url}", partial(ask_all, base_url=url, model=model, concurrency=concurrency))


def _print_semantic(result: SemanticResult) -> None:
    """Print which items are in the corpus in other words."""
    from rich.markup import escape

    table = _table("benchmark", "rule", "items", "dirty", "unknown", "too short", "documents", title="Rewritten items")
    for one in result.summaries:
        counts = (one.n_items, one.n_dirty, one.n_unknown, one.n_too_short, one.n_documents)
        table.add_row(escape(safe(one.benchmark)), "semantic", *(f"{n:,}" for n in counts))
    console = _console()
    console.print(table)
    console.print(
        f"{result.n_searched:,} of {result.n_documents:,} documents searched, {result.n_windows:,} windows, "
        f"{result.n_kept:,} with an item's rare words, {result.n_embedded:,} different ones embedded, "
        f"{result.seconds:.1f} s",
        markup=False,
    )
    if result.sample < 1:
        console.print("only a sample was searched: items that are not found in it are unknown, not clean", markup=False)
    if result.n_judged:
        console.print(
            f"{result.n_judged:,} pairs judged; on {result.n_unclear:,} the judge gave no clear answer", markup=False
        )


@audit_commands.command(cls=ManyValues, epilog="Example: evalkit audit score leaks/v3 --run runs/base runs/step-2000")
def score(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An audit directory; the corpus is not needed.")],
    run: Annotated[list[str], typer.Option(help="Run directories.")],
    rule: Annotated[list[str] | None, typer.Option(help="Rules of the audit; default: all.")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric, or metric,filter; default: each task's first.")] = None,
    control: Annotated[
        Path | None,
        typer.Option(help="Run of a model that has not seen the corpus: its scores are taken off, item by item."),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="Of the significant thresholds, choose the one of largest z (ConTAM) or gain (Llama 3).")
    ] = "z",
    confidence_level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    figure: Annotated[Path | None, typer.Option(help="Draw the gain over the threshold: .svg or .png.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the items that an audit found do to the scores of runs.

    The result is also written to score_split.json in the audit directory.
    """
    from evalkit.reports.contamination import write_split_figure

    splits = _score_splits(
        directory,
        [Path(one) for one in run],
        rules=rule or None,
        metric=metric,
        control=control,
        criterion=criterion,
        confidence_level=confidence_level,
    )
    if figure:
        write_split_figure(splits, figure)
    if as_json:
        _print_json(splits.to_dict())
    else:
        _print_splits(splits)


def _score_splits(directory: Path, runs: list[Path], **options: Any) -> ScoreSplits:
    """Split the runs' scores by an audit, and write the result beside it."""
    from evalkit.reports.contamination import score_splits, write_splits

    splits = score_splits(runs, directory, **options)
    write_splits(splits, directory)
    return splits


def _print_splits(splits: ScoreSplits) -> None:
    from evalkit.reports.contamination import render_splits

    render_splits(splits, _console())


def _benchmarks(
    names: list[str],
    fields: str | None,
    tasks_dir: Path | None,
    data: Path | None,
    seed: int | None,
    option: str = "--benchmark",
) -> list[Benchmark]:
    """Load benchmarks in the order given: files of items, and tasks by name or by the name of their benchmark."""
    from evalkit.contamination.benchmarks import from_file, from_task, is_file_benchmark, parse_fields, tasks_of
    from evalkit.errors import SpecError
    from evalkit.tasks import list_tasks as find
    from evalkit.tasks import load_tasks

    if not all(name.strip() for name in names):
        raise SpecError("an empty name was given", where=option, do="Name tasks, or files of items")
    mapping = None if fields is None else parse_fields(fields)
    files = [from_file(Path(name), fields=mapping) for name in names if is_file_benchmark(name)]
    if mapping is not None and not files:
        raise SpecError(f"no {option} is a file of items", where="--fields", do="Leave it out")
    given = [part for name in names if not is_file_benchmark(name) for part in name.split(",") if part]
    if not given:
        return files
    tasks_dirs = (tasks_dir,) if tasks_dir else ()
    known = {task.name for task in find(tasks_dirs)}  # a user's task comes before our names
    task_names = list(dict.fromkeys(task for name in given for task in ((name,) if name in known else tasks_of(name))))
    loaded = load_tasks(task_names, tasks_dirs=tasks_dirs, data_dir=data, task_seed=seed)
    return files + [from_task(name, task) for name, task in loaded.tasks.items()]


@app.command(
    cls=ManyValues,
    epilog="Example: evalkit dedup --corpus 'data/**/*.jsonl.zst' --out dups/v3 --write data-v3-dedup  With more files "
    "later: the same with --overwrite, which compares only what is new  Leaked items: evalkit dedup --corpus "
    "'data/**/*.jsonl.zst' --against mmlu,gsm8k --out dups/leaks, then evalkit compare A B --audit dups/leaks",
)
def dedup(
    corpus: Annotated[
        list[str],
        typer.Option(
            help="Corpora: files, folders, globs, addresses (s3://, https://, ...) of JSON lines, also compressed, "
            "Parquet or Arrow files; hf:NAME for a data set. Several are compared with each other, too."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    threshold: Annotated[
        float, typer.Option(help="Jaccard similarity of their shingles from which documents are near duplicates.")
    ] = 0.8,
    num_perm: Annotated[int, typer.Option(help="Permutations: values of a signature.")] = 128,
    shingle: Annotated[str, typer.Option(help="Shingles: words:N or characters:N.")] = "words:5",
    hash_name: Annotated[
        str, typer.Option("--hash", help="Hash of shingles: sha1, as datasketch's default, or xxh32, which is faster.")
    ] = "sha1",
    bands: Annotated[
        str | None,
        typer.Option(
            help="BANDSxROWS, or datasketch: what its MinHashLSH would choose; default: as it, but with a missed pair "
            "weighing 99 times one that is compared in vain."
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Believe the signatures' estimate; do not compare the shingles.")
    ] = False,
    keep: Annotated[str, typer.Option(help="Of each cluster: the first document, or the longest.")] = "first",
    no_split: Annotated[
        bool, typer.Option("--no-split", help="Leave groups whole in which only a chain connects documents.")
    ] = False,
    substrings: Annotated[
        int | None, typer.Option(metavar="N", help="Also find passages of N words or more that several documents have.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare with the items of these benchmarks instead: task names, or files of items, as `audit` takes "
            "them."
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Also write the corpus here, without the documents that are not kept.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw what was found, into an .svg or .png file.")] = None,
    text_column: Annotated[
        list[str] | None,
        typer.Option(help="Columns with the text of a document, also nested (messages[].content); default: text."),
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column or field that holds the id of a document, if any.")] = "id",
    fields: Annotated[
        str | None,
        typer.Option(help="Columns of files of items: question=COLUMN,answer=COLUMN, or a benchmark's name."),
    ] = None,
    tasks_dir: Annotated[Path | None, typer.Option(help="A folder with task definitions of your own.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder that the local_* tasks read their files from.")] = None,
    task_seed: Annotated[int | None, typer.Option(help="Seed of the generated tasks, as given to `run`.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes; default: one for each processor, or one for a small corpus.", rich_help_panel=_WHERE
        ),
    ] = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    memory: Annotated[
        int,
        typer.Option(min=64, help="MiB of documents and pairs that each process holds at a time, beside its programs."),
    ] = 1024,
    allow_bad_rows: Annotated[int, typer.Option(help="Unreadable rows accepted before the exit code is 1.")] = 0,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace an earlier result. When files were added, only these are signed, and compared with all.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Find exact and near duplicates in training data, and leaked benchmark items.

    Near duplicates are found by MinHash, with datasketch's signatures, and compared in full. A killed run goes on when
    the same command is given again. Exit code 1 means that all is done but more than --allow-bad-rows rows could not be
    read; they are listed in bad_rows.jsonl.
    """
    from evalkit.corpora.shards import find_shards
    from evalkit.dedup.dedup import DedupSpec
    from evalkit.dedup.lsh import parse_bands
    from evalkit.dedup.shingles import parse_shingling
    from evalkit.dedup.signatures import MinHashing
    from evalkit.engines import choose

    spec = DedupSpec(
        MinHashing(parse_shingling(shingle), num_perm, hash_name=hash_name),  # type: ignore[arg-type]
        threshold,
        parse_bands(bands, threshold, num_perm) if bands else None,
        verify=not no_verify,
        keep=keep,  # type: ignore[arg-type]
        split=not no_split,
    )
    # None: of this machine's processes as many as the corpus is large.
    place = choose(engine, ray_address, workers) if workers or engine != "local" or ray_address else None
    if place:
        place.shares_files(out)
    options: dict[str, Any] = {
        "text_column": text_column or "text",
        "id_column": id_column,
        "overwrite": overwrite,
        "engine": place,
    }
    if against:
        if write or substrings or figure:
            from evalkit.errors import SpecError

            raise SpecError(
                "it compares the corpus with benchmarks, not with itself",
                where="--against",
                do="Leave out --write, --substrings and --figure, or give them to a run of their own",
            )
        items = _item_texts(_benchmarks(against, fields, tasks_dir, data, task_seed, "--against"))
        n_bad_rows = _dedup_against(find_shards(corpus), items, out, spec, options, memory << 20, as_json=as_json)
    else:
        n_bad_rows = _dedup(
            find_shards(corpus), out, spec, options, memory << 20, substrings, write, figure, as_json=as_json
        )
    if n_bad_rows > allow_bad_rows:
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _dedup_against(
    shards: ShardList,
    items: list[ItemText],
    out: Path,
    spec: DedupSpec,
    options: dict[str, Any],
    memory_bytes: int,
    *,
    as_json: bool,
) -> int:
    """Compare a corpus with benchmarks and print the result; return how many rows could not be read."""
    from evalkit.dedup.against import against
    from evalkit.reports.duplicates import render_against

    result = against(shards, items, out, spec, **options, memory_bytes=memory_bytes)
    if as_json:
        _print_json(result.to_dict())
    else:
        render_against(result, _console())
    return result.n_bad_rows


def _dedup(
    shards: ShardList,
    out: Path,
    spec: DedupSpec,
    options: dict[str, Any],
    memory_bytes: int,
    substrings: int | None,
    write: Path | None,
    figure: Path | None,
    *,
    as_json: bool,
) -> int:
    """Compare a corpus with itself and print each result as it comes; return how many rows could not be read."""
    from evalkit.corpora.layout import check_apart
    from evalkit.dedup.dedup import dedup
    from evalkit.reports import duplicates

    # What cannot be done is told before the work.
    if figure:
        from evalkit.reports.figures import check_figure_path

        check_figure_path(figure)
    if write:
        check_apart(write, shards)
    result = dedup(shards, out, spec, **options, memory_bytes=memory_bytes)
    printed, console = result.to_dict(), _console()
    if not as_json:
        duplicates.render_duplicates(result, console)
    if figure:
        duplicates.write_duplicates_figure(result, figure)
    if substrings is not None:
        from evalkit.dedup.substrings import find_substrings

        passages = find_substrings(shards, out, substrings, **options)
        printed["substrings"] = passages.to_dict()
        if not as_json:
            duplicates.render_substrings(passages, substrings, console)
    if write:
        from evalkit.dedup.keep import write_kept

        files = write_kept(out, shards, write, **options)
        printed["written"] = list(map(str, files))
        if not as_json:
            n_kept = result.n_documents - result.n_removed
            console.print(f"written: {n_kept:,} documents in {len(files):,} files to {write}", markup=False)
    if as_json:
        _print_json(printed)
    return result.n_bad_rows


def _item_texts(benchmarks: list[Benchmark]) -> list[ItemText]:
    """Of each item its question, and where it has more than that, all of it."""
    from evalkit.contamination.benchmarks import ANSWER, QUESTION
    from evalkit.dedup.against import ItemText

    found = []
    for benchmark in benchmarks:
        for item in benchmark.items:
            question = item.fields.get(QUESTION)
            others = {text for name, text in item.fields.items() if name != ANSWER}
            # The answer to a multiple-choice question is one of the choices.
            whole = "\n".join(text for name, text in item.fields.items() if name != ANSWER or text not in others)
            if question:
                found.append(ItemText(benchmark.name, item.doc_hash, QUESTION, question))
            if whole and whole != question:
                found.append(ItemText(benchmark.name, item.doc_hash, "whole", whole))
    return found


RunA = Annotated[
    Path,
    typer.Argument(metavar="A", help="The baseline: a run directory, lm-eval's or inspect's results, or a table."),
]
RunB = Annotated[Path, typer.Argument(metavar="B", help="The challenger, likewise.")]
AuditOption = Annotated[
    Path | None, typer.Option(help="Directory of audit or dedup --against: compare also on the clean items.")
]
RuleOption = Annotated[str | None, typer.Option(help="The rule that says what is clean; default: the audit's first.")]
MetricOption = Annotated[str | None, typer.Option(help="Metric, or metric,filter; default: each task's first.")]
LevelOption = Annotated[float, typer.Option(help="Level of the intervals.")]
MarginOption = Annotated[
    float | None,
    typer.Option(
        parser=parse_margin,
        metavar="M",
        help="Smallest difference that matters (1pp or 0.01: one point); default: the one in the runs' specs.",
    ),
]
SlicesOption = Annotated[str | None, typer.Option(help="Also compare by the values of this column of the documents.")]
ClusterOption = Annotated[
    str | None, typer.Option(help="Items with the same value of this column of the documents share a source.")
]
ColumnsOption = Annotated[
    str | None, typer.Option(help="Names of a table's columns: item=question_id,score=correct, also task, seed, ...")
]
SequentialOption = Annotated[
    bool, typer.Option("--sequential", help="Also look item by item: stopping as soon as it is clear is allowed for.")
]
UnpairedOption = Annotated[
    bool, typer.Option("--unpaired", help="Take the items as different ones, also where both answered the same.")
]
PromptsOption = Annotated[
    bool, typer.Option("--allow-different-prompts", help="Compare although the prompts differ (it is stated).")
]


@app.command(
    epilog="Example: evalkit compare runs/base runs/quantised --audit leaks/data-v3  By subject, with a margin of half "
    "a point: evalkit compare runs/base runs/new --slices subject --margin 0.5pp  Of others' results: evalkit compare "
    "results/llama logs/2026-01_gsm8k.eval"
)
def compare(
    run_a: RunA,
    run_b: RunB,
    audit: AuditOption = None,
    rule: RuleOption = None,
    metric: MetricOption = None,
    confidence_level: LevelOption = 0.95,
    margin: MarginOption = None,
    slices: SlicesOption = None,
    cluster: ClusterOption = None,
    columns: ColumnsOption = None,
    sequential: SequentialOption = False,
    unpaired: UnpairedOption = False,
    allow_different_prompts: PromptsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether B is better than A on the items that both answered.

    The verdict is one of: better, worse, equivalent within the margin, non-inferior, inconclusive.
    """
    from evalkit.reports.comparison import compare as join
    from evalkit.reports.contamination import score_splits
    from evalkit.reports.terminal import render

    comparison = join(
        run_a,
        run_b,
        audit=audit,
        rule=rule,
        metric=metric,
        confidence_level=confidence_level,
        margin=margin,
        slices=slices,
        cluster=cluster,
        columns=_columns(columns),
        sequential=sequential,
        unpaired=unpaired,
        allow_different_prompts=allow_different_prompts,
    )
    splits = audit and score_splits(
        [run_a, run_b],
        audit,
        rules=[comparison.rule or ""],
        tasks=[task.task for task in comparison.tasks],
        metric={task.task: (task.metric, task.filter) for task in comparison.tasks},
        confidence_level=confidence_level,
    )
    if as_json:
        _print_json({**comparison.to_dict(), **({"score_split": splits.to_dict()} if splits else {})})
    else:
        render(comparison, _console())
        if splits:
            _print_splits(splits)


@app.command(
    epilog="Example: evalkit report runs/base runs/quantised --audit leaks/data-v3 --margin 1pp -o report.html"
)
def report(
    run_a: RunA,
    run_b: RunB,
    others: Annotated[
        list[Path] | None, typer.Argument(metavar="[C ...]", help="Further runs: all are ranked together.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="What to write: .html (a page), .ipynb (a notebook), .md or .json.")
    ] = Path("report.html"),
    audit: AuditOption = None,
    judge: Annotated[
        Path | None, typer.Option(help="What `evalkit judge --out` wrote, or a table of verdicts.")
    ] = None,
    judge_labels: Annotated[Path | None, typer.Option(help="Human labels of some of the judge's pairs.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder with the runs of a training run's checkpoints: scores over steps.")
    ] = None,
    rule: RuleOption = None,
    metric: MetricOption = None,
    confidence_level: LevelOption = 0.95,
    margin: MarginOption = None,
    slices: SlicesOption = None,
    cluster: ClusterOption = None,
    columns: ColumnsOption = None,
    sequential: SequentialOption = False,
    allow_different_prompts: PromptsOption = False,
) -> None:
    """Write the significance report: whether B is better, what that rests on, and how to repeat it."""
    from evalkit.reports.significance import check_out, with_evidence, write_report

    check_out(out)
    made, collect = with_evidence(
        run_a,
        run_b,
        *(others or ()),
        audit=audit,
        judge=judge,
        judge_labels=judge_labels,
        checkpoints=checkpoints,
        rule=rule,
        metric=metric,
        confidence_level=confidence_level,
        margin=margin,
        slices=slices,
        cluster=cluster,
        columns=_columns(columns),
        sequential=sequential,
        allow_different_prompts=allow_different_prompts,
    )
    write_report(made, out, collect)
    typer.echo(out.resolve().as_uri())


@app.command(
    epilog="Example: evalkit gate runs/main runs/candidate --rule 'not worse by 1pp on gsm8k' --rule 'better on clean "
    "mmlu*' --junit gate.xml --summary gate.md"
)
def gate(
    run_a: RunA,
    run_b: RunB,
    rules: Annotated[
        list[str],
        typer.Option(
            "--rule",
            help="'not worse by 1pp on TASK', 'better [by 1pp] on TASK', 'equivalent within 1pp on TASK'; TASK is a "
            "name, a glob, 'overall', or one of these after 'clean'; without 'on TASK' it is of 'overall'.",
        ),
    ],
    audit: AuditOption = None,
    audit_rule: Annotated[str | None, typer.Option(help="Which rule of the audit says what is clean.")] = None,
    metric: MetricOption = None,
    confidence_level: LevelOption = 0.95,
    columns: ColumnsOption = None,
    allow_different_prompts: PromptsOption = False,
    allow_suspect: Annotated[
        bool, typer.Option("--allow-suspect", help="Believe runs that their health check found suspect.")
    ] = False,
    allow_dropped: Annotated[
        bool,
        typer.Option("--allow-dropped", help="Go by what both runs have scored; else the rest counts at its worst."),
    ] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the results as JUnit XML here.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write a Markdown summary for a pull request here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold B against rules, for CI. Exit code 0: all are met; 1: one is broken; 3: one is not shown either way.

    A rule is met when the interval shows it, broken when the interval shows the opposite, and else not shown: then more
    items are needed. Suspect runs, and tasks that were not compared, show nothing.
    """
    from evalkit.files import write_text
    from evalkit.reports.comparison import compare as join
    from evalkit.reports.gate import check_rules, parse_rule, render_gate, write_junit
    from evalkit.reports.inputs import load_run

    parsed = [parse_rule(rule) for rule in rules]
    names = _columns(columns)
    baseline = load_run(run_a, names)
    comparison = join(
        baseline,
        run_b,
        audit=audit,
        rule=audit_rule,
        metric=metric,
        confidence_level=confidence_level,
        columns=names,
        allow_different_prompts=allow_different_prompts,
    )
    result = check_rules(
        comparison, parsed, tasks=baseline.tasks, allow_suspect=allow_suspect, allow_dropped=allow_dropped
    )
    if junit:
        write_junit(result, junit)
    if summary:
        write_text(summary, named(result.to_markdown()))
    if as_json:
        _print_json(result.to_dict())
    else:
        render_gate(result, _console())
    if result.exit_code:
        raise typer.Exit(result.exit_code)


@app.command(epilog="Example: evalkit view runs")
def view(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with runs, audits and reports, at any depth.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """List the runs and audits under a folder, and serve their pages on this machine only, to whoever has the key."""
    from contextlib import ExitStack

    from evalkit.reports.view import doorway, serve

    with ExitStack() as stack:

        def ready(address: str) -> None:
            typer.echo(f"{address}\n(Ctrl-C ends it)")
            if open_browser:
                typer.launch(stack.enter_context(doorway(address)))

        serve(directory, port=port, ready=ready)


@app.command(
    epilog="Examples: 3 points, item differences of variance 1/9: evalkit power --effect 0.03 --variance 0.1111  Right "
    "or wrong, 12% of items differ, 1,000 items: evalkit power --effect 0.02 --discordant 0.12 --items 1000  From a "
    "pilot: evalkit power --effect 0.02 --pilot runs/base runs/new --figure power.svg"
)
def power(
    effect: Annotated[float, typer.Option(help="The true difference to be found (0.01: one point).")],
    discordant: Annotated[
        float | None, typer.Option(help="Share of items that only one of the models gets right.")
    ] = None,
    score: Annotated[
        float | None, typer.Option(help="Instead, with --correlation: A's share of right answers.")
    ] = None,
    correlation: Annotated[float | None, typer.Option(help="... the correlation of both models' over items.")] = None,
    variance: Annotated[float | None, typer.Option(help="Instead: variance over items of the true difference.")] = None,
    pilot: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Instead: two runs of a few items to estimate from.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Of the pilot: metric, or metric,filter.")] = None,
    within_a: Annotated[float, typer.Option(help="Variance of one answer of A to the same item, on average.")] = 0.0,
    within_b: Annotated[float, typer.Option(help="The same of B.")] = 0.0,
    repeats_a: Annotated[int, typer.Option(min=1, help="Answers of A to each item.")] = 1,
    repeats_b: Annotated[int, typer.Option(min=1, help="Answers of B to each item.")] = 1,
    cluster_size: Annotated[float, typer.Option(help="Items that share a source, on average.")] = 1.0,
    cluster_cv: Annotated[float, typer.Option(help="Standard deviation of these sizes by their mean.")] = 0.0,
    icc: Annotated[float, typer.Option(help="Intraclass correlation of the differences within a source.")] = 0.0,
    items: Annotated[str | None, typer.Option(help="Numbers of items to ask about, comma-separated.")] = None,
    target_power: Annotated[float, typer.Option("--power", help="Chance of finding the effect.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Size of the two-sided test.")] = 0.05,
    margin: Annotated[
        float | None,
        typer.Option(parser=parse_margin, metavar="M", help="Also say how many items show equivalence within this."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw power over items: .svg or .png.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how many items a comparison needs, what a number of items can find, and how a significant result misleads.

    Type M: how many times too large significant differences are on average. Type S: how often they have the wrong sign.
    The pilot's own difference is not used: power for it would only repeat its p value.
    """
    from evalkit.errors import SpecError
    from evalkit.reports.power import answer, design_of, pilot_designs, render_power, write_power_figure

    try:
        numbers = [int(part) for part in (items or "").split(",") if part.strip()]
    except ValueError:
        raise SpecError(f"'{items}' are no numbers of items", where="--items", do="Give such as 500,1000") from None
    asked: dict[str, Any] = {
        "discordant": discordant, "score": score, "correlation": correlation, "variance": variance,
        "within_a": within_a, "within_b": within_b, "repeats_a": repeats_a, "repeats_b": repeats_b,
        "cluster_size": cluster_size, "cluster_cv": cluster_cv, "icc": icc,
    }  # fmt: skip
    options: dict[str, Any] = {"items": numbers, "power": target_power, "alpha": alpha, "margin": margin}
    if pilot is None:
        design, share = design_of(effect, **asked)
        answers = [answer(effect, design, discordant=share, **options)]
    elif any(value is not None for value in (discordant, score, correlation, variance)):
        raise SpecError("the pilot says how much items vary", where="--pilot", do="Leave out the other")
    else:
        answers = [
            answer(effect, design, name=task, warnings=warnings, **options)
            for task, design, warnings in pilot_designs(*pilot, metric)
        ]
    if figure:
        write_power_figure(answers, figure)
    if as_json:
        _print_json([one.to_dict() for one in answers])
    else:
        render_power(answers, _console())


judge_commands = Commands("judge")
app.add_typer(judge_commands, name="judge")
_JUDGE = "The judge"
JudgeOption = Annotated[
    str | None,
    typer.Option("--judge", help="The judge: a checkpoint folder, a hub name, or its name on --base-url."),
]
JudgeBackendOption = Annotated[
    str | None,
    typer.Option(
        help="hf (in this process), vllm (a server started for it) or openai (--base-url).", rich_help_panel=_JUDGE
    ),
]
JudgeBaseUrlOption = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server with the judge; its key is read from OPENAI_API_KEY.", rich_help_panel=_JUDGE
    ),
]
JudgeEndpointOption = Annotated[
    str | None,
    typer.Option(
        help="completions (it chooses by log-probabilities; needs its tokenizer) or chat (it writes one of "
        "the labels where the server can hold it to them, else its text is parsed).",
        rich_help_panel=_JUDGE,
    ),
]
JudgeTokenizerOption = Annotated[
    str | None, typer.Option(help="Folder or hub name of the judge's tokenizer.", rich_help_panel=_JUDGE)
]
JudgeDtypeOption = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16 or auto.", rich_help_panel=_JUDGE)
]
JudgeVllmPythonOption = Annotated[
    Path | None, typer.Option(help="Interpreter of the environment with vLLM.", rich_help_panel=_JUDGE)
]
JudgeVllmArgsOption = Annotated[str | None, typer.Option(help="Engine flags of vLLM.", rich_help_panel=_JUDGE)]
JudgeReasonsOption = Annotated[
    bool, typer.Option("--reasons", help="Let the judge write before its verdict, instead of choosing a label.")
]
JudgeSmallestOption = Annotated[
    float, typer.Option(help="Smallest position bias that matters, as a proportion (0.1: ten points).")
]


@judge_commands.callback(
    cls=JudgeCommand,
    invoke_without_command=True,
    subcommand_metavar="| probe ...",
    epilog="Example: evalkit judge runs/base runs/step-2000 --judge ./judge-model --out judged/step-2000  Verdicts of "
    "others: evalkit judge --verdicts judgements.jsonl",
)
def judge(
    context: typer.Context,
    run_a: Annotated[
        Path | None, typer.Argument(metavar="[A]", help="A run directory, or a file of questions and answers.")
    ] = None,
    run_b: Annotated[Path | None, typer.Argument(metavar="[B]", help="Another, to the same questions.")] = None,
    judge_model: JudgeOption = None,
    out: Annotated[Path | None, typer.Option(help="The directory to write; a killed judging resumes in it.")] = None,
    verdicts: Annotated[
        list[Path] | None,
        typer.Option(help="Audit these verdicts instead: JSON, JSON lines, CSV, Parquet, or a judging's directory."),
    ] = None,
    verdict_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="Their format: named, alpaca_eval, mt_bench, llmbar, arena_hard, ...; default: found."
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Their names of our columns, e.g. winner=choice,pair_id=question_id.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Human labels: pair_id (or doc_hash) and label (a, b, tie); also several raters."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(help="JUDGE=MODEL: answers of this model are the judge's own (its family); repeatable."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="pairwise, pairwise-reference, rating, rubric, or a YAML file like these.")
    ] = "pairwise",
    repeats: Annotated[
        float, typer.Option(help="Share of pairs to ask again in both orders: the judge's noise.")
    ] = 0.1,
    limit: Annotated[int | None, typer.Option(help="Judge N pairs: a seeded random subset.")] = None,
    seed: Annotated[int, typer.Option(help="Of that subset, and of which pairs are repeated.")] = 0,
    reasons: JudgeReasonsOption = False,
    max_tokens: Annotated[int, typer.Option(help="Room for the judge's text.")] = 1024,
    smallest_bias: JudgeSmallestOption = 0.1,
    backend: JudgeBackendOption = None,
    base_url: JudgeBaseUrlOption = None,
    endpoint: JudgeEndpointOption = None,
    tokenizer: JudgeTokenizerOption = None,
    dtype: JudgeDtypeOption = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps.", rich_help_panel=_JUDGE)] = None,
    vllm_python: JudgeVllmPythonOption = None,
    vllm_args: JudgeVllmArgsOption = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests in flight.", rich_help_panel=_JUDGE)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another judging in the directory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare answers of A and B with a judge model, or audit verdicts, and measure the judge's biases.

    Every pair is judged in both orders. The judge's position bias is told from its noise, and who wins is said after
    both orders, at equal length, and with human labels if there are any.
    """
    from evalkit.errors import SpecError
    from evalkit.judges.audit import audit as audit_verdicts
    from evalkit.judges.verdicts import Collected, read_labels, read_verdicts
    from evalkit.reports.judging import render_audit, render_collected, render_judgement

    collected: Collected | None = None
    judgement = None
    _refuse_idle(context, is_judging=not verdicts)
    if verdicts:
        collected = read_verdicts(verdicts, kind=verdict_format, columns=_columns(columns))
        table = collected.table
    else:
        if run_a is None or run_b is None or judge_model is None or out is None:
            raise SpecError(
                "two runs, a judge and a directory to write are needed",
                where="evalkit judge",
                do="Give A B --judge MODEL --out DIR, or --verdicts FILE",
            )
        from evalkit.judges.answers import pair_answers, read_answers
        from evalkit.judges.judging import JudgeSpec, judge_pairs
        from evalkit.judges.prompts import load_prompt

        engine = _judge_engine(
            judge_model, out, backend=backend, base_url=base_url, endpoint=endpoint, tokenizer=tokenizer, dtype=dtype,
            device=device, vllm_python=vllm_python, vllm_args=vllm_args, concurrency=concurrency,
        )  # fmt: skip
        spec = JudgeSpec(engine, load_prompt(prompt), repeats, reasons, max_tokens, seed)
        pairs = pair_answers(read_answers(run_a), read_answers(run_b), limit=limit, seed=seed)
        judgement = judge_pairs(spec, pairs, overwrite=overwrite)
        table = judgement.table
    human = read_labels(labels) if labels else None
    families: dict[str, list[str]] = {}
    for one in own or []:
        name, separator, model = one.rpartition("=")
        if not separator or not name:
            raise SpecError(f"'{one}' is no JUDGE=MODEL", where="--own", do="Give such as --own gpt-4=gpt-4-turbo")
        families.setdefault(name, []).append(model)
    found = audit_verdicts(table, labels=human, families=families, smallest_bias=smallest_bias)
    if as_json:
        read = None
        if collected is not None:
            read = {
                "formats": dict(collected.formats),
                "n_rows": collected.n_rows,
                "counts": collected.counts(),
                "troubles": [vars(one) for one in collected.troubles],
            }
        _print_json({"read": read, "judging": judgement.to_dict() if judgement else None, "audit": found.to_dict()})
    else:
        console = _console()
        if collected is not None:
            render_collected(collected, console)
        if judgement is not None:
            render_judgement(judgement, console)
        render_audit(found, console)
    if judgement is not None and judgement.why_failed.get("request failed"):
        raise typer.Exit(EXIT_BAR_NOT_MET)


def _refuse_idle(context: typer.Context, *, is_judging: bool) -> None:
    """Refuse what was given and would do nothing: what judges beside verdicts, what reads them where there are none."""
    from evalkit.errors import SpecError

    reading = {"verdicts", "verdict_format", "columns"}
    for one in context.command.params:
        name = str(one.name)
        idle = name in reading if is_judging else name not in reading | {"labels", "own", "smallest_bias", "as_json"}
        source = context.get_parameter_source(name)
        if idle and source is not None and source.name == "COMMANDLINE":
            where = one.opts[0] if one.opts[0].startswith("-") else "A, B"
            if is_judging:
                raise SpecError("there are no verdicts to read", where=where, do="Leave it out, or give --verdicts")
            raise SpecError("verdicts are given, so nothing is judged", where=where, do="Leave it out, or --verdicts")


def _judge_engine(model: str, out: Path, *, base_url: str | None, backend: str | None, **given: Any) -> RunSpec:
    """The engine of a judge, from the options that were given."""
    from evalkit.errors import SpecError
    from evalkit.runs.spec import make_spec

    if base_url is not None:
        if backend not in (None, "openai"):
            raise SpecError("--base-url is a running server", where=f"--backend {backend}", do="Leave out --backend")
        backend = "openai"
        given["base_url"] = base_url
        # Without its tokenizer nobody can choose by log-probabilities; a chat server needs none.
        local = Path(model).expanduser().is_dir() or given.get("tokenizer")
        given["endpoint"] = given.get("endpoint") or ("completions" if local else "chat")
        given["served_model"] = None if Path(model).expanduser().is_dir() else model
    values = {"model": model, "out": out, "backend": backend, "tasks": "judge", **given}
    return make_spec(None, {name: value for name, value in values.items() if value is not None})


@judge_commands.command(epilog="Example: evalkit judge probe --judge ./judge-model --out judged/card")
def probe(
    judge_model: Annotated[
        str, typer.Option("--judge", help="The judge: a checkpoint folder, a hub name, or its name on --base-url.")
    ],
    out: Annotated[Path, typer.Option(help="The directory to write; a killed examination resumes in it.")],
    questions: Annotated[int, typer.Option(help="Questions; each makes five pairs in both orders.")] = 60,
    seed: Annotated[int, typer.Option(help="Of the questions.")] = 0,
    prompt: Annotated[str, typer.Option(help="A pairwise prompt: ours by name, or a YAML file.")] = "pairwise",
    repeats: Annotated[float, typer.Option(help="Share of pairs to ask again in both orders.")] = 0.1,
    reasons: JudgeReasonsOption = False,
    max_tokens: Annotated[int, typer.Option(help="Room for the judge's text.")] = 1024,
    smallest_bias: JudgeSmallestOption = 0.1,
    backend: JudgeBackendOption = None,
    base_url: JudgeBaseUrlOption = None,
    endpoint: JudgeEndpointOption = None,
    tokenizer: JudgeTokenizerOption = None,
    dtype: JudgeDtypeOption = None,
    vllm_python: JudgeVllmPythonOption = None,
    vllm_args: JudgeVllmArgsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another judging in the directory.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Examine a judge with generated pairs whose right verdict is known, and print its card."""
    from evalkit.errors import SpecError
    from evalkit.judges.judging import JudgeSpec, judge_pairs
    from evalkit.judges.probe import card, probe_pairs
    from evalkit.judges.prompts import load_prompt
    from evalkit.reports.judging import render_card, render_judgement

    loaded = load_prompt(prompt)
    if loaded.kind != "pairwise" or loaded.needs_reference:
        raise SpecError("the examination compares two answers", where=f"--prompt {prompt}", do="Use a pairwise prompt")
    engine = _judge_engine(
        judge_model, out, backend=backend, base_url=base_url, endpoint=endpoint, tokenizer=tokenizer, dtype=dtype,
        vllm_python=vllm_python, vllm_args=vllm_args,
    )  # fmt: skip
    spec = JudgeSpec(engine, loaded, repeats, reasons, max_tokens, seed)
    judgement = judge_pairs(spec, probe_pairs(questions, seed), overwrite=overwrite)
    found = card(judgement.table, smallest_bias=smallest_bias)
    if as_json:
        _print_json({"judging": judgement.to_dict(), "card": found.to_dict()})
    else:
        render_judgement(judgement, _console())
        render_card(found, _console())


def _columns(text: str | None) -> dict[str, str] | None:
    """Read item=question_id,score=correct."""
    from evalkit.errors import SpecError

    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and theirs.strip() for name, _, theirs in pairs):
        raise SpecError(f"'{text}' names no columns", where="--columns", do="Give item=question_id,score=correct")
    return {name.strip(): theirs.strip() for name, _, theirs in pairs}


@app.command(epilog="Example: evalkit diff runs/monday runs/tuesday")
def diff(
    run_a: Annotated[Path, typer.Argument(metavar="A", help="A run directory.")],
    run_b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Show every setting in which two runs differ, the likeliest to change scores first."""
    from evalkit.runs.difference import diff_runs

    found = diff_runs(run_a, run_b)
    if as_json:
        _print_json([vars(one) for one in found])
        return
    if not found:
        typer.echo("no difference")
        return
    table = _table("about", "field", "A", "B")
    for one in found:
        table.add_row(one.about, one.field, *(_shortened(value) for value in (one.a, one.b)))
    _console().print(table)


@app.command(epilog="Example: evalkit trend runs/my-model --figure trend.svg")
def trend(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with the checkpoints' runs, at any depth.")],
    metric: Annotated[str | None, typer.Option(help="Metric, or metric,filter; default: each task's first.")] = None,
    confidence_level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    figure: Annotated[Path | None, typer.Option(help="Write a figure here, too (.svg or .png).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow the scores of a training run's checkpoints, and say whether they still rise."""
    from evalkit.reports.trend import render_trend, write_trend_figure
    from evalkit.reports.trend import trend as follow

    found = follow(directory, metric=metric, confidence_level=confidence_level)
    if figure:
        write_trend_figure(found, figure)
    if as_json:
        _print_json(found.to_dict())
    else:
        render_trend(found, _console())


@app.command(epilog="Example: evalkit rescore runs/monday --task tasks/gsm8k_strict.yaml")
def rescore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory, with its journal.")],
    task: Annotated[Path, typer.Option(help="YAML file of the task with other filters and metrics.")],
    out: Annotated[Path | None, typer.Option(help="Directory to write; default: RUN/rescored/TASK.")] = None,
    stored_task: Annotated[
        str | None, typer.Option(help="The run's task whose answers are meant, if its name is another.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's stored answers anew, with other filters and metrics and without a model.

    The result is a run directory: compare it with others that were scored the same way.
    """
    from evalkit.runs.rescore import rescore as score

    result = score(run, task, out=out, stored_task=stored_task)
    if as_json:
        _print_json(result.to_dict())
    else:
        _print_frame(result.to_frame(), title=f"{run} -> {result.after.directory}")


def _shortened(value: Any) -> str:
    """Show a value in at most 30 characters: the ends tell long hashes and paths apart."""
    from rich.markup import escape

    text = "none" if value is None else str(value)
    return escape(safe(text if len(text) <= 30 else f"{text[:12]}\u2026{text[-17:]}"))


@app.command(epilog="Example: evalkit quickstart --out my-first-comparison")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the models, runs, corpus, audit and report.")] = Path(
        "evalkit-quickstart"
    ),
    limit: Annotated[int, typer.Option(help="Items of each task.")] = 200,
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Do the whole job once on a small real model: evaluate, audit, compare, report."""
    from evalkit.quickstart import quickstart as demonstrate

    page = demonstrate(out, limit=limit, console=_console())
    if open_report:
        typer.launch(str(page))


def _console() -> Any:
    """A console on stdout; piped output is wide enough that tables are not cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=False)


def _table(*columns: str, title: str | None = None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title and named(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if number == 0 else "right")
    return table


def _print_frame(frame: Any, *, title: str) -> None:
    """Print a data frame as a table, numbers to four digits."""
    table = _table(*map(str, frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(
            *("" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row)
        )
    _console().print(table)


def _print_run(result: RunResult) -> None:
    """Print a run's scores, and what is wrong with it."""
    _print_frame(result.to_frame(), title=f"{result.name}: {result.directory}")
    if result.suspect:
        _console().print(
            "[bold red]suspect[/]: the warnings above may explain the scores (they are in run.json, too)",
            highlight=False,
        )
    if result.n_errors:
        typer.echo(
            f"{result.n_errors} requests failed for good; their items are not scored. The same command asks them again."
        )


def _print_share(result: ShareResult, *, as_json: bool) -> None:
    """Print what became of a share of an audit, and what is left to do."""
    if as_json:
        _print_json(result.to_dict())
        return
    before = f" ({result.n_before:,} before)" if result.n_before else ""
    n_done = result.n_before + result.n_scanned
    of_all = "parts of its files" if result.n_parts is None else f"of {result.n_parts:,} parts of the corpus"
    typer.echo(f"share {result.share}: {n_done:,} {of_all} are scanned{before}")
    if result.n_left:
        typer.echo(f"{result.n_left:,} parts are left to other shares")
    typer.echo("When all shares are done, the same command without --share finishes the audit.")


def _print_audit(result: AuditResult) -> None:
    """Print what an audit found, what it could not look for, and what it could not read."""
    from rich.markup import escape

    console = _console()
    for name, n_documents in result.canaries.items():
        console.print(f"[bold red]canary string of {escape(name)} found[/] in {n_documents:,} documents")
    title = escape(f"Audit: {result.directory}")
    table = _table("benchmark", "rule", "items", "dirty", "of these short", "share", "documents", title=title)
    for one in result.summaries:
        counts = (f"{n:,}" for n in (one.n_items, one.n_dirty, one.n_dirty_short))
        share = f"{one.n_dirty / max(one.n_items, 1):.1%}"
        table.add_row(escape(safe(one.benchmark)), escape(safe(one.rule)), *counts, share, f"{one.n_documents:,}")
    console.print(table)
    if any(one.n_dirty_short for one in result.summaries):
        words = ", ".join(f"{n} for {rule}" for rule, n in {one.rule: one.n for one in result.summaries}.items())
        console.print(
            f"short: of the dirty items, those that are questions shorter than n words (n = {words}) and were found as "
            "a whole; a common phrase is not a leak",
            markup=False,
        )
    if result.n_boilerplate:
        more = safe(", ".join(f"{one.n_boilerplate:,} {one.benchmark} by {one.rule}" for one in result.summaries))
        console.print(
            f"boilerplate: {result.n_boilerplate:,} matches are phrases that many items share or the corpus often has, "
            f"and do not count; if they did, more items would be dirty: {more}",
            markup=False,
        )
    for name, rules in _without_text(result).items():
        what = f"{safe(name)} items have no text to look for ({', '.join(rules)}); they are not counted"
        console.print(what, markup=False)
    megabytes = result.n_bytes / 1e6
    console.print(
        f"{result.n_documents:,} documents in {result.n_files} files, {megabytes:,.1f} MB of text, "
        f"{result.n_matches:,} matches, {result.seconds:.1f} s",
        markup=False,
    )
    if result.n_empty:
        console.print(f"{result.n_empty:,} documents have no text and were not scanned", markup=False)
    for column in result.columns_without_text:
        console.print(f"warning: no row has a text in {column}; is the name right?", markup=False)
    if result.n_bad_rows:
        kinds = ", ".join(f"{n:,} {kind.replace('_', ' ')}" for kind, n in result.n_by_kind.items() if kind != "empty")
        console.print(f"{result.n_bad_rows:,} rows could not be read (listed in bad_rows.jsonl): {kinds}", markup=False)
        for row in result.bad_rows[:5]:
            console.print(safe(f"  {row.file}, row {row.row}: {row.reason}"), markup=False)


def _print_verification(result: Verification) -> None:
    """Print what was checked, and what is not as it should be."""
    console, n_unchecked = _console(), result.n_sampled - result.n_right - result.n_wrong
    console.print(
        f"matches: {result.n_sampled:,} of {result.n_matches:,} (seed {result.seed}): {result.n_right:,} right, "
        f"{result.n_wrong:,} wrong{f', {n_unchecked:,} could not be checked' if n_unchecked else ''}\n"
        f"files: {result.n_files:,}, all sizes compared, the contents of {result.n_hashed:,}"
        f"{f'; {result.n_without_hash:,} have no fingerprint in the record' if result.n_without_hash else ''}",
        markup=False,
    )
    for problem in result.problems[:20]:
        row = "" if problem.row is None else f", row {problem.row}"
        console.print(safe(f"{problem.file}{row}: {problem.what}"), markup=False, soft_wrap=True)
    if len(result.problems) > 20:
        console.print(f"{len(result.problems) - 20:,} more problems (--json lists all)", markup=False)
    console.print("[green]as it was audited[/]" if result.ok else "[bold red]not as it was audited[/]")


def _print_clean(result: CleanResult) -> None:
    """Print what became of the documents, and why."""
    from rich.markup import escape

    from evalkit.contamination.clean import WHY_DROPPED

    console, totals = _console(), result.totals
    table = _table("reason", "dropped", "cut", title=escape(f"Clean corpus: {result.directory}"))
    for reason, counts in result.reasons.items():
        table.add_row(escape(safe(reason)), f"{counts['dropped']:,}", f"{counts['cut']:,}")
    console.print(table)
    n_copied = sum(one.is_copy for one in result.files)
    lines = [
        f"{totals['n_documents']:,} documents = {totals['n_kept']:,} kept + {totals['n_cut']:,} cut + "
        f"{totals['n_dropped']:,} dropped",
        f"{totals['n_documents_out']:,} written = {totals['n_kept']:,} as they were + {totals['n_pieces']:,} made of "
        "those cut",
        *(f"{n:,} dropped: {WHY_DROPPED[why]}" for why, n in result.why_dropped.items()),
        f"{totals['n_characters_removed']:,} characters removed; {len(result.files):,} files, {n_copied:,} of them "
        f"without a change, {result.seconds:.1f} s",
    ]
    if result.n_flagged_kept:
        rules = ", ".join(rule for rule, action in result.actions.items() if action == "keep")
        why = f"they are flagged only by rules that keep documents ({rules})"
        lines.append(f"{result.n_flagged_kept:,} flagged documents stay: {why}")
    if n_others := totals["n_empty"] + totals["n_bad_rows"]:
        lines.append(f"{n_others:,} rows without a readable text stay as they were")
    console.print("\n".join(lines), markup=False)


def _without_text(result: AuditResult) -> dict[str, list[str]]:
    """For each benchmark how many of its items drop out, in words, and under which rules."""
    found: dict[str, list[str]] = {}
    for one in result.summaries:
        if one.n_without_text:
            n_all = one.n_items + one.n_without_text
            found.setdefault(f"{one.benchmark}: {one.n_without_text:,} of {n_all:,}", []).append(one.rule)
    return found


def _print_json(value: Any) -> None:
    from evalkit.files import to_json

    sys.stdout.write(named(to_json(value, indent=True).decode()) + "\n")


def main() -> None:
    """Run the command line; a user's mistake ends with its message and code 2, a bug keeps its traceback."""
    # The bars of lm-eval and transformers would tear ours apart; EVALKIT_NO_PROGRESS silences ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app()
    except EvalkitError as error:
        typer.echo(f"error: {safe(str(error))}", err=True)
        sys.exit(EXIT_USER_ERROR)
    except OSError as error:
        # A full disk, a folder without permission: the machine's trouble, not a bug of ours.
        if error.errno is None or error.filename is None:
            raise
        typer.echo(f"error: {safe(redact(str(error.filename)))}: {error.strerror}", err=True)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        typer.echo("interrupted (evalkit run goes on where it stopped when you give the same command)", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
