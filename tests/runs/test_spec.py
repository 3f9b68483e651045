"""Specs: from YAML, from options, from both; a fault is named by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.errors import SpecError
from evalkit.runs.spec import DEFAULT_SEED, make_spec

GIVEN = {"model": "m", "tasks": "a,b", "out": "o"}


def test_a_yaml_file_has_the_names_of_the_options_and_options_win(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("model: m\ntasks: [a, b]\nout: o\nnum-fewshot: 5\ngen_kwargs: {temperature: 0.5}\nseeds: [0, 1]\n")
    spec = make_spec(path, {"num_fewshot": 3})
    assert (spec.model, spec.tasks, spec.out) == ("m", ("a", "b"), Path("o"))
    assert (spec.num_fewshot, spec.gen_kwargs, spec.seeds) == (3, {"temperature": 0.5}, (0, 1))


def test_options_are_read_as_they_are_typed():
    spec = make_spec(
        None, {**GIVEN, "seeds": "0,1, 2", "gen_kwargs": "do_sample=true,temperature=0.7,until=x", "batch_size": "16"}
    )
    assert spec.seeds == (0, 1, 2)
    assert spec.gen_kwargs == {"do_sample": True, "temperature": 0.7, "until": "x"}
    assert spec.batch_size == 16
    assert make_spec(None, {**GIVEN, "batch_size": "auto"}).batch_size == "auto"
    assert make_spec(None, GIVEN).seeds == (DEFAULT_SEED,)


def test_a_margin_is_a_setting_of_the_run_and_above_zero():
    assert make_spec(None, {**GIVEN, "margin": "0.01"}).settings()["margin"] == 0.01
    assert make_spec(None, GIVEN).settings()["margin"] is None
    for margin in (0, -0.01, float("inf")):
        with pytest.raises(SpecError, match="'margin' cannot be"):
            make_spec(None, {**GIVEN, "margin": margin})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: a\nout: o\n", "'model' is not given"),
        ("model: m\ntask: a\nout: o\n", "there is no setting 'task'. Did you mean 'tasks'"),
        ("model: m\ntasks: a\nout: o\nlimit: many\n", "'limit' cannot be 'many'"),
        ("model: m\ntasks: a\nout: o\nlimit: 0\n", "'limit' cannot be 0"),
        ("model: m\ntasks: a\nout: o\nseeds: [1, 1]\n", "'seeds' cannot be [1, 1] (a seed is given twice"),
        ("model: m\ntasks: a\nout: o\ngen_kwargs: temperature\n", "'gen_kwargs' cannot be 'temperature'"),
        ("model: m\ntasks: a\nout: o\ndtype: float31\n", "'dtype' cannot be 'float31'"),
        ("- model\n", "no mapping of settings"),
        ("model: [\n", "not valid YAML"),
    ],
)
def test_a_fault_is_named_by_file_and_key(tmp_path, text, message):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as error:
        make_spec(path, {})
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_yaml_file_cannot_run_code(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("model: !!python/object/apply:os.system ['false']\n")
    with pytest.raises(SpecError, match="not valid YAML"):
        make_spec(path, {})


def test_a_running_server_is_not_swept(tmp_path):
    given = {"checkpoints": "out/*", "backend": "openai", "tasks": "t", "out": tmp_path}
    with pytest.raises(SpecError, match="serves one model"):
        make_spec(None, given)


@pytest.mark.parametrize(
    "given",
    [
        {"num_fewshot": 0},
        {"chat_template": True},
        {"repeats": 2},
        {"seeds": "1,2"},
        {"gen_kwargs": "temperature=1"},
        {"system_instruction": "Be brief."},
        {"tasks_dir": "tasks"},
        {"data": "data"},
        {"task_seed": 3},
        {"confirm_unsafe_code": True},
        {"checkpoint_pattern": r"(?P<step>\d+)"},
    ],
)
def test_settings_of_tasks_are_refused_beside_text_files_unless_they_are_the_default(given):
    files = {"model": "m", "perplexity": ["a.jsonl"], "out": "o"}
    [name] = given
    with pytest.raises(SpecError, match=f"'{name}' is about tasks.*Leave out --{name.replace('_', '-')}"):
        make_spec(None, files | given)
    default = getattr(make_spec(None, files), name)
    assert make_spec(None, files | {name: default}).perplexity == ("a.jsonl",)


def test_a_chat_endpoint_cannot_score_text_files():
    given = {"model": "m", "perplexity": ["a.jsonl"], "out": "o", "backend": "openai", "endpoint": "chat"}
    with pytest.raises(SpecError, match="a chat endpoint has none"):
        make_spec(None, given)
