"""Evaluate: a spec becomes a run directory with every answer journalled and every item's score in one table."""
