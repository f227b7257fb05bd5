"""Reads a GGUF file of a Llama with a byte-level BPE tokenizer, and writes it as a model folder of plain bf16
safetensors.

Invariant: the output depends on the file alone, not on the versions of libraries. The header is parsed here, once: the
readers of `gguf` and `transformers` take a hundred times as long for a vocabulary, and read it again for each part.
"""

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
CONTROL_TOKEN = 3
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class GgufFile:
    """The header of a GGUF file, whose tensors `tensor` reads. ValueError for another kind of file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._bytes[:4] != b"GGUF" or int.from_bytes(self._bytes[4:8], "little") not in VERSIONS:
            raise ValueError(f"{path} is no GGUF file of version {' or '.join(map(str, VERSIONS))}")
        self._at = 8
        num_tensors, num_values = self._number("Q"), self._number("Q")
        self.values: dict[str, Any] = {self._string(): self._value(self._number("I")) for _ in range(num_values)}
        """Metadata by key."""
        self._tensors = {self._string(): self._tensor_info() for _ in range(num_tensors)}
        self.names = list(self._tensors)
        alignment = self.values.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in float32, dequantised."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        shape, kind, offset = self._tensors[name]
        quantised = GGMLQuantizationType(kind)
        rows = quant_shape_to_byte_shape(shape, quantised)
        packed = np.frombuffer(self._bytes, np.uint8, int(np.prod(rows)), self._data + offset).reshape(rows)
        return torch.from_numpy(np.array(dequantize(packed, quantised), np.float32).reshape(shape))

    def _number(self, form: str) -> Any:
        (number,) = struct.unpack_from(f"<{form}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{form}")
        return number

    def _string(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._bytes[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._number(NUMBERS[kind])
        item, length = self._number("I"), self._number("Q")
        return [self._value(item) for _ in range(length)]

    def _tensor_info(self) -> tuple[tuple[int, ...], int, int]:
        shape = tuple(reversed([self._number("Q") for _ in range(self._number("I"))]))
        return shape, self._number("I"), self._number("Q")


def write_model_folder(packed: Path, folder: Path) -> None:
    """Write the model of `packed` to `folder`, all but its metadata. ValueError for another architecture."""
    file = GgufFile(packed)
    architecture, tokenizer = (file.values.get(key) for key in ("general.architecture", "tokenizer.ggml.model"))
    if (architecture, tokenizer) != ("llama", "gpt2"):
        raise ValueError(
            f"{packed} holds a {architecture} with a {tokenizer} tokenizer, wanted a llama with a gpt2 one"
        )
    contents = {"config": _config(file), "tokenizer": _tokenizer(file), "tokenizer_config": _tokenizer_config(file)}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "chat_template.jinja").write_text(file.values["tokenizer.chat_template"], "utf-8")
    save_file(_weights(file), folder / "model.safetensors", metadata={"format": "pt"})


def _config(file: GgufFile) -> dict[str, Any]:
    values = file.values
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": values["llama.attention.head_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": values["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": values["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": "output.weight" not in file.names,
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(file: GgufFile) -> dict[str, Any]:
    """The tokenizer in the format of the `tokenizers` library."""
    values = file.values
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": tokens[number], **plain}
            for number, kind in enumerate(values["tokenizer.ggml.token_type"])
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "add_prefix_space": False},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in values["tokenizer.ggml.merges"]],
        },
    }


def _tokenizer_config(file: GgufFile) -> dict[str, Any]:
    tokens = file.values["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokens[file.values[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()},
    }


def _weights(file: GgufFile) -> dict[str, torch.Tensor]:
    names = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    heads = {part: file.values[f"llama.attention.{name}"] for part, name in names.items()}
    weights = {}
    for name in file.names:
        stem = name.removesuffix(".weight")
        tensor = file.tensor(name)
        if stem.startswith("blk."):
            _, layer, part = stem.split(".")
            place = f"model.layers.{layer}.{LAYER_NAMES[part]}"
            if part in heads:  # llama.cpp interleaves the two halves that a rotation pairs
                tensor = tensor.view(heads[part], -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        else:
            place = NAMES[stem]
        weights[f"{place}.weight"] = tensor.to(torch.bfloat16).contiguous()
    return weights
