"""A question in a model's tokens, whatever the habits of its tokenizer and chat template."""

import dataclasses

import pytest
from transformers import AutoTokenizer

from llm_server.bundled_model import bundled_model_folder
from llm_server.prompt_tokens import PromptTokens
from llm_server.question import Question

CHAT = Question(
    style="chat",
    instructions="Judge.",
    label="Message:",
    answer_label="",
    examples=(("You kill the newt!", "Yes"),),
    answers=("Yes", "No"),
)
PAIR = dataclasses.replace(CHAT, style="completion", answer_label="Better:", examples=(), answers=(" A", " B"))
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS


class BeginsEveryText:
    """A tokenizer that writes its first token before every text, as Llama's does."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, add_special_tokens=True, **settings):
        tokens = self._tokenizer(text, add_special_tokens=False, **settings)["input_ids"]
        return {"input_ids": [self._tokenizer.bos_token_id, *tokens] if add_special_tokens else tokens}


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled_model_folder())


def prompt(tokenizer, question, **settings):
    return PromptTokens(tokenizer, question, **{"model": "toy", "max_text_tokens": 2048, "context": 8192, **settings})


@pytest.mark.parametrize("template", ["{{ bos_token }}" + TURNS, TURNS])
def test_a_prompt_begins_once_whoever_writes_the_beginning(tokenizer, template):
    tokenizer.chat_template, begins = template, BeginsEveryText(tokenizer)
    tokens = prompt(begins, dataclasses.replace(CHAT, instructions="")).prefix
    text = tokenizer.decode(tokens)
    assert tokens[0] == tokenizer.bos_token_id
    # Its own first token is also what begins a turn.
    assert text.startswith("<|im_start|>" * (2 if "bos" in template else 1) + "user")


def test_instructions_stand_in_the_first_user_turn_where_a_template_takes_no_system_turn(tokenizer):
    tokenizer.chat_template = NO_SYSTEM
    text = tokenizer.decode(prompt(tokenizer, CHAT).prefix)
    assert "<|im_start|>user\nJudge.\n\nMessage: You kill the newt!<|im_end|>" in text
    assert "system" not in text


def test_a_template_that_refuses_everything_is_one_line(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('Never') }}"
    with pytest.raises(ValueError, match="chat template of model 'toy' refuses the rubric \\(Never\\): use a completion rubric"):
        prompt(tokenizer, CHAT)


def test_a_long_text_is_cut_but_no_pair_loses_its_second_item(tokenizer):
    tokens = prompt(tokenizer, PAIR, max_text_tokens=64)
    assert len(tokens.tokens("rock " * 500)) == 64 + len(tokens.suffix)
    assert tokens.tokens("rock\nSecond: wall") is not None
    assert tokens.tokens("rock " * 500 + "\nSecond: wall") is None
