"""The OpenAI engine: any endpoint that speaks OpenAI's protocol, a hosted model or a `vllm serve` elsewhere.

Invariant: a text that an endpoint answers badly is no answer, an endpoint that does not answer fails the batch within its deadline;
what had come of it is not asked again; texts cannot write the markers by which templates separate turns; the key is read from the
environment and written nowhere.

What an endpoint can do is found out once, with a question: log-probabilities of the 20 or 5 likeliest tokens, else short text that is
parsed; how it wants the length limited; whether it takes a temperature. Answers read from text are certain (0, 0.5 or 1), so
their threshold is 0.5 instead of a calibrated one.
"""

import dataclasses
import hashlib
import logging
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from configs.service_schema import ServiceConfig
from configs.validation import check_key_variable
from llm_server.annotation import Score
from llm_server.answers import NO_ANSWER, score_of_text, score_of_top_tokens
from llm_server.concurrent_map import concurrent_map
from llm_server.endpoint import Endpoint, EndpointRefused, EndpointUnavailable
from llm_server.question import PROMPT_VERSION, Question
from llm_server.rubric import Rubric

LOG = logging.getLogger(__name__)
TOP_LOGPROBS = (20, 5, 0)
"""What is asked for, in turn; OpenAI's own completions give 5, its chats 20, some endpoints none."""
TEXT_TOKENS = 32
ATTEMPTS_PER_DEADLINE = 3
PROBE = "You see here a lichen."
REFUSING = (400, 413, 422)
"""Statuses that may be about one request's text."""
MAX_KEPT = 4096
"""Answers of failed batches that are kept until they are asked for again."""
# Templates write their markers as <|im_start|>, <s>, <start_of_turn>, [INST].
MARKER = re.compile(r"<(?=\S)|\[(?=/?[A-Z_]{3,}\])")


@dataclass(frozen=True, slots=True)
class _Form:
    """How this endpoint wants to be asked."""

    top_logprobs: int = TOP_LOGPROBS[0]
    length_key: str = "max_tokens"
    has_temperature: bool = True


class OpenAIEngine:
    """Scores texts at one endpoint under one rubric.

    At construction ValueError where it cannot be asked, EndpointUnavailable where it does not answer within the deadline.
    """

    judges = True

    def __init__(self, config: ServiceConfig, rubric: Rubric) -> None:
        self._rubric, self._key_env = rubric, config.endpoint_key_env
        self._key = _read_key(config.endpoint_key_env)
        self._endpoint = Endpoint(
            config.endpoint,
            self._key,
            attempt_s=max(1.0, config.engine_timeout_s / ATTEMPTS_PER_DEADLINE),
            patience_s=config.engine_timeout_s,
            connections=config.endpoint_concurrency,
        )
        self.model = config.model
        self._single = rubric.question()
        self._pair = rubric.pair_question() if rubric.pairs else None
        self._concurrency, self._closed = config.endpoint_concurrency, threading.Event()
        self._kept: dict[tuple[bool, str], Score] = {}
        try:
            self._form = self._find_form()
        except BaseException:
            self.close()
            raise
        read_from = f"logprobs{self._form.top_logprobs}" if self._form.top_logprobs else "text"
        self.name = f"openai/{rubric.style}/{read_from}"
        self.needs_calibration = self._form.top_logprobs > 0
        # The weights behind an endpoint cannot be seen: a model that changes under one name keeps its stored judgements.
        self.fingerprint = hashlib.sha256("\n".join((self.name, self._endpoint.url, self.model, str(PROMPT_VERSION))).encode()).hexdigest()[
            :32
        ]

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that got no usable answer.

        RuntimeError where the endpoint does not answer within the deadline, or refuses whatever it is asked.
        """
        return self._score(False, texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs. Raises what `score` does."""
        if self._pair is None:
            self._rubric.pair_question()  # says what is missing
        return self._score(True, [self._rubric.pair_text(first, second) for first, second in pairs])

    def close(self) -> None:
        """Wait no longer for requests under way."""
        self._closed.set()
        self._endpoint.close()

    def _score(self, is_pair: bool, texts: Sequence[str]) -> list[Score]:
        refusals: list[EndpointRefused] = []
        scores = concurrent_map(partial(self._score_one, is_pair, refusals), texts, self._concurrency, self._closed)
        if texts and len(refusals) == len(texts):
            self._check_that_it_answers(is_pair)
        for text in texts:
            self._kept.pop((is_pair, text), None)
        return scores

    def _score_one(self, is_pair: bool, refusals: list[EndpointRefused], text: str) -> Score:
        if kept := self._kept.get((is_pair, text)):
            return kept
        question = self._question(is_pair)
        try:
            answer = self._post(question, text, self._form)
        except EndpointRefused as error:
            if error.status not in REFUSING:
                raise
            LOG.warning("no judgement of %r: %s", text, error)
            refusals.append(error)
            return NO_ANSWER
        score = self._read(question, answer)
        if len(self._kept) < MAX_KEPT:
            self._kept[is_pair, text] = score
        return score

    def _check_that_it_answers(self, is_pair: bool) -> None:
        """EndpointRefused where it refuses a harmless text too: then it is not about the texts, whose judgements would all be lost."""
        probe = self._rubric.pair_text(PROBE, PROBE) if is_pair else PROBE
        try:
            self._post(self._question(is_pair), probe, self._form)
        except EndpointRefused as error:
            raise EndpointRefused(f"the endpoint refuses every request: {error}", error.status) from None

    def _question(self, is_pair: bool) -> Question:
        question = self._pair if is_pair else self._single
        assert question is not None
        return question

    def _read(self, question: Question, answer: dict[str, Any]) -> Score:
        if self._form.top_logprobs:
            return score_of_top_tokens(top_tokens(answer) or [], question.answers, question.weights)
        return score_of_text(answer_text(answer), question.answers, question.answer_label, question.weights)

    def _post(self, question: Question, text: str, form: _Form) -> dict[str, Any]:
        path = "completions" if question.style == "completion" else "chat/completions"
        return self._endpoint.post(path, request_body(self.model, question, text, form))

    def _find_form(self) -> _Form:
        form = _Form()
        while True:
            try:
                answer = self._post(self._single, PROBE, form)
            except EndpointUnavailable as error:
                raise EndpointUnavailable(f"{error}: start the endpoint, or correct service.endpoint") from None
            except EndpointRefused as error:
                adjusted = _adjusted(form, str(error)) if error.status in (400, 422) else None
                if adjusted is None:
                    raise ValueError(self._explained(error)) from None
                form = adjusted
            else:
                if not form.top_logprobs or top_tokens(answer):
                    break
                form = dataclasses.replace(form, top_logprobs=0)  # accepted and ignored
        self._form = form
        if self._read(self._single, answer) is NO_ANSWER:
            said = top_tokens(answer) or answer_text(answer)
            LOG.warning(
                "model '%s' answers a first question with none of %s but with %r: should that go on, all its judgements are unparsed;"
                " use another rubric or model",
                self.model,
                list(self._single.answers),
                said[:8] if isinstance(said, list) else said,
            )
        return form

    def _explained(self, error: EndpointRefused) -> str:
        if error.status in (401, 403):
            state = "is set but not accepted" if self._key else "is not set"
            return f"{error}: the environment variable {self._key_env} (service.endpoint_key_env) {state}"
        if error.status == 404:
            return f"{error}: {self._what_is_there()}"
        if self._single.answer_prefix:
            return f"{error}: the rubric has an answer_prefix, which only some endpoints take (vLLM does)"
        return str(error)

    def _what_is_there(self) -> str:
        try:
            models = ", ".join(str(entry["id"]) for entry in self._endpoint.get("models")["data"][:20])
        except (EndpointRefused, EndpointUnavailable, KeyError, TypeError):
            return "correct service.endpoint, it should end like https://host/v1"
        kind = self._single.style
        other = "chat" if kind == "completion" else "completion"
        return (
            f"it has the models {models}; where service.model is one of them, it offers no {kind} requests: use a rubric of style {other}"
        )


def _read_key(variable: str) -> str:
    """The key; empty without one. ValueError, which never repeats it, for what no header can hold."""
    check_key_variable(variable)
    key = os.environ.get(variable, "").strip() if variable else ""
    if not all("!" <= char <= "~" for char in key):
        raise ValueError(
            f"the environment variable {variable} (service.endpoint_key_env) holds a space, a control character or a letter beyond ASCII:"
            " set it to the key alone"
        )
    return key


def request_body(model: str, question: Question, text: str, form: _Form) -> dict[str, Any]:
    """The request that asks about `text`."""
    plain = MARKER.sub(lambda match: match.group() + " ", text)
    body: dict[str, Any] = {"model": model, form.length_key: 1 if form.top_logprobs else TEXT_TOKENS}
    if form.has_temperature:
        body["temperature"] = 0
    if question.style == "completion":
        before, after = question.completion_prompt()
        body["prompt"] = f"{before} {plain}{after}"
        if form.top_logprobs:
            body["logprobs"] = form.top_logprobs
        return body
    body["messages"] = question.chat_messages(plain)
    if question.answer_prefix:
        # vLLM's words for letting the model go on in its own turn.
        body["messages"] = [*body["messages"], {"role": "assistant", "content": question.answer_prefix}]
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    if form.top_logprobs:
        body |= {"logprobs": True, "top_logprobs": form.top_logprobs}
    return body


def top_tokens(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities, of a completion or a chat; empty where there are none."""
    try:
        offered = answer["choices"][0]["logprobs"]
        if "content" in offered:
            return [(str(entry["token"]), float(entry["logprob"])) for entry in offered["content"][0]["top_logprobs"]]
        return [(str(token), float(value)) for token, value in offered["top_logprobs"][0].items()]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []


def answer_text(answer: dict[str, Any]) -> str:
    """The generated text of a completion or a chat; empty where there is none."""
    try:
        choice = answer["choices"][0]
        return str((choice["message"]["content"] if "message" in choice else choice["text"]) or "")
    except (KeyError, IndexError, TypeError):
        return ""


def _adjusted(form: _Form, complaint: str) -> _Form | None:
    """The form with what the endpoint complains of changed; None where it complains of something else."""
    if "max_completion_tokens" in complaint and form.length_key == "max_tokens":
        return dataclasses.replace(form, length_key="max_completion_tokens")
    if "temperature" in complaint and form.has_temperature:
        return dataclasses.replace(form, has_temperature=False)
    if "logprobs" in complaint and form.top_logprobs:
        return dataclasses.replace(form, top_logprobs=TOP_LOGPROBS[TOP_LOGPROBS.index(form.top_logprobs) + 1])
    return None
