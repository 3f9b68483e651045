"""MinHash signatures of texts, bit-identical to datasketch 2's for the same shingles and hash function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from evalkit.dedup import kernels
from evalkit.dedup.shingles import Shingling
from evalkit.errors import InputError, SpecError
from evalkit.text.buffers import arrow_buffers
from evalkit.text.normalise import fold_table

if TYPE_CHECKING:
    from datasketch import MinHash

UInt32 = npt.NDArray[np.uint32]
HashName = Literal["sha1", "xxh32"]

SCHEME: Final = "affine32"
"""datasketch's name for the permutations: a * fmix32(h) + b modulo 2^32, with odd a."""

_FUNCTIONS: Final = {"sha1": kernels.SHA1, "xxh32": kernels.XXH32}
MAX_NUM_PERM: Final = 4096


@dataclass(frozen=True)
class MinHashing:
    """How documents become signatures. Signatures can be compared when all of this is equal.

    Attributes
    ----------
    shingling
        How a text becomes shingles.
    num_perm
        Permutations, and so values of a signature.
    seed
        Of the permutations, as datasketch takes it.
    hash_name
        "sha1": datasketch's default. "xxh32": equal to `MinHash(hashfunc=lambda b: xxhash.xxh32(b).intdigest())`.

    Raises
    ------
    SpecError
        A value makes no sense.
    """

    shingling: Shingling = field(default_factory=Shingling)
    num_perm: int = 128
    seed: int = 1
    hash_name: HashName = "sha1"

    def __post_init__(self) -> None:
        if not 2 <= self.num_perm <= MAX_NUM_PERM:
            raise SpecError(f"{self.num_perm} permutations", where="--num-perm", do=f"Use 2 to {MAX_NUM_PERM:,}")
        if not 0 <= self.seed < 1 << 32:
            raise SpecError(f"the seed {self.seed}", where="--seed", do="Use a number from 0 to 2^32 - 1")
        if self.hash_name not in _FUNCTIONS:
            raise SpecError(f"no hash '{self.hash_name}'", where="--hash", do=f"Use {' or '.join(_FUNCTIONS)}")

    @property
    def function(self) -> int:
        """The hash function's number in the kernels."""
        return _FUNCTIONS[self.hash_name]


@dataclass(frozen=True)
class Signed:
    """The signatures of some texts.

    Attributes
    ----------
    signatures
        uint32[n, num_perm].
    n_tokens
        int64[n]: tokens of each text.
    n_shingles
        int64[n]: its shingles, equal ones counted as often as they occur.
    """

    signatures: UInt32
    n_tokens: npt.NDArray[np.int64]
    n_shingles: npt.NDArray[np.int64]


@lru_cache(maxsize=8)
def permutations(num_perm: int, seed: int = 1) -> tuple[UInt32, UInt32]:
    """Return datasketch 2's a (odd) and b of affine32, each uint32[num_perm]."""
    generator = np.random.RandomState(seed)
    a = generator.randint(0, 1 << 31, num_perm, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, generator.randint(0, 1 << 32, num_perm, dtype=np.uint32)


def sign(texts: pa.Array | Sequence[str], how: MinHashing = MinHashing()) -> Signed:
    """Return the signatures of texts: an Arrow large_string array without nulls, or strings."""
    array = texts if isinstance(texts, pa.LargeStringArray) else pa.array(texts, type=pa.large_string())
    data, offsets = arrow_buffers(array)
    n = len(array)
    signatures = np.empty((n, how.num_perm), dtype=np.uint32)
    n_tokens, n_shingles = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    kernels.sign_texts(
        data, offsets, fold_table().arrays, how.shingling.unit == "words", how.shingling.size, how.function,
        *permutations(how.num_perm, how.seed), signatures, n_tokens, n_shingles,
    )  # fmt: skip
    return Signed(signatures, n_tokens, n_shingles)


def sign_shingles(sets: pa.LargeListArray | Sequence[Sequence[bytes]], how: MinHashing = MinHashing()) -> UInt32:
    """Return the signatures, uint32[n, num_perm], of ready shingles.

    Parameters
    ----------
    sets
        For each document its shingles: an Arrow array of large_list<large_binary> without nulls, or lists of bytes.
    how
        Its shingling does not count.
    """
    kind = pa.large_list(pa.large_binary())
    array = sets if isinstance(sets, pa.LargeListArray) else pa.array(sets, type=kind)
    if array.type != kind:
        array = array.cast(kind)
    data, offsets = arrow_buffers(array.values)
    signatures = np.empty((len(array), how.num_perm), dtype=np.uint32)
    bounds = array.offsets.to_numpy()
    kernels.sign_shingles(data, offsets, bounds, how.function, *permutations(how.num_perm, how.seed), signatures)
    return signatures


def hash_function(name: HashName) -> Callable[[bytes], int]:
    """Return the hash function as datasketch takes it (`hashfunc`); "xxh32" needs the package xxhash."""
    if name == "sha1":
        return _sha1
    from xxhash import xxh32_intdigest

    return xxh32_intdigest


def _sha1(shingle: bytes) -> int:
    return int.from_bytes(hashlib.sha1(shingle, usedforsecurity=False).digest()[:4], "little")


def to_datasketch(signatures: UInt32, how: MinHashing = MinHashing()) -> list[MinHash]:
    """Return the signatures, uint32[n, num_perm], as `datasketch.MinHash` objects, as if it had made them itself."""
    from datasketch import MinHash

    first = MinHash(num_perm=how.num_perm, seed=how.seed, hashfunc=hash_function(how.hash_name), scheme=SCHEME)
    made = []
    for values in signatures:
        one = first.copy()  # shares the permutations
        one.hashvalues = values.copy()
        made.append(one)
    return made


def from_datasketch(minhashes: Sequence[MinHash], how: MinHashing = MinHashing()) -> UInt32:
    """Return the values of `datasketch.MinHash` (or LeanMinHash) objects as signatures, uint32[n, num_perm].

    Raises
    ------
    InputError
        One has another scheme, seed or number of permutations, so that its values mean something else.
    """
    for number, one in enumerate(minhashes):
        for name, theirs, ours in (
            ("scheme", one.scheme, SCHEME),
            ("seed", one.seed, how.seed),
            ("number of permutations", len(one.hashvalues), how.num_perm),
        ):
            if theirs != ours:
                raise InputError(
                    f"its {name} is {theirs}, not {ours}",
                    where=f"MinHash {number}",
                    do="Make it again: signatures of different kinds cannot be compared",
                )
    values = [one.hashvalues for one in minhashes]
    return np.array(values, dtype=np.uint32).reshape(len(values), how.num_perm)
