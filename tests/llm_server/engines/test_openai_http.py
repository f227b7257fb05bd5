"""What an endpoint's errors mean: credit, keys, redirections, deadlines, proxies."""

import json
import time

import pytest

from llm_server.engines.openai_http import Endpoint, EndpointRefused, EndpointUnavailable, error_of, error_status
from llm_server.offline.annotate import main as annotate
from tests.llm_server.fake_endpoint import (
    BY_LOGPROBS,
    CHAT,
    TEXTS,
    engines_of,
    let_attempts_take_long,
    probabilities,
    refusal,
)
from tests.refusals import assert_refused


@pytest.fixture
def make(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    yield from engines_of(endpoint, CHAT)


NO_QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    "refused",
    [
        refusal(NO_QUOTA, 429, type="insufficient_quota", code="insufficient_quota"),
        refusal("Insufficient Balance", 402),
        refusal("Your credit balance is too low", 400),
        refusal("Billing hard limit has been reached", 400, code="billing_hard_limit_reached"),
        (200, {"error": {"message": "Insufficient credits. Add more", "code": 402}}),
        (200, {"error": {"message": NO_QUOTA, "code": "insufficient_quota"}}),
    ],
)
def test_no_credit_left_is_said_at_once(make, endpoint, refused):
    endpoint.answers = lambda body: refused
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"the account has no credit left; add some, or set the environment variable TEST_KEY"
    ):
        make()
    assert len(endpoint.requests) == 1
    assert time.monotonic() - began < 5


def test_a_rate_limit_in_the_words_of_a_quota_is_asked_again(make, endpoint):
    body = json.dumps([{"error": {"code": 429, "message": NO_QUOTA, "status": "RESOURCE_EXHAUSTED"}}])
    endpoint.failures.append((429, {"Retry-After": "0.1"}, body))
    assert probabilities(make()) == BY_LOGPROBS


@pytest.mark.parametrize(
    "refused",
    [
        refusal("Incorrect API key provided", 401),
        refusal("API key not valid. Please pass a valid API key.", 400),
        refusal("Authentication failed", 403),
        refusal("nope", 400, code="invalid_api_key"),
        (200, {"error": {"code": 401, "message": "User not found."}}),
        (200, {"error": {"message": "No API key provided"}}),
        (200, {"error": "Unauthorized"}),
    ],
)
def test_a_wrong_key_is_said_in_whatever_words_it_is_refused(make, endpoint, monkeypatch, refused):
    endpoint.answers = lambda body: refused
    with pytest.raises(
        ValueError, match=r"the environment variable TEST_KEY \(service\.endpoint_key_env\) is set but not accepted"
    ):
        make()
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match=r"the environment variable TEST_KEY .* is not set"):
        make()


def test_a_key_that_may_not_use_the_model_and_one_that_expires_are_said(make, endpoint):
    endpoint.answers = lambda body: refusal("Country not supported", 403)
    with pytest.raises(
        ValueError, match=r"Country not supported: the key in .* is not allowed this model, or not from here"
    ):
        make()
    endpoint.answers = lambda body: None
    engine = make()
    endpoint.answers = lambda body: refusal("expired", 401)
    with pytest.raises(EndpointRefused, match=r"expired: the environment variable TEST_KEY .* is set but not accepted"):
        engine.score(TEXTS)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed_and_says_where_it_leads(make, endpoint, status):
    endpoint.failures.append(
        (status, {"Location": "https://user:secret@api.example.com/v1/chat/completions?token=secret"}, "moved")
    )
    with pytest.raises(
        ValueError,
        match=r"redirects to https://api\.example\.com/v1/chat/completions: .*\.endpoint=https://api\.example\.com/v1$",
    ) as error:
        make()
    assert "secret" not in str(error.value)
    endpoint.failures.append((status, {"Location": "/login"}, "moved"))
    with pytest.raises(ValueError, match=rf"redirects to {endpoint.url.removesuffix('/v1')}/login: "):
        make()


@pytest.mark.parametrize("header", ["\u00b2", "soon", "-5", "nan", "1e400", "Mon, 99 Foo 99999 00:00:00 GMT", ""])
def test_a_retry_after_that_is_no_number_is_passed_over(make, endpoint, monkeypatch, header):
    monkeypatch.setattr("llm_server.engines.openai_http._backoff", lambda state: 0.01)
    engine = make()
    endpoint.failures.append((429, {"Retry-After": header}, "slow down"))
    assert probabilities(engine) == BY_LOGPROBS


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"ALL_PROXY": "socks5://name:secret@127.0.0.1:1"},
            r"the proxy in ALL_PROXY speaks SOCKS, .*`pip install socksio`",
        ),
        ({"https_proxy": "socks5h://127.0.0.1:1"}, r"the proxy in https_proxy speaks SOCKS"),
        (
            {"HTTPS_PROXY": "ftp://name:secret@127.0.0.1:1"},
            r"HTTPS_PROXY names no proxy that can be used, wanted a URL such as http://host:3128",
        ),
        ({"HTTPS_PROXY": "http://name:secret@host:port"}, r"HTTPS_PROXY names no proxy that can be used"),
        ({"SSL_CERT_FILE": "/nowhere.pem"}, r"SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read"),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_one_line(variables, said, monkeypatch, tmp_path, capsys):
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        for spelt in (name, name.lower()):
            monkeypatch.delenv(spelt, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"^endpoint 'https://host/v1' cannot be reached: {said}") as error:
        Endpoint("https://host/v1", "", attempt_s=1.0, patience_s=0.0)
    assert "secret" not in str(error.value)
    Endpoint("http://127.0.0.1:1/v1", "", attempt_s=1.0, patience_s=0.0).close()
    (tmp_path / "captions.jsonl").write_text('{"caption": "x"}\n')
    asked = [
        "--engine=openai",
        "--endpoint=https://host/v1",
        "--model=m",
        f"--out={tmp_path / 'out.sqlite'}",
        str(tmp_path / "captions.jsonl"),
    ]
    code = annotate(asked)
    lines = capsys.readouterr().err.splitlines()
    assert_refused(code, "\n".join(line for line in lines if not line.startswith("preparing")), "cannot be reached")


def test_an_answer_is_no_error():
    choice = {"message": {"content": "Yes"}, "finish_reason": "stop"}
    for answer in (
        {"choices": [choice]},
        {"choices": [choice], "error": None},
        {"choices": [{**choice, "error": None}], "object": "chat.completion"},
        {"choices": [choice], "error": {"message": "", "type": "", "code": None}},
    ):
        assert error_of(answer, wants_choice=True) is None
    assert error_of({"data": []}, wants_choice=False) is None
    assert error_status({"code": "7"}, 200) == error_status("?", 200) == 502
    assert error_status({"code": 429}, 503) == 503


@pytest.mark.parametrize("status", [498, 520, 524, 530])
def test_failures_of_proxies_pass(make, endpoint, monkeypatch, status):
    monkeypatch.setattr("llm_server.engines.openai_http._backoff", lambda state: 0.01)
    endpoint.failures.extend([(status, {}, "origin timed out")] * 3)
    assert probabilities(make()) == BY_LOGPROBS


def test_any_status_of_success_is_one(make, endpoint):
    answer = endpoint.answer
    endpoint.answer = lambda path, body: (201, answer(path, body)[1])
    assert probabilities(make()) == BY_LOGPROBS


@pytest.mark.parametrize("status", [403, 451])
def test_a_text_that_a_filter_refuses_is_no_answer_and_the_others_are_judged(make, endpoint, status):
    engine = make()
    flagged = refusal("Your input was flagged", status, metadata={"reasons": ["violence"]})
    endpoint.answers = lambda body: flagged if "newt" in body["messages"][-1]["content"] else None
    assert [score.answer_mass for score in engine.score(TEXTS)] == [0.0, pytest.approx(0.9)]
    endpoint.answers = lambda body: flagged
    with pytest.raises(EndpointRefused, match=f"refuses every request: .* answered {status}: Your input was flagged"):
        engine.score(TEXTS)


@pytest.mark.parametrize("failure", [refusal("Internal server error", 500), (200, {"choices": None})])
def test_a_text_at_which_the_endpoint_always_fails_does_not_fail_the_others_for_ever(
    make, endpoint, failure, monkeypatch
):
    let_attempts_take_long(monkeypatch)
    engine = make(engine_timeout_s=1.0)
    endpoint.answers = lambda body: failure if "newt" in body["messages"][-1]["content"] else None
    assert [score.answer_mass for score in engine.score(TEXTS)] == [0.0, pytest.approx(0.9)]
    endpoint.answers = lambda body: failure
    with pytest.raises(EndpointUnavailable):
        engine.score(["You kill the newt!", "It's a wall, again."])


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"error": "Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway"}),
        (405, {"detail": "Method Not Allowed"}),
        (200, {"error": {"message": "The model `x` does not exist"}}),
    ],
)
def test_a_wrong_path_or_model_is_said_at_once_under_whatever_status(make, endpoint, answer):
    endpoint.answer = lambda path, body: answer
    with pytest.raises(ValueError, match=r"correct service\.endpoint, it should end like https://host/v1"):
        make()
    assert len(endpoint.requests) < 12


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"id": "oracle"}, {"id": "other"}], "it has the models oracle, other: set service.model to one of them"),
        ({"data": [{"id": f"m{n}"} for n in range(50)] + [{"id": "oracle"}]}, "models oracle, m0, .* and 31 others"),
        ({"data": None}, "it lists no models: load one there"),
        ({"data": [{"id": "oracel"}]}, "it lists this model; if it offers no chat requests"),
    ],
)
def test_the_models_that_are_there_are_read_in_every_form(make, endpoint, models, said):
    endpoint.answer = lambda path, body: (200, models) if path == "/v1/models" else refusal("no such model", 404)
    with pytest.raises(ValueError, match=said):
        make(model="oracel")
