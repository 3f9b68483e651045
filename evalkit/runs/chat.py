"""Asks a served model many questions at once, each on its own, through any OpenAI-compatible address."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from evalkit.errors import ModelError, SpecError
from evalkit.progress import logger
from evalkit.runs.client import Client, RequestError, Session, get_json, unexpected

_MAX_TOKENS: Final = 1024
"""Room for a model that thinks before it answers."""


def ask_all(
    prompts: Sequence[str],
    on_answer: Callable[[int, str | None], None],
    *,
    base_url: str,
    model: str,
    concurrency: int | None = None,
) -> None:
    """Ask every prompt as a chat of one message, greedily, and hand on the answers in whatever order they come.

    Parameters
    ----------
    prompts
        The questions.
    on_answer
        Called once for each, with its number and the text; None when the request failed for good, which is logged.
    base_url, model
        The server, with or without /v1, and the model's name there. The key is read from OPENAI_API_KEY.
    concurrency
        Requests in flight; None adapts.

    Raises
    ------
    ModelError
        The server does not answer, or does not serve such a model.
    """
    check_model(base_url, model)
    base, key = _base(base_url), os.environ.get("OPENAI_API_KEY")

    def read(reply: Any) -> str:
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise unexpected("no message") from None
        return text if isinstance(text, str) else ""

    def job(number: int, prompt: str) -> Callable[[Session], Awaitable[None]]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0.0}

        async def ask(session: Session) -> None:
            try:
                answer = await session.post("/v1/chat/completions", body, read)
            except RequestError as error:
                logger.warning("no answer: %s", error)
                on_answer(number, None)
            else:
                on_answer(number, answer)

        return ask

    jobs: Iterator[Callable[[Session], Awaitable[None]]] = (job(*one) for one in enumerate(prompts))
    Client(lambda: base, key=key, concurrency=concurrency).run(jobs)


def check_model(base_url: str, model: str) -> None:
    """Do nothing if the server lists the model; to be called before anything long is begun in vain.

    Raises
    ------
    SpecError
        The address is none.
    ModelError
        The server does not answer, or does not serve such a model.
    """
    base = _base(base_url)
    if not base.startswith(("http://", "https://")):
        raise SpecError(f"'{base_url}' is no address", where="the model's address", do="Give http://HOST:PORT")
    models = get_json(f"{base}/v1/models", key=os.environ.get("OPENAI_API_KEY"))
    try:
        known = [str(card["id"]) for card in models["data"]]
    except (KeyError, TypeError):
        raise ModelError("this is no OpenAI-compatible server", where=base, do="Check the address") from None
    if model not in known:
        raise ModelError(f"the server does not serve '{model}'", where=base, do=f"It serves: {', '.join(known)}")


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")
