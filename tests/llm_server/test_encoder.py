"""The packaged sentence encoder, through a judge and alone."""

import numpy as np
import pytest

from configs.service_schema import ServiceConfig
from llm_server.encoder import SentenceEncoder, check_encoder
from llm_server.judge import build_judge

EMBEDDING = ServiceConfig(engine="none", store="memory", device="cpu")


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder(EMBEDDING)


def test_near_sentences_have_a_high_cosine(encoder):
    vectors = encoder.encode(["Find a key.", "You pick up a key.", "It's a wall."])
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2] + 0.2


def test_a_vector_depends_on_its_text_alone(encoder):
    texts = ["You kill the newt!", "A very long sentence about a door that does not open however often one kicks it.", "x"]
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)


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
        check_encoder("/nowhere/model")
    check_encoder("minilm")
