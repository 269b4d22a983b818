"""A small language model and a sparse dictionary on it, shipped so that all runs without a download.

`model/` is a Llama of 2,557,632 parameters (4 layers, width 192, 4,096 byte-level BPE tokens, rows of 128), a
plain Hugging Face folder in float16. `dictionary/` is a TopK SAE of 2,048 features, at most 24 active on a
token, on what leaves `model.layers.2`, laid out as by SAELens 6. `corpus.stdlib_documents()` yields the text
both were trained on, which every Python has.

Made by `pipelines/train_demo.py` on two shared CPU cores (34 minutes the model, 6 the dictionary) from Python
3.11's standard library. On held-out documents, computed in float32 from the float16 files, without the BOS
position (all figures: `figures.json`):

    model                         2.79 nats/token; an interpolated trigram model 3.66
    dictionary                    L0 24, FVU 0.126
    features alive                all 2,048 (fire at least once in 300,000 tokens of the corpus)
    model through the dictionary  2.96 nats/token

Every row begins with BOS (`<|endoftext|>`); the tokenizer does not add it by itself. The weights are trained
on nothing but the Python standard library and its documentation, which the Python Software Foundation License
covers; they are for demonstrations and tests, not for findings about language models.
"""

from pathlib import Path

MODEL: Path = Path(__file__).parent / "model"
DICTIONARY: Path = Path(__file__).parent / "dictionary"
