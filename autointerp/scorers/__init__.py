"""Scorers, one a file: from an explanation and held-out windows to trials, from which metrics follow."""
