"""Asks a judge: both orders, repeats for its noise, by the run layer's engines and journal, resumable after a kill.

Where the engine scores tokens, the judge chooses among the labels by their log-probabilities: nothing has to be parsed,
every call has a verdict, and it comes with a soft preference. On the chat endpoint of a server that can hold an answer
to given texts (vLLM's structured outputs) it writes a label and nothing else. On other chat endpoints it writes freely,
and the verdict is parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from evalkit import tables
from evalkit.errors import SpecError
from evalkit.files import write_json
from evalkit.judges.answers import AnswerPair, AnswerPairs
from evalkit.judges.prompts import Prompt, defuse, higher_rated, preference_of
from evalkit.judges.style import looks
from evalkit.progress import log_to, progress_bar, warn
from evalkit.runs.spec import RunSpec

RECORD: Final = "judge.json"
VERDICTS: Final = "verdicts.parquet"
JOURNAL: Final = "journal.sqlite"
_FILES: Final = (RECORD, VERDICTS, JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", "log.jsonl")

LITTLE_MASS: Final = 0.5
"""With less probability on all labels together, the judge would rather have written something else."""

_TASK: Final = "judge"


@dataclass(frozen=True)
class JudgeSpec:
    """How a judge is asked.

    Attributes
    ----------
    engine
        Model, backend and directory, as for a run.
    prompt
        What it is asked.
    repeats
        Share of pairs that are asked again in both orders.
    reasons
        Let the judge write before its verdict, instead of choosing a label.
    max_tokens
        Room for that.
    seed
        Which pairs are repeated.
    """

    engine: RunSpec
    prompt: Prompt
    repeats: float = 0.1
    reasons: bool = False
    max_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.repeats <= 1:
            raise SpecError(f"{self.repeats} is no share of the pairs", where="--repeats", do="Give one from 0 to 1")
        if self.max_tokens < 1:
            raise SpecError(f"{self.max_tokens} tokens are none", where="--max-tokens", do="Give at least 1")
        if self.seed < 0:
            raise SpecError(f"{self.seed} is no seed", where="--seed", do="Give a whole number from 0")


@dataclass(frozen=True)
class Judgement:
    """A finished judging.

    Attributes
    ----------
    directory
        With `judge.json`, `verdicts.parquet`, `journal.sqlite`, `log.jsonl`.
    table
        The verdicts.
    n_pairs, n_repeated, n_calls, n_from_journal, n_failed
        Pairs; those asked again; calls; answers that the journal had; calls without a verdict.
    why_failed
        How many for what reason.
    attempts
        Answers with something that looks like an attempt to break out of the prompt, by kind.
    label_mass
        Mean probability of all labels together, where the judge chose; near 1 means that it would have said one anyway.
    left_out
        What could not be paired, and why.
    """

    directory: Path
    table: pa.Table
    n_pairs: int
    n_repeated: int
    n_calls: int
    n_from_journal: int
    n_failed: int
    why_failed: Mapping[str, int] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    label_mass: float | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the table."""
        return {name: value for name, value in vars(self).items() if name != "table"} | {
            "directory": str(self.directory)
        }


@dataclass(frozen=True)
class _Call:
    """One question to the judge: a pair in an order, or one side of a pair to be rated."""

    pair: int
    order: str | None
    side: str | None
    repeat: int
    system: str
    user: str


def judge_pairs(spec: JudgeSpec, pairs: AnswerPairs, *, overwrite: bool = False) -> Judgement:
    """Ask the judge about all pairs and write the directory; a half-finished one is resumed.

    Raises
    ------
    SpecError
        The directory holds another judging, or the prompt needs references that the answers do not have.
    ModelError
        The judge cannot be loaded or reached.
    """
    if spec.prompt.needs_reference and (missing := sum(not one.a.reference for one in pairs.pairs)):
        raise SpecError(
            f"the prompt '{spec.prompt.name}' shows a reference; {missing} of {len(pairs.pairs)} questions have none",
            where="--prompt",
            do="Use another prompt, or give answers with a reference",
        )
    record = _begin(spec, pairs, overwrite=overwrite)
    if record.get("status") == "complete":
        return _finished(spec.engine.out, record)
    from evalkit.runs.backends import open_backend
    from evalkit.runs.hf import check_model_path

    if spec.engine.backend != "openai":
        check_model_path(spec.engine.model)
    with open_backend(spec.engine) as ready, log_to(spec.engine.out / "log.jsonl"):
        return _judge(spec, pairs, ready(), record)


def _begin(spec: JudgeSpec, pairs: AnswerPairs, *, overwrite: bool) -> dict[str, Any]:
    """Return the record of this judging: the one that is there, or a fresh one with a secret for the marks."""
    out = spec.engine.out
    wanted = {
        "engine": {name: value for name, value in spec.engine.settings().items() if name != "tasks"},
        "prompt": {**vars(spec.prompt), "verdicts": dict(spec.prompt.verdicts)},
        "repeats": spec.repeats,
        "reasons": spec.reasons,
        "max_tokens": spec.max_tokens,
        "seed": spec.seed,
        "pairs": hashlib.sha256(repr(pairs.pairs).encode()).hexdigest(),
    }
    path = out / RECORD
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            raise SpecError("the record is no JSON", where=str(path), do="Give another --out, or --overwrite") from None
        plain = json.loads(json.dumps(wanted))
        if before.get("settings") == plain:
            return before
        # Where the judge could not even be reached, there is nothing to lose.
        if not overwrite and any((out / name).exists() for name in (JOURNAL, VERDICTS)):
            known = before.get("settings") or {}
            differ = ", ".join(key for key in plain if known.get(key) != plain[key])
            raise SpecError(
                f"the directory holds another judging (it differs in: {differ})",
                where=str(out),
                do="Give another --out, or --overwrite",
            )
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
    elif out.is_dir() and any((out / name).exists() for name in ("run.json", "samples.parquet")):
        raise SpecError("the directory holds a run", where=str(out), do="Give another --out")
    out.mkdir(parents=True, exist_ok=True)
    record = {
        "schema_version": ".".join(map(str, tables.VERSION)),
        "status": "running",
        "settings": wanted,
        "models": [pairs.name_a, pairs.name_b],
        # The marks around the texts come from it: random for whoever wrote the answers, the same after a resume.
        "secret": secrets.token_hex(16),
        "left_out": dict(pairs.left_out),
    }
    write_json(path, record)
    return record


def _finished(out: Path, record: Mapping[str, Any]) -> Judgement:
    return Judgement(directory=out, table=tables.read(out / VERDICTS, tables.VERDICTS), **record["result"])


def _judge(spec: JudgeSpec, pairs: AnswerPairs, backend: Any, record: dict[str, Any]) -> Judgement:
    from evalkit.runs.engine import special_tokens
    from evalkit.runs.journal import Journal
    from evalkit.runs.lm import EvalLM

    begun = time.monotonic()
    special = special_tokens(backend.tokenizer) if backend.tokenizer is not None else {}
    attempts: Counter[str] = Counter()
    read, way = _way(spec, backend.engine)
    repeated = _repeated(len(pairs.pairs), spec)
    calls = _calls(spec, pairs, repeated, record["secret"], special, attempts, reasons=way == "written")
    judge = spec.engine.served_model or backend.fingerprint.name
    journal_path = spec.engine.journal or spec.engine.out / JOURNAL
    total = len(calls) * (len(spec.prompt.labels) if way == "log-probabilities" else 1)
    with Journal(journal_path) as journal, progress_bar(f"judge {judge}", total, unit="requests") as bar:
        lm = EvalLM(backend.engine, backend.tokenizer, journal, backend.answer_key, bar.advance)
        lm.begin_pass(spec.seed, 0, {})
        outcomes = read(spec, lm, calls)
    rows = _rows(spec, pairs, calls, outcomes, judge)
    table = tables.from_rows(tables.VERDICTS, rows)
    tables.write(spec.engine.out / VERDICTS, table, tables.VERDICTS)
    why = Counter(one.why for one in outcomes if one.why)
    masses = [one.mass for one in outcomes if one.mass is not None]
    result = {
        "n_pairs": len(pairs.pairs),
        "n_repeated": len(repeated),
        "n_calls": len(calls),
        "n_from_journal": lm.n_from_journal,
        "n_failed": sum(why.values()),
        "why_failed": dict(why),
        "attempts": dict(attempts),
        "label_mass": float(np.mean(masses)) if masses else None,
        "left_out": dict(pairs.left_out),
    }
    if masses and float(np.mean(masses)) < LITTLE_MASS:
        warn(
            f"the judge gives its labels only {np.mean(masses):.0%} of the probability: it does not follow the prompt, "
            "and its choices say little"
        )
    record |= {
        # Answers that could not be had are asked again by the same command.
        "status": "failed requests" if why["request failed"] else "complete",
        "judge": judge,
        "verdicts_by": way,
        "engine": backend.describe(),
        "wall_seconds": time.monotonic() - begun,
        "tokens": {"prompt": lm.n_prompt_tokens, "output": lm.n_output_tokens},
        "result": result,
    }
    write_json(spec.engine.out / RECORD, record)
    return Judgement(directory=spec.engine.out, table=table, **result)  # type: ignore[arg-type]


def _way(spec: JudgeSpec, engine: Any) -> tuple[Callable[..., list[_Outcome]], str]:
    """How the verdict is had: what asks for it, and its name in the record."""
    if spec.reasons:
        return _written, "written"
    if spec.engine.endpoint != "chat":
        return _chosen, "log-probabilities"
    return (_guided, "guided decoding") if engine.guidance else (_written, "written")


def _repeated(n: int, spec: JudgeSpec) -> set[int]:
    count = min(n, math.ceil(spec.repeats * n))
    return set(np.random.default_rng(spec.seed).permutation(n)[:count].tolist())


def _calls(
    spec: JudgeSpec,
    pairs: AnswerPairs,
    repeated: set[int],
    secret: str,
    special: Mapping[str, int],
    attempts: Counter[str],
    *,
    reasons: bool,
) -> list[_Call]:
    calls = []
    for number, pair in enumerate(pairs.pairs):
        # Both answers are to the same question, though a run's prompts may differ in examples.
        texts = {"question": pair.a.question, "a": pair.a.text, "b": pair.b.text, "reference": pair.a.reference}
        defused = {name: defuse(text, special) for name, text in texts.items()}
        for name in ("a", "b"):
            attempts.update(defused[name].attempts.keys())
        shown = {name: one.text for name, one in defused.items()}
        for repeat in range(2 if number in repeated else 1):
            if spec.prompt.kind == "pairwise":
                for order in ("ab", "ba"):
                    first, second = order
                    filled = {"answer_1": shown[first], "answer_2": shown[second]}
                    calls.append(_call(spec, number, pair, order, None, repeat, filled | shown, secret, reasons))
            else:
                for side in ("a", "b"):
                    filled = {"answer": shown[side]}
                    calls.append(_call(spec, number, pair, None, side, repeat, filled | shown, secret, reasons))
    return calls


def _call(
    spec: JudgeSpec,
    number: int,
    pair: AnswerPair,
    order: str | None,
    side: str | None,
    repeat: int,
    texts: Mapping[str, str],
    secret: str,
    reasons: bool,
) -> _Call:
    mark, salt = "", 0
    while not mark or any(mark in text for text in texts.values()):
        name = f"{pair.pair_id}:{order or side}:{repeat}:{salt}"
        mark, salt = hmac.new(secret.encode(), name.encode(), "sha256").hexdigest()[:10], salt + 1
    system, user = spec.prompt.fill(texts, mark, reasons=reasons)
    return _Call(number, order, side, repeat, system, user)


@dataclass(frozen=True)
class _Outcome:
    """A label of one call, how far it prefers the second answer, and the labels' log-probabilities; or why not."""

    label: str | None
    value: float | None
    raw: str
    mass: float | None = None
    why: str = ""
    logprobs: Sequence[float] = ()


def _context(lm: Any, call: _Call) -> tuple[str, str]:
    """The prompt as the judge reads it, and what stands before a label in its answer."""
    messages = [{"role": "system", "content": call.system}, {"role": "user", "content": call.user}]
    if lm.tokenizer is None:
        return lm.apply_chat_template(messages), ""
    if getattr(lm.tokenizer, "chat_template", None):
        from evalkit.errors import ModelError

        try:
            return lm.apply_chat_template(messages), ""
        except ModelError:
            # Some templates have no place for a system message.
            return lm.apply_chat_template([{"role": "user", "content": f"{call.system}\n\n{call.user}"}]), ""
    return f"{call.system}\n\n{call.user}\n\nVerdict:", " "


def _chosen(spec: JudgeSpec, lm: Any, calls: Sequence[_Call]) -> list[_Outcome]:
    """Choose among the labels by their log-probabilities."""
    from lm_eval.api.instance import Instance

    labels = spec.prompt.labels
    contexts = [_context(lm, call) for call in calls]
    room = lm.engine.max_scored
    too_long = {
        number
        for number, tokens in enumerate(map(lm.tok_encode, (text for text, _ in contexts)))
        if len(tokens) + 4 > room
    }
    requests = [
        Instance("loglikelihood", {}, (context, f"{before}{label}"), place, (_TASK, number, 1))
        for number, (context, before) in enumerate(contexts)
        if number not in too_long
        for place, label in enumerate(labels)
    ]
    if requests:
        lm.loglikelihood(requests, keep_spaces=True)
    found = []
    for number in range(len(calls)):
        if number in too_long:
            found.append(_Outcome(None, None, f"longer than the window of {room} tokens", why="longer than the window"))
            continue
        answers = lm.answers[_TASK, number]
        error = next((one.error for one in answers if one.error), None)
        if error:
            found.append(_Outcome(None, None, error, why="request failed"))
            continue
        logprobs = [one.logprob for one in answers]
        label, value, mass = preference_of(labels, logprobs, spec.prompt)
        raw = json.dumps({name: round(value, 6) for name, value in zip(labels, logprobs, strict=True)})
        found.append(_Outcome(label, value, raw, mass, logprobs=logprobs))
    return found


def _guided(spec: JudgeSpec, lm: Any, calls: Sequence[_Call]) -> list[_Outcome]:
    """Have one of the labels written, held to them by the server; with a soft preference where it tells enough."""
    from lm_eval.api.instance import Instance

    labels = spec.prompt.labels
    requests = [
        Instance("generate_until", {}, (_context(lm, call)[0], {}), 0, (_TASK, number, 1))
        for number, call in enumerate(calls)
    ]
    found = []
    for answer in lm.choose(requests, labels, spec.max_tokens):
        if answer.error:
            found.append(_Outcome(None, None, answer.error, why="request failed"))
            continue
        outcome = _parsed(spec, answer, held=True)
        logprobs = _of_labels(labels, answer.first_token or {})
        if outcome.label is None or logprobs is None:
            found.append(outcome)
        else:
            # vLLM tells them after all but the labels were ruled out: how likely a label was at all is unknown.
            label, value, _ = preference_of(labels, logprobs, spec.prompt)
            raw = json.dumps({name: round(one, 6) for name, one in zip(labels, logprobs, strict=True)})
            found.append(_Outcome(label, value, raw, logprobs=logprobs))
    return found


def _of_labels(labels: Sequence[str], first_token: Mapping[str, float]) -> list[float] | None:
    """Log-probabilities of labels that are one token each; None where one is unknown, or begins another."""
    alike = any(one != other and other.startswith(one) for one in labels for other in labels)
    return None if alike or any(one not in first_token for one in labels) else [first_token[one] for one in labels]


def _written(spec: JudgeSpec, lm: Any, calls: Sequence[_Call]) -> list[_Outcome]:
    """Let the judge write, and read its verdict."""
    from lm_eval.api.instance import Instance

    contexts = [_context(lm, call)[0] for call in calls]
    room = lm.engine.max_length - spec.max_tokens
    too_long: set[int] = set()
    if lm.tokenizer is not None:
        too_long = {number for number, one in enumerate(contexts) if len(lm.tok_encode(one)) > room}
    settings = {"max_gen_toks": spec.max_tokens, "do_sample": False}
    requests = [
        Instance("generate_until", {}, (context, settings), 0, (_TASK, number, 1))
        for number, context in enumerate(contexts)
        if number not in too_long
    ]
    if requests:
        lm.generate_until(requests)
    found = []
    for number in range(len(calls)):
        if number in too_long:
            found.append(
                _Outcome(None, None, f"longer than the window less {spec.max_tokens}", why="longer than the window")
            )
            continue
        answer = lm.answers[_TASK, number][0]
        found.append(
            _Outcome(None, None, answer.error, why="request failed") if answer.error else _parsed(spec, answer)
        )
    return found


def _parsed(spec: JudgeSpec, answer: Any, *, held: bool = False) -> _Outcome:
    """Read the verdict in a judge's text; one that was held to its labels cannot have said more."""
    text = answer.text or ""
    if answer.finish_reason == "length" and not held:
        # What looks like its verdict may be something that it was about to discuss.
        return _Outcome(None, None, text, why="cut off before its end")
    label = spec.prompt.read(text)
    return _Outcome(label, None, text, why="" if label else "no verdict in the text")


def _rows(
    spec: JudgeSpec, pairs: AnswerPairs, calls: Sequence[_Call], outcomes: Sequence[_Outcome], judge: str
) -> list[dict[str, Any]]:
    shared = []
    for pair in pairs.pairs:
        shared.append(
            {
                "judge": judge,
                "pair_id": pair.pair_id,
                "task": pair.a.task or None,
                "doc_hash": pair.a.doc_hash,
                "model_a": pairs.name_a,
                "model_b": pairs.name_b,
                **looks(pair.a.text, pair.b.text),
            }
        )
    if spec.prompt.kind == "rating":
        return _rated(spec, shared, calls, outcomes)
    rows = []
    for call, outcome in zip(calls, outcomes, strict=True):
        row = shared[call.pair] | {"order": call.order, "repeat": call.repeat, "raw": outcome.raw, "winner": "error"}
        if outcome.label is not None:
            assert call.order is not None
            shown = {"first": call.order[0], "second": call.order[1], "tie": "tie"}
            # Labels that are equally likely, in a prompt without a tie.
            row["winner"] = shown[spec.prompt.verdicts[outcome.label]] if outcome.label else "tie"
            if outcome.value is not None:
                row["preference"] = outcome.value if call.order == "ab" else 1 - outcome.value
        rows.append(row)
    return rows


def _rated(
    spec: JudgeSpec, shared: Sequence[dict[str, Any]], calls: Sequence[_Call], outcomes: Sequence[_Outcome]
) -> list[dict[str, Any]]:
    """The verdict of two ratings: the higher one wins, equal ones tie. Nothing was shown first, so there is no order.

    The rating is what the judge says: its likeliest label, so that answers tie between which it hardly distinguishes.
    How hardly is in the preference, where the labels' probabilities are known.
    """
    by_pair: dict[tuple[int, int], dict[str, _Outcome]] = {}
    for call, outcome in zip(calls, outcomes, strict=True):
        by_pair.setdefault((call.pair, call.repeat), {})[call.side or ""] = outcome
    rows = []
    for (pair, repeat), sides in by_pair.items():
        raw = json.dumps({side: one.raw for side, one in sides.items()})
        row = shared[pair] | {"order": "none", "repeat": repeat, "raw": raw, "winner": "error"}
        if all(one.label is not None for one in sides.values()):
            a, b = (float(spec.prompt.verdicts[str(sides[side].label)]) for side in "ab")
            row["winner"] = "tie" if a == b else "a" if a > b else "b"
            if sides["a"].logprobs and sides["b"].logprobs:
                ratings = list(spec.prompt.verdicts.values())
                row["preference"] = higher_rated(sides["a"].logprobs, sides["b"].logprobs, ratings)
        rows.append(row)
    return rows
