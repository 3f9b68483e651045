"""Files of arrays, in numpy's format: whole or not at all, and mapped when they are read."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import InputError
from evalkit.files import atomic_path

PASSING: Final = "*.passing-*.npy"
"""Pattern of the names of files that pass."""

_HEADER_BYTES: Final = 128


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Map an array from its file.

    Raises
    ------
    InputError
        The file is damaged or gone.
    """
    try:
        # As a plain array: what the kernels are compiled for. Files of no bytes but the header cannot be mapped.
        array = np.load(path, mmap_mode=None if path.stat().st_size <= _HEADER_BYTES else "r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the file cannot be read ({error})", where=str(path), do="Delete it; it is made again"
        ) from None
    return np.asarray(array)


@contextlib.contextmanager
def writing(
    path: Path, kind: str, shape: tuple[int, ...] = (), *, is_passing: bool = False
) -> Iterator[Callable[[npt.NDArray[Any]], None]]:
    """Yield a function that appends to an array in a file, which appears whole.

    Parameters
    ----------
    path
        The file.
    kind, shape
        Of the elements, such as "<i8", and of each of the array's first dimension.
    is_passing
        The file is read and removed before the task ends: it need not survive anything, so nobody waits for the disk.
    """
    if is_passing:
        path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext(path) if is_passing else atomic_path(path) as temporary, temporary.open("wb") as file:
        n = 0

        def write(some: npt.NDArray[Any]) -> None:
            nonlocal n
            np.ascontiguousarray(some, dtype=kind).tofile(file)
            n += len(some)

        file.write(_header(kind, (0, *shape)))
        file.flush()
        yield write
        file.seek(0)
        file.write(_header(kind, (n, *shape)))


def passing_names(path: Path) -> Callable[[str], Path]:
    """Return what names files that pass, beside the file `path` that they serve to make.

    Each attempt at a task calls this once and gets names that no other has: an engine may begin a second copy of a task
    that takes long, and the workers of a killed driver go on for a while. They must not write each other's files.
    What an attempt that was killed has left matches `PASSING`.
    """
    stem = f"{path.stem}.passing-{uuid.uuid4().hex[:8]}"
    return lambda name: path.with_name(f"{stem}.{name}.npy")


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    """The head of a file of numpy's (format 1.0), always of as many bytes, so that the shape can be told last."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    size = _HEADER_BYTES - 10
    return b"\x93NUMPY\x01\x00" + size.to_bytes(2, "little") + f"{text:<{size - 1}}\n".encode()
