"""Where shards are processed: this machine's processes, or a Ray cluster; the same tasks give the same results."""

from evalkit.engines.choose import choose
from evalkit.engines.interface import Engine, Shared
from evalkit.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Shared", "choose"]
