"""A model's files and what its config.json says of its shape. No torch: the command line reads this.

transformers' own configuration classes would say the same, but importing them imports torch and takes
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson

from autointerp.errors import ModelError
from autointerp.identity import fingerprint
from autointerp.types import Json

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

_DEFAULTS: Final[dict[str, Json]] = {
    "gemma2": {"attn_logit_softcapping": 50.0},
    "gemma3": {"vocab_size": 262_208, "max_position_embeddings": 131_072},
    "gemma3_text": {"vocab_size": 262_208, "max_position_embeddings": 131_072},
}
"""What published config.json files leave out because transformers knows the family's value."""

_LAYER_NORM: Final = frozenset("bloom codegen gpt2 gpt_neo gpt_neox gptj opt phi".split())
_RMS_NORM: Final = frozenset(
    "gemma gemma2 gemma3 gemma3_text gpt_oss llama mistral mixtral olmo2 olmo3 phi3 qwen2 qwen3 qwen3_moe".split()
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a language model; of a multimodal one, of its text part."""

    model_type: str
    """transformers' name of the family, which says where the sites are."""
    d_model: int
    n_layers: int
    d_mlp: int | None
    """Hidden neurons of a layer's MLP; None if config.json doesn't say."""
    vocab_size: int
    """Rows of the embedding, often more than the tokenizer has tokens."""
    max_positions: int | None
    """Longest context in tokens; None if there is no limit in config.json."""
    attention: Literal["eager", "sdpa"]
    """Which of transformers' implementations gives right results: soft-capped attention logits (Gemma 2)
    exist only in `eager`."""
    parallel_residual: bool
    """Attention and MLP read the same input, so there is no stream between them."""
    bos_token_id: int | None
    eos_token_id: int | None
    """As config.json has them, the first where there are several; None if it doesn't say."""

    @property
    def has_layer_norm(self) -> bool | None:
        """LayerNorm (True) or RMSNorm (False) in its blocks; None of a family of which that isn't known here."""
        return True if self.model_type in _LAYER_NORM else False if self.model_type in _RMS_NORM else None

    @classmethod
    def read(cls, config: Path) -> Architecture:
        """Reads a config.json. Raises ModelError."""
        try:
            content = orjson.loads(config.read_bytes())
        except OSError as error:
            raise ModelError(f"{config} can't be read: {error.strerror}.") from error
        except orjson.JSONDecodeError as error:
            raise ModelError(f"{config} is not JSON: {error}.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{config} is no model's configuration: it holds no JSON object.")
        return cls.of(cast(Json, content), str(config))

    @classmethod
    def of(cls, config: Json, source: str) -> Architecture:
        """From the content of a config.json; `source` is what an error calls it. Raises ModelError."""
        nested = config.get("text_config")
        text = cast(Json, nested) if isinstance(nested, dict) else config
        model_type = text.get("model_type") or config.get("model_type")
        if not isinstance(model_type, str):
            raise ModelError(f"{source} has no 'model_type', so it is no transformers model.")
        known = {**_DEFAULTS.get(model_type, {}), **text}
        d_model = _needed(known, ("hidden_size", "n_embd", "d_model"), source)
        d_mlp = _number(known, ("intermediate_size", "n_inner", "ffn_dim"))
        if d_mlp is None and model_type == "gpt2":
            d_mlp = 4 * d_model
        return cls(
            model_type=model_type,
            d_model=d_model,
            n_layers=_needed(known, ("num_hidden_layers", "n_layer", "n_layers"), source),
            d_mlp=d_mlp,
            vocab_size=_needed(known, ("vocab_size",), source),
            max_positions=_number(known, ("max_position_embeddings", "n_positions", "max_seq_len")),
            attention="eager" if known.get("attn_logit_softcapping") is not None else "sdpa",
            parallel_residual=model_type == "gpt_neox" and known.get("use_parallel_residual", True) is True,
            bos_token_id=_token_id(text, config, "bos_token_id"),
            eos_token_id=_token_id(text, config, "eos_token_id"),
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


def _number(config: Json, names: Sequence[str]) -> int | None:
    """The first of these fields that holds a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _needed(config: Json, names: Sequence[str], source: str) -> int:
    value = _number(config, names)
    if value is None:
        raise ModelError(f"{source} has no positive number '{names[0]}' (nor {', '.join(names[1:]) or '-'}).")
    return value


def _token_id(text: Json, config: Json, name: str) -> int | None:
    value = text.get(name, config.get(name))
    if isinstance(value, list) and value:
        value = cast(list[object], value)[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
