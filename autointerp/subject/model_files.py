"""A model's files: the demo's, a local folder's, or those on the Hugging Face hub. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson

from autointerp.errors import ModelError
from autointerp.identity import fingerprint
from autointerp.subject.architecture import Architecture
from autointerp.types import digest

DEMO: Final = "demo"
"""The name of the model that comes with the package."""

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_TOKENIZER: Final = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a subject model's files are. A hub model's weights and tokenizer come when first asked for."""

    name: str
    """As the user wrote it."""
    identity: str
    """The hub's commit hash; of a local folder a fingerprint of configuration and weights. Digested."""
    folder: Path
    """Local folder with config.json. For a hub model its snapshot in Hugging Face's cache."""
    commit: str | None
    """The hub's commit; None for a local folder."""
    architecture: Architecture
    random_seed: int | None = None
    """Where each of its weights is replaced by random numbers drawn by this seed; None for the model as it is."""

    def randomised(self, seed: int) -> ModelFiles:
        """A control: the same model with random weights."""
        return dataclasses.replace(
            self, identity=digest("random weights", self.identity, seed), random_seed=seed
        )

    def with_tokenizer(self) -> Path:
        """The folder, tokenizer files in it if the model has any. Raises ModelError."""
        if self.commit is not None:
            _download(self.name, self.commit, [CONFIG, *_TOKENIZER])
        return self.folder

    def with_weights(self) -> Path:
        """The folder, weights in it. Only safetensors are ever downloaded. Raises ModelError."""
        if self.commit is not None:
            _download(self.name, self.commit, [CONFIG, "generation_config.json", INDEX])
            _download(self.name, self.commit, _weight_names(self.folder))
        weight_files(self.folder)
        return self.folder


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The files of the model called `name`: `demo`, a local folder, or an id on the Hugging Face hub.

    Of a hub model only config.json is fetched, at `revision` (branch, tag or commit; None: main).
    Raises ModelError where there is no such model, its configuration is unreadable, or a local folder
    has no safetensors weights.
    """
    if name == DEMO:
        from autointerp.demo import MODEL  # here, so that only those who ask for the demo need its files

        return _local(name, MODEL)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"'{name}' is a local folder, and those have no revision '{revision}'. Leave the revision "
                f"out, or name a hub model."
            )
        return _local(name, folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or folder.is_file():
        raise ModelError(
            f"no folder '{name}' (looked for {folder.resolve()}). A model is a folder with config.json, "
            f"an id on the Hugging Face hub such as 'openai-community/gpt2', or 'demo'."
        )
    return _on_hub(name, revision)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a local folder: `model.safetensors`, or those
    that `model.safetensors.index.json` lists. Raises ModelError where one is missing."""
    files = [folder / name for name in _weight_names(folder)]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    if missing != [WEIGHTS]:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which {INDEX} lists. Copy the model again.")
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise ModelError(
            f"{folder} has its weights as pickle only ({', '.join(pickled)}), which can run code when "
            f"read. Convert them: AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained("
            f"'{folder}') with transformers writes {WEIGHTS}. Do that only if you trust their source."
        )
    raise ModelError(
        f"{folder} has no {WEIGHTS} and no {INDEX}. Copy the weights there, or write them with "
        f"model.save_pretrained(...)."
    )


def _weight_names(folder: Path) -> list[str]:
    """Sorted. Raises ModelError where the index is unreadable or points out of the folder."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [WEIGHTS]
    try:
        names = sorted(set(orjson.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is not an index of weights ({error!r}). Copy the model again.") from error
    strange = [name for name in names if not str(name).endswith(".safetensors") or "/" in str(name)]
    if strange or not names:
        raise ModelError(f"{index} lists {strange or 'no files'}: only *.safetensors beside it are read.")
    return [str(name) for name in names]


TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Part of a model's identity: other tokens are other rows."""


def _local(name: str, folder: Path) -> ModelFiles:
    config = folder / CONFIG
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is no transformers model. Give the folder that "
            f"model.save_pretrained(...) wrote."
        )
    architecture = Architecture.read(config)
    tokenizer = [path for name in TOKENIZER_FILES if (path := folder / name).is_file()]
    identity = fingerprint([config, *weight_files(folder), *tokenizer])
    return ModelFiles(name, identity, folder, None, architecture)


def _on_hub(name: str, revision: str | None) -> ModelFiles:
    try:
        config = Path(_hub().hf_hub_download(name, CONFIG, revision=revision))
    except _hub_failures() as error:
        raise _explained(name, revision, error) from error
    commit = config.parent.name  # the cache keeps files under snapshots/<commit>/
    return ModelFiles(name, commit, config.parent, commit, Architecture.read(config))


def _download(name: str, commit: str, patterns: Sequence[str]) -> None:
    try:
        _hub().snapshot_download(name, revision=commit, allow_patterns=list(patterns))
    except _hub_failures() as error:
        raise _explained(name, commit, error) from error


def _hub() -> Any:
    """The hub's client: imported when needed because slow, `Any` because its types are partly unknown."""
    import huggingface_hub

    return cast(Any, huggingface_hub)


def _hub_failures() -> tuple[type[Exception], ...]:
    """What the hub's client raises: its own errors, and those of the HTTP library below it (httpx, or
    requests, whose errors are OSErrors)."""
    from huggingface_hub import errors

    http: type[Exception] = getattr(errors, "HTTPError", OSError)
    return (OSError, http, errors.EntryNotFoundError, errors.HFValidationError)


def _explained(name: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub import errors

    asked = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    match error:
        case errors.GatedRepoError():
            message = (
                f"the hub model '{name}' is gated: ask for access on https://huggingface.co/{name}, then "
                f"`hf auth login` or set HF_TOKEN."
            )
        case errors.RevisionNotFoundError():
            message = f"the hub model '{name}' has no revision '{revision}'."
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            message = (
                f"no model '{name}': there is no such folder here, and no such model on the Hugging Face hub "
                f"(a private one needs `hf auth login` or HF_TOKEN)."
            )
        case errors.RemoteEntryNotFoundError():
            message = f"the hub model {asked} lacks a file that is needed ({reason})."
        case _:
            message = (
                f"the model {asked} is no folder here, is not in Hugging Face's cache, and the hub can't be "
                f"reached ({reason}). Go online once, copy the model here and give its folder, or point "
                f"HF_HOME to a cache that has it."
            )
    return ModelError(message)
