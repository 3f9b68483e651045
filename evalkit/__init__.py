"""evalkit: is B really better than A? Evaluation, contamination audit and statistics joined by one table."""

__version__ = "0.1.0"
