"""The channels `state`, `change` and `history`: their texts, and a worker's signals against a slow reference."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actors import channels
from actors.captions import MAX_CAPTION_BYTES, CaptionTracker, caption_id, normalize
from actors.channels import Channels, channel_text, differences, first_sentences
from actors.environments.factory import make_environment
from actors.inference import BatchedInference
from actors.policy import PolicyNet, snapshot
from actors.rollout import Acknowledgement, CaptionReport, Rollout
from actors.worker import RolloutWorker
from configs.schema import ActorsConfig, EnvConfig, PolicyConfig
from tests.faults.faulty_environments import OnceBroken

NUM_ENVS, NUM_STEPS = 4, 12
READS = ("state", "change", "history")
POLICY = PolicyConfig(hidden_size=16, core_size=16)
CORRIDOR = EnvConfig(
    id="tests.toy_environments:Corridor-v0",
    options={"length": 5},
    max_episode_steps=9,
    describer="tests.toy_environments:describe",
    action_names=["back", "forward"],
)
BROKEN = dataclasses.replace(
    CORRIDOR,
    id="tests.faults.faulty_environments:OnceBroken-v0",
    options={"which": 2, "at_step": 15},
    action_names=["slide", "forward", "hum", "fall"],
)


@pytest.mark.parametrize(
    ("before", "after", "message", "text"),
    [
        ("A closed door.", "An open door.", "WHAMM!", "No longer: a closed door. New: an open door. Message: WHAMM!"),
        ("A closed door.", "An open door. A closed door.", "", "New: an open door."),
        ("Healthy. A jackal.  Gold", "Hurt. Gold.", "", "No longer: healthy; a jackal. New: hurt."),
        ("A. B.", "B. A.", "", ""),
        ("A. B.", "B. A.", "It bites!  You die...", "Message: It bites!  You die..."),
        ("", "HP is low! I rest.", "", "New: HP is low!; I rest."),
        ("", "", "", ""),
    ],
)
def test_a_change_is_what_is_gone_what_is_new_and_the_message(before: str, after: str, message: str, text: str) -> None:
    assert change_text(before, after, message) == text


def test_texts_that_are_too_long_are_cut_at_a_sentence_or_message() -> None:
    many = " ".join(f"Fact number {n}." for n in range(40))
    kept = channel_text(many.encode())
    assert MAX_CAPTION_BYTES - 20 < len(kept) <= MAX_CAPTION_BYTES
    assert many.startswith(f"{kept} ")
    assert first_sentences("One. Two; three.", 10) == "One. Two."
    assert first_sentences("One. Two.", 4) == "One."
    assert first_sentences("é" * 10, 5) == "éé"
    assert channel_text(b"a \x1b[31m fact.\n Another.") == "a  [31m fact.  Another."
    messages = "  ".join(f"You hit the newt number {n}." for n in range(8))
    assert len(messages) < MAX_CAPTION_BYTES
    told = change_text(many, many.replace("Fact", "A fact"), messages)
    facts, message = told.split(" Message: ")
    assert facts.startswith("No longer: fact number 0; fact number 1")
    assert facts.endswith(".")
    assert message.startswith("You hit")
    assert message.endswith("number 7.")
    assert MAX_CAPTION_BYTES - 60 < len(told) <= MAX_CAPTION_BYTES
    assert change_text(many, many, messages) == f"Message: {messages}"
    assert channel_text(told.encode()) == told


def change_text(before: str, after: str, message: str) -> str:
    return channels.change_text(differences(before.encode(), after.encode()), message)


class Reference:
    """The signals of corridors step by step, from their actions and captions alone."""

    def __init__(self, move: Callable[[int, int], int], names: list[str]) -> None:
        self.move, self.names = move, names
        self.texts = {0: ""}
        self.cells, self.actions = [0] * NUM_ENVS, [[] for _ in range(NUM_ENVS)]
        self.seen = [self._begun() for _ in range(NUM_ENVS)]

    def signals(self, rollout: Rollout) -> dict[str, np.ndarray]:
        given = {name: np.zeros_like(array) for name, array in rollout.signals.items()}
        for t, i in np.ndindex(rollout.actions.shape):
            lost = i in rollout.lost and rollout.truncated[t, i] and np.isnan(rollout.final_values[t, i])
            action, before = int(rollout.actions[t, i]), self.cells[i]
            assert rollout.obs["position"][t, i].argmax() == before
            after = self.move(before, action)
            self.actions[i].append(self.names[action])
            old, new, caption = f"cell {before}", f"cell {after}", self.texts[int(rollout.caption_ids[t, i])]
            items = {"state": new, "change": change(old, new, caption), "history": history(self.actions[i], self.names)}
            for name, text in items.items():
                number = 0 if lost else caption_id(text)
                self.seen[i][name, number] += 1
                given[name][t, i], given[f"{name}_counts"][t, i] = number, self.seen[i][name, number]
            given["state_before"][t, i] = caption_id(old)
            self.cells[i] = after
            if rollout.terminated[t, i] or rollout.truncated[t, i]:
                self.cells[i], self.actions[i], self.seen[i] = 0, [], self._begun()
        return given

    @staticmethod
    def _begun() -> Counter[tuple[str, int]]:
        return Counter({("state", caption_id("cell 0")): 1, ("change", 0): 1, ("history", 0): 1})


def change(old: str, new: str, caption: str) -> str:
    facts = f"No longer: {old}. New: {new}." if old != new else ""
    return " ".join(filter(None, [facts, f"Message: {caption}" if caption else ""]))


def history(actions: list[str], names: list[str]) -> str:
    told = {least: [] for least in (0.5, 0.2)}
    for name in names:
        share = actions.count(name) / max(10, len(actions))
        if share >= 0.2:
            told[0.5 if share >= 0.5 else 0.2].append(name)
    named = [*(f"mostly {name}" for name in told[0.5]), *(f"often {name}" for name in told[0.2])]
    return ", ".join(named) or ("a bit of everything" if len(actions) >= 10 else "")


def walk(before: int, action: int) -> int:
    return before + 1 if action == 1 else max(before - 1, 0)


def slide(before: int, action: int) -> int:
    return {1: before + 1, 2: before}.get(action, 0)


@pytest.fixture
def make_worker() -> Iterator[Callable[..., RolloutWorker]]:
    workers: list[RolloutWorker] = []

    def make(config: EnvConfig, reads: tuple[str, ...] = READS, num_steps: int = NUM_STEPS) -> RolloutWorker:
        OnceBroken.made = 0
        env = make_environment(config, num_envs=NUM_ENVS, run_seed=5, worker_index=0)
        actors = ActorsConfig(rollout_steps=num_steps, precision="fp32")
        inference = BatchedInference(PolicyNet(env.spec, POLICY), env.spec, NUM_ENVS, actors)
        read = Channels(reads, NUM_ENVS, env.spec.action_names)
        trackers: Any = (env, inference, CaptionTracker(NUM_ENVS), actors)
        workers.append(RolloutWorker(*trackers, worker_id="0.0", seed=3, channels=read))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def collect(worker: RolloutWorker, acknowledged: int | None = None) -> tuple[Rollout, CaptionReport]:
    torch.manual_seed(0)
    net = PolicyNet(worker.env.spec, POLICY)
    torch.nn.init.orthogonal_(net.policy_head.weight, 2.0)
    told = None if acknowledged is None else Acknowledgement(book_epoch="book", sequence_number=acknowledged)
    return worker.collect(snapshot(net, (1, 0)), told)


def assert_same(one: Rollout, other: Rollout) -> None:
    assert one.signals.keys() == other.signals.keys()
    for name, array in one.signals.items():
        assert (array.dtype, array.tobytes()) == (other.signals[name].dtype, other.signals[name].tobytes()), name


def check(worker: RolloutWorker, expected: Reference, num: int) -> list[Rollout]:
    """Collect `num` rollouts, and compare signals and reports with the reference."""
    rollouts = []
    for _ in range(num):
        rollout, report = collect(worker)
        expected.texts |= report.texts
        signals = expected.signals(rollout)
        assert signals.keys() == {*READS, *(f"{name}_counts" for name in READS), "state_before"}
        for name, array in signals.items():
            np.testing.assert_array_equal(rollout.signals[name], array, err_msg=name)
        assert list(report.channels) == list(READS)
        for name, (texts, counts) in report.channels.items():
            shown = Counter(rollout.signals[name].reshape(-1).tolist())
            assert {id_: count for id_, count in counts.items() if count} == {i: n for i, n in shown.items() if i}
            assert all(caption_id(text) == id_ for id_, text in texts.items())
            assert counts.keys() <= texts.keys(), "nothing has been acknowledged"
        rollouts.append(rollout)
    return rollouts


def test_signals_are_those_of_a_per_step_reference_over_ends_and_rollouts(
    make_worker: Callable[..., RolloutWorker],
) -> None:
    rollouts = check(make_worker(CORRIDOR), Reference(walk, CORRIDOR.action_names), 6)
    assert sum(rollout.terminated.sum() for rollout in rollouts) > 3
    assert sum(rollout.truncated.sum() for rollout in rollouts) > 3


def test_a_lost_environments_step_shows_nothing_and_its_next_episode_begins_afresh(
    make_worker: Callable[..., RolloutWorker],
) -> None:
    rollouts = check(make_worker(BROKEN), Reference(slide, BROKEN.action_names), 4)
    assert [rollout.lost for rollout in rollouts] == [(), (2,), (), ()]
    cut = int(np.flatnonzero(rollouts[1].truncated[:, 2] & np.isnan(rollouts[1].final_values[:, 2]))[0])
    assert rollouts[1].signals["state"][cut, 2] == 0
    assert rollouts[1].signals["state_before"][cut + 1, 2] == caption_id("cell 0")
    whole = rollouts[1].without_lost().signals
    assert all(array.shape == (NUM_STEPS, NUM_ENVS - 1) for array in whole.values())


@pytest.mark.parametrize("env_id", ["Corridor-v0", "ForgetfulCorridor-v0"])
def test_a_resumed_worker_goes_on_exactly_or_with_new_episodes(
    env_id: str, make_worker: Callable[..., RolloutWorker]
) -> None:
    config = dataclasses.replace(CORRIDOR, id=f"tests.toy_environments:{env_id}")
    worker = make_worker(config)
    for number in range(2):
        collect(worker, number - 1 if number else None)
    saved = worker.state_dict()
    plain = json.loads(json.dumps(saved, default=lambda array: {"array": array.tolist(), "dtype": str(array.dtype)}))
    successor = make_worker(config)
    collect(successor)
    successor.load_state_dict(_arrays(plain))
    if env_id == "Corridor-v0":
        assert successor.env.states == worker.env.states
        for _ in range(3):
            (rollout, report), (theirs, their_report) = collect(worker), collect(successor)
            assert_same(rollout, theirs)
            assert {name: counts for name, (_, counts) in report.channels.items()} == {
                name: counts for name, (_, counts) in their_report.channels.items()
            }
            assert all(
                {**texts, **their_report.channels[name][0]} == their_report.channels[name][0]
                for name, (texts, _) in report.channels.items()
            ), "what was not known to be stored is sent again"
    else:
        rollout, _ = collect(successor)
        assert (rollout.signals["state_before"][0] == caption_id("cell 0")).all()
        assert (rollout.signals["history"][0] == 0).all()


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        if state.keys() == {"array", "dtype"}:
            return np.array(state["array"], state["dtype"])
        return {key: _arrays(value) for key, value in state.items()}
    return state


def test_acknowledged_texts_are_not_sent_again_on_any_channel(make_worker: Callable[..., RolloutWorker]) -> None:
    worker = make_worker(CORRIDOR)
    _, first = collect(worker)
    assert all(texts for texts, _ in first.channels.values())
    _, second = collect(worker, 0)
    for name, (texts, _) in second.channels.items():
        assert not first.channels[name][0].keys() & texts.keys()


@pytest.mark.parametrize("reads", [(), ("state",), ("change",), ("history",)])
def test_only_what_is_read_is_there_and_nothing_else_differs(
    reads: tuple[str, ...], make_worker: Callable[..., RolloutWorker]
) -> None:
    config = dataclasses.replace(CORRIDOR, describer=CORRIDOR.describer if {*reads} - {"history"} else "")
    one, other = make_worker(CORRIDOR), make_worker(config, reads)
    (rollout, report), (theirs, their_report) = collect(one), collect(other)
    expected = {name for name in rollout.signals if name.rpartition("_")[0] in reads or name in reads}
    assert set(theirs.signals) == expected
    for name in expected:
        np.testing.assert_array_equal(rollout.signals[name], theirs.signals[name])
    assert set(their_report.channels) == set(reads)
    assert (report.texts, report.counts) == (their_report.texts, their_report.counts)
    np.testing.assert_array_equal(rollout.caption_ids, theirs.caption_ids)
    np.testing.assert_array_equal(rollout.actions, theirs.actions)
    assert ("channels" in other.state_dict()) == bool(reads)


def test_folding_applies_to_the_captions_of_changes_and_to_nothing_else() -> None:
    def fold(raw: bytes) -> str:
        return normalize(raw, fold_case=True, fold_digits=True)

    read = Channels(("change",), 1, caption_text=fold)
    assert read._change(b"Room 12.", b"Room 13.", b"You ENTER 13.") == (
        b"No longer: room 12. New: room 13. Message: you enter 0."
    )


def test_many_distinct_items_are_noticed_once(
    make_worker: Callable[..., RolloutWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MAX_DISTINCT", 4)
    worker = make_worker(CORRIDOR)
    notices = [notice for _ in range(5) for notice in collect(worker)[0].environment_notices]
    about = [next(name for name in READS if f"channel `{name}`" in notice) for notice in notices]
    assert Counter(about) == {"state": 1, "change": 1, "history": 1}
    assert any(notice.endswith("make the describer (env.describer) coarser") for notice in notices)


def test_history_without_names_of_the_actions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env.action_names: got none.*wanted a word for each action"):
        Channels(("history",), 1, ())
