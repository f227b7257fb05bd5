"""The packaged sentence encoder, in a judge and alone."""

import dataclasses
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.annotation_schema import ServiceConfig
from llm_server.engines.model_check import check_encoder_model
from llm_server.engines.sentence_encoder import (
    BATCH_SIZE,
    MAX_PADDED_TOKENS,
    MAX_PENDING_REQUESTS,
    MAX_TOKENS,
    SentenceEncoder,
    _batches,
    encoder_source,
    takes_first_token,
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
    judge = build_judge(EMBEDDING, [rubric])
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
        lambda config: (SimpleNamespace(config=SimpleNamespace(hidden_size=384)), None, True, torch.device("cpu")),
    )
    monkeypatch.setattr("llm_server.engines.sentence_encoder._tokenize", lambda loaded, texts: [[1] for _ in texts])
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


@pytest.mark.parametrize(
    ("file", "content", "takes_first"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, False),
        ("1_Pooling/config.json", {"word_embedding_dimension": 384, "pooling_mode_cls_token": True}, True),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}, True),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "pools by lasttoken"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            "max_tokens and mean",
        ),
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "a module Dense"),
        ("modules.json", [{"path": "", "type": "sentence_transformers.models.Transformer"}], False),
        ("README.md", "", False),
    ],
)
def test_vectors_are_those_of_the_encoders_own_modules_or_refused(tmp_path, file, content, takes_first):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / file).write_text(json.dumps(content))
    if isinstance(takes_first, bool):
        assert takes_first_token(tmp_path) is takes_first
    else:
        with pytest.raises(ValueError, match=takes_first):
            takes_first_token(tmp_path)


def test_the_doctor_refuses_the_poolings_that_the_encoder_refuses(tmp_path):
    folder = tmp_path / "last"
    shutil.copytree(encoder_source("minilm"), folder)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    encoder = SentenceEncoder(dataclasses.replace(EMBEDDING, encoder=str(folder)))
    for ask in (lambda: check_encoder_model(str(folder)), lambda: encoder.encode(["Find a key."])):
        with pytest.raises(ValueError, match=r"sentence encoder '.*last' cannot be loaded .*pools by lasttoken"):
            ask()
    encoder.close()


@pytest.mark.parametrize("is_on_cpu", [True, False])
def test_texts_are_in_one_batch_each_short_ones_together(is_on_cpu):
    lengths = [*np.random.default_rng(0).integers(2, MAX_TOKENS + 1, 300).tolist(), *[3] * 200]
    batches = [*_batches(lengths, is_on_cpu=is_on_cpu)]
    in_order = [row for batch in batches for row in batch]
    assert sorted(in_order) == [*range(500)]
    assert [lengths[row] for row in in_order] == sorted(lengths)
    assert max(map(len, batches)) == BATCH_SIZE
    padded = [len(batch) * lengths[batch[-1]] for batch in batches if len(batch) > 1]
    assert (max(padded) <= MAX_PADDED_TOKENS) is is_on_cpu
