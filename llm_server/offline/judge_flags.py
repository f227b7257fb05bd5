"""The judge that a verb's flags name: one in this process, or a running service.

Invariant: mistakes that show without loading a model are reported before one is loaded; importing this imports nothing
heavy.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from configs.annotation_schema import ServiceConfig
from configs.flags import add_flags, check_flags, flag
from configs.paths import path_argument
from llm_server.serve import DEFAULT_RUBRIC, DEFAULTS, FLAGS

if TYPE_CHECKING:
    from llm_server.client import AnnotationClient, InProcessClient
    from llm_server.rubrics.rubric import Rubric

NOT_OF_A_VERB = ("host", "port", "encoder", "max_items_per_request", "max_item_bytes")
"""Flags of `delphi serve` that the verbs do not have."""
CREDENTIAL_FLAGS = {
    "tls_ca": "the CA that signed the service's certificate; `system` for public ones",
    "tls_cert": "a client certificate, for a service that requires one",
    "tls_key": "the key of the client certificate",
    "token_file": "the service's token",
}
REQUEST_TIMEOUT_S = 600.0
ITEMS_PER_REQUEST = 64
"""Two batches of the usual size: progress is told often, and few items are asked again after a kill."""
OfflineJudgeClient: TypeAlias = "AnnotationClient | InProcessClient"


def add_judge_flags(parser: argparse.ArgumentParser, *, with_store: bool, rubric: str = "") -> None:
    """Add the flags for rubric (by default `rubric`, if given), service address, and a judge in this process (with its
    store if the verb uses one)."""
    group = parser.add_argument_group(
        "judge", "The model and its question. Without --address the model is loaded here."
    )
    question = f"a built-in rubric or a YAML file (default: {rubric or DEFAULT_RUBRIC})"
    address = "a running `delphi serve` with the same rubric, in place of all flags below"
    group.add_argument("--rubric", type=path_argument, metavar="RUBRIC", default=rubric or None, help=question)
    group.add_argument("--address", metavar="HOST:PORT", help=address)
    for name, text in CREDENTIAL_FLAGS.items():
        group.add_argument(flag(name), type=path_argument, metavar="FILE", default="", help=f"with --address: {text}")
    add_flags(group, DEFAULTS, judge_fields(with_store=with_store), unset=True)


def judge_fields(*, with_store: bool) -> list[str]:
    """Fields of `ServiceConfig` that a verb's flags set."""
    return [name for name in FLAGS if name not in NOT_OF_A_VERB and (with_store or name != "store")]


def _given(arguments: argparse.Namespace, *, with_store: bool) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in judge_fields(with_store=with_store)}
    return {name: value for name, value in values.items() if value is not None}


def given_flags(arguments: argparse.Namespace, *, with_store: bool) -> list[str]:
    """The given flags of a judge in this process."""
    return [flag(name) for name in _given(arguments, with_store=with_store)]


def read_judge_flags(arguments: argparse.Namespace, *, with_store: bool) -> "tuple[Rubric, ServiceConfig | None]":
    """The rubric and the configuration of a judge in this process, None if `--address` names a service. ValueError for
    mistakes in the flags, the rubric, or (as far as they show without loading it) the model."""
    from llm_server.engines.building import check_engine
    from llm_server.rubrics.loading import load_rubric

    values = _given(arguments, with_store=with_store)
    if arguments.address and values:
        own = flag(next(iter(values)))
        raise ValueError(f"--address asks a running service, which has its own {own}: leave one of the two out")
    rubric = load_rubric(arguments.rubric or DEFAULT_RUBRIC)
    shown = [flag(name) for name in CREDENTIAL_FLAGS if getattr(arguments, name)]
    if shown and not arguments.address:
        raise ValueError(f"{shown[0]}: got it without --address, wanted the address of the service that it is for")
    if arguments.address:
        return rubric, None
    defaults = {name: getattr(DEFAULTS, name) for name in FLAGS} | ({} if with_store else {"store": "memory"})
    config = ServiceConfig(**defaults | values)
    check_flags(ServiceConfig, values)
    if config.engine == "none":
        raise ValueError("--engine: got none, which embeds and judges nothing; wanted an engine with a language model")
    check_engine(config)
    return rubric, config


@contextmanager
def opened_judge(
    rubric: "Rubric", config: ServiceConfig | None, arguments: argparse.Namespace, about: str = ""
) -> "Iterator[OfflineJudgeClient]":
    """The judge that `read_judge_flags` returned, ready to answer, about `about` if given, and closed at the end.
    ValueError where the model, the store or the credentials cannot be used, ServiceUnavailable where an endpoint does
    not answer."""
    from llm_server.client import AnnotationClient, InProcessClient, ServiceUnavailable
    from llm_server.credentials import load_client_credentials

    if config is None:
        credentials = load_client_credentials(*(getattr(arguments, name) for name in CREDENTIAL_FLAGS))
        with closing(AnnotationClient(arguments.address, rubric, REQUEST_TIMEOUT_S, credentials, about)) as client:
            yield client
        return
    from llm_server.engines.openai_http import EndpointRefused, EndpointUnavailable
    from llm_server.service.judge import build_judge

    if config.nice:
        os.nice(config.nice)
    if config.engine == "transformers" and config.torch_threads:
        import torch

        torch.set_num_threads(config.torch_threads)
    if config.engine != "scripted":
        print(f"preparing {config.model} ({config.engine}) ...", file=sys.stderr, flush=True)
    try:
        judge = build_judge(config, [rubric])
    except (EndpointRefused, EndpointUnavailable) as error:
        raise ServiceUnavailable(str(error)) from error
    with closing(judge):
        yield InProcessClient(judge, rubric, about)
