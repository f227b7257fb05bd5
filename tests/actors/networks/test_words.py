"""Texts read word by word, compared with splitting them in Python."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.networks.words import MAX_WORDS, NUM_BUCKETS, WordEncoder

NUM_BYTES = 256
TEXTS = [
    "You kill the newt!",
    "You miss the newt.",
    "The newt bites!",
    "The newt misses!",
    "You see here a - dagger (weapon in hand).  You hear the footsteps of a guard on patrol.",
    "It's a wall",
    "a",
    "",
    "!",
    "x" * NUM_BYTES,
    " ".join(["ab"] * 85),
    "Grüße aus Minetown",
]


def encode(*texts: str) -> Tensor:
    rows = [np.frombuffer(text.encode()[:NUM_BYTES].ljust(NUM_BYTES, b"\0"), np.uint8) for text in texts]
    return torch.from_numpy(np.stack(rows).copy())


def make_encoder(seed: int = 0) -> WordEncoder:
    torch.manual_seed(seed)
    return WordEncoder(NUM_BYTES)


def split(text: str) -> list[bytes]:
    return [
        re.sub(rb"\d", b"0", word.lower()) for word in re.findall(rb"[A-Za-z0-9\x80-\xff]+", text.encode()[:NUM_BYTES])
    ]


def test_each_word_has_its_bucket_in_order_wherever_it_stands() -> None:
    encoder = make_encoder()
    buckets: dict[bytes, int] = {}
    for text, row in zip(TEXTS, encoder.words(encode(*TEXTS)).tolist(), strict=True):
        words = split(text)[:MAX_WORDS]
        assert row[len(words) :] == [0] * (MAX_WORDS - len(words)), text
        for word, bucket in zip(words, row, strict=False):
            assert 0 < bucket < NUM_BUCKETS
            assert buckets.setdefault(word, bucket) == bucket
    assert len(set(buckets.values())) == len(buckets) > 25


def test_buckets_are_filled_evenly_by_words_that_are_alike() -> None:
    words = ["".join(letters) for letters in itertools.product("abcdeklst", repeat=4)]
    buckets = make_encoder().words(encode(*words))[:, 0]
    # Of n words at random in m buckets, m (1 - exp(-n / m)) buckets have any.
    expected = NUM_BUCKETS * (1 - np.exp(-len(words) / NUM_BUCKETS))
    assert len(buckets.unique()) == pytest.approx(expected, rel=0.03)


def test_a_texts_features_are_its_own_whatever_is_read_beside_it() -> None:
    encoder = make_encoder()
    together = encoder(encode(*TEXTS))
    for text, row in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(encoder(encode(text))[0], row, rtol=1e-5, atol=1e-6)
    assert together.isfinite().all()


def test_case_digits_spacing_and_punctuation_change_nothing_and_the_order_of_words_does() -> None:
    encoder = make_encoder()
    one, same, other = encoder(
        encode("You have 12 gold pieces.", "you have  93 GOLD pieces!", "Pieces have you 12 gold.")
    )
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 0.05


def test_gradients_are_finite_for_texts_without_a_word() -> None:
    encoder = make_encoder()
    encoder(encode("", "...", "You die...")).sum().backward()
    gradients = [parameter.grad for parameter in encoder.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert encoder.embedding.weight.grad is not None
    assert not encoder.embedding.weight.grad[0].any(), "the place without a word stays zero"


def test_what_was_learnt_of_some_messages_holds_for_others_with_the_same_verb() -> None:
    """A linear classifier on initial features separates kills from misses for unseen monsters."""
    monsters = [
        "newt",
        "jackal",
        "sewer rat",
        "grid bug",
        "lichen",
        "gnome lord",
        "hill orc",
        "fox",
        "kobold",
        "giant ant",
        "acid blob",
        "bat",
    ]
    kinds = ["You kill the {}!", "You miss the {}.", "The {} bites!", "The {} misses!"]
    texts = [kind.format(monster) for monster in monsters for kind in kinds]
    labels = torch.tensor([0, 1, 2, 3] * len(monsters))
    with torch.no_grad():
        features = make_encoder()(encode(*texts))
    seen = len(kinds) * len(monsters) // 2
    wanted = torch.nn.functional.one_hot(labels).float() - 0.25
    centre = features[:seen].mean(0)
    kernel = (features[:seen] - centre) @ (features[:seen] - centre).T
    weights = torch.linalg.solve(kernel + 0.01 * kernel.trace() / seen * torch.eye(seen), wanted[:seen])
    guesses = ((features[seen:] - centre) @ (features[:seen] - centre).T @ weights).argmax(-1)
    assert (guesses == labels[seen:]).float().mean() >= 0.95
