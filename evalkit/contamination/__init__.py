"""Contamination audit: which benchmark items a corpus contains, where, and under which published rule."""
