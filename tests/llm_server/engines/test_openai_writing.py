"""Writing at an endpoint: seeds and stops, what it refuses, and what it cuts off."""

import dataclasses

import pytest

from llm_server.annotation import Status
from llm_server.engines.openai_http import EndpointRefused
from llm_server.writing.answer_text import parsed_answer
from llm_server.writing.desk import WritingDesk
from llm_server.writing.loading import load_brief
from tests.llm_server.fake_endpoint import CHAT, COMPLETION, engines_of, let_attempts_take_long, refusal, said, tokens

BRIEF = load_brief("suggest_goals")


@pytest.fixture
def make(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret")
    yield from engines_of(endpoint, CHAT)


def is_writing(body):
    return "seed" in body or body.get("temperature") == BRIEF.temperature


def test_a_chat_gets_the_instructions_the_examples_and_the_fields(make, endpoint):
    engine = make()
    endpoint.answers = lambda body: said("- open the door\n- wait") if is_writing(body) else None
    assert [written.text for written in engine.write(BRIEF, "A <|im_end|> door.", [7, 8])] == [
        "- open the door\n- wait"
    ] * 2
    bodies = [body for _, body, _ in endpoint.requests if is_writing(body)]
    assert sorted(body["seed"] for body in bodies) == [7, 8]
    turns = bodies[0]["messages"]
    assert turns[0] == {"role": "system", "content": BRIEF.instructions}
    assert turns[-1]["content"] == "State: A < |im_end|> door."
    assert [turn["role"] for turn in turns[1:]] == ["user", "assistant"] * len(BRIEF.examples) + ["user"]
    assert bodies[0]["temperature"] == BRIEF.temperature
    assert tokens(bodies[0]) >= BRIEF.max_tokens
    assert "stop" not in bodies[0]
    assert not {"logprobs", "top_logprobs", "n"} & bodies[0].keys()


def test_a_completion_ends_with_its_line_also_where_the_endpoint_goes_on(make, endpoint):
    endpoint.text = " open the door; wait\n\nState: x"
    (written,) = make(COMPLETION).write(BRIEF, "A door.", [7])
    assert written.text == " open the door; wait"
    body = endpoint.requests[-1][1]
    assert body["stop"] == ["\n"]
    assert body["prompt"].endswith("Goals: open the box\n\nState: A door.\nGoals:")


def test_an_answer_that_the_limit_cut_off_keeps_what_was_finished(make, endpoint):
    engine = make()
    endpoint.answers = lambda body: said("open the door; pick up the", "length") if is_writing(body) else None
    (written,) = engine.write(BRIEF, "A door.", [7])
    assert written.is_cut
    assert parsed_answer(BRIEF, written.text, is_cut=True) == "open the door"


@pytest.mark.parametrize(
    "answer",
    [
        said("I can't help with that.", "content_filter"),
        said(None, refusal="I can't help with that."),
        said(""),
        said("<think>open the door; or"),
        refusal("this prompt is not allowed", 403),
    ],
    ids=str,
)
def test_where_the_endpoint_refuses_a_text_nothing_is_written(make, endpoint, answer):
    engine = make()
    endpoint.answers = lambda body: answer if is_writing(body) else None
    (writing,) = WritingDesk(engine, CHAT, None, 64).write(BRIEF, {"state": b"A door."}, 1, 0)
    assert (writing.status, writing.text) == (Status.UNPARSED, "")


def test_where_it_refuses_everything_the_request_fails_with_what_to_do(make, endpoint):
    engine = make()
    endpoint.key = "another"
    with pytest.raises(EndpointRefused, match=r"the environment variable TEST_KEY .* is set but not accepted"):
        engine.write(BRIEF, "A door.", [7])


def test_a_parameter_that_it_does_not_take_is_left_out_from_then_on(make, endpoint):
    endpoint.text = "open the door\nState: x"
    endpoint.wants = {"seed": "Unsupported parameter: 'seed'", "stop": "Unsupported parameter: 'stop'"}
    engine = make(COMPLETION)
    for _ in range(2):
        assert engine.write(BRIEF, "A door.", [7])[0].text == "open the door"
    written = [body for _, body, _ in endpoint.requests if body.get("temperature") == BRIEF.temperature]
    assert [sorted(body.keys() & {"seed", "stop"}) for body in written][-2:] == [[], []]
    assert len(written) <= 5


def test_a_model_that_thinks_first_gets_the_room_for_its_thoughts(make, endpoint):
    def answer(body):
        if tokens(body) < 1024:
            return said("", "length", reasoning_content="hm")
        return said("open the door" if "seed" in body else "Yes")

    endpoint.answers = answer
    assert make().write(BRIEF, "A door.", [7])[0].text == "open the door"


def test_tokens_are_those_that_the_endpoint_counts(make, endpoint):
    engine = make()
    counted = {"usage": {"completion_tokens": 9}}
    endpoint.answers = lambda body: (200, said("open the door")[1] | counted) if is_writing(body) else None
    assert engine.write(BRIEF, "A door.", [7])[0].tokens == 9


def test_closing_ends_a_writing_that_waits(make, endpoint, monkeypatch):
    let_attempts_take_long(monkeypatch)
    engine = make()
    engine.close()
    with pytest.raises(RuntimeError):
        engine.write(dataclasses.replace(BRIEF, max_tokens=8), "A door.", [7])
