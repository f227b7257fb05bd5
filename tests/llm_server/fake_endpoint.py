"""An endpoint with OpenAI's protocol, in this process, with answers and failures set by the test."""

import dataclasses
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.openai_engine import OpenAIEngine
from llm_server.rubrics.rubric import Example, Rubric

MODEL = "oracle"
POSITIVE = ("kill", "descend", "gold")
CHAT = Rubric(
    id="r", version="1", goal="g", style="chat", instructions="Judge.", positive="Yes", negative="No", threshold=None,
    examples=(Example(item="You kill the jackal!", positive=True), Example(item="It's solid stone.", positive=False)),
)  # fmt: skip
COMPLETION = dataclasses.replace(CHAT, style="completion", positive=" yes", negative=" no")
TEXTS = ["You kill the newt!", "It's a wall."]
BY_LOGPROBS, BY_TEXT = pytest.approx([0.8, 0.2]), [1.0, 0.0]


class FakeEndpoint:
    """Gives the first answer where the text holds one of POSITIVE, else the second; for pairs likewise."""

    def __init__(self) -> None:
        self.key = ""
        self.logprobs = 20
        """Maximum number of log-probabilities; more are refused, 0 gives none at all."""
        self.ignores_logprobs = False
        self.wants: dict[str, str] = {}
        """Refused parameters, each with its error message."""
        self.top: dict[str, float] | None = None
        """Probabilities of the most likely tokens, overriding the default."""
        self.text: str | None = None
        """The text of its answer, overriding the default."""
        self.answers: Callable[[dict[str, Any]], tuple[int, Any] | None] = lambda body: None
        """Status and content for a request's body, overriding all of the above; None for no override."""
        self.failures: deque[tuple[int, dict[str, str], str] | None] = deque()
        """Status, headers and body of the next answers; None breaks the connection."""
        self.hold = threading.Event()
        """Requests wait for this event."""
        self.hold.set()
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": MODEL}]}
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"error": {"message": "no such path"}}
        if body["model"] != MODEL:
            return 404, {"error": {"message": f"The model '{body['model']}' does not exist"}}
        if given := self.answers(body):
            return given
        for parameter, complaint in self.wants.items():
            if parameter in body:
                return 400, {"error": {"message": complaint}}
        is_chat = path.endswith("chat/completions")
        asked = body.get("top_logprobs" if is_chat else "logprobs") or 0
        if asked > self.logprobs and not self.ignores_logprobs:
            return 400, {"error": {"message": f"logprobs must be at most {self.logprobs}"}}
        return 200, {"choices": [self._choice(body, is_chat, 0 if self.ignores_logprobs else asked)]}

    def _choice(self, body: dict[str, Any], is_chat: bool, asked: int) -> dict[str, Any]:
        prompt = (
            [turn for turn in body["messages"] if turn["role"] == "user"][-1]["content"] if is_chat else body["prompt"]
        )
        top = self.top or self._probabilities(prompt)
        said = self.text if self.text is not None else max(top, key=lambda token: top[token])
        tokens = {token: math.log(p) for token, p in sorted(top.items(), key=lambda item: -item[1])[:asked]}
        if is_chat:
            listed = [{"token": token, "logprob": value} for token, value in tokens.items()]
            logprobs = {"content": [listed[0] | {"top_logprobs": listed}]} if asked else None
            return {"index": 0, "message": {"role": "assistant", "content": said}, "logprobs": logprobs}
        return {"index": 0, "text": said, "logprobs": {"top_logprobs": [tokens]} if asked else None}

    @staticmethod
    def _probabilities(prompt: str) -> dict[str, float]:
        texts = [line for line in prompt.rpartition("\n\n")[2].splitlines() if not line.endswith(":")]
        good = [any(word in text for word in POSITIVE) for text in texts]
        if len(good) == 1:
            p = 0.8 if good[0] else 0.2
            return {" yes": 0.9 * p, " no": 0.9 * (1 - p), " maybe": 0.05}
        p = 0.5 + 0.3 * (good[0] - good[1])
        return {" A": 0.9 * p, " B": 0.9 * (1 - p), " C": 0.05}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._respond({})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.requests.append((self.path, body, dict(self.headers)))
                    endpoint._at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._at_once)
                endpoint.hold.wait(30)
                with endpoint._lock:
                    endpoint._at_once -= 1
                self._respond(body)

            def _respond(self, body: dict[str, Any]) -> None:
                headers: dict[str, str] = {}
                with endpoint._lock:
                    failure = endpoint.failures.popleft() if endpoint.failures else ()
                if failure is None:
                    self.close_connection = True
                    return
                if endpoint.key and self.headers["Authorization"] != f"Bearer {endpoint.key}":
                    status, text = (
                        401,
                        json.dumps({"error": {"message": f"Incorrect key: {self.headers['Authorization']}"}}),
                    )
                elif failure:
                    status, headers, text = failure
                else:
                    status, content = endpoint.answer(self.path, body)
                    text = json.dumps(content)
                payload = text.encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(payload))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def engines_of(endpoint: FakeEndpoint, default: Rubric) -> Iterator[Callable[..., OpenAIEngine]]:
    """The body of a fixture: makes engines that ask `endpoint`, with its key in $TEST_KEY, and closes them."""
    engines = []

    def make(rubric: Rubric = default, **settings: Any) -> OpenAIEngine:
        given = {
            "engine": "openai",
            "model": MODEL,
            "endpoint": endpoint.url,
            "endpoint_key_env": "TEST_KEY",
            "engine_timeout_s": 10.0,
        }
        engines.append(OpenAIEngine(ServiceConfig(**given | settings), rubric))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def let_attempts_take_long(monkeypatch: Any) -> None:
    """For a short deadline that must not fail a request to this loaded machine's own endpoint."""
    monkeypatch.setattr("llm_server.engines.openai_engine.LEAST_ATTEMPT_S", 60.0)


def refusal(message: str, status: int = 400, **more: Any) -> tuple[int, Any]:
    """An error answer in OpenAI's form."""
    return status, {"error": {"message": message, **more}}


def said(content: Any, finish_reason: str = "stop", **message: Any) -> tuple[int, Any]:
    """A chat answer with this content."""
    return 200, {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}]
    }


def tokens(body: dict[str, Any]) -> int:
    """How many tokens a request allows, under either name."""
    return body.get("max_tokens") or body["max_completion_tokens"]


def probabilities(engine: OpenAIEngine) -> list[float]:
    """What the engine says of TEXTS."""
    return [score.probability for score in engine.score(TEXTS)]
