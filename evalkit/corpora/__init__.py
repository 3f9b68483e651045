"""Read corpus shards (jsonl, Parquet, Arrow; here, at any fsspec address, on the Hub) as batches of documents."""

from evalkit.corpora.documents import BadRow, Batch, ShardCounts
from evalkit.corpora.readers import ShardReader, read_shard
from evalkit.corpora.shards import Shard, ShardList, find_shards
from evalkit.corpora.split import row_offsets, split_shard

__all__ = [
    "BadRow",
    "Batch",
    "Shard",
    "ShardCounts",
    "ShardList",
    "ShardReader",
    "find_shards",
    "read_shard",
    "row_offsets",
    "split_shard",
]
