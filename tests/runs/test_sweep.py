"""Checkpoint sweeps: where they are found, what they are called, and that nothing is done twice."""

from __future__ import annotations

import json

import pytest

from evalkit.errors import ModelError, SpecError
from evalkit.runs.evaluate import run
from evalkit.runs.lease import LEASE
from evalkit.runs.spec import make_spec
from evalkit.runs.sweep import SWEEP_ID, find_checkpoints, swap_key, sweep
from tests.runs.conftest import save_tiny_model


@pytest.fixture
def folders(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "config.json").write_text("{}")
        return tmp_path

    return make


def places(found):
    return [(one.series, one.step, one.path.name) for one in found]


def test_steps_are_numbers_not_texts(folders):
    root = folders("out/checkpoint-900", "out/checkpoint-1000", "out/checkpoint-50")
    found = find_checkpoints(str(root / "out" / "checkpoint-*"))
    assert places(found) == [(None, step, f"checkpoint-{step}") for step in (50, 900, 1000)]


def test_seeds_are_the_part_of_the_path_that_differs(folders):
    root = folders(*(f"run/seed{seed}/out/step_{step}" for seed in (1, 2) for step in (10, 20)))
    found = find_checkpoints(str(root / "run" / "seed*" / "out" / "step_*"))
    assert places(found) == [(f"seed{seed}/out", step, f"step_{step}") for seed in (1, 2) for step in (10, 20)]
    named = find_checkpoints(str(root / "run/*/*/*"), r"seed(?P<series>\d)/out/step_(?P<step>\d+)")
    assert places(named) == [(str(seed), step, f"step_{step}") for seed in (1, 2) for step in (10, 20)]


def test_the_step_may_stand_in_a_folder_above(folders):
    root = folders(*(f"run2024/step_{step}/hf-fp16" for step in (900, 1000)), "other/final")
    found = find_checkpoints(str(root / "run2024" / "step_*" / "hf-fp16"))
    assert places(found) == [(None, step, "hf-fp16") for step in (900, 1000)]
    assert [one.label for one in found] == ["step_900_hf-fp16", "step_1000_hf-fp16"]
    # A number that speaks of no step is none, and neither is one in the part of the glob without wildcards.
    assert places(find_checkpoints(str(root / "other" / "*"))) == [(None, None, "final")]
    root = folders("step_7/seed1/final", "step_7/seed2/final")
    found = find_checkpoints(str(root / "step_7" / "seed*" / "final"))
    assert places(found) == [(f"seed{seed}", None, "final") for seed in (1, 2)]


def test_series_and_step_may_both_stand_in_folders_above(folders):
    root = folders(*(f"seed{seed}/iter_00{step}/hf" for seed in (1, 2) for step in (10, 20)))
    found = find_checkpoints(str(root / "seed*" / "iter_*" / "hf"))
    assert places(found) == [(f"seed{seed}", step, "hf") for seed in (1, 2) for step in (10, 20)]
    kinds = folders("out/step_5/hf", "out/step_5/ema")
    assert places(find_checkpoints(str(kinds / "out/step_*/*"))) == [("ema", 5, "ema"), ("hf", 5, "hf")]


def out_folders(monkeypatch, spec):
    """Where a sweep would write, without doing it."""
    outs = []

    def note(of_one):
        outs.append(of_one.out.relative_to(spec.out).as_posix())
        raise ModelError("this is as far as the test goes")

    monkeypatch.setattr("evalkit.runs.sweep.load", lambda spec: None)
    monkeypatch.setattr("evalkit.runs.sweep.open_backend", note)
    sweep(spec)
    return outs


def test_checkpoints_whose_folders_have_one_name_get_run_directories_of_their_own(folders, tmp_path, monkeypatch):
    root = folders(*(f"run/step_{step}/hf" for step in (100, 200)))
    given = {"tasks": "toy_mc", "out": tmp_path / "runs", "checkpoints": str(root / "run" / "step_*" / "hf")}
    expected = ["step_100_hf", "step_200_hf"]
    assert out_folders(monkeypatch, make_spec(None, given)) == expected
    by_pattern = {**given, "checkpoint_pattern": r"step_(?P<step>\d+)"}
    assert out_folders(monkeypatch, make_spec(None, by_pattern)) == expected
    # The folder of a checkpoint does not depend on which others are there already.
    alone = {**given, "checkpoints": str(root / "run" / "step_1*" / "hf")}
    assert out_folders(monkeypatch, make_spec(None, alone)) == expected[:1]


def test_two_checkpoints_with_one_run_directory_are_refused(folders, tmp_path):
    root = folders("r/a/b_c/checkpoint-1", "r/a_b/c/checkpoint-1")
    spec = make_spec(
        None, {"tasks": "toy_mc", "out": tmp_path / "runs", "checkpoints": str(root / "r/*/*/checkpoint-*")}
    )
    with pytest.raises(SpecError, match=r"would both be written to .*a_b_c/checkpoint-1"):
        sweep(spec)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "no regular expression"), ("x", "no group 'step'"), (r"z(?P<step>\d+)", "does not fit")],
)
def test_patterns_that_do_not_work_are_told(folders, pattern, message):
    root = folders("out/checkpoint-1")
    with pytest.raises(SpecError, match=message):
        find_checkpoints(str(root / "out" / "*"), pattern)


def test_two_checkpoints_with_one_place_are_refused(folders):
    root = folders("out/a-1", "out/b-1")
    with pytest.raises(SpecError, match="would both be step 1"):
        find_checkpoints(str(root / "out" / "*"))
    with pytest.raises(SpecError, match="no folder matches"):
        find_checkpoints(str(root / "none" / "*"))


def test_what_may_be_swapped_has_equal_configuration_and_tokenizer(tmp_path):
    one, other = save_tiny_model(tmp_path / "a"), save_tiny_model(tmp_path / "b", seed=1)
    assert swap_key(str(one)) == swap_key(str(other))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert swap_key(str(one)) != swap_key(str(other))


def test_a_sweep_that_is_begun_anew_is_another_one_before_its_old_runs_are_removed(folders, tmp_path, monkeypatch):
    root = folders("out/checkpoint-1")
    given = {"tasks": "toy_mc", "out": tmp_path / "runs", "checkpoints": str(root / "out" / "checkpoint-*")}
    (tmp_path / "runs" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "runs" / SWEEP_ID).write_text("old")

    def look(of_one, *, overwrite):
        assert overwrite
        # It is nobody else's meanwhile.
        assert (of_one.out / LEASE).exists()
        assert not (tmp_path / "runs" / SWEEP_ID).exists()
        raise ModelError("this is as far as the test goes")

    monkeypatch.setattr("evalkit.runs.sweep.finished_run", look)
    with pytest.raises(ModelError, match="as far as"):
        sweep(make_spec(None, given), overwrite=True)


def test_a_sweep_is_a_run_for_each_checkpoint_and_goes_on_where_it_stopped(tasks_dir, tmp_path, capsys):
    for step in (100, 200, 300):
        save_tiny_model(tmp_path / "training" / f"checkpoint-{step}", seed=step)
    (tmp_path / "training" / "checkpoint-200" / "model.safetensors").write_bytes(b"broken")
    given = {"tasks": "toy_mc", "tasks_dir": tasks_dir, "limit": 8, "device": "cpu"}
    pattern = str(tmp_path / "training" / "checkpoint-*")
    spec = make_spec(None, {**given, "checkpoints": pattern, "out": tmp_path / "sweep"})
    first = sweep(spec)
    assert [one.step for one, _ in first.runs] == [100, 300]
    assert list(first.failed) == [str(tmp_path / "training" / "checkpoint-200")]
    save_tiny_model(tmp_path / "training" / "checkpoint-200", seed=200)
    second = sweep(spec)
    assert [one.step for one, _ in second.runs] == [100, 200, 300]
    assert not second.failed
    assert capsys.readouterr().err.count("nothing was computed again") == 2
    alone = run(
        make_spec(None, {**given, "model": str(tmp_path / "training/checkpoint-300"), "out": tmp_path / "alone"})
    )
    assert second.runs[2][1].results == alone.results
    record = json.loads((tmp_path / "sweep" / "checkpoint-200" / "run.json").read_text())
    assert record["checkpoint"] == {"step": 200, "series": None}
    frame = second.to_frame()
    assert list(frame.step.unique()) == [100, 200, 300]
