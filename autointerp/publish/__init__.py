"""A run as a dataset on the Hugging Face hub, and back: typed tables, a card, and a manifest that comes last."""
