"""Turns an endless stream of generated questions into a test set: unique, balanced, the same for a seed everywhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset, DatasetDict

from evalkit.errors import TaskError

Item = dict[str, Any]

N_EXAMPLES = 64
"""Size of the few-shot split."""

PATIENCE = 1000
"""So many known questions in a row mean that the family has no more to give."""


def dataset(family: str, task_seed: int | None = None, n_items: int | None = None, **_: object) -> DatasetDict:
    """Generate the splits `test` and `fewshot` of one family; they share no question.

    lm-eval passes the task's `metadata`, with the metadata of the run laid over it, as keyword arguments.

    Parameters
    ----------
    family
        Name of the module beside this one whose `items(rng)` yields the questions.
    task_seed
        The same seed gives the same items on every machine; a new one gives new items. None is 0.
    n_items
        Size of the test split; a smaller set is the beginning of a larger one. None is 500.

    Raises
    ------
    TaskError
        The family does not exist or has fewer than `n_items` different questions.
    """
    seed = 0 if task_seed is None else task_seed
    n = 500 if n_items is None else n_items
    if n < 1:
        raise TaskError(f"n_items is {n}", where=f"gen_{family}", do="Ask for at least one item")
    stream = _load(family)
    examples = _take(stream, family, "fewshot", seed, N_EXAMPLES, seen=set())
    # The examples come first, so that neither split depends on how many items are asked for.
    test = _take(stream, family, "test", seed, n, seen={item["question"] for item in examples})
    return DatasetDict(test=Dataset.from_list(test), fewshot=Dataset.from_list(examples))


def _load(family: str) -> Callable[[Random], Iterator[Item]]:
    """Find the generator of a family: lm-eval loads task code by path, so the modules here form no package."""
    path = Path(__file__).with_name(f"{family}.py")
    if not path.is_file():
        raise TaskError(f"there is no family '{family}'", where=str(path.parent), do="Mend `family` in the task's YAML")
    spec = importlib.util.spec_from_file_location(f"evalkit_generated_{family}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while it is being loaded
    spec.loader.exec_module(module)
    items: Callable[[Random], Iterator[Item]] = module.items
    return items


def _take(
    stream: Callable[[Random], Iterator[Item]], family: str, split: str, seed: int, n: int, seen: set[str]
) -> list[Item]:
    """Take the first `n` items whose question is not in `seen`, number them and place the right choices."""
    placing = Random(f"{family}:{split}:{seed}:positions")
    positions: list[int] = []
    taken: list[Item] = []
    repeated = 0
    for item in stream(Random(f"{family}:{split}:{seed}")):
        if item["question"] in seen:
            repeated += 1
            if repeated > PATIENCE:
                raise TaskError(
                    f"the family has only {len(taken)} different questions, {n} were asked for",
                    where=f"gen_{family}, seed {seed}, split {split}",
                    do="Ask for fewer (n_items)",
                )
            continue
        seen.add(item["question"])
        repeated = 0
        numbered = {"id": f"{family}-{seed}-{split}-{len(taken)}", **item}
        taken.append(_place(numbered, positions, placing) if "distractors" in item else numbered)
        if len(taken) == n:
            break
    return taken


def _place(item: Item, positions: list[int], rng: Random) -> Item:
    """Make one list of choices; of k items in a row, each has the right one at another of the k positions."""
    choices = rng.sample(item["distractors"], len(item["distractors"]))
    if not positions:
        positions.extend(rng.sample(range(len(choices) + 1), len(choices) + 1))
    position = positions.pop()
    choices.insert(position, item["answer"])
    rest = {key: value for key, value in item.items() if key not in ("id", "question", "answer", "distractors")}
    return {"id": item["id"], "question": item["question"], "choices": choices, "answer": position, **rest}
