"""The model that lm-eval sees: it turns texts into tokens, asks the journal first and the engine for the rest."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evalkit.errors import ModelError
from evalkit.runs.engine import Answer, Engine, Generation, Sampling, Scoring, Tokens, sampling_of
from evalkit.runs.health import warn_of
from evalkit.runs.journal import Journal, request_key
from evalkit.runs.preflight import PreflightFinding, PromptChecks


@dataclass(frozen=True)
class Rolled:
    """A text's log-likelihood in nats, its tokens, and why there is none."""

    logprob: float
    n_tokens: int
    error: str | None


class Asked(NamedTuple):
    """A request: its item, its place among the item's requests, its pass, and its key in the journal."""

    task: str
    doc_id: int
    place: int
    seed: int
    repeat: int
    key: str


class Conversation(str):
    """Messages as JSON, where a chat endpoint takes the place of a chat template."""


class EvalLM(TemplateLM):  # type: ignore[misc]
    """An lm-eval model over a journal and an engine.

    Texts become tokens as in lm-eval's transformers backend: the tokenizer decides about special tokens, unless the
    text begins with the BOS token already. Without a tokenizer, prompts go to a chat endpoint as messages.

    Attributes
    ----------
    answers
        Of the current pass, by (task, doc_id), in the order of lm-eval's requests.
    asked
        Of all passes: which answer in the journal belongs to which request.
    n_requests, n_from_journal
        All requests that lm-eval made, and those among them that the journal answered.
    n_errors
        Requests that failed for good.
    preflight
        What the checks of all prompts so far have found.
    """

    def __init__(
        self, engine: Engine, tokenizer: Any, journal: Journal, model_key: str, on_answer: Callable[[float], None]
    ) -> None:
        super().__init__()
        self.engine, self.tokenizer = engine, tokenizer
        self.answers: defaultdict[tuple[str, int], list[Answer]] = defaultdict(list)
        self.asked: list[Asked] = []
        self.n_requests = self.n_from_journal = 0
        self.preflight: list[PreflightFinding] = []
        self._journal, self._model_key, self._on_answer = journal, model_key, on_answer
        self.n_errors = self.n_prompt_tokens = self.n_output_tokens = 0
        self.request_seconds = 0.0
        self._seed, self._repeat = 0, 0
        self._subset: Mapping[str, Sequence[int] | None] = {}

    def failed(self) -> dict[str, set[int]]:
        """Items of the current pass, by task, of which a request failed."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for (task, doc_id), answers in self.answers.items():
            if any(answer.error for answer in answers):
                found[task].add(doc_id)
        return dict(found)

    def begin_pass(self, seed: int, repeat: int, subset: Mapping[str, Sequence[int] | None]) -> None:
        """Say which seed, repeat and documents the next requests belong to.

        `subset` has the documents of each task, in ascending order; None means all. lm-eval numbers requests by their
        place in the subset, and its samples by document.
        """
        self._seed, self._repeat, self._subset = seed, repeat, subset
        self.answers.clear()

    def _item(self, request: Instance) -> tuple[str, int]:
        """Task and document of a request."""
        documents = self._subset.get(request.task_name)
        return request.task_name, request.doc_id if documents is None else documents[request.doc_id]

    # -- Texts and tokens ----------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is no BOS."""
        bos = self.tokenizer.bos_token_id
        return int(bos if bos is not None else self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, with which lm-eval keys what depends on it."""
        if self.tokenizer is None:
            return "chat"
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode one text."""
        return self._encode([string], add_special_tokens)[string]

    def _encode(self, texts: Iterable[str], add_special_tokens: bool | None = None) -> dict[str, list[int]]:
        """Encode many texts at once; fast tokenizers then use all cores."""
        has_any = self.tokenizer.bos_token_id is not None or self.tokenizer.eos_token_id is not None
        prefix = self.tokenizer.decode([self.prefix_token_id]) if has_any else ""
        encoded: dict[str, list[int]] = {}
        by_flag: defaultdict[bool | None, list[str]] = defaultdict(list)
        for text in dict.fromkeys(texts):
            has_prefix = add_special_tokens is None and bool(prefix) and text.startswith(prefix)
            by_flag[False if has_prefix else add_special_tokens].append(text)
        for flag, some in by_flag.items():
            options = {} if flag is None else {"add_special_tokens": flag}
            encoded.update(zip(some, self.tokenizer(some, **options)["input_ids"], strict=True))
        return encoded

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Wrap a conversation in the model's chat template.

        Raises
        ------
        ModelError
            The model has no template, or its template does not take the conversation.
        """
        if self.tokenizer is None:
            return Conversation(json.dumps(chat_history))
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except Exception as error:  # jinja's errors and the templates' own
            raise ModelError(
                f"the chat template cannot be applied ({str(error).splitlines()[0]})",
                where=self.tokenizer_name,
                do="Run without --chat-template, or without --system-instruction if the template takes none",
            ) from error

    # -- What lm-eval asks ---------------------------------------------------------------------------------------

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False, *, keep_spaces: bool = False
    ) -> list[tuple[float, bool]]:
        """Score each continuation after its context: (log-likelihood in nats, whether it is the greedy one).

        With `keep_spaces` a context keeps the white space at its end, so that a label after a chat template's newline
        is one token, for which the engines have cheaper ways.
        """
        pairs = self._encode_pairs([request.args for request in requests], keep_spaces=keep_spaces)
        self._check_prompts(requests, [c for c, _ in pairs], [len(k) for _, k in pairs], self.engine.max_scored)
        asked = [Scoring(*self._fit(context, continuation)) for context, continuation in pairs]
        answers = self._ask("loglikelihood", requests, asked, [_texts(request) for request in requests])
        return [_likelihood(answer) for answer in answers]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("scoring goes through loglikelihood")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score each text from its beginning, in nats: lm-eval's disjoint windows, each with one token of context."""
        rolled = self._roll([request.args[0] for request in requests], requests, None)
        return [float("nan") if one.error else one.logprob for one in rolled]

    def roll(self, texts: Sequence[str], *, stride: int | None = None) -> list[Rolled]:
        """Score texts outside of any task.

        `stride` is the number of new tokens in each window; None makes windows that do not overlap.
        """
        instances = [Instance("loglikelihood_rolling", {}, (text,), 0, ("", n, 1)) for n, text in enumerate(texts)]
        return self._roll(texts, instances, stride)

    def _roll(self, texts: Sequence[str], instances: Sequence[Instance], stride: int | None) -> list[Rolled]:
        encoded = self._encode(texts)
        window = self.engine.max_scored - 1
        new = min(stride or window, window)
        asked, of, counts = [], [], []
        for text, instance in zip(texts, instances, strict=True):
            windows = [
                make_disjoint_window(one)
                for one in get_rolling_token_windows(
                    token_list=encoded[text],
                    prefix_token=self.prefix_token_id,
                    max_seq_len=window,
                    context_len=window - new + 1,
                )
            ]
            asked += [Scoring(tuple(context), tuple(continuation)) for context, continuation in windows]
            of += [instance] * len(windows)
            counts.append(len(windows))
        answers = iter(self._ask("loglikelihood", of, asked, [{} for _ in of]))
        rolled = []
        for text, count in zip(texts, counts, strict=True):
            mine = [next(answers) for _ in range(count)]
            error = next((one.error for one in mine if one.error), None)
            rolled.append(Rolled(sum((one.logprob or 0.0 for one in mine), 0.0), len(encoded[text]), error))
        return rolled

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate a text for each context."""
        is_chat = self.tokenizer is None
        encoded = {} if is_chat else self._encode(request.args[0] for request in requests)
        seen: Counter[tuple[str, int]] = Counter()
        asked, shown = [], []
        for request in requests:
            context, settings = request.args
            sampling = sampling_of(settings)
            item = self._item(request)
            if sampling.temperature > 0:
                sampling = self._seeded(sampling, item, seen[item])
            seen[item] += 1
            if is_chat:
                asked.append(Generation((), sampling, _messages(context)))
            else:
                asked.append(Generation(self._fit_prompt(encoded[context], sampling.max_tokens), sampling))
            shown.append({"context": context})
        if not is_chat:
            self._check_prompts(
                requests,
                [encoded[request.args[0]] for request in requests],
                [one.sampling.max_tokens for one in asked],
                self.engine.max_length,
            )
        return [answer.text or "" for answer in self._ask("generate_until", requests, asked, shown)]

    def choose(self, requests: Sequence[Instance], choices: Sequence[str], max_tokens: int) -> list[Answer]:
        """Have one of `choices` written as the next message of each conversation, by a server with guidance."""
        sampling = Sampling(max_tokens)
        asked = [Generation((), sampling, _messages(one.args[0]), tuple(choices)) for one in requests]
        return self._ask("generate_until", requests, asked, [{"context": one.args[0]} for one in requests])

    def _seeded(self, sampling: Sampling, item: tuple[str, int], occurrence: int) -> Sampling:
        """Give a draw its own seed, from run seed, item and repeat: K repeats are K different samples."""
        name = f"{self._seed}:{item[0]}:{item[1]}:{self._repeat}:{occurrence}"
        # 31 bits: every engine takes them.
        return replace(sampling, seed=int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") >> 1)

    def _encode_pairs(
        self, texts: Sequence[tuple[str, str]], *, keep_spaces: bool = False
    ) -> list[tuple[list[int], list[int]]]:
        """Split (context, continuation) into tokens as lm-eval does.

        Spaces at the end of the context belong to the continuation, and the whole is encoded in one piece, unless the
        two are read by different halves of the model. Spaces are kept where the tokens of the context stay the same
        before each of its continuations.
        """
        joined: set[str] = set()
        if keep_spaces:
            encoded = self._encode(text for context, label in texts for text in (context, context + label))
            joined = {c for c, k in texts if encoded[c + k][: len(encoded[c])] != encoded[c]}
        moved = []
        for context, continuation in texts:
            kept = context.rstrip() if context.strip() else ""
            if keep_spaces and context not in joined:
                kept = context
            moved.append((kept, context[len(kept) :] + continuation) if context else ("", continuation))
        apart = self.engine.encoder_decoder
        whole = self._encode(
            text
            for context, continuation in moved
            if context
            for text in ((context,) if apart else (context, context + continuation))
        )
        bare = self._encode((continuation for context, continuation in moved if apart or not context), False)
        pairs = []
        for context, continuation in moved:
            if context and apart:
                pairs.append((whole[context], bare[continuation]))
            elif context:
                start = whole[context]
                pairs.append((start, whole[context + continuation][len(start) :]))
            else:
                tokens, prefix = bare[continuation], self.prefix_token_id
                pairs.append((tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens))
        return pairs

    def _fit(self, context: list[int], continuation: list[int]) -> tuple[Tokens, Tokens]:
        """Cut a context from the left where it, or both together in one window, exceed the model's."""
        if not continuation:
            raise ModelError("a choice has no tokens", where=self.tokenizer_name, do="Mend the task's choices")
        room = self.engine.max_scored - len(continuation)
        if room <= 0:
            raise ModelError(
                f"a continuation of {len(continuation)} tokens does not fit the model's window of "
                f"{self.engine.max_length}",
                where=self.tokenizer_name,
                do="Leave the task out, or use a model with a longer window",
            )
        kept = self.engine.max_length if self.engine.encoder_decoder else room
        return tuple(context[-kept:]), tuple(continuation)

    def _fit_prompt(self, prompt: list[int], max_tokens: int) -> Tokens:
        """Cut a prompt from the left where it leaves no room for the answer, or has no room itself."""
        room = self.engine.max_length - (0 if self.engine.encoder_decoder else max_tokens)
        if room <= 0:
            raise ModelError(
                f"the task generates up to {max_tokens} tokens, and the model's window is {self.engine.max_length}",
                where=self.tokenizer_name,
                do="Set a smaller --gen-kwargs max_gen_toks=N",
            )
        return tuple(prompt[-room:])

    def _check_prompts(
        self, requests: Sequence[Instance], prompts: Sequence[list[int]], reserved: Sequence[int], room: int
    ) -> None:
        """Check lengths and BOS before anything is sent; a finding is told again when it is of further tasks."""
        if self.engine.encoder_decoder:
            # The decoder has a window of its own.
            reserved, room = [0] * len(prompts), self.engine.max_length
        self._checks.add([request.task_name for request in requests], prompts, reserved, room)
        told = {(one.advice, one.tasks) for one in self.preflight}
        self.preflight = self._checks.findings()
        warn_of([one for one in self.preflight if (one.advice, one.tasks) not in told])

    @functools.cached_property
    def _checks(self) -> PromptChecks:
        bos = self.tokenizer.bos_token_id
        return PromptChecks(self.engine.max_length, bos, list(self.tokenizer("a")["input_ids"][:1]) == [bos])

    # -- Journal and engine --------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        instances: Sequence[Instance],
        requests: Sequence[Scoring] | Sequence[Generation],
        texts: Sequence[dict[str, Any]],
    ) -> list[Answer]:
        """Answer all requests: from the journal, else from the engine. Equal requests are sent once."""
        keys = [self._key(request) for request in requests]
        waiting = Counter(keys)
        known = {key: Answer(**stored) for key, stored in self._journal.find(waiting).items()}
        self.n_requests += len(keys)
        from_journal = sum(waiting[key] for key in known)
        self.n_from_journal += from_journal
        self._on_answer(from_journal)
        missing: dict[str, int] = {}
        for number, key in enumerate(keys):
            if key not in known:
                missing.setdefault(key, number)
        open_keys, numbers = list(missing), list(missing.values())

        def tell(position: int, answer: Answer) -> None:
            key, number = open_keys[position], numbers[position]
            known[key] = answer
            if answer.error is None:
                self._journal.add(key, method, _shown(requests[number]) | texts[number], answer.to_dict())
            self._on_answer(waiting[key])

        if missing:
            ask: Any = self.engine.score if method == "loglikelihood" else self.engine.generate
            begun = time.monotonic()
            ask([requests[number] for number in numbers], tell)
            self.request_seconds += time.monotonic() - begun
        answers = [known[key] for key in keys]
        self.n_errors += sum(answer.error is not None for answer in answers)
        for instance, key, answer in zip(instances, keys, answers, strict=True):
            task, doc_id = item = self._item(instance)
            self.asked.append(Asked(task, doc_id, len(self.answers[item]), self._seed, self._repeat, key))
            self.n_prompt_tokens += answer.prompt_tokens or 0
            self.n_output_tokens += answer.output_tokens or 0
            self.answers[item].append(answer)
        return answers

    def _key(self, request: Scoring | Generation) -> str:
        sampled = isinstance(request, Generation) and request.sampling.temperature > 0
        return request_key(self._model_key, _shown(request), repeat=self._repeat if sampled else None)


def _texts(request: Instance) -> dict[str, str]:
    """The texts of a scoring, which the journal keeps beside the tokens."""
    context, continuation = request.args
    return {"context": context, "continuation_text": continuation}


def _messages(context: str) -> str:
    """A prompt as a conversation: the one that lm-eval made, or a single message."""
    return str(context) if isinstance(context, Conversation) else json.dumps([{"role": "user", "content": context}])


def _shown(request: Scoring | Generation) -> dict[str, Any]:
    """Everything that defines a request, as plain values; without the choices where the text is free."""
    return {name: value for name, value in asdict(request).items() if name != "choices" or value}


def _likelihood(answer: Answer) -> tuple[float, bool]:
    """What lm-eval expects; NaN for a failed request, whose item is taken out of all scores afterwards."""
    return (float("nan") if answer.logprob is None else answer.logprob, bool(answer.greedy))
