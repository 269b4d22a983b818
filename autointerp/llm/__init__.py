"""LLM backends, one a file: who explains and who judges."""
