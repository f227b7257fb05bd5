"""A GGUF file becomes a folder that holds the same model: weights, tokens, and what says how to compute."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from safetensors.torch import load_file

from llm_server.engines.gguf_model import GgufFile, write_model_folder
from llm_server.engines.models import bundled_model_folder

TOKENS = ["<|end|>", "a", "b", "ab"]
VALUES = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 1,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    **{f"tokenizer.ggml.{name}_token_id": 0 for name in ("bos", "eos", "unknown", "padding")},
    "tokenizer.chat_template": "{{ messages }}",
}


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: object) -> bytes:
    if isinstance(value, list):
        items = [_value(item) for item in value]
        return (
            struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)
        )
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def write_gguf(
    path: Path, values: dict[str, object], tensors: dict[str, tuple[np.ndarray, GGMLQuantizationType]]
) -> None:
    """A minimal writer of the GGUF format."""
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    header += b"".join(_string(key) + _value(value) for key, value in values.items())
    data = b""
    for name, (array, kind) in tensors.items():
        shape = tuple(reversed(array.shape))
        header += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += quantize(array, kind).tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)


@pytest.fixture
def tensors() -> dict[str, tuple[np.ndarray, GGMLQuantizationType]]:
    random = np.random.default_rng(0)
    shapes = {
        "attn_q": (64, 64),
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "attn_output": (64, 64),
        "attn_norm": (64,),
        "ffn_norm": (64,),
    }
    shapes |= {"ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96)}
    full = {"token_embd.weight": (4, 64), "output_norm.weight": (64,)} | {
        f"blk.0.{name}.weight": shape for name, shape in shapes.items()
    }
    return {
        name: (
            random.standard_normal(shape).astype(np.float32),
            GGMLQuantizationType.F32 if len(shape) == 1 else GGMLQuantizationType.Q4_1,
        )
        for name, shape in full.items()
    }


def test_a_folder_holds_what_its_file_held(tmp_path, tensors):
    from gguf.quants import dequantize
    from transformers import AutoConfig, AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", VALUES, tensors)
    (tmp_path / "out").mkdir()
    write_model_folder(tmp_path / "tiny.gguf", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert len(weights) == len(tensors)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}

    def held(name):
        array, kind = tensors[name]
        return torch.from_numpy(dequantize(quantize(array, kind), kind)).to(torch.bfloat16)

    assert torch.equal(weights["model.layers.0.mlp.down_proj.weight"], held("blk.0.ffn_down.weight"))
    assert torch.equal(weights["model.norm.weight"], held("output_norm.weight"))
    # Of 16 rows of a head, llama.cpp has 0, 8, 1, 9, ...
    order = [head * 16 + row for head in range(4) for row in (*range(0, 16, 2), *range(1, 16, 2))]
    assert torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], held("blk.0.attn_q.weight")[order])
    settings = AutoConfig.from_pretrained(tmp_path / "out")
    assert (settings.num_key_value_heads, settings.tie_word_embeddings, settings.vocab_size) == (2, True, 4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("abb<|end|>")["input_ids"] == [3, 2, 0]
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|end|>", "{{ messages }}")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"general.architecture": "qwen2"}, "holds a qwen2 with a gpt2"),
        ({"tokenizer.ggml.model": "llama"}, "with a llama tokenizer"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path, tensors, change, complaint):
    write_gguf(tmp_path / "other.gguf", VALUES | change, tensors)
    with pytest.raises(ValueError, match=complaint):
        write_model_folder(tmp_path / "other.gguf", tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 something else")
    with pytest.raises(ValueError, match="no GGUF file of version 2 or 3"):
        GgufFile(tmp_path / "x.gguf")


def test_the_bundled_model_is_the_one_that_was_published():
    """Facts of SmolLM2-135M-Instruct."""
    settings = json.loads((bundled_model_folder() / "config.json").read_text())
    assert (settings["hidden_size"], settings["num_hidden_layers"], settings["vocab_size"]) == (576, 30, 49152)
