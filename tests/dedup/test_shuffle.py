"""Rows are sorted, merged and cut on the disk as they would be in memory, however little of that there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalkit.dedup import shuffle
from evalkit.dedup.arrays import load_array, save_array, writing
from evalkit.dedup.shuffle import equal_ranges, merged, ranges_of, sorted_rows, sorting, whole_groups, write_rows

SPANS = st.sampled_from([1, 3, 1000, 1 << 40, 1 << 62])


@st.composite
def rows_of(draw):
    n_columns, span = draw(st.integers(1, 4)), draw(SPANS)
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    return generator.integers(-span, span, (draw(st.integers(0, 150)), n_columns))


def in_order(rows, unique=False):
    found = sorted(map(tuple, rows.tolist()))
    return sorted(set(found)) if unique else found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@given(rows_of(), st.sampled_from([1, 200, 1000, 1 << 20]), st.booleans(), st.sampled_from([2, 5, 128]))
@settings(max_examples=60, deadline=None)
def test_rows_come_out_in_order_and_nothing_is_left_on_the_disk(folder, rows, memory_bytes, unique, fan_in):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "FAN_IN", fan_in)
        with sorting(folder / "run.npy", rows.shape[1], memory_bytes, unique=unique, is_passing=True) as add:
            for some in np.array_split(rows, 3):
                add(some)
    assert list(map(tuple, load_array(folder / "run.npy").tolist())) == in_order(rows, unique)
    assert [path.name for path in folder.glob("run*")] == ["run.npy"]


@given(rows_of(), st.sampled_from([1, 7, 50, 10_000]), st.integers(1, 6), st.booleans(), st.tuples(SPANS, SPANS))
@settings(max_examples=60, deadline=None)
def test_windows_of_a_range_are_bounded_and_have_its_rows_in_order(folder, rows, most, n_runs, unique, ends):
    low, high = sorted([-ends[0] // 2, ends[1] // 2])
    runs = [folder / f"merge-{k}.npy" for k in range(n_runs)]
    for path, some in zip(runs, np.array_split(rows, n_runs), strict=True):
        write_rows(path, sorted_rows(some.copy()), is_passing=True)
    windows = list(merged(runs, most, low, high, unique=unique))
    found = [tuple(row) for window in windows for row in window.tolist()]
    assert found == [row for row in in_order(rows, unique) if low <= row[0] < high]
    assert all(0 < len(window) <= max(most, n_runs) for window in windows)


@given(rows_of(), st.integers(1, 4))
def test_fewer_columns_to_sort_by_give_the_same(rows, n_keys):
    assert list(map(tuple, sorted_rows(rows.copy(), min(n_keys, rows.shape[1])).tolist())) == in_order(rows)


def test_ranges_cover_everything_once_and_are_about_equal(tmp_path):
    generator = np.random.default_rng(0)
    runs = [tmp_path / f"{k}.npy" for k in range(4)]
    for path in runs:
        write_rows(path, sorted_rows(generator.integers(0, 10_000, (20_000, 2))))
    ranges = ranges_of(runs, 8000)
    assert [high for _, high in ranges[:-1]] == [low for low, _ in ranges[1:]]
    sizes = [sum(map(len, merged(runs, 100_000, low, high))) for low, high in ranges]
    assert sum(sizes) == 80_000
    assert max(sizes) < 10_000
    ranges = equal_ranges(7)
    assert (ranges[0][0], ranges[-1][1]) == (-(1 << 63), 1 << 63)


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 10))
def test_equal_values_are_never_cut_apart(values, n):
    column = np.sort(np.array(values, dtype=np.int64))
    groups = list(whole_groups(column, n))
    assert [k for a, b in groups for k in range(a, b)] == list(range(len(column)))
    for a, b in groups:
        assert b == len(column) or column[b] != column[b - 1]
        assert b - a <= n or column[a] == column[b - 1]


def test_the_first_file_of_a_folder_may_be_one_that_passes(tmp_path):
    path = tmp_path / "new" / "folder" / "run.npy"
    rows = np.arange(200)[::-1].reshape(-1, 2)
    with sorting(path, 2, 1000) as add:
        add(rows)
    assert load_array(path).tolist() == rows[::-1].tolist()


def test_a_file_that_is_written_bit_by_bit_is_as_numpy_writes_it(tmp_path):
    values = np.arange(60, dtype=np.uint32).reshape(20, 3)
    with writing(tmp_path / "a.npy", "<u4", (3,)) as write:
        for some in np.array_split(values, 4):
            write(some)
    save_array(tmp_path / "b.npy", values)
    assert (np.load(tmp_path / "a.npy") == np.load(tmp_path / "b.npy")).all()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "c.npy", "<u4", (3,)) as write:
        write(values[: 1 // 0])
    assert not (tmp_path / "c.npy").exists()
