"""Tasks by name: ours, a user's, lm-eval's; and what a name that means nothing is told."""

from __future__ import annotations

import hashlib
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from lm_eval.utils import handle_non_serializable

from evalkit.errors import TaskError
from evalkit.tasks import doc_hash, list_tasks, load_tasks

OWN = """\
task: gen_series
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: [a, b]
doc_to_target: 0
"""


def test_our_tasks_are_listed_with_their_tags():
    listed = {task.name: task for task in list_tasks()}
    assert sum(task.kind == "task" for task in listed.values()) >= 9
    assert listed["evalkit_generated"].kind == "tag"
    assert "evalkit_generated" in listed["gen_tables"].tags


def test_names_globs_and_tags_load_each_task_once():
    assert set(load_tasks(["gen_s*", "gen_series"], n_items=5).tasks) == {"gen_series", "gen_sorting", "gen_strings"}
    assert len(load_tasks(["evalkit_generated"], n_items=5).tasks) >= 6


def test_a_new_seed_gives_new_documents():
    one, other = (load_tasks(["gen_series"], task_seed=seed, n_items=50).tasks["gen_series"] for seed in (1, 2))
    assert {doc["question"] for doc in one.eval_docs}.isdisjoint(doc["question"] for doc in other.eval_docs)


def test_a_users_definition_takes_precedence(tmp_path):
    (tmp_path / "docs.jsonl").write_text('{"question": "mine"}\n')
    (tmp_path / "own.yaml").write_text(OWN.replace("DATA", str(tmp_path / "docs.jsonl")))
    assert load_tasks(["gen_series"], tasks_dirs=[tmp_path]).tasks["gen_series"].eval_docs[0] == {"question": "mine"}


def test_an_unknown_name_is_told_the_nearest_ones():
    with pytest.raises(TaskError, match=r"no task 'gen_tabels'.*Did you mean gen_tables"):
        load_tasks(["gen_tables", "gen_tabels"])


def test_lm_evals_own_tasks_are_known_by_name_and_need_their_data():
    with pytest.raises(TaskError, match="arc_easy: the tasks cannot be loaded") as error:
        load_tasks(["arc_easy"])
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(TaskError, match="there is no such folder"):
        load_tasks(["gen_series"], tasks_dirs=[tmp_path / "none"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_the_hash_of_a_document_is_that_of_lm_eval(doc):
    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    assert doc_hash(doc) == hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
