"""The model under study, loaded: token ids in, activations at sites out.

Shapes: B rows, T tokens a row, D the width at a site (`width_at`: d_model at most of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from autointerp.errors import ModelError, PackageMissing, SiteError
from autointerp.subject.architecture import Architecture
from autointerp.subject.computed import replaced, value_of
from autointerp.subject.families import Place
from autointerp.subject.model_files import ModelFiles
from autointerp.subject.pretrained import Dtype, chosen_dtype, from_pretrained, randomise
from autointerp.subject.sites import check_site, locate, locate_to_write, width_at
from autointerp.subject.tokenizer import load_tokenizer
from autointerp.types import Site

_LAYER_LISTS: Final = ("layers", "h", "blocks")


See = Callable[[Site, Tensor], Tensor | None]
"""Gets the activation [B, T, D] that passes a site. What it returns takes its place; None leaves it."""


class _AllCaptured(Exception):
    """A signal, not an error: the last wanted site has fired, and the rest of the forward is not needed."""


class Subject:
    """A subject model on its device, in evaluation mode, its weights without gradients."""

    def __init__(
        self,
        model: nn.Module,
        files: ModelFiles,
        device: torch.device,
        dtype: torch.dtype,
        n_layers: int | None = None,
    ) -> None:
        self._model = model
        self._files = files
        self.device = device
        """Where token ids go in. Layers may lie elsewhere if a device map was given."""
        self.dtype = dtype
        self._layers = _layer_list(model, n_layers or files.architecture.n_layers)

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        dtype: Dtype = "auto",
        device: str = "cpu",
        device_map: str | None = None,
        n_layers: int | None = None,
    ) -> Subject:
        """Loads safetensors weights, fetching them first for a hub model.

        `n_layers`: load only so many, where nothing behind them is looked at; None: all.
        `device_map`: accelerate's, to spread a model over several cards ("auto", "balanced"); of `device`
        then only its kind matters, for the dtype. Raises ModelError where transformers doesn't know the
        model, weights are missing or of other shapes than config.json says, or the device has no room;
        PackageMissing for a device map without accelerate.
        """
        if device_map is not None and find_spec("accelerate") is None:
            raise PackageMissing(
                f"resources.device_map={device_map} spreads the model by accelerate, which is not installed: pip "
                f"install '.[cards]', or leave it out: --set resources.device_map=null"
            )
        folder = files.with_weights()
        chosen = chosen_dtype(dtype, device)
        try:
            model, info = from_pretrained(str(folder), files.architecture, chosen, device_map, n_layers)
            if device_map is None:
                model.to(device)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"the model '{files.name}' in {chosen} doesn't fit on {device_map or device}. Use bfloat16, "
                f"a larger card, or a device map over several."
            ) from error
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
            raise ModelError(f"transformers can't load '{files.name}' from {folder}: {error}") from error
        missing = sorted(info["missing_keys"])
        if missing:  # transformers fills them with random numbers and only warns
            raise ModelError(
                f"'{files.name}' lacks {len(missing)} of the weights its config.json calls for, such as "
                f"'{missing[0]}'. Give a complete causal language model."
            )
        model.eval().requires_grad_(False)
        if files.random_seed is not None:
            randomise(model, files.random_seed)
        first = next(model.parameters()).device
        return cls(model, files, first, chosen, n_layers)

    @property
    def architecture(self) -> Architecture:
        return self._files.architecture

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' fast tokenizer of this model. Raises ModelError where it has none."""
        return load_tokenizer(self._files)

    def capture(self, token_ids_BT: Tensor, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """Activations [B, T, D] at each site, on the device of its layer and in the model's dtype.

        `token_ids_BT`: int64; rows are padded on the right, with any id. No attention mask is needed: in
        a causal model a position sees only earlier ones, so padding behind a row's end changes nothing
        before it. What comes out on padding is meaningless.

        The forward stops once the last site has fired. Raises SiteError for a site the model lacks.
        """
        wanted = list(dict.fromkeys(sites))
        if not wanted:
            return {}
        captured: dict[Site, Tensor] = {}

        def keep(site: Site, value: Tensor) -> None:
            captured[site] = value.clone()  # a later module may add to it in place
            if len(captured) == len(wanted):
                raise _AllCaptured

        with ExitStack() as hooks:
            for site in wanted:
                hooks.callback(self._hook(site, keep).remove)
            try:
                with torch.inference_mode():
                    self._model(input_ids=token_ids_BT.to(self.device), use_cache=False)
            except _AllCaptured:
                pass
            else:
                silent = ", ".join(str(site) for site in wanted if site not in captured)
                raise SiteError(f"'{self._files.name}' ran through without passing {silent}.")
        for site, value in captured.items():
            expected = (*token_ids_BT.shape, width_at(site, self.architecture))
            if site.point == "experts" and value.numel() == math.prod(expected):
                captured[site] = value.view(expected)  # routers see rows and tokens as one axis
            elif value.shape != expected:
                raise SiteError(
                    f"'{site}' of '{self._files.name}' has shape {tuple(value.shape)}, not {expected}: this "
                    f"kind of model ('{self.architecture.model_type}') can't be read there."
                )
        return {site: captured[site] for site in wanted}

    @torch.inference_mode()
    def logits(self, token_ids_BT: Tensor) -> Tensor:
        """[B, T, vocabulary], of the whole model."""
        return self.traced_logits(token_ids_BT)

    def traced_logits(self, token_ids_BT: Tensor) -> Tensor:
        """The same, with what autograd needs where a hook let something with gradients in."""
        return self._model(input_ids=token_ids_BT.to(self.device), use_cache=False).logits

    @torch.inference_mode()
    def step(self, token_ids_BT: Tensor, mask_BS: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits [B, vocabulary] behind the last of T further tokens, and transformers' cache with them in it.

        `mask_BS`: int64, 1 for each of the S tokens so far that is none; 0 for padding, which stands on the
        left. `cache`: of the S - T before; it may be written to. Raises ModelError for a model without one.
        """
        position_BS = (mask_BS.cumsum(dim=1) - 1).clamp_min(0)
        out = self._model(
            input_ids=token_ids_BT.to(self.device),
            attention_mask=mask_BS.to(self.device),
            position_ids=position_BS[:, -token_ids_BT.shape[1] :].to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if getattr(out, "past_key_values", None) is None:
            raise ModelError(
                f"'{self._files.name}' ('{self.architecture.model_type}') keeps no keys and values between "
                f"tokens, and without them it can't be steered while it writes."
            )
        return out.logits[:, -1], out.past_key_values

    @contextmanager
    def hooked(self, reads: dict[Site, See], writes: dict[Site, See]) -> Generator[None]:
        """Within, `reads` see what passes their sites, and `writes` may replace it, so that all that comes
        behind sees the change. Raises SiteError for a site that the model lacks, or that can't be written."""
        with ExitStack() as hooks:
            for sees, at in ((reads, locate), (writes, locate_to_write)):
                for site, see in sees.items():
                    hooks.callback(self._hook(site, see, at(site, self.architecture.model_type)).remove)
            yield

    def _hook(self, site: Site, see: See, place: Place | None = None) -> torch.utils.hooks.RemovableHandle:
        check_site(site, self.architecture)
        place = place or locate(site, self.architecture.model_type)
        try:
            module = self._layers[site.layer].get_submodule(place.at.module)
        except AttributeError as error:
            raise SiteError(
                f"'{site}': layer {site.layer} of '{self._files.name}' has no '{place.at.module}'."
            ) from error
        if place.at.side == "output":

            def behind(_module: nn.Module, _args: Any, out: Any) -> Any:
                return replaced(out, see(site, value_of(out, module, place.rule)))

            return module.register_forward_hook(behind)

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            passed = args[0] if args else kwargs["hidden_states"]
            new = see(site, value_of(passed, module, place.rule))
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

        return module.register_forward_pre_hook(before, with_kwargs=True)


def _layer_list(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The text model's layers: prefixes differ from family to family, length and last name do not.
    Raises ModelError unless there is exactly one such list."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    found = {
        name: module
        for name, module in modules
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and name.rpartition(".")[2] in _LAYER_LISTS
        and not any(other in name for other in ("vision", "audio"))
    }
    if len(found) != 1:
        raise ModelError(
            f"a list of the model's {n_layers} layers called {', '.join(_LAYER_LISTS)} was looked for, and "
            f"{', '.join(found) or 'none'} found. This kind of model can't be read."
        )
    return next(iter(found.values()))
