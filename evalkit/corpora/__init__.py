"""Read corpus shards (jsonl, gzip, zstandard, Parquet) as batches of documents in bounded memory."""

from evalkit.corpora.documents import BadRow, Batch, ShardCounts
from evalkit.corpora.readers import ShardReader, read_shard
from evalkit.corpora.shards import Shard, find_shards

__all__ = ["BadRow", "Batch", "Shard", "ShardCounts", "ShardReader", "find_shards", "read_shard"]
