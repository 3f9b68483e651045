"""Runs: what is evaluated, how often, and what the run directory says."""

from __future__ import annotations

import functools
import json
import shutil

import pyarrow as pa
import pytest
import yaml

from evalkit import tables
from evalkit.errors import InputError, ModelError, SpecError, TaskError
from evalkit.runs.evaluate import run
from evalkit.runs.lease import Lease
from evalkit.runs.spec import make_spec
from tests.runs.conftest import save_tiny_model


@pytest.fixture
def evaluate(tiny_model, tasks_dir, tmp_path):
    """Run with the tiny model; return the rows of the samples table without the times."""

    def call(tasks, out="run", *, overwrite=False, **more):
        given = {"model": str(tiny_model), "tasks": tasks, "tasks_dir": tasks_dir, "out": tmp_path / out, **more}
        result = run(make_spec(None, given), overwrite=overwrite)
        rows = tables.read(result.directory / "samples.parquet", tables.SAMPLES).to_pylist()
        assert all(row.pop("latency") > 0 for row in rows)
        return rows

    return call


def doc_ids(rows):
    return list(dict.fromkeys(row["doc_id"] for row in rows))


def test_a_limit_is_a_nested_seeded_random_subset(evaluate):
    ten, twenty = doc_ids(evaluate("toy_mc", "a", limit=10)), doc_ids(evaluate("toy_mc", "b", limit=20))
    assert len(ten) == 10
    assert set(ten) < set(twenty)
    assert ten == sorted(ten) != list(range(10))
    assert doc_ids(evaluate("toy_mc", "c", limit=10)) == ten
    assert doc_ids(evaluate("toy_mc", "d", limit=10, subset_seed=1)) != ten
    assert len(doc_ids(evaluate("toy_mc", "e", limit=1000))) == 30


def test_repeats_of_a_sampled_task_differ_and_are_all_scored(evaluate):
    rows = evaluate("toy_sampled", repeats=3, limit=8)
    assert len(rows) == 24
    by_doc = {number: [row for row in rows if row["doc_id"] == number] for number in doc_ids(rows)}
    assert all({row["repeat"] for row in of_doc} == {0, 1, 2} for of_doc in by_doc.values())
    assert all(len({row["prompt_hash"] for row in of_doc}) == 1 for of_doc in by_doc.values())
    assert sum(len({row["response"] for row in of_doc}) > 1 for of_doc in by_doc.values()) >= 7
    assert all(row["score"] is not None for row in rows)


def test_repeats_of_a_tasks_own_definition_are_all_scored_unless_a_filter_votes(
    evaluate, tiny_model, tasks_dir, tmp_path
):
    definition = yaml.safe_load((tasks_dir / "toy_sampled.yaml").read_text()) | {"repeats": 3}
    vote = [{"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}]
    for name, filters in [("own_repeats", None), ("own_vote", vote)]:
        content = {**definition, "task": name} | ({"filter_list": filters} if filters else {})
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    rows = evaluate("own_repeats", "a", tasks_dir=tmp_path, limit=6)
    assert len(rows) == 18
    assert {row["repeat"] for row in rows} == {0, 1, 2}
    voted = evaluate("own_vote", "b", tasks_dir=tmp_path, limit=6)
    assert len(voted) == 6
    record = json.loads((tmp_path / "b" / "run.json").read_text())
    assert record["n_requests"] == 18


@pytest.mark.parametrize("weight_by_size", [True, False])
@pytest.mark.parametrize("own_repeats", [False, True])
def test_a_group_is_of_all_repeats_of_the_tasks_that_have_them(
    weight_by_size, own_repeats, evaluate, tasks_dir, tmp_path
):
    """By hand: each task's mean over its rows, put together by items (weight_by_size) or by tasks."""
    (tmp_path / "ten.jsonl").write_text("".join((tasks_dir / "docs.jsonl").read_text().splitlines(True)[:10]))
    (tmp_path / "metrics.py").write_text(
        "def n_letters(doc, results):\n    return {'letters': float(sum(map(str.isalpha, results[0])))}\n"
    )
    counted = "process_results: !function metrics.n_letters\n"
    for name in ("toy_gen", "toy_sampled"):
        definition = yaml.safe_load((tasks_dir / f"{name}.yaml").read_text()) | {"task": f"{name}_letters"}
        definition["metric_list"] = [{"metric": "letters", "aggregation": "mean", "higher_is_better": True}]
        if name == "toy_sampled":
            definition["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "ten.jsonl")}}
            definition |= {"repeats": 3} if own_repeats else {}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(definition) + counted)
    rule = [{"metric": "letters", "aggregation": "mean", "weight_by_size": weight_by_size, "filter_list": ["none"]}]
    for name, members in [("inner", ["toy_sampled_letters"]), ("outer", ["toy_gen_letters", "inner"])]:
        group = {"group": name, "task": members, "aggregate_metric_list": rule}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(group))
    rows = evaluate("outer", tasks_dir=tmp_path, seeds="1,2", **({} if own_repeats else {"repeats": 3}))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    for seed in (1, 2):
        scores = {
            name: [row["score"] for row in rows if (row["task"], row["seed"]) == (f"{name}_letters", seed)]
            for name in ("toy_gen", "toy_sampled")
        }
        assert {name: len(some) for name, some in scores.items()} == {"toy_gen": 30, "toy_sampled": 3 * 10}
        means = {name: sum(some) / len(some) for name, some in scores.items()}
        weights = {"toy_gen": 30, "toy_sampled": 10} if weight_by_size else dict.fromkeys(means, 1)
        expected = sum(weights[name] * mean for name, mean in means.items()) / sum(weights.values())
        of_seed = record["results"][str(seed)]
        assert of_seed["outer"] == {"letters,none": pytest.approx(expected)}
        assert of_seed["inner"] == {"letters,none": pytest.approx(means["toy_sampled"])}
        first = [row["score"] for row in rows if row["task"] == "toy_sampled_letters" and not row["repeat"]]
        assert sum(first) / len(first) != pytest.approx(means["toy_sampled"])


def test_findings_about_prompts_are_of_the_prompts_of_all_tasks(evaluate, tiny_model, tmp_path, capsys):
    model = tmp_path / "tiny_bos"
    shutil.copytree(tiny_model, model)
    content = json.loads((model / "tokenizer_config.json").read_text())
    # The template writes a BOS token more than the tokenizer does.
    content["chat_template"] = "<s><s>{{ messages[0]['content'] }}"
    (model / "chat_template.jinja").unlink(missing_ok=True)
    (model / "tokenizer_config.json").write_text(json.dumps(content))
    evaluate("toy_mc,toy_gen,toy_sampled", model=str(model), chat_template=True, limit=5, repeats=2)
    [finding] = json.loads((tmp_path / "run" / "run.json").read_text())["health"]["findings"][:1]
    # Four choices of each item, one greedy answer, two sampled ones.
    assert (finding["check"], finding["count"], finding["n"]) == ("bos", 5 * (4 + 1 + 2), 5 * (4 + 1 + 2))
    assert sorted(finding["tasks"]) == ["toy_gen", "toy_mc", "toy_sampled"]
    told = [line for line in capsys.readouterr().err.splitlines() if "two BOS tokens" in line]
    assert len(told) == 2


def test_a_task_without_sampling_is_evaluated_once_and_the_user_is_told(evaluate, capsys):
    rows = evaluate("toy_mc,toy_gen", repeats=4, limit=5)
    assert {row["repeat"] for row in rows} == {0}
    assert "toy_mc, toy_gen: answers are not sampled" in capsys.readouterr().err


def test_seeds_answer_the_same_questions_with_other_examples(evaluate):
    rows = evaluate("toy_mc", seeds="1,2", num_fewshot=2, limit=6)
    runs = {seed: [row for row in rows if row["seed"] == seed] for seed in (1, 2)}
    assert {row["run_id"] for row in rows} == {"tiny:seed1", "tiny:seed2"}
    assert [row["doc_hash"] for row in runs[1]] == [row["doc_hash"] for row in runs[2]]
    assert [row["prompt_hash"] for row in runs[1]] != [row["prompt_hash"] for row in runs[2]]


def test_a_sample_depends_on_seed_item_and_repeat_alone_and_not_on_its_batch(evaluate):
    alone, together = evaluate("toy_sampled", "a", batch_size=1, repeats=2), evaluate("toy_sampled", "b", repeats=2)
    assert alone == together
    few = evaluate("toy_sampled", "c", repeats=2, limit=5)
    assert all(row in alone for row in few)
    others = evaluate("toy_sampled", "d", seeds="7", repeats=2)
    assert [row["response"] for row in others] != [row["response"] for row in alone]


def test_the_same_command_gives_the_same_samples(evaluate):
    assert evaluate("toy_mc,toy_sampled", "a", limit=6) == evaluate("toy_mc,toy_sampled", "b", limit=6)


def test_rows_say_what_was_asked_answered_and_right(evaluate):
    [mc] = [row for row in evaluate("toy_mc", "a", limit=1) if row["metric"] == "acc"]
    assert mc["score"] == float(mc["response"] == mc["target"])
    assert mc["cluster"].startswith("s")
    assert mc["prompt_tokens"] > 20
    [gen] = evaluate("toy_gen", "b", limit=1)
    assert gen["finish_reason"] in ("stop", "length")
    assert 1 <= gen["output_tokens"] <= 8


def test_the_prompt_hash_covers_the_generation_settings(evaluate):
    one, other = evaluate("toy_gen", "a", limit=3), evaluate("toy_gen", "b", limit=3, gen_kwargs="max_gen_toks=5")
    assert {row["prompt_hash"] for row in one}.isdisjoint(row["prompt_hash"] for row in other)


def test_a_metric_without_a_number_per_item_is_in_the_record_and_the_user_is_told(evaluate, tmp_path, capsys):
    rows = evaluate("toy_f1", limit=8)
    assert {row["score"] for row in rows if row["metric"] == "f1"} == {None}
    assert "toy_f1: f1" in capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0 <= record["results"]["1234"]["toy_f1"]["f1,none"] <= 1


def test_the_record_holds_what_is_needed_to_repeat_the_run(evaluate, tmp_path):
    evaluate("toy_mc", limit=4)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "complete"
    assert {len(record["model"][name]) for name in ("weights_sha256", "tokenizer_sha256", "chat_template_sha256")} == {
        64
    }
    assert record["tasks"]["toy_mc"]["metrics"][0] == {"metric": "acc", "filter": "none", "higher_is_better": True}
    assert record["tasks"]["toy_mc"]["n_docs"] == 30
    assert len(record["tasks"]["toy_mc"]["subset"]) == 4
    assert record["packages"]["lm-eval"]
    assert record["n_requests"] == 16
    assert all(json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())


def test_a_directory_with_another_run_is_refused_naming_the_setting(evaluate):
    evaluate("toy_mc", limit=4)
    with pytest.raises(SpecError, match="limit was 4, now 5"):
        evaluate("toy_mc", limit=5)
    assert len(doc_ids(evaluate("toy_mc", limit=5, overwrite=True))) == 5


def test_a_finished_run_is_returned_without_loading_the_model(evaluate, monkeypatch, capsys):
    rows = evaluate("toy_mc", limit=4)
    monkeypatch.setattr("evalkit.runs.hf.load_hf_model", lambda *_: pytest.fail("the model was loaded"))
    assert evaluate("toy_mc", limit=4) == rows
    assert "nothing was computed again" in capsys.readouterr().err


def test_a_directory_in_which_another_process_works_is_refused(evaluate, tiny_model, tasks_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("evalkit.runs.evaluate.Lease", functools.partial(Lease, patience_s=0.3))
    given = {"model": str(tiny_model), "tasks": "toy_mc", "tasks_dir": tasks_dir, "out": tmp_path / "run"}
    with (
        Lease(tmp_path / "run", "server 3 on a"),
        pytest.raises(InputError, match=r"server 3 on a \(host .*\) works in this run directory"),
    ):
        run(make_spec(None, given))
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_says_so_once(evaluate, tmp_path, capsys):
    evaluate("toy_mc", limit=4)
    assert "resuming" not in capsys.readouterr().err
    (path,) = tmp_path.rglob("run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    evaluate("toy_mc", limit=4)
    assert capsys.readouterr().err.count("resuming the run in") == 1


def test_other_weights_under_the_same_path_are_refused_in_a_finished_run_too(tasks_dir, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    spec = make_spec(None, {"model": str(model), "tasks": "toy_mc", "tasks_dir": tasks_dir, "out": tmp_path / "run"})
    run(spec)
    (model / "optimizer.pt").write_bytes(b"a trainer's state is no weight")
    run(spec)
    save_tiny_model(tmp_path / "model", seed=1)
    with pytest.raises(SpecError, match="begun with other weights"):
        run(spec)


def test_a_folder_without_weights_has_no_weights_hash(tmp_path):
    from evalkit.runs.provenance import hash_weights

    model = save_tiny_model(tmp_path / "model")
    assert hash_weights(model)
    (model / "model.safetensors").unlink()
    assert hash_weights(model) is None


def test_other_weights_under_the_same_path_are_refused_in_an_unfinished_run(tasks_dir, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    spec = make_spec(None, {"model": str(model), "tasks": "toy_mc", "tasks_dir": tasks_dir, "out": tmp_path / "run"})
    run(spec)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    save_tiny_model(tmp_path / "model", seed=1)
    with pytest.raises(SpecError, match="begun with other weights"):
        run(spec)


def test_two_models_that_share_a_journal_share_no_answer_and_equal_ones_share_all(tasks_dir, tmp_path):
    models = [save_tiny_model(tmp_path / name, seed=seed) for name, seed in [("a", 0), ("b", 1), ("copy_of_a", 0)]]
    results = []
    for folder in models:
        given = {"model": str(folder), "tasks": "toy_mc,toy_gen,toy_sampled", "tasks_dir": tasks_dir, "device": "cpu"}
        out = tmp_path / "runs" / folder.name
        results.append(run(make_spec(None, {**given, "out": out, "journal": tmp_path / "all.sqlite"})))
    assert [result.n_from_journal for result in results] == [0, 0, results[0].n_requests]
    assert results[0].results == results[2].results != results[1].results


def test_generated_code_is_not_executed_without_consent(evaluate, tmp_path):
    with pytest.raises(TaskError, match="toy_unsafe: the task executes code"):
        evaluate("toy_unsafe")
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_be_loaded_are_one_line(tmp_path, tiny_model, tasks_dir):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    broken = save_tiny_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for model, message in {
        str(tmp_path / "none"): "there is no such folder",
        str(tmp_path / "empty"): "holds no checkpoint",
        str(tmp_path / "file"): "this is a file",
        str(broken): "the model cannot be loaded",
        "someone/no-such-model": "the model cannot be loaded",
    }.items():
        with pytest.raises(ModelError, match=message) as error:
            run(make_spec(None, {"model": model, "tasks": "toy_mc", "tasks_dir": tasks_dir, "out": tmp_path / "run"}))
        assert "\n" not in str(error.value)
        assert model in str(error.value)
    assert not (tmp_path / "run" / "samples.parquet").exists()


def test_the_samples_table_has_the_schema(evaluate, tmp_path):
    evaluate("toy_mc", limit=2)
    data = tables.read(tmp_path / "run" / "samples.parquet", tables.SAMPLES)
    assert data.schema.field("score").type == pa.float64()
