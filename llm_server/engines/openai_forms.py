"""The form of request that one endpoint accepts, found with a first question; requests in that form, and `Answer`, what
is read from the responses.

Invariant: answers are read from log-probabilities if the endpoint gives them and the model answers at once, else from
text that may be as long as the model needs. Only parameters that the endpoint refuses are left out.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable
from llm_server.rubrics.question import Question, without_system_turn

TOP_LOGPROBS = (20, 5, 0)
"""The numbers to try, in this order; OpenAI's own completions give 5, its chats 20, some endpoints none."""
TEXT_TOKENS = 32
TOKENS = (1, 16, TEXT_TOKENS, 1024, 4096, 8192, 16_384)
"""Limits of generated tokens: one, the least that some endpoints accept, a short text, texts after thoughts."""
THINKING_TOKENS = TOKENS[3]
ADJUSTED = (400, 401, 403, 404, 405, 422, 501)
"""Statuses that may refuse a parameter which the message names."""
TRIED = (400, 403, 405, 422, 501)
"""Statuses that may refuse a parameter which the message does not name."""
TOO_SHORT = re.compile(
    r"(?:max\w*_tokens|maxoutputtokens|output (?:token )?limit|output tokens)"
    r".*(?:minimum|at least|>=|greater than|higher|too (?:few|small|low)|could not finish|limit was reached)"
    r"|could not finish",
    re.DOTALL,
)
NO_SYSTEM = re.compile(
    r"system (?:role|message|prompt|instruction|turn)|developer instruction|role\W+system|roles must alternate"
    r"|only user and assistant|\brole\b.*does not support.*system"
)
FILTERED = re.compile(r"content_filter|safety|prohibited_content")
"""How the reason begins where a filter ended the answer; Gemini's continues: `content_filter: PROHIBITED_CONTENT`."""
# Templates write their markers as <|im_start|>, <s>, <start_of_turn>, [INST].
MARKER = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]{3,}\])")


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request."""

    top_logprobs: int = TOP_LOGPROBS[0]
    tokens: int = TOKENS[0]
    length_key: str = "max_tokens"
    has_temperature: bool = True
    has_system: bool = True

    def longer(self) -> "Form | None":
        """With the next larger token limit; None for the largest."""
        return next((replace(self, tokens=tokens) for tokens in TOKENS if tokens > self.tokens), None)

    def in_text(self) -> "Form":
        """With answers read from text."""
        return replace(self, top_logprobs=0, tokens=max(self.tokens, TEXT_TOKENS))

    def adjusted(self, said: str) -> "Form | None":
        """With the parameter changed that the endpoint's message names; None if it names none that can be changed."""
        words = said.lower()
        if "max_completion_tokens" in words and self.length_key == "max_tokens":
            return replace(self, length_key="max_completion_tokens")
        if is_too_short(said) and (longer := self.longer()):
            return longer
        if NO_SYSTEM.search(words) and self.has_system:
            return replace(self, has_system=False)
        if "temperature" in words and self.has_temperature:
            return replace(self, has_temperature=False)
        if re.search(r"log[ _-]?prob", words) and self.top_logprobs:
            fewer = TOP_LOGPROBS[TOP_LOGPROBS.index(self.top_logprobs) + 1]
            return replace(self, top_logprobs=fewer) if fewer else self.in_text()
        return None

    def variants(self) -> Iterator["Form"]:
        """Forms to try where a refusal does not name a parameter: each parameter changed alone, then all of them."""
        plainest = replace(self.in_text(), has_temperature=False, has_system=False)
        yield from (
            replace(self, top_logprobs=TOP_LOGPROBS[1]) if self.top_logprobs > TOP_LOGPROBS[1] else self,
            replace(self, tokens=max(self.tokens, TOKENS[1])),
            replace(self, has_system=False),
            replace(self, has_temperature=False),
            replace(self, length_key="max_completion_tokens"),
            self.in_text(),
            plainest,
            replace(plainest, length_key="max_completion_tokens"),
        )


class Answer:
    """What is read from the response to a completion or a chat."""

    def __init__(self, response: dict[str, Any]) -> None:
        choice = response["choices"][0]
        said = choice.get("message")
        message: dict[str, Any] = said if isinstance(said, dict) else {}
        reason = str(choice.get("finish_reason")).lower()
        self.top_tokens = _top_tokens(choice.get("logprobs"))
        """The likeliest first tokens with their log-probabilities; may be empty."""
        self.text = _text(message.get("content") if "message" in choice else choice.get("text"))
        """The generated text, whole or in parts, without thoughts; empty where there is none."""
        self.is_withheld = bool(FILTERED.match(reason) or message.get("refusal"))
        """Whether a filter or the model refuses to answer this text."""
        is_cut, is_empty = reason in ("length", "max_tokens"), not self.text.strip()
        is_in_thought = "<think>" in self.text and "</think>" not in self.text
        self.is_unfinished = not self.is_withheld and (is_cut or is_empty or is_in_thought)
        """Whether the token limit cut the text off."""
        thoughts = message.get("reasoning_content") or message.get("reasoning") or is_cut
        self.is_thinking = is_in_thought or (is_empty and bool(thoughts))
        """Whether the text holds only the model's thoughts."""


Ask = Callable[[Form], Answer]
"""Asks one question in a form."""
HoldsAnswer = Callable[[Form, Answer], bool]
"""Whether one of the rubric's answers can be read from a response."""


def find_form(ask: Ask, holds_answer: HoldsAnswer, *, is_chat: bool) -> tuple[Form, Answer]:
    """The form that works, and the answer to a question in it; else EndpointRefused or EndpointUnavailable."""
    form, answer = _accepted(ask, Form())
    if form.top_logprobs and not answer.top_tokens:  # the parameter was ignored
        form, answer = _accepted(ask, form.in_text())
    if holds_answer(form, answer) or not is_chat:
        return form, answer
    if not form.top_logprobs:
        return _with_room(ask, holds_answer, form, answer)
    try:  # the model thinks first, or begins with another word
        in_text = _with_room(ask, holds_answer, *_accepted(ask, form.in_text()))
    except (EndpointRefused, EndpointUnavailable):
        return form, answer
    return in_text if holds_answer(*in_text) else (form, answer)


def _with_room(ask: Ask, holds_answer: HoldsAnswer, form: Form, answer: Answer) -> tuple[Form, Answer]:
    """The form with as many tokens as the model needs to answer, or with the most that it only thinks in."""
    short = form, answer
    while not holds_answer(form, answer) and answer.is_unfinished and (longer := form.longer()):
        try:
            answer, form = ask(longer), longer
        except EndpointRefused:
            break
        except EndpointUnavailable as error:
            if not answer.is_thinking:
                break
            advice = "the model thinks before it answers: raise service.engine_timeout_s"
            raise EndpointUnavailable(f"{error}, {advice}") from None
    return (form, answer) if holds_answer(form, answer) or answer.is_thinking else short


def _accepted(ask: Ask, form: Form) -> tuple[Form, Answer]:
    """The first accepted form and its answer; EndpointRefused with the endpoint's first message if there is none."""
    while True:
        try:
            return form, ask(form)
        except EndpointRefused as error:
            refusal = error
        adjusted = form.adjusted(refusal.said) if refusal.status in ADJUSTED else None
        if adjusted is None:
            break
        form = adjusted
    for variant in dict.fromkeys(form.variants()) if refusal.status in TRIED else ():
        if variant != form:
            with contextlib.suppress(EndpointRefused):
                return variant, ask(variant)
    raise refusal


def request_body(model: str, question: Question, text: str, form: Form) -> dict[str, Any]:
    """The request that asks about `text`."""
    plain = MARKER.sub(lambda match: match.group() + " ", text)
    body: dict[str, Any] = {"model": model, form.length_key: form.tokens}
    if form.has_temperature:
        body["temperature"] = 0
    if question.style == "completion":
        before, after = question.completion_prompt()
        body["prompt"] = f"{before} {plain}{after}"
        if form.top_logprobs:
            body["logprobs"] = form.top_logprobs
        return body
    turns = question.chat_messages(plain)
    body["messages"] = turns if form.has_system else without_system_turn(turns)
    if question.answer_prefix:
        # vLLM's parameters for continuing the model's own turn.
        body["messages"] = [*body["messages"], {"role": "assistant", "content": question.answer_prefix}]
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if form.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": form.top_logprobs}
    return body


def is_too_short(said: str) -> bool:
    """Whether an endpoint's message is about a token limit that is too low."""
    return bool(TOO_SHORT.search(said.lower()))


def _top_tokens(offered: Any) -> list[tuple[str, float]]:
    try:
        if offered.get("content"):
            listed = [(entry["token"], entry["logprob"]) for entry in offered["content"][0]["top_logprobs"]]
        else:
            listed = list(offered["top_logprobs"][0].items())
    except (KeyError, IndexError, TypeError, AttributeError):
        return []
    # JSON has no infinity: servers write null, or NaN, for a token that cannot be.
    return [(str(token), float(value)) for token, value in listed if isinstance(value, int | float) and value == value]


def _text(content: Any) -> str:
    parts: list[Any] = content if isinstance(content, list) else [content]
    typed = (part if isinstance(part, dict) else {"text": part} for part in parts)
    texts = [part.get("text") for part in typed if str(part.get("type", "text")) in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))
