"""Evaluates the checkpoints of a training run, on one server where vLLM can take new weights in place."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from evalkit.errors import EvalkitError, ModelError, SpecError
from evalkit.files import to_json
from evalkit.progress import log_to, say, warn
from evalkit.runs.backends import Backend, make_server, on_server, open_backend
from evalkit.runs.client import post_json
from evalkit.runs.evaluate import OWNER, RunResult, evaluate, finished_run, journal_under, load
from evalkit.runs.hf import check_model_path
from evalkit.runs.lease import Lease
from evalkit.runs.provenance import TOKENIZER_FILES, hash_files, hash_weights
from evalkit.runs.server import SERVED_NAME, VllmServer
from evalkit.runs.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd

    from evalkit.tasks import LoadedTasks

SWEEP_ID: Final = "sweep.id"
"""In the directory of a sweep over a cluster: what all its processes find there, until it is begun anew."""
# Written for this purpose; they only have to make models differ.
_PROBES: Final = (
    "The three colours that a painter needs first are",
    "def add(a, b):\n    return",
    "In the year 1834 the harbour of the town was",
    "12 + 30 = 42, 17 + 25 = ",
)
_PROBE_TOKENS: Final = 12
_PROBE_BOUND: Final = 1e-4
_VOLATILE: Final = ("_name_or_path", "transformers_version")
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
# A folder's name that says a step: `step_100`, `checkpoint-100`, `iter_0000100`; the number of `seed1` is none.
_STEP_NAME: Final = re.compile(r"(?:step|checkpoint|ckpt|(?<![a-z])iter)\D*\d", re.IGNORECASE)
_GIVE_PATTERN: Final = r"Give --checkpoint-pattern, e.g. '(?P<series>seed\d+)/checkpoint-(?P<step>\d+)'"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, its step, the training run (a seed, say) that it belongs to, and its name in that run."""

    path: Path
    step: int | None
    series: str | None
    label: str

    @property
    def place(self) -> dict[str, Any]:
        """What the run's record says of it."""
        return {"step": self.step, "series": self.series}


@dataclass(frozen=True)
class SweepResult:
    """The finished runs in order of series and step, and why others have none."""

    runs: tuple[tuple[Checkpoint, RunResult], ...]
    failed: Mapping[str, str]

    def to_frame(self) -> pd.DataFrame:
        """One row per checkpoint, task, metric and filter."""
        import pandas as pd

        frames = [
            run.to_frame().assign(step=checkpoint.step, series=checkpoint.series) for checkpoint, run in self.runs
        ]
        if not frames:
            return pd.DataFrame(columns=["series", "step", "task", "metric", "filter", "score", "n_items"])
        whole = pd.concat(frames)[["series", "step", "task", "metric", "filter", "score", "n_items"]]
        return whole.dropna(axis=1, how="all")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        runs = [{**checkpoint.place, **run.to_dict()} for checkpoint, run in self.runs]
        return {"runs": runs, "failed": dict(self.failed)}


def find_checkpoints(pattern: str, path_pattern: str | None = None) -> list[Checkpoint]:
    """Find checkpoint folders by a glob, in order of series and step.

    Parameters
    ----------
    pattern
        A glob of folders, such as `out/checkpoint-*`, `seed*/checkpoint-*` or `out/step_*/hf`.
    path_pattern
        Regular expression with the groups `step` and, if there are several training runs, `series`, searched in the
        path. By default the step is the last number in the folder's name, or in the name of a folder above it that
        speaks of a step (`step_100/hf`). The series is the part of the path that differs otherwise, if there is one.

    Raises
    ------
    SpecError
        Nothing matches, a folder is no checkpoint, a path does not fit the pattern, or two have one place.
    """
    names = glob.glob(str(Path(pattern).expanduser()))  # noqa: PTH207 - the pattern may be absolute
    folders = sorted(path for name in names if (path := Path(name)).is_dir())
    if not folders:
        raise SpecError("no folder matches", where=f"--checkpoints {pattern}", do="Check the glob, and quote it")
    for folder in folders:
        check_model_path(str(folder))
    found = _by_pattern(folders, path_pattern) if path_pattern else _by_names(folders, pattern)
    places: dict[tuple[str | None, int | None], Path] = {}
    for one in found:
        other = places.setdefault((one.series, one.step), one.path)
        if other != one.path:
            raise SpecError(
                f"{other} and {one.path} would both be "
                + ("without a step" if one.step is None else f"step {one.step}")
                + (f" of {one.series}" if one.series else ""),
                where="--checkpoints",
                do=_GIVE_PATTERN,
            )
    return sorted(found, key=lambda one: (one.series or "", one.step if one.step is not None else -1))


def _by_pattern(folders: Sequence[Path], path_pattern: str) -> list[Checkpoint]:
    try:
        expression = re.compile(path_pattern)
    except re.error as error:
        raise SpecError(
            f"this is no regular expression ({error})", where="--checkpoint-pattern", do="Mend it"
        ) from None
    if "step" not in expression.groupindex:
        raise SpecError("it has no group 'step'", where="--checkpoint-pattern", do=r"Write (?P<step>\d+) in it")
    found = []
    for folder in folders:
        match = expression.search(folder.as_posix())
        if match is None or not (match["step"] or "").isdigit():
            raise SpecError(f"it does not fit {folder}", where="--checkpoint-pattern", do="Mend it, or the glob")
        # The folder in whose name the step stands, and those below it.
        n_below = folder.as_posix()[match.start("step") :].count("/")
        label = "_".join(folder.parts[len(folder.parts) - 1 - n_below :])
        found.append(Checkpoint(folder, int(match["step"]), match.groupdict().get("series"), label))
    return found


def _by_names(folders: Sequence[Path], pattern: str) -> list[Checkpoint]:
    """Take the step from one part of each path, and the series from those of the others that differ."""
    n_fixed = _n_fixed_parts(pattern)
    places = [_step_place(folder, n_fixed) for folder in folders]
    below = {folder.parts[place + 1 :] for folder, place in zip(folders, places, strict=True)}
    # What every checkpoint has below its step (`hf`) tells no training runs apart.
    others = [
        folder.parts[:place] + (folder.parts[place + 1 :] if len(below) > 1 else ())
        for folder, place in zip(folders, places, strict=True)
    ]
    level_names = [set(names) for names in zip(*others, strict=False)]
    n_common = next((n for n, names in enumerate(level_names) if len(names) > 1), len(level_names))
    found = []
    for folder, place, parts in zip(folders, places, others, strict=True):
        numbers = re.findall(r"\d+", folder.parts[place])
        series = "/".join(parts[n_common:]) or None
        found.append(Checkpoint(folder, int(numbers[-1]) if numbers else None, series, "_".join(folder.parts[place:])))
    return found


def _step_place(folder: Path, n_fixed: int) -> int:
    """The part of the path in which the step stands: the name itself, unless only one above it speaks of a step."""
    last = len(folder.parts) - 1
    return next((place for place in range(last, n_fixed - 1, -1) if _STEP_NAME.search(folder.parts[place])), last)


def _n_fixed_parts(pattern: str) -> int:
    """How many parts a glob begins with that are no wildcards: their numbers are no steps."""
    parts = Path(pattern).expanduser().parts
    return next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)


def sweep(spec: RunSpec, *, overwrite: bool = False) -> SweepResult:
    """Evaluate all checkpoints that `spec.checkpoints` names, each in a run directory of its own under `spec.out`.

    Finished runs are not repeated. A checkpoint that fails does not keep the others from being evaluated. With
    `spec.engine` "ray" they are spread over a cluster: see `evalkit.runs.sweep_cluster`.

    Raises
    ------
    SpecError
        See `find_checkpoints`.
    TaskError
        As `run`.
    EngineError
        There is no such cluster, or it has no room for a server, or its nodes do not share the files.
    """
    checkpoints = find_checkpoints(str(spec.checkpoints), spec.checkpoint_pattern)
    jobs = [(one, _spec_of(spec, one)) for one in checkpoints]
    _check_folders(jobs)
    if overwrite:
        _remove_runs(spec, jobs)
    results: dict[Path, RunResult] = {}
    for one, of_one in jobs:
        if (finished := finished_run(of_one, overwrite=False)) is not None:
            results[one.path] = finished
    left = [(one, of_one) for one, of_one in jobs if one.path not in results]
    say(f"{len(checkpoints)} checkpoints" + (f", {len(results)} of them finished" if results else ""))
    failed: dict[str, str] = {}
    if left:
        with log_to(spec.out / "sweep.jsonl"):
            _walk_of(spec)(spec, left, results, failed)
    failed = {str(one.path): failed[str(one.path)] for one, _ in jobs if str(one.path) in failed}
    done = tuple((one, results[one.path]) for one, _ in jobs if one.path in results)
    return SweepResult(done, failed)


def _remove_runs(spec: RunSpec, jobs: _Jobs) -> None:
    # First, lest a kill comes between: what servers of the old sweep have left on their nodes is not taken up.
    (spec.out / SWEEP_ID).unlink(missing_ok=True)
    for _, of_one in jobs:
        if of_one.out.is_dir():
            with Lease(of_one.out, OWNER):
                finished_run(of_one, overwrite=True)


def _spec_of(spec: RunSpec, checkpoint: Checkpoint) -> RunSpec:
    folder = spec.out / checkpoint.series.replace("/", "_") if checkpoint.series else spec.out
    return spec.model_copy(update={"model": str(checkpoint.path), "out": folder / checkpoint.label})


_Jobs = Sequence[tuple[Checkpoint, RunSpec]]
_Walk = Callable[[RunSpec, _Jobs, dict[Path, RunResult], dict[str, str]], None]


def _walk_of(spec: RunSpec) -> _Walk:
    """What evaluates the checkpoints: it fills in their results, and why others have none, by path."""
    if spec.engine == "ray":
        from evalkit.runs.sweep_cluster import sweep_cluster

        return sweep_cluster
    return _sweep_vllm if spec.backend == "vllm" else _sweep_apart


def _check_folders(jobs: _Jobs) -> None:
    """Refuse two checkpoints in one run directory: `a/b` and `a_b` are two series and one folder."""
    owners: dict[Path, Path] = {}
    for checkpoint, of_one in jobs:
        other = owners.setdefault(of_one.out, checkpoint.path)
        if other != checkpoint.path:
            raise SpecError(
                f"the runs of {other} and {checkpoint.path} would both be written to {of_one.out}",
                where="--checkpoints",
                do=_GIVE_PATTERN,
            )


def _sweep_apart(spec: RunSpec, jobs: _Jobs, results: dict[Path, RunResult], failed: dict[str, str]) -> None:
    """Load one checkpoint after the other."""
    loaded = load(spec)
    for checkpoint, of_one in jobs:

        def work(checkpoint: Checkpoint = checkpoint, of_one: RunSpec = of_one) -> None:
            with open_backend(of_one) as ready:
                results[checkpoint.path] = _evaluate(of_one, loaded, ready(), checkpoint)

        _attempt(checkpoint, work, failed)


def _sweep_vllm(spec: RunSpec, jobs: _Jobs, results: dict[Path, RunResult], failed: dict[str, str]) -> None:
    """Keep one server and swap its weights, where a gate shows that this is exact; restart it otherwise."""
    server = make_server(spec.model_copy(update={"model": jobs[0][1].model}), swappable=len(jobs) > 1)
    swapper = Swapper(server)
    try:
        server.launch()
        loaded = load(spec)
        # The next checkpoint's files are read while the current one is evaluated.
        with ThreadPoolExecutor(max_workers=1) as ahead:
            for number, (checkpoint, of_one) in enumerate(jobs):
                others = [other.model for _, other in jobs[number + 1 :]]

                def work(
                    checkpoint: Checkpoint = checkpoint, of_one: RunSpec = of_one, others: Sequence[str] = others
                ) -> None:
                    swapper.serve(of_one.model, others)
                    if others:
                        ahead.submit(hash_weights, Path(others[0]))
                    results[checkpoint.path] = _evaluate(of_one, loaded, on_server(server, of_one), checkpoint)

                _attempt(checkpoint, work, failed)
    finally:
        server.stop()


def _evaluate(spec: RunSpec, loaded: LoadedTasks, backend: Backend, checkpoint: Checkpoint) -> RunResult:
    with Lease(spec.out, OWNER) as lease, log_to(spec.out / "log.jsonl"):
        if (finished := finished_run(spec, overwrite=False)) is not None:
            return finished
        result = evaluate(spec, loaded, backend, checkpoint.place, open_journal=journal_under(lease))
    say(f"{checkpoint.path}: {result.summary()}")
    return result


def _attempt(checkpoint: Checkpoint, work: Callable[[], None], failed: dict[str, str]) -> None:
    try:
        work()
    except EvalkitError as error:
        failed[str(checkpoint.path)] = str(error)
        warn(f"{checkpoint.path} could not be evaluated: {error}")


class Swapper:
    """Brings checkpoints into a server: in place where that is proven for the architecture, else by a restart.

    The proof is a gate A -> B -> A: the probe's outputs of A after the way back must equal those of A from a fresh
    start. vLLM has had loaders that left old weights behind, so each swap is looked at, too: different weights that
    answer the probe alike are started afresh.
    """

    def __init__(self, server: VllmServer) -> None:
        self.server = server
        self.n_swaps = self.n_starts = 0
        self._proven: dict[str, bool] = {}
        self._probe: list[tuple[list[str], list[float]]] = []
        self._sums: Mapping[str, str] = {}

    def serve(self, model: str, others: Sequence[str] = ()) -> None:
        """Make the server answer as `model`; `others` come later, the first of them may serve for the gate.

        Raises
        ------
        ModelError
            The server does not start with it.
        """
        server, key = self.server, swap_key(model)
        if server.is_running and server.model == model:
            if not self._probe:
                server.start()
                self._probe, self.n_starts = self._ask(), 1
        else:
            in_place = server.is_running and self._proven.get(key, False) and swap_key(server.model) == key
            if not (in_place and self._swap(model)):
                self._restart(model)
        partner = next((other for other in others if _may_swap(other, key)), None)
        if key not in self._proven and partner is not None:
            self._proven[key] = self._gate(model, partner)

    def _restart(self, model: str) -> None:
        self.server.stop()
        self.server.model = model
        self.server.start()
        self.n_starts += 1
        self._probe, self._sums = self._ask(), {}

    def _swap(self, model: str) -> bool:
        before, weights = self._probe, hash_weights(Path(self.server.model))
        try:
            sums = self.server.swap(model)
        except ModelError as error:
            warn(f"the weights could not be swapped in place ({error}); the server is started again")
            return False
        self.n_swaps += 1
        self._probe = self._ask()
        changed = hash_weights(Path(model)) != weights
        if changed and _difference(before, self._probe) == 0.0 and not self._sums_changed(sums):
            warn(f"{model} answers like the weights before it; the server is started again to be sure")
            return False
        self._sums = sums
        return True

    def _sums_changed(self, sums: Mapping[str, str]) -> bool:
        """Whether the engine's checksums say that weights changed; on some devices they are of empty tensors."""
        telling = {name for name, value in sums.items() if value != _EMPTY_SHA256}
        return any(self._sums.get(name, sums[name]) != sums[name] for name in telling)

    def _gate(self, model: str, partner: str) -> bool:
        fresh = self._probe
        try:
            self.server.swap(partner)
            there = self._ask()
            self._sums = self.server.swap(model)
            back = self._ask()
        except ModelError as error:
            warn(f"weights cannot be swapped in place here ({error}); each checkpoint gets a fresh start")
            self._restart(model)
            return False
        away, home = _difference(fresh, there), _difference(fresh, back)
        ok = home <= _PROBE_BOUND and (away > 0 or hash_weights(Path(model)) == hash_weights(Path(partner)))
        if ok:
            say(f"swapping weights in place is exact here: back at {Path(model).name}, the probe differs by {home:.2g}")
        else:
            warn(
                f"swapping weights in place is not exact here (the probe differs by {home:.2g} after the way back, by "
                f"{away:.2g} at the other checkpoint); each checkpoint gets a fresh start"
            )
            self._restart(model)
        return ok

    def _ask(self) -> list[tuple[list[str], list[float]]]:
        """Greedy tokens and their log-probabilities for the probe, one request at a time."""
        answers = []
        for prompt in _PROBES:
            body = {
                "model": SERVED_NAME,
                "prompt": prompt,
                "max_tokens": _PROBE_TOKENS,
                "temperature": 0,
                "logprobs": 1,
            }
            reply = post_json(f"{self.server.address}/v1/completions", body, key=self.server.key)
            logprobs = reply["choices"][0]["logprobs"]
            answers.append((list(logprobs["tokens"]), [float(one) for one in logprobs["token_logprobs"]]))
        return answers


def _difference(a: Sequence[tuple[list[str], list[float]]], b: Sequence[tuple[list[str], list[float]]]) -> float:
    """Largest difference of log-probabilities; infinite where the tokens differ."""
    if any(one[0] != other[0] for one, other in zip(a, b, strict=True)):
        return float("inf")
    pairs = [pair for one, other in zip(a, b, strict=True) for pair in zip(one[1], other[1], strict=True)]
    return max((abs(x - y) for x, y in pairs), default=0.0)


def _may_swap(model: str, key: str) -> bool:
    try:
        return swap_key(model) == key
    except ModelError:
        return False


def swap_key(model: str) -> str:
    """Hash of what must be equal for weights to be swapped in place: configuration, tokenizer, end-of-text tokens."""
    folder = Path(model).expanduser()
    configs = []
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        try:
            content = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(
                f"this cannot be read ({error})", where=str(path), do="Is it still being written?"
            ) from None
        configs.append({key: value for key, value in content.items() if key not in _VOLATILE})
    return hashlib.sha256(to_json([configs, hash_files(folder, TOKENIZER_FILES)])).hexdigest()
