"""From firings to windows: which active and silent places an explainer sees and a scorer tests."""
