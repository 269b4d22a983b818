"""The model under study: its files and shape, where its sites are, its tokens as text, its activations."""
