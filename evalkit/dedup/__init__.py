"""Exact and near duplicates inside a corpus, between corpora, and between a corpus and benchmarks."""
