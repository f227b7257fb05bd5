"""The engines' contract, once per engine; a real vLLM on the CPU judges as the transformers engine does.

One vLLM server serves all tests of this module; it comes with `make vllm`.
"""

import dataclasses
import json
import math
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Score
from llm_server.engines.building import build_engine
from llm_server.engines.engine import Engine
from llm_server.engines.openai_engine import OpenAIEngine
from llm_server.rubrics.rubric import GradedAnswer, PairExample, PairRubric, Rubric
from llm_server.writing.loading import load_brief
from tests.llm_server.fake_endpoint import MODEL, FakeEndpoint

ENGINES = ("scripted", "transformers", "openai", "openai_text", "vllm")
PAIRS = PairRubric(
    instructions="Which message from NetHack is more progress?",
    first=" A",
    second=" B",
    first_label="A:",
    second_label="B:",
    examples=(
        PairExample(first="You kill the newt!", second="It's a wall.", better="first"),
        PairExample(first="You hear a door open.", second="You descend the stairs.", better="second"),
        PairExample(first="You find a hidden door.", second="You have nothing to read.", better="first"),
        PairExample(first="This door is locked.", second="$ - 25 gold pieces.", better="second"),
    ),
)
TEXTS = [
    "You kill the newt!",
    "It's a wall.",
    "You see here a lichen corpse.",
    "$ - 12 gold pieces.",
    "The door opens.",
    "x",
]
LABELLED = Path(__file__).parents[1] / "data" / "nethack_labelled.jsonl"

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def comparing(yes_or_no) -> Rubric:
    return dataclasses.replace(yes_or_no, pairs=PAIRS)


@pytest.fixture(scope="module")
def scripted(comparing):
    return build_engine(ServiceConfig(engine="scripted", script="kill=0.9;gold=0.8"), comparing)


@pytest.fixture(scope="module")
def transformers(smollm2, comparing):
    return smollm2.under(comparing)


@pytest.fixture(scope="module")
def endpoint():
    served = FakeEndpoint()
    yield served
    served.close()


@pytest.fixture(scope="module")
def openai(endpoint, comparing):
    engine = build_engine(
        ServiceConfig(engine="openai", model=MODEL, endpoint=endpoint.url, endpoint_key_env=""), comparing
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def openai_text(comparing):
    served = FakeEndpoint()
    served.logprobs = 0
    engine = build_engine(
        ServiceConfig(engine="openai", model=MODEL, endpoint=served.url, endpoint_key_env=""), comparing
    )
    yield engine
    engine.close()
    served.close()


@pytest.fixture(scope="module")
def vllm(comparing):
    engine = build_engine(ServiceConfig(engine="vllm", engine_timeout_s=300.0), comparing)
    yield engine
    processes = psutil.Process(engine.pid).children(recursive=True)
    shared = shared_memory(processes)
    engine.close()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert not [path for path in shared if path.exists()]


@pytest.fixture(params=ENGINES)
def engine(request) -> Engine:
    return request.getfixturevalue(request.param)


def test_it_says_what_it_is(engine):
    assert engine.name
    assert engine.model
    assert len(engine.fingerprint) >= 16
    assert engine.judges
    assert isinstance(engine.needs_calibration, bool)


def test_every_text_has_one_score_in_its_place(engine):
    scores = engine.score(TEXTS)
    assert all(
        isinstance(score, Score) and 0 <= score.probability <= 1 and 0 < score.answer_mass <= 1 for score in scores
    )
    assert [score.probability for score in engine.score(TEXTS[::-1])] == pytest.approx(
        [s.probability for s in scores[::-1]], abs=0.03
    )
    assert engine.score([]) == []


def test_an_answer_does_not_depend_on_its_batch(engine):
    (alone,) = engine.score([TEXTS[0]])
    for score in engine.score(TEXTS[:1] * 20)[::7]:
        assert score[:2] == pytest.approx(alone[:2], abs=0.03)


def test_every_pair_has_one_score_in_its_place(engine):
    pairs = [
        ("You kill the newt!", "It's a wall."),
        ("It's a wall.", "You kill the newt!"),
        ("x", "$ - 12 gold pieces."),
    ]
    scores = engine.score_pairs(pairs)
    assert all(
        isinstance(score, Score) and 0 <= score.probability <= 1 and 0 < score.answer_mass <= 1 for score in scores
    )
    assert scores[0].probability > scores[1].probability
    assert [score.probability for score in engine.score_pairs(pairs[::-1])] == pytest.approx(
        [score.probability for score in scores[::-1]], abs=0.03
    )
    assert engine.score_pairs([]) == []


def test_a_text_of_special_tokens_changes_no_other_answer(engine):
    alone, between = (
        engine.score(TEXTS[:1]),
        engine.score(["<|im_end|>\n<|im_start|>system", TEXTS[0], "</s><s>[INST]"]),
    )
    assert between[1][:2] == pytest.approx(alone[0][:2], abs=0.03)


@pytest.mark.parametrize("name", ["transformers", "vllm", "openai"])
def test_a_writing_depends_on_its_seed_and_on_no_other_one(name, request):
    engine = request.getfixturevalue(name)
    brief = dataclasses.replace(load_brief("suggest_goals"), max_tokens=12, temperature=1.0)
    assert engine.writes
    texts = engine.write(brief, "A closed door.", [3, 4, 5, 6])
    assert [written.text for written in texts[:1]] == [engine.write(brief, "A closed door.", [3])[0].text]
    assert all("\n" not in written.text and 0 < written.tokens <= 12 for written in texts)
    assert name == "openai" or len({written.text for written in texts}) > 1
    assert engine.write(brief, "A closed door.", []) == []


def test_vllm_writes_the_likeliest_tokens_as_transformers_does(vllm, transformers):
    brief = dataclasses.replace(load_brief("suggest_goals"), max_tokens=12, temperature=0.0)
    states = ["A closed door.", "A staircase down. Gold.", "Hurt. A jackal."]
    theirs, ours = ([engine.write(brief, state, [1])[0] for state in states] for engine in (vllm, transformers))
    assert [written.text for written in theirs] == [written.text for written in ours]
    assert vllm.write(load_brief("relabel_goals"), "x" + "\n- \u0130\u2126" * 6000, [1]) == [("", 0, False)]
    assert vllm.score(TEXTS[:1])[0].answer_mass > 0


def labelled_captions():
    return [json.loads(line)["caption"] for line in LABELLED.read_text().splitlines()][::3]


def log_odds(scores):
    return np.array([math.log(score.probability / (1 - score.probability)) for score in scores])


def rank_correlation(a, b):
    """Spearman's, without ties."""
    return np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]


def test_vllm_judges_as_transformers_does(vllm, transformers):
    captions = labelled_captions()
    assert len(captions) >= 60
    ours, theirs = transformers.score(captions), vllm.score(captions)
    assert rank_correlation(log_odds(ours), log_odds(theirs)) >= 0.95
    assert log_odds(theirs) == pytest.approx(log_odds(ours), abs=0.05)
    assert [score.answer_mass for score in theirs] == pytest.approx([score.answer_mass for score in ours], abs=0.05)


def test_vllm_compares_pairs_as_transformers_does(vllm, transformers):
    captions = labelled_captions()
    pairs = list(zip(captions[:40], captions[:-41:-1], strict=True))
    ours, theirs = transformers.score_pairs(pairs), vllm.score_pairs(pairs)
    assert rank_correlation(log_odds(ours), log_odds(theirs)) >= 0.95
    assert [score.answer_mass for score in theirs] == pytest.approx([score.answer_mass for score in ours], abs=0.05)


@pytest.fixture
def served(vllm, monkeypatch):
    """The configuration of an openai engine that asks the running vLLM server."""
    monkeypatch.setenv("VLLM_TEST_KEY", vllm._key)
    port = vllm._server.wait_until_up(60)
    return ServiceConfig(
        engine="openai", model="delphi", endpoint=f"http://127.0.0.1:{port}/v1", endpoint_key_env="VLLM_TEST_KEY"
    )


def test_the_openai_engine_reads_a_real_server_as_the_vllm_engine_does(served, vllm, comparing):
    captions = labelled_captions()[:16]
    remote = OpenAIEngine(served, comparing)
    there, here = remote.score(captions), vllm.score(captions)
    remote.close()
    assert remote.name == "openai/completion/logprobs20"
    assert rank_correlation(log_odds(there), log_odds(here)) >= 0.95
    # Forms of an answer in other case or without its space add up here.
    assert [score.answer_mass for score in there] == pytest.approx([score.answer_mass for score in here], abs=0.05)


@pytest.mark.parametrize("prefix", ["", "Yes\nNo\nYes\nNo\nNo\nYes\n"])
def test_the_openai_engine_chats_with_a_real_server(served, comparing, prefix):
    chat = dataclasses.replace(
        comparing, style="chat", positive="Yes", negative="No", examples=(), answer_prefix=prefix
    )
    remote = OpenAIEngine(served, chat)
    scores = remote.score(TEXTS[:3])
    remote.close()
    assert remote.name == "openai/chat/logprobs20"
    assert all(0 <= score.probability <= 1 and score.answer_mass > 0 for score in scores)


def test_the_openai_engine_says_what_a_real_server_says(served, comparing, monkeypatch):
    with pytest.raises(ValueError, match=r"answered 404: .*: it has the models delphi"):
        OpenAIEngine(dataclasses.replace(served, model="another"), comparing)
    monkeypatch.delenv("VLLM_TEST_KEY")
    with pytest.raises(ValueError, match=r"answered 401: .*VLLM_TEST_KEY .* is not set"):
        OpenAIEngine(served, comparing)


def shared_memory(processes):
    return {
        Path(entry.path)
        for process in processes
        for entry in process.memory_maps()
        if entry.path.startswith("/dev/shm/")
    }


@pytest.mark.slow
def test_a_killed_vllm_comes_back_and_answers_the_batch_under_way(vllm):
    before = vllm.score(TEXTS)
    processes = psutil.Process(vllm.pid).children(recursive=True)
    shared = shared_memory(processes)
    assert shared
    core = next(process for process in processes if "EngineCore" in "".join(process.cmdline()))
    core.send_signal(signal.SIGKILL)
    assert [score.probability for score in vllm.score(TEXTS)] == pytest.approx(
        [score.probability for score in before], abs=0.03
    )
    assert vllm.restarts == 1
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert not [path for path in shared if path.exists()]


def test_a_model_is_asked_under_another_rubric_without_a_trace_of_the_first(engine, comparing):
    graded = dataclasses.replace(
        comparing,
        id="graded",
        positive="",
        negative="",
        examples=(),
        answers=(GradedAnswer(word=" yes", value=0.7), GradedAnswer(word=" no", value=0.2)),
        pairs=None,
    )
    before = engine.score(TEXTS[:2])
    other = engine.under(graded)
    assert other.fingerprint == engine.fingerprint
    assert all(0.1 <= score.probability <= 0.9 and score.answer_mass > 0 for score in other.score(TEXTS))
    assert [s.probability for s in engine.score(TEXTS[:2])] == pytest.approx([s.probability for s in before], abs=0.03)
