"""How many servers a cluster has room for, which of them gets which checkpoint, and which options are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalkit.errors import EngineError, SpecError
from evalkit.progress import progress_rows
from evalkit.runs import sweep_cluster
from evalkit.runs.spec import gpus_of_flags, make_spec
from evalkit.runs.sweep import Checkpoint
from evalkit.runs.sweep_cluster import Node, Plan, Queue, _Driver, make_plan
from evalkit.runs.sweep_slot import Job, Setup


def spec_of(**given):
    return make_spec(None, {"tasks": "t", "out": Path("out"), "checkpoints": "c/*", "engine": "ray", **given})


def nodes(*gpus_and_cpus):
    return [Node(f"id{n}", f"node{n}", gpus, cpus) for n, (gpus, cpus) in enumerate(gpus_and_cpus)]


def jobs(*keys):
    spec = spec_of()
    return [
        Job(Checkpoint(Path(f"c/{n}"), n, None, str(n)), spec.model_copy(update={"model": f"c/{n}"}), key)
        for n, key in enumerate(keys)
    ]


@pytest.mark.parametrize(
    ("given", "found", "plan"),
    [
        # One GPU each, and an equal share of the processors.
        ({}, nodes((8, 64), (8, 64)), Plan(16, 1, 8)),
        # The head of the cluster has none, and no server.
        ({}, nodes((0, 4), (8, 64)), Plan(8, 1, 8)),
        # The smallest share counts for all: they are equal, wherever they are.
        ({}, nodes((4, 64), (4, 8)), Plan(8, 1, 2)),
        ({"gpus_per_server": 4}, nodes((8, 64), (6, 64)), Plan(3, 4, 32)),
        ({"gpus_per_server": 4, "servers": 2}, nodes((8, 64), (6, 64)), Plan(2, 4, 32)),
        ({"backend": "vllm", "vllm_args": "--tensor-parallel-size 2"}, nodes((8, 64)), Plan(4, 2, 16)),
        # Processors can be what is scarce.
        ({"cpus_per_server": 16}, nodes((8, 64)), Plan(4, 1, 16)),
        # Without GPUs, a server has a whole node.
        ({}, nodes((0, 16), (0, 16), (0, 0)), Plan(2, 0, 16)),
        ({"cpus_per_server": 4}, nodes((0, 16), (0, 6)), Plan(5, 0, 4)),
        ({"gpus_per_server": 0, "cpus_per_server": 8}, nodes((8, 64)), Plan(8, 0, 8)),
    ],
)
def test_servers_fill_the_cluster(given, found, plan):
    assert make_plan(found, spec_of(**given), 100) == plan


def test_there_are_no_more_servers_than_checkpoints_and_the_plan_is_said():
    plan = make_plan(nodes((8, 64)), spec_of(), 3)
    assert str(plan) == "3 servers (1 GPU and 8 CPUs each)"
    assert str(make_plan(nodes((0, 1)), spec_of(), 3)) == "1 server (1 CPU each)"


@pytest.mark.parametrize(
    ("given", "found", "message"),
    [
        ({"gpus_per_server": 8}, nodes((4, 8), (4, 8)), "no node of the cluster has 8 GPUs; the most is 4"),
        (
            {"backend": "vllm", "vllm_args": "--tensor-parallel-size=16"},
            nodes((8, 64)),
            "--vllm-args: no node of the cluster has 16 GPUs; the most is 8",
        ),
        ({"cpus_per_server": 32}, nodes((4, 8), (4, 16)), "1 GPU and 32 CPUs. Give --cpus-per-server 16 or less"),
        ({}, nodes((0, 0)), "room for a server"),
        ({}, [], "room for a server"),
    ],
)
def test_a_server_for_which_no_node_has_room_is_refused(given, found, message):
    with pytest.raises(EngineError, match=message):
        make_plan(found, spec_of(**given), 10)


def test_gpus_of_flags_are_those_of_all_ways_to_be_parallel():
    assert gpus_of_flags("--max-model-len 8192 --enforce-eager") == 1
    assert gpus_of_flags("-tp 4 --pipeline-parallel-size=2 --data-parallel-size 2") == 16
    with pytest.raises(SpecError, match="'x' is no number"):
        gpus_of_flags("-tp x")


def taken(queue, slot, key=None, others=(), node=None):
    ticket = queue.take(slot, node or f"node{slot}", key, others)
    return None if ticket is None else ticket.job.checkpoint.step


def test_checkpoints_are_taken_in_order_by_whoever_is_free():
    queue = Queue(jobs(*"aaaa"))
    assert [taken(queue, slot, "a") for slot in (0, 1, 1, 0)] == [0, 1, 2, 3]
    assert taken(queue, 0, "a") is None


def test_a_server_stays_with_an_architecture_and_new_ones_go_where_most_is_left():
    queue = Queue(jobs(*"aabbbb"))
    assert taken(queue, 0) == 2  # four of b, two of a
    assert taken(queue, 1, None, ["b"]) == 0  # three of b for two servers, two of a for one
    assert taken(queue, 1, "a", ["b"]) == 1
    assert taken(queue, 0, "b", ["a"]) == 3
    assert taken(queue, 1, "a", ["b"]) == 4  # nothing of a is left


def test_the_next_weights_are_those_that_a_server_will_probably_get():
    queue = Queue(jobs(*"aaaaab"))
    assert taken(queue, 0, "a") == 0
    # Two others will be free before it, and take 1 and 2; any of them may serve for the gate.
    assert queue.after("a", 2) == ["c/3", "c/4", "c/1", "c/2"]
    assert queue.after("b", 1) == ["c/5"]
    assert queue.after("c", 0) == []


def test_what_has_failed_on_a_server_goes_to_another_node_or_is_given_up():
    queue = Queue(jobs("a", "a"))
    ticket = queue.take(0, "x", None, [])
    ticket.slots.add(0)
    ticket.nodes.add("x")
    queue.give_back(ticket)
    assert taken(queue, 0, "a", node="x") == 1
    assert taken(queue, 1, "a", node="x") is None
    assert queue.drop_unfit({0: "x", 1: "x", 2: "y"}) == []
    assert queue.drop_unfit({0: "x", 1: "x"}) == [ticket]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "local", "gpus_per_server": 1}, "'gpus_per_server' is about a Ray cluster.*Give --engine ray"),
        ({"engine": "local", "ray_address": "auto"}, "'ray_address' is about a Ray cluster"),
        ({"checkpoints": None, "model": "m"}, "Give --checkpoints, or leave out --engine"),
        ({"journal": Path("j")}, "servers on several nodes cannot write to one journal"),
        ({"device": "cuda:1"}, "Give --device cuda"),
        (
            {"backend": "vllm", "gpus_per_server": 1, "vllm_args": "-tp 4"},
            "ask for 4 GPUs, and a server gets 1. Give --gpus-per-server 4",
        ),
        ({"gpus_per_server": -1}, "'gpus_per_server' cannot be -1"),
        ({"engine": "slurm"}, "'engine' cannot be 'slurm'"),
        ({"backend": "openai"}, "a running server serves one model"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(given, message):
    with pytest.raises(SpecError, match=message):
        spec_of(**given)


def test_the_cluster_is_no_setting_of_a_run_so_that_either_engine_goes_on_with_it():
    assert spec_of(gpus_per_server=1).settings() == spec_of(engine="local").settings()


@pytest.fixture
def driver(monkeypatch):
    """A driver whose servers have not begun, on a cluster that is only said to exist; it waits for nothing."""
    monkeypatch.setattr(sweep_cluster, "_make_mailbox", lambda: None)
    monkeypatch.setattr(sweep_cluster, "_NO_ROOM_S", 0.0)
    with progress_rows("checkpoints", 2) as rows:
        yield _Driver(Plan(1, 1, 1), Setup(spec_of(), "id", "."), Queue(jobs("a", "a")), rows, {}, {})


def test_while_others_hold_all_gpus_the_command_waits_and_says_so_once(driver, monkeypatch, capsys):
    monkeypatch.setattr(sweep_cluster, "_nodes", lambda: nodes((1, 8)))
    for _ in range(4):
        driver._look_for_room()
    assert (
        capsys.readouterr().err.count("2 checkpoints waiting: no server has begun for 0 s. Others probably hold") == 1
    )


def test_where_no_node_could_hold_a_server_the_command_ends(driver, monkeypatch):
    monkeypatch.setattr(sweep_cluster, "_nodes", lambda: nodes((0, 8)))
    driver._look_for_room()
    with pytest.raises(EngineError, match="2 checkpoints left, and no node is that could hold a server"):
        driver._look_for_room()
