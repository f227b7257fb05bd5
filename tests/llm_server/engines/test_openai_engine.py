"""An endpoint is asked in a form that it supports, each failure is one line, and the key is never shown."""

import contextlib
import dataclasses
import email.utils
import logging
import socket
import threading
import time
from argparse import Namespace

import httpx2
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.client import ServiceUnavailable
from llm_server.engines.building import check_engine
from llm_server.engines.openai_http import Endpoint, EndpointUnavailable
from llm_server.offline.judge_flags import opened_judge
from llm_server.rubrics.rubric import GradedAnswer, PairRubric, Rubric
from llm_server.service.calibration import calibrate
from tests.llm_server.fake_endpoint import MODEL, engines_of, let_attempts_take_long

KEY = "sk-secret-of-the-test"
RUBRIC = Rubric(
    id="r",
    version="1",
    goal="g",
    style="completion",
    instructions="Judge.",
    positive=" yes",
    negative=" no",
    threshold=None,
)
COMPARING = dataclasses.replace(RUBRIC, pairs=PairRubric(instructions="Which?", first=" A", second=" B"))
CHAT = dataclasses.replace(RUBRIC, style="chat", positive="Yes", negative="No")


@pytest.fixture
def make(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)
    yield from engines_of(endpoint, RUBRIC)


def test_a_completion_is_read_from_the_likeliest_tokens(make, endpoint):
    engine = make()
    (score,) = engine.score(["You kill the newt!"])
    assert score == pytest.approx((0.8, 0.9))
    path, body, headers = endpoint.requests[-1]
    assert path == "/v1/completions"
    assert body == {
        "model": MODEL,
        "prompt": "Judge.\n\nMessage: You kill the newt!\nAnswer:",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 20,
    }
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert engine.needs_calibration


def test_a_chat_is_read_from_the_likeliest_tokens_whatever_their_case_and_spaces(make, endpoint):
    endpoint.top = {"Yes": 0.4, " yes": 0.2, "no": 0.1, "Well": 0.1}
    (score,) = make(CHAT).score(["x"])
    assert score == pytest.approx((0.6 / 0.7, 0.7))
    path, body, _ = endpoint.requests[-1]
    assert path == "/v1/chat/completions"
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert body["messages"] == [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Message: x"}]


def test_an_answer_prefix_begins_the_models_turn(make, endpoint):
    make(dataclasses.replace(CHAT, answer_prefix="<think>\n\n</think>\n\n")).score(["x"])
    _, body, _ = endpoint.requests[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "<think>\n\n</think>\n\n"}
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)


def test_an_answer_that_is_not_listed_has_at_most_what_is_left(make, endpoint):
    endpoint.top = {" yes": 0.98, " perhaps": 0.015}
    (score,) = make().score(["x"])
    assert score == pytest.approx((0.98 / 0.985, 0.98))


def test_no_allowed_answer_is_no_answer_and_is_said_once(make, endpoint, caplog):
    endpoint.top = {" I": 0.9, " well": 0.05}
    (score,) = make().score(["x"])
    assert score.answer_mass == 0.0
    assert score.probability != score.probability
    assert "none of [' yes', ' no'] but with [(' I'," in caplog.text


@pytest.mark.parametrize("ignores", [False, True])
def test_without_logprobs_short_text_is_parsed_and_its_threshold_is_a_half(make, endpoint, ignores):
    endpoint.logprobs, endpoint.ignores_logprobs = 0, ignores
    engine = make()
    assert [score.probability for score in engine.score(["You kill it", "It's a wall."])] == [1.0, 0.0]
    assert calibrate(engine, RUBRIC).threshold == 0.5
    assert "logprobs" not in endpoint.requests[-1][1]
    assert endpoint.requests[-1][1]["max_tokens"] == 32
    assert engine.fingerprint != make_with_logprobs(make, endpoint).fingerprint


def make_with_logprobs(make, endpoint):
    endpoint.logprobs, endpoint.ignores_logprobs = 20, False
    return make()


@pytest.mark.parametrize(
    ("text", "probability"),
    [
        ("Yes.", 1.0),
        ("**No**, that is a wall", 0.0),
        ("no\nyes", 0.0),
        ("The answer is yes", None),
        ("Answer: yes", 1.0),
        ("<think>no, no, perhaps yes</think>\n\nYes", 1.0),
        ("It could be yes or no", None),
        ("I know nothing", None),
        ("<think>yes but it was cut", None),
        ("", None),
    ],
)
def test_text_is_parsed_tolerantly_but_never_guessed(make, endpoint, text, probability):
    endpoint.logprobs, endpoint.text = 0, text
    (score,) = make(CHAT).score(["x"])
    assert score.answer_mass == (0.0 if probability is None else 1.0)
    assert probability is None or score.probability == probability


def test_an_endpoint_is_asked_in_the_way_it_wants(make, endpoint):
    endpoint.logprobs = 5
    endpoint.wants = {
        "max_tokens": "Unsupported parameter: 'max_tokens' ... use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0 with this model.",
    }
    (score,) = make(CHAT).score(["You descend."])
    body = endpoint.requests[-1][1]
    assert (body["top_logprobs"], body["max_completion_tokens"]) == (5, 1)
    assert "temperature" not in body
    assert score.probability == pytest.approx(0.8)


def test_texts_cannot_write_the_markers_of_templates(make, endpoint):
    make().score(["<|im_end|> [INST] <s></s> <start_of_turn> $ - 5 gold [yn] a < b"])
    prompt = endpoint.requests[-1][1]["prompt"]
    assert "< |im_end|> [ INST] < s>< /s> < start_of_turn> $ - 5 gold [yn] a < b" in prompt


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_repeated_after_the_time_the_endpoint_asks_for(make, endpoint, status):
    engine = make()
    endpoint.failures += [
        (status, {"Retry-After": "0.2"}, "busy"),
        None,
        (status, {"Retry-After": email.utils.formatdate(0)}, "busy"),
    ]
    asked, began = len(endpoint.requests), time.monotonic()
    (score,) = engine.score(["You kill it"])
    assert score.probability == pytest.approx(0.8)
    assert len(endpoint.requests) == asked + 4
    assert time.monotonic() - began > 0.2


def test_what_lasts_fails_the_batch_within_the_deadline(make, endpoint, monkeypatch):
    let_attempts_take_long(monkeypatch)
    engine = make(engine_timeout_s=1.0)
    endpoint.failures.extend([(503, {}, "overloaded")] * 1000)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match=r"/v1/completions answered 503: overloaded"):
        engine.score(["x"] * 3)
    assert time.monotonic() - began < 8
    endpoint.failures.clear()
    assert len(engine.score(["x"] * 3)) == 3


def test_an_endpoint_that_hangs_fails_the_batch_and_closing_ends_the_wait(make, endpoint):
    engine = make(engine_timeout_s=1.0)
    endpoint.hold.clear()
    with pytest.raises(RuntimeError, match=r"did not answer within 1 s"):
        engine.score(["x"])
    with pytest.raises(EndpointUnavailable, match=r"if it loads its model first, raise service\.engine_timeout_s"):
        make(engine_timeout_s=1.0)


def test_closing_ends_a_wait_for_an_endpoint_that_hangs(make, endpoint):
    engine = make(engine_timeout_s=3600.0)
    endpoint.hold.clear()
    asked, raised = len(endpoint.requests), []

    def ask():
        try:
            engine.score(["x"])
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while len(endpoint.requests) == asked:
        time.sleep(0.01)
    engine.close()
    thread.join(60)
    assert raised == ["closed before everything was answered"]


def test_a_text_that_is_refused_is_no_answer_and_the_others_are_judged(make, endpoint, caplog):
    engine = make(endpoint_concurrency=1)
    endpoint.failures.append((400, {}, '{"error": {"message": "content filter"}}'))
    refused, judged = engine.score(["You kill it", "You kill it"])
    assert refused.answer_mass == 0.0
    assert judged.probability == pytest.approx(0.8)
    assert "no judgement of 'You kill it'" in caplog.text


def test_an_endpoint_that_is_busy_at_the_start_is_asked_again(make, endpoint):
    endpoint.failures += [(429, {"Retry-After": "0"}, "busy"), (503, {"Retry-After": "0"}, "loading")]
    assert make().score(["You kill it"])[0].probability == pytest.approx(0.8)


def test_an_endpoint_that_is_busy_for_long_is_no_mistake_of_the_configuration(make, endpoint):
    endpoint.failures.extend([(503, {"Retry-After": "0.05"}, "loading")] * 1000)
    with pytest.raises(EndpointUnavailable, match=r"answered 503: loading: start the endpoint"):
        make(engine_timeout_s=0.1)


@pytest.mark.parametrize("texts", [["a"], ["a", "b", "c"]])
def test_an_endpoint_that_refuses_a_harmless_text_too_fails_the_batch(make, endpoint, texts):
    engine = make(COMPARING)
    endpoint.failures.extend([(400, {}, "no more context")] * (len(texts) + 1))
    with pytest.raises(RuntimeError, match=r"^the endpoint refuses every request: .* answered 400: no more context$"):
        engine.score(texts)
    endpoint.failures.extend([(422, {}, "no more context")] * (len(texts) + 1))
    with pytest.raises(RuntimeError, match="refuses every request"):
        engine.score_pairs([(text, "x") for text in texts])


def test_texts_that_are_all_refused_are_no_answers_where_a_harmless_one_is_answered(make, endpoint):
    engine = make()
    endpoint.failures.extend([(400, {}, "content filter")] * 2)
    assert [score.answer_mass for score in engine.score(["a", "b"])] == [0.0, 0.0]


def test_what_a_failed_batch_had_answered_is_not_asked_again(make, endpoint):
    engine = make(endpoint_concurrency=1, engine_timeout_s=0.1)
    endpoint.failures.extend([(), (), (503, {"Retry-After": "0.2"}, "overloaded")])
    with pytest.raises(RuntimeError, match="overloaded"):
        engine.score(["You kill it", "b", "c"])
    asked = len(endpoint.requests)
    assert [score.probability for score in engine.score(["c", "b", "You kill it"])] == pytest.approx([0.2, 0.2, 0.8])
    assert len(endpoint.requests) == asked + 1
    engine.score(["b"])
    assert len(endpoint.requests) == asked + 2


@pytest.mark.parametrize("status", [b"200 OK", b"503 Service Unavailable", b"401 Unauthorized"])
def test_a_server_that_sends_byte_after_byte_does_not_stretch_the_deadline(status):
    stop = threading.Event()

    def drip(connection):
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(500):  # ten seconds
            connection.sendall(b" ")
            if stop.wait(0.02):
                return

    def serve():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            drip(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        served = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "", attempt_s=0.2, patience_s=0.0)
        began = time.monotonic()
        with pytest.raises(EndpointUnavailable, match=r"did not answer within 0\.2 s"):
            served.post("completions", {})
        assert time.monotonic() - began < 5
        stop.set()
        served.close()
        thread.join(60)


def test_no_more_requests_than_allowed_are_under_way(make, endpoint):
    assert len(make(endpoint_concurrency=3).score([f"text {n}" for n in range(20)])) == 20
    assert endpoint.most_at_once <= 3


def test_a_wrong_key_is_one_line_that_names_the_variable_and_not_the_key(make, endpoint, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    endpoint.key = "another"
    with pytest.raises(
        ValueError, match=r"answered 401: .*\*\*\*: the environment variable TEST_KEY .* is set but not accepted"
    ) as error:
        make()
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match=r"the environment variable TEST_KEY .* is not set"):
        make()
    endpoint.key = KEY
    monkeypatch.setenv("TEST_KEY", KEY)
    engine = make()
    for text in (str(error.value), caplog.text, repr(vars(engine)["fingerprint"]), engine.name):
        assert KEY not in text


def test_spaces_around_the_key_do_not_matter(make, endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", f" {KEY}\r\n")
    endpoint.key = KEY
    assert len(make().score(["x"])) == 1


@pytest.mark.parametrize("key", [f"{KEY}\nsecond", f"{KEY}\N{EN DASH}x", f"Bearer {KEY}", f"{KEY}\x7f"])
def test_a_key_that_no_header_can_hold_is_one_line_that_names_the_variable_and_not_the_key(make, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(ValueError, match=r"^the environment variable TEST_KEY .*set it to the key alone$") as error:
        make()
    assert KEY not in str(error.value)


def test_a_key_in_place_of_its_variable_is_refused_and_not_repeated(make):
    for name in ("sk-SECRET", "sk_secret_x", "hf_abcdef", "SECRET1234"):
        with pytest.raises(
            ValueError, match=r"^service\.endpoint_key_env: wanted the name of an environment variable"
        ) as error:
            make(endpoint_key_env=name)
        assert name not in str(error.value)


def test_the_transports_own_errors_do_not_repeat_the_key(endpoint, monkeypatch):
    served = Endpoint(endpoint.url, KEY, attempt_s=1.0, patience_s=0.0)

    def fail(*_, **__):
        raise httpx2.LocalProtocolError(f"Illegal header value {b'Bearer ' + KEY.encode()!r}")

    monkeypatch.setattr(served._client, "stream", fail)
    with pytest.raises(EndpointUnavailable, match=r"LocalProtocolError: Illegal header value b'Bearer \*\*\*'"):
        served.post("completions", {})
    served.close()


def test_a_key_does_not_go_over_a_network_unencrypted(make, monkeypatch):
    for host in ("example.com", "10.0.0.7:8000"):
        with pytest.raises(
            ValueError,
            match=r"^endpoint 'http://.*' is reached over http, which shows the key to the network: use https",
        ):
            make(endpoint=f"http://{host}/v1")
    Endpoint("https://example.com/v1", KEY, attempt_s=1.0, patience_s=0.0).close()
    Endpoint("http://10.0.0.7/v1", "", attempt_s=1.0, patience_s=0.0).close()


def test_an_unknown_model_is_one_line_with_those_that_are_there(make):
    with pytest.raises(ValueError, match=r"answered 404: The model 'oracel' does not exist: it has the models oracle"):
        make(model="oracel")


def test_a_wrong_address_is_one_line(make, endpoint):
    with pytest.raises(
        ValueError, match=r"answered 404: no such path: correct service\.endpoint, it should end like https://host/v1"
    ):
        make(endpoint=endpoint.url.removesuffix("/v1"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(
        EndpointUnavailable,
        match=r"cannot be reached \(ConnectError: .*\): start the endpoint, or correct service.endpoint",
    ):
        make(endpoint=f"http://127.0.0.1:{port}/v1", engine_timeout_s=0.1)


def test_a_verb_says_that_asking_again_may_help_where_the_endpoint_is_away(endpoint):
    endpoint.failures.extend([(503, {"Retry-After": "2"}, "loading")] * 10)
    config = ServiceConfig(
        engine="openai", model=MODEL, endpoint=endpoint.url, endpoint_key_env="", engine_timeout_s=0.1, store="memory"
    )
    with pytest.raises(ServiceUnavailable, match="answered 503: loading"), opened_judge(RUBRIC, config, Namespace()):
        pass


def test_something_that_is_no_api_is_one_line(make, endpoint):
    endpoint.failures.append((200, {}, "<html>hello</html>"))
    with pytest.raises(ValueError, match=r"no JSON object; is it the base URL of an API\?"):
        make()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "is no URL of an API: give a base URL"),
        ("127.0.0.1:8000/v1", "is no URL"),
        ("ftp://host/v1", "is no URL of an API"),
        ("http://host:eighty/v1", "is no URL"),
        ("https://user:secret@host/v1", "put the key into the variable"),
        ("https://host/v1?key=secret", "put the key into the variable"),
        (
            "https://x.openai.azure.com/openai?api-version=1&key=secret",
            "give Azure's URL without a version, https://NAME",
        ),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused_without_asking_and_without_repeating_a_key(url, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        check_engine(ServiceConfig(engine="openai", endpoint=url))
    assert "secret" not in str(error.value)


def test_the_fingerprint_tells_endpoints_models_and_styles_apart(make, endpoint):
    same, again, chat = make(), make(), make(CHAT)
    assert same.fingerprint == again.fingerprint
    assert same.fingerprint != chat.fingerprint
    assert same.fingerprint != make(endpoint=endpoint.url.replace("127.0.0.1", "localhost")).fingerprint


def test_pairs_need_a_rubric_that_compares(make):
    with pytest.raises(ValueError, match="has no `pairs` section"):
        make().score_pairs([("a", "b")])


@pytest.mark.parametrize("base", [RUBRIC, CHAT])
def test_an_item_is_asked_about_a_second_text_and_its_graded_answers_are_weighed(make, endpoint, base):
    words = ("much", "some", "none")
    answers = tuple(GradedAnswer(word=word, value=value) for word, value in zip(words, (1.0, 0.5, 0.0), strict=True))
    graded = dataclasses.replace(base, positive="", negative="", about_label="Goal:", examples=(), answers=answers)
    endpoint.top = {"much": 0.5, "some": 0.25, "none": 0.125}
    engine = make(base).under(graded)
    (score,) = engine.score([graded.asked_text(b"You kill\nit", b"win <|im_end|>")])
    assert score == pytest.approx(((0.5 + 0.125) / 0.875, 0.875))
    _, body, _ = endpoint.requests[-1]
    asked = body["messages"][-1]["content"] if base is CHAT else body["prompt"].partition("\n\n")[2]
    assert asked.removesuffix("\nAnswer:") == "Goal: win < |im_end|>\nMessage: You kill it"
    first = endpoint.requests[-2][1]
    assert "lichen" in str(first), "the form of request is found anew, with a harmless text of two lines"
