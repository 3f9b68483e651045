"""Bands and rows: which signatures are compared at all. The choice is datasketch's, computed exactly and at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from evalkit.errors import SpecError

Float64 = npt.NDArray[np.float64]

FALSE_NEGATIVE_WEIGHT: Final = 0.99
"""A pair that is not compared is lost, while one that is compared in vain only takes a few nanoseconds: its signatures
are looked at first. datasketch's default, 0.5, would miss 7% of the pairs of similarity 0.9 at a threshold of 0.8."""


@dataclass(frozen=True)
class Bands:
    """Locality-sensitive hashing: documents are compared when all values of one band of their signatures are equal.

    Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4.

    Attributes
    ----------
    n_bands
        Bands, b.
    n_rows
        Values in each, r. Band k has the values k * r to (k + 1) * r - 1; what is left of a signature is not used.
    """

    n_bands: int
    n_rows: int

    def probability(self, similarity: float | Float64) -> Float64:
        """Return the probability, 1 - (1 - s^r)^b, that documents of Jaccard similarity s are compared."""
        s = np.asarray(similarity, dtype=np.float64)
        return np.asarray(1.0 - (1.0 - s**self.n_rows) ** self.n_bands)

    def curve(self, step: float = 0.05) -> list[tuple[float, float]]:
        """Return (similarity, probability to be compared) from 0 to 1."""
        similarities = np.round(np.arange(0, 1 + step / 2, step), 10)
        return list(zip(similarities.tolist(), self.probability(similarities).tolist(), strict=True))


def parse_bands(text: str, threshold: float, num_perm: int) -> Bands:
    """Read `16x8`, or `datasketch` for what its `MinHashLSH(threshold, num_perm)` chooses.

    Raises
    ------
    SpecError
        It is neither.
    """
    if text == "datasketch":
        return choose_bands(threshold, num_perm)
    n_bands, _, n_rows = text.partition("x")
    if not (n_bands.isdecimal() and n_rows.isdecimal() and int(n_bands) and int(n_rows)):
        raise SpecError(f"'{text}' says nothing", where="--bands", do="Write BANDSxROWS, as in 16x8, or datasketch")
    return Bands(int(n_bands), int(n_rows))


@lru_cache(maxsize=256)
def choose_bands(
    threshold: float, num_perm: int, false_positive_weight: float = 0.5, false_negative_weight: float = 0.5
) -> Bands:
    """Return the bands that `datasketch.MinHashLSH(threshold, num_perm, weights)` chooses.

    They make the least weighted sum of two areas: under the probability curve below the threshold (false positives),
    and above the curve beyond it (false negatives).

    Parameters
    ----------
    threshold
        Jaccard similarity from which documents should be found, between 0 and 1.
    num_perm
        Values of a signature.
    false_positive_weight, false_negative_weight
        How bad either area is; they add up to 1.

    Raises
    ------
    SpecError
        The threshold or the weights make no sense, or the best choice is a single band, which datasketch refuses too.

    Notes
    -----
    The curve is a polynomial in s of degree b * r <= num_perm, so Gauss-Legendre quadrature of num_perm // 2 + 1 nodes
    integrates it exactly; datasketch integrates every pair of b and r adaptively, which takes it most of a second.
    """
    if not 0 <= threshold <= 1:
        raise SpecError(f"the similarity {threshold}", where="--threshold", do="Use a number from 0 to 1")
    weights = (false_positive_weight, false_negative_weight)
    if min(weights) < 0 or not np.isclose(sum(weights), 1.0):
        raise SpecError(f"the weights {weights}", where="--weights", do="Use two that add up to 1")
    pairs = np.array([(b, r) for b in range(1, num_perm + 1) for r in range(1, num_perm // b + 1)])
    b, r = pairs.T[:, :, np.newaxis].astype(np.float64)
    nodes, shares = np.polynomial.legendre.leggauss(num_perm // 2 + 1)
    # From [-1, 1] to [0, threshold] and to [threshold, 1].
    below, above = threshold * (nodes + 1) / 2, threshold + (1 - threshold) * (nodes + 1) / 2
    false_positives = (1 - (1 - below**r) ** b) @ shares * (threshold / 2)
    false_negatives = (1 - above**r) ** b @ shares * ((1 - threshold) / 2)
    error = false_positive_weight * false_positives + false_negative_weight * false_negatives
    # Of equals the first, as datasketch; rounding must not decide between them.
    best = int(np.flatnonzero(error <= error.min() + 1e-12)[0])
    n_bands, n_rows = pairs[best].tolist()
    if n_bands < 2:
        raise SpecError(
            f"for {num_perm} permutations and a threshold of {threshold} one band would be best, which finds little",
            where="--threshold",
            do="Use a lower threshold, or more permutations",
        )
    return Bands(n_bands, n_rows)
