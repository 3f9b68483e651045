"""A judge on the real vLLM server: it chooses by log-probabilities, and says what transformers says."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace

import pytest

from evalkit.judges.audit import audit
from evalkit.judges.judging import JudgeSpec, judge_pairs
from evalkit.judges.probe import probe_pairs
from evalkit.judges.prompts import load_prompt
from evalkit.runs.spec import RunSpec


def run_spec(demo_model, out, **more):
    return RunSpec(model=str(demo_model), out=out, dtype="bfloat16", **more)


@pytest.mark.parametrize("backend", ["hf", "served"])
def test_smollm2_judges_100_pairs_and_the_audit_says_how_bad_it_is(backend, demo_model, tmp_path, request):
    # Right against wrong answers to 100 generated questions.
    pairs = probe_pairs(100)
    pairs = replace(pairs, pairs=tuple(one for one in pairs.pairs if one.a.task == "wrong fact"))
    more = {}
    if backend == "served":
        request.getfixturevalue("openai_key")
        more = {"backend": "openai", "base_url": request.getfixturevalue("server").address}
    found = judge_pairs(JudgeSpec(run_spec(demo_model, tmp_path / "out", **more), load_prompt("pairwise")), pairs)
    assert (found.n_pairs, found.n_calls, found.n_failed) == (100, 220, 0)
    record = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert set(record["engine"]["scoring"]) == {"one_token"}, "one pass, or one request, has all labels"
    judge = audit(found.table).judges[0]
    assert judge.position.sign == "biased"
    assert judge.position.direction_test.p_value < 1e-6
    assert judge.position.bias.low > 0.3, "it prefers what it is shown first, far beyond its noise"
    assert judge.position.excess.low > 0 and judge.position.excess_p < 0.01
    assert judge.results[0].smallest_one_order > 0.3
    # It does not know which answer is right: the right one does not clearly win after both orders.
    assert judge.results[0].averaged.low < 0.5


def test_a_judge_on_the_chat_endpoint_is_held_to_its_labels(server, openai_key, demo_model, tmp_path, monkeypatch):
    pairs = probe_pairs(10)
    pairs = replace(pairs, pairs=pairs.pairs[:10])
    prompt = load_prompt("pairwise")
    chat = RunSpec(model="judge", out=tmp_path / "chat", backend="openai", base_url=server.address, endpoint="chat")
    found = judge_pairs(JudgeSpec(chat, prompt, repeats=0), pairs)
    record = json.loads((tmp_path / "chat" / "judge.json").read_text())
    assert record["verdicts_by"] == "guided decoding"
    assert (found.n_calls, found.n_failed) == (20, 0), "without guidance it answers in sentences"
    # The same prompts, scored with token ids through the other endpoint, give the same preferences.
    scoring = run_spec(demo_model, tmp_path / "scored", backend="openai", base_url=server.address)
    with monkeypatch.context() as patched:
        patched.setattr(
            secrets, "token_hex", lambda _: json.loads((tmp_path / "chat" / "judge.json").read_text())["secret"]
        )
        scored = judge_pairs(JudgeSpec(scoring, prompt, repeats=0), pairs)
    for one, other in zip(found.table.to_pylist(), scored.table.to_pylist(), strict=True):
        assert one["preference"] == pytest.approx(other["preference"], abs=0.05)


def test_a_judge_that_writes_is_parsed_strictly(server, openai_key, tmp_path):
    pairs = probe_pairs(10)
    pairs = replace(pairs, pairs=pairs.pairs[:6])
    chat = RunSpec(model="judge", out=tmp_path / "chat", backend="openai", base_url=server.address, endpoint="chat")
    found = judge_pairs(JudgeSpec(chat, load_prompt("pairwise"), repeats=0, reasons=True, max_tokens=64), pairs)
    assert found.n_calls == 12 == len(found.table)
    assert found.n_failed == sum(found.why_failed.values())
    assert "request failed" not in found.why_failed
