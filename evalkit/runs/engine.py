"""What an engine is: it takes scoring and generation requests as tokens, and tells each answer as it comes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from evalkit.errors import SpecError

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scoring:
    """Ask for the log-likelihood of `continuation` after `context`, both as token ids and neither empty."""

    context: Tokens
    continuation: Tokens


@dataclass(frozen=True, slots=True)
class Sampling:
    """Every parameter of one generation. All of them are always sent, so that no server default changes a score.

    `temperature` 0 is greedy decoding; `seed` is then None. `top_k` 0 and `top_p` 1 mean no limit.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Ask for a text after `prompt` (token ids), or as the next message of a conversation (`messages`, JSON).

    With `choices` the text is one of them, and the log-probabilities of its first token are told; only servers with
    `guidance` can do that.
    """

    prompt: Tokens
    sampling: Sampling
    messages: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes
    ----------
    text
        Of a generation.
    logprob, greedy
        Of a scoring: log-likelihood in nats, and whether greedy decoding would have given the continuation.
    first_token
        Of a choice among texts: log-probabilities in nats of the likeliest first tokens, by their text.
    finish_reason
        `stop` or `length`; None for a scoring.
    prompt_tokens, output_tokens
        Lengths in tokens.
    latency
        Seconds from sending to answer; in a batch, of the whole batch.
    error
        Why there is no answer; the request failed for good.
    """

    text: str | None = None
    logprob: float | None = None
    greedy: bool | None = None
    first_token: dict[str, float] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    latency: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}


Tell = Callable[[int, Answer], None]
"""Called with the position of a request and its answer, as soon as it is there."""


class Engine(Protocol):
    """A model that answers.

    Attributes
    ----------
    max_length
        The model's window in tokens.
    max_scored
        Most tokens of context and continuation together in one scoring.
    encoder_decoder
        Whether context and continuation are read by different halves of the model, and so are encoded apart.
    """

    max_length: int
    max_scored: int
    encoder_decoder: bool

    def score(self, requests: Sequence[Scoring], tell: Tell) -> None:
        """Answer all requests, each exactly once."""

    def generate(self, requests: Sequence[Generation], tell: Tell) -> None:
        """Answer all requests, each exactly once."""

    def describe(self) -> dict[str, Any]:
        """What a record of the run should say about the engine."""


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """Scorings with one context: positions in the list of requests, and their continuations."""

    context: Tokens
    positions: list[int] = field(default_factory=list)
    continuations: list[Tokens] = field(default_factory=list)


def group_by_context(requests: Iterable[Scoring]) -> list[ContextGroup]:
    """Bring the choices of one item together, in order of first appearance."""
    groups: dict[Tokens, ContextGroup] = {}
    for position, request in enumerate(requests):
        group = groups.setdefault(request.context, ContextGroup(request.context))
        group.positions.append(position)
        group.continuations.append(request.continuation)
    return list(groups.values())


_MAX_TOKENS_NAMES: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NUMBERS: Final = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_NEUTRAL: Final[Mapping[str, Any]] = {"num_beams": 1, "length_penalty": 1.0, "num_return_sequences": 1, "n": 1}
DEFAULT_MAX_TOKENS: Final = 256
"""lm-eval's own default of `max_gen_toks`."""


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """Read a task's generation settings as lm-eval's transformers and vLLM backends do.

    `do_sample: false` means temperature 0, whatever temperature stands beside it; lm-eval's HTTP backend would send
    that temperature.

    Raises
    ------
    SpecError
        A setting is unknown, or sampling is asked for at temperature 0.
    """
    left = {name: value for name, value in settings.items() if value is not None}
    stop = left.pop("until", None) or ()
    limits = [left.pop(name) for name in _MAX_TOKENS_NAMES if name in left]
    do_sample = left.pop("do_sample", None)
    temperature = float(left.pop("temperature", 1.0 if do_sample else 0.0))
    if do_sample is False:
        temperature = 0.0
    if do_sample and temperature == 0.0:
        raise SpecError(
            "generation settings ask for sampling at temperature 0",
            where="generation_kwargs",
            do="Set temperature, or do_sample=false",
        )
    numbers: dict[str, Any] = {name: float(left.pop(name)) for name in _NUMBERS if name in left}
    top_k = int(left.pop("top_k", 0))
    # A draw is seeded by the run, the item and the repeat.
    left.pop("seed", None)
    if unknown := [name for name, value in left.items() if _NEUTRAL.get(name) != value]:
        raise SpecError(
            f"unknown generation setting '{unknown[0]}'",
            where="generation_kwargs",
            do=f"Known: until, {', '.join((*_MAX_TOKENS_NAMES, 'do_sample', 'temperature', 'top_k', *_NUMBERS))}",
        )
    if temperature == 0.0:
        # Greedy decoding does not look at these; one way of writing it makes equal requests equal.
        numbers = {name: value for name, value in numbers.items() if "penalty" in name}
        top_k = 0
    return Sampling(
        max_tokens=int(limits[0]) if limits else DEFAULT_MAX_TOKENS,
        stop=(stop,) if isinstance(stop, str) else tuple(one for one in stop if one),
        temperature=temperature,
        top_k=max(top_k, 0),
        **numbers,
    )


def cut_at_stop(text: str, stop: Iterable[str]) -> tuple[str, bool]:
    """Cut `text` before the first stop string; also say whether there was one."""
    found = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


@dataclass(frozen=True, slots=True)
class Stops:
    """Stop strings, by where they can be seen: an answer's text is without the special tokens that were generated.

    Attributes
    ----------
    strings
        All of them. They are looked for in the text, where a model may also have spelled a special token out.
    token_ids
        Of the strings that are one special token.
    mixed
        The strings with a special token beside other text, as `<|im_end|>\n`; to be looked for in the text with its
        special tokens.
    special
        The texts of all special tokens.
    """

    strings: tuple[str, ...]
    token_ids: tuple[int, ...]
    mixed: tuple[str, ...]
    special: frozenset[str]


def stops_of(strings: tuple[str, ...], special: Mapping[str, int]) -> Stops:
    """Sort stop strings by the special tokens in them."""
    return Stops(
        strings,
        tuple(special[one] for one in strings if one in special),
        tuple(one for one in strings if one not in special and any(token in one for token in special)),
        frozenset(special),
    )


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that decoding leaves out: text and id.

    Not all of them have a name such as EOS: Llama 3 keeps its turn markers among the added tokens only.
    """
    ids = set(tokenizer.all_special_ids)
    with contextlib.suppress(NotImplementedError):  # mistral-common's tokenizers name all theirs
        ids |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    texts = {tokenizer.decode([token]): token for token in sorted(ids)}
    return {text: token for text, token in texts.items() if text}


def without_special(text: str, special: Iterable[str]) -> str:
    """Take the special tokens out of `text`; of two that begin alike, the longer one."""
    return re.sub("|".join(map(re.escape, sorted(special, key=len, reverse=True))), "", text)


def decode_until(tokenizer: Any, tokens: Sequence[int], stops: Stops) -> tuple[str, bool]:
    """Decode without special tokens up to the first stop string; also say whether there was one."""
    if stops.mixed:
        text, cut = cut_at_stop(tokenizer.decode(tokens, skip_special_tokens=False), stops.mixed)
        if cut:
            return cut_at_stop(without_special(text, stops.special), stops.strings)[0], True
    return cut_at_stop(tokenizer.decode(tokens, skip_special_tokens=True), stops.strings)
