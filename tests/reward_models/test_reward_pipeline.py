"""The pipelines of several terms as one: each term gets its channel's items, and none disturbs another."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.annotation_schema import AnnotatorConfig, RewardModelConfig
from configs.reward_schema import MAIN_TERM
from llm_server.annotator.annotator import Annotator
from llm_server.annotator.caption_archive import CaptionArchive
from llm_server.annotator.caption_book import CaptionBook
from llm_server.annotator.feedback import CaptionQuestions
from llm_server.client import AnnotationRefused
from reward_models.building import build_reward_model
from reward_models.interface import Asks
from reward_models.pipeline import AnnotationPipeline
from reward_models.reward_pipeline import RewardPipeline, states_by_term
from reward_models.shaping import RewardShaping
from reward_models.table import RewardTable
from reward_models.training import RewardTrainer
from tests.llm_server.fake_clients import FakeService

READS = {MAIN_TERM: "caption", "place": "state", "fight": "caption"}
CAPTIONS = {1: "you kill the newt", 2: "a wall"}
STATES = {7: "a kill floor", 8: "a corridor"}


def pipeline(folder: Path, service: FakeService, name: str, *, model: str = "retrieval", epoch: int = 1):
    book = CaptionBook(1000, 1000, CaptionArchive(folder / f"captions-{name}-{epoch}.sqlite"))
    settings = RewardModelConfig(name=model, publish_interval_s=0.01)
    made = build_reward_model(settings)
    config = AnnotatorConfig(batch_size=2, max_backoff_s=0.01, request_timeout_s=0.05)
    annotator = Annotator(service.connect, CaptionQuestions(book), config) if made.asks is not Asks.NOTHING else None
    trainer = RewardTrainer(made, RewardShaping(settings, 0), book, epoch)
    return AnnotationPipeline(book, trainer, annotator=annotator, config=settings)


@pytest.fixture
def services() -> dict[str, FakeService]:
    """The judge of each term."""
    return {name: FakeService() for name in READS}


Make = Callable[..., RewardPipeline]


@pytest.fixture
def make(tmp_path: Path, services: dict[str, FakeService]) -> Iterator[Make]:
    made: list[RewardPipeline] = []

    def build(*names: str, epoch: int = 1, **models: str) -> RewardPipeline:
        chosen = names or tuple(READS)
        pipelines = {
            name: pipeline(tmp_path, services[name], name, model=models.get(name, "retrieval"), epoch=epoch)
            for name in chosen
        }
        made.append(RewardPipeline(pipelines, READS))
        return made[-1]

    yield build
    for each in made:
        each.close()


def report(into: RewardPipeline, number: int = 0) -> tuple[str, int]:
    channels = {"caption": (CAPTIONS, {1: 5, 2: 50}), "state": (STATES, {7: 3, 8: 4})}
    return into.report(channels, "0.a", number, 100)


def known(table: RewardTable) -> dict[int, float]:
    return {int(id_): float(reward) for id_, reward in zip(table.ids, table.rewards, strict=True) if id_}


def test_each_term_rewards_the_items_of_its_channel(make: Make) -> None:
    terms = make()
    report(terms)
    tables = {name: known(table) for name, table in terms.turn(64).tables.items()}
    assert tables == {MAIN_TERM: {1: 1, 2: 0}, "place": {7: 1, 8: 0}, "fight": {1: 1, 2: 0}}
    assert {name: known(table) for name, table in terms.latest_reward().tables.items()} == tables


def test_what_the_main_book_acknowledges_the_others_hold(make: Make) -> None:
    terms = make()
    assert report(terms, 3) == (terms._main._book.book_epoch, 3)
    assert [each._book.metrics()["captions_distinct"] for each in terms._pipelines.values()] == [2, 2, 2]


def test_a_channel_that_a_report_lacks_is_no_error(make: Make) -> None:
    terms = make()
    terms.report({"caption": (CAPTIONS, {1: 1})}, "0.a", 0, 10)
    assert known(terms.turn(64).tables["place"]) == {}


def test_one_term_alone_has_the_metrics_and_the_state_of_its_pipeline(make: Make) -> None:
    terms = make(MAIN_TERM)
    report(terms)
    terms.turn(64)
    assert terms.metrics().keys() == terms._main.metrics().keys()
    assert terms.state_dict().keys() == terms._main.state_dict().keys() == {"book", "annotator", "trainer"}


def test_all_terms_are_restored_together_and_an_empty_state_changes_nothing(make: Make) -> None:
    first, second = make(), make(epoch=2)
    report(first)
    first.turn(64)
    state = first.state_dict()
    assert state["terms"].keys() == {"place", "fight"} == states_by_term(state).keys() - {MAIN_TERM}
    second.load_state_dict({})
    assert {name: len(known(table)) for name, table in second.latest_reward().tables.items()} == dict.fromkeys(READS, 0)
    second.load_state_dict(state)
    for name, table in first.latest_reward().tables.items():
        restored = second.latest_reward().tables[name]
        assert known(restored) == known(table)
        assert restored.reward_version == (2, 1)


def test_a_term_whose_judge_refuses_disturbs_no_other(make: Make, services: dict[str, FakeService]) -> None:
    services["place"].fail_next = [AnnotationRefused("rubric gone")]
    terms = make()
    report(terms)
    tables = {name: known(table) for name, table in terms.turn(64).tables.items()}
    assert tables == {MAIN_TERM: {1: 1, 2: 0}, "place": {}, "fight": {1: 1, 2: 0}}
    assert terms.problem == "terms.place: rubric gone"
    assert [(term["labels"], term["problem"]) for term in terms.metrics()["terms"].values()] == [
        (2, None),
        (0, "rubric gone"),
        (2, None),
    ]


def test_a_main_term_without_rewards_leaves_the_others_theirs(make: Make) -> None:
    terms = make(main="none", place="counts")
    report(terms)
    tables = {name: known(table) for name, table in terms.turn(64).tables.items()}
    assert tables == {MAIN_TERM: {1: 0, 2: 0}, "place": {7: 1, 8: 1}, "fight": {1: 1, 2: 0}}


def test_the_best_items_are_divided_among_the_terms_and_named(make: Make) -> None:
    terms = make()
    report(terms)
    terms.turn(64)
    assert [(top.term, top.text, top.count) for top in terms.top_rewarded(3, 1)] == [
        (MAIN_TERM, CAPTIONS[1], 5),
        ("place", STATES[7], 3),
        ("fight", CAPTIONS[1], 5),
    ]


def test_all_terms_work_in_the_background_and_end_together(make: Make, services: dict[str, FakeService]) -> None:
    terms = make()
    terms.start()
    report(terms)
    for service in services.values():
        assert service.arrived.acquire(timeout=30)
    services["fight"].gate.clear()  # a request that hangs
    terms.close()
    services["fight"].gate.set()
    assert not any(each._thread.is_alive() for each in terms._pipelines.values() if each._thread)
