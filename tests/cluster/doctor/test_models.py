"""What `delphi doctor` finds in a judge's model before it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_server.engines.models import bundled_model_folder
from llm_server.engines.sentence_encoder import encoder_source
from tests.cluster.examined import examine, quiet_surroundings

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_surroundings(tmp_path, monkeypatch)


MODEL = ("service.engine=transformers",)


def test_a_missing_model_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, *MODEL, f"service.model={tmp_path / 'absent'}")
    assert code == 1
    (result,) = results["judge"]
    assert f"model folder '{tmp_path / 'absent'}' does not exist" in result["found"]
    assert "service.model=smollm2" in result["advice"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The packaged model, its files linked one by one."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bundled_model_folder().iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def test_a_model_folder_as_it_should_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, *MODEL, f"service.model={folder}")
    assert code == 0
    assert "' kill', ' gold', " in results["judge"][0]["found"]
    assert "' no', ' yes' are single tokens" in results["judge"][0]["found"]


def test_weights_that_were_cut_short(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(folder.glob("*.safetensors"))
    with weights.open("rb") as file:
        beginning = file.read(1_000_000)
    weights.unlink()
    weights.write_bytes(beginning)
    code, results = examine(capsys, *MODEL, f"service.model={folder}")
    assert code == 1
    assert f"weights {weights} are damaged" in results["judge"][0]["found"]


LM = (bundled_model_folder, ("service.engine=transformers", "service.model={}"))
ENCODER = (lambda: Path(encoder_source("minilm")), ("reward_model.name=embedding", "service.encoder={}"))


@pytest.mark.parametrize(
    ("source", "settings", "num_layers", "status", "said"),
    [
        (*LM, 31, "failed", "model.layers.30.input_layernorm.weight"),
        (*LM, 29, "warning", "model.layers.29.input_layernorm.weight"),
        (*ENCODER, 7, "failed", "encoder.layer.6."),
        (*ENCODER, 6, "ok", ""),
    ],
)
def test_weights_that_the_files_lack_or_have_too_many_of(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: Callable[[], Path],
    settings: tuple[str, ...],
    num_layers: int,
    status: str,
    said: str,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in source().iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": num_layers, "layer_types": None}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    code, results = examine(capsys, *(setting.format(folder) for setting in settings))
    assert code == (status == "failed")
    (result,) = results["judge"]
    assert result["status"] == status
    assert said in result["found"] + result["advice"]


def test_an_answer_of_several_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text("extends: nethack_gold\nid: mine\nversion: '1'\npositive: ' unquestionably-so'\n")
    code, results = examine(capsys, *MODEL, f"annotator.rubric={rubric}")
    assert code == 1
    assert "the answer ' unquestionably-so' is" in results["judge"][0]["found"]
    assert "tokens" in results["judge"][0]["found"]
    assert "choose other answers" in results["judge"][0]["advice"]


def test_a_model_that_would_have_to_be_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, results = examine(capsys, *MODEL, "service.model=nobody/has-this-model")
    assert code == 0
    assert results["judge"][0]["status"] == "warning"
    assert "hf download nobody/has-this-model" in results["judge"][0]["advice"]


def test_vllm_without_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(
        capsys, "service.engine=vllm", "cluster.mode=local", f"service.vllm_python={shutil.which('true')}"
    )
    assert code == 1
    assert "has no vLLM" in results["vllm"][0]["found"]
    assert "make vllm" in results["vllm"][0]["advice"]


WRITES = ("reward_model.name=none", "goals.sources=[rubric, vary]", "goals.achieved_by=similarity")


def test_a_model_that_only_writes_goals_is_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, *MODEL, *WRITES, f"service.model={tmp_path / 'absent'}")
    assert code == 1
    assert "absent' does not exist" in results["judge"][0]["found"]


def test_a_writer_where_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, *WRITES, "writer.address=127.0.0.1:1")
    assert code == 1
    assert [result["status"] for result in results["annotation service"]] == ["ok", "failed"]
    assert results["annotation service"][1]["found"] == "writer.address=127.0.0.1:1: nothing listens there"
    assert results["judge"][0]["found"].startswith("sentence encoder minilm in ")
