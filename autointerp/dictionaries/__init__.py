"""Sparse dictionaries: one reader a checkpoint format, one description for all of them."""
