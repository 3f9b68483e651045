"""A real Ray cluster of three nodes on this machine."""

from __future__ import annotations

import os
import secrets

import pytest

# Before Ray is imported: nothing is told to anybody, and Ray's own log lines stay out of the tests' output.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

# Ray's clusters ask for a token or not by what else happened on the machine: here always, and for one of their own.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

STORE_BYTES = 200 << 20


@pytest.fixture(scope="module")
def cluster():
    """Three nodes with one processor each; this process is connected by its first engine."""
    import ray
    from ray.cluster_utils import Cluster

    started = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    for _ in range(2):
        started.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def engine(cluster):
    from evalkit.engines.ray import RayEngine

    made = RayEngine(cluster.address)
    yield made
    made.stop()
