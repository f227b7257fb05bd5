"""`delphi doctor` says how many labels a second a machine gives, in bounded time and of what a run would start."""

from types import SimpleNamespace

import pytest

from cluster import plan
from cluster.doctor import label_rate, subject
from cluster.doctor.label_rate import check_label_rate
from cluster.doctor.subject import Subject
from configs.loading import load_config


@pytest.fixture
def scripted(monkeypatch):
    """The scripted engine stands in for one that loads a model."""
    monkeypatch.setattr(plan, "LOCAL_ENGINES", ("scripted",))
    monkeypatch.setattr(subject, "check_model", lambda service, rubric: SimpleNamespace())
    monkeypatch.setattr(label_rate, "ASK_S", 0.3)

    def scripted(*settings: str) -> Subject:
        return Subject(
            load_config(preset="debug", overrides=["service.engine=scripted", "service.script_delay_s=0.01", *settings])
        )

    return scripted


def test_labels_per_second_and_the_first_one_are_said(scripted):
    result = check_label_rate(scripted("service.torch_threads=2"))
    assert result.status == "ok", result
    model, rate, first = (
        result.found.replace(" labels/s", "").split(": ")[0],
        *result.found.split(": ")[1].split(" labels/s by 2 threads, "),
    )
    assert model.endswith("(scripted)")
    assert 10 < float(rate) <= 100, "0.01 s each"
    assert first.startswith("the first ")
    assert first.endswith(" s after the start")


def test_a_slow_judge_is_a_warning_with_advice(scripted, monkeypatch):
    monkeypatch.setattr(label_rate, "FEW_LABELS_PER_S", 1000.0)
    result = check_label_rate(scripted())
    assert result.status == "warning"
    assert "service.torch_threads" in result.advice


def test_a_judge_that_does_not_come_ends_the_measurement_in_time(scripted, monkeypatch):
    monkeypatch.setattr(label_rate, "START_LIMIT_S", 0.0)
    result = check_label_rate(scripted())
    assert result.status == "warning"
    assert "is starting" in result.found


@pytest.mark.parametrize(
    "setting", ["annotator.address=127.0.0.1:1", "reward_model.name=counts", "reward_model.name=embedding"]
)
def test_nothing_is_measured_where_the_run_loads_no_language_model(scripted, setting):
    assert check_label_rate(scripted(setting)).found.startswith("not measured")
