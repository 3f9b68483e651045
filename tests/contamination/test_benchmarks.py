"""Benchmarks: the documents and hashes of tasks and files, and the texts in them that would stand in a corpus."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment, StrictUndefined

from evalkit.contamination.benchmarks import (
    FIELDS,
    benchmark_definitions,
    from_file,
    from_task,
    load_definition,
    parse_fields,
    tasks_of,
)
from evalkit.errors import InputError, SpecError
from evalkit.tasks import doc_hash, list_tasks, load_tasks
from tests.conftest import ROOT

DOCS = [
    {"id": 0, "ask": "Which is red?", "options": ["a rose", "the sea"], "right": 0, "why": "Roses are."},
    {"id": 1, "ask": "Which is wet?", "options": ["a rose", "the sea"], "right": 1, "why": "Seas are."},
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_own(tmp_path, *, name="own", docs=DOCS, **definition):
    write_rows(tmp_path / "docs.jsonl", docs)
    base = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "num_fewshot": 2,
        "fewshot_split": "test",
        "doc_to_text": "Q: {{ask}}\nA:",
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**base, **definition}))
    return load_tasks([name], tasks_dirs=[tmp_path]).tasks[name]


# A task's own texts.


def test_a_file_and_the_task_that_reads_it_have_the_same_items(data_dir):
    task = load_tasks(["local_mmlu"], data_dir=data_dir / "benchmarks").tasks["local_mmlu"]
    assert from_task("local_mmlu", task).items == from_file(data_dir / "benchmarks" / "mmlu_test.jsonl.gz").items


def test_a_multiple_choice_task_gives_its_prompt_without_examples_each_choice_and_the_right_one(tmp_path):
    task = load_own(tmp_path, output_type="multiple_choice", doc_to_choice="options", doc_to_target="right")
    benchmark = from_task("own", task)
    assert dict(benchmark.items[1].fields) == {
        "question": "Q: Which is wet?\nA:",
        "choice_0": "a rose",
        "choice_1": "the sea",
        "answer": "the sea",
    }
    assert (benchmark.source, benchmark.n_duplicates, benchmark.definition) == ("task", 0, None)
    assert benchmark.n_missing == {"question": 0, "choices": 0, "answer": 0}


def test_a_free_form_task_gives_its_target_as_the_answer(tmp_path):
    task = load_own(tmp_path, output_type="generate_until", doc_to_target="why")
    assert dict(from_task("own", task).items[0].fields) == {"question": "Q: Which is red?\nA:", "answer": "Roses are."}


def test_a_number_without_choices_is_no_answer(tmp_path):
    task = load_own(tmp_path, output_type="generate_until", doc_to_target=0)
    assert dict(from_task("own", task).items[0].fields) == {"question": "Q: Which is red?\nA:"}


def test_a_task_with_one_context_for_each_choice_gives_the_right_sentence(tmp_path):
    task = load_own(
        tmp_path,
        output_type="multiple_choice",
        doc_to_text="right",
        doc_to_choice="options",
        doc_to_target="why",
        num_fewshot=0,
    )
    assert from_task("own", task).items[1].fields["question"] == "the sea Seas are."


@pytest.mark.parametrize("name", ["gen_sentences", "gen_series", "arc_easy"])
def test_a_users_task_named_like_one_of_ours_is_looked_for_by_its_own_texts(tmp_path, name):
    task = load_own(tmp_path, name=name, output_type="generate_until", doc_to_target="why")
    benchmark = from_task(name, task)
    assert dict(benchmark.items[0].fields) == {"question": "Q: Which is red?\nA:", "answer": "Roses are."}
    assert benchmark.definition is None


def test_one_document_without_a_required_field_is_enough_to_take_the_tasks_own_texts(tmp_path):
    docs = [{"question": "Which is red?", "answer": "a rose"}, {"question": "Which is wet?", "answer": None}]
    own = {"output_type": "generate_until", "doc_to_text": "Q: {{question}}", "doc_to_target": "{{answer}}"}
    task = load_own(tmp_path, name="gen_tables", docs=docs, **own)
    assert [item.fields["question"][:2] for item in from_task("gen_tables", task).items] == ["Q:", "Q:"]


def test_of_every_task_that_ships_the_fields_of_the_document_are_looked_for(data_dir):
    names = [task.name for task in list_tasks() if task.kind == "task"]
    for name, task in load_tasks(names, data_dir=data_dir / "benchmarks").tasks.items():
        doc, benchmark = task.eval_docs[0], from_task(name, task)
        item = benchmark.items[0]
        assert benchmark.definition is not None, name
        assert item.fields["question"] == doc.get("question", doc.get("prompt")), name
        if "choices" in doc:
            assert item.fields["choice_0"] == doc["choices"][0], name
            assert item.fields["answer"] == doc["choices"][doc["answer"]], name


# The definitions that ship: one document each, written for this test in the columns of the data set.

ROCKS = ["granite", "a basalt column", "chalk", "slate"]
ROCK_FIELDS = {f"choice_{n}": rock for n, rock in enumerate(ROCKS)}
ASK = "Which of these rocks did a lava flow leave behind?"
LABELLED = {"text": ROCKS, "label": ["A", "B", "C", "D"]}
LETTERS = dict(zip("ABCD", ROCKS, strict=True))
SUM = "Olga buys four pens at 3 crowns each. What does she pay?"
WORKED = "She pays 4 * 3 = <<4*3=12>>12 crowns.\n#### 12"
STORY = "The ferry left Bodo at nine and came back at noon."

# Name of the definition: (a task that reads it, a document, its texts). None: no task reads it.
EXAMPLES = {
    "evalkit": (
        "gen_tables",
        {"id": 3, "question": ASK, "choices": ROCKS, "answer": 1, "kind": "lookup", "table_id": "t1"},
        {"question": ASK, **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "mmlu": (
        "mmlu_astronomy",
        {"question": ASK, "subject": "astronomy", "choices": ROCKS, "answer": 1},
        {"question": ASK, **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "mmlu_pro": (
        "mmlu_pro_physics",
        {
            "question_id": 7,
            "question": ASK,
            "options": [*ROCKS, "gneiss"],
            "answer": "E",
            "answer_index": 4,
            "cot_content": "",
            "category": "physics",
            "src": "own",
        },
        {"question": ASK, **ROCK_FIELDS, "choice_4": "gneiss", "answer": "gneiss"},
    ),
    "mmlu_redux": (
        "mmlu_redux_astronomy_generative",
        {"question": ASK, "choices": ROCKS, "answer": 3, "error_type": "ok"},
        {"question": ASK, **ROCK_FIELDS, "answer": "slate"},
    ),
    "gsm8k": ("gsm8k", {"question": SUM, "answer": WORKED}, {"question": SUM, "answer": WORKED}),
    "gsm8k_platinum": (
        "gsm8k_platinum",
        {"question": SUM, "answer": WORKED, "cleaning_status": "consensus"},
        {"question": SUM, "answer": WORKED},
    ),
    "gsm_plus": (
        "gsm_plus",
        {"question": SUM, "solution": WORKED, "answer": "12", "perturbation_type": "digit expansion"},
        {"question": SUM, "answer": WORKED},
    ),
    "mgsm": (
        "mgsm_direct_de",
        {"question": "Olga kauft vier Stifte zu je 3 Kronen.", "answer": None, "answer_number": 12},
        {"question": "Olga kauft vier Stifte zu je 3 Kronen.", "answer": "12"},
    ),
    "math": (
        "hendrycks_math_algebra",
        {"problem": SUM, "level": "Level 5", "type": "Algebra", "solution": r"Four times three is $\boxed{12}$."},
        {"question": SUM, "answer": r"Four times three is $\boxed{12}$."},
    ),
    "aime": (
        "aime",
        {"ID": "1999-1", "Year": 1999, "Problem Number": 1, "Question": SUM, "Answer": "012", "Part": None},
        {"question": SUM, "answer": "012"},
    ),
    "aime24": (
        "aime24",
        {"ID": "2024-I-1", "Problem": SUM, "Solution": "Four times three.", "Answer": 12},
        {"question": SUM, "answer": "Four times three."},
    ),
    "aime25": ("aime25", {"problem": SUM, "answer": "12", "id": "0"}, {"question": SUM, "answer": "12"}),
    "arc": (
        "arc_challenge",
        {"id": "Own_1", "question": ASK, "choices": {"text": ROCKS, "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
        {"question": ASK, **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "hellaswag": (
        "hellaswag",
        {
            "ind": 4,
            "activity_label": "Baking bread",
            "ctx_a": "A woman kneads dough on a table.",
            "ctx_b": "then she",
            "ctx": "A woman kneads dough on a table. then she",
            "endings": ["lets it rest.", "dives in.", "paints it.", "sells the table."],
            "label": "0",
        },
        {
            "question": "A woman kneads dough on a table. then she",
            "choice_0": "lets it rest.",
            "choice_1": "dives in.",
            "choice_2": "paints it.",
            "choice_3": "sells the table.",
            "answer": "lets it rest.",
        },
    ),
    "swag": (
        "swag",
        {"sent1": "A woman kneads dough.", "sent2": "She", "startphrase": "A woman kneads dough. She", "label": 2}
        | {f"ending{n}": rock for n, rock in enumerate(ROCKS)},
        {"question": "A woman kneads dough. She", **ROCK_FIELDS, "answer": "chalk"},
    ),
    "winogrande": (
        "winogrande",
        {
            "sentence": "The kettle fit on the stove but the pan did not because the _ was too wide.",
            "option1": "kettle",
            "option2": "pan",
            "answer": "2",
        },
        {
            "question": "The kettle fit on the stove but the pan did not because the pan was too wide.",
            "choice_0": "kettle",
            "choice_1": "pan",
            "answer": "pan",
        },
    ),
    "piqa": (
        "piqa",
        {"goal": "To dry wet boots", "sol1": "fill them with newspaper.", "sol2": "fill them with soup.", "label": 0},
        {
            "question": "To dry wet boots",
            "choice_0": "fill them with newspaper.",
            "choice_1": "fill them with soup.",
            "answer": "fill them with newspaper.",
        },
    ),
    "siqa": (
        "social_iqa",
        {
            "context": "Kai lent Noor an umbrella.",
            "question": "How would Noor feel afterwards?",
            "answerA": "thirsty",
            "answerB": "grateful",
            "answerC": "sleepy",
            "label": "2",
        },
        {
            "question": "Kai lent Noor an umbrella. How would Noor feel afterwards?",
            "choice_0": "thirsty",
            "choice_1": "grateful",
            "choice_2": "sleepy",
            "answer": "grateful",
        },
    ),
    "copa": (
        "copa",
        {
            "premise": "The lamp went out.",
            "choice1": "The fuse blew.",
            "choice2": "The cat slept.",
            "question": "cause",
            "idx": 0,
            "label": 0,
        },
        {
            "question": "The lamp went out.",
            "choice_0": "The fuse blew.",
            "choice_1": "The cat slept.",
            "answer": "The fuse blew.",
        },
    ),
    "boolq": (
        "boolq",
        {"question": "did the ferry come back at noon", "passage": STORY, "idx": 0, "label": 1},
        {"question": "did the ferry come back at noon", "passage": STORY},
    ),
    "commonsense_qa": (
        "commonsense_qa",
        {
            "id": "own",
            "question": ASK,
            "question_concept": "rock",
            "choices": {"label": list("ABCDE"), "text": [*ROCKS, "gneiss"]},
            "answerKey": "E",
        },
        {"question": ASK, **ROCK_FIELDS, "choice_4": "gneiss", "answer": "gneiss"},
    ),
    "openbookqa": (
        "openbookqa",
        {"id": "own", "question_stem": "A lava flow leaves behind", "choices": LABELLED, "answerKey": "B"},
        {"question": "A lava flow leaves behind", **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "sciq": (
        "sciq",
        {
            "question": ASK,
            "distractor1": ROCKS[0],
            "distractor2": ROCKS[1],
            "distractor3": ROCKS[2],
            "correct_answer": ROCKS[3],
            "support": "Slate was mud once.",
        },
        {"question": ASK, **ROCK_FIELDS, "answer": "slate", "passage": "Slate was mud once."},
    ),
    "truthfulqa_mc": (
        "truthfulqa_mc1",
        {
            "question": "Does cracking an egg wake the hen?",
            "mc1_targets": {"choices": ["No, it does not.", "Yes, always."], "labels": [1, 0]},
            "mc2_targets": {"choices": ["No, it does not.", "Hens sleep on.", "Yes, always."], "labels": [1, 1, 0]},
        },
        {
            "question": "Does cracking an egg wake the hen?",
            "choice_0": "No, it does not.",
            "choice_1": "Hens sleep on.",
            "choice_2": "Yes, always.",
            "answer": "No, it does not.",
        },
    ),
    "truthfulqa_gen": (
        "truthfulqa_gen",
        {
            "type": "Adversarial",
            "category": "Own",
            "question": "Does cracking an egg wake the hen?",
            "best_answer": "No, it does not.",
            "correct_answers": ["No, it does not.", "Hens sleep on."],
            "incorrect_answers": ["Yes, always."],
            "source": "",
        },
        {
            "question": "Does cracking an egg wake the hen?",
            "choice_0": "No, it does not.",
            "choice_1": "Hens sleep on.",
            "choice_2": "Yes, always.",
            "answer": "No, it does not.",
        },
    ),
    "triviaqa": (
        "triviaqa",
        {
            "question": "Which city has the Nidelva",
            "question_id": "q1",
            "answer": {
                "aliases": ["Trondheim", "Nidaros"],
                "normalized_aliases": ["nidaros", "trondheim"],
                "type": "WikipediaEntity",
                "value": "Trondheim",
            },
        },
        {"question": "Which city has the Nidelva", "answer": "Trondheim"},
    ),
    "nq_open": (
        "nq_open",
        {"question": "which city has the nidelva", "answer": ["Trondheim", "Nidaros"]},
        {"question": "which city has the nidelva", "answer": "Trondheim"},
    ),
    "webqs": (
        "webqs",
        {"url": "", "question": "which city has the nidelva?", "answers": ["Nidaros", "Trondheim"]},
        {"question": "which city has the nidelva?", "answer": "Nidaros"},
    ),
    "drop": (
        "drop",
        {
            "section_id": "s",
            "query_id": "q",
            "passage": STORY,
            "question": "When did the ferry come back?",
            "answer": {
                "number": "",
                "date": {"day": "", "month": "", "year": ""},
                "spans": ["at noon"],
                "worker_id": "",
                "hit_id": "",
            },
            "validated_answers": {
                "number": [""],
                "date": [{"day": "", "month": "", "year": ""}],
                "spans": [["noon"]],
                "worker_id": [""],
                "hit_id": [""],
            },
        },
        {"question": "When did the ferry come back?", "answer": "at noon", "passage": STORY},
    ),
    "squadv2": (
        "squadv2",
        {
            "id": "s1",
            "title": "Ferry",
            "context": STORY,
            "question": "When did the ferry come back?",
            "answers": {"text": ["at noon", "noon"], "answer_start": [40, 43]},
        },
        {"question": "When did the ferry come back?", "answer": "at noon", "passage": STORY},
    ),
    "race": (
        "race",
        {
            "article": STORY,
            "problems": str(
                [
                    {"question": "The ferry left at  _  .", "answer": "A", "options": ["nine", "ten", "noon", "one"]},
                    {"question": ASK, "answer": "D", "options": ROCKS},
                ]
            ),
        },
        {"question": ASK, **ROCK_FIELDS, "answer": "slate", "passage": STORY},
    ),
    "logiqa": (
        "logiqa",
        {"label": "c", "context": STORY, "question": ASK, "options": ROCKS},
        {"question": ASK, **ROCK_FIELDS, "answer": "chalk", "passage": STORY},
    ),
    "lambada": ("lambada_openai", {"text": STORY}, {"question": STORY}),
    "bbh": (
        "bbh_cot_fewshot_navigate",
        {"input": f"{ASK}\nOptions:\n- Yes\n- No", "target": "No"},
        {"question": f"{ASK}\nOptions:\n- Yes\n- No", "answer": "No"},
    ),
    "agieval": (
        "agieval_lsat_ar",
        {"query": f"Q: {ASK}\nA: Among A through D, the answer is", "choices": ROCKS, "gold": [2]},
        {"question": f"Q: {ASK}\nA: Among A through D, the answer is", **ROCK_FIELDS, "answer": "chalk"},
    ),
    "gpqa": (
        "gpqa_main_n_shot",
        {
            "Question": ASK,
            "Correct Answer": ROCKS[0],
            "Incorrect Answer 1": ROCKS[1],
            "Incorrect Answer 2": ROCKS[2],
            "Incorrect Answer 3": ROCKS[3],
        },
        {"question": ASK, **ROCK_FIELDS, "answer": "granite"},
    ),
    "ifeval": (
        "ifeval",
        {"key": 1, "prompt": "Name four rocks without a comma.", "instruction_id_list": ["punctuation:no_comma"]},
        {"question": "Name four rocks without a comma."},
    ),
    "medqa": (
        "medqa_4options",
        {"id": "own", "sent1": ASK, "sent2": "", "label": 1} | {f"ending{n}": rock for n, rock in enumerate(ROCKS)},
        {"question": ASK, **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "medmcqa": (
        "medmcqa",
        {"id": "own", "question": ASK, "cop": 3, "choice_type": "single", "exp": None}
        | dict(zip(["opa", "opb", "opc", "opd"], ROCKS, strict=True)),
        {"question": ASK, **ROCK_FIELDS, "answer": "slate"},
    ),
    "cmmlu": (
        "cmmlu_anatomy",
        {"Question": "下列哪一种岩石由熔岩形成？", **LETTERS, "Answer": "B"},
        {"question": "下列哪一种岩石由熔岩形成？", **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "ceval": (
        "ceval-valid_law",
        {"id": 0, "question": "下列哪一种岩石由熔岩形成？", **LETTERS, "answer": "B", "explanation": ""},
        {"question": "下列哪一种岩石由熔岩形成？", **ROCK_FIELDS, "answer": "a basalt column"},
    ),
    "humaneval": (
        "humaneval",
        {
            "task_id": "Own/0",
            "prompt": 'def twice(x):\n    """Return two times x."""\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "entry_point": "twice",
        },
        {"question": 'def twice(x):\n    """Return two times x."""\n', "answer": "    return 2 * x\n"},
    ),
    "mbpp": (
        "mbpp",
        {
            "task_id": 9,
            "text": "Write a function to double a number.",
            "code": "def twice(x):\r\n  return 2 * x",
            "test_list": ["assert twice(1) == 2", "assert twice(2) == 4", "assert twice(0) == 0"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        {"question": "Write a function to double a number.", "answer": "def twice(x):\r\n  return 2 * x"},
    ),
    "mbpp_plus": (
        "mbpp_plus",
        {
            "task_id": 9,
            "prompt": "Write a function to double a number.",
            "code": "def twice(x):\n  return 2 * x",
            "source_file": "own",
            "test_imports": [],
            "test_list": ["assert twice(1) == 2", "assert twice(2) == 4", "assert twice(0) == 0"],
            "test": "",
        },
        {"question": "Write a function to double a number.", "answer": "def twice(x):\n  return 2 * x"},
    ),
    "cruxeval": (
        "cruxeval_output",
        {"code": "def f(x):\n    return x[::-1]", "input": "'slate'", "output": "'etals'", "id": "sample_0"},
        {"question": "def f(x):\n    return x[::-1]", "answer": "'etals'"},
    ),
    "livecodebench": (
        None,
        {
            "question_title": "A. Pens",
            "question_content": SUM,
            "platform": "atcoder",
            "question_id": "own_a",
            "contest_date": "2024-01-01T00:00:00",
            "starter_code": "",
            "difficulty": "easy",
            "public_test_cases": "[]",
        },
        {"question": SUM},
    ),
}

# Importing lm-eval's code for these needs the network (metrics of the hub) or packages that evalkit does without.
NOT_LOADED = {"humaneval", "mbpp", "mbpp_plus", "ifeval", "squadv2"}


@pytest.fixture(scope="module")
def task_index():
    """Every task, group and tag of the installed lm-eval, and evalkit's own, with its definition."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=ROOT / "tasks").task_index


def tasks_in(index):
    return [name for name, entry in index.items() if entry.kind.name in ("TASK", "PY_TASK")]


def test_every_definition_has_an_example_here():
    assert sorted(EXAMPLES) == sorted(benchmark_definitions())


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_in_the_data_sets_own_columns_gives_its_texts(tmp_path, name):
    task, doc, fields = EXAMPLES[name]
    definition = benchmark_definitions()[name]
    assert task is None or definition.covers(task)
    benchmark = from_file(write_rows(tmp_path / "copy.jsonl", [doc]), fields=parse_fields(name))
    assert dict(benchmark.items[0].fields) == fields
    assert benchmark.items[0].doc_hash == doc_hash(doc)
    assert benchmark.n_missing == dict.fromkeys(definition.mapping.columns, 0)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - NOT_LOADED - {"evalkit", "livecodebench"}))
def test_lm_evals_own_task_turns_the_example_into_a_document_with_the_same_texts(tmp_path, task_index, name):
    task, doc, fields = EXAMPLES[name]
    files = dict.fromkeys(["train", "validation", "val", "dev", "test"], str(write_rows(tmp_path / "d.jsonl", [doc])))
    # lm-eval's definition with its process_docs and prompts; only the data come from here.
    own = {"include": str(task_index[task].yaml_path), "task": task, "dataset_path": "json", "dataset_name": None}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**own, "dataset_kwargs": {"data_files": files}}))
    loaded = load_tasks([task], tasks_dirs=[tmp_path]).tasks[task]
    assert loaded.doc_to_text(loaded.eval_docs[0]) is not None
    benchmark = from_task(task, loaded)
    assert benchmark.definition == name
    # lm-eval's TruthfulQA adds a reference answer of its own.
    found = {key: text for key, text in benchmark.items[0].fields.items() if text != "I have no comment."}
    if name == "truthfulqa_gen":
        assert (found["question"], found["answer"]) == (fields["question"], fields["answer"])
        assert sorted(found.values()) == sorted(fields.values())
    else:
        assert found == fields


def test_lm_evals_prompts_name_no_column_that_an_example_lacks(task_index):
    rendered, environment = set(), Environment(undefined=StrictUndefined)
    environment.filters["regex_replace"] = lambda text, *_: text
    for name, (_, doc, _) in EXAMPLES.items():
        definition = benchmark_definitions()[name]
        for task in filter(definition.covers, tasks_in(task_index)):
            config = task_index[task].cfg or {}
            template = config.get("doc_to_text")
            if "process_docs" in config or not isinstance(template, str) or "{{" not in template:
                continue
            environment.from_string(template).render(**doc)
            rendered.add(name)
    assert rendered >= {"humaneval", "mbpp", "mbpp_plus", "mmlu", "mgsm", "bbh", "lambada"}
    assert len(rendered) >= 25


def test_every_name_and_glob_of_a_definition_is_in_lm_eval(task_index):
    names = tasks_in(task_index)
    for definition in benchmark_definitions().values():
        for pattern in definition.tasks:
            assert fnmatch.filter(names, pattern.removeprefix("!")), f"{definition.name}: {pattern}"
        for name in definition.load:
            assert name in task_index, f"{definition.name}: {name}"


def test_the_tasks_of_a_definition_read_its_data_set_and_belong_to_no_other(task_index):
    for task in tasks_in(task_index):
        covering = [one for one in benchmark_definitions().values() if one.covers(task)]
        assert len(covering) <= 1, task
        data_set = (task_index[task].cfg or {}).get("dataset_path")
        if covering and data_set:
            assert any(fnmatch.fnmatchcase(data_set, pattern) for pattern in covering[0].datasets), task


def test_the_evaluated_split_is_lm_evals(task_index):
    for name, (task, *_) in EXAMPLES.items():
        config = task_index[task].cfg if task else None
        if config and not config.get("class") and name != "evalkit":
            split = config.get("test_split") or config.get("validation_split")
            assert benchmark_definitions()[name].split == split, name


def test_the_name_of_a_benchmark_stands_for_the_tasks_that_hold_each_document_once():
    assert tasks_of("arc") == ("arc_easy", "arc_challenge")
    assert tasks_of("mmlu") == ("mmlu",)
    assert tasks_of("gen_tables") == ("gen_tables",)
    with pytest.raises(SpecError, match=r"no lm-eval task reads LiveCodeBench.*--fields livecodebench"):
        tasks_of("livecodebench")


def test_code_is_told_from_prose():
    for name, code in {"humaneval": {"question", "answer"}, "mbpp": {"answer"}, "mmlu": set()}.items():
        assert benchmark_definitions()[name].mapping.code == code


def test_the_page_lists_every_benchmark_as_its_definition_says():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    listed = [line for line in page.partition("## The benchmarks")[2].splitlines() if line.startswith("| `")]
    assert listed == list(table_rows()), "put the rows of table_rows() into docs/benchmarks.md"


def table_rows():
    """One row of the page's table for each definition."""

    def code(texts):
        return ", ".join(f"`{text}`" for text in texts)

    for name, one in benchmark_definitions().items():
        columns = {
            field: code(source.text for source in sources) + (" (code)" if field in one.mapping.code else "")
            for field, sources in one.mapping.columns.items()
        }
        cells = [
            f"`{name}`",
            one.title,
            code(one.load) or "none",
            f"{', '.join(one.datasets) or 'evalkit'}: {one.split}",
            *(columns.get(field, "") for field in FIELDS),
            one.note,
        ]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


# The form of a definition.

GOOD = {"name": "mine", "title": "Mine", "tasks": ["mine"], "split": "test", "fields": {"question": "q", "answer": "a"}}


def refusal(tmp_path, change, remove=()):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**GOOD, **change}.items() if key not in remove}))
    with pytest.raises(SpecError) as error:
        load_definition(path)
    assert error.value.where == str(path) and "arc.yaml" in error.value.do
    return error.value.what


@pytest.mark.parametrize("key", ["name", "title", "tasks", "split", "fields"])
def test_a_definition_without_a_key_is_refused(tmp_path, key):
    assert f"has no '{key}'" in refusal(tmp_path, {}, remove=[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "red"}, "an unknown key 'colour'"),
        ({"name": "yours"}, "must be that of the file, 'mine', not 'yours'"),
        ({"title": 5}, "'title' must be a text, not 5"),
        ({"tasks": [1]}, "'tasks' must be a text or a list of texts"),
        ({"tasks": ["mine_*"]}, "`load` must name the tasks"),
        ({"fields": {"answer": "a"}}, "must name a column for `question`"),
        ({"fields": {"question": "q", "hint": "h"}}, "there is no field 'hint'"),
        ({"fields": {"question": []}}, "'question' names no column"),
        ({"fields": {"question": "q..x"}}, "'q..x' is no column"),
        ({"fields": {"question": "q[x]"}}, "'q[x]' is no column"),
        ({"fields": {"question": "{q} {r"}}, "the braces in '{q} {r' do not match"),
        ({"optional": "question"}, "cannot be optional"),
        ({"optional": ["passage"]}, "'optional' names 'passage', which is not among the fields"),
        ({"code": ["choices"]}, "'code' names 'choices', which is not among the fields"),
        ({"first_choice": 0}, "need both `choices` and `answer`"),
        ({"first_choice": "AB"}, "must be a whole number or one letter"),
        ({"gap": ""}, "'gap' must be the text"),
    ],
)
def test_a_mistake_in_a_definition_is_named(tmp_path, change, message):
    assert message in refusal(tmp_path, change)


def test_a_definition_that_is_no_yaml_or_no_mapping_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, message in (("a: [", "not valid YAML"), ("- a", "is a YAML mapping")):
        path.write_text(text)
        with pytest.raises(SpecError, match=message):
            load_definition(path)
    with pytest.raises(SpecError, match="cannot be read"):
        load_definition(tmp_path / "absent.yaml")


# --fields.


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        ("question=problem", {"problem": SUM}, {"question": SUM}),
        ("question=a.b.c", {"a": {"b": {"c": SUM}}}, {"question": SUM}),
        ("question=a.b", {"a.b": SUM, "a": {"b": "no"}}, {"question": SUM}),
        ("question=The Text", {"The Text": SUM}, {"question": SUM}),
        ("question=m[0].content,answer=m[-1].content", {"m": [{"content": "a"}, {"content": "b"}]}, "a|b"),
        ("question=m[].content", {"m": [{"content": "a"}, {"content": "b"}]}, {"question": "a\nb"}),
        ("question=m[].t[].x", {"m": [{"t": [{"x": "a"}, {"x": "b"}]}, {"t": [{"x": "c"}]}]}, {"question": "a\nb\nc"}),
        ("question=q[1][0]", {"q": [["a"], ["b"]]}, {"question": "b"}),
        ("question={a}, {b}!,answer=c", {"a": "x", "b": 2, "c": "z"}, {"question": "x, 2!", "answer": "z"}),
        ("question=q,answer=n", {"q": "a", "n": 12}, "a|12"),
        ("question=q , answer=a", {"q": "a", "a": "b"}, "a|b"),
        ("question=q,answer=a[0]", {"q": "a", "a": ["b", "c"]}, "a|b"),
    ],
)
def test_columns_are_named_by_paths(tmp_path, fields, row, expected):
    if isinstance(expected, str):
        expected = dict(zip(("question", "answer"), expected.split("|"), strict=True))
    benchmark = from_file(write_rows(tmp_path / "f.jsonl", [row]), fields=parse_fields(fields))
    assert dict(benchmark.items[0].fields) == expected


@pytest.mark.parametrize(
    ("more", "answer", "expected"),
    [
        ("", 1, "sea"),
        ("", "sea", "sea"),
        ("", "1", "1"),
        (",first_choice=0", "1", "sea"),
        (",first_choice=1", 1, "rose"),
        (",first_choice=A", "B", "sea"),
        (",first_choice=A", "(B)", "sea"),
        (",first_choice=a", "b.", "sea"),
        (",first_choice=0", [0, 1], "rose\nsea"),
        (",choice_labels=names", "y", "sea"),
        (",choice_labels=names", "x", "rose"),
    ],
)
def test_an_answer_that_names_a_choice_is_the_text_of_that_choice(tmp_path, more, answer, expected):
    row = {"q": "Which?", "c": ["rose", "sea"], "names": ["x", "y"], "a": answer}
    path = write_rows(tmp_path / "f.jsonl", [row])
    fields = parse_fields(f"question=q,choices=c,answer=a{more}")
    assert from_file(path, fields=fields).items[0].fields["answer"] == expected


def test_choices_can_stand_in_columns_of_their_own(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [{"q": "Which?", "A": "rose", "B": "sea", "a": "B"}])
    fields = parse_fields("question=q,choices=A+B,answer=a,first_choice=A")
    assert dict(from_file(path, fields=fields).items[0].fields) == {
        "question": "Which?",
        "choice_0": "rose",
        "choice_1": "sea",
        "answer": "sea",
    }


def test_an_absent_choice_does_not_move_those_after_it(tmp_path):
    rows = [{"q": "Which?", "A": "rose", "B": None, "C": "sea", "a": "C"}, {"q": "Who?", "c": ["x", None, "z"], "a": 2}]
    for row, fields in zip(rows, ["choices=A+B+C,first_choice=A", "choices=c"], strict=True):
        path = write_rows(tmp_path / "f.jsonl", [row])
        benchmark = from_file(path, fields=parse_fields(f"question=q,answer=a,{fields}"))
        assert benchmark.items[0].fields["answer"] == benchmark.items[0].fields["choice_2"]
        assert benchmark.n_missing["choice_1"] == 1


def test_fields_of_code_are_told(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [{"q": "Why?", "c": ["x = 1", "x = 2"]}])
    benchmark = from_file(path, fields=parse_fields("question=q,choices=c,code=choices"))
    assert (benchmark.is_code("choice_1"), benchmark.is_code("question")) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no benchmark ''"),
        ("mmlu_por", "there is no benchmark 'mmlu_por'; did you mean 'mmlu_pro'?"),
        ("answer=a", "must name a column for `question`"),
        ("question=q,hint=h", "'hint' is no field; there are question, choices, answer, passage"),
        ("question=q,question=r", "'question' is given twice"),
        ("question=", "must be a text or a list of texts"),
        ("question=a[b]", "'a[b]' is no column"),
        ("question=q,first_choice=0", "need both `choices` and `answer`"),
        ("question=q,code=answer", "'code' names 'answer'"),
    ],
)
def test_a_mistake_in_the_option_is_named(text, message):
    with pytest.raises(SpecError) as error:
        parse_fields(text)
    assert error.value.where == "--fields" and message in error.value.what


@pytest.mark.parametrize(
    ("fields", "row", "message"),
    [
        ("question=q", {"p": "x"}, "row 1, column 'q': the item has no text in 'q' (its fields: p)"),
        ("question=q", {"q": "  "}, "row 1, column 'q': the item has no text in 'q'"),
        (
            "question=q.content",
            {"q": [{"content": "x"}]},
            "'q.content': 'content' is looked for in a list",
        ),
        ("question=q.content", {"q": "x"}, "'content' is looked for in a text. Name the value itself"),
        ("question=q[].content", {"q": "x"}, "[] is applied to a text. Leave the brackets out"),
        ("question=q", {"q": {"a": "x"}}, "row 1, column 'q': the value is an object (its names: a), not a text"),
        (
            "question=q,choices=c,answer=a",
            {"q": "x", "c": ["y"], "a": 1},
            "'a': the answer 1 names none of the 1",
        ),
        ("question=q,answer=a,gap=_", {"q": "x", "a": "y"}, "column 'q': the question has no gap '_'"),
    ],
)
def test_a_row_of_another_shape_is_refused_with_its_row_and_column(tmp_path, fields, row, message):
    mapping = parse_fields(fields)
    good = {"q": "good _" if "gap" in fields else "good", "c": ["y"], "a": 0}
    good["q"] = [{"content": "good"}] if "[]" in fields else {"content": "good"} if "." in fields else good["q"]
    path = write_rows(tmp_path / "f.jsonl", [good, row])
    with pytest.raises(InputError) as error:
        from_file(path, fields=mapping)
    assert str(error.value).startswith(f"{path}, row 1, column ") and message in str(error.value) and error.value.do


def test_a_column_that_no_row_has_is_refused_and_the_columns_are_listed(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [{"problem": "x", "solution": "y"}])
    with pytest.raises(InputError, match=r"column 'solutoin'.*no item has a text for `answer`.*problem, solution"):
        from_file(path, fields=parse_fields("question=problem,answer=solutoin"))


def test_real_files_are_read_by_the_name_of_their_benchmark(data_dir):
    folder = data_dir / "benchmarks"
    hard = from_file(folder / "bbh" / "disambiguation_qa.jsonl.gz", fields=parse_fields("bbh"))
    assert len(hard.items) + hard.n_duplicates > 100 and hard.n_missing == {"question": 0, "answer": 0}
    human = from_file(folder / "humaneval.jsonl.gz", fields=parse_fields("humaneval"))
    assert len(human.items) == 164 and human.is_code("answer") and human.n_missing == {"question": 0, "answer": 0}
    mmlu = folder / "mmlu_test.jsonl.gz"
    assert from_file(mmlu, fields=parse_fields("mmlu")).items == from_file(mmlu).items


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file_has_the_items_of_the_same_rows_as_json(tmp_path, writer):
    rows = [{"question": ASK, "choices": ROCKS, "answer": 1}, {"question": SUM, "choices": ROCKS, "answer": 0}]
    table = pa.Table.from_pylist(rows)
    with writer(str(tmp_path / "f.arrow"), table.schema) as file:
        file.write_table(table)
    assert from_file(tmp_path / "f.arrow").items == from_file(write_rows(tmp_path / "f.jsonl", rows)).items


# Nothing is lost in silence.


def test_what_items_lack_is_counted(tmp_path):
    rows = [
        {"question": "a", "answer": "x", "choices": ["one", ""]},
        {"question": "b", "answer": None, "choices": []},
        {"question": "b", "answer": None, "choices": []},  # a duplicate counts once
        {"question": "c", "answer": " ", "passage": "p"},
    ]
    benchmark = from_file(write_rows(tmp_path / "f.jsonl", rows))
    assert benchmark.n_missing == {"question": 0, "answer": 2, "choices": 2, "passage": 2, "choice_1": 1}
    assert dict(benchmark.items[0].fields) == {"question": "a", "answer": "x", "choice_0": "one"}


def test_a_file_of_questions_only_lacks_nothing(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [{"question": "a"}, {"question": "b", "answer": None}])
    assert from_file(path).n_missing == {"question": 0}


def test_choices_as_arc_has_them_are_read_without_being_named(tmp_path):
    path = write_rows(tmp_path / "f.jsonl", [{"question": ASK, "choices": LABELLED, "answer": 2}])
    assert dict(from_file(path).items[0].fields) == {"question": ASK, **ROCK_FIELDS, "answer": "chalk"}


texts = st.one_of(st.none(), st.sampled_from(["", " ", "\n"]), st.text(min_size=1, max_size=8), st.integers(0, 99))
rows = st.fixed_dictionaries(
    {"question": st.text(min_size=1, max_size=8).filter(str.strip)},
    optional={
        "answer": st.one_of(texts.filter(lambda value: not isinstance(value, int)), st.lists(st.text(max_size=3))),
        "choices": st.lists(texts, max_size=4),
        "passage": texts,
    },
)


@given(st.lists(rows, min_size=1, max_size=6))
def test_each_field_of_each_item_has_its_text_or_is_counted(tmp_path_factory, items):
    benchmark = from_file(write_rows(tmp_path_factory.mktemp("b") / "f.jsonl", items))
    assert len(benchmark.items) + benchmark.n_duplicates == len(items)
    by_hash = {doc_hash(row): row for row in items}
    for name in ("question", "answer", "passage"):
        present = sum(name in item.fields for item in benchmark.items)
        assert present + benchmark.n_missing.get(name, len(benchmark.items)) == len(benchmark.items)
    for item in benchmark.items:
        assert all(text.strip() for text in item.fields.values())
        choices = by_hash[item.doc_hash].get("choices", [])
        kept = {f"choice_{n}": str(one) for n, one in enumerate(choices) if one is not None and str(one).strip()}
        assert {key: text for key, text in item.fields.items() if key.startswith("choice_")} == kept


def test_a_file_whose_name_is_not_utf8_is_refused_since_no_table_could_name_it(tmp_path):
    path = Path(f"{tmp_path}/caf\udce9.jsonl")
    path.write_text('{"question": "What is love?"}\n')
    with pytest.raises(InputError, match=r"not UTF-8.*Rename"):
        from_file(path)
    (path.with_suffix("")).mkdir()
    with pytest.raises(InputError, match="not UTF-8"):
        from_file(write_rows(path.with_suffix("") / "a.jsonl", [{"question": "What is love?"}]))
