"""A model whose files lack weights is refused with their names, by engine and doctor; tied weights do not count."""

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.utils import logging as transformers_logging

from configs.annotation_schema import ServiceConfig
from llm_server.engines.building import build_engine, check_engine
from llm_server.engines.model_check import ModelNotHere, check_encoder_model, check_model, local_folder
from llm_server.engines.models import IncompleteWeights, bundled_model_folder, load_whole, model_folder, unused_advice
from llm_server.engines.sentence_encoder import UNREAD, SentenceEncoder

DOWN = "model.layers.1.mlp.down_proj.weight"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
FULL = SIZES | {"vocab_size": 64, "num_key_value_heads": 2}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a small model of each kind, by name."""
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    made = {
        "tied": LlamaForCausalLM(LlamaConfig(**FULL, tie_word_embeddings=True)),
        "untied": LlamaForCausalLM(LlamaConfig(**FULL, tie_word_embeddings=False)),
        "without a head, tied": LlamaModel(LlamaConfig(**FULL, tie_word_embeddings=True)),
        "without a head": LlamaModel(LlamaConfig(**FULL, tie_word_embeddings=False)),
        "experts": MixtralForCausalLM(MixtralConfig(**FULL, num_local_experts=4)),
        "bert": BertModel(BertConfig(**SIZES, vocab_size=64)),
        "bert without pooler": BertForMaskedLM(BertConfig(**SIZES, vocab_size=64)),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def changed(models, tmp_path):
    """A copy of a model with changed tensors and configuration."""

    def changed(name, tensors=lambda whole: whole, **settings):
        folder = tmp_path / "changed"
        shutil.copytree(models / name, folder)
        save(folder, tensors(load_file(folder / WEIGHTS)))
        config = json.loads((folder / "config.json").read_text()) | settings
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return changed


def save(folder, tensors, name=WEIGHTS):
    save_file(tensors, folder / name, metadata={"format": "pt"})


def without(pattern):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}


unchanged = without("nothing")


def renamed(old, new):
    return lambda tensors: {re.sub(old, new, name): tensor for name, tensor in tensors.items()}


def into_shards(folder, *written):
    """Replace the weights file by two shards, of which only the `written` ones exist."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-0000{1 + (name > 'model.layers.1')}-of-00002.safetensors" for name in tensors]
    for number in written:
        file = f"model-0000{number}-of-00002.safetensors"
        save(folder, {name: tensors[name] for name, at in zip(tensors, names, strict=True) if at == file}, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(zip(tensors, names, strict=True))}))


@pytest.mark.parametrize("place", [{}, {"device_map": "meta"}], ids=["loaded", "looked at"])
@pytest.mark.parametrize(
    ("name", "tensors", "settings", "said"),
    [
        ("untied", without(DOWN), {}, rf"lacks 1 of the 21 weights .* \({DOWN}\): fetch the whole model"),
        ("untied", without(r"layers\.1"), {}, r"lacks 9 of the 21 .*\.1\.input_layernorm\.weight, .* and 1 more\)"),
        ("untied", without("^lm_head"), {}, r"lacks 1 of .*\(lm_head\.weight\)"),
        ("tied", without("embed_tokens"), {}, r"lacks 2 of .*\(lm_head\.weight, model\.embed_tokens\.weight\)"),
        ("untied", renamed("^", "language_model.base."), {}, r"lacks 21 of the 21 weights"),
        ("untied", unchanged, {"num_hidden_layers": 3}, r"lacks 9 of the 30 .*\.layers\.2\.input_layernorm"),
        ("without a head", unchanged, {}, r"lacks 1 of .*\(lm_head\.weight\)"),
        ("untied", unchanged, {"intermediate_size": 48}, rf"another shape .*{DOWN}.* \(32, 64\), wanted \(32, 48\)"),
        ("experts", without(r"experts\.2\.w1"), {}, r"lacks parts of .*\.layers\.\{0, 1\}\.mlp\.experts\.gate_up_proj"),
        ("experts", without(r"layers\.1.*experts\.2\.w2"), {}, r"another shape .*\.layers\.1\.mlp\.experts\.down_proj"),
    ],
)  # fmt: skip
def test_missing_weights_are_refused_with_their_names(changed, name, tensors, settings, said, place):
    with pytest.raises(IncompleteWeights, match=said) as error:
        load_whole(AutoModelForCausalLM, changed(name, tensors, **settings), "small", **place)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("place", [{}, {"device_map": "meta"}], ids=["loaded", "looked at"])
@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("tied", unchanged),
        ("tied", renamed(r"model\.embed_tokens", "lm_head")),
        ("without a head, tied", unchanged),
        ("untied", unchanged),
        ("experts", unchanged),
    ],
)
def test_whole_models_load_and_tied_weights_are_one(changed, name, tensors, place):
    model, unused = load_whole(AutoModelForCausalLM, changed(name, tensors), name, **place)
    assert unused == []
    tied = "tied" in name.split(", ")
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied


def test_tensors_without_a_place_are_named(changed):
    folder = changed("untied", num_hidden_layers=1, layer_types=None)
    _, unused = load_whole(AutoModelForCausalLM, folder, "small")
    assert DOWN in unused
    assert unused_advice(unused).startswith("9 tensors of its files are not used (model.layers.1.")


def test_shards_are_all_there_or_the_missing_ones_are_named(changed):
    folder = changed("untied")
    (folder / "tokenizer.json").write_text("{}")
    into_shards(folder, 1, 2)
    check_engine(ServiceConfig(model=str(folder)))
    load_whole(AutoModelForCausalLM, folder, "small")
    (folder / "model-00002-of-00002.safetensors").unlink()
    for config in (ServiceConfig(model=str(folder)), ServiceConfig(engine="none", encoder=str(folder))):
        with pytest.raises(
            ValueError, match=rf"lacks model-00002-of-00002\.safetensors of the 2 files that {INDEX} names"
        ):
            check_engine(config)
    (folder / INDEX).write_text('{"weight_map": 3}')
    with pytest.raises(ValueError, match=rf"{INDEX} cannot be read"):
        check_engine(ServiceConfig(model=str(folder)))


@pytest.mark.parametrize(
    "files",
    [
        ("adapter_config.json", "config.json"),
        ("adapter_config.json",),
        ("config.json",),
        (WEIGHTS, "adapter_config.json"),
    ],
)
def test_an_adapter_is_no_model(tmp_path, files):
    for name in ("adapter_model.safetensors", "tokenizer.json", *files):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter .*merge it into the model that it was trained on"):
        check_engine(ServiceConfig(model=str(tmp_path)))


@pytest.mark.parametrize("place", ["", "./"])
def test_a_file_is_no_model(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    for config in (
        ServiceConfig(model=f"{place}small.gguf"),
        ServiceConfig(engine="none", encoder=f"{place}small.gguf"),
    ):
        with pytest.raises(ValueError, match=r"small\.gguf' is a file: give a folder .* llama-server"):
            check_engine(config)


def test_the_packaged_model_is_meant_whatever_lies_here_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    check_engine(ServiceConfig(model="smollm2"))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_engine_and_the_doctor_refuse_alike(models, changed, rubric, engine):
    folder = changed("tied", without(DOWN))
    for file in bundled_model_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    config = ServiceConfig(engine=engine, model=str(folder), device="cpu", vllm_python=sys.executable)
    with pytest.raises(IncompleteWeights) as error:
        check_model(config, rubric)
    assert f"({DOWN})" in str(error.value)
    with pytest.raises(IncompleteWeights, match=re.escape(str(error.value))):
        build_engine(config, rubric)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "ImportError: .*optimum"),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}},
            "it needs code of its own, which is never run",
        ),
    ],
)
def test_what_needs_more_than_its_files_is_refused_alike_and_nobody_is_asked(
    changed, rubric, monkeypatch, settings, said
):
    folder = changed("tied", **settings)
    for file in bundled_model_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    config = ServiceConfig(model=str(folder), device="cpu")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    for load in (check_model, build_engine):
        with pytest.raises(ValueError, match=f"cannot be loaded \\({said}"):
            load(config, rubric)


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (None, None),
        ("tokenizer.json", "in part, without its tokenizer"),
        (INDEX, f"in part, without its {INDEX}"),
        ("model-00001-of-00002.safetensors", "in part: .* lacks model-00001-of-00002"),
        ("model-*.safetensors", "is not on this machine"),
    ],
)
def test_a_download_that_was_interrupted_is_not_here_yet(changed, tmp_path, monkeypatch, absent, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    downloaded = changed("untied")
    (downloaded / "tokenizer.json").write_text("{}")
    into_shards(downloaded, 1, 2)
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    downloaded.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    if absent is None:
        assert local_folder("some/model") == snapshot
        return
    for file in snapshot.glob(absent):
        file.unlink()
    with pytest.raises(ModelNotHere, match=said):
        local_folder("some/model")


def test_an_adapter_from_the_hub_is_no_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"model 'some/adapter' holds an adapter"):
        model_folder("some/adapter")


def test_an_encoder_may_lack_its_pooler_and_nothing_else(changed, models):
    assert load_whole(AutoModel, models / "bert without pooler", "bert", unread=UNREAD)[0].pooler is not None
    folder = changed("bert", without(r"encoder\.layer\.1\.output"))
    for file in bundled_model_folder().glob("tokenizer*"):
        shutil.copy(file, folder)
    said = r"lacks 4 of the 39 .*\(encoder\.layer\.1\.output\.LayerNorm\.bias, .*\.layer\.1\.output\.dense\.weight\)"
    with pytest.raises(IncompleteWeights, match=said):
        check_encoder_model(str(folder))
    encoder = SentenceEncoder(ServiceConfig(engine="none", encoder=str(folder), device="cpu"))
    try:
        with pytest.raises(IncompleteWeights, match=said):
            encoder.encode(["Find a key."])
    finally:
        encoder.close()
