"""A causal language model by transformers, as its engine reads it: chat prompts, log-probabilities, texts.

What the texts of a batch begin with in common, the task and its examples, is read once and its keys and values kept,
for later batches too; the rest is padded on the right, where a causal model sees none of it.

Shapes: B texts, T tokens behind the common beginning, P places asked about, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from autointerp.llm.label_tokens import Spellings
from autointerp.types import Json

_SHORTEST_PREFIX: Final = 16
"""Tokens: a shorter common beginning is not worth keeping."""
_ELEMENTS: Final = 2**27
"""Of logits [B, T, V]."""

_NOTHING: Final[Json] = {"logprobs": [], "filled": []}


class Refusal(ValueError):
    """A request that can't be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A text, and the places in it where the model is asked what could stand there."""

    ids: list[int]
    places: list[int]
    """Ascending, behind the first token."""
    labels: tuple[str, ...] | None
    """What could stand there. None: what does stand there."""

    @property
    def read(self) -> list[int]:
        """What must be read to know it."""
        return self.ids[: self.places[-1]]

    @property
    def shared(self) -> list[int]:
        """What may be read with others: the token before the first place is not, for its logits are needed."""
        return self.ids[: self.places[0] - 1]


class Model:
    """A causal language model and its tokenizer."""

    def __init__(self, setup: Json) -> None:
        """Raises whatever transformers raises."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = setup["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = setup["dtype"]
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        known: Json = {"revision": setup["revision"] or "main", "trust_remote_code": False}
        load: Any = AutoModelForCausalLM
        self.model: Any = load.from_pretrained(
            setup["model"], dtype=getattr(torch, dtype), use_safetensors=True, **known
        )
        self.model.to(device).eval().requires_grad_(False)
        load = AutoTokenizer
        self.tokenizer: Any = load.from_pretrained(setup["model"], **known)
        template = self.tokenizer.chat_template
        if setup["chat"] and not template:
            raise ValueError("it has no chat template, and `chat` is true")
        self._chat = bool(template) if setup["chat"] is None else setup["chat"]
        config = self.model.config.get_text_config()
        self.context_length: int = getattr(config, "max_position_embeddings", 2**20)
        self._width: int = config.vocab_size
        self._spellings = Spellings(self.tokenizer, self._width)
        self._prefix: tuple[list[int], Any] = ([], None)
        """The common beginning read last, and its keys and values."""

    # --- tokens ------------------------------------------------------------------------------------------

    def prompt_ids(self, turns: Sequence[Json]) -> list[int]:
        """Raises what the chat template raises, which may refuse roles or their order."""
        if self._chat:
            return self.tokenizer.apply_chat_template(
                list(turns), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        ids = self._encode("".join(turn["content"].rstrip() + "\n" for turn in turns))
        tokens = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        first = next((token for token in tokens if token is not None), None)
        return ids if first is None else [first, *ids]

    def asked(self, request: Json) -> Asked:
        """What a request for log-probabilities asks: of a continuation, or of labels in the places of fillers.

        Raises Refusal for a prompt that is too long."""
        ids, places = self.prompt_ids(request["messages"]), list[int]()
        n_prompt = len(ids)
        labels: tuple[str, ...] | None = None
        if request["kind"] == "fill":
            filler, labels = self._encode(request["filler"]), tuple(request["label_tokens"])
            for piece in request["pieces"]:
                ids += self._encode(piece)
                places.append(len(ids))
                ids += filler
        else:
            ids += self._encode(request["continuation"])
            places = list(range(n_prompt, len(ids)))
        self._check_length(n_prompt, len(ids) - n_prompt)
        return Asked(ids, places, labels)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _check_length(self, n_prompt: int, n_answer: int) -> None:
        if n_prompt + n_answer > self.context_length:
            raise Refusal(
                f"its prompt has {n_prompt:,} tokens and its answer up to {n_answer:,}, which is more than the "
                f"{self.context_length:,} tokens of a context."
            )

    # --- log-probabilities -------------------------------------------------------------------------------

    def likely(self, batch: Sequence[Asked]) -> list[Json]:
        """Of each text what was asked for, natural logs: `logprobs` of the tokens in its places, or what its labels
        have in each, `filled`."""
        longest = max((len(one.ids) for one in batch), default=1)
        size = max(1, _ELEMENTS // (longest * self._width))
        found: list[Json] = []
        for start in range(0, len(batch), size):
            found += self._likely(batch[start : start + size])
        return found

    def _likely(self, batch: Sequence[Asked]) -> list[Json]:
        import torch

        reading = [one for one in batch if one.places]
        if not reading:
            return [_NOTHING for _ in batch]
        n_prefix, cache = self._common([one.shared for one in reading])
        rests = [one.read[n_prefix:] for one in reading]
        ids_BT = torch.zeros(len(reading), max(map(len, rests)), dtype=torch.int64)
        for row, rest in enumerate(rests):
            ids_BT[row, : len(rest)] = torch.tensor(rest)
        with torch.inference_mode():
            own = None
            if cache is not None:
                own = copy.copy(cache)
                own.layers = [copy.copy(layer) for layer in cache.layers]
                own.batch_repeat_interleave(len(reading))
            logits_BTV = self.model(
                input_ids=ids_BT.to(self.model.device), past_key_values=own, use_cache=own is not None
            ).logits
            rows = iter(logits_BTV)
            return [self._said(one, next(rows), n_prefix) if one.places else _NOTHING for one in batch]

    def _said(self, one: Asked, logits_TV: Any, n_prefix: int) -> Json:
        import torch

        before = torch.tensor([place - 1 - n_prefix for place in one.places], device=logits_TV.device)
        logp_PV = logits_TV[before].float().log_softmax(dim=-1)
        if one.labels is not None:
            return {"filled": [self._labels(logp_V, one.labels) for logp_V in logp_PV]}
        at = torch.tensor([one.ids[place] for place in one.places], device=logp_PV.device)
        return {"logprobs": logp_PV.gather(1, at[:, None])[:, 0].tolist()}

    def _common(self, texts: Sequence[list[int]]) -> tuple[int, Any]:
        """How many tokens all begin with, and the keys and values of these; (0, None) where they are few."""
        import torch

        known, cache = self._prefix
        if known and all(text[: len(known)] == known for text in texts):
            return len(known), cache
        n = _n_common(min(texts), max(texts))  # in the order of lists these differ first
        if n < _SHORTEST_PREFIX or len(texts) < 2:
            return 0, None
        prefix = texts[0][:n]
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor([prefix], device=self.model.device), use_cache=True, logits_to_keep=1
            )
        if getattr(out, "past_key_values", None) is None:
            return 0, None
        self._prefix = (prefix, out.past_key_values)
        return n, out.past_key_values

    def _labels(self, logp_V: Any, labels: Sequence[str]) -> Json:
        """Natural log of each label's probability, over all tokens that spell it. A label without one is absent."""
        spelled = self._spellings.of(labels).items()
        return {label: float(logp_V[ids].logsumexp(dim=0)) for label, ids in spelled if ids}

    # --- text --------------------------------------------------------------------------------------------

    def generate(self, request: Json) -> Json:
        """One answer. Raises Refusal."""
        import torch

        ids, most = self.prompt_ids(request["messages"]), request["max_tokens"]
        self._check_length(len(ids), most)
        prompt_1T = torch.tensor([ids], device=self.model.device)
        # A stream of its own for each request, whatever was drawn before: this process answers nothing else.
        torch.manual_seed(request["seed"])
        drawn: Json = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if request["temperature"] > 0:
            drawn = {"do_sample": True, "temperature": request["temperature"], "top_p": 1.0, "top_k": 0}
        with torch.inference_mode():
            output = self.model.generate(
                prompt_1T,
                attention_mask=torch.ones_like(prompt_1T),
                max_new_tokens=most,
                output_scores=True,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=self.tokenizer.eos_token_id or 0,
                **drawn,
            )
        said: list[int] = output.sequences[0, len(ids) :].tolist()
        ended = bool(said) and said[-1] == self.tokenizer.eos_token_id
        labels = request["label_tokens"]
        return {
            "text": self.tokenizer.decode(said, skip_special_tokens=True),
            "finish_reason": "stop" if ended else "length",
            "label_logprobs": self._first(output.logits[0][0], labels) if labels else None,
            "prompt_tokens": len(ids),
            "completion_tokens": len(said),
        }

    def _first(self, logits_V: Any, labels: Sequence[str]) -> Json:
        return self._labels(logits_V.float().log_softmax(dim=-1), labels)


def _n_common(one: list[int], other: list[int]) -> int:
    """How many items two lists begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))
