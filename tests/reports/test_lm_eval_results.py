"""Results that lm-eval itself writes in the test, and broken ones."""

from __future__ import annotations

import json
import random

import pytest

from evalkit.errors import CompareError, InputError
from evalkit.reports.comparison import compare
from evalkit.reports.inputs import load_run
from evalkit.runs.records import prompt_hash
from evalkit.tasks import load_tasks

TASK = "gen_calendar"


def evaluate(folder, seed):
    """Let lm-eval run its own dummy model, which answers at random, and write what it writes."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM

    task = load_tasks([TASK]).tasks[TASK]
    random.seed(seed)
    results = lm_eval.evaluate(
        lm=DummyLM(), task_dict={"tasks": {TASK: task}}, limit=40, log_samples=True, bootstrap_iters=0
    )
    samples = results.pop("samples")
    hashes = {one["doc_hash"]: prompt_hash(one["arguments"]) for one in samples[TASK]}
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args("dummy", f"model=dummy-{seed}", None, None, False)
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name=TASK, samples=samples[TASK])
    return results, hashes


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    return {name: (folder / name, *evaluate(folder / name, seed)) for seed, name in enumerate("ab")}


def test_the_means_are_those_that_lm_eval_reported(written):
    for folder, results, _ in written.values():
        run = load_run(folder)
        metric, name = run.metrics(TASK)[0]
        items, n_unscored = run.items(TASK, (metric, name))
        assert (len(items), n_unscored) == (40, 0)
        assert run.name == f"dummy-{'ab'.index(folder.name)}"
        assert items.score.mean() == pytest.approx(results["results"][TASK][f"{metric},{name}"])


def test_prompts_have_the_hash_that_evalkits_own_runs_give_them(written):
    folder, _, hashes = written["a"]
    samples = load_run(folder).samples
    assert dict(zip(samples.doc_hash, samples.prompt_hash, strict=True)) == hashes


def test_two_results_are_compared_and_sliced_by_the_documents_they_hold(written):
    a, b = written["a"][0], written["b"][0]
    found = compare(a, b)
    assert found.overall["all"].n_items == 40
    fields = next(iter(load_run(a).documents_kept[TASK].values()))
    sliced = compare(a, b, slices=next(iter(fields)))
    assert sliced.slices_by in fields
    with pytest.raises(CompareError, match="no document has a column 'nothing'"):
        compare(a, b, slices="nothing")


def test_the_results_file_or_the_samples_file_stand_for_the_folder(written):
    folder = written["a"][0]
    [results] = folder.rglob("results_*.json")
    [samples] = folder.rglob("samples_*.jsonl")
    expected = load_run(folder).samples.score.tolist()
    for path in (results, samples):
        assert load_run(path).samples.score.tolist() == expected


def test_a_folder_of_several_models_is_refused_naming_them(written):
    with pytest.raises(InputError, match=r"results of several models: a.dummy-0, b.dummy-1"):
        load_run(written["a"][0].parent)


def write(folder, samples, results=None, date="2026-01-02T03-04-05.678901", task="t"):
    folder.mkdir(exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in samples]
    (folder / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    if results is not None:
        (folder / f"results_{date}.json").write_text(json.dumps(results))
    return folder


def sample(number, **more):
    base = {"doc": {"q": number}, "doc_hash": f"h{number}", "filter": "none", "metrics": ["acc"], "target": "x"}
    return {**base, "acc": float(number % 2), **more}


def test_a_metric_that_is_no_mean_of_its_items_has_no_scores(tmp_path):
    both = [sample(n, metrics=["acc", "ppl"], ppl=-float(n)) for n in range(4)]
    results = {"results": {"t": {"acc,none": 0.5, "ppl,none": 12.3}}, "higher_is_better": {"t": {"ppl": False}}}
    run = load_run(write(tmp_path / "r", both, results))
    assert run.scored("t") == {("acc", "none")}
    assert not run.higher_is_better("t", "ppl", "none")


def test_results_of_two_dates_for_one_task_are_refused_and_either_can_be_named(tmp_path):
    write(tmp_path / "r", [sample(0)], {"results": {}})
    write(tmp_path / "r", [sample(1)], {"results": {}}, date="2026-02-02T03-04-05.678901")
    with pytest.raises(InputError, match=r"the samples of t are there twice .*results_DATE\.json"):
        load_run(tmp_path / "r")
    named = load_run(tmp_path / "r" / "results_2026-02-02T03-04-05.678901.json")
    assert named.samples.doc_hash.tolist() == ["h1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"jsonl, line 2: this is no JSON"),
        ("[1]", r"line 2: this is no JSON object"),
        (json.dumps({"doc": 1}), r"line 2: the sample has no 'doc_hash'"),
        (json.dumps(sample(0, metrics="acc")), r"line 2: 'metrics' and 'filter' are no names"),
        (json.dumps(sample(0, doc_hash=7)), r"line 2: 'doc_hash' is no text"),
        ("[" * 100_000, r"line 2: this is no JSON \(it is nested too deeply\)"),
    ],
)
def test_a_broken_line_is_told_with_its_number(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        load_run(write(tmp_path / "r", [sample(0), line]))


def test_results_without_samples_are_refused(tmp_path):
    path = tmp_path / "results_2026-01-02T03-04-05.678901.json"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"no samples beside these results.*--log_samples"):
        load_run(path)
