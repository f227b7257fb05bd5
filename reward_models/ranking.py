"""The ranking reward model: a byte-level network whose output differences predict which of two captions is better
(Bradley-Terry).

Invariant: the rewards of a version are normalised over exactly the caption table of that version, each caption weighted
by its count; only the normalised, thresholded value leaves the model.
"""

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from configs.annotation_schema import RewardModelConfig
from configs.reward_schema import RobustConfig
from llm_server.annotation import Caption, JudgedPair, log_odds
from llm_server.annotator.caption_texts import ids_of
from reward_models.interface import UNGUARDED, Asks, Evidence, RewardModel, without_empty
from reward_models.networks.ensemble import Ensemble, bootstrap_weights, lower_bound
from reward_models.networks.fitting import MIN_HELD_OUT, is_held_out, saved_texts, text_arrays
from reward_models.networks.pseudo_labels import PseudoExample, PseudoLabels, unlabelled

SIZES, DROPOUT = (256, 512), 0.0
MAX_PAIRS = 1_000_000
"""Pairs kept per split; the oldest are removed first."""
FIXED, BY_THETA = -1.0, -2.0
"""Special values of `epsilon_quantile`, which are not quantiles."""
COMPARED_QUANTILE = 0.5
"""The quantile of Motif."""
MIN_DEVIATION = 0.1
"""Lower bound of sigma, in log-odds: a caption one such deviation above the average is preferred to it with probability
0.525. Smaller differences between captions are training noise, not the judge's opinion."""
Scale: TypeAlias = tuple[np.ndarray, np.ndarray, float]


class RankingModel(RewardModel):
    """R = z where z > epsilon, else 0, with z = (f(caption) - mu) / sigma (ONI-Ranking, arXiv 2410.23022; Motif, arXiv
    2310.00166).

    f is trained so that p(first is better) = s(f(first) - f(second)), s the logistic function, on soft preferences (a
    tie is 0.5). mu and sigma are the mean and standard deviation of f over all non-empty captions of the table,
    weighted by their counts; sigma is at least 0.1. By default epsilon is the quantile of z at which theta divides the
    captions that the judge was asked about, and at least 0; otherwise it is `reward_model.epsilon`, or the
    `epsilon_quantile` of z over the distinct captions. In an ensemble each network has its own mu and sigma, and z is
    the lower bound of theirs.
    """

    name = "ranking"
    asks = Asks.PAIRS
    is_trained = True
    depends_on_counts = True

    def __init__(self, config: RewardModelConfig, seed: int = 0, robust: RobustConfig = UNGUARDED) -> None:
        super().__init__(config, seed, robust)
        if config.epsilon_quantile != FIXED and config.epsilon != RewardModelConfig().epsilon:
            raise ValueError(
                f"reward_model.epsilon: got {config.epsilon}, which reward_model.epsilon_quantile="
                f"{config.epsilon_quantile} overrides; set reward_model.epsilon_quantile=-1 to use it"
            )
        self._config = config
        # (first id, second id, preference) in the order of arrival, by whether they are held out
        self._pairs: dict[bool, list[tuple[int, int, float]]] = {False: [], True: []}
        self._texts: dict[int, bytes] = {}  # of every caption in a pair
        self._held_out_captions: set[int] = set()
        self._networks = Ensemble(SIZES, DROPOUT, config, seed, robust)
        self._seed, self._robust, self._pseudo = seed, robust, PseudoLabels(robust)
        self._judged: dict[int, float] = {}  # the judge's probability by caption id, if it judged single captions
        self._theta = math.nan
        # of the last table: mu and sigma of each network [K] f64, and epsilon
        self._scale = (np.full(robust.ensemble, np.nan), np.full(robust.ensemble, np.nan), math.nan)
        self._num_compared = self._num_apart = 0  # pairs that the judge compared; those whose two orders disagree

    @property
    def num_train(self) -> int:
        """Training pairs, of which both captions are in the training split, and pseudo-labelled ones."""
        return len(self._pairs[False]) + len(self._pseudo.examples)

    @property
    def num_held_out(self) -> int:
        """Pairs with a held-out caption."""
        return len(self._pairs[True])

    def holds_out(self, num_captions: int) -> bool:
        """Captions are counted, because a few captions can be in many pairs."""
        found: set[int] = set()
        for first, second, _ in self._pairs[True]:
            found |= {first, second} & self._held_out_captions
            if len(found) >= num_captions:
                return True
        return False

    @property
    def is_settled(self) -> bool:
        return self._networks.is_settled(self)

    def calibrate(self, threshold: float) -> None:
        self._theta = threshold

    def _add(self, item: Evidence) -> None:
        if not isinstance(item, JudgedPair):
            return
        first, second = item.pair.first, item.pair.second
        self._judged.update(zip((first.id, second.id), item.judgement.singles or (), strict=False))
        if item.judgement.singles is None:
            self._num_compared += 1
            self._num_apart += abs(item.judgement.position_bias) > abs(float(log_odds(item.judgement.preference)))
        if first.id and second.id and first.id != second.id:
            self._add_caption(first)
            self._add_caption(second)
            is_held_out_pair = bool({first.id, second.id} & self._held_out_captions)
            pairs = self._pairs[is_held_out_pair]
            pairs.append((first.id, second.id, item.judgement.preference))
            if len(pairs) > MAX_PAIRS:
                del pairs[: len(pairs) - MAX_PAIRS * 9 // 10]
            if not is_held_out_pair:
                self._networks.note_examples()

    def _add_caption(self, caption: Caption) -> None:
        if caption.id not in self._texts:
            num_trained = len(self._texts) - len(self._held_out_captions)
            if is_held_out(caption.id, self._config.held_out_fraction, num_trained):
                self._held_out_captions.add(caption.id)
            self._texts[caption.id] = caption.text.encode()
            self._pseudo.drop(caption.id)

    def train(self) -> Mapping[str, float]:
        """Take some gradient steps; `accuracy` is the agreement on the order of held-out pairs, without ties."""
        return self._networks.train(self, self._config.steps_per_turn)

    def score(self, captions: Sequence[Caption], counts: np.ndarray) -> np.ndarray:
        """[N] f32: R of each caption, NaN before the first evaluation of every network."""
        outputs = self._networks.outputs(captions)
        if not self._is_frozen:
            is_text = ids_of(captions) != 0
            judged = np.array([self._judged.get(number, math.nan) for number in ids_of(captions).tolist()])
            self._scale = self._measured(outputs[:, is_text], np.asarray(counts, np.float64)[is_text], judged[is_text])
        z = self._z(outputs, *self._scale[:2])
        return without_empty(captions, np.where(z <= self._scale[2], 0.0, z))

    def _z(self, outputs: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """[K, N] -> [N]."""
        return lower_bound((outputs - mu[:, None]) / sigma[:, None], self._robust.pessimism)

    def _measured(self, outputs: np.ndarray, counts: np.ndarray, judged: np.ndarray) -> Scale:
        """mu, sigma and epsilon over a table of `outputs` [K, N], `judged` the judge's probabilities of single captions
        (NaN if unknown); NaN without outputs."""
        if not outputs.size or np.isnan(outputs).any():
            return np.full(len(outputs), np.nan), np.full(len(outputs), np.nan), math.nan
        weights = counts if counts.sum() > 0 else np.ones(len(counts))
        mu = np.array([np.average(each, weights=weights) for each in outputs])
        squares = (outputs - mu[:, None]) ** 2
        sigma = np.maximum(np.sqrt([np.average(each, weights=weights) for each in squares]), MIN_DEVIATION)
        z = self._z(outputs, mu, sigma)
        if self._config.epsilon_quantile == FIXED:
            return mu, sigma, self._config.epsilon
        if self._config.epsilon_quantile != BY_THETA:
            return mu, sigma, float(np.quantile(z, self._config.epsilon_quantile))
        known = ~np.isnan(judged)
        if math.isnan(self._theta) or not known.any():  # captions were compared in pairs, so theta does not apply
            return mu, sigma, float(np.quantile(z, COMPARED_QUANTILE))
        return mu, sigma, max(0.0, float(np.quantile(z[known], np.mean(judged[known] <= self._theta))))

    def margins(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64: standard deviations above epsilon."""
        mu, sigma, epsilon = self._scale
        return self._z(self._networks.outputs(captions), mu, sigma) - epsilon

    def deviations(self, captions: Sequence[Caption]) -> np.ndarray:
        """[N] f64, of z."""
        if self._robust.ensemble == 1:
            return super().deviations(captions)
        mu, sigma, _ = self._scale
        return ((self._networks.outputs(captions) - mu[:, None]) / sigma[:, None]).std(axis=0)

    def adopt_confident(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Pseudo-labels are the networks' mean predictions about disjoint pairs of captions, drawn at random."""
        best_steps = self._networks.best_steps
        if self._is_frozen or not self._pseudo.is_due(best_steps) or not self.holds_out(MIN_HELD_OUT):
            return
        num_trained = len(self._texts) - len(self._held_out_captions)
        rows = unlabelled(captions, counts, self._texts, self._config.held_out_fraction, num_trained)
        rows = np.random.default_rng((self._seed, *best_steps)).permutation(rows)
        rows = rows[: len(rows) // 2 * 2].reshape(-1, 2)
        outputs = self._networks.outputs(captions)
        q = 1.0 / (1.0 + np.exp((outputs[:, rows[:, 1]] - outputs[:, rows[:, 0]]).mean(axis=0)))
        num_new = self._pseudo.replace(captions, rows, q, len(self._pairs[False]), best_steps)
        self._networks.note_examples(num_new)

    def metrics(self) -> Mapping[str, float]:
        """`pseudo_labels`, if they are enabled, and `pair_order_disagreement`, if the judge compared pairs."""
        compared = self._num_compared
        apart = {"pair_order_disagreement": self._num_apart / compared} if compared else {}
        return {**self._pseudo.metrics(), **apart}

    # -- training examples (see `networks.fitting.Examples`)

    def answers(self, rows: np.ndarray, held_out: bool) -> tuple[list[bytes], np.ndarray]:
        """All first captions, then all second ones; and the preferences."""
        pairs = [self._example(row, held_out) for row in rows.tolist()]
        texts = [pair.texts[side] for side in (0, 1) for pair in pairs]
        return texts, np.array([pair.p for pair in pairs])

    def weights(self, rows: np.ndarray, member: int) -> np.ndarray:
        """The product of those of both captions."""
        ids = np.array([self._example(row, False).ids for row in rows.tolist()], np.uint64).reshape(-1, 2)
        return bootstrap_weights(ids[:, 0], member) * bootstrap_weights(ids[:, 1], member)

    def _example(self, row: int, held_out: bool) -> PseudoExample:
        """A pair, or after those that are trained on, a pseudo-labelled one."""
        pairs = self._pairs[held_out]
        if row >= len(pairs):
            return self._pseudo.examples[row - len(pairs)]
        first, second, preference = pairs[row]
        return PseudoExample((first, second), (self._texts[first], self._texts[second]), preference)

    def targets(self, p: np.ndarray) -> Tensor:
        """Preferences, smoothed."""
        return torch.from_numpy(p + self._config.label_smoothing * (0.5 - p)).float()

    def agreement(self, logits: Tensor, p: np.ndarray) -> float:
        """Fraction of pairs, without ties, that network and judge order alike."""
        decided = p != 0.5
        return float(np.mean((logits.numpy() > 0)[decided] == (p > 0.5)[decided])) if decided.any() else math.nan

    # -- state

    def retain(self, ids: Set[int]) -> None:
        """Forget every other caption, its output and its pairs."""
        for pairs in self._pairs.values():
            pairs[:] = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        self._texts = {number: text for number, text in self._texts.items() if number in ids}
        self._held_out_captions &= ids
        self._judged = {number: p for number, p in self._judged.items() if number in ids}
        self._pseudo.retain(ids)
        self._networks.retain(ids)

    def freeze(self, captions: Sequence[Caption], counts: np.ndarray) -> None:
        """Stop training, fix mu, sigma and epsilon at their values over this table, and remove all pairs."""
        self.score(captions, counts)
        self._is_frozen = True
        self.retain(frozenset())

    def state_dict(self) -> dict[str, Any]:
        """Pairs of both splits with their captions, statistics, weights, optimiser, counters."""
        return {
            "train": _pair_arrays(self._pairs[False]),
            "held_out": _pair_arrays(self._pairs[True]),
            "ids": np.array(list(self._texts), np.uint64),
            "held_out_ids": np.array(sorted(self._held_out_captions), np.uint64),
            **text_arrays(list(self._texts.values())),
            "judged_ids": np.array(list(self._judged), np.uint64),
            "judged": np.array(list(self._judged.values()), np.float64),
            "theta": self._theta,
            "scale": [*self._scale[0].tolist(), *self._scale[1].tolist(), self._scale[2]],
            "fitting": self._networks.state_dict(),
            "is_frozen": self._is_frozen,
            **({"orders": [self._num_compared, self._num_apart]} if self._num_compared else {}),
            **self._pseudo.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pairs = {False: _saved_pairs(state["train"]), True: _saved_pairs(state["held_out"])}
        self._texts = dict(zip(state["ids"].tolist(), saved_texts(state), strict=True))
        self._held_out_captions = set(state["held_out_ids"].tolist())
        self._judged = dict(zip(state["judged_ids"].tolist(), state["judged"].tolist(), strict=True))
        self._theta = state["theta"]
        *scales, epsilon = state["scale"]
        mu, sigma = np.array(scales).reshape(2, -1)
        self._scale = mu, sigma, epsilon
        self._num_compared, self._num_apart = state.get("orders", (0, 0))
        self._pseudo.load_state_dict(state)
        self._networks.load_state_dict(state["fitting"])
        self._is_frozen = state["is_frozen"]


def _pair_arrays(pairs: list[tuple[int, int, float]]) -> dict[str, np.ndarray]:
    return {
        "firsts": np.array([first for first, _, _ in pairs], np.uint64),
        "seconds": np.array([second for _, second, _ in pairs], np.uint64),
        "preferences": np.array([preference for _, _, preference in pairs], np.float64),
    }


def _saved_pairs(state: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    columns = (state[name].tolist() for name in ("firsts", "seconds", "preferences"))
    return list(zip(*columns, strict=True))
