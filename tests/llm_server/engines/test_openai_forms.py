"""Endpoints of many kinds: each is asked in a form that it accepts, and a failure is never read as an answer."""

import json

import pytest

from llm_server.engines.answers import text_of_piece
from llm_server.engines.openai_forms import Answer
from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable
from tests.llm_server.fake_endpoint import (
    BY_LOGPROBS,
    BY_TEXT,
    CHAT,
    TEXTS,
    engines_of,
    let_attempts_take_long,
    probabilities,
    refusal,
    said,
    tokens,
)


@pytest.fixture
def make(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    yield from engines_of(endpoint, CHAT)


NO_LOGPROBS = [
    refusal("You are not allowed to request logprobs from this model", 403),
    refusal("Logprobs is not enabled for models/some-model"),
    refusal("log probabilities are not supported", 422),
    refusal("Log-Probs unsupported", 501),
    refusal("No endpoints found that support logprobs", 404),
    refusal("Your API key may not request logprobs", 401),
    refusal(
        "Provider returned error", metadata={"raw": '{"detail": "top_logprobs: unknown field"}', "provider_name": "x"}
    ),
    (
        422,
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]},
    ),
    (
        400,
        [
            {
                "error": {
                    "code": 400,
                    "message": "Unknown name 'LOGPROBS': Cannot find field.",
                    "status": "INVALID_ARGUMENT",
                }
            }
        ],
    ),
    (200, {"error": {"code": 400, "message": "logprobs: not supported by this model"}}),
    (200, {"error": {"type": "invalid_request_error", "message": "unknown parameter: logprobs"}}),
    refusal("logprobs is not supported for models created with logits_all=False", 500, type="internal_server_error"),
    refusal("Unsupported parameter"),
    refusal("Forbidden", 403),
]


@pytest.mark.parametrize("refused", NO_LOGPROBS)
def test_log_probabilities_refused_in_whatever_words_leave_text(make, endpoint, refused):
    endpoint.answers = lambda body: refused if body.get("logprobs") else None
    engine = make()
    assert engine.name == "openai/chat/text"
    assert probabilities(engine) == BY_TEXT
    assert "temperature" in endpoint.requests[-1][1], "nothing else is left out"
    assert endpoint.requests[-1][1]["messages"][0]["role"] == "system"


@pytest.mark.parametrize(
    "complaint",
    [
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead.",
        "Could not finish the message because max_tokens or model output limit was reached. Please try again with"
        " higher max_tokens.",
        "max_output_tokens must be at least 16",
        "bad request",
    ],
)
def test_an_endpoint_that_wants_room_for_more_tokens_gets_it_and_is_read_by_the_first(make, endpoint, complaint):
    endpoint.answers = lambda body: refusal(complaint) if tokens(body) < 16 else None
    engine = make()
    assert engine.name == "openai/chat/logprobs20"
    assert probabilities(engine) == BY_LOGPROBS
    assert tokens(endpoint.requests[-1][1]) == 16


@pytest.mark.parametrize(
    "refused",
    [
        refusal("System role not supported"),
        refusal("Developer instruction is not enabled for models/gemma-3-27b-it"),
        refusal("Conversation roles must alternate user/assistant/user/assistant/..."),
        refusal("Only user and assistant roles are supported!", 422),
        refusal("Unsupported value: 'messages[0].role' does not support 'system' with this model."),
        refusal("invalid conversation"),
    ],
)
def test_a_model_without_a_system_turn_reads_the_instructions_in_the_first_user_turn(make, endpoint, refused):
    with_system = make()
    endpoint.answers = lambda body: refused if body["messages"][0]["role"] == "system" else None
    engine = make()
    assert engine.name == "openai/chat/logprobs20"
    assert probabilities(engine) == BY_LOGPROBS
    first, *rest = endpoint.requests[-1][1]["messages"]
    assert first == {"role": "user", "content": "Judge.\n\nMessage: You kill the jackal!"}
    assert [turn["role"] for turn in rest] == ["assistant", "user", "assistant", "user"]
    assert engine.fingerprint != with_system.fingerprint, "it reads another prompt"


def test_several_refusals_one_after_another(make, endpoint):
    def answers(body):
        if "max_tokens" in body:
            return refusal("Unsupported parameter: use 'max_completion_tokens' instead of 'max_tokens'.")
        if body["max_completion_tokens"] < 16:
            return refusal("max_completion_tokens: minimum is 16")
        if "temperature" in body:
            return refusal("Temperature is not supported")
        if body["messages"][0]["role"] == "system":
            return refusal("no system messages, please")
        return refusal("top_logprobs: at most 5") if body.get("top_logprobs", 0) > 5 else None

    endpoint.answers, endpoint.logprobs = answers, 5
    engine = make()
    assert engine.name == "openai/chat/logprobs5"
    assert probabilities(engine) == BY_LOGPROBS


def test_a_refusal_of_everything_is_told_in_the_endpoints_first_words(make, endpoint):
    count = iter(range(100))
    endpoint.answers = lambda body: refusal(f"no, number {next(count)}")
    with pytest.raises(ValueError, match=r"answered 400: no, number 0$"):
        make()
    assert len(endpoint.requests) < 12


PASSING = [
    {"error": {"message": "upstream is overloaded", "code": 502}},
    {"error": {"message": "rate limit exceeded", "code": 429}},
    {"error": {"message": "rate limit exceeded", "type": "rate_limit_error"}},
    {"error": {"message": "try later", "code": "RESOURCE_EXHAUSTED"}},
    {"error": "the provider is not there"},
    {"error": {"message": "origin timed out", "code": 524}},
    {"object": "error", "message": "engine is starting", "code": 503},
    {"choices": None},
    {"choices": []},
    {"choices": [None]},
    {"detail": "something"},
    {"choices": [{"error": {"code": 504, "message": "timed out"}, "message": {"content": ""}}]},
    {"choices": [{"finish_reason": "error", "message": {"content": None}}]},
    "",
]


@pytest.mark.parametrize("content", PASSING)
@pytest.mark.parametrize("at", ["the start", "later"])
def test_an_error_under_status_200_is_asked_again_and_changes_nothing(make, endpoint, monkeypatch, content, at):
    monkeypatch.setattr("llm_server.engines.openai_http._wait", lambda state: 0.01)
    failures = [(200, {}, json.dumps(content) if content else "")] * 3
    if at == "the start":
        endpoint.failures.extend(failures)
    engine = make()
    if at == "later":
        endpoint.failures.extend(failures)
    assert engine.name == "openai/chat/logprobs20"
    assert probabilities(engine) == BY_LOGPROBS
    assert not endpoint.failures


def test_an_error_under_status_200_that_lasts_fails_the_batch_in_its_own_words(make, endpoint, monkeypatch):
    let_attempts_take_long(monkeypatch)
    engine = make(engine_timeout_s=1.0)
    endpoint.answers = lambda body: (200, {"error": {"message": "no provider", "code": 503}})
    with pytest.raises(EndpointUnavailable, match="answered 200, an error 503: no provider"):
        engine.score(TEXTS)


def test_log_probabilities_that_go_missing_are_asked_for_again_then_fail_the_batch(make, endpoint, caplog):
    engine = make(endpoint_concurrency=1)
    bare = said("Yes")
    answers = [bare, None, bare, bare, None]
    endpoint.answers = lambda body: answers.pop(0) if answers else None
    assert probabilities(engine) == BY_LOGPROBS, "another provider behind the same name answered once"
    endpoint.answers = lambda body: bare
    with pytest.raises(
        EndpointRefused, match=r"refuses every request: .* gave no log-probabilities, as it did at first"
    ):
        engine.score(TEXTS)
    assert engine.name == "openai/chat/logprobs20"


def test_a_text_that_a_filter_withholds_is_no_answer_and_is_not_asked_again(make, endpoint):
    engine = make(endpoint_concurrency=1)
    for withheld in (
        said(None, "content_filter"),
        said(None, "content_filter: PROHIBITED_CONTENT"),
        said(None, refusal="I cannot judge this."),
    ):
        asked = len(endpoint.requests)
        endpoint.answers = lambda body, withheld=withheld: (
            withheld if "newt" in body["messages"][-1]["content"] else None
        )
        assert [score.answer_mass for score in engine.score(TEXTS)] == [0.0, pytest.approx(0.9)]
        assert len(endpoint.requests) == asked + 2


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "No, wait."}, {"type": "text", "text": "{}"}],
        [{"type": "text", "text": "{}"}],
        [{"type": "output_text", "text": "{}"}],
        ["{}"],
        {"type": "text", "text": "{}"},
    ],
)
def test_content_in_parts_is_read_without_its_thoughts(make, endpoint, content):
    def answers(body):
        word = "Yes" if any(good in body["messages"][-1]["content"] for good in ("kill", "gold")) else "No"
        return said(json.loads(json.dumps(content).replace("{}", word)))

    endpoint.answers = answers
    assert probabilities(make()) == BY_TEXT
    assert Answer({"choices": [{"message": {"content": 3}}]}).text == ""


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("\u0120Yes", "\u0120No"),
        ("\u2581Yes", "\u2581No"),
        ("\u010aYes", "\u2581\u2581no"),
        (" Yes", "\tNo"),
        ("Yes", "\u0120no"),
    ],
)
def test_tokens_may_be_pieces_of_the_tokenizer(make, endpoint, yes, no):
    endpoint.top = {yes: 0.6, no: 0.3, "\u0120Well": 0.05}
    (score,) = make().score(["x"])
    assert score == pytest.approx((2 / 3, 0.9))


def test_a_piece_reads_as_the_text_that_it_stands_for():
    pieces = {
        "\u0120gr\u00c3\u00b6\u00c3\u0141er": " größer",
        "größer": "größer",
        " é": " é",
        "\u2581ж": " ж",
        "ж": "ж",
        "\u0120": " ",
        "A": "A",
    }
    assert {piece: text_of_piece(piece) for piece in pieces} == pieces


def test_log_probabilities_above_0_and_that_are_none_do_no_harm(make, endpoint):
    listed = [{"token": "Yes", "logprob": 1000.0}, {"token": "No", "logprob": -9999.0}]
    logprobs = {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": listed}]}
    endpoint.answers = lambda body: (200, {"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]})
    (score,) = make().score(["x"])
    assert score == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("value", [None, float("nan"), float("-inf")])
def test_a_token_without_a_log_probability_is_left_out(make, endpoint, value):
    """JSON has no infinity."""
    listed = [{"token": "Well", "logprob": value}, {"token": "Yes", "logprob": 0.0}, {"token": "No", "logprob": -99.0}]
    logprobs = {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": listed}]}
    endpoint.answers = lambda body: (200, {"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]})
    engine = make()
    assert engine.name == "openai/chat/logprobs20"
    assert engine.score(["x"]) == [pytest.approx((1.0, 1.0))]


def test_a_chats_log_probabilities_may_have_the_form_of_a_completions(make, endpoint):
    logprobs = {"content": None, "tokens": ["Yes"], "top_logprobs": [{"Yes": -0.1, "No": -3.0}]}
    endpoint.answers = lambda body: (200, {"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]})
    assert make().name == "openai/chat/logprobs20"


def thinks_for(needed, unfinished):
    """A model that gives no log-probabilities and answers after `needed` tokens."""

    def answers(body):
        if body.get("logprobs"):
            return refusal("logprobs are not supported with reasoning models")
        if tokens(body) < needed:
            return unfinished
        word = "Yes" if any(good in body["messages"][-1]["content"] for good in ("kill", "gold")) else "No"
        return (
            said(f"<think>Yes? No?</think>\n\n{word}")
            if unfinished == LOUD
            else said(word, reasoning_content="Yes? No?")
        )

    return answers


LOUD = said("<think>Well, a lichen", "length")
UNFINISHED = [
    LOUD,
    said("", "length"),
    said(None, "length", reasoning_content="Well"),
    said("Okay, so the message says that", "length"),
    said("", None, reasoning="Well"),
    refusal("Could not finish the message because max_tokens or model output limit was reached."),
]


@pytest.mark.parametrize("unfinished", UNFINISHED)
@pytest.mark.parametrize("needed", [200, 3000, 16_000])
def test_a_reasoning_model_gets_as_much_room_as_it_needs(make, endpoint, unfinished, needed):
    endpoint.answers = thinks_for(needed, unfinished)
    engine = make()
    assert engine.name == "openai/chat/text"
    assert probabilities(engine) == BY_TEXT
    room = tokens(endpoint.requests[-1][1])
    assert needed <= room < 16 * max(needed, 64)


def test_a_text_that_takes_longer_thought_than_the_first_is_asked_again_with_more_room(make, endpoint):
    endpoint.answers = thinks_for(200, said("", "length"))
    engine = make(endpoint_concurrency=1)
    endpoint.answers = thinks_for(3000, said("", "length"))
    assert probabilities(engine) == BY_TEXT
    endpoint.answers = thinks_for(100_000, said("", "length"))
    assert [score.answer_mass for score in engine.score(TEXTS)] == [0.0, 0.0]
    assert len(endpoint.requests) < 30


def test_a_model_whose_first_token_is_a_thought_is_read_from_text(make, endpoint):
    """Its log-probabilities are those of its thoughts."""

    def answers(body):
        if body.get("logprobs"):
            top = [{"token": "<think>", "logprob": -0.001}, {"token": "Yes", "logprob": -9.0}]
            return 200, {
                "choices": [{"message": {"content": "<think>"}, "logprobs": {"content": [{"top_logprobs": top}]}}]
            }
        return thinks_for(500, LOUD)(body)

    endpoint.answers = answers
    engine = make()
    assert engine.name == "openai/chat/text"
    assert probabilities(engine) == BY_TEXT


def test_a_model_that_only_talks_gets_no_room_for_it(make, endpoint, caplog):
    endpoint.logprobs, endpoint.text = 0, "It could well be that"
    assert probabilities(make()) == pytest.approx([float("nan")] * 2, nan_ok=True)
    assert tokens(endpoint.requests[-1][1]) == 32
    assert "with 'It could well be that'" in caplog.text


def test_more_room_than_an_endpoint_has_is_not_asked_for_again(make, endpoint):
    def answers(body):
        if tokens(body) > 2000:
            return refusal("max_tokens is too large: this model supports at most 2000 completion tokens")
        return thinks_for(100_000, said("", "length"))(body)

    endpoint.answers = answers
    assert [score.answer_mass for score in make().score(TEXTS)] == [0.0, 0.0]


def test_a_model_that_thinks_longer_than_the_deadline_says_what_to_raise(make, endpoint, monkeypatch):
    let_attempts_take_long(monkeypatch)

    def answers(body):
        if tokens(body) > 32 and not body.get("logprobs"):
            return 503, {"error": {"message": "still thinking"}}
        return thinks_for(200, said("", "length"))(body)

    endpoint.answers = answers
    with pytest.raises(
        EndpointUnavailable, match=r"the model thinks before it answers: raise service\.engine_timeout_s"
    ):
        make(engine_timeout_s=1.0)
