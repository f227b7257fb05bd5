"""`delphi bench`: finds benchmarks without importing them; what they report; the annotation benchmark in small."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cluster.verbs import bench
from cluster.verbs.bench import divide, report, spread
from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine
from llm_server.engines.models import bundled_model_folder
from llm_server.rubrics.rubric import Example, Rubric
from tests.benchmarks import annotation
from tests.benchmarks.annotation_prompt import EXAMPLES, VERDICTS, parse, prompt

SHORT = Rubric(
    id="short",
    version="1",
    goal="",
    style="completion",
    instructions="",
    positive=" yes",
    negative=" no",
    examples=(Example(item="You win.", positive=True),),
    threshold=0.5,
)


def test_help_lists_every_benchmark_with_its_purpose(capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["annotation"] and "one forward pass" in line for line in lines)
    assert not any("annotation_prompt" in line for line in lines), "only modules with a main are benchmarks"
    assert all(len(purpose) > 20 for purpose in bench.benchmarks().values())


def test_a_wrong_name_and_a_missing_checkout_are_one_line(capsys, monkeypatch, tmp_path):
    assert bench.main(["anotation"]) == 2
    assert "did you mean 'annotation'" in capsys.readouterr().err
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert bench.main(["annotation"]) == 2
    error = capsys.readouterr().err
    assert "in a checkout" in error
    assert len(error.strip().splitlines()) == 1
    assert not bench.benchmarks()


def test_a_benchmarks_own_mistake_is_one_line(capsys):
    assert bench.main(["annotation", "--model", "/no/such/model"]) == 2
    assert capsys.readouterr().err.startswith("delphi bench: annotation: model folder '/no/such/model' does not exist")


def test_fewer_than_no_threads_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["annotation", "--torch-threads", "-1"])
    assert "--torch-threads: got -1, wanted at least 0" in capsys.readouterr().err


def test_a_report_has_medians_spread_ratio_and_where_it_was_made():
    result = report(
        "x",
        measured={"new": [4.0, 6.0, 30.0], "old": [2.0, 3.0, 5.0]},
        unit="steps/s",
        ratio_of=("new", "old"),
        settings={"n": 1},
        note="y",
    )
    assert (result["ratio"], result["ratio_spread"]) == (2.0, [2.0, 6.0])
    assert result["medians"] == {"new": 6.0, "old": 3.0}
    assert result["spread"] == {"new": [4.0, 30.0], "old": [2.0, 5.0]}
    assert (result["settings"], result["note"], result["repetitions"]) == ({"n": 1}, "y", 3)
    assert result["machine"]["cores"] >= 1
    assert len(result["commit"].removesuffix("-dirty")) == 40
    assert json.loads(json.dumps(result)) == result


def test_nothing_to_divide_by_is_no_ratio():
    assert divide(1.0, 0.0) is None
    assert spread([2.0, None, 1.0]) == [1.0, 2.0]
    assert spread([None]) == [None, None]


@pytest.mark.parametrize("with_knowledge", [True, False])
def test_the_examples_of_the_generating_prompt_are_parsed_as_they_are_meant(with_knowledge):
    before, after = prompt(with_knowledge)
    blocks = before.split("Message: ")[1:]
    assert [parse(block) for block in blocks] == [verdict == VERDICTS[0] for *_, verdict in EXAMPLES]
    assert all(after in block for block in blocks), "an answer begins as the examples do"
    assert [parse(text) for text in ("", "HELPFUL", "<verdict>MAYBE</verdict>", "<verdict> IDLE </verdict>")] == [
        None,
        None,
        None,
        False,
    ]


@pytest.fixture
def tiny_model(tmp_path: Path) -> str:
    """A folder with an untrained model of two small layers and SmolLM2's tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    LlamaForCausalLM(
        LlamaConfig(vocab_size=49152, max_position_embeddings=2048, initializer_range=0.4, **sizes)
    ).save_pretrained(tmp_path / "tiny")
    for file in bundled_model_folder().glob("*token*"):
        shutil.copy(file, tmp_path / "tiny")
    return str(tmp_path / "tiny")


def test_answers_written_in_batches_are_those_written_alone(tiny_model, monkeypatch):
    engine = build_engine(ServiceConfig(model=tiny_model, dtype="float32"), SHORT)
    captions = ["You kill the newt!", "The door opens.  You hear a door open far away in the dungeon.", "It's a wall."]
    before, after = prompt(True)
    alone = []
    for caption in captions:
        ids = engine._tokenizer(f"{before} {caption}{after}", return_tensors="pt", add_special_tokens=False)[
            "input_ids"
        ]
        output = engine._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=50, pad_token_id=0
        )
        alone.append(output[0, ids.shape[1] :])
    end = engine._tokenizer.decode(alone[0][20])
    texts = [engine._tokenizer.decode(tokens) for tokens in alone]
    expected = [text.split(end)[0] + end if end in text else text for text in texts]
    assert len({len(text) for text in expected}) == 3, f"the captions must leave the batch at different times: {texts}"
    monkeypatch.setattr(annotation, "END", end)
    monkeypatch.setattr(annotation, "TEMPERATURE", 1e-6)  # as good as greedy
    judge = annotation.GeneratingJudge(engine, max_new_tokens=50, with_knowledge=True)
    assert judge.answer(captions) == judge.answers == expected


def test_the_annotation_benchmark_in_small(capsys):
    flags = "--json --batches 2 --repetitions 1 --captions 2 --generated 1 --max-new-tokens 3 --torch-threads 1"
    threads = torch.get_num_threads()
    try:
        assert bench.main(["annotation", *flags.split()]) == 0
    finally:
        torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert result.keys() >= {
        "ratio",
        "medians",
        "spread",
        "settings",
        "machine",
        "commit",
        "parsed_fraction",
        "tokens_per_answer",
    }
    assert (result["parsed_fraction"], result["ratio"]) == (0.0, None), (
        "three tokens hold no verdict, and without labels there is no ratio"
    )
    assert result["ratio_with_unparsed"] > 1
    assert result["medians"]["one pass, batch 2"] > 0
    assert result["settings"]["batches"] == [2]
