"""A cluster whose nodes share no folder: corpus, parts and results lie in an object store."""

from __future__ import annotations

import json

import fsspec
import fsspec.config
import pytest
from moto.server import ThreadedMotoServer

from evalkit.contamination.audit import audit
from evalkit.contamination.benchmarks import from_file
from evalkit.contamination.rules import load_rules
from evalkit.corpora import find_shards
from evalkit.corpora.objects import listed
from evalkit.corpora.results import Results, local_copy
from evalkit.engines import LocalEngine
from evalkit.errors import InputError
from tests.places.commands import written


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """A bucket with a corpus, and what the nodes need to read it in their environment from their start."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    end_point = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    with pytest.MonkeyPatch.context() as patched:
        variables = {
            "AWS_ACCESS_KEY_ID": "loopback",
            "AWS_SECRET_ACCESS_KEY": "loopback",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in {**variables, "FSSPEC_S3_ENDPOINT_URL": end_point}.items():
            patched.setenv(name, value)
        patched.setenv("EVALKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setitem(fsspec.config.conf, "s3", {"endpoint_url": end_point})
        fs = fsspec.filesystem("s3")
        fs.mkdir("cluster-bucket")
        for name, data in written().items():
            fs.pipe_file(f"cluster-bucket/{name}", data)
        yield "s3://cluster-bucket"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket, cluster):
    """The nodes, started when the bucket's keys are in the environment."""
    return cluster


def audited(bucket, name, engine):
    results = Results(f"{bucket}/{name}")
    results.begin(name)
    audit(
        find_shards([f"{bucket}/corpus"]),
        [from_file(local_copy(f"{bucket}/items.jsonl"))],
        load_rules(["gpt3-clean", "llama3"]),
        results.folder,
        engine=engine,
    )
    parts = [one for one in listed(f"{bucket}/{name}") if one.endswith(".near.parquet")]
    here = list((results.folder / ".unfinished").glob("*.parquet"))
    results.publish()
    return parts, here


def test_an_audit_on_a_cluster_writes_to_a_store_what_one_machine_writes_there(bucket, engine, tmp_path):
    parts, here = audited(bucket, "by-ray", engine)
    assert len(parts) == 4 and here == []
    audited(bucket, "by-one", LocalEngine(1))
    fs = fsspec.filesystem("s3")
    by_ray, by_one = listed(f"{bucket}/by-ray"), listed(f"{bucket}/by-one")
    assert by_ray.keys() == by_one.keys() and "audit.json" in by_ray
    for name in by_ray:
        contents = [fs.cat_file(f"{bucket}/{folder}/{name}") for folder in ("by-ray", "by-one")]
        if name == "audit.json":
            records = [json.loads(one) for one in contents]
            assert records[0]["summary"] == records[1]["summary"] and records[0]["corpus"] == records[1]["corpus"]
        else:
            assert contents[0] == contents[1], name


def test_a_file_that_a_node_cannot_read_is_an_error_with_the_address(bucket, engine):
    shards = find_shards([f"{bucket}/corpus"])
    fs = fsspec.filesystem("s3")
    fs.copy("cluster-bucket/corpus/1.jsonl", "cluster-bucket/spare")
    fs.rm_file("cluster-bucket/corpus/1.jsonl")
    results = Results(f"{bucket}/lost")
    results.begin("lost")
    try:
        with pytest.raises(InputError, match=r"corpus/1\.jsonl"):
            benchmark = from_file(local_copy(f"{bucket}/items.jsonl"))
            audit(shards, [benchmark], load_rules(["llama3"]), results.folder, engine=engine)
    finally:
        results.leave()
        fs.copy("cluster-bucket/spare", "cluster-bucket/corpus/1.jsonl")
    assert "audit.json" not in listed(f"{bucket}/lost")
