"""What to run: the options of `evalkit run`, from the command line, a YAML file, or both."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from evalkit.addresses import has_password, is_address, without_query
from evalkit.errors import SpecError
from evalkit.stats.margins import parse_margin

DEFAULT_SEED = 1234
"""lm-eval's own default for numpy, torch and the few-shot draw."""


_NO_SETTINGS = {
    "out",
    "checkpoints",
    "checkpoint_pattern",
    "journal",
    "concurrency",
    "max_retries",
    "timeout",
    "startup_timeout",
    "health",
    "engine",
    "ray_address",
    "servers",
    "gpus_per_server",
    "cpus_per_server",
}


_OF_CLUSTERS = ("ray_address", "servers", "gpus_per_server", "cpus_per_server")
_PARALLEL_FLAGS = ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")


_WITHOUT_TASKS = (
    "checkpoint_pattern",
    "tasks_dir",
    "data",
    "task_seed",
    "repeats",
    "seeds",
    "num_fewshot",
    "chat_template",
    "system_instruction",
    "gen_kwargs",
    "confirm_unsafe_code",
)
"""Settings of tasks, prompts and generated answers: text files have none of them."""


class RunSpec(pydantic.BaseModel):
    """One evaluation of one model.

    Attributes
    ----------
    model
        A checkpoint folder, or a name on the Hugging Face hub.
    checkpoints, checkpoint_pattern
        Instead of a model: a glob of checkpoint folders, and a regular expression with the groups `step` and `series`.
    tasks
        Task names, globs, groups or tags.
    perplexity, text_column, source_column, stride
        Instead of tasks: text files to score, the columns with the text and its domain, and the tokens by which
        windows move on over long documents (None: they do not overlap). Settings of tasks are refused beside it.
    out
        The run directory.
    tasks_dir, data, task_seed
        Folder of own task definitions; folder that the `local_*` tasks read; seed of the generated tasks.
    limit
        Items of each task: a seeded random subset, nested (50 are among 100); None means all.
    subset_seed
        Seed of that subset.
    repeats
        Answers sampled for each item; all are scored.
    seeds
        Run seeds: each sets the few-shot draw and the sampling.
    num_fewshot
        Worked examples in each prompt; None leaves the task's own number.
    chat_template, system_instruction
        How prompts are wrapped.
    gen_kwargs
        Generation settings that replace the tasks' own.
    batch_size, device, dtype
        How the model is run: contexts per forward pass (transformers), where, in which precision.
    backend
        `hf`: transformers in this process; `vllm`: a server that is started for the run; `openai`: a running server.
    vllm_python, vllm_args, startup_timeout
        Interpreter of the environment with vLLM (None: this one), further engine flags, seconds until it must serve.
    tokenizer
        Folder or hub name of the tokenizer; None is the model's own.
    base_url, served_model, endpoint
        The running server, the model's name there, and whether prompts go as token ids (`completions`) or
        conversations as messages (`chat`).
    concurrency, max_retries, timeout
        Requests in flight (None adapts to the server), further tries of one request, seconds for one try.
    scoring
        `auto` shares the context of an item's choices where a probe shows equal results; `plain` never.
    margin
        The smallest difference that matters, in the unit of the scores, declared before they are seen: `compare` goes
        by it.
    journal
        File of the answers, to share between runs; None is the run directory's own.
    engine, ray_address
        Where the checkpoints of a sweep are evaluated: `local`, one after the other on this machine, or `ray`, on
        several servers of a cluster, which is found at that address.
    servers, gpus_per_server, cpus_per_server
        Servers at most, and what each of them holds; None: as many as the cluster has room for, with one GPU each
        where there are any.
    health
        Shares of bad answers above which the run is suspect, e.g. `truncated=0.2,empty=0.05`.
    trust_remote_code, confirm_unsafe_code
        Consent to run the model's Python code, and code that the model writes.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    model: str = pydantic.Field(min_length=1)
    tasks: tuple[str, ...] = ()
    perplexity: tuple[str, ...] = ()
    text_column: str = "text"
    source_column: str = "source"
    stride: int | None = pydantic.Field(default=None, ge=1)
    out: Path
    checkpoints: str | None = None
    checkpoint_pattern: str | None = None
    tasks_dir: Path | None = None
    data: Path | None = None
    task_seed: int | None = None
    limit: int | None = pydantic.Field(default=None, ge=1)
    subset_seed: int = 0
    repeats: int = pydantic.Field(default=1, ge=1)
    seeds: tuple[int, ...] = pydantic.Field(default=(DEFAULT_SEED,), min_length=1)
    num_fewshot: int | None = pydantic.Field(default=None, ge=0)
    chat_template: bool = False
    system_instruction: str | None = None
    gen_kwargs: dict[str, Any] = pydantic.Field(default_factory=dict)
    batch_size: int | Literal["auto"] = "auto"
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: Literal["hf", "vllm", "openai"] = "hf"
    vllm_python: Path | None = None
    vllm_args: str = ""
    startup_timeout: float = pydantic.Field(default=1800.0, gt=0)
    base_url: str | None = None
    served_model: str | None = None
    tokenizer: str | None = None
    endpoint: Literal["completions", "chat"] = "completions"
    concurrency: int | None = pydantic.Field(default=None, ge=1)
    max_retries: int = pydantic.Field(default=6, ge=0)
    timeout: float = pydantic.Field(default=900.0, gt=0)
    scoring: Literal["auto", "plain"] = "auto"
    margin: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    journal: Path | None = None
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = pydantic.Field(default=None, min_length=1)
    servers: int | None = pydantic.Field(default=None, ge=1)
    gpus_per_server: int | None = pydantic.Field(default=None, ge=0)
    cpus_per_server: int | None = pydantic.Field(default=None, ge=1)
    health: str = ""
    trust_remote_code: bool = False
    confirm_unsafe_code: bool = False

    @pydantic.field_validator("margin", mode="before")
    @classmethod
    def _margin_as_people_write_it(cls, value: Any) -> Any:
        return parse_margin(value, where="margin") if isinstance(value, str) else value

    @pydantic.field_validator("out", "tasks_dir", "data", "journal", "vllm_python", mode="before")
    @classmethod
    def _path_of_this_machine(cls, value: Any) -> Any:
        if isinstance(value, str) and is_address(value):
            raise ValueError("this takes a path of this machine's; give an address as --out on the command line")
        return value

    @pydantic.field_validator("model", "checkpoints", "tokenizer", mode="before")
    @classmethod
    def _weights_on_this_machine(cls, value: Any) -> Any:
        if isinstance(value, str) and is_address(value):
            raise ValueError("weights are read from folders of this machine's, or by their name on the hub; copy them")
        return value

    @pydantic.field_validator("base_url", mode="before")
    @classmethod
    def _no_password(cls, value: Any) -> Any:
        if isinstance(value, str) and has_password(value):
            raise ValueError("a password stands in it, which the record would show; a key goes into OPENAI_API_KEY")
        return value

    @pydantic.field_validator("batch_size")
    @classmethod
    def _positive_batch(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("give a number of 1 or more, or auto")
        return value

    @pydantic.field_validator("tasks", mode="before")
    @classmethod
    def _split_tasks(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @pydantic.field_validator("seeds", mode="before")
    @classmethod
    def _split_seeds(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) else value

    @pydantic.field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice; equal runs would be counted as independent")
        return value

    @pydantic.field_validator("gen_kwargs", mode="before")
    @classmethod
    def _split_gen_kwargs(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if any(not separator for _, separator, _ in pairs):
            raise ValueError("give KEY=VALUE pairs, separated by commas")
        # YAML reads true, 0.7 and 5 as what they look like.
        return {key.strip(): yaml.safe_load(text) for key, _, text in pairs}

    def settings(self) -> dict[str, Any]:
        """Everything that can change a score, or what is made of it, as plain values: no places that are written to.

        Patience and traffic are no such settings: a run may be resumed with others.
        """
        plain: dict[str, Any] = self.model_dump(mode="json", exclude=_NO_SETTINGS)
        folders = {"tasks_dir": self.tasks_dir, "data": self.data}
        # The queries of web addresses can hold signatures, and these settings are published.
        shown = {
            "perplexity": [without_query(name) for name in self.perplexity],
            "base_url": self.base_url and without_query(self.base_url),
        }
        return plain | shown | {name: str(folder.resolve()) if folder else None for name, folder in folders.items()}


def make_spec(path: Path | None, given: Mapping[str, Any]) -> RunSpec:
    """Build a spec from a YAML file, from given options, or from both; the options win.

    Raises
    ------
    SpecError
        The file is missing or is no YAML mapping, a key is unknown, or a value is wrong; the message names the file
        and the key.
    """
    values = {**(_read(path) if path else {}), **given}
    source = f"{path}" if path else "options"
    unknown = [name for name in values if name not in RunSpec.model_fields]
    if unknown:
        close = difflib.get_close_matches(unknown[0], RunSpec.model_fields, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise SpecError(
            f"there is no setting '{unknown[0]}'", where=source, do=f"{hint}Known: {', '.join(RunSpec.model_fields)}"
        )
    if values.get("checkpoints"):
        if values.get("model"):
            raise SpecError("both 'model' and 'checkpoints' are given", where=source, do="Give one of them")
        if values.get("backend") == "openai":
            raise SpecError(
                "a running server serves one model, not each of the checkpoints",
                where=source,
                do="Use --backend vllm or hf, or one --model and --out for each",
            )
        # Each checkpoint takes this place in turn.
        values["model"] = values["checkpoints"]
    if values.get("perplexity"):
        if values.get("tasks") or values.get("checkpoints"):
            raise SpecError("'perplexity' stands alone", where=source, do="Give tasks or checkpoints in another run")
        values["tasks"] = ()
    needed = ("model", "out") if values.get("perplexity") else ("model", "tasks", "out")
    for name in needed:
        if not values.get(name):
            raise SpecError(f"'{name}' is not given", where=source, do=f"Give --{name}, or `{name}:` in a YAML file")
    try:
        spec = RunSpec(**values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "spec"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SpecError(
            f"'{name}' cannot be {_shown(first['input'])} ({message[0].lower()}{message[1:]})",
            where=source,
            do="Mend it",
        ) from None
    if spec.perplexity:
        _check_perplexity(spec, source)
    _check_engine(spec, source)
    return spec


def _shown(value: Any) -> str:
    return "this" if isinstance(value, str) and has_password(value) else repr(value)


def _check_engine(spec: RunSpec, source: str) -> None:
    """Refuse settings of a cluster without one, and those that cannot be kept on one.

    Raises
    ------
    SpecError
        The settings do not go together.
    """
    if spec.engine == "local":
        for name in _OF_CLUSTERS:
            if getattr(spec, name) is not None:
                raise SpecError(
                    f"'{name}' is about a Ray cluster, and this run stays on one machine",
                    where=source,
                    do=f"Give --engine ray, or leave out --{name.replace('_', '-')}",
                )
        return
    if spec.checkpoints is None:
        raise SpecError(
            "'engine: ray' spreads checkpoints over a cluster, and here is one model",
            where=source,
            do="Give --checkpoints, or leave out --engine; one large model spans GPUs with --vllm-args "
            "'--tensor-parallel-size N'",
        )
    if spec.journal is not None:
        raise SpecError(
            "servers on several nodes cannot write to one journal",
            where=source,
            do="Leave out --journal: each run directory gets its own",
        )
    if spec.device is not None and ":" in spec.device:
        raise SpecError(
            f"'{spec.device}' names a GPU, and on a cluster Ray gives each server its own",
            where=source,
            do=f"Give --device {spec.device.split(':')[0]}, or leave it out",
        )
    if spec.backend == "vllm" and spec.gpus_per_server:
        needed = gpus_of_flags(spec.vllm_args)
        if needed > spec.gpus_per_server:
            raise SpecError(
                f"the engine flags ask for {needed} GPUs, and a server gets {spec.gpus_per_server}",
                where=f"--vllm-args '{spec.vllm_args}'",
                do=f"Give --gpus-per-server {needed}",
            )


def gpus_of_flags(args: str) -> int:
    """GPUs that vLLM's flags ask for: the product of what is parallel.

    Raises
    ------
    SpecError
        One of them is no number.
    """
    words = [part for word in shlex.split(args) for part in word.split("=", 1)]
    product = 1
    for flag, value in itertools.pairwise(words):
        if flag in _PARALLEL_FLAGS:
            if not value.isdigit() or int(value) < 1:
                raise SpecError(f"'{value}' is no number of GPUs", where=f"--vllm-args '{args}'", do="Mend it")
            product *= int(value)
    return product


def _check_perplexity(spec: RunSpec, source: str) -> None:
    """Refuse what a run over text files could only ignore.

    Raises
    ------
    SpecError
        A setting of tasks is not at its default, or the endpoint has no log-likelihoods.
    """
    for name in _WITHOUT_TASKS:
        if getattr(spec, name) != RunSpec.model_fields[name].get_default(call_default_factory=True):
            raise SpecError(
                f"'{name}' is about tasks, and with 'perplexity' text files are scored as they are",
                where=source,
                do=f"Leave out --{name.replace('_', '-')}",
            )
    if spec.endpoint == "chat":
        raise SpecError(
            "'perplexity' needs log-likelihoods of given texts, and a chat endpoint has none",
            where=source,
            do="Use --endpoint completions, with --tokenizer if --model has none",
        )


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; keys may be written as on the command line, with hyphens."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the file cannot be read ({error})", where=str(path), do="Check the path") from None
    except yaml.YAMLError as error:
        raise SpecError(f"this is not valid YAML ({error})", where=str(path), do="Mend the file") from None
    if not isinstance(values, dict):
        raise SpecError("the file is no mapping of settings", where=str(path), do="Write `model: ...`, `tasks: ...`")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
