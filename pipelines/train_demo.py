"""Train the embedded demo, a small language model and a TopK sparse autoencoder, from nothing but Python.

    python pipelines/train_demo.py --out autointerp/demo --minutes 44

Hardware: two CPU cores and 4 GB of memory. `--minutes` is the training time of both together (three quarters
the model's); text, tokenizer, trigram baseline, the SAE's inputs and measuring add about five minutes. The
learning rate follows the clock, so a slower machine sees fewer tokens and still ends well; weights differ
from run to run. Where other programs keep the cores busy, `--threads 1` is several times as fast as 2,
because threads that wait for each other lose most.

Steps:
1. text: `autointerp.demo.corpus`, split by a hash of the content into train and held out;
2. a byte-level BPE tokenizer;
3. a Llama of 2.6 million parameters, saved in float16 as a plain Hugging Face folder (`model/`);
4. a TopK SAE (Gao et al., arXiv 2406.04093) on its residual stream, laid out as by SAELens 6 (`dictionary/`);
5. figures on held-out documents, from the saved files: one table, and the same in `figures.json`.

Prints the losses on the way and the table of figures at the end.
`--only lm` stops after step 3, `--only sae` begins at step 4 with the model that is in `--out`.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from autointerp.demo.corpus import stdlib_documents

# Shape letters: B rows in a batch, T tokens in a row, R rows in all, N tokens in all, D width of the residual
# stream, S features, V vocabulary, K kept features of a token.

EOS = "<|endoftext|>"  # also the token that begins each row
N_VOCAB = 4_096
CONTEXT = 128
D_MODEL = 192
N_LAYERS = 4
D_MLP = 512
# 4096*192 tied embedding + 4 layers * (4*192*192 attention + 3*192*512 MLP + 2*192 norms) + 192 = 2,557,632

HELDOUT_PERCENT = 5
TUNING_PERCENT = 5  # of the train documents, for the trigram's interpolation weights only

BATCH_ROWS = 24  # 24 rows * 128 tokens = 3,072 tokens a step
MUON_LR = 0.02
MUON_DECAY = 0.05
ADAM_LR = 4e-3  # embedding and norms
WARMUP = 0.02  # share of the time

SITE = 2  # the SAE reads and reconstructs what leaves `model.layers.2`, the third of the four layers
N_FEATURES = 2_048
K = 24  # features kept for each token
N_ROWS = 8_000  # train rows whose activations the SAE learns from, about 112 tokens each
SAE_BATCH = 512  # tokens a step; small, because minutes on a CPU allow few steps
SAE_LR = 1e-3
AUX_K = 96  # dead features that may explain what is left over, half of D_MODEL as Gao et al. advise
AUX_WEIGHT = 1 / 32
DEAD_AFTER = 100_000  # tokens without firing
MASSIVE = 5.0  # tokens whose norm is over so many medians are no training examples
N_ALIVE_TOKENS = 300_000  # a feature is alive when it fires on at least one of so many tokens of the corpus


# ----------------------------------------------------------------------------------------------------- text


def percent(document: str, purpose: str) -> int:
    """Return 0 to 99, from the content alone: the same document is always on the same side of a split."""
    digest = hashlib.blake2b(document.encode(), digest_size=8, key=purpose.encode()).digest()
    return int.from_bytes(digest, "big") % 100


def split_documents() -> tuple[list[str], list[str]]:
    """Return train and held-out documents; duplicates are one document."""
    documents = list(dict.fromkeys(stdlib_documents()))
    train = [d for d in documents if percent(d, "heldout") >= HELDOUT_PERCENT]
    heldout = [d for d in documents if percent(d, "heldout") < HELDOUT_PERCENT]
    return train, heldout


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's, with one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS, model_max_length=CONTEXT
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[list[int]]:
    """Return each document's tokens, without special ones."""
    return tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]


def document_rows(documents: list[list[int]], bos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut each document into rows of BOS and up to 127 tokens; no row holds two documents.

    Returns ids [R, T], filled up with BOS, and a mask [R, T] of the text's tokens (neither BOS nor filling).
    """
    step = CONTEXT - 1
    rows = [document[i : i + step] for document in documents for i in range(0, len(document), step)]
    ids_RT = torch.full((len(rows), CONTEXT), bos)
    mask_RT = torch.zeros(len(rows), CONTEXT, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids_RT[i, 1 : 1 + len(row)] = torch.tensor(row)
        mask_RT[i, 1 : 1 + len(row)] = True
    return ids_RT, mask_RT


# ------------------------------------------------------------------------------------------- language model


def training_batches(
    documents: list[list[int]], bos: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield ids [B, T] for ever; every row begins with BOS.

    Each epoch shuffles the documents, joins them (BOS between) and cuts at a new offset, so that no token is
    always first in its row.
    """
    step = CONTEXT - 1
    pieces = [torch.tensor([bos, *document]) for document in documents]
    while True:
        order = torch.randperm(len(pieces), generator=generator).tolist()
        stream_N = torch.cat([pieces[i] for i in order])
        offset = int(torch.randint(step, (1,), generator=generator))
        n_rows = (len(stream_N) - offset) // step
        rows_RT = functional.pad(
            stream_N[offset : offset + n_rows * step].view(n_rows, step), (1, 0), value=bos
        )
        rows_RT = rows_RT[torch.randperm(n_rows, generator=generator)]
        yield from rows_RT[: n_rows // BATCH_ROWS * BATCH_ROWS].split(BATCH_ROWS)


def new_model(bos: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


class Muon:
    """Momentum made orthogonal, for matrices only (K. Jordan 2024, https://kellerjordan.github.io/posts/muon).

    Differs from `torch.optim.Muon` in staying in float32 and in treating all matrices of one shape at once.
    (On a CPU without AMX, a training step under bfloat16 autocast took 18 times as long as in float32.)
    """

    def __init__(self, matrices: list[torch.nn.Parameter], momentum: float = 0.95):
        self.momentum = momentum
        self.groups: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            self.groups.setdefault(matrix.shape, []).append(matrix)
        self.velocity = {s: torch.zeros(len(ms), *s) for s, ms in self.groups.items()}

    @torch.no_grad()
    def step(self, lr: float, decay: float) -> None:
        for shape, matrices in self.groups.items():
            gradient = torch.stack([m.grad for m in matrices])
            velocity = self.velocity[shape].lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, direction in zip(matrices, update, strict=True):
                matrix.mul_(1 - lr * decay).add_(direction, alpha=-lr * scale)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return about U V' for each U S V' in `matrices` [n, rows, columns], by five Newton-Schulz steps."""
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def schedule(progress: float) -> float:
    """Return the factor on the learning rate at `progress` (0 to 1): a linear warm-up under a cosine."""
    return min(1.0, progress / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


def train_model(documents: list[list[int]], bos: int, minutes: float) -> tuple[LlamaForCausalLM, int]:
    """Return the model and how many tokens it was trained on."""
    model = new_model(bos)
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inner_ids = {id(p) for p in inner}
    muon = Muon(inner)
    outer = [p for p in model.parameters() if id(p) not in inner_ids]
    adam = torch.optim.AdamW(outer, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.01)
    start = time.monotonic()
    for n_steps, ids_BT in enumerate(training_batches(documents, bos, torch.Generator().manual_seed(0)), 1):
        progress = (time.monotonic() - start) / (60 * minutes)
        if progress >= 1:
            break
        factor = schedule(progress)
        adam.param_groups[0]["lr"] = ADAM_LR * factor
        loss = row_losses(model, ids_BT).mean()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(MUON_LR * factor, MUON_DECAY)
        adam.step()
        if n_steps % 50 == 0:
            print(f"model: {progress:4.0%}  step {n_steps:,}  {loss.item():.3f} nats/token", flush=True)
    return model, n_steps * BATCH_ROWS * CONTEXT


def row_losses(model: LlamaForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    """Return nats [B, T-1]: how surprising each token but the first is, given those before it in its row."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    nats_N = functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none")
    return nats_N.view(len(ids_BT), -1)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes its files private, and a wheel keeps that
    tokenizer.save_pretrained(folder)
    # Transformers 5 writes `TokenizersBackend`, which Transformers 4 does not know; both read this name.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2) + "\n")


@torch.no_grad()
def model_nats(model: LlamaForCausalLM, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> float:
    """Return mean nats a token over the tokens of the text."""
    nats = [
        row_losses(model, ids)[mask[:, 1:]].double()
        for ids, mask in zip(ids_RT.split(64), mask_RT.split(64), strict=True)
    ]
    return torch.cat(nats).mean().item()


class Trigram:
    """The baseline: trigram, bigram and unigram frequencies, mixed (Jelinek and Mercer 1980).

    The mixing weights depend on how often the two tokens before were seen (in powers of two), and are fitted
    by expectation maximisation on documents that were not counted.
    """

    N_BUCKETS = 12

    def __init__(self, documents: list[list[int]], bos: int):
        grams = self.keys(*document_rows(documents, bos))
        self.tables = [torch.unique(keys_N, return_counts=True) for keys_N in grams]
        self.n_tokens = len(grams[0])
        self.weights = torch.full((self.N_BUCKETS, 3), 1 / 3, dtype=torch.float64)

    @staticmethod
    def keys(ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> list[torch.Tensor]:
        """Return one integer [N] for each token and each of: w3, (w2, w3), (w1, w2, w3), w2, (w1, w2)."""
        w3, w2 = ids_RT[:, 1:], ids_RT[:, :-1]
        w1 = functional.pad(w2[:, :-1], (1, 0), value=int(ids_RT[0, 0]))  # before the first token: BOS twice
        w1, w2, w3 = (w[mask_RT[:, 1:]] for w in (w1, w2, w3))
        pair = w1 * N_VOCAB + w2
        return [w3, w2 * N_VOCAB + w3, pair * N_VOCAB + w3, w2, pair]

    def mixture(self, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probability of each token under the three models [N, 3], and its bucket [N]."""
        found = []
        for (known, counts), keys_N in zip(self.tables, self.keys(ids_RT, mask_RT), strict=True):
            at = torch.searchsorted(known, keys_N).clamp(max=len(known) - 1)
            found.append(torch.where(known[at] == keys_N, counts[at], 0).double())
        one, two, three, context_of_two, context_of_three = found
        unigram = (one + 1) / (self.n_tokens + N_VOCAB)
        mixed = [unigram, two / context_of_two.clamp(min=1), three / context_of_three.clamp(min=1)]
        bucket_N = (context_of_three + 1).log2().long().clamp(max=self.N_BUCKETS - 1)
        return torch.stack(mixed, dim=1), bucket_N

    def fit_weights(self, documents: list[list[int]], bos: int) -> None:
        """Set the mixing weights from documents that are not among the counted ones."""
        probabilities, bucket_N = self.mixture(*document_rows(documents, bos))
        for _ in range(50):
            share = self.weights[bucket_N] * probabilities
            share /= share.sum(dim=1, keepdim=True)
            total = torch.full_like(self.weights, 1e-3).index_add_(0, bucket_N, share)
            self.weights = total / total.sum(dim=1, keepdim=True)

    def nats(self, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> float:
        """Return mean nats a token over the tokens of the text."""
        probabilities, bucket_N = self.mixture(ids_RT, mask_RT)
        return -(self.weights[bucket_N] * probabilities).sum(dim=1).log().mean().item()


def trigram_nats(
    train: list[list[int]], tuning: set[int], rows: tuple[torch.Tensor, torch.Tensor], bos: int
) -> float:
    """Return the baseline's nats a token on `rows`.

    Its weights come from the train documents numbered in `tuning`, its final counts from all of `train`.
    """
    counted = Trigram([d for i, d in enumerate(train) if i not in tuning], bos)
    counted.fit_weights([train[i] for i in sorted(tuning)], bos)
    baseline = Trigram(train, bos)
    baseline.weights = counted.weights
    return baseline.nats(*rows)


# --------------------------------------------------------------------------------------- sparse autoencoder


class TopK(torch.nn.Module):
    """`score = (x - b_dec) W_enc + b_enc`; the k largest scores, if positive, weigh the rows of `W_dec`."""

    def __init__(self, mean_D: torch.Tensor):
        super().__init__()
        start = torch.randn(N_FEATURES, D_MODEL, generator=torch.Generator().manual_seed(0))
        start = functional.normalize(start, dim=1)
        self.W_enc = torch.nn.Parameter(start.T.clone())  # [D, S]
        self.b_enc = torch.nn.Parameter(torch.zeros(N_FEATURES))
        self.W_dec = torch.nn.Parameter(start)  # [S, D], rows of length 1
        self.b_dec = torch.nn.Parameter(mean_D.clone())

    def scores(self, x_ND: torch.Tensor) -> torch.Tensor:
        return (x_ND - self.b_dec) @ self.W_enc + self.b_enc

    def encode(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values [N, K], zero where nothing fires, and feature numbers [N, K]."""
        values_NK, features_NK = self.scores(x_ND).topk(K, sorted=False)
        return values_NK.relu(), features_NK

    def decode(self, values_NK: torch.Tensor, features_NK: torch.Tensor) -> torch.Tensor:
        return self.directions(values_NK, features_NK) + self.b_dec

    def directions(self, values_NK: torch.Tensor, features_NK: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum [N, D] of decoder rows, without the bias."""
        return functional.embedding_bag(features_NK, self.W_dec, per_sample_weights=values_NK, mode="sum")


@torch.no_grad()
def site_activations(model: LlamaForCausalLM, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
    """Return what leaves layer `SITE` at the tokens of the text, float16 [N, D]."""
    kept: list[torch.Tensor] = []
    hook = model.model.layers[SITE].register_forward_hook(lambda _module, _inputs, x_BTD: kept.append(x_BTD))
    chunks = []
    for ids_BT, mask_BT in zip(ids_RT.split(64), mask_RT.split(64), strict=True):
        model.model(input_ids=ids_BT, use_cache=False)
        chunks.append(kept.pop()[mask_BT].half())
    hook.remove()
    return torch.cat(chunks)


def train_dictionary(x_ND: torch.Tensor, minutes: float) -> tuple[TopK, int]:
    """Return the autoencoder, in the units of `x_ND`, and how many tokens it saw.

    Training is in units in which a token's norm is about sqrt(D); TopK is homogeneous, so only the biases
    change on the way back.
    """
    norms_N = x_ND.float().norm(dim=1)
    x_ND = x_ND[norms_N < MASSIVE * norms_N.median()]
    scale = D_MODEL**0.5 / norms_N.median()
    sae = TopK(x_ND[:100_000].float().mean(dim=0) * scale)
    adam = torch.optim.Adam(sae.parameters(), lr=SAE_LR, betas=(0.9, 0.99))
    silent_S = torch.zeros(N_FEATURES, dtype=torch.long)  # tokens since each feature last fired
    variance = x_ND[:100_000].float().var(dim=0).sum() * scale**2
    generator = torch.Generator().manual_seed(0)
    start = time.monotonic()
    n_steps, progress = 0, 0.0
    while progress < 1:
        for chosen in torch.randperm(len(x_ND), generator=generator).split(SAE_BATCH):
            progress = (time.monotonic() - start) / (60 * minutes)
            adam.param_groups[0]["lr"] = SAE_LR * schedule(progress)
            loss = dictionary_step(sae, adam, x_ND[chosen].float() * scale, silent_S, variance)
            n_steps += 1
            if n_steps % 200 == 0:
                n_dead = int((silent_S > DEAD_AFTER).sum())
                print(f"SAE: {progress:4.0%}  step {n_steps:,}  FVU {loss:.3f}  dead {n_dead:,}", flush=True)
            if progress >= 1:
                break
    with torch.no_grad():
        sae.b_enc /= scale
        sae.b_dec /= scale
    return sae, n_steps * SAE_BATCH


def dictionary_step(
    sae: TopK, adam: torch.optim.Adam, x_ND: torch.Tensor, silent_S: torch.Tensor, variance: torch.Tensor
) -> float:
    """Take one step, update `silent_S`, and return the batch's share of variance that stays unexplained."""
    scores_NS = sae.scores(x_ND)
    values_NK, features_NK = scores_NS.topk(K, sorted=False)
    values_NK = values_NK.relu()
    left_ND = x_ND - sae.decode(values_NK, features_NK)
    unexplained = left_ND.square().sum(dim=1).mean() / variance
    silent_S += len(x_ND)
    silent_S[features_NK[values_NK > 0]] = 0
    loss = unexplained
    dead = (silent_S > DEAD_AFTER).nonzero().flatten()
    if len(dead):
        k = min(AUX_K, len(dead))
        aux_values, at = scores_NS[:, dead].topk(k, sorted=False)
        target_ND = left_ND.detach()
        rest_ND = target_ND - sae.directions(aux_values.relu(), dead[at])
        loss = loss + AUX_WEIGHT * rest_ND.square().sum() / target_ND.square().sum()
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
    adam.step()
    with torch.no_grad():
        sae.W_dec.copy_(functional.normalize(sae.W_dec, dim=1))
    return unexplained.item()


def save_dictionary(sae: TopK, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().half().contiguous() for name, weight in sae.named_parameters()}
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "sae_weights.safetensors").chmod(0o644)
    settings = {
        "architecture": "topk",
        "d_in": D_MODEL,
        "d_sae": N_FEATURES,
        "k": K,
        "dtype": "float16",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": "demo",
            "hook_name": f"blocks.{SITE}.hook_resid_post",
            "hf_hook_name": f"model.layers.{SITE}",
            "context_size": CONTEXT,
            "prepend_bos": True,
            "dataset_path": "stdlib",
        },
    }
    (folder / "cfg.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_dictionary(folder: Path) -> TopK:
    """Return the saved autoencoder: rounded to float16, computed in float32."""
    sae = TopK(torch.zeros(D_MODEL))
    sae.load_state_dict({k: w.float() for k, w in load_file(folder / "sae_weights.safetensors").items()})
    return sae.requires_grad_(False)


@torch.no_grad()
def dictionary_figures(sae: TopK, heldout_ND: torch.Tensor, corpus_ND: torch.Tensor) -> dict[str, float]:
    """Return L0 and FVU on held-out tokens, and how often features fire on tokens of the whole corpus."""
    fired, error = 0, 0.0
    for x_ND in heldout_ND.float().split(SAE_BATCH):
        values_NK, features_NK = sae.encode(x_ND)
        fired += int((values_NK > 0).sum())
        error += (x_ND - sae.decode(values_NK, features_NK)).square().sum().item()
    spread = (heldout_ND.float() - heldout_ND.float().mean(dim=0)).square().sum().item()
    times_S = torch.zeros(N_FEATURES)
    for x_ND in corpus_ND.float().split(SAE_BATCH):
        values_NK, features_NK = sae.encode(x_ND)
        times_S += torch.bincount(features_NK[values_NK > 0], minlength=N_FEATURES)
    return {
        "l0": fired / len(heldout_ND),
        "fvu": error / spread,
        "alive_share": (times_S > 0).float().mean().item(),
        "dense_share": (times_S > 0.1 * len(corpus_ND))
        .float()
        .mean()
        .item(),  # fire on over a tenth of tokens
        "median_firing_rate": (times_S / len(corpus_ND)).median().item(),
    }


@torch.no_grad()
def spliced_nats(model: LlamaForCausalLM, sae: TopK, rows: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the model's nats a token when layer `SITE` gives the SAE's output wherever there is no BOS."""

    def splice(_module: torch.nn.Module, _inputs: tuple, x_BTD: torch.Tensor) -> torch.Tensor:
        rebuilt = sae.decode(*sae.encode(x_BTD[:, 1:].flatten(0, 1))).view_as(x_BTD[:, 1:])
        return torch.cat([x_BTD[:, :1], rebuilt], dim=1)

    hook = model.model.layers[SITE].register_forward_hook(splice)
    nats = model_nats(model, *rows)
    hook.remove()
    return nats


# ------------------------------------------------------------------------------------------- the two halves


def make_model(out: Path, minutes: float) -> None:
    """Train, save and measure the language model."""
    train, heldout = split_documents()
    tokenizer = train_tokenizer(train)
    bos = tokenizer.bos_token_id
    train_ids = token_ids(tokenizer, train)
    print(
        f"{len(train):,} train documents, {sum(map(len, train_ids)):,} tokens; {len(heldout):,} held out",
        flush=True,
    )
    model, n_tokens = train_model(train_ids, bos, minutes)
    save_model(model, tokenizer, out / "model")
    tuning = {i for i, document in enumerate(train) if percent(document, "tuning") < TUNING_PERCENT}
    saved = load_model(out)
    rows = document_rows(token_ids(tokenizer, heldout), bos)
    record(
        out,
        nats_per_token_model=model_nats(saved, *rows),
        nats_per_token_trigram=trigram_nats(train_ids, tuning, rows, bos),
        n_heldout_documents=len(heldout),
        n_heldout_tokens=int(rows[1].sum()),
        n_train_documents=len(train),
        n_train_tokens=sum(map(len, train_ids)),
        n_parameters=sum(p.numel() for p in saved.parameters()),
        model_tokens_seen=n_tokens,
        model_train_minutes=minutes,
    )


def make_dictionary(out: Path, minutes: float) -> None:
    """Train, save and measure the autoencoder, on the saved model."""
    train, heldout = split_documents()
    tokenizer, model = AutoTokenizer.from_pretrained(out / "model"), load_model(out)
    bos = tokenizer.bos_token_id
    train_rows = document_rows(token_ids(tokenizer, train), bos)
    chosen = torch.randperm(len(train_rows[0]), generator=torch.Generator().manual_seed(0))[:N_ROWS]
    train_ND = site_activations(model, *(of_rows[chosen] for of_rows in train_rows))
    print(f"{len(train_ND):,} activations of layer {SITE}", flush=True)
    sae, n_tokens = train_dictionary(train_ND, minutes)
    save_dictionary(sae, out / "dictionary")
    saved = load_dictionary(out / "dictionary")
    heldout_rows = document_rows(token_ids(tokenizer, heldout), bos)
    heldout_ND = site_activations(model, *heldout_rows)
    others_ND = train_ND[: N_ALIVE_TOKENS - len(heldout_ND)]
    record(
        out,
        **dictionary_figures(saved, heldout_ND, torch.cat([heldout_ND, others_ND])),
        nats_per_token_spliced=spliced_nats(model, saved, heldout_rows),
        dictionary_tokens_seen=n_tokens,
        dictionary_train_minutes=minutes,
    )


def load_model(out: Path) -> LlamaForCausalLM:
    """Return the saved model: rounded to float16, computed in float32."""
    return AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32).eval()


def record(out: Path, **figures: float) -> None:
    """Add figures to `figures.json`, where the other half's stay."""
    path = out / "figures.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
    path.write_text(json.dumps(known | rounded, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for model/, dictionary/, figures.json"
    )
    parser.add_argument(
        "--minutes", type=float, default=44.0, help="training time of both together (default 44)"
    )
    parser.add_argument(
        "--only", choices=["lm", "sae"], help="one half only; it gets its usual share of --minutes"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; 1 where other programs keep the cores busy")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only != "sae":
        make_model(args.out, minutes=0.75 * args.minutes)
    if args.only != "lm":
        make_dictionary(args.out, minutes=0.25 * args.minutes)
    for name, value in json.loads((args.out / "figures.json").read_text()).items():
        print(f"{name:28}{value:>14,}")


if __name__ == "__main__":
    main()
