"""A campaign's author behind the annotation service, in this process and over gRPC."""

import json
import threading

import pytest

from cluster.design import authors
from cluster.design.authors import ServiceAuthor, service_author
from cluster.design.plan import Stopped
from configs.checks import ConfigError
from configs.loading import load_config
from llm_server.annotation import Status
from llm_server.client import InProcessClient

FIELDS = {"task": "Reach the flag.", "features": "position\nvelocity", "advice": ""}


def config_of(tmp_path, *overrides):
    rules = [
        {"brief": "write_reward", "matches": "flag", "texts": ["It is:\n```python\nafter.position\n```", "no ```"]},
        {"brief": "criticise_program", "matches": ".", "texts": ["right: it does"]},
    ]
    (tmp_path / "script").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    scripted = ["service.engine=scripted", f"service.script_writings={tmp_path / 'script'}", "service.store=memory"]
    return load_config(overrides=[*scripted, *overrides])


def test_a_scripted_writer_in_this_process_writes_by_the_briefs(tmp_path):
    said = []
    with service_author(config_of(tmp_path), said.append, bool) as author:
        first = author.write("write_reward", lambda: FIELDS, 1, 0)
        assert (first.status, first.text) == (Status.OK, "after.position")
        assert author.write("write_reward", lambda: FIELDS, 2, 1).status is Status.UNPARSED
        checked = {"task": "x", "features": "y", "program": "def f():\n    return 1"}
        assert author.write("criticise_program", lambda: checked, 1, 2).text == "right: it does"
    assert said[0] == "loading the writer: scripted"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["service.engine=none"], "the annotation service cannot write: start one with a language model"),
        (["service.script_writings="], "the annotation service cannot write"),
        (["writer.address=nowhere"], r"writer.address: got 'nowhere', wanted host:port"),
        (["annotator.rubric=progres"], "no rubric 'progres'"),
        (["service.script_writings=/nowhere/x"], "service.script_writings: '/nowhere/x' cannot be read"),
    ],
)
def test_a_service_that_cannot_write_is_refused_before_the_campaign_begins(tmp_path, overrides, message):
    with (
        pytest.raises(ConfigError, match=message),
        service_author(config_of(tmp_path, *overrides), lambda _: None, bool),
    ):
        pytest.fail("it is no author")


def test_a_service_that_does_not_answer_is_waited_for_within_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(authors, "PAUSE_S", 0.0)
    monkeypatch.setattr(authors, "PATIENCE_S", 0.2)
    said = []
    with (
        pytest.raises(RuntimeError, match=r"the writer does not answer: annotation service at 127\.0\.0\.1:9"),
        service_author(config_of(tmp_path, "writer.address=127.0.0.1:9"), said.append, bool),
    ):
        pytest.fail("nobody listens there")
    assert len(said) == 1
    assert said[0].startswith("waiting for the writer")


def test_a_campaign_that_is_stopped_does_not_wait_for_a_writing(tmp_path):
    requested, ended = threading.Event(), threading.Event()

    class Slow(InProcessClient):
        def write(self, *_, **__):
            requested.set()
            ended.wait(60)

    author = ServiceAuthor(Slow(None, None), lambda _: None, requested.is_set)
    with pytest.raises(Stopped):
        author.write("write_reward", lambda: FIELDS, 1, 0)
    ended.set()
    author.close()
