"""The OpenAI engine: any endpoint that speaks OpenAI's protocol, a hosted model or a `vllm serve` elsewhere.

Invariant: a bad answer to one text is no answer; an endpoint that does not answer fails the batch within its deadline,
and what it had answered is not asked again; texts cannot write the markers by which templates separate turns; the key
is read from the environment and written nowhere.

The form of request is found once (`llm_server/engines/openai_forms.py`), and later failures do not change it. Answers
read from text are certain (0, 0.5 or 1), so their threshold is 0.5 instead of a calibrated one.
"""

import copy
import difflib
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from configs.annotation_schema import ServiceConfig
from configs.checks import check_key_variable
from llm_server.annotation import Score, Written
from llm_server.engines.answers import NO_ANSWER, score_of_text, score_of_top_tokens
from llm_server.engines.concurrent_map import concurrent_map
from llm_server.engines.engine import PROBE
from llm_server.engines.openai_forms import THINKING_TOKENS, Answer, Form, find_form, is_too_short, request_body
from llm_server.engines.openai_http import NO_CREDIT, UNKNOWN, WRONG_KEY, Endpoint, EndpointRefused, EndpointUnavailable
from llm_server.rubrics.question import Question
from llm_server.rubrics.rubric import PROMPT_VERSION, Rubric
from llm_server.writing.answer_text import until_stop
from llm_server.writing.brief import Brief

LOG = logging.getLogger(__name__)
ATTEMPTS_PER_DEADLINE = 3
LEAST_ATTEMPT_S = 1.0
REFUSING = (400, 403, 413, 422, 451)
"""Statuses that may be about the text of one request; aggregators' filters refuse with 403."""
FAILING = (500, UNKNOWN)
"""Statuses of failures that may be about the text of one request, where another is answered."""
ATTEMPTS = 3
"""Requests about one text without a readable answer, after which it counts as refused."""
MAX_KEPT = 4096
"""Answers of failed batches that are kept for a retry."""


class OpenAIEngine:
    """Scores texts at one endpoint under one rubric. Its construction raises ValueError where the endpoint refuses the
    first question, EndpointUnavailable where it does not answer within the deadline."""

    judges = writes = True

    def __init__(self, config: ServiceConfig, rubric: Rubric) -> None:
        self._key_env = config.endpoint_key_env
        self._key = _read_key(config.endpoint_key_env)
        self._endpoint = Endpoint(
            config.endpoint,
            self._key,
            attempt_s=max(LEAST_ATTEMPT_S, config.engine_timeout_s / ATTEMPTS_PER_DEADLINE),
            patience_s=config.engine_timeout_s,
            connections=config.endpoint_concurrency,
        )
        self.model = config.model
        self._concurrency, self._closed = config.endpoint_concurrency, threading.Event()
        self._refused_keys: set[str] = set()  # parameters of writing that the endpoint does not take
        try:
            self._take(rubric)
        except BaseException:
            self.close()
            raise

    def under(self, rubric: Rubric) -> "OpenAIEngine":
        """The same endpoint under another rubric, whose form of request is found anew."""
        other = copy.copy(self)
        other._take(rubric)
        return other

    def _take(self, rubric: Rubric) -> None:
        self._rubric, self._single = rubric, rubric.question()
        self._probe = rubric.about_text(PROBE, PROBE) if rubric.about_label else PROBE
        # A pair's text differs from every single one: it has two lines, and is not asked about anything.
        self._kept: dict[str, Score] = {}
        self._form = self._find_form()
        read_from = f"logprobs{self._form.top_logprobs}" if self._form.top_logprobs else "text"
        self.name = f"openai/{rubric.style}/{read_from}"
        self.needs_calibration = self._form.top_logprobs > 0
        # The weights behind an endpoint are unknown: a model that changes under the same name keeps its stored
        # judgements.
        identity = [self.name, self._endpoint.url, self.model, str(PROMPT_VERSION)]
        identity += [] if self._form.has_system else ["without a system turn"]
        self.fingerprint = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:32]

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text without a usable answer. RuntimeError where the endpoint
        does not answer within the deadline, or refuses every request."""
        return self._score(self._single, texts, self._probe)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs. Raises what `score` does."""
        question, text_of = self._rubric.pair_question(), self._rubric.pair_text
        return self._score(question, [text_of(first, second) for first, second in pairs], text_of(PROBE, PROBE))

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """See `Engine.write`; nothing for a text that the endpoint, or a filter, refuses. RuntimeError where the
        endpoint does not answer within the deadline, or refuses a harmless question too."""
        return concurrent_map(partial(self._write, brief, text), seeds, self._concurrency, self._closed)

    def close(self) -> None:
        """End running requests; a `score` that waits for them fails."""
        self._closed.set()
        self._endpoint.close()

    def _score(self, question: Question, texts: Sequence[str], probe: str) -> list[Score]:
        refusals: list[EndpointRefused] = []
        score_one = partial(self._score_one, question, probe, refusals)
        scores = concurrent_map(score_one, texts, self._concurrency, self._closed)
        if texts and len(refusals) == len(texts):
            try:  # where a harmless text is refused too, the texts are not the reason: the batch must fail
                self._ask(question, probe)
            except EndpointRefused as error:
                raise EndpointRefused(
                    f"the endpoint refuses every request: {self._explained(error)}", error.status
                ) from None
        for text in texts:
            self._kept.pop(text, None)
        return scores

    def _score_one(self, question: Question, probe: str, refusals: list[EndpointRefused], text: str) -> Score:
        if kept := self._kept.get(text):
            return kept
        try:
            score = self._ask(question, text)
        except EndpointRefused as error:
            if error.status not in REFUSING:
                raise EndpointRefused(self._explained(error), error.status) from None
            LOG.warning("no judgement of %r: %s", text, error)
            refusals.append(error)
            return NO_ANSWER
        except EndpointUnavailable as error:
            if error.status not in FAILING:
                raise
            self._ask(question, probe)  # raises where no text is answered
            LOG.warning("no judgement of %r, at which the endpoint always fails: %s", text, error)
            score = NO_ANSWER
        if len(self._kept) < MAX_KEPT:
            self._kept[text] = score
        return score

    def _ask(self, question: Question, text: str) -> Score:
        """The score of one text, NO_ANSWER where the model says something else. EndpointRefused where the endpoint
        refuses the text, or no longer gives log-probabilities."""
        form = self._form
        for _ in range(ATTEMPTS):
            try:
                answer = self._post(question, text, form)
            except EndpointRefused as error:
                if is_too_short(error.said) and (longer := form.longer()):
                    form = longer
                    continue
                if form is not self._form and error.status in REFUSING:  # the larger token limit is refused
                    return NO_ANSWER
                raise
            score = _read(question, answer, form)
            if score is not NO_ANSWER or answer.is_withheld:
                return score
            if form.top_logprobs:
                if answer.top_tokens:
                    return score
            elif answer.is_unfinished and (answer.is_thinking or form.tokens >= THINKING_TOKENS):
                form = form.longer() or form
            elif answer.text.strip():
                return score
        if form.top_logprobs:
            raise EndpointRefused(f"{self._endpoint.url} gave no log-probabilities, as it did at first", REFUSING[0])
        return NO_ANSWER

    def _write(self, brief: Brief, text: str, seed: int) -> Written:
        question = brief.question(self._rubric.style, self._rubric.answer_prefix)
        stops = brief.stops(question.style)
        # An endpoint that thinks before it answers gets the room for thoughts that it needed for the rubric.
        form = replace(self._form, top_logprobs=0, tokens=max(self._form.tokens, brief.max_tokens))
        wanted: dict[str, Any] = {"seed": seed} | ({"stop": list(stops)} if stops else {})
        try:
            while True:
                body = request_body(self.model, question, text, form)
                body |= {key: value for key, value in wanted.items() if key not in self._refused_keys}
                if form.has_temperature:
                    body["temperature"] = brief.temperature
                try:
                    response = self._endpoint.post(_path(question), body, wants_choice=True)
                    break
                except EndpointRefused as error:
                    named = {key for key in wanted.keys() & body.keys() if key in error.said.lower()}
                    longer = form.longer() if is_too_short(error.said) else None
                    if not named and longer is None:
                        raise
                    self._refused_keys |= named
                    form = longer or form
        except EndpointRefused as error:
            if error.status not in REFUSING:
                raise EndpointRefused(self._explained(error), error.status) from None
            self._ask(self._single, self._probe)  # raises where the text is not the reason
            LOG.warning("nothing is written about %r: %s", text, error)
            return Written("", 0)
        answer = Answer(response)
        said, has_stopped = until_stop("" if answer.is_withheld else answer.text, stops)
        usage = response.get("usage")
        tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        tokens = tokens if isinstance(tokens, int) and 0 < tokens < 2**31 else len(said.split())
        return Written(said, tokens, is_cut=answer.is_unfinished and not has_stopped)

    def _post(self, question: Question, text: str, form: Form) -> Answer:
        body = request_body(self.model, question, text, form)
        return Answer(self._endpoint.post(_path(question), body, wants_choice=True))

    def _find_form(self) -> Form:
        def holds_answer(form: Form, answer: Answer) -> bool:
            return _read(self._single, answer, form).answer_mass >= self._rubric.min_answer_mass

        try:
            form, answer = find_form(
                partial(self._post, self._single, self._probe), holds_answer, is_chat=self._single.style == "chat"
            )
        except EndpointUnavailable as error:
            slow = (
                "; if it loads its model first, raise service.engine_timeout_s"
                if "did not answer" in str(error)
                else ""
            )
            raise EndpointUnavailable(f"{error}: start the endpoint, or correct service.endpoint{slow}") from None
        except EndpointRefused as error:
            raise ValueError(self._explained(error)) from None
        if not holds_answer(form, answer):
            LOG.warning(
                "model '%s' answers a first question with none of %s but with %r: if that continues, all its"
                " judgements are unparsed; use another rubric or model",
                self.model,
                list(self._single.answers),
                answer.top_tokens[:8] if form.top_logprobs else answer.text[:200],
            )
        return form

    def _explained(self, error: EndpointRefused) -> str:
        variable = f"the environment variable {self._key_env} (service.endpoint_key_env)"
        if error.status == NO_CREDIT:
            return f"{error}: the account has no credit left; add some, or set {variable} to the key of another account"
        if error.status in (WRONG_KEY, 403) and not self._key:
            problem = (
                f"{variable} is not set" if self._key_env else "service.endpoint_key_env names no variable with a key"
            )
            return f"{error}: {problem}"
        if error.status == WRONG_KEY:
            return f"{error}: {variable} is set but not accepted"
        if error.status == 403:
            return f"{error}: the key in {variable} is not allowed this model, or not from here"
        if error.status in (404, 405):
            return f"{error}: {self._advice_on_model()}"
        if self._single.answer_prefix:
            return f"{error}: the rubric has an answer_prefix, which only some endpoints support (vLLM does)"
        return str(error)

    def _advice_on_model(self) -> str:
        try:
            found = self._endpoint.get("models")
            models = [str(entry["id"]) for entry in (found if isinstance(found, list) else found["data"] or [])]
        except (EndpointRefused, EndpointUnavailable, KeyError, TypeError):
            return "correct service.endpoint, it should end like https://host/v1"
        if not models:
            return "it lists no models: load one there"
        if self.model in models:
            kind = self._single.style
            other = "chat" if kind == "completion" else "completion"
            return f"it lists this model; if it offers no {kind} requests, use a rubric of style {other}"
        shown = list(dict.fromkeys([*difflib.get_close_matches(self.model, models), *models]))[:20]
        rest = f" and {len(models) - len(shown)} others" if len(models) > len(shown) else ""
        return f"it has the models {', '.join(shown)}{rest}: set service.model to one of them"


def _read_key(variable: str) -> str:
    """The key; empty without one. ValueError, which never repeats it, for characters that no header can hold."""
    check_key_variable(variable)
    key = os.environ.get(variable, "").strip() if variable else ""
    if not all("!" <= char <= "~" for char in key):
        raise ValueError(
            f"the environment variable {variable} (service.endpoint_key_env) holds a space, a control character or a"
            " non-ASCII letter: set it to the key alone"
        )
    return key


def _path(question: Question) -> str:
    return "completions" if question.style == "completion" else "chat/completions"


def _read(question: Question, answer: Answer, form: Form) -> Score:
    if form.top_logprobs:
        return score_of_top_tokens(answer.top_tokens, question.answers, question.weights)
    return score_of_text(answer.text, question.answers, question.answer_label, question.weights)
