"""Code of somebody's own behind `--sae package.module:function`: whatever is wrong with it is told in one line."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from autointerp.activations.collected import Batch, Collected
from autointerp.cli import app
from autointerp.dictionaries.encode import Codes, Encoder
from autointerp.dictionaries.locate import find_dictionary, reader_of
from autointerp.errors import CheckpointError, Interrupted, ModelError
from autointerp.identity import fingerprint
from tiny import Tiny

D, F = 6, 10
HEAD = """
from functools import cache, partial
from pathlib import Path
import torch
from autointerp.dictionaries.spec import *
from autointerp.types import Site
D, F = 6, 10
z = torch.zeros

def spec(**fields):
    given = dict(
        format="", path=Path(), identity="mine", d_in=D, width=F, selector="topk", k=3, hook=None,
        site=Site("resid_post", 1), model=None, corpus=None, context_length=None, prepend_bos=True)
    return DictionarySpec(**(given | fields))

def tensors(**fields):
    given = dict(w_enc_DF=z(D, F), b_enc_F=z(F), b_pre_D=z(D), w_dec_FO=z(F, D), b_dec_O=z(D))
    return Weights(**(given | fields))

def encoding(encode, **fields):
    said = dict(selector="custom", k=None, reconstructs=False) | fields
    return Dictionary(spec(**said), lambda device: tensors(w_enc_DF=None, encode=encode))
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes `my_outside.py`."""

    def written(code: str) -> Path:
        path = tmp_path / "my_outside.py"
        path.write_text(HEAD + textwrap.dedent(code))
        return path

    monkeypatch.delitem(sys.modules, "my_outside", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return written


def told(action: Callable[[], object]) -> str:
    """The message: one line."""
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1_500 and "my_outside:f" in message, message
    return message


def line_of(path: Path, text: str) -> int:
    (number,) = [at for at, line in enumerate(path.read_text().splitlines(), 1) if text in line]
    return number


# --- described -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "said", "line"),
    [
        ("def f():\n    return g()\ndef g():\n    raise ValueError('kaput\\nnow')", "ValueError: kaput now", "raise"),
        ("def f(path, k=3):\n    return None", "f() missing 1 required positional argument: 'path'", "def f"),
        ("def f():\n    return z(3) @ z(4)", "RuntimeError: ", "@ z(4)"),
        ("import no_such_module\ndef f():\n    pass", "ModuleNotFoundError: No module named 'no_such_", "no_such"),
        ("1 / 0", "ZeroDivisionError: division by zero", "1 / 0"),
        ("def f(:", "SyntaxError: ", "def f(:"),
        ("def __getattr__(name):\n    raise OSError(name)", "looking for f raised OSError: f", "raise OSError"),
        ("def f():\n    return DictionarySpec(3)", "TypeError: ", "DictionarySpec(3)"),
        ("def f():\n    raise KeyError", "raised KeyError (", "raise KeyError"),
    ],
)  # fmt: skip
def test_an_error_names_the_authors_own_line(write: Write, code: str, said: str, line: str) -> None:
    """Also where it was raised in torch, or by what was called with too little."""
    path = write(code)
    message = told(lambda: find_dictionary("my_outside:f"))
    assert said in message and f"({path}, line {line_of(path, line)})" in message, message


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("f = 3", "is a int; it must be a function"),
        ("def f():\n    return 3", "gives a int; it must give an autointerp.dictionaries.spec.Dictionary"),
        ("def f():\n    return Dictionary({'d_in': 6}, None)", "spec of its Dictionary is a dict"),
        ("def f():\n    return Dictionary(spec(), None)", "the load of its Dictionary is a NoneType"),
    ],
)
def test_what_is_no_dictionary(write: Write, code: str, said: str) -> None:
    write(code)
    assert said in told(lambda: find_dictionary("my_outside:f"))


def test_no_such_module_or_function(write: Write) -> None:
    write("")
    with pytest.raises(CheckpointError, match=r"No module named 'no_such'\. \(A folder or repository"):
        find_dictionary("no_such.module:f")
    assert "module 'my_outside' has no attribute 'f'. (A folder" in told(
        lambda: find_dictionary("my_outside:f")
    )


def test_signals_and_errors_that_are_told_anyway_pass(write: Write) -> None:
    write("""
        from autointerp.errors import Interrupted, ModelError
        def f():
            raise Interrupted
        def g():
            raise ModelError("no such model")
    """)
    with pytest.raises(Interrupted):
        find_dictionary("my_outside:f")
    with pytest.raises(ModelError, match=r"^no such model$"):
        find_dictionary("my_outside:g")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("selector='magic'", "selector is 'magic': expected one of relu, jumprelu,"),
        ("selector=['topk']", "selector is ['topk']: expected one of"),
        ("d_in=-1", "d_in is -1: expected a whole number of at least 1, or 0"),
        ("d_in=6.0", "d_in is 6.0: expected a whole number"),
        ("width=0", "width is 0: expected a whole number of at least 1"),
        ("width=True", "width is True: expected"),
        ("k=None", "k is None: expected a whole number of at least 1, which the selector topk needs"),
        ("k=0", "k is 0: expected a whole number"),
        ("k=11", "k is 11: expected at most the width, 10"),
        ("selector='groupmax', k=4", "k is 4: expected a number of groups that the width, 10, can be divided by"),
        ("selector='pursuit', k=11", "k is 11: expected at most the width, 10, or d_in, 6"),
        ("transform=('norm',)", "transform is ('norm',): expected a tuple of some of centre, layer_norm"),
        ("transform='centre'", "transform is 'centre': expected a tuple"),
        ("n_inputs=4", "n_inputs is 4: expected a number that d_in, 6, can be divided by"),
        ("is_transcoder=True", "d_out is None: expected a whole number of at least 1"),
        ("d_out=7", "d_out is 7: expected None where it is no transcoder"),
        ("site='blocks.1'", "site is 'blocks.1': expected an autointerp.types.Site"),
        ("further_sites=('blocks.1',)", "further_sites is ('blocks.1',): expected"),
        ("context_length=0", "context_length is 0: expected"),
        ("identity=None", "identity is None: expected a text"),
        ("gradient_weight='much'", "gradient_weight is 'much': expected a number, or None"),
        ("approximation=3", "approximation is 3: expected a text"),
        ("basis='heads'", "basis is 'heads': expected None, or one of neurons, experts"),
        ("by_input=True, n_inputs=2", "decoder_norm_gate is False: expected True"),
        ("identity=7 * 'x', selector='x' * 900", "xxx...: expected one of"),
    ],
)  # fmt: skip
def test_a_spec_that_can_not_be_is_told_with_value_and_what_is_expected(
    write: Write, fields: str, said: str
) -> None:
    write(f"def f():\n    return Dictionary(spec({fields}), lambda device: tensors())")
    assert said in told(lambda: find_dictionary("my_outside:f"))
    shown = CliRunner().invoke(app, ["sae", "inspect", "my_outside:f"])
    assert shown.exit_code == 2 and "magic:" not in shown.output and "Traceback" not in shown.output


@pytest.mark.parametrize(
    "fields",
    [
        "d_in=0",
        "d_in=0, width=0, k=None, selector='relu', basis='neurons'",
        "k=10",
        "selector='pursuit', k=None",
        "selector='relu', k=None, is_transcoder=True, d_out=4",
        "selector='custom', k=None, has_signs=True",
    ],
)
def test_what_can_be_is_taken(write: Write, fields: str) -> None:
    write(f"def f():\n    return Dictionary(spec({fields}), lambda device: tensors())")
    assert find_dictionary("my_outside:f").format == "my_outside:f"


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    return Dictionary(spec(identity=''), lambda device: tensors())",
        "@cache\ndef f():\n    return Dictionary(spec(identity=''), lambda device: tensors())",
        "def g(n):\n    return Dictionary(spec(identity=''), lambda device: tensors())\nf = partial(g, 3)",
    ],
)
def test_an_empty_identity_becomes_the_files(write: Write, code: str) -> None:
    """Also of a function that has no source of its own."""
    path = write(code)
    found = find_dictionary("my_outside:f")
    assert found.path == path and found.identity == fingerprint([path]) and len(found.identity) == 32
    before = found.identity
    path.write_text(path.read_text() + "\n# other weights\n")
    assert find_dictionary("my_outside:f").identity != before


def test_a_module_may_be_called_as_a_basis_is(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="'neurons:f' names no basis: write neurons"):
        find_dictionary("neurons:f")
    path = write("def f():\n    return Dictionary(spec(), lambda device: tensors())")
    path.rename(path.with_name("neurons.py"))
    monkeypatch.delitem(sys.modules, "neurons", raising=False)
    importlib.invalidate_caches()
    assert find_dictionary("neurons:f").format == "neurons:f"
    assert find_dictionary("neurons").is_basis and find_dictionary("neurons:3").k == 3
    del sys.modules["neurons"]  # another test's would find it


# --- loaded --------------------------------------------------------------------------------------------


def loaded(text: str = "my_outside:f") -> Encoder:
    spec = find_dictionary(text)
    return Encoder(spec, reader_of(spec).load(spec, "cpu"))


@pytest.mark.parametrize(
    ("spec", "weights", "said"),
    [
        ("", "None", "its load gives a NoneType; it must give an autointerp.dictionaries.spec.Weights"),
        ("", "tensors(w_enc_DF=z(F, D))", "w_enc_DF has shape [10, 6]: expected a tensor of float32 [d_in 6, width 10"
         "], as the DictionarySpec says. The axes are swapped: transpose it."),
        ("", "tensors(w_enc_DF=None)", "w_enc_DF is missing: expected a tensor of float32 [d_in 6, width 10]"),
        ("", "tensors(w_dec_FO=z(F, 5))", "w_dec_FO has shape [10, 5]: expected a tensor of float32 [width 10, d_"),
        ("", "tensors(w_dec_FO=None)", "w_dec_FO is missing"),
        ("", "tensors(b_enc_F=z(F, 1))", "b_enc_F has shape [10, 1]: expected a tensor of float32 [width 10]"),
        ("", "tensors(b_pre_D=0.0)", "b_pre_D is a float: expected a tensor of float32 [d_in 6]"),
        ("", "tensors(b_dec_O=z(D).double())", "b_dec_O is of torch.float64: expected a tensor of float32"),
        ("", "tensors(b_dec_O=z(D) / 0)", "b_dec_O holds 6 values of 6 that are NaN or infinite"),
        ("", "tensors(b_dec_O=z(D, device='meta'))", "b_dec_O is on meta: expected on cpu"),
        ("", "tensors(w_skip_DO=z(D, D))", "w_skip_DO is there, and it is no transcoder"),
        ("", "tensors(encode=lambda x: x)", "encode is there, and the selector is topk. Say custom, or leave"),
        ("selector='jumprelu', k=None", "tensors()", "threshold_F is missing"),
        ("selector='jumprelu', k=None", "tensors(threshold_F=z(1))", "threshold_F has shape [1]"),
        ("selector='gated', k=None", "tensors()", "gate is a NoneType: the selector gated needs a spec.Gate"),
        ("selector='gated', k=None", "tensors(gate=Gate(z(F), z(3), z(F)))", "gate.scale_F has shape [3]"),
        ("selector='custom', k=None", "tensors()", "encode is a NoneType: the selector custom needs a function"),
        ("needs_sequence=True", "tensors()", "predict is a NoneType: needs_sequence needs a function"),
        ("is_transcoder=True, d_out=4", "tensors(w_dec_FO=z(F, 4))", "b_dec_O has shape [6]: expected a tensor of "
         "float32 [d_out 4]"),
        ("d_in=12, n_inputs=2, by_input=True, decoder_norm_gate=True",
         "tensors(b_pre_D=z(12), b_dec_O=z(12), w_enc_DF=z(12, F), w_dec_FO=z(F, 12))", "input_share_LF is missing: "
         "expected a tensor of float32 [n_inputs 2, width 10]"),
    ],
)  # fmt: skip
def test_weights_are_told_with_value_and_what_is_expected(
    write: Write, spec: str, weights: str, said: str
) -> None:
    write(f"def f():\n    return Dictionary(spec({spec}), lambda device: {weights})")
    assert said in told(loaded)


def test_an_error_in_load_names_the_line(write: Write) -> None:
    path = write("""
        def load(device):
            return torch.load("no-such-file.pt")
        def f():
            return Dictionary(spec(), load)
        def g():
            return Dictionary(spec(), lambda: tensors())
    """)
    said = told(loaded)
    assert "its load('cpu') raised FileNotFoundError: " in said
    assert f"({path}, line {line_of(path, 'no-such-file')})" in said
    with pytest.raises(
        CheckpointError, match=r"my_outside:g: its load\('cpu'\) raised TypeError: .*, line \d+\)"
    ):
        loaded("my_outside:g")


def test_parameters_of_a_module_and_calibrated_thresholds_are_taken(write: Write) -> None:
    write("""
        from autointerp.dictionaries.thresholds import Calibration
        def f():
            return Dictionary(spec(), lambda device: tensors(w_enc_DF=torch.nn.Parameter(torch.eye(D, F))))
        def g():
            said = dict(selector="jumprelu", k=None, calibration=Calibration("batch_topk", 3))
            return Dictionary(spec(**said), lambda device: tensors())
    """)
    x_ND = torch.tensor([[1.0, 4.0, 0.0, 3.0, 0.0, 2.0]])
    codes = loaded().encode(x_ND)
    assert codes.feature_M.tolist() == [1, 3, 5] and codes.value_M.numpy().tolist() == [4, 3, 2]
    assert loaded("my_outside:g").spec.calibration is not None


def test_a_feature_may_be_switched_off_by_an_infinite_threshold(write: Write) -> None:
    write("""
        def f(threshold=float("inf")):
            threshold_F = torch.tensor([1.0, threshold] + [0.0] * (F - 2))
            return Dictionary(
                spec(selector="jumprelu", k=None),
                lambda device: tensors(w_enc_DF=torch.eye(D, F), threshold_F=threshold_F))
        def g():
            return f(float("nan"))
        def h():
            return f(-float("inf"))
    """)
    codes = loaded().encode(torch.tensor([[1.0, 9.0, 0.5, 0.0, 0.0, 2.0]]))
    assert codes.feature_M.tolist() == [2, 5]  # 1.0 is not above 1
    for name in "gh":
        with pytest.raises(
            CheckpointError, match="threshold_F holds 1 values of 10 that are NaN or infinite"
        ):
            loaded(f"my_outside:{name}")


# --- encoded -------------------------------------------------------------------------------------------

ENCODES = [
    ("'codes'", "gives a str: expected two tensors [n, K], values (float) and features (integer)"),
    ("(x, x.long(), x)", "gives ['Tensor', 'Tensor', 'Tensor']: expected two tensors"),
    ("(x.numpy(), x.long())", "gives ['ndarray', 'Tensor']: expected two tensors"),
    ("(x[:5, :3], x[:5, :3].long())", "gives, of 8 tokens, shapes [5, 3] and [5, 3]: expected"),
    ("(x[:, :3], x[:, :2].long())", "gives, of 8 tokens, shapes [8, 3] and [8, 2]: expected"),
    ("(x[:, 0], x[:, 0].long())", "gives, of 8 tokens, shapes [8] and [8]: expected"),
    ("(x.long(), x.long())", "gives torch.int64 and torch.int64: expected"),
    ("(x, x)", "gives torch.float32 and torch.float32: expected"),
    ("(x, x > 0)", "gives torch.float32 and torch.bool: expected"),
    ("(x * float('nan'), x.long())", "gives 48 values of 48 that are NaN or infinite"),
    ("(x, 10 + 0 * x.long())", "gives features from 10 to 10: expected 0 to 9"),
    ("(x, 0 * x.long() - 1)", "gives features from -1 to -1: expected 0 to 9"),
    ("(x.abs() + 1, 0 * x.long())", "gives a feature more than once for a token, on 8 of 8 tokens"),
    ("1 / 0", "raised ZeroDivisionError: division by zero ("),
]


@pytest.mark.parametrize(("gives", "said"), ENCODES)
def test_what_encode_gives(write: Write, gives: str, said: str) -> None:
    write(f"def f():\n    return encoding(lambda x: {gives})")
    assert said in told(lambda: loaded().candidates(torch.randn(8, D)))


def test_values_are_looked_at_on_later_calls_too(write: Write) -> None:
    write("""
        calls = []
        def encode(x):
            calls.append(1)
            return x, torch.arange(D).expand(len(x), D) + 100 * (len(calls) > 1)
        def f():
            return encoding(encode)
    """)
    encoder = loaded()
    encoder.candidates(torch.randn(8, D))
    assert "gives features from 100 to 105" in told(lambda: encoder.candidates(torch.randn(8, D)))


def test_a_model_that_gives_nan_is_not_taken_for_a_fault_of_encode(write: Write) -> None:
    write("def f():\n    return encoding(lambda x: (x, torch.arange(D).expand(len(x), D)))")
    encoder, x_ND = loaded(), torch.randn(8, D)
    encoder.candidates(x_ND)
    x_ND[3] = torch.nan
    assert encoder.candidates(x_ND).value_M.isnan().sum() == D
    with pytest.raises(ModelError, match="NaN or infinite on 1 of 8 tokens"):
        encoder.encode(x_ND)


def test_what_is_not_active_may_stand_anywhere_and_types_are_ours(write: Write) -> None:
    """Features in int32, values in float64, padded with zeros of feature 0 or of none."""
    write("""
        def encode(x):
            values = torch.tensor([[2.0, 0.0, 0.0], [1.5, 3.0, 0.0]], dtype=torch.float64)
            return values, torch.tensor([[4, 0, 0], [9, 0, -1]], dtype=torch.int32)
        def f():
            return encoding(encode)
    """)
    encoder = loaded()
    codes = encoder.encode(torch.zeros(2, D))
    padded = encoder.candidates(torch.zeros(2, D))
    assert sorted(padded.feature_M.tolist()) == [0, 0, 0, 0, 4, 9]
    assert codes.value_M.dtype == torch.float32 and codes.feature_M.dtype == torch.int64
    assert (codes.token_M.tolist(), codes.feature_M.tolist()) == ([0, 1, 1], [4, 0, 9])
    assert codes.value_M.tolist() == [2.0, 3.0, 1.5]


@pytest.mark.parametrize(("value", "feature"), [(float("nan"), 3), (1.0, 10), (1.0, -1)])
def test_codes_that_were_copied_are_looked_at_on_the_host(write: Write, value: float, feature: int) -> None:
    """Where the device was not waited for, as on a GPU."""
    write("def f():\n    return encoding(lambda x: (x, x.long()))")

    def kept(value: float, feature: int) -> None:
        token_M, feature_M = torch.zeros(1, dtype=torch.int32), torch.tensor([feature], dtype=torch.int32)
        codes = Codes(token_M, feature_M, torch.tensor([value]))
        is_sink_N, n_bad = torch.zeros(1, dtype=torch.bool), torch.tensor(0)
        batch = Batch(np.zeros(1, np.int64), codes, is_sink_N, n_bad)
        Collected(loaded(), 1, batches=[batch]).kept()

    kept(1.0, 9)
    with pytest.raises(
        CheckpointError, match="codes are NaN or infinite, or of features beyond its width, 10"
    ):
        kept(value, feature)


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ("None", "its predict gives a NoneType: expected a tensor of floats [4, 6], as what it is given"),
        ("x[:2]", "its predict gives a tensor of torch.float32 [2, 6]: expected a tensor of floats [4, 6]"),
        ("x.nope()", "its predict raised AttributeError: "),
    ],
)
def test_what_predict_gives(write: Write, gives: str, said: str) -> None:
    write(f"""
        def f():
            return Dictionary(spec(needs_sequence=True), lambda device: tensors(predict=lambda x: {gives}))
    """)
    assert said in told(lambda: loaded().predicted(torch.randn(1, 4, D), [4]))


# --- through the line ----------------------------------------------------------------------------------


def run(made: Tiny, *words: str, n_tokens: int = 3_000) -> tuple[int, str]:
    given = ["--model", str(made.model), "--corpus", str(made.corpus)]
    if words[0] == "explain":
        given += ["--set", f"cache.n_tokens={n_tokens}"]
    done = CliRunner().invoke(app, [*words, *given], env={"COLUMNS": "500"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, re.sub(r"\s+", " ", done.output)


def test_an_error_in_the_stages_process_is_told(made: Tiny, write: Write, tmp_path: Path) -> None:
    path = write("D, F = 104, 50\ndef f():\n    return encoding(lambda x: x.kaput())")
    out = tmp_path / "out"
    code, said = run(
        made, "explain", "--sae", "my_outside:f", "--llm", "lexical", "--first", "4", "--out", str(out)
    )
    line = line_of(path, "kaput")
    assert (
        code == 2 and "--sae my_outside:f: its encode raised AttributeError: 'Tensor' object has no" in said
    )
    assert f"({path}, line {line})" in said and "Traceback" not in said


def test_a_dictionary_that_is_silent_stops_the_run_before_it_caches(
    made: Tiny, write: Write, tmp_path: Path
) -> None:
    """Only negative values: nothing fires. Nobody is asked to explain."""
    write(
        "D, F = 104, 50\ndef f():\n    return encoding(lambda x: (-x[:, :2].abs(), torch.tensor([[3, 4]] * len(x))))"
    )
    out = tmp_path / "out"
    code, said = run(
        made, "explain", "--sae", "my_outside:f", "--llm", "lexical", "--first", "4", "--out", str(out)
    )
    assert code == 2 and re.search(
        r"dictionary 'layers.1' is silent: on [23],\d+ tokens none of its 50 features", said
    )
    assert "Look at what its encode gives: only values above 0 fire" in said and "another --out" in said
    assert not list(out.glob("explain/**/*.jsonl")) and not list(out.glob("cache/**/check*"))
    code, said = run(made, "sae", "check", "my_outside:f", "--n-tokens", "3000")
    assert code == 0 and "It is silent: on" in said and "none of its 50 features fires (L0 0)" in said
    quick = run(made, "sae", "check", "my_outside:f", "--n-tokens", "500")
    assert quick[0] == 0 and "It is silent" not in quick[1], "on few tokens rare features are not missed"
