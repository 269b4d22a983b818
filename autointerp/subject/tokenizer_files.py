"""A model's tokenizer without the model: what activations from files need to be read as text. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autointerp.errors import ModelError
from autointerp.identity import fingerprint
from autointerp.subject.architecture import Architecture
from autointerp.subject.model_files import CONFIG, DEMO, TOKENIZER_FILES, ModelFiles, find_model


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Where a tokenizer's files are."""

    name: str
    """As the user wrote it."""
    identity: str
    """The hub's commit hash; of a local folder a fingerprint of the tokenizer's files. Digested."""
    folder: Path
    model: ModelFiles | None
    """The hub's model it belongs to; None for a local folder."""

    @property
    def architecture(self) -> Architecture | None:
        """What the model is, where its config.json lies beside the tokenizer. Raises ModelError for an unreadable
        one."""
        if self.model is not None:
            return self.model.architecture
        config = self.folder / CONFIG
        return Architecture.read(config) if config.is_file() else None

    def with_tokenizer(self) -> Path:
        """The folder, tokenizer files in it. Raises ModelError."""
        return self.folder if self.model is None else self.model.with_tokenizer()


def find_tokenizer(name: str, revision: str | None = None) -> TokenizerFiles:
    """The tokenizer of the model called `name`: `demo`, a local folder, which needs to hold no more than
    the tokenizer's files, or an id on the Hugging Face hub, of which no weights are fetched.

    Raises ModelError where there is none.
    """
    folder = Path(name).expanduser()
    if name == DEMO or not folder.is_dir():
        model = find_model(name, revision)
        if model.commit is not None:
            return TokenizerFiles(name, model.commit, model.folder, model)
        folder = model.folder
    folder = folder.resolve()
    files = [path for file in TOKENIZER_FILES if (path := folder / file).is_file()]
    if not files:
        raise ModelError(
            f"{folder} holds no tokenizer: none of {', '.join(TOKENIZER_FILES)}. Give the folder that "
            f"tokenizer.save_pretrained(...) wrote, or a hub id."
        )
    return TokenizerFiles(name, fingerprint(files), folder, None)
