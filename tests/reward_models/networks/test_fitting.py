"""The caption network learns what captions share, stops by held-out answers, and costs only the text."""

import numpy as np
import pytest
import torch

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import JudgedCaption, Judgement, Status
from llm_server.offline.judgement_file import caption_of
from reward_models.building import build_reward_model
from reward_models.classification import ClassificationModel
from reward_models.networks.caption_network import CaptionNet, tokens_of
from reward_models.networks.fitting import Fitting, flipped, is_held_out, unflipped

MONSTERS = ["newt", "jackal", "rat", "kobold", "gnome", "grid bug", "lichen", "fox", "orc", "bat"]
GOOD = [f"You {verb} the {monster}!" for verb in ("kill", "destroy", "slay") for monster in MONSTERS]
BAD = [f"The {monster} {verb}." for verb in ("bites you", "misses", "hits you") for monster in MONSTERS]


def labels(texts: list[str], probability: float) -> list[JudgedCaption]:
    return [
        JudgedCaption(
            caption=caption_of(text), judgement=Judgement(status=Status.OK, probability=probability, answer_mass=1.0)
        )
        for text in texts
    ]


def test_only_the_text_is_computed_and_the_result_is_that_of_all_256_bytes() -> None:
    net = CaptionNet((16,), 0.0, seed=1)
    texts = [b"", b"a", b"It's a wall.", b"x" * 40, b"y" * 120, b"z" * 200, b"w" * 250, b"v" * 256, b"u" * 300]
    with torch.no_grad():
        short = [float(net([text])) for text in texts]
        full = [
            float(net._outputs(torch.nn.functional.pad(tokens_of([text]), (0, 256 - tokens_of([text]).shape[1])), None))
            for text in texts
        ]
        together = net(texts).tolist()
    np.testing.assert_allclose(short, full, atol=1e-6)
    np.testing.assert_allclose(together, full, atol=1e-6)


def test_a_plain_pass_with_unpadded_convolutions_agrees() -> None:
    net = CaptionNet((), 0.0, seed=2)
    text = b"You kill the newt!  You hear the splashing of a naiad."
    tokens = torch.nn.functional.pad(tokens_of([text]), (0, 256 - len(text)))
    encoder = net.encoder
    with torch.no_grad():
        x = encoder.embedding(tokens).transpose(1, 2)
        for convolution, pooling in zip(encoder.convolutions, (3, 3, 1, 1, 1, 3), strict=True):
            x = torch.nn.functional.max_pool1d(torch.relu(convolution(x)), pooling)
        assert x.shape == (1, 64, 5)
        slow = net.layers[0](torch.relu(encoder.output(x.flatten(1))))
        assert float(net([text])) == pytest.approx(float(slow), abs=1e-6)


def test_the_network_learns_a_vocabulary_and_generalises_to_captions_without_a_label() -> None:
    seen_good, new_good, seen_bad, new_bad = GOOD[::2], GOOD[1::2], BAD[::2], BAD[1::2]
    model = build_reward_model(RewardModelConfig(name="classification", steps_per_turn=50, batch_size=16), seed=1)
    model.calibrate(0.4)
    model.learn([*labels(seen_good, 0.7), *labels(seen_bad, 0.2)])
    model.train()
    asked = [caption_of(text) for text in [*new_good, *new_bad]]
    rewards = model.score(asked, np.ones(len(asked), np.int64))
    right = np.array([True] * len(new_good) + [False] * len(new_bad))
    assert np.mean((rewards > 0) == right) > 0.9


class Falling:
    """Examples whose held-out answers contradict what is trained on: the longer the training, the worse."""

    num_train, num_held_out = 40, 40

    def holds_out(self, num_captions):
        return num_captions <= 40

    def answers(self, rows, held_out):
        texts = [GOOD[row % 30].encode() if row % 2 else BAD[row % 30].encode() for row in rows]
        return texts, np.array([float(row % 2) if not held_out else 1.0 - float(row % 2) for row in rows])

    def targets(self, p):
        return torch.from_numpy(p).float()

    def agreement(self, logits, p):
        return 0.25


def test_training_stops_by_held_out_answers_and_the_best_weights_score() -> None:
    config = RewardModelConfig(patience=2, batch_size=16)
    fitting = Fitting((16,), 0.0, config, seed=0)
    examples = Falling()
    fitting.train(examples, 25)
    assert fitting.has_best
    first = {name: tensor.clone() for name, tensor in fitting._best.state_dict().items()}
    fitting.train(examples, 500)
    assert fitting.is_settled(examples)
    assert fitting.step == 75, "two evaluations without a gain"
    assert fitting.accuracy == 0.25
    assert all(torch.equal(first[name], tensor) for name, tensor in fitting._best.state_dict().items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in fitting._net.state_dict().items())
    for _ in range(4):
        fitting.note_examples()
    assert fitting.is_settled(examples)
    fitting.note_examples()  # more than a tenth of 40, though there are still 40: others left
    assert not fitting.is_settled(examples)
    fitting.train(examples, 1)
    assert fitting.step == 76


def test_training_goes_on_with_new_labels_in_the_place_of_old_ones_and_the_state_keeps_their_number() -> None:
    config = RewardModelConfig(
        name="classification", patience=1, steps_per_turn=50, batch_size=4, learning_rate=1e-9
    )  # never a gain
    model = ClassificationModel(config, seed=0)
    model.calibrate(0.5)
    model.learn([*labels(GOOD[:10], 0.7), *labels(BAD[:10], 0.2)])
    while not model.is_settled:
        model.train()
    model.learn(labels(GOOD[:2], 0.3))
    resumed = ClassificationModel(config, seed=0)
    resumed.load_state_dict(model.state_dict())
    for one in (model, resumed):
        assert one.is_settled
        one.learn(labels(GOOD[2:3], 0.3))
        assert one.num_train == 20
        assert not one.is_settled


def test_a_judge_that_is_right_within_three_hundredths_is_learnt() -> None:
    """What its labels' entropy leaves to be explained is less than a thousandth of the loss."""
    config = RewardModelConfig(name="classification", steps_per_turn=25, batch_size=16)
    model = ClassificationModel(config, seed=1)
    model.calibrate(0.5)
    model.learn([*labels(GOOD[::2], 0.515), *labels(BAD[::2], 0.485)])
    for _ in range(10):
        model.train()
    good, bad = (model._networks.outputs([caption_of(text) for text in texts])[0] for texts in (GOOD[1::2], BAD[1::2]))
    assert np.mean(good[:, None] > bad) > 0.9
    assert good.mean() - bad.mean() == pytest.approx(0.12, abs=0.06), "in log-odds"


def test_the_split_is_by_a_hash_and_spares_the_first_two_hundred() -> None:
    ids = [caption_of(f"caption {number}").id for number in range(4000)]
    assert not any(is_held_out(number, 0.5, 199) for number in ids)
    chosen = [number for number in ids if is_held_out(number, 0.1, 200)]
    assert 300 < len(chosen) < 500
    assert chosen == [number for number in ids if is_held_out(number, 0.1, 10_000)]
    assert 300 < sum(is_held_out(number, 0.1, 200) for number in range(4000)) < 500, "small ids as well"


def test_a_held_out_label_is_never_trained_on_whatever_comes_later() -> None:
    model = ClassificationModel(RewardModelConfig(name="classification", held_out_fraction=0.5), seed=0)
    many = [f"caption {number}" for number in range(400)]
    model.learn(labels(many, 0.5))
    held_out = set(model._labels[True])
    assert 50 < len(held_out) < 150
    assert model.num_train == 0, "no theta yet"
    model.calibrate(0.5)
    assert model.num_train + model.num_held_out == 400
    model.learn(labels(many, 0.9))
    assert set(model._labels[True]) == held_out
    assert not held_out & set(model._labels[False])


def test_soft_and_hard_targets_are_smoothed_towards_knowing_nothing() -> None:
    rows = np.arange(2)
    for kind, smoothing, wanted in (
        ("soft", 0.0, [0.8, 0.2]),
        ("soft", 0.5, [0.6, 0.3]),
        ("hard", 0.0, [1, 0]),
        ("hard", 0.2, [0.9, 0.1]),
    ):
        model = ClassificationModel(
            RewardModelConfig(name="classification", labels=kind, label_smoothing=smoothing), seed=0
        )
        model.calibrate(0.4)
        model.learn([*labels(["a"], 0.8), *labels(["b"], 0.2)])
        _, p = model.answers(rows, held_out=False)
        np.testing.assert_allclose(model.targets(p).numpy(), wanted, rtol=1e-6)


def test_eta_is_theta_for_soft_labels_and_a_half_for_hard_ones_unless_configured() -> None:
    for settings, eta in (
        ({"labels": "soft"}, 0.4),
        ({"labels": "hard"}, 0.5),
        ({"labels": "hard", "threshold": 0.7}, 0.7),
    ):
        model = ClassificationModel(RewardModelConfig(name="classification", **settings), seed=0)
        model.calibrate(0.4)
        assert model._reward.threshold == eta


def test_another_theta_wakes_training_on_hard_labels() -> None:
    model = ClassificationModel(
        RewardModelConfig(name="classification", labels="hard", patience=1, steps_per_turn=300, batch_size=4), seed=0
    )
    model.calibrate(0.5)
    model.learn([*labels(GOOD[:4], 0.7), *labels(BAD[:4], 0.4)])
    while not model.is_settled:
        model.train()
    model.calibrate(0.5)
    assert model.is_settled
    model.calibrate(0.3)
    assert not model.is_settled


def test_outputs_are_computed_once_per_caption_and_weights() -> None:
    model = ClassificationModel(RewardModelConfig(name="classification", steps_per_turn=25), seed=0)
    model.calibrate(0.5)
    model.learn([*labels(GOOD[:4], 0.7), *labels(BAD[:4], 0.2)])
    model.train()
    captions = [caption_of(text) for text in GOOD[:8]]
    before = model._networks.outputs(captions)
    model._networks.members[0]._best = None  # any evaluation would now fail
    np.testing.assert_array_equal(model._networks.outputs(captions[::-1])[:, ::-1], before)


# -- a judge that flips answers
# ------------------------------------------------------------------------------------------


def test_the_gradient_under_noise_is_that_of_the_two_losses_of_rdpo() -> None:
    e, y = 0.2, torch.tensor([1.0, 0.0, 0.7])
    logits = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    (ours,) = torch.autograd.grad(loss(logits, unflipped(y, e), reduction="sum"), logits)
    formula = ((1 - e) * loss(logits, y, reduction="sum") - e * loss(logits, 1 - y, reduction="sum")) / (1 - 2 * e)
    (theirs,) = torch.autograd.grad(formula, logits)
    torch.testing.assert_close(ours, theirs)
    np.testing.assert_allclose(flipped(unflipped(y, e).numpy(), e), y.numpy(), rtol=1e-6)


class Flipped:
    """Two kinds of captions with p(yes) 0.9 and 0.2, answered yes or no; of a thousand answers about each, exactly a
    fifth are flipped."""

    num_train, num_held_out = 2000, 2000
    CLEAN = (0.9, 0.2)

    def holds_out(self, num_captions):
        return True

    def answers(self, rows, held_out):
        kinds, numbers = rows % 2, rows // 2
        answers = numbers % 10 < 10 * np.array(self.CLEAN)[kinds]
        is_flipped = numbers // 10 % 5 == 0
        texts = [(b"You kill the newt!", b"It's a wall.")[kind] for kind in kinds]
        return texts, (answers ^ is_flipped).astype(float)

    def targets(self, p):
        return torch.from_numpy(p).float()

    def agreement(self, logits, p):
        return 0.5


def learnt(noise_rate: float) -> np.ndarray:
    config = RewardModelConfig(patience=6, batch_size=256, learning_rate=3e-4)
    fitting = Fitting((16,), 0.0, config, 1, noise_rate)
    fitting.train(Flipped(), 400)
    captions = [caption_of("You kill the newt!"), caption_of("It's a wall.")]
    return 1 / (1 + np.exp(-fitting.outputs(captions)))


def test_a_fifth_of_flipped_labels_is_undone_by_the_correction() -> None:
    """Without it the network learns 0.2 + 0.6 p. Early stopping by answers with the same flips does not prevent it."""
    np.testing.assert_allclose(learnt(0.2), Flipped.CLEAN, atol=0.06)
    np.testing.assert_allclose(learnt(0.0), [0.2 + 0.6 * p for p in Flipped.CLEAN], atol=0.06)
