"""Several services asked as one: routing, failover, and no answered item asked again."""

import dataclasses
import threading
from collections import Counter

import numpy as np
import pytest

from actors.captions import caption_id
from configs.annotation_schema import AnnotatorConfig
from llm_server.annotation import PairJudgement, Status, Writing
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.replicas import Replicas, rendezvous_order, split_addresses
from llm_server.replicated_client import ReplicatedClient
from llm_server.writing.loading import load_brief
from tests.llm_server.fake_clients import FakeClient, FakeService, judge
from tests.llm_server.waiting import wait_until

ITEMS = [b"kill %d" % n if n % 3 else b"wall %d" % n for n in range(64)]
WAIT_S = 10.0


class Replica(FakeService):
    """A service that can be dead (it refuses connections) and judges by `model`."""

    def __init__(self):
        super().__init__()
        self.model = "fake"
        self.describes = 0
        self.dies_after = None
        self.fail_always = None

    def fail(self):
        if self.fail_always:
            raise self.fail_always
        if self.dies_after is not None and len(self.requests) > self.dies_after:
            raise ServiceUnavailable("died")
        super().fail()

    def connect(self):
        self.connections += 1
        return ReplicaClient(self)


class ReplicaClient(FakeClient):
    def describe(self):
        self._service.describes += 1
        self._service.fail()
        return dataclasses.replace(
            super().describe(), fingerprint=self._service.model, model=self._service.model, forward_passes=5
        )

    def annotate(self, items, *, abouts=()):
        if not abouts:
            return super().annotate(items)
        self._service.requests.append([*zip(texts(items), texts(abouts), strict=True)])
        return [judge(f"{item} {about}") for item, about in self._service.requests[-1]]

    def annotate_pairs(self, pairs):
        self._service.fail()
        return [
            PairJudgement(status=Status.OK, preference=len(a) / 100, answer_mass=1.0, position_bias=0.0)
            for a, _ in pairs
        ]

    def write(self, brief, fields, num, seed):
        self._service.fail()
        self._service.answered.append(f"{brief.id} {seed}")
        return [Writing(status=Status.OK, text=f"goal {seed}", tokens=2)] * num

    def embed(self, items):
        self._service.fail()
        self._service.answered += [item.decode() for item in items]
        return np.array([[len(item), 1.0] for item in items], np.float32)


@pytest.fixture
def made():
    clients = []

    def make(services, addresses=None, **options):
        set_of = Replicas(
            addresses or (lambda: {name: name for name in services}),
            lambda address: services[address].connect(),
            **{"first_backoff_s": 0.02, "max_backoff_s": 0.05, **options},
        )

        def client():
            clients.append(ReplicatedClient(set_of))
            return clients[-1]

        return set_of, client

    yield make
    for client in clients:
        client.close()
    for thread in threading.enumerate():
        if thread.name.startswith("replica-probe"):
            thread.join(WAIT_S)
            assert not thread.is_alive()


def texts(items):
    return [item.decode() for item in items]


def test_answers_come_in_the_order_asked_from_the_replica_that_each_item_prefers(made):
    services = {name: Replica() for name in ("a", "b", "c")}
    client = made(services)[1]()
    assert [(j.status, j.probability) for j in client.annotate(ITEMS)] == [
        (Status.OK, judge(t).probability) for t in texts(ITEMS)
    ]
    for name, service in services.items():
        wanted = [item for item in ITEMS if rendezvous_order(list(services), item)[0] == name]
        assert service.requests == [texts(wanted)]
        assert len(wanted) > 8, "rendezvous hashing spreads the items"
    vectors = client.embed(ITEMS)
    assert vectors[:, 0].tolist() == [len(item) for item in ITEMS]
    pairs = list(zip(ITEMS, reversed(ITEMS), strict=True))
    assert [j.preference for j in client.annotate_pairs(pairs)] == [len(first) / 100 for first, _ in pairs]
    assert client.describe().forward_passes == 15


def test_an_item_about_two_things_is_two_items_each_with_its_own_answer(made):
    services = {name: Replica() for name in ("a", "b", "c")}
    client = made(services)[1]()
    items, abouts = [b"a door"] * 20, [b"kill it" if n % 2 else b"open %d" % n for n in range(20)]
    assert [j.probability for j in client.annotate(items, abouts=abouts)] == [0.9 if n % 2 else 0.2 for n in range(20)]
    asked = [pair for service in services.values() for request in service.requests for pair in request]
    assert sorted(asked) == sorted(zip(texts(items), texts(abouts), strict=True))
    assert sum(bool(service.requests) for service in services.values()) > 1


def test_the_parts_of_a_batch_are_asked_at_once(made):
    services = {name: Replica() for name in ("a", "b")}
    client = made(services)[1]()
    client.describe()
    for service in services.values():
        service.gate.clear()
    thread = threading.Thread(target=client.annotate, args=(ITEMS,))
    thread.start()
    for service in services.values():
        assert service.arrived.acquire(timeout=WAIT_S), "both have their part while neither has answered"
    for service in services.values():
        service.gate.set()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_a_name_that_goes_moves_only_its_own_items():
    names = ["a", "b", "c", "d"]
    for item in ITEMS:
        before = rendezvous_order(names, item)
        assert rendezvous_order(["a", "c", "d"], item) == [name for name in before if name != "b"]
    shares = Counter(rendezvous_order(names, b"%d" % n)[0] for n in range(4000))
    assert all(850 < share < 1150 for share in shares.values()), shares


def test_items_of_a_dead_replica_go_to_the_next_and_it_costs_one_attempt_until_it_is_back(made, caplog):
    services = {name: Replica() for name in ("a", "b")}
    client = made(services, first_backoff_s=3600.0, max_backoff_s=3600.0)[1]()
    client.describe()
    services["b"].is_down = True
    for _ in range(5):
        assert len(client.annotate(ITEMS)) == len(ITEMS)
    assert len(services["b"].requests) == 1, "left out after the first failure, in spite of five batches"
    assert len(services["a"].requests) == 6
    assert not services["b"].answered
    assert sum("b is left out" in record.getMessage() for record in caplog.records) == 1


def test_a_replica_that_is_back_gets_its_items_again(made):
    services = {name: Replica() for name in ("a", "b")}
    replicas, make = made(services)
    client = make()
    services["b"].is_down = True
    client.annotate(ITEMS)
    assert replicas.up() == {"a": "a"}
    services["b"].is_down = False
    wait_until(lambda: "b" in replicas.up())
    client.annotate(ITEMS)
    wanted = [item for item in ITEMS if rendezvous_order(["a", "b"], item)[0] == "b"]
    assert services["b"].answered == texts(wanted)


def test_what_was_answered_is_not_asked_again_although_the_rest_of_the_batch_failed(made):
    services = {name: Replica() for name in ("a", "b")}
    replicas, make = made(services)
    client = make()
    services["a"].dies_after = 0
    services["b"].dies_after = 1  # answers its own part, and dies over a's
    with pytest.raises(ServiceUnavailable, match="no annotation replica answers: a: died; b: died"):
        client.annotate(ITEMS)
    client.close()
    kept = services["b"].answered.copy()
    assert kept
    for service in services.values():
        service.dies_after = None
    again = make()
    wait_until(lambda: len(replicas.up()) == 2)
    assert [j.probability for j in again.annotate(ITEMS)] == [judge(text).probability for text in texts(ITEMS)]
    asked = Counter(text for service in services.values() for text in service.answered)
    assert set(asked.values()) == {1}
    assert len(asked) == len(ITEMS)
    again.annotate(ITEMS[:1])
    assert Counter(text for service in services.values() for text in service.answered)[texts(ITEMS)[0]] == 2, (
        "kept once, not for ever"
    )


def test_replicas_that_judge_otherwise_are_refused_at_the_start(made):
    services = {name: Replica() for name in ("a", "b")}
    services["b"].model = "another"
    client = made(services)[1]()
    with pytest.raises(
        AnnotationRefused, match=r"judges with \w+ \(fake, weights \w+\), wanted .* start both with the same model"
    ):
        client.describe()


def test_replicas_whose_thetas_differ_by_rounding_agree_and_the_first_ones_holds(made):
    services = {name: Replica() for name in ("a", "b")}
    services["b"].threshold = 0.5000001
    client = made(services)[1]()
    theta = client.describe().threshold  # of whoever was first to answer
    assert theta in (0.5, 0.5000001)
    for name in services:
        services[name].fail_always = ServiceUnavailable("down")
        assert len(client.annotate(ITEMS)) == len(ITEMS)
        assert client.describe().threshold == theta
        services[name].fail_always = None
        wait_until(lambda: client.describe() and len(client._replicas.up()) == 2)


def test_a_replica_that_comes_back_with_another_model_stays_out(made):
    services = {name: Replica() for name in ("a", "b")}
    replicas, make = made(services)
    client = make()
    client.describe()
    client.annotate(ITEMS)
    services["b"].is_down = True
    client.annotate(ITEMS)
    services["b"].model, services["b"].is_down = "another", False
    asked = services["b"].describes
    wait_until(lambda: services["b"].describes > asked + 2)
    assert replicas.up() == {"a": "a"}
    assert len(client.annotate(ITEMS)) == len(ITEMS)
    assert client.describe().model == "fake"


def test_every_replica_refusing_is_a_refusal_and_one_that_is_only_down_is_not(made):
    services = {name: Replica() for name in ("a", "b")}
    refusal = AnnotationRefused("wrong token")
    for service in services.values():
        service.fail_always = refusal
    client = made(services)[1]()
    with pytest.raises(AnnotationRefused, match="every annotation replica refuses: a: wrong token; b: wrong token"):
        client.annotate(ITEMS)
    services = {name: Replica() for name in ("a", "b")}
    services["a"].fail_always, services["b"].is_down = refusal, True
    with pytest.raises(ServiceUnavailable, match="a: wrong token; b: connection refused"):
        made(services)[1]().annotate(ITEMS)


def test_a_replica_that_moves_is_asked_at_its_new_place_at_once_and_keeps_its_items(made):
    places = {"at 1": Replica(), "at 2": Replica(), "at 3": Replica()}
    where = {"first": "at 1", "second": "at 2"}
    replicas, make = made(places, addresses=lambda: where, first_backoff_s=3600.0, max_backoff_s=3600.0)
    client = make()
    client.annotate(ITEMS)
    places["at 2"].is_down = True
    client.annotate(ITEMS)
    assert replicas.up() == {"first": "at 1"}
    where["second"] = "at 3"
    client.annotate(ITEMS)
    assert places["at 3"].answered == places["at 2"].answered
    del where["first"]
    assert len(client.annotate(ITEMS)) == len(ITEMS)


def test_while_there_are_none_yet_asking_says_so(made):
    def none_yet():
        raise ServiceUnavailable("the replicas are starting")

    _, make = made({}, addresses=none_yet)
    with pytest.raises(ServiceUnavailable, match="starting"):
        make().annotate(ITEMS)
    with pytest.raises(ServiceUnavailable, match="there is none"):
        made({})[1]().describe()


def test_encoders_of_several_sizes_are_refused(made):
    services = {name: Replica() for name in ("a", "b")}
    client = made(services)[1]()
    client.embed(ITEMS)
    ReplicaClient.embed, whole = (
        lambda self, items: np.ones((len(items), 2 + (self._service is services["b"])), np.float32),
        ReplicaClient.embed,
    )
    try:
        with pytest.raises(AnnotationRefused, match=r"\[2, 3\] dimensions"):
            client.embed(ITEMS)
    finally:
        ReplicaClient.embed = whole


def test_whoever_connects_anew_while_all_are_down_finds_the_first_that_is_back(made):
    services = {name: Replica() for name in ("a", "b")}
    _, make = made(services, first_backoff_s=3600.0, max_backoff_s=3600.0)
    client = make()
    for service in services.values():
        service.is_down = True
    with pytest.raises(ServiceUnavailable):
        client.annotate(ITEMS)
    client.close()
    services["b"].is_down = False
    again = make()
    assert again.describe().forward_passes == 5
    assert len(again.annotate(ITEMS)) == len(ITEMS)
    assert len(services["b"].answered) == len(ITEMS)


def test_a_closed_client_fails_its_requests_and_nothing_is_probed_any_more(made):
    services = {name: Replica() for name in ("a", "b")}
    _, make = made(services)
    client = make()
    client.describe()
    services["b"].is_down = True
    client.annotate(ITEMS)
    client.close()
    client.close()
    wait_until(lambda: not any(thread.name.startswith("replica-probe") for thread in threading.enumerate()))
    connections = services["b"].connections
    with pytest.raises(ServiceUnavailable):
        client.annotate(ITEMS)
    assert services["b"].connections == connections
    assert services["a"].closed == services["a"].connections


def test_an_annotator_loses_no_caption_and_asks_none_twice_while_replicas_come_and_go(made):
    services = {name: Replica() for name in ("a", "b", "c")}
    _, make = made(services)
    captions = [f"kill {n}" for n in range(2000)]
    book = CaptionBook(10_000, 1000)
    book.take_report(
        {caption_id(text): text for text in captions}, {caption_id(text): 1 for text in captions}, "0.a", 0, 1
    )
    annotator = Annotator(
        make, CaptionQuestions(book), AnnotatorConfig(batch_size=32, max_in_flight=3, max_backoff_s=0.1)
    )
    annotator.start()
    labels = []
    try:
        for turn in range(400):
            victim = services["abc"[turn // 4 % 3]]
            victim.is_down = not victim.is_down
            annotator.wait(0.01)
            labels += annotator.take()
        for service in services.values():
            service.is_down = False
        wait_until(lambda: labels.extend(annotator.take()) or len(labels) >= len(captions))
    finally:
        annotator.close()
        book.close()
    assert sorted(label.caption.text for label in labels) == sorted(captions)
    asked = Counter(text for service in services.values() for text in service.answered)
    assert set(asked.values()) == {1}
    assert annotator.problem is None


def test_a_list_of_addresses_may_have_spaces():
    assert split_addresses(" a:1, b:2 ,") == ["a:1", "b:2"]
    assert split_addresses("") == []


def test_the_same_fields_are_written_about_by_the_same_replica_and_by_another_where_it_fails(made):
    services = {name: Replica() for name in ("a", "b", "c")}
    client, brief = made(services)[1](), load_brief("suggest_goals")
    for seed in range(3):
        assert [w.text for w in client.write(brief, {"state": b"A door."}, 2, seed)] == [f"goal {seed}"] * 2
    (one,) = [service for service in services.values() if service.answered]
    assert one.answered == [f"suggest_goals {seed}" for seed in range(3)]
    for n in range(20):
        client.write(brief, {"state": b"A door %d." % n}, 1, 0)
    assert all(service.answered for service in services.values())
    one.is_down = True
    assert client.write(brief, {"state": b"A door."}, 1, 9)[0].text == "goal 9"
    for service in services.values():
        service.is_down = True
    with pytest.raises(ServiceUnavailable):
        client.write(brief, {"state": b"A door."}, 1, 9)
