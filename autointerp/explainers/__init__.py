"""Explainers, one a file: from the windows shown to a sentence that says what the feature does."""
