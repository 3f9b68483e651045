"""Signatures are datasketch's, bit for bit, whatever the text, the shingles, the hash and the seed."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from datasketch import LeanMinHash, MinHash, MinHashLSH
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit.dedup import kernels
from evalkit.dedup.shingles import Shingling, normalised, shingles_of
from evalkit.dedup.signatures import MinHashing, from_datasketch, hash_function, sign, sign_shingles, to_datasketch
from evalkit.errors import InputError, SpecError
from evalkit.text.buffers import arrow_buffers

TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB1_ ½ﬁßİ中กé\u0301\u00ad\ufdfa\n"))
)
SHINGLINGS = st.builds(Shingling, st.sampled_from(["words", "characters"]), st.integers(1, 30))
HOW = st.builds(
    MinHashing, SHINGLINGS, st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from(["sha1", "xxh32"])
)


def of_datasketch(sets, how):
    made = MinHash.bulk(sets, num_perm=how.num_perm, seed=how.seed, hashfunc=hash_function(how.hash_name))
    return np.array([one.hashvalues for one in made], dtype=np.uint32).reshape(len(made), how.num_perm)


def hashed(function, messages):
    data, offsets = arrow_buffers(pa.array(messages, type=pa.large_binary()))
    found = np.empty(len(messages), dtype=np.uint64)
    kernels.hash_shingles(data, offsets[:-1], offsets[1:], len(messages), function, found)
    return found.tolist()


@settings(max_examples=150)
@given(st.lists(TEXT, max_size=8), HOW)
@example(["", "?!", "a", "a b c d e", "\ufdfa" * 300], MinHashing())
def test_signatures_of_texts_are_those_of_datasketch(texts, how):
    sets = [shingles_of(text, how.shingling) for text in texts]
    signed = sign(texts, how)
    expected = of_datasketch(sets, how)
    assert np.array_equal(signed.signatures, expected)
    assert np.array_equal(sign_shingles([sorted(one) for one in sets], how), expected)
    assert signed.n_tokens.tolist() == [len(normalised(text).split()) for text in texts]
    assert np.array_equal(signed.n_shingles == 0, [not one for one in sets])


@pytest.mark.parametrize("how", [MinHashing(), MinHashing(Shingling("characters", 12), hash_name="xxh32")])
def test_many_long_and_short_texts_are_signed_alike_in_any_slice(how):
    rng = random.Random(0)
    words = ["a", "word", "Straße", "中文字", "x" * 70, "y" * 300]
    texts = [" ".join(rng.choices(words, k=rng.choice([0, 1, 4, 5, 6, 50, 9000]))) for _ in range(40)]
    array = pa.array(texts, type=pa.large_string())
    whole = sign(array, how).signatures
    assert np.array_equal(whole, of_datasketch([shingles_of(text, how.shingling) for text in texts], how))
    assert np.array_equal(sign(array.slice(7, 20), how).signatures, whole[7:27])


@given(st.lists(st.binary(max_size=200), max_size=150))
@settings(max_examples=50)
@example([bytes(n) for n in range(200)])
@example([b"a" * n for n in (55, 56, 63, 64, 119, 120, 100_000)])
def test_the_hash_functions_are_the_real_ones(messages):
    heads = [int.from_bytes(hashlib.sha1(one).digest()[:8], "little") for one in messages]
    assert hashed(kernels.SHA1, messages) == heads
    assert hashed(kernels.XXH32, messages) == [xxhash.xxh32_intdigest(one) for one in messages]


def test_signatures_go_to_datasketch_and_back():
    how = MinHashing(num_perm=32, seed=7, hash_name="xxh32")
    signatures = sign(["one two three four five six", "", "other words"], how).signatures
    made = to_datasketch(signatures, how)
    assert np.array_equal(from_datasketch(made, how), signatures)
    assert np.array_equal(from_datasketch([LeanMinHash(one) for one in made], how), signatures)
    # They can be added to: the hash function and the permutations are there.
    made[2].update(b"one two three four five")
    again = MinHash(num_perm=32, seed=7, hashfunc=xxhash.xxh32_intdigest)
    again.update_batch([b"other words", b"one two three four five"])
    assert made[2] == again
    assert np.array_equal(made[0].hashvalues, signatures[0])


def test_signatures_of_another_kind_are_refused():
    for other in (MinHash(num_perm=64), MinHash(num_perm=128, seed=2), MinHash(num_perm=128, scheme="legacy")):
        with pytest.raises(InputError, match="MinHash 1"):
            from_datasketch([MinHash(), other])


def test_datasketch_finds_the_same_candidates_with_our_signatures():
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcdefghij", k=12)) for _ in range(60)]
    how = MinHashing(Shingling("words", 2), num_perm=32)
    sets = [shingles_of(text, how.shingling) for text in texts]
    ours, theirs = (MinHashLSH(threshold=0.4, num_perm=32) for _ in range(2))
    for number, (mine, shingles) in enumerate(zip(to_datasketch(sign(texts, how).signatures, how), sets, strict=True)):
        other = MinHash(num_perm=32)
        other.update_batch(shingles)
        ours.insert(number, mine)
        theirs.insert(number, other)
        assert sorted(ours.query(other)) == sorted(theirs.query(other))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shingling("lines", 3),
        lambda: Shingling("words", 0),
        lambda: MinHashing(num_perm=1),
        lambda: MinHashing(seed=-1),
        lambda: MinHashing(hash_name="md5"),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(SpecError):
        make()
