"""What others published, as a run: explanations and scores that can be measured anew, compared and shown."""
