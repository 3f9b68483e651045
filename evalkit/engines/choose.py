"""The engine that a command's options name."""

from __future__ import annotations

from typing import Final

from evalkit.engines.interface import Engine
from evalkit.engines.local import LocalEngine
from evalkit.errors import SpecError

ENGINES: Final = ("local", "ray")


def choose(engine: str = "local", ray_address: str | None = None, workers: int | None = None) -> Engine:
    """Return the engine that the options `--engine`, `--ray-address` and `--workers` mean.

    Parameters
    ----------
    engine
        One of `ENGINES`.
    ray_address
        Of the cluster, for Ray; None is `auto`. See `evalkit.engines.ray.RayEngine`.
    workers
        Processes of this machine, or tasks that the cluster does at a time; None: as many as there are processors.

    Raises
    ------
    SpecError
        There is no such engine, or an address is given without Ray.
    EngineError
        There is no Ray, or no cluster at the address.
    """
    if engine not in ENGINES:
        raise SpecError(f"there is no engine '{engine}'", where="--engine", do=f"Choose one of: {', '.join(ENGINES)}")
    if engine == "ray":
        from evalkit.engines.ray import RayEngine

        return RayEngine(ray_address or "auto", workers)
    if ray_address is not None:
        raise SpecError("an address of a Ray cluster is given without it", where="--ray-address", do="Add --engine ray")
    return LocalEngine(workers)
