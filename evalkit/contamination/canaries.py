"""Canary strings: what benchmarks carry so that whoever finds it knows that the benchmark is in the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import yaml

from evalkit.contamination.benchmarks import CANARY, Benchmark, Item
from evalkit.resources import resource_dir

CANARIES: Final = "canaries"
"""Name of the benchmark that they are looked for as."""


@dataclass(frozen=True)
class Canary:
    """One canary string, and whose it is."""

    name: str
    text: str
    source: str


@lru_cache(maxsize=1)
def canaries() -> tuple[Canary, ...]:
    """The canary strings in `audits/canaries.yaml`."""
    return tuple(
        Canary(**one) for one in yaml.safe_load((resource_dir("audits") / "canaries.yaml").read_text(encoding="utf-8"))
    )


def canary_benchmark() -> Benchmark:
    """The canaries as a benchmark, to be found by the same scan; the name of each stands in place of the hash."""
    items = tuple(Item(one.name, {CANARY: one.text}) for one in canaries())
    return Benchmark(name=CANARIES, source="audits/canaries.yaml", items=items, n_duplicates=0)
