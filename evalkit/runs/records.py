"""From lm-eval's sample records to rows of the samples table."""

from __future__ import annotations

import hashlib
import json
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evalkit.tasks import cluster_of


def sample_rows(
    task: Any, samples: Sequence[Mapping[str, Any]], common: Mapping[str, Any], count_tokens: Callable[[str], int]
) -> Iterator[dict[str, Any]]:
    """Yield one row per sample and metric; lm-eval's samples are one per document and filter.

    Parameters
    ----------
    task
        The lm-eval task.
    samples
        What `lm_eval.evaluate` logged for it.
    common
        The columns that all rows of this pass share: run_id, model, seed, repeat.
    count_tokens
        Length of a text in the model's tokens.
    """
    prompt_tokens: dict[int, int] = {}
    for sample in samples:
        doc_id = int(sample["doc_id"])
        response = response_text(task, sample)
        if doc_id not in prompt_tokens:
            prompt_tokens[doc_id] = count_tokens(str(sample["arguments"][0][0]))
        for metric in sample["metrics"]:
            yield {
                **common,
                "task": task.config.task,
                "doc_id": doc_id,
                "filter": sample["filter"],
                "metric": metric,
                "doc_hash": sample["doc_hash"],
                "prompt_hash": prompt_hash(sample["arguments"]),
                "cluster": cluster_of(task, sample["doc"]),
                "score": item_score(sample[metric]),
                "response": response,
                "target": target_text(task, sample),
                "prompt_tokens": prompt_tokens[doc_id],
            }


def item_score(value: Any) -> float | None:
    """The score of one item, None for a metric that has no number per item (F1, perplexity: they are aggregated)."""
    if isinstance(value, bool | np.bool_ | numbers.Real):
        return float(value)
    return None


def prompt_hash(arguments: Sequence[Sequence[Any]]) -> str:
    """Return the sha256 over every request made for an item: contexts, continuations and generation settings.

    lm-eval's own `prompt_hash` covers the first request's context only, so two runs whose choices or generation
    settings differ look alike there.
    """
    return hashlib.sha256(json.dumps([list(one) for one in arguments], default=str).encode()).hexdigest()


def response_text(task: Any, sample: Mapping[str, Any]) -> str:
    """What the model answered: its text, or the choice that it finds likeliest, or the log-likelihood itself."""
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first
    choices = _choices(task, sample["doc"])
    if choices and len(sample["resps"]) >= len(choices):
        # With mutual information there are as many further requests, without the context.
        likelihoods = [responses[0][0] for responses in sample["resps"][: len(choices)]]
        return str(choices[int(np.argmax(likelihoods))])
    return str(first[0] if isinstance(first, tuple | list) else first)


def target_text(task: Any, sample: Mapping[str, Any]) -> str:
    """The right answer as text; several right answers one a line."""
    target, choices = sample["target"], _choices(task, sample["doc"])
    several = target if isinstance(target, list) else [target]
    return "\n".join(
        str(choices[one]) if isinstance(one, int) and 0 <= one < len(choices) else str(one) for one in several
    )


def _choices(task: Any, doc: Any) -> Sequence[str]:
    return task.doc_to_choice(doc) if task.config.doc_to_choice is not None else ()
