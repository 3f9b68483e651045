"""The bands are those that datasketch chooses, and find pairs as often as theory says."""

from __future__ import annotations

import numpy as np
import pytest
from datasketch import MinHashLSH
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit.dedup.lsh import Bands, choose_bands
from evalkit.errors import SpecError


@settings(max_examples=25)
@given(st.integers(1, 99), st.integers(2, 64), st.sampled_from([0.5, 0.1, 0.3, 0.8]))
@example(80, 128, 0.5)
@example(90, 128, 0.5)
@example(50, 128, 0.5)
@example(70, 100, 0.4)
@example(0, 16, 0.5)
def test_the_bands_are_those_of_datasketch(percent, num_perm, weight):
    weights = (weight, 1 - weight)
    try:
        theirs = MinHashLSH(threshold=percent / 100, num_perm=num_perm, weights=weights)
    except ValueError:
        with pytest.raises(SpecError):
            choose_bands(percent / 100, num_perm, *weights)
        return
    assert choose_bands(percent / 100, num_perm, *weights) == Bands(theirs.b, theirs.r)


def test_pairs_are_found_as_often_as_the_curve_says():
    rng = np.random.default_rng(1)
    bands = Bands(9, 13)
    for similarity, probability in bands.curve(0.1):
        agree = rng.random((20_000, bands.n_bands, bands.n_rows)) < similarity
        found = agree.all(axis=2).any(axis=1).mean()
        assert abs(found - probability) < 5 * np.sqrt(probability * (1 - probability) / 20_000) + 1e-9


@pytest.mark.parametrize(("threshold", "weight"), [(-0.1, 0.5), (1.5, 0.5), (0.8, 0.7)])
def test_what_makes_no_sense_is_refused(threshold, weight):
    with pytest.raises(SpecError):
        choose_bands(threshold, 128, weight, 0.5)
