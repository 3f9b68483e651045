"""The engine behind an OpenAI-compatible server: generations, and choices by the cheapest exact way it has."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from evalkit.runs.client import Client, Reply, RequestError, Session, unexpected
from evalkit.runs.engine import (
    Answer,
    ContextGroup,
    Generation,
    Sampling,
    Scoring,
    Stops,
    Tell,
    Tokens,
    cut_at_stop,
    group_by_context,
    special_tokens,
    stops_of,
    without_special,
)
from evalkit.runs.probe import ProbedScoring

FOREIGN_STOP_LIMIT: Final = 4
# vLLM takes at most 128 ids in logprob_token_ids.
_MAX_CHOICE_TOKENS: Final = 128
_BOUND: Final = 1e-3
# The most that OpenAI's API gives, and vLLM by default.
_TOP_LOGPROBS: Final = 20
_WRONG_SHAPE: Final = (AttributeError, KeyError, IndexError, TypeError, ValueError)
_Value = TypeVar("_Value")


class ServedEngine:
    """An engine over HTTP.

    Prompts travel as token ids, so that the server's tokenizer adds nothing. Requests are sent in the order of their
    tokens: neighbours share prefixes, which the server has then in its cache.

    Parameters
    ----------
    client
        Where requests go.
    model
        The name that the server knows the model by.
    max_length
        The model's window in tokens.
    stop_limit
        Most stop strings that the server takes; further ones are applied here, after the answer.
    token_logprobs, cached_prompt_logprobs
        Whether the server has vLLM's `logprob_token_ids`, and its token-in-token-out endpoint with cached prompts.
    chat
        Send conversations to the chat endpoint instead of token ids.
    all_parameters
        Whether the server knows vLLM's sampling parameters. They are then always sent; to others only where they mean
        something, since OpenAI's own server refuses what it does not know.
    tokenizer
        The model's. A server that knows vLLM's parameters then ends texts at stop strings with special tokens in them;
        its own search does not see those.
    bound
        Of the probe; see `ProbedScoring`.
    guidance
        The field by which the server holds a text to given choices: `structured_outputs`, or `guided_choice` of vLLM
        before 0.11; None where it cannot.
    """

    def __init__(
        self,
        client: Client,
        model: str,
        max_length: int,
        *,
        stop_limit: int = FOREIGN_STOP_LIMIT,
        token_logprobs: bool = True,
        cached_prompt_logprobs: bool = True,
        chat: bool = False,
        all_parameters: bool = False,
        tokenizer: Any = None,
        bound: float = _BOUND,
        guidance: str | None = None,
    ) -> None:
        self.client, self.model = client, model
        self.max_length = max_length
        # The server generates one token after each scored prompt.
        self.max_scored = max_length - 1
        self.encoder_decoder = False
        self.guidance = guidance
        self._stop_limit, self._chat, self._all_parameters = stop_limit, chat, all_parameters
        special = special_tokens(tokenizer) if all_parameters and tokenizer is not None else {}
        self._stops = functools.cache(lambda strings: stops_of(strings, special))
        full_text = self._score_full_text if cached_prompt_logprobs else None
        self._scoring = ProbedScoring(
            one_token=self._score_one_token if token_logprobs else full_text,
            full_text=full_text,
            plain=self._score_plain,
            bound=bound,
        )

    def describe(self) -> dict[str, Any]:
        """How choices were scored, retries, and the highest number of requests in flight."""
        return {
            "scoring": self._scoring.describe(),
            "n_retries": self.client.n_retries,
            "in_flight": self.client.most_in_flight,
        }

    def forget(self) -> None:
        """Probe again: the weights have changed."""
        self._scoring.forget()

    # -- Scoring -----------------------------------------------------------------------------------------------------

    def score(self, requests: Sequence[Scoring], tell: Tell) -> None:
        """Answer all requests, each exactly once."""
        if self._chat:
            raise RuntimeError("chat endpoints do not score")
        groups = sorted(group_by_context(requests), key=lambda group: group.context)
        self._scoring.score(groups, tell)

    def _score_plain(self, groups: Sequence[ContextGroup], tell: Tell) -> None:
        """One request for each choice, with the log-probabilities of the whole prompt."""
        self.client.run(
            self._job(self._echo, group, [which], tell) for group in groups for which in range(len(group.positions))
        )

    def _score_one_token(self, groups: Sequence[ContextGroup], tell: Tell) -> None:
        """One request for each item; the server takes a bounded number of token ids with it."""
        self.client.run(
            self._job(self._next_token, group, range(begin, len(group.positions))[:_MAX_CHOICE_TOKENS], tell)
            for group in groups
            for begin in range(0, len(group.positions), _MAX_CHOICE_TOKENS)
        )

    def _score_full_text(self, groups: Sequence[ContextGroup], tell: Tell) -> None:
        self.client.run(self._through_cache(group, tell) for group in groups)

    def _through_cache(self, group: ContextGroup, tell: Tell) -> Callable[[Session], Awaitable[None]]:
        async def job(session: Session) -> None:
            # The first choice puts the context into the server's cache, the others find it there.
            await self._job(self._cached_prompt, group, [0], tell)(session)
            rest = range(1, len(group.positions))
            await asyncio.gather(*(self._job(self._cached_prompt, group, [which], tell)(session) for which in rest))

        return job

    def _job(
        self,
        ask: Callable[[Session, Tokens, list[Tokens]], Awaitable[list[Answer]]],
        group: ContextGroup,
        which: Sequence[int],
        tell: Tell,
    ) -> Callable[[Session], Awaitable[None]]:
        """A job that asks for some choices of a group and tells the answers, or the error, of each."""

        async def job(session: Session) -> None:
            tokens = [group.continuations[one] for one in which]
            try:
                answers = await ask(session, group.context, tokens)
            except RequestError as error:
                answers = [Answer(error=str(error))] * len(tokens)
            for one, answer in zip(which, answers, strict=True):
                tell(group.positions[one], answer)

        return job

    async def _next_token(self, session: Session, context: Tokens, continuations: list[Tokens]) -> list[Answer]:
        """All one-token choices with one request that reads the context only."""
        wanted = sorted({tokens[0] for tokens in continuations})
        body = self._body(context) | {"logprobs": 1, "logprob_token_ids": wanted}

        def read(reply: Reply) -> list[Answer]:
            try:
                logprobs = reply["choices"][0]["logprobs"]
                table, [sampled, *_] = logprobs["top_logprobs"][0], logprobs["tokens"]
                names = [f"token_id:{token}" for [token] in continuations]
                return [_scored(reply, context, [table[name]], sampled == name) for name in names]
            except _WRONG_SHAPE:
                raise unexpected("no log-probabilities of the choices") from None

        result: list[Answer] = await session.post("/v1/completions", body, read)
        return result

    async def _cached_prompt(self, session: Session, context: Tokens, continuations: list[Tokens]) -> list[Answer]:
        """Prompt log-probabilities while reading the prefix cache.

        vLLM does not read the cache for such requests unless told to, because the places that come from the cache
        have no log-probabilities. We need those of the continuation only, and make sure that it was computed: the
        server says how many tokens came from the cache. Where that is too many, or the meaningless places hold a
        number that JSON cannot carry, the prompt is computed in full.
        """
        [tokens] = continuations
        try:
            result = await session.post(*self._tokens_in(context, tokens, skip_cache=False))
        except RequestError as error:
            if "JSON" not in str(error):
                raise
            result = None
        if result is None:
            result = await session.post(*self._tokens_in(context, tokens, skip_cache=True))
        return [result]

    def _tokens_in(self, context: Tokens, tokens: Tokens, *, skip_cache: bool) -> tuple[str, dict[str, Any], Any]:
        body = {
            "model": self.model,
            "token_ids": [*context, *tokens],
            "sampling_params": {
                "temperature": 0.0,
                "max_tokens": 1,
                "prompt_logprobs": 0,
                "detokenize": False,
                "skip_reading_prefix_cache": skip_cache,
            },
        }

        def read(reply: Reply) -> Answer | None:
            try:
                details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
                cached = details.get("cached_tokens")
                if not skip_cache and (cached is None or cached >= len(context)):
                    return None
                places = [
                    place[str(token)]
                    for place, token in zip(reply["prompt_logprobs"][len(context) :], tokens, strict=True)
                ]
                greedy = all(place["rank"] == 1 for place in places)
                return _scored(reply, context, [place["logprob"] for place in places], greedy)
            except _WRONG_SHAPE:
                raise unexpected("no log-probabilities of the prompt") from None

        return "/inference/v1/generate", body, read

    async def _echo(self, session: Session, context: Tokens, continuations: list[Tokens]) -> list[Answer]:
        """The plain way, as lm-eval's HTTP backend does it."""
        [tokens] = continuations
        body = self._body((*context, *tokens)) | {"logprobs": 1, "echo": True}

        def read(reply: Reply) -> Answer:
            try:
                logprobs = reply["choices"][0]["logprobs"]
                places = range(len(context), len(context) + len(tokens))
                values = [logprobs["token_logprobs"][place] for place in places]
                greedy = all(
                    value >= max(logprobs["top_logprobs"][place].values())
                    for value, place in zip(values, places, strict=True)
                )
                n_read = (reply.get("usage") or {}).get("prompt_tokens")
                answer = _scored(reply, context, values, greedy)
            except _WRONG_SHAPE:
                raise unexpected("no log-probabilities of the prompt") from None
            if n_read and n_read != len(context) + len(tokens):
                # With a token more or less, every place would be another token's.
                raise RequestError(f"the server read {n_read} tokens where {len(context) + len(tokens)} were sent")
            return answer

        return [await session.post("/v1/completions", body, read)]

    def _body(self, prompt: Tokens) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": 1,
            "temperature": 0.0,
            "return_tokens_as_token_ids": True,
        }

    # -- Generation --------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Generation], tell: Tell) -> None:
        """Answer all requests, each exactly once."""
        order = sorted(range(len(requests)), key=lambda position: requests[position].prompt)
        self.client.run(self._generation(position, requests[position], tell) for position in order)

    def _generation(self, position: int, request: Generation, tell: Tell) -> Callable[[Session], Awaitable[None]]:
        stops = self._stops(request.sampling.stop)
        path, body = self._generation_body(request, stops)

        def read(reply: Reply) -> Answer:
            try:
                choice, usage = reply["choices"][0], reply.get("usage") or {}
                text = choice["message"]["content"] if request.messages is not None else choice["text"]
                # A chat server answers null when the model said nothing, or thought until its limit.
                text, cut = _cut(_of(str, text) or "", stops)
                return Answer(
                    text=text,
                    first_token=_first_token(choice) if request.choices else None,
                    finish_reason="stop" if cut else _of(str, choice.get("finish_reason")),
                    prompt_tokens=_of(int, usage.get("prompt_tokens")),
                    output_tokens=_of(int, usage.get("completion_tokens")),
                    latency=reply.latency,
                )
            except _WRONG_SHAPE:
                raise unexpected("no text") from None

        async def job(session: Session) -> None:
            try:
                answer = await session.post(path, body, read)
            except RequestError as error:
                answer = Answer(error=str(error))
            tell(position, answer)

        return job

    def _generation_body(self, request: Generation, stops: Stops) -> tuple[str, dict[str, Any]]:
        import json

        sampling = request.sampling
        body = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop[: self._stop_limit]),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
        }
        extras = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        neutral = Sampling(max_tokens=sampling.max_tokens)
        body |= {
            name: value for name, value in extras.items() if self._all_parameters or value != getattr(neutral, name)
        }
        if stops.token_ids:
            body["stop_token_ids"] = list(stops.token_ids)
        if stops.mixed:
            body |= {"skip_special_tokens": False, "spaces_between_special_tokens": False}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if request.choices:
            choices = list(request.choices)
            body |= {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}
            body |= (
                {"guided_choice": choices}
                if self.guidance == "guided_choice"
                else {"structured_outputs": {"choice": choices}}
            )
        if request.messages is not None:
            return "/v1/chat/completions", body | {"messages": json.loads(request.messages)}
        return "/v1/completions", body | {"prompt": request.prompt}


def _cut(text: str, stops: Stops) -> tuple[str, bool]:
    """Cut a server's text before the first stop string; also say whether there was one that the server had not seen."""
    cut = False
    if stops.mixed:
        text, cut = cut_at_stop(text, stops.mixed)
        text = without_special(text, stops.special)
    text, cut_again = cut_at_stop(text, stops.strings)
    return text, cut or cut_again


def _first_token(choice: Any) -> dict[str, float] | None:
    """Log-probabilities of the first token of a chat's answer, by text; None where the server does not tell them."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    found: dict[str, float] = {}
    for one in content[0]["top_logprobs"]:
        # The likeliest comes first; others can have the same text where it is a part of a character.
        found.setdefault(str(one["token"]), float(one["logprob"]))
    return found


def _scored(reply: Reply, context: Tokens, logprobs: Sequence[Any], greedy: bool) -> Answer:
    """The answer to a scoring; ValueError where a log-probability is no number."""
    total = sum(map(float, logprobs))
    if not math.isfinite(total):
        raise ValueError("not a number")
    return Answer(logprob=total, greedy=greedy, prompt_tokens=len(context), latency=reply.latency)


def _of(kind: type[_Value], value: Any) -> _Value | None:
    """Pass on a value of a type, or None; TypeError for another type, which the tables could not hold."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
