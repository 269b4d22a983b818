"""A run sent to Neuronpedia's server: within its limits, and every feature once, whatever fails between."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from neuronpedia_server import KEY, NeuronpediaServer, faults_of
from published_features import Json, feature, write_dashboard
from test_neuronpedia import score
from typer.testing import CliRunner

from autointerp.cli import app
from autointerp.errors import HubError, PublishError, SecretFound
from autointerp.neuronpedia.calls import Cuts, body_of, calls_of
from autointerp.neuronpedia.exported import Exported
from autointerp.neuronpedia.importing import import_neuronpedia
from autointerp.neuronpedia.naming import Asked, names_of
from autointerp.neuronpedia.upload import Uploaded, upload
from autointerp.run import Run
from viewed import hostile


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONPEDIA_API_KEY", KEY)
    monkeypatch.delenv("NEURONPEDIA_BASE_URL", raising=False)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 features, of which one has no windows: three calls of 128, 128 and 43."""
    folder = tmp_path_factory.mktemp("imported")
    few = [feature(at, n_windows=3, n_silent=0) for at in range(299)]
    features = [*few, feature(299, n_windows=0, n_silent=0)]
    return import_neuronpedia(write_dashboard(folder / "source", [features]), folder / "run").run.path


@pytest.fixture
def run(imported: Path, tmp_path: Path) -> Run:
    return Run.open(shutil.copytree(imported, tmp_path / "run"))


def send(run: Run, server: NeuronpediaServer, **asked: Any) -> Uploaded:
    return upload(run, server.url, Asked(**asked), first_wait_s=0.01)


def test_features_go_out_in_calls_of_128_and_are_counted(run: Run) -> None:
    with NeuronpediaServer() as server:
        done = send(run, server)
    assert [len(call["features"]) for call in server.calls] == [128, 128, 43]
    assert (done.n_features, done.n_calls, done.cuts.n_without_activations) == (299, 3, 1)
    assert len(server.features) == 299 and server.n_windows == 3 * 299
    one = server.features["3-res-test/7"]
    assert one["density"] == 0.0005 and one["topLogits"][1] == {"token": "x", "value": 0.125}
    assert [w["values"] for w in one["activations"]] == [
        w["values"] for w in feature(7, n_windows=3)["activations"][:3]
    ]
    assert all("quantileFraction" not in w for w in one["activations"])  # the strongest are of no interval


def test_a_second_time_only_what_is_missing_is_sent(run: Run) -> None:
    with NeuronpediaServer([200, 400]) as server:
        with pytest.raises(HubError, match="refuses these features"):
            send(run, server)
        assert len(server.features) == 128
        done = send(run, server)
        assert (done.n_before, done.n_features, done.n_calls) == (128, 171, 2)
        assert len(server.features) == 299 and server.n_windows == 3 * 299
        n_requests = server.n_requests
        done = send(run, server)
        assert (done.n_before, done.n_features, server.n_requests) == (299, 0, n_requests)
        # Another name of the source is another place.
        assert send(run, server, sources=["4-other"]).n_features == 299


@pytest.mark.parametrize("fault", [408, 409, 425, 429, 500, 503, "cut"])
def test_what_may_be_over_is_tried_again(fault: int | str, run: Run) -> None:
    with NeuronpediaServer([fault, fault], retry_after="0.02") as server:
        assert send(run, server).n_features == 299
        assert server.n_requests == 5 and server.n_windows == 3 * 299


@pytest.mark.parametrize(
    "fault", ["taken 504", "taken 500", "taken cut", "late 504", "late cut", "taken 408"]
)
def test_a_call_that_was_taken_and_failed_is_not_sent_again(fault: str, run: Run) -> None:
    """Also where the server keeps it a while after it stopped answering, when it was asked for already."""
    with NeuronpediaServer([200, fault]) as server:
        done = send(run, server)
    assert (done.n_features, done.n_calls, server.n_requests) == (299, 3, 3)
    assert len(server.features) == 299 and server.n_windows == 3 * 299


def test_windows_that_others_put_there_are_not_taken_for_ours(run: Run) -> None:
    with NeuronpediaServer([503, "taken 503"]) as server:
        theirs = {"index": 0, "activations": [{"tokens": ["x"], "values": [1.0]}]}
        server.features["3-res-test/0"] = theirs
        send(run, server)
        assert server.n_windows == 3 * 299


def test_where_the_server_does_not_tell_nothing_is_sent_and_the_next_command_asks_first(run: Run) -> None:
    """Whether the call was taken or not, each feature is there once in the end."""
    for fault in ("taken 502", 502):
        with NeuronpediaServer([200, fault]) as server:
            server.look_faults = [500] * 30
            with pytest.raises(
                HubError, match=r"(?s)doesn't tell whether.*tiny-model/3-res-test/128 is there"
            ):
                send(run, server)
            assert server.n_requests == 2
            with pytest.raises(HubError, match="doesn't tell whether"):
                send(run, server)
            assert server.n_requests == 2
            server.look_faults = []
            send(run, server)
            assert len(server.features) == 299 and server.n_windows == 3 * 299


def test_a_process_that_dies_behind_a_call_sends_it_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with NeuronpediaServer() as server:
        with monkeypatch.context() as patched:
            patched.setattr("autointerp.neuronpedia.upload._note", dies)
            with pytest.raises(RuntimeError, match="killed"):
                send(run, server)
        assert server.n_windows == 3 * 128
        done = send(run, server)
        assert (done.n_before, done.n_features) == (128, 171) and server.n_windows == 3 * 299
        assert not list(run.path.rglob("pending.json"))


def test_a_server_that_never_succeeds_is_told_of_without_the_key(run: Run) -> None:
    with NeuronpediaServer([500] * 20) as server, pytest.raises(HubError) as caught:
        send(run, server)
    assert "no success after 6 tries" in str(caught.value) and "made to fail" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_long_wait_is_told_and_not_waited_for(run: Run) -> None:
    with NeuronpediaServer([429], retry_after="4000") as server:
        with pytest.raises(HubError, match="asks to wait 4,000 s"):
            send(run, server)
        assert server.n_requests == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_says_what_the_server_said_and_is_not_repeated(status: int, run: Run) -> None:
    with NeuronpediaServer([status]) as server:
        with pytest.raises(HubError, match="made to fail") as caught:
            send(run, server)
        assert server.n_requests == 1 and KEY not in str(caught.value) and str(status) in str(caught.value)


def test_a_wrong_key_or_none_or_no_address_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with NeuronpediaServer() as server:
        monkeypatch.setenv("NEURONPEDIA_API_KEY", "sk-np-another-key")
        with pytest.raises(HubError, match="refuses the key in NEURONPEDIA_API_KEY"):
            send(run, server)
        monkeypatch.delenv("NEURONPEDIA_API_KEY")
        with pytest.raises(PublishError, match="NEURONPEDIA_API_KEY is not set"):
            send(run, server)
    result = CliRunner().invoke(
        app, ["export", str(run.path), "--to", "neuronpedia-api", "--base-url", "nowhere"]
    )
    assert result.exit_code == 2 and "is no address" in result.output


def test_the_key_stands_in_no_file_and_no_output(run: Run) -> None:
    with NeuronpediaServer([503]) as server:
        arguments = ["export", str(run.path), "--to", "neuronpedia-api", "--base-url", server.url]
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "299 features sent in 3 calls" in result.output and KEY not in result.output
    for path in run.path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURONPEDIA_API_KEY")
    with NeuronpediaServer() as server:
        arguments = [
            "export",
            str(run.path),
            "--to",
            "neuronpedia-api",
            "--base-url",
            server.url,
            "--dry-run",
        ]
        result = CliRunner().invoke(app, arguments)
        assert server.n_requests == 0
    assert result.exit_code == 0, result.output
    assert "3-res-test, call 1: 128 features (0 to 127), 384 activations, 0 explanations" in result.output
    assert "299 features would be sent in 3 calls" in result.output
    assert "1 features have no windows" in result.output


def test_what_was_explained_since_is_not_sent_twice_but_counted(tmp_path: Path) -> None:
    features = [feature(at) for at in range(6)]
    run = import_neuronpedia(write_dashboard(tmp_path / "source", [features]), tmp_path / "run").run
    with NeuronpediaServer() as server:
        assert send(run, server).n_features == 6
        run = score(run)
        done = send(run, server)
        assert (done.n_features, done.n_before, done.n_changed) == (0, 6, 6)
        assert server.n_explanations == 0
        assert send(run, server, sources=["5-again"], kind="NP_max-act").n_features == 6
        assert server.n_explanations == 6
        told = server.features["5-again/2"]["explanations"]
        assert [set(one) for one in told] == [{"text", "methodName"}] and told[0][
            "methodName"
        ] == "np_max-act"


def test_limits_hold_for_whatever_a_run_holds(run: Run) -> None:
    """Each alone passes them; none of what is sent does."""
    words = [word or " " for word in hostile(1000)]
    rows: list[Json] = [
        {"tokens": words, "values": [0.0] * 500 + [3.0] + [0.0] * 499},
        {"tokens": ["a", "", "é", "", ""] * 500, "values": [*([0.0] * 2499), 2.0]},
        {"tokens": ["x\0y"], "values": [1.0], "binMin": -1, "binMax": 9.0, "binContains": -1},
        {"tokens": ["x"], "values": [1.0], "binMin": 0.5, "binMax": 1e12, "binContains": 0.5},
        {"tokens": ["x"], "values": [1.0], "binMin": 0.5, "binMax": 1.0, "binContains": 0.5},
        {"tokens": ["", ""], "values": [1.0, 2.0]},
    ]
    texts = ["word " * 300, "w" * 2000, "👩‍👩‍👧‍👦" * 200, "a" * 512, "  ", "ok"]
    one = Exported(
        5,
        {
            "frac_nonzero": -1,
            "pos_str": ["t"] * 30 + [""],
            "pos_values": [1.0] * 31,
            "neg_str": [],
            "neg_values": [],
        },
        rows,
        [{"description": text, "typeName": "np_max-act"} for text in texts],
    )
    cuts = Cuts()
    body = body_of(one, cuts)
    assert body is not None
    (call,) = calls_of(names_of(run, Asked())["3-res-test"], [body])
    assert not list(faults_of(call.body))
    assert "density" not in body and len(body["topLogits"]) == 20
    assert len(body["activations"]) == 5 and cuts.n_windows_cut == 0
    joined = body["activations"][1]
    assert len(joined["tokens"]) == 1000 and max(joined["values"]) == 2.0 and cuts.n_tokens_joined == 1500
    assert ["quantileMin" in of for of in body["activations"]] == [False, False, False, False, True]
    said = [of["text"] for of in body["explanations"]]
    assert len(said) == 5 and cuts.n_explanations_cut == 3
    assert said[0] == ("word " * 102).rstrip() + "…" and said[1] == "w" * 511 + "…" and said[3] == "a" * 512


def test_a_longer_window_is_cut_around_its_strongest_token(run: Run) -> None:
    values = [0.0] * 3000
    values[2990] = 4.0
    cuts = Cuts()
    body = body_of(Exported(1, {}, [{"tokens": ["t"] * 3000, "values": values}]), cuts)
    assert body is not None and cuts.n_windows_cut == 1
    (one,) = body["activations"]
    assert len(one["tokens"]) == len(one["values"]) == 1024 and max(one["values"]) == 4.0


def test_a_secret_in_a_window_is_not_sent(tmp_path: Path) -> None:
    leaking = feature(1)
    leaking["activations"][0]["tokens"][3] = " hf_abcdefghijklmnopqrstuvwxyz0123456789"
    source = write_dashboard(tmp_path / "source", [[feature(0), leaking]])
    run = import_neuronpedia(source, tmp_path / "run").run
    with NeuronpediaServer() as server:
        with pytest.raises(SecretFound):
            send(run, server)
        assert server.n_requests == 0
