"""A model's probabilities of actions: one question per distinct text, and what is not an answer."""

import math

import numpy as np
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Score
from llm_server.engines.answers import NO_ANSWER, score_of_answers
from llm_server.playing import action_judge
from llm_server.playing.action_judge import ActionJudge, JudgeFailed
from llm_server.playing.play_rubric import PlayRubric, load_play_rubric

NAMES = ("left", "right", "forward")
RUBRIC = PlayRubric(id="mine", version="1", style="completion", instructions="Choose: {actions}.").rubric(NAMES)


class Told:
    """An engine that says `answers`, by text, and notes what it was asked."""

    def __init__(self, answers: dict[str, Score | Exception], name: str = "told") -> None:
        self.answers, self.name, self.model, self.asked = answers, name, "m", list[list[str]]()

    def score(self, texts):
        self.asked.append(list(texts))
        found = [self.answers[text] for text in texts]
        for answer in found:
            if isinstance(answer, Exception):
                raise answer
        return found

    def close(self) -> None:
        pass


def judge_of(engine: Told, monkeypatch: pytest.MonkeyPatch) -> ActionJudge:
    monkeypatch.setattr(action_judge, "build_engine", lambda config, rubric: engine)
    return ActionJudge(ServiceConfig(engine="scripted"), RUBRIC, NAMES)


def answer(*probabilities: float) -> Score:
    return score_of_answers([math.log(p) for p in probabilities])


def test_probabilities_are_the_answers_parts_and_a_text_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Told({"a": answer(0.1, 0.2, 0.1), "b": answer(0.3, 0.3, 0.3)})
    judge = judge_of(engine, monkeypatch)
    found = judge.probabilities(["a", "b", "a"])
    np.testing.assert_allclose(found, [[0.25, 0.5, 0.25], [1 / 3] * 3, [0.25, 0.5, 0.25]])
    judge.probabilities(["b"])
    assert engine.asked == [["a", "b"]]
    assert (judge.num_passes, judge.num_unanswered) == (2, 0)


def test_a_text_without_an_answer_is_played_at_random_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(Told({"a": NO_ANSWER, "b": answer(0.8, 0.1, 0.1)}), monkeypatch)
    np.testing.assert_allclose(judge.probabilities(["a", "b"]), [[1 / 3] * 3, [0.8, 0.1, 0.1]])
    assert judge.num_unanswered == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(action_judge, "MAX_TEXTS", 2)
    engine = Told({text: answer(0.2, 0.2, 0.2) for text in "abc"})
    judge = judge_of(engine, monkeypatch)
    for texts in ("ab", "bc", "bc"):
        assert judge.probabilities(list(texts)).shape == (2, 3)
    assert engine.asked == [["a", "b"], ["b", "c"]]


def test_a_failing_engine_is_one_error_and_the_next_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Told({"a": RuntimeError("vLLM failed"), "b": answer(0.5, 0.25, 0.25)})
    judge = judge_of(engine, monkeypatch)
    with pytest.raises(JudgeFailed, match="the judge has failed: vLLM failed"):
        judge.probabilities(["a"])
    assert judge.probabilities(["b"])[0, 0] == 0.5


def test_an_endpoint_without_log_probabilities_cannot_play(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(Told({}, name="openai/chat/text"), monkeypatch)
    with pytest.raises(ValueError, match="gives no log-probabilities of model 'm', from which the judge plays"):
        judge.probabilities(["a"])
    with pytest.raises(ValueError, match=r"service\.engine: got none"):
        ActionJudge(ServiceConfig(engine="none"), RUBRIC, NAMES)


def test_the_scripted_engine_is_asked_about_each_action_by_name() -> None:
    config = ServiceConfig(engine="scripted", script="door.*Action: forward$=0.6;Action: left$=0.2;.*=0")
    found = ActionJudge(config, RUBRIC, NAMES).probabilities(["A door.", "A wall.", "A key."])
    np.testing.assert_allclose(found, [[0.25, 0, 0.75], [1, 0, 0], [1, 0, 0]])


def test_smollm2_reads_states_of_minigrid() -> None:
    names = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
    config = ServiceConfig(device="cpu", torch_threads=1)
    judge = ActionJudge(config, load_play_rubric("minigrid").rubric(names), names)
    texts = ["A yellow key in front of you.", "A yellow key in your hands. A locked yellow door in front of you."]
    found = judge.probabilities(texts)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found > 0).all()
    assert np.abs(found[0] - found[1]).max() > 0.01, "it looks at the state"
    np.testing.assert_allclose(judge.probabilities(texts[:1]), found[:1])
