"""The judge that a verb's flags name: one in this process, or a running service.

Invariant: what can be seen to be wrong without loading a model is said before one is loaded; importing this imports nothing heavy.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from configs.annotation_schema import ServiceConfig
from configs.flags import add_flags, check_flags, flag
from configs.paths import path_argument
from llm_server.serve import DEFAULTS, FLAGS

if TYPE_CHECKING:
    from llm_server.annotation import Judgement, PairJudgement, ServiceDescription
    from llm_server.rubrics.rubric import Rubric

NOT_OF_A_VERB = ("host", "port", "encoder", "max_items_per_request", "max_item_bytes")
"""Flags of `delphi serve` that concern its clients only."""
CREDENTIAL_FLAGS = {
    "tls_ca": "the CA that signed the service's certificate; `system` for public ones",
    "tls_cert": "a client certificate, for a service that wants one",
    "tls_key": "the key to it",
    "token_file": "the service's token",
}
DEFAULT_RUBRIC = "nethack_progress"
REQUEST_TIMEOUT_S = 600.0
MAX_ITEMS_PER_REQUEST = 256
"""Several batches of any engine, and few enough to be answered within the time-out."""


class JudgeClient(Protocol):
    """What a verb asks; `llm_server/client.py` has both kinds."""

    def annotate(self, items: Sequence[bytes], *, bypass_store: bool = False) -> "list[Judgement]":
        """One judgement per item, in order; AnnotationError where none come."""
        ...

    def annotate_pairs(
        self, pairs: Sequence[tuple[bytes, bytes]], *, bypass_store: bool = False
    ) -> "list[PairJudgement]":
        """One judgement per pair, in order; AnnotationError where none come."""
        ...

    def describe(self) -> "ServiceDescription":
        """What judges, and within which limits."""
        ...


def add_judge_flags(parser: argparse.ArgumentParser, *, with_store: bool) -> None:
    """Rubric, address of a service, and the flags of a judge in this process; with the judgement store where the verb uses it."""
    group = parser.add_argument_group(
        "judge", "Who is asked what. Without --address the model is loaded in this process."
    )
    group.add_argument(
        "--rubric",
        type=path_argument,
        metavar="RUBRIC",
        help=f"a built-in rubric or a YAML file (default: {DEFAULT_RUBRIC})",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a running `delphi serve` with the same rubric, in place of all flags below",
    )
    for name, text in CREDENTIAL_FLAGS.items():
        group.add_argument(flag(name), type=path_argument, metavar="FILE", default="", help=f"with --address: {text}")
    add_flags(group, DEFAULTS, judge_fields(with_store=with_store), unset=True)


def judge_fields(*, with_store: bool) -> list[str]:
    """Fields of `ServiceConfig` that a verb's flags set."""
    return [name for name in FLAGS if name not in NOT_OF_A_VERB and (with_store or name != "store")]


def given_flags(arguments: argparse.Namespace, *, with_store: bool) -> list[str]:
    """The flags of a judge in this process that were given."""
    names = [name for name in judge_fields(with_store=with_store) if getattr(arguments, name) is not None]
    return [flag(name) for name in names]


def read_judge_flags(arguments: argparse.Namespace, *, with_store: bool) -> "tuple[Rubric, ServiceConfig | None]":
    """The rubric and the configuration of a judge in this process, None where `--address` names a service.

    ValueError for what is wrong with the flags, the rubric, or (as far as it can be seen from outside) the model.
    """
    from llm_server.engines.building import check_engine
    from llm_server.rubrics.loading import load_rubric

    given = given_flags(arguments, with_store=with_store)
    if arguments.address and given:
        raise ValueError(f"--address asks a running service, which has its own {given[0]}: leave one of the two out")
    rubric = load_rubric(arguments.rubric or DEFAULT_RUBRIC)
    shown = [flag(name) for name in CREDENTIAL_FLAGS if getattr(arguments, name)]
    if shown and not arguments.address:
        raise ValueError(f"{shown[0]}: got it without --address, wanted the address of the service that it is for")
    if arguments.address:
        return rubric, None
    values = {
        name: getattr(arguments, name)
        for name in judge_fields(with_store=with_store)
        if getattr(arguments, name) is not None
    }
    config = ServiceConfig(
        **{name: getattr(DEFAULTS, name) for name in FLAGS} | ({} if with_store else {"store": "memory"}) | values
    )
    check_flags(ServiceConfig, values)
    if config.engine == "none":
        raise ValueError("--engine: got none, which embeds and judges nothing; wanted an engine with a language model")
    check_engine(config)
    return rubric, config


@contextmanager
def opened_judge(
    rubric: "Rubric", config: ServiceConfig | None, arguments: argparse.Namespace
) -> "Iterator[JudgeClient]":
    """The judge that `read_judge_flags` named, ready to answer, and closed at the end.

    ValueError where the model, the store or the credentials cannot be used, ServiceUnavailable where an endpoint does not answer.
    """
    from llm_server.client import AnnotationClient, InProcessClient, ServiceUnavailable
    from llm_server.credentials import load_client_credentials

    if config is None:
        credentials = load_client_credentials(*(getattr(arguments, name) for name in CREDENTIAL_FLAGS))
        remote = AnnotationClient(arguments.address, rubric, REQUEST_TIMEOUT_S, credentials)
        try:
            yield remote
        finally:
            remote.close()
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
        judge = build_judge(config, rubric)
    except (EndpointRefused, EndpointUnavailable) as error:
        raise ServiceUnavailable(str(error)) from error
    try:
        yield InProcessClient(judge)
    finally:
        judge.close()
