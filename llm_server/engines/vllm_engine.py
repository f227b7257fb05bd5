"""The vLLM engine: answers read from one generated token's log-probabilities in a vLLM server, a supervised child on loopback.

Invariant: this process never imports vllm, so vLLM may live in an environment of its own; prompts go out as token ids, made as
the transformers engine makes them; a batch is answered by one child or fails, and a dead or hung child is replaced.

The rubric's part of the prompt is computed once by vLLM's prefix cache. The logarithms of probabilities that come back are
normalised over the whole vocabulary (vLLM's `raw_logprobs`), so their sum over the answers is the answer mass.
"""

import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from configs.annotation_schema import ServiceConfig
from configs.devices import resolve_device
from configs.errors import named
from llm_server.annotation import Score
from llm_server.child_process import ChildServer, ChildSettings, ProbeRefused
from llm_server.engines.answers import NO_ANSWER, score_of_answers
from llm_server.engines.devices import layer_of, resolve_dtype
from llm_server.engines.model_check import unused_tensors
from llm_server.engines.models import folder_fingerprint, model_folder
from llm_server.engines.openai_http import Endpoint, EndpointRefused, EndpointUnavailable
from llm_server.engines.prompt_tokens import PromptTokens
from llm_server.engines.vllm_program import is_on_cpu, vllm_command, vllm_environment, vllm_python
from llm_server.rubrics.rubric import Question, Rubric

DEFAULT_MODEL_LEN = 4096
MAX_TEXT_TOKENS = 2048
MAX_ATTEMPTS = 3
"""Children that one batch may cost: after that it is the batch."""
RESTART_PATIENCE_S = 600.0
FIRST_START_PATIENCE_S = 1800.0
OLDEST_VLLM = "0.32"
PROBE = "You see here a lichen."


class VllmEngine:
    """Scores texts with one model under one rubric; ValueError at construction where vLLM, model and rubric do not fit."""

    judges = True
    needs_calibration = True

    def __init__(self, config: ServiceConfig, rubric: Rubric) -> None:
        python = vllm_python(config.vllm_python)
        self._config, self._rubric = config, rubric
        self._folder = model_folder(config.model)
        self._tokenizer, self._context, layer = _load_tokenizer(self._folder, config)
        unused_tensors(self._folder, config)  # vLLM refuses missing weights too, after a minute and in its own log
        self.model = config.model
        on_cpu = is_on_cpu(config.device)
        dtype = resolve_dtype(config.dtype, resolve_device("cpu", "service.device") if on_cpu else None, layer)
        self.name = f"vllm/{'cpu' if on_cpu else 'gpu'}/{dtype}"
        self.fingerprint = folder_fingerprint(self._folder, self.name)
        self._single = self._prompt(rubric.question())
        self._pair = self._prompt(rubric.pair_question()) if rubric.pairs else None
        self._key = secrets.token_urlsafe(24)
        self._endpoint: tuple[int, Endpoint] | None = None
        self._server = ChildServer(
            ChildSettings(
                name="vLLM",
                command=lambda port: vllm_command(python, config, self._folder, dtype, self._context, port),
                probe=self._ask_probe,
                environment=vllm_environment(config) | {"VLLM_API_KEY": self._key},
                probe_timeout_s=config.engine_timeout_s,
            )
        )
        try:
            self._server.wait_until_up(FIRST_START_PATIENCE_S)
        except (ValueError, RuntimeError) as error:
            self.close()
            raise ValueError(
                f"{error}; what vLLM wrote is in the log: correct service.model or the settings of vLLM"
            ) from None
        except BaseException:
            self.close()
            raise

    def score(self, texts: Sequence[str]) -> list[Score]:
        """One score per text, in their order; NaN for a text that cannot be asked as plain text.

        Waits while vLLM is being replaced; RuntimeError where it does not come back, or fails again and again on these texts.
        """
        return self._score(self._single, texts)

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """One score per pair as it is shown; ValueError where the rubric has no pairs. Raises what `score` does."""
        if self._pair is None:
            self._rubric.pair_question()  # says what is missing
        assert self._pair is not None
        return self._score(self._pair, [self._rubric.pair_text(first, second) for first, second in pairs])

    def close(self) -> None:
        """End vLLM and all its processes; a `score` under way fails."""
        self._server.close()
        if self._endpoint:
            self._endpoint[1].close()

    @property
    def pid(self) -> int | None:
        """Of the process that leads vLLM's process group."""
        return self._server.pid

    @property
    def restarts(self) -> int:
        """vLLM servers started after the first."""
        return self._server.restarts

    def _prompt(self, question: Question) -> PromptTokens:
        return PromptTokens(
            self._tokenizer, question, model=self._config.model, max_text_tokens=MAX_TEXT_TOKENS, context=self._context
        )

    def _score(self, prompt: PromptTokens, texts: Sequence[str]) -> list[Score]:
        sequences = [prompt.tokens(text) for text in texts]
        asked = [index for index, sequence in enumerate(sequences) if sequence is not None]
        scores = [NO_ANSWER] * len(texts)
        for start in range(0, len(asked), self._config.batch_size):
            batch = asked[start : start + self._config.batch_size]
            answers = self._answers([prompt.prefix + (sequences[index] or []) for index in batch], prompt)
            for index, score in zip(batch, answers, strict=True):
                scores[index] = score
        return scores

    def _answers(self, prompts: Sequence[list[int]], prompt: PromptTokens) -> list[Score]:
        problem = ""
        for _ in range(MAX_ATTEMPTS):
            port = self._server.wait_until_up(RESTART_PATIENCE_S)
            try:
                scores = self._request(self._endpoint_on(port), prompts, prompt)
            except EndpointUnavailable as error:
                problem = str(error)
                self._server.doubt(port)
            else:
                self._server.answered()
                return scores
        raise RuntimeError(
            f"vLLM failed {MAX_ATTEMPTS} times on {len(prompts)} texts ({problem}): lower service.batch_size"
            " or raise service.engine_timeout_s if it is only slow"
        )

    def _endpoint_on(self, port: int) -> Endpoint:
        if self._endpoint is None or self._endpoint[0] != port:
            if self._endpoint:
                self._endpoint[1].close()
            self._endpoint = port, self._connect(port, self._config.engine_timeout_s)
        return self._endpoint[1]

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
                f"it gave no log-probabilities of the tokens asked for ({type(error).__name__}: {error}); is this vLLM older than {OLDEST_VLLM}?"
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
        choices = endpoint.post("completions", body)["choices"]
        scores = [NO_ANSWER] * len(prompts)
        for choice in choices:
            tokens = choice["logprobs"]["top_logprobs"][0]
            scores[choice["index"]] = score_of_answers(
                [tokens[f"token_id:{token}"] for token in prompt.answers], prompt.weights
            )
        return scores


def _load_tokenizer(folder: Path, config: ServiceConfig) -> tuple[Any, int, tuple[int, int]]:
    """The tokenizer, how many tokens a prompt may have, and the model's usual layer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text_config = AutoConfig.from_pretrained(folder).get_text_config()
    except Exception as error:  # the loader raises whatever the files provoke
        raise ValueError(f"the tokenizer of model '{config.model}' cannot be loaded ({named(error)})") from error
    possible = getattr(text_config, "max_position_embeddings", None) or 1 << 20
    if config.max_model_len > possible:
        raise ValueError(
            f"service.max_model_len: got {config.max_model_len}, model '{config.model}' reads at most {possible} tokens"
        )
    return tokenizer, config.max_model_len or min(possible, DEFAULT_MODEL_LEN), layer_of(text_config)
