"""The stages of the line, one short file each; the mechanics live in the folders above."""
