"""LLM judges that know their own bias: judging in both orders, and audits of anybody's verdicts."""
