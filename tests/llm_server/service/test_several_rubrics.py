"""One service with several rubrics: each is asked, stored and described as by a service of its own."""

import dataclasses
import sqlite3
from contextlib import ExitStack, closing

import grpc
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.annotation import Status
from llm_server.annotation_pb2 import AnnotateRequest, DescribeRequest
from llm_server.annotation_pb2_grpc import AnnotationStub
from llm_server.client import AnnotationClient, AnnotationRefused, InProcessClient
from llm_server.engines.building import ScriptedEngine
from llm_server.engines.engine import Engine
from llm_server.rubrics.loading import parse_rubric
from llm_server.rubrics.rubric import Rubric
from llm_server.service.judge import Judge, build_judge
from llm_server.wire import description_of
from tests.llm_server.gated_engine import GatedEngine
from tests.llm_server.running_service import RunningService

WAIT_S = 120.0
PLAIN = parse_rubric(
    """
id: plain
version: 1
goal: Something is won.
style: completion
instructions: The answer is yes only when the player has won something.
positive: " yes"
negative: " no"
threshold: auto
examples:
  - {positive: true, item: You kill the jackal!}
  - {positive: false, item: "It's solid stone."}
calibration: {items: ["It's a wall."], positives: [You kill the rat!]}
""",
    "plain",
)
ABOUT = parse_rubric(
    """
id: about
version: 1
goal: The goal is reached.
style: completion
instructions: The answer is yes only when the event is what the goal asks for.
about_label: "Goal:"
item_label: "Event:"
positive: " yes"
negative: " no"
separator: "  "
threshold: 0.5
examples:
  - {about: open a door, positive: true, item: The door opens.}
  - {about: find gold, positive: false, item: The door opens.}
""",
    "about",
)
GRADED = parse_rubric(
    """
id: graded
version: 2
goal: How much is won.
style: completion
instructions: How much has the player won?
answers: [{word: " none", value: 0}, {word: " some", value: 0.5}, {word: " much", value: 1}]
threshold: auto
min_answer_mass: 0
examples:
  - {kind: " none", item: "It's solid stone."}
  - {kind: " some", item: You see here a coin.}
  - {kind: " much", item: You kill the dragon!}
calibration: {items: ["It's a wall.", You see here a rock.], positives: [You find a treasure!]}
""",
    "graded",
)
RUBRICS = [PLAIN, ABOUT, GRADED]
ITEMS = [b"You kill the newt!", b"The door opens.  It's a wall.", b"$ - 12 gold pieces.", b"\xff"]
CONFIG = ServiceConfig(engine="scripted", script="door=0.9", store="memory")


def asked(client: AnnotationClient | InProcessClient, rubric: Rubric):
    abouts = [b"open a door", b"open a door", b"find gold", b"find gold"] if rubric.about_label else ()
    return client.annotate(ITEMS, abouts=abouts)


@pytest.fixture
def connect():
    with ExitStack() as stack:

        def connect(service: RunningService, rubric: Rubric, about: str = "") -> AnnotationClient:
            return stack.enter_context(closing(AnnotationClient(service.address, rubric, WAIT_S, about=about)))

        yield connect


@pytest.fixture
def start():
    with ExitStack() as stack:

        def start(rubrics=RUBRICS, **settings) -> RunningService:
            service = stack.enter_context(closing(RunningService(rubrics, **settings)))
            assert service.served.wait(WAIT_S)
            return service

        yield start


def test_the_real_model_answers_as_in_three_services_of_their_own(start, connect):
    config = ServiceConfig(torch_threads=0, store="memory")
    together = start(build=lambda: build_judge(config, RUBRICS))
    for rubric in RUBRICS:
        client = connect(together, rubric)
        with closing(build_judge(config, [rubric])) as alone:
            ours, theirs = client.describe(), alone.describe()
            assert ours == dataclasses.replace(theirs, forward_passes=ours.forward_passes, threshold=ours.threshold)
            assert ours.threshold == pytest.approx(theirs.threshold, abs=1e-5)
            for one, other in zip(asked(client, rubric), asked(InProcessClient(alone, rubric), rubric), strict=True):
                assert one.status is other.status
                assert one.probability == pytest.approx(other.probability, abs=1e-5, nan_ok=True)
                assert one.answer_mass == pytest.approx(other.answer_mass, abs=1e-5)
    assert [judgement.status for judgement in asked(client, GRADED)] == [Status.OK] * 3 + [Status.REJECTED]


def test_requests_under_several_rubrics_at_once_each_get_their_own_answers():
    engines = {rubric.id: GatedEngine() for rubric in RUBRICS}

    def under(rubric: Rubric) -> GatedEngine:
        return engines[rubric.id]

    first = engines["plain"]
    first.under = under
    with closing(Judge(first, RUBRICS, None, dataclasses.replace(CONFIG, batch_size=2))) as judge:
        first.gate.clear()
        before = judge.submit([b"good"])
        assert first.entered.acquire(timeout=WAIT_S)
        futures = [judge.submit([b"%d good" % n, b"%d" % n], rubric=r, abouts=[b"x"] * 2 * bool(r.about_label))
                   for n in range(2) for r in RUBRICS]  # fmt: skip
        first.gate.set()
        assert before.result(WAIT_S)[0].probability == 0.9
        for future in futures:
            assert [judgement.probability for judgement in future.result(WAIT_S)] == [0.9, 0.1]
    assert first.batches == [["good"], ["0 good", "0"], ["1 good", "1"]], "a batch has one rubric, the oldest first"
    assert engines["about"].batches == [["x\nEvent: 0 good", "x\nEvent: 0"], ["x\nEvent: 1 good", "x\nEvent: 1"]]


def test_it_is_described_as_the_rubric_that_is_asked_for_and_lists_all(start, connect):
    service = start()
    assert [connect(service, rubric).describe().rubric_hash for rubric in RUBRICS] == [r.content_hash for r in RUBRICS]
    with grpc.insecure_channel(service.address) as channel:
        first = AnnotationStub(channel).Describe(DescribeRequest(), timeout=WAIT_S)
        other = AnnotationStub(channel).Describe(
            DescribeRequest(rubric_id="graded", rubric_version="2"), timeout=WAIT_S
        )
    assert [(rubric.id, rubric.version, rubric.hash, rubric.threshold) for rubric in first.rubrics] == [
        (r.id, r.version, r.content_hash, 0.5) for r in RUBRICS
    ]
    assert (description_of(first).rubric_id, description_of(other).rubric_id) == ("plain", "graded")


def test_another_rubric_is_refused_naming_all_that_are_served(start, connect):
    service, another = start(), dataclasses.replace(PLAIN, id="another")
    client = connect(service, another)
    with pytest.raises(AnnotationRefused, match=r"'plain' version '1' \(.*\) and 2 others, this run by 'another'"):
        client.describe()
    with pytest.raises(AnnotationRefused, match="this service has 'plain' version '1', 'about' version '1', 'graded'"):
        client.annotate([b"x"])
    with pytest.raises(AnnotationRefused, match="got rubric 'another', this judge was made with 'plain'"):
        InProcessClient(service.judge, another).annotate([b"x"])


def test_a_client_asks_every_item_about_its_own_text(start, connect):
    service = start(script="^open a door\nEvent: The door=0.9;gold\n.*gold=0.8")
    item = b"The door opens.  It's a wall."
    door, gold = connect(service, ABOUT, "open a door"), connect(service, ABOUT, "find gold")
    assert [client.annotate([item])[0].probability for client in (door, gold)] == [0.9, 0.1]
    assert gold.annotate([b"$ - 12 gold pieces."])[0].probability == 0.8
    assert InProcessClient(service.judge, ABOUT, "open a door").annotate([item])[0].probability == 0.9
    assert gold.annotate([item], abouts=[b"open a door"])[0].probability == 0.9


@pytest.mark.parametrize(
    ("rubric", "abouts", "complaint"),
    [
        (ABOUT, [], "'about' judges every item about something"),
        (PLAIN, [b"find gold"] * 2, "'plain' has no about_label, it judges items alone"),
        (ABOUT, [b"find gold"], "1 abouts for 2 items, wanted one per item"),
        (ABOUT, [b"find gold", b"x" * 5000], "about 1 has 5000 bytes"),
    ],
)
def test_abouts_that_do_not_fit_are_an_invalid_argument(start, rubric, abouts, complaint):
    request = AnnotateRequest(rubric_id=rubric.id, rubric_version=rubric.version, items=[b"a", b"b"], abouts=abouts)
    with grpc.insecure_channel(start().address) as channel, pytest.raises(grpc.RpcError) as error:
        AnnotationStub(channel).Annotate(request, timeout=WAIT_S)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in error.value.details()


def test_items_are_stored_by_their_bytes_alone_or_with_what_they_are_judged_about(tmp_path):
    path = tmp_path / "judgements.sqlite"
    config = dataclasses.replace(CONFIG, store=str(path))
    with closing(build_judge(config, RUBRICS)) as judge:
        judge.annotate([b"The door opens."])
        judge.annotate([b"The door opens."] * 2, rubric=ABOUT, abouts=[b"open a door", b"ope"])
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rubric_hash, item FROM judgements JOIN judges ON judges.id = judge ORDER BY number"
        rows = connection.execute(query).fetchall()
    assert rows == [
        (PLAIN.content_hash, b"The door opens."),
        (ABOUT.content_hash, b"11:open a doorThe door opens."),
        (ABOUT.content_hash, b"3:opeThe door opens."),
    ]
    with closing(build_judge(config, [ABOUT])) as judge:
        asked_again = judge.annotate([b"The door opens."] * 2, abouts=[b"open a door", b"open"])
    assert [judgement.cached for judgement in asked_again] == [True, False]


def test_a_rubric_that_the_model_cannot_answer_is_refused_with_its_name():
    class Narrow(ScriptedEngine):
        def under(self, rubric: Rubric) -> Engine:
            raise ValueError("the answer ' much' is 2 tokens")

    with pytest.raises(ValueError, match="rubric 'graded': the answer ' much' is 2 tokens"):
        Judge(Narrow(CONFIG), [PLAIN, GRADED], None, CONFIG)
    with pytest.raises(ValueError, match="two different rubrics have the id 'plain'"):
        build_judge(CONFIG, [PLAIN, dataclasses.replace(PLAIN, goal="Another.")])
