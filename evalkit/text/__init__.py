"""Text: the rule by which it becomes tokens, for all that compare texts."""
