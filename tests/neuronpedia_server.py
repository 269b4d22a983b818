"""A small Neuronpedia on 127.0.0.1: its upload route, with its limits, the route of a feature, and faults on demand.

    with NeuronpediaServer([503, 429]) as server:     # the first two calls fail so
        ...                                           # NEURONPEDIA_BASE_URL=server.url

Limits follow hijohnnylin/neuronpedia apps/webapp/app/api/feature/upload-batch/route.tsx: 400 where one is passed. As
there, a feature is kept once, and its windows and explanations as often as they come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import Loopback

Json = dict[str, Any]
KEY = "sk-np-0123456789abcdef-secret"
TYPES = {"eleuther_acts_top20", "np_max-act"}


class NeuronpediaServer(Loopback):
    def __init__(self, faults: list[int | str] | None = None, *, retry_after: str | None = None) -> None:
        """`faults`: of the first calls, in turn: a status; `cut`, the connection ends; 200 is well. `taken 504` and
        `taken cut`: the call is taken, and fails so; `late 504`: so, and it is kept when two have asked for it."""
        self.faults = faults or []
        self.calls: list[Json] = []
        """Bodies of those that were taken."""
        self.n_requests = 0
        """To send."""
        self.n_looks = 0
        self.look_faults: list[int] = []
        """Statuses of the first requests of a feature."""
        self.late: list[Json] = []
        self.features: dict[str, Json] = {}
        self.n_windows = self.n_explanations = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None: ...

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                number, outer.n_requests = outer.n_requests, outer.n_requests + 1
                asked = str(outer.faults[number]) if number < len(outer.faults) else "200"
                when, _, fault = asked.rpartition(" ")
                status, answer = (
                    outer.answer(self.path, self.headers, content, is_late=when == "late")
                    if (when or fault == "200")
                    else (0, {})
                )
                if fault == "cut":
                    self.close_connection = True
                    return
                if fault != "200":
                    status, answer = int(fault), {"error": f"made to fail, key {KEY}"}
                self._say(status, answer)

            def do_GET(self) -> None:
                number, outer.n_looks = outer.n_looks, outer.n_looks + 1
                if number < len(outer.look_faults):
                    self._say(outer.look_faults[number], {"error": "made to fail"})
                    return
                if outer.late and outer.n_looks > 2:
                    outer.keep(outer.late.pop())
                assert self.headers.get("X-Api-Key") == KEY
                *route, model, source, index = self.path.split("/")
                assert (route, model) == (["", "api", "feature"], "tiny-model")
                found = outer.features.get(f"{source}/{index}")
                self._say(404, {"error": "Not Found"}) if found is None else self._say(200, found)

            def _say(self, status: int, answer: Json) -> None:
                self.send_response(status)
                if status == 429 and retry_after:
                    self.send_header("Retry-After", retry_after)
                said = json.dumps(answer).encode()
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

        super().__init__(Handler)

    def answer(self, path: str, headers: Any, content: bytes, *, is_late: bool = False) -> tuple[int, Json]:
        if path != "/api/feature/upload-batch":
            return 404, {"error": "no such route"}
        if headers.get("X-Api-Key") != KEY:
            return 401, {"error": "Unauthorized"}
        body = json.loads(content)
        if (fault := next(faults_of(body), None)) is not None:
            return 400, {"error": fault, "path": "features"}
        self.late.append(body) if is_late else self.keep(body)
        return 200, {"message": f"{len(body['features'])} features created."}

    def keep(self, body: Json) -> None:
        self.calls.append(body)
        for one in body["features"]:
            there = self.features.setdefault(f"{body['source']}/{one['index']}", one | {"activations": []})
            there["activations"] = [*there["activations"], *one["activations"]]
            self.n_windows += len(one["activations"])
            self.n_explanations += len(one.get("explanations", ()))


def faults_of(body: Json) -> Iterator[str]:
    for name in ("modelId", "source"):
        if not body.get(name) or body[name] != body[name].lower():
            yield f"{name} must be lower case"
    features = body["features"]
    if not 1 <= len(features) <= 128:
        yield "1 to 128 features"
    if len({one["index"] for one in features}) != len(features):
        yield "All indexes must be unique."
    for one in features:
        if type(one["index"]) is not int or not 0 <= one["index"] <= 10_000_000:
            yield "index"
        if not 0 <= one.get("density", 0) <= 1:
            yield "density"
        for name in ("topLogits", "bottomLogits"):
            logits = one.get(name) or []
            if len(logits) > 20 or not all(logit["token"] and _is_number(logit["value"]) for logit in logits):
                yield name
        for explanation in one.get("explanations", []):
            if not 1 <= len(explanation["text"].encode("utf-16-le")) // 2 <= 512:
                yield "text must be at most 512 characters"
            if "modelName" in explanation or explanation.get("methodName", "np_max-act") not in TYPES:
                yield "Invalid Explanation Method Names"
        if not one["activations"]:
            yield "activations field must have at least 1 items"
        for activation in one["activations"]:
            tokens, values = activation["tokens"], activation["values"]
            if not 1 <= len(tokens) <= 1024 or len(tokens) != len(values):
                yield "tokens"
            if not all(tokens) or not all(map(_is_number, values)):
                yield "tokens must not be empty"  # yup: an empty string fails `required`
            if any("\0" in token for token in tokens):
                yield "NUL is no text of a Postgres"
            if not 0 <= activation.get("quantileFraction", 0) <= 1:
                yield "quantileFraction"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
