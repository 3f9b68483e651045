"""Items that were rewritten: found by their rare words first, then by sentence embeddings, then perhaps by a judge."""
