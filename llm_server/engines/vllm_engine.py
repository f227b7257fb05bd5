"""The vLLM engine: answers read from one generated token's log-probabilities in a vLLM server, a supervised child on
loopback.

Invariant: this process never imports vllm, so vLLM may have a virtual environment of its own; prompts are sent as token
ids, the same as in the transformers engine; a batch is answered by one child or fails, and a dead or hung child is
replaced.

vLLM's prefix cache computes the rubric's part of the prompt once. The returned log-probabilities are normalised over
the whole vocabulary (vLLM's `raw_logprobs`), so the sum of the answers' probabilities is the answer mass.
"""

import copy
import math
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from configs.annotation_schema import ServiceConfig
from configs.devices import resolve_device
from llm_server.annotation import Score, Written
from llm_server.child_server import ChildServer, ProbeRefused, ServerSettings
from llm_server.engines.answers import NO_ANSWER, score_of_answers
from llm_server.engines.concurrent_map import concurrent_map
from llm_server.engines.devices import layer_of, resolve_dtype
from llm_server.engines.engine import PROBE
from llm_server.engines.model_check import unused_tensors
from llm_server.engines.models import folder_fingerprint, load_tokenizer, model_folder
from llm_server.engines.openai_http import Endpoint, EndpointRefused, EndpointUnavailable
from llm_server.engines.prompt_tokens import PromptTokens, score_batches
from llm_server.engines.vllm_program import is_on_cpu, vllm_command, vllm_environment, vllm_python
from llm_server.rubrics.rubric import Rubric
from llm_server.writing.brief import Brief

DEFAULT_MODEL_LEN = 4096
MAX_ATTEMPTS = 3
"""Children that may fail on one batch before the batch fails."""
RESTART_PATIENCE_S = 600.0
FIRST_START_PATIENCE_S = 1800.0
OLDEST_VLLM = "0.32"
Result = TypeVar("Result")


class VllmEngine:
    """Scores texts with one model under one rubric; ValueError where vLLM, model and rubric do not fit."""

    judges = writes = needs_calibration = True

    def __init__(self, config: ServiceConfig, rubric: Rubric) -> None:
        python = vllm_python(config.vllm_python)
        self._config = config
        self.model = config.model
        folder = model_folder(self.model)
        tokenizer, settings, possible = load_tokenizer(folder, self.model)
        wanted = config.max_model_len
        if wanted > possible:
            raise ValueError(
                f"service.max_model_len: got {wanted}, model '{self.model}' reads at most {possible} tokens"
            )
        context = wanted or min(possible, DEFAULT_MODEL_LEN)
        unused_tensors(folder, config)  # vLLM refuses missing weights too, but late and in its own log
        on_cpu = is_on_cpu(config.device)
        device = resolve_device("cpu", "service.device") if on_cpu else None
        dtype = resolve_dtype(config.dtype, device, layer_of(settings))
        self.name = f"vllm/{'cpu' if on_cpu else 'gpu'}/{dtype}"
        self.fingerprint = folder_fingerprint(folder, self.name)
        self._prompt, self._context = partial(PromptTokens, tokenizer, model=self.model), context
        self._take(rubric)
        self._endpoints: dict[int, Endpoint] = {}  # at most one, by port; shared by all rubrics
        self._key, self._closed = secrets.token_urlsafe(24), threading.Event()
        self._server = ChildServer(
            ServerSettings(
                name="vLLM",
                command=lambda port: vllm_command(python, config, folder, dtype, context, port),
                probe=self._ask_probe,
                environment=vllm_environment(config) | {"VLLM_API_KEY": self._key},
                probe_timeout_s=config.engine_timeout_s,
            )
        )
        try:
            self._server.wait_until_up(FIRST_START_PATIENCE_S)
        except (ValueError, RuntimeError) as error:
            self.close()
            raise ValueError(f"{error}; vLLM's output is in the log: correct service.model or its other keys") from None
        except BaseException:
            self.close()
            raise

    def under(self, rubric: Rubric) -> "VllmEngine":
        """The same server and connection under another rubric."""
        other = copy.copy(self)
        other._take(rubric)
        return other

    def _take(self, rubric: Rubric) -> None:
        self._rubric = rubric
        self._single = self._prompt(rubric.question(), context=self._context)
        self._pair = self._prompt(rubric.pair_question(), context=self._context) if rubric.pairs else None

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that cannot be asked as plain text. Waits while vLLM is
        replaced; RuntimeError where it does not come back, or fails repeatedly on these texts."""
        return self._score(self._single, texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs. Raises what `score` does."""
        prompt = self._pair or self._prompt(self._rubric.pair_question(), context=self._context)  # the latter raises
        return self._score(prompt, [self._rubric.pair_text(first, second) for first, second in pairs])

    def write(self, brief: Brief, text: str, seeds: Sequence[int]) -> list[Written]:
        """See `Engine.write`. Waits while vLLM is replaced; RuntimeError as `score`."""
        question = brief.question(self._rubric.style, self._rubric.answer_prefix)
        room = self._context - brief.max_tokens
        prompt = self._prompt(question, context=room, max_text_tokens=room)
        if (tokens := prompt.tokens(text)) is None:
            return [Written("", 0)] * len(seeds)
        body = {
            "model": "delphi",
            "prompt": prompt.prefix + tokens,
            "max_tokens": brief.max_tokens,
            "temperature": brief.temperature,
            "stop": list(brief.stops(question.style)),
            "stop_token_ids": sorted(prompt.special),
        }
        # Each is a request of its own, as it has its own seed; vLLM computes them, and judgements meanwhile, together.
        return concurrent_map(partial(self._write, body), seeds, self._config.batch_size, self._closed)

    def _write(self, body: dict[str, Any], seed: int) -> Written:
        def ask(port: int) -> Written:
            with closing(self._connect(port, self._config.engine_timeout_s)) as endpoint:
                response = endpoint.post("completions", body | {"seed": seed}, wants_choice=True)
            choice = response["choices"][0]
            return Written(choice["text"], response["usage"]["completion_tokens"], choice["finish_reason"] == "length")

        return self._persistently(ask, "a writing")

    def close(self) -> None:
        """End vLLM and all its processes; a running `score` or `write` fails."""
        self._closed.set()
        self._server.close()
        for endpoint in self._endpoints.values():
            endpoint.close()

    @property
    def pid(self) -> int | None:
        """The id of the process that leads vLLM's process group."""
        return self._server.pid

    @property
    def restarts(self) -> int:
        """How many vLLM servers were started after the first."""
        return self._server.restarts

    def _score(self, prompt: PromptTokens, texts: Sequence[str]) -> list[Score]:
        sequences = prompt.all_tokens(texts)
        return score_batches(sequences, partial(self._score_batch, prompt), self._config.batch_size)

    def _score_batch(self, prompt: PromptTokens, sequences: Sequence[list[int]]) -> list[Score]:
        prompts = [prompt.prefix + sequence for sequence in sequences]
        return self._persistently(
            lambda port: self._request(self._endpoint_on(port), prompts, prompt), f"{len(prompts)} texts"
        )

    def _persistently(self, ask: Callable[[int], Result], what: str) -> Result:
        """The result of `ask` of the port of a server that is up, asked again of the next one while it fails."""
        problem = ""
        for _ in range(MAX_ATTEMPTS):
            port = self._server.wait_until_up(RESTART_PATIENCE_S)
            try:
                result = ask(port)
            except EndpointUnavailable as error:
                problem = str(error)
                self._server.doubt(port)
            else:
                self._server.answered()
                return result
        raise RuntimeError(
            f"vLLM failed {MAX_ATTEMPTS} times on {what} ({problem}): lower service.batch_size"
            " or raise service.engine_timeout_s if it is only slow"
        )

    def _endpoint_on(self, port: int) -> Endpoint:
        if port not in self._endpoints:
            while self._endpoints:  # of servers that have ended
                self._endpoints.popitem()[1].close()
            self._endpoints[port] = self._connect(port, self._config.engine_timeout_s)
        return self._endpoints[port]

    def _connect(self, port: int, timeout_s: float) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{port}/v1", self._key, attempt_s=timeout_s, patience_s=0.0)

    def _ask_probe(self, port: int, timeout_s: float) -> None:
        endpoint = self._connect(port, timeout_s)
        try:
            sequence = self._single.prefix + (self._single.tokens(PROBE) or [])
            (score,) = self._request(endpoint, [sequence], self._single)
        except EndpointRefused as error:
            raise ProbeRefused(str(error)) from None
        except (LookupError, TypeError, ValueError) as error:
            raise ProbeRefused(
                f"it gave no log-probabilities of the tokens asked for ({type(error).__name__}: {error}); is this vLLM"
                f" older than {OLDEST_VLLM}?"
            ) from None
        finally:
            endpoint.close()
        if not math.isfinite(score.probability):
            raise ProbeRefused(f"the answer was {score}")

    @staticmethod
    def _request(endpoint: Endpoint, prompts: Sequence[list[int]], prompt: PromptTokens) -> list[Score]:
        body: dict[str, Any] = {
            "model": "delphi",
            "prompt": prompts,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(prompt.answers),
            "logprob_token_ids": prompt.answers,
            "return_tokens_as_token_ids": True,
        }
        scores = [NO_ANSWER] * len(prompts)
        for choice in endpoint.post("completions", body)["choices"]:
            tokens = choice["logprobs"]["top_logprobs"][0]
            found = [tokens[f"token_id:{token}"] for token in prompt.answers]
            scores[choice["index"]] = score_of_answers(found, prompt.weights)
        return scores
