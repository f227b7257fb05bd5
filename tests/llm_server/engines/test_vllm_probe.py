"""A vLLM that refuses its probe is distinguished from one that is still loading. No process is started."""

import json
from types import SimpleNamespace

import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.child_server import ProbeRefused
from llm_server.engines.openai_http import EndpointUnavailable
from llm_server.engines.vllm_engine import VllmEngine


def ask(endpoint):
    engine = object.__new__(VllmEngine)  # the real one starts vLLM
    engine._config, engine._key = ServiceConfig(engine="vllm"), "key"
    engine._single = SimpleNamespace(prefix=[1, 2], tokens=lambda text: [3], answers=[7, 8], weights=(1.0, 0.0))
    engine._ask_probe(int(endpoint.url.split(":")[2].removesuffix("/v1")), 5.0)


def answer(tokens):
    return json.dumps({"choices": [{"index": 0, "logprobs": {"top_logprobs": [tokens]}}]})


def test_the_answers_log_probabilities_are_an_answer(endpoint):
    endpoint.failures.append((200, {}, answer({"token_id:7": -1.0, "token_id:8": -2.0})))
    ask(endpoint)


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (
            400,
            '{"error": {"message": "logprob_token_ids: extra inputs are not permitted"}}',
            "answered 400: logprob_token_ids: extra",
        ),
        (
            200,
            answer({" yes": -1.0}),
            r"no log-probabilities of the tokens asked for \(KeyError: 'token_id:7'\); is this vLLM older",
        ),
        (200, '{"choices": [{"index": 0, "logprobs": null}]}', "no log-probabilities of the tokens asked for"),
        (200, '{"choices": []}', "the answer was Score"),
    ],
)
def test_what_stays_as_it_is_ends_the_start(endpoint, status, body, complaint):
    endpoint.failures.append((status, {}, body))
    with pytest.raises(ProbeRefused, match=complaint):
        ask(endpoint)


def test_what_may_pass_is_asked_again(endpoint):
    endpoint.failures.append((503, {}, "loading"))
    with pytest.raises(EndpointUnavailable):
        ask(endpoint)
