"""ITDA: dictionaries whose rows are activations of single tokens.

    atoms.pt          [F, D]   activations of training tokens, scaled to length 1
    atom_indices.pt   [F, 2]   of which training sequence, and of which token in it
    metadata.yaml              layer, lm_name, k, dataset, seq_len, submodule_name

A code is found by matching pursuit: k steps, each by the largest product in magnitude, signs kept; there are no
biases. Training read the residual stream behind the layer with TransformerLens, whose models with LayerNorm write
centred vectors, or with transformers models that have none.

Sources: arXiv 2505.17769; davidkaczer/itda: train.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from autointerp.dictionaries.checkpoint import Settings, folder_of, read_settings, require_files, shortened
from autointerp.dictionaries.origin import hub_name, site_of
from autointerp.dictionaries.spec import DictionarySpec, Weights
from autointerp.dictionaries.steps import pursuit_steps
from autointerp.dictionaries.tensors import Shapes, check_shapes, read_headers, read_tensors
from autointerp.errors import CheckpointError
from autointerp.identity import fingerprint

ATOMS, INDICES, CONFIG = "atoms.pt", "atom_indices.pt", "metadata.yaml"
CENTRED: Final = "center_writing_weights"
"""A key that ITDA does not write, for whoever knows better."""
BARE: Final = ""
"""Name of a tensor that is all that a file holds."""


@dataclass(frozen=True, slots=True)
class Itda:
    """ITDA: atoms.pt + metadata.yaml; matching pursuit with signs, over activations of single tokens."""

    version: ClassVar[str] = "1"

    def recognises(self, path: Path) -> bool:
        folder = folder_of(path, ATOMS, CONFIG)
        return (folder / ATOMS).is_file() and (folder / CONFIG).is_file()

    def describe(self, path: Path) -> DictionarySpec:
        """Reads metadata.yaml and the headers of the atoms. Raises CheckpointError."""
        folder = folder_of(path, ATOMS, CONFIG)
        require_files(folder, ATOMS, CONFIG)
        settings, (width, d_in) = read_settings(folder / CONFIG), _sizes(folder / ATOMS)
        check_shapes(folder / ATOMS, read_headers(folder / ATOMS), _shapes(width, d_in))
        hook, n_steps = _hook(settings), pursuit_steps(settings, "k", d_in, width)
        return DictionarySpec(
            format="itda",
            path=folder,
            identity=fingerprint([folder / CONFIG, folder / ATOMS]),
            d_in=d_in,
            width=width,
            selector="pursuit",
            k=n_steps,
            hook=hook,
            site=site_of(hook),
            model=hub_name(settings.text("lm_name")),
            corpus=settings.text("dataset"),
            context_length=settings.integer("seq_len"),
            prepend_bos=True,
            model_was_centred=settings.flag(CENTRED, True),
            centring_is_default=CENTRED not in settings.values,
            has_signs=True,
            notes=(
                f"matching pursuit by magnitude, {n_steps} steps; nothing is subtracted or added",
                _origin(folder, width),
                "in models with LayerNorm, inputs are centred first, as TransformerLens does; where the training's "
                f"model was another, write {CENTRED}: false into {CONFIG}",
                "BOS stood in front where the model's tokenizer adds one by itself: else set "
                "cache.prepend_bos=false",
            ),
        )

    def load(self, spec: DictionarySpec, device: str) -> Weights:
        """Reads the atoms. Raises CheckpointError, also where the file is another than described."""
        import torch

        atoms_FD = read_tensors(spec.path / ATOMS, _shapes(spec.width, spec.d_in), device)[BARE]
        none_D = torch.zeros(spec.d_in, device=device)
        return Weights(None, torch.zeros(spec.width, device=device), none_D, atoms_FD, none_D)


def _shapes(width: int, d_in: int) -> Shapes:
    return {BARE: (("atoms", width), ("d_in", d_in))}


def _sizes(path: Path) -> tuple[int, int]:
    """(features, d_in)."""
    headers = read_headers(path)
    shape = headers[BARE].shape if set(headers) == {BARE} else ()
    if len(shape) != 2 or not min(shape):
        found = {name: list(header.shape) for name, header in headers.items()}
        raise CheckpointError(
            f"{path} holds {shortened(found)}, but ITDA's atoms are one tensor [atoms, d_in] and nothing else. "
            "Save it so: torch.save(itda.atoms, path)."
        )
    return shape[0], shape[1]


def _hook(settings: Settings) -> str | None:
    """None where it is a submodule's, whose input or output is not said."""
    layer = settings.integer("layer")
    known = layer is not None and layer >= 0 and settings.text("submodule_name") is None
    return f"blocks.{layer}.hook_resid_post" if known else None


def _origin(folder: Path, width: int) -> str:
    """What the atoms are, as far as the files tell. Raises CheckpointError where the indices are of others."""
    atoms = "each atom is the activation of one training token"
    path = folder / INDICES
    if not path.is_file():
        return f"{atoms}; {INDICES}, which says of which, is not here"
    headers = read_headers(path)
    shape = headers[BARE].shape if BARE in headers else ()
    if shape != (width, 2):
        raise CheckpointError(
            f"{path} has shape {list(shape)}, but {ATOMS} holds {width} atoms, each of one sequence and token: "
            f"[{width}, 2]. Are they of the same training?"
        )
    return f"{atoms}: its sequence in the data set and its position stand in {INDICES}, its prompt is its example"
