"""The bytes of texts in an Arrow array, as the kernels take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def arrow_buffers(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the bytes and the n + 1 offsets of an Arrow large_string array without copying."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, dtype=np.uint8), bounds


def make_read_only(values: Iterable[Any]) -> None:
    """Refuse writing to those that are arrays, as to arrays mapped from files: numba compiles anew for others."""
    for value in values:
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
