"""`Fitting`: gradient training of a caption network in small turns, with early stopping and the best weights kept for
scoring.

    every turn              `steps_per_turn` AdamW steps on examples drawn uniformly
    every 25 steps          the current and the best weights are evaluated on the held-out examples (on the training
                            examples while fewer than 20 captions are held out); the better ones become the best
    after `patience`        training pauses until new examples have come, a tenth of the training set, and then
    evaluations in vain     continues from the best weights

Where the judge is assumed to flip a fraction e of its answers (`robust.noise_rate`), the gradient is that of an
unbiased estimate of the loss on unflipped answers: targets q become (q - e) / (1 - 2e), not clipped. Cross-entropy is
linear in the target, so this is ((1 - e) loss(q) - e loss(1 - q)) / (1 - 2e), the loss of rDPO (Chowdhury, Kini and
Natarajan 2024, arXiv 2403.00409) and of Natarajan et al. 2013. It has no lower bound, the evaluation has one: answers
as they came are compared with those expected of such a judge, e + (1 - 2e) s(output) (forward correction, Patrini et
al. 2017), so it ends training that fits what was flipped.

Invariant: the result is a function of seed, turns and examples: batches and dropout are drawn from (seed, step), so no
generator state is saved.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from configs.annotation_schema import RewardModelConfig
from llm_server.annotation import Caption
from llm_server.annotator.caption_texts import ids_of
from llm_server.annotator.id_rows import IdValues
from reward_models.networks.caption_network import CaptionNet

EVALUATION_INTERVAL_STEPS = 25
MAX_EVALUATED = 512
"""Examples per evaluation, spread evenly over all."""
MIN_HELD_OUT = 20
"""Held-out captions from which on the held-out examples are evaluated."""
MIN_TRAINED_BEFORE_HOLDING_OUT = 200
MIN_GAIN, LEAST_GAIN = 0.01, 1e-6
"""An evaluation is a gain if the excess loss (cross-entropy minus the entropy of the targets, its lower bound) falls by
this fraction and by this many nats. The soft targets of a judge whose probabilities differ little are nearly all
entropy."""
GROWTH = 10
"""Training resumes after a pause once new examples are more than 1/10 of the training set."""
MAX_GRAD_NORM = 10.0


class Examples(Protocol):
    """The training and held-out examples of a network: captions and the judge's answers p about them, in [0, 1]."""

    @property
    def num_train(self) -> int:
        """Number of training examples."""

    @property
    def num_held_out(self) -> int:
        """Number of held-out examples."""

    def holds_out(self, num_captions: int) -> bool:
        """Whether the held-out examples contain at least `num_captions` held-out captions."""

    def answers(self, rows: np.ndarray, held_out: bool) -> tuple[list[bytes], np.ndarray]:
        """The captions of the examples `rows` [N], and p [N] f64. Where two captions are compared, all first ones come
        before all second ones."""

    def weights(self, rows: np.ndarray, member: int) -> np.ndarray:
        """[N] f64: how often the training examples `rows` [N] are in the bootstrap sample of an ensemble's `member`."""

    def targets(self, p: np.ndarray) -> Tensor:
        """[N] f32 in [0, 1]: what the network learns to predict."""

    def agreement(self, logits: Tensor, p: np.ndarray) -> float:
        """Fraction of examples on which the network agrees with the judge; NaN if the judge is undecided on all."""


class Fitting:
    """One network in training and its best weights so far."""

    def __init__(
        self,
        sizes: Sequence[int],
        dropout: float,
        config: RewardModelConfig,
        seed: int,
        noise_rate: float = 0.0,
        member: int | None = None,
    ) -> None:
        """`noise_rate`: assumed fraction of flipped answers. A `member` of an ensemble learns its bootstrap sample."""
        self._config, self._seed, self._noise_rate, self._member = config, seed, noise_rate, member
        self._net, self._best = (CaptionNet(sizes, dropout, seed) for _ in range(2))
        self._optimizer = self._new_optimizer()
        self.step = 0
        self.best_step = 0  # at which the best weights were found; 0 before the first evaluation
        self.has_best = False
        self.accuracy: float | None = None  # of the best weights on the held-out examples
        self._num_without_gain = 0
        self._num_learnt = 0  # every example ever added, those that were removed or replaced included
        self._rests_until = 0  # `_num_learnt` at which training resumes after a pause; 0 if it is not paused
        self._outputs = IdValues()  # of the best weights, by caption id

    def is_settled(self, examples: Examples) -> bool:
        """Whether `train` would do nothing."""
        return examples.num_train == 0 or (self._rests_until > 0 and self._num_learnt <= self._rests_until)

    def note_examples(self, num: int = 1) -> None:
        """Count new training examples, and new targets of old ones."""
        self._num_learnt += num

    def wake(self) -> None:
        """End a pause because the targets have changed."""
        self._rests_until = self._num_without_gain = 0

    def train(self, examples: Examples, num_steps: int) -> dict[str, float]:
        """Take at most `num_steps` gradient steps, fewer if training pauses; returns `accuracy`, if there is one."""
        for _ in range(num_steps):
            if self.is_settled(examples):
                break
            if self._rests_until:
                self._net.load_state_dict(self._best.state_dict())
                self._optimizer = self._new_optimizer()
                self.wake()
            self._take_step(examples)
            if self.step % EVALUATION_INTERVAL_STEPS == 0:
                self._evaluate(examples)
        return {} if self.accuracy is None else {"accuracy": self.accuracy}

    def outputs(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64 outputs of the best weights, NaN before these exist; computed once per caption and weights."""
        if not self.has_best:
            return np.full(len(captions), np.nan)
        ids = ids_of(captions)
        new = [captions[row] for row in np.flatnonzero(np.isnan(self._outputs.of(ids))).tolist()]
        if new:
            with torch.no_grad():
                values = self._best([caption.text.encode() for caption in new]).tolist()
            self._outputs.update(dict(zip((caption.id for caption in new), values, strict=True)))
        return self._outputs.of(ids)

    def retain(self, ids: Any) -> None:
        """Forget the outputs of all other captions."""
        self._outputs.retain(ids)

    def _take_step(self, examples: Examples) -> None:
        rng = np.random.default_rng((self._seed, self.step))
        rows = rng.integers(examples.num_train, size=min(self._config.batch_size, 4 * examples.num_train))
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        weights = None
        if self._member is not None:
            drawn = examples.weights(rows, self._member)
            rows, weights = rows[drawn > 0], torch.from_numpy(drawn[drawn > 0] * np.mean(drawn > 0)).float()
            if not len(rows):
                return
        texts, p = examples.answers(rows, held_out=False)
        logits = _logits(self._net(texts, generator), len(p))
        targets = unflipped(examples.targets(p), self._noise_rate)
        binary_cross_entropy_with_logits(logits, targets, weights).backward()
        norm = torch.nn.utils.clip_grad_norm_(self._net.parameters(), MAX_GRAD_NORM)
        if bool(torch.isfinite(norm)):
            self._optimizer.step()

    def _evaluate(self, examples: Examples) -> None:
        held_out = examples.holds_out(MIN_HELD_OUT)
        total = examples.num_held_out if held_out else examples.num_train
        rows = np.unique(np.linspace(0, total - 1, min(total, MAX_EVALUATED)).astype(np.int64))
        texts, p = examples.answers(rows, held_out)
        assess = partial(_assess, examples=examples, texts=texts, p=p, noise_rate=self._noise_rate)
        excess, agreement = assess(self._net)
        best_excess, best_agreement = assess(self._best) if self.has_best else (np.inf, np.nan)
        if excess < min((1.0 - MIN_GAIN) * best_excess, best_excess - LEAST_GAIN):
            self._best.load_state_dict(self._net.state_dict())
            self.has_best, self.best_step, best_agreement = True, self.step, agreement
            self._outputs = IdValues()
            self._num_without_gain = 0
        else:
            self._num_without_gain += 1
        self.accuracy = best_agreement if held_out and np.isfinite(best_agreement) else None
        if self._num_without_gain >= self._config.patience:
            self._rests_until = max(1, self._num_learnt + examples.num_train // GROWTH)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        config = self._config
        return torch.optim.AdamW(
            self._net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def state_dict(self) -> dict[str, Any]:
        """Current and best weights, Adam's moments, counters, and the outputs computed so far."""
        return {
            "weights": {name: tensor.numpy().copy() for name, tensor in self._net.state_dict().items()},
            "best": {name: tensor.numpy().copy() for name, tensor in self._best.state_dict().items()},
            "adam": optimizer_state(self._net, self._optimizer),
            "step": self.step,
            "best_step": self.best_step,
            "has_best": self.has_best,
            "accuracy": self.accuracy,
            "num_without_gain": self._num_without_gain,
            "num_learnt": self._num_learnt,
            "rests_until": self._rests_until,
            "output_ids": self._outputs.ids.copy(),
            "outputs": self._outputs.values.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        for net, name in ((self._net, "weights"), (self._best, "best")):
            net.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in state[name].items()})
        self._optimizer = self._new_optimizer()
        load_optimizer_state(self._net, self._optimizer, state["adam"])
        self.step, self.has_best, self.accuracy = state["step"], state["has_best"], state["accuracy"]
        self.best_step = state.get("best_step", 0)  # older checkpoints lack it
        self._num_without_gain, self._num_learnt = state["num_without_gain"], state["num_learnt"]
        self._rests_until = state["rests_until"]
        self._outputs.replace(state["output_ids"], state["outputs"])


def _logits(outputs: Tensor, num: int) -> Tensor:
    """[num]: the outputs for single captions, or the differences of those for pairs, first minus second."""
    assert len(outputs) in (num, 2 * num)
    return outputs[:num] - outputs[num:] if len(outputs) > num else outputs


def unflipped(targets: Tensor, noise_rate: float) -> Tensor:
    """Unbiased estimates [N] of targets of which a fraction `noise_rate` was flipped; not clipped to [0, 1]."""
    return (targets - noise_rate) / (1.0 - 2.0 * noise_rate)


def flipped(p: np.ndarray, noise_rate: float) -> np.ndarray:
    """[N]: the answers to expect of a judge that flips a fraction `noise_rate` of answers p [N]; undoes `unflipped`."""
    return noise_rate + (1.0 - 2.0 * noise_rate) * p


@torch.no_grad()
def _assess(
    net: CaptionNet, examples: Examples, texts: list[bytes], p: np.ndarray, noise_rate: float
) -> tuple[float, float]:
    """Excess loss in nats, and agreement."""
    logits, targets = _logits(net(texts), len(p)), examples.targets(p).double()
    answers = logits.double()
    if noise_rate:
        answers = torch.logit(noise_rate + (1.0 - 2.0 * noise_rate) * torch.sigmoid(answers))
    entropy = -(torch.xlogy(targets, targets) + torch.xlogy(1.0 - targets, 1.0 - targets)).mean()
    loss = binary_cross_entropy_with_logits(answers, targets)
    return float(loss - entropy), examples.agreement(logits, p)


def is_held_out(caption_id: int, fraction: float, num_trained: int) -> bool:
    """Whether a new caption goes to the held-out split, by a hash of its id; never one of the first 200."""
    position = (caption_id * 0x9E3779B97F4A7C15 % 2**64) / 2**64  # Fibonacci hashing: ids need not be hashes themselves
    return num_trained >= MIN_TRAINED_BEFORE_HOLDING_OUT and position < fraction


def text_arrays(texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The texts as two arrays, for a checkpoint."""
    return {
        "text_bytes": np.frombuffer(b"".join(texts), np.uint8).copy(),
        "text_ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
    }


def saved_texts(state: Mapping[str, Any]) -> list[bytes]:
    """The texts in a state that contains `text_arrays`."""
    joined, ends = np.asarray(state["text_bytes"]).tobytes(), np.asarray(state["text_ends"]).tolist()
    return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, np.ndarray]]:
    """Copies of the optimiser's state by parameter name and key."""
    return {
        name: {key: tensor.cpu().numpy().copy() for key, tensor in optimizer.state[parameter].items()}
        for name, parameter in net.named_parameters()
        if parameter in optimizer.state
    }


def load_optimizer_state(
    net: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Continue from `optimizer_state`, with the optimiser's own hyper-parameters."""
    moments = {
        index: {key: torch.from_numpy(np.array(array)) for key, array in state[name].items()}
        for index, (name, _) in enumerate(net.named_parameters())
        if name in state
    }
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
