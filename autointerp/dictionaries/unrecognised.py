"""Why no reader knows a place, looked for before anybody is shown the list of formats.

That list is an answer about a sound file alone. Of one that can't be opened, and of a configuration that is cut
short, it is said what is wrong with it, and of tensors that nearly are a known layout what they lack. Read is what
the readers have read before: configuration, names and shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from autointerp.dictionaries.checkpoint import contents, first_bytes, listed, read_settings, shortened
from autointerp.dictionaries.hub_files import PICKLED_BESIDE, WEIGHTS_BELOW
from autointerp.dictionaries.state_dict import LAYOUT, THRESHOLD
from autointerp.dictionaries.tensors import KINDS, read_headers
from autointerp.dictionaries.torch_files import GZIP, NOT_OPENED, is_pickle, is_torch_archive
from autointerp.errors import CheckpointError

CONFIGURATIONS: Final = frozenset(
    "dictionary.json cfg.json config.json hyperparams.json conf.yaml config.yaml metadata.yaml".split()
)
"""What readers look at to know a folder of theirs."""
OF_ONE_FILE: Final = "_cfg.json"
"""Behind the name of the file of tensors that it is of."""
PICKLES: Final = frozenset({".pkl", ".pickle", ".p", ".bin", ".ckpt", ".joblib", ".dill"})
"""Suffixes, also with a further one behind (.pkl.gz)."""
_LEARNED: Final = "dictionary_learning's have a config.json beside them, with trainer.dict_class"
NEARLY: Final[dict[frozenset[str], str]] = {
    frozenset({"encoder", "decoder"}): (
        'autointerp\'s own lie in dictionary.safetensors, with a dictionary.json beside it that has "layout": 1'
    ),
    LAYOUT.names: f"a lone file has none beside these but '{THRESHOLD}'",
    frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "b_dec"}): _LEARNED,
    frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "bias"}): _LEARNED,
    frozenset({"encoder.weight", "gate_bias", "decoder.weight", "decoder_bias"}): _LEARNED,
    frozenset({"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}): (
        "dictionary_learning's have a config.json with trainer.dict_class, Llama Scope's a hyperparams.json"
    ),
    frozenset(
        {"encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"}
    ): ("Goodfire's .pt and .pth files hold nothing else"),
    frozenset({"encoder.weight", "latent_bias", "decoder.weight", "pre_bias"}): (
        "OpenAI's files are .pt, and also hold the activation"
    ),
    frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"}): (
        "sparsify's lie in sae.safetensors, with a cfg.json beside it"
    ),
    frozenset({"w_enc", "b_enc", "w_dec", "b_dec", "threshold"}): "Gemma Scope 2's are .safetensors",
}
"""Tensors of a layout -> what else it takes to be one."""


def fault(path: Path) -> str | None:
    """A message for a local folder or file that no reader knows, where something is wrong with it; None where it is
    sound."""
    try:
        check_configuration(path)
        if path.suffix not in KINDS and path.is_file():
            return _of_no_kind(path)
        if not path.is_dir() or path.suffix in KINDS:
            return _nearly(path, read_headers(path))
        return _of_folder(path)
    except CheckpointError as error:
        return str(error)


def check_configuration(path: Path) -> None:
    """Raises CheckpointError for one that can't be read, in a folder or beside a file."""
    folder, own = (path, None) if path.is_dir() else (path.parent, f"{path.stem}{OF_ONE_FILE}")
    for file in _entries(folder):
        is_of_it = file.name == own or (own is None and file.name.endswith(OF_ONE_FILE))
        if file.name in CONFIGURATIONS or is_of_it:
            read_settings(file)


def check_not_another(path: Path) -> None:
    """Raises CheckpointError where tensors of nobody known lie with a configuration that can't be read, and so may be
    somebody's."""
    try:
        check_configuration(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} It may say how the tensors beside it are read. If it is of something else, move the tensors to "
            "a folder of their own."
        ) from error


def tensors_of(path: Path) -> str:
    """A sentence with the names of a sound file's tensors, or of those of a folder's one file; else empty."""
    files = _tensor_files(path) if path.is_dir() else [path]
    if len(files) != 1 or files[0].suffix not in KINDS:
        return ""
    return f" Its tensors: {listed(sorted(read_headers(files[0])))}."


def _of_folder(folder: Path) -> str | None:
    files = _tensor_files(folder)
    if not files:
        if pickles := [file for file in _entries(folder) if _is_named_pickle(file) and file.is_file()]:
            return _of_no_kind(pickles[0])
        return f"{folder} holds no file of tensors ({', '.join(KINDS)}). It holds: {contents(folder)}."
    faults = list[str]()
    for file in files:
        try:
            headers = read_headers(file)
        except CheckpointError as error:
            faults.append(str(error))
        else:
            return _nearly(file, headers) if len(files) == 1 else None
    return faults[0]


def _of_no_kind(path: Path) -> str | None:
    """Of a file whose suffix is none of a file of tensors."""
    if path.name in CONFIGURATIONS:
        return _of_folder(path.parent)
    start, kinds = first_bytes(path), ", ".join(KINDS)
    if is_torch_archive(path):
        return f"{path} is a file of torch.save under another name. Rename it, so that it ends in .pt."
    if start.startswith(GZIP):
        return f"{path} is compressed (gzip), and not opened. Unpack it; such files are read: {kinds}."
    if is_pickle(start) or _is_named_pickle(path):
        return f"{path} is a pickle, {NOT_OPENED}"
    return f"{path} is no file of tensors. Such files end in {kinds}."


def _nearly(path: Path, headers: Iterable[str]) -> str | None:
    """What tensors lack, or have too much of, that have more than half of a known layout's names."""
    names = frozenset(headers)
    if names <= {""}:
        what = "one tensor without a name" if names else "no tensor"
        return f"{path} holds {what}. A dictionary has several, by name. Is it another file?"
    found = [
        (len(layout - held), prefix, layout)
        for layout in NEARLY
        for prefix, held in _held(names, layout).items()
        if 2 * len(held) > len(layout)
    ]
    if not found:
        return None
    n_missing, prefix, layout = min(found, key=lambda one: one[:2])
    here = listed(sorted(prefix + name for name in layout if prefix + name in names))
    if n_missing:
        missing = [prefix + name for name in sorted(layout) if prefix + name not in names]
        return (
            f"{path} holds {here}, but no {' and no '.join(missing)}: without that it is no dictionary. Save it with "
            f"all of its tensors. It holds: {listed(sorted(names))}."
        )
    if prefix:
        return (
            f"{path} has a dictionary's tensors below '{shortened(prefix.rstrip('.'))}' ({here}), and nothing that "
            "says whose they are: save what lies there as a file of its own."
        )
    others = f" It also holds {listed(sorted(names - layout))}." if names - layout else ""
    return f"{path} holds {here}, as dictionaries do, but is none that is known: {NEARLY[layout]}.{others}"


def _held(names: frozenset[str], layout: frozenset[str]) -> dict[str, set[str]]:
    """Which of a layout's names there are behind each prefix, which ends with its dot or is empty."""
    held = defaultdict[str, set[str]](set)
    for name in names:
        for end in layout:
            if name == end or name.endswith(f".{end}"):
                held[name.removesuffix(end)].add(end)
    return held


def _tensor_files(folder: Path) -> list[Path]:
    """What is called like a file of tensors, whatever it is."""
    below = _entries(folder / WEIGHTS_BELOW)
    return [
        path
        for path in [*_entries(folder), *below]
        if path.suffix in KINDS and path.name not in PICKLED_BESIDE
    ]


def _is_named_pickle(path: Path) -> bool:
    return not PICKLES.isdisjoint(path.suffixes[-2:])


def _entries(folder: Path) -> list[Path]:
    """None where it can't be listed."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
