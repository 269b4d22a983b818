"""The subject model's token embeddings, by which sampling compares windows. Runs in the device stages' child.

Needs one tensor of the model: a run that is cached already gets them without loading it.
"""

from __future__ import annotations

from functools import partial

from autointerp.activations.rows import save_rows
from autointerp.journal import Part
from autointerp.resolve import Resolved
from autointerp.run import TOKEN_EMBEDDING, Run
from autointerp.subject.token_embedding import read_token_embedding
from autointerp.subject.vocabulary import Vocabulary


def run_token_embedding(run: Run, resolved: Resolved, device: str) -> None:
    """Writes the table where it is asked for and missing. The run's vocabulary must be there. Raises
    ModelError, DiskFull."""
    if not run.lacks_token_embedding():
        return
    assert resolved.model is not None  # checked with the recipe
    table_VK = read_token_embedding(resolved.model, len(Vocabulary.load(run.vocabulary)), device)
    with Part(run.rows(), TOKEN_EMBEDDING) as part:
        seal = part.attach(".npy", partial(save_rows, rows=table_VK))
        part.append(TOKEN_EMBEDDING, seal)
