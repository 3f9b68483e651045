"""Rules are YAML: ours load, a user's own load by path, and a faulty one is named by file and field."""

from __future__ import annotations

import re
from datetime import date

import pytest
import yaml

from evalkit.contamination.rules import load_rules, rule_names
from evalkit.errors import SpecError

OWN = {
    "name": "mine",
    "summary": "s",
    "source": "us",
    "measure": "token_coverage",
    "n": 5,
    "threshold": 0.7,
    "document_action": "drop",
}


def test_all_rules_that_ship_load_and_name_their_source():
    rules = load_rules(rule_names())
    assert {"gpt3-clean", "llama3"} <= {rule.name for rule in rules}
    assert all(re.search(r"arXiv:\d|https://|\d{4}, ", rule.source) for rule in rules)


def test_a_rule_of_ones_own_loads_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN))
    assert load_rules([str(path)])[0].threshold == 0.7


def test_an_unknown_rule_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"no rule 'llama-3'.*Did you mean 'llama3'"):
        load_rules(["llama-3"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "vibes"}, "'measure' must be"),
        ({"n": 0}, "'n' must be"),
        ({"n": True}, "'n' must be"),
        ({"threshold": 50}, "'threshold' must be"),
        ({"document_action": "burn"}, "'document_action' must be"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"name": 2024}, "'name' must be a text, not 2024"),
        ({"summary": ["s"]}, "'summary' must be a text"),
        ({"source": date(2024, 1, 1)}, "'source' must be a text"),
        ({"name": " "}, "'name' must be a text"),
        ({"n": 1001}, "'n' must be a whole number of tokens from 1 to 1000"),
        ({"threshold": float("nan")}, "'threshold' must be"),
        ({"filled_in": "one"}, "'filled_in' must be a list of texts"),
        ({"filled_in": [1]}, "'filled_in' must be a list of texts"),
        ({"source": None}, "no 'source'"),
    ],
)
def test_a_faulty_rule_is_named_by_file_and_field(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in {**OWN, **change}.items() if value is not None}))
    with pytest.raises(SpecError) as error:
        load_rules([str(path)])
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (yaml.safe_dump(OWN).encode() + b"filled_in:\n", "'filled_in' must be a list of texts; leave it out"),
        (b"name: \xff", "not valid YAML"),
        (b"name: [", "not valid YAML"),
        (b"- a", "a rule is a YAML mapping"),
    ],
)
def test_a_file_that_is_no_rule_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as error:
        load_rules([str(path)])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
