"""The packaged sentence encoder, in a judge and alone."""

import dataclasses
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.engines.sentence_encoder import (
    BATCH_SIZE,
    MAX_PENDING_REQUESTS,
    SentenceEncoder,
    encoder_source,
)
from llm_server.service.judge import build_judge
from llm_server.service.pending import JudgeBusyError, JudgeClosedError

EMBEDDING = ServiceConfig(engine="none", store="memory", device="cpu")


@pytest.fixture(scope="module")
def encoder():
    encoder = SentenceEncoder(EMBEDDING)
    yield encoder
    encoder.close()


def test_near_sentences_have_a_high_cosine(encoder):
    vectors = encoder.submit(["Find a key.", "You pick up a key.", "It's a wall."]).result()
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2] + 0.2


def test_a_vector_depends_on_its_text_alone(encoder):
    texts = [
        "You kill the newt!",
        "A very long sentence about a door that does not open however often one kicks it.",
        "x",
    ]
    together = encoder.submit(texts).result()
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.submit([text]).result()[0], vector, atol=1e-5)


def test_what_is_no_text_has_no_vector(rubric):
    judge = build_judge(EMBEDDING, rubric)
    vectors = judge.embed([b"gold", b"\xff", b""])
    assert np.isfinite(vectors[0]).all()
    assert np.isnan(vectors[1:]).all()
    with pytest.raises(ValueError, match="no items"):
        judge.embed([])
    judge.close()


def test_an_encoder_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match="'/nowhere/model' does not exist"):
        encoder_source("/nowhere/model")
    assert encoder_source("minilm").endswith("model")


def test_a_closed_encoder_leaves_no_request_waiting_and_takes_no_more(monkeypatch):
    encoder, entered, gate = SentenceEncoder(EMBEDDING), threading.Event(), threading.Event()

    def slow(loaded, texts):
        entered.set()
        assert gate.wait(60)
        return np.ones((len(texts), 384), np.float32)

    monkeypatch.setattr(
        "llm_server.engines.sentence_encoder._load",
        lambda config: (SimpleNamespace(config=SimpleNamespace(hidden_size=384)), None, True, None),
    )
    monkeypatch.setattr("llm_server.engines.sentence_encoder._encode", slow)
    running = encoder.submit(["x"] * (BATCH_SIZE + 1))
    assert entered.wait(60)
    waiting = [encoder.submit(["y"]) for _ in range(MAX_PENDING_REQUESTS - 1)]
    with pytest.raises(JudgeBusyError, match="8 requests wait"):
        encoder.submit(["z"])
    encoder.close()
    gate.set()
    with pytest.raises(JudgeClosedError):
        running.result(20)
    assert all(future.cancelled() for future in waiting)
    with pytest.raises(JudgeClosedError):
        encoder.submit(["z"])


def test_pooling_is_the_models_own_where_it_comes_from_the_hub(monkeypatch, tmp_path):
    folder = tmp_path / "downloaded"
    shutil.copytree(encoder_source("minilm"), folder)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    encoder = SentenceEncoder(dataclasses.replace(EMBEDDING, encoder="some/encoder"))
    mean = SentenceEncoder(EMBEDDING)
    assert abs(encoder.encode(["Find a key."]) - mean.encode(["Find a key."])).max() > 0.01
    encoder.close()
    mean.close()
