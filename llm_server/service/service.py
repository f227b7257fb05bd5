"""The annotation service: a judge behind gRPC, with health and reflection.

Invariant: the event loop never waits for the model; no request can bring the server down, and the status of a failed
one says what to do; health is SERVING exactly while `Annotate` can be answered.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from configs.annotation_schema import AccessConfig, ServiceConfig
from llm_server import annotation_pb2 as pb
from llm_server import annotation_pb2_grpc, wire
from llm_server.annotation import PairJudgement
from llm_server.rubrics.rubric import Rubric
from llm_server.service.auth import Gate, add_port, check_access
from llm_server.service.judge import Judge
from llm_server.service.pending import JudgeBusyError, JudgeClosedError, JudgeFailedError
from llm_server.writing.brief import Brief
from llm_server.writing.loading import built_in_briefs, load_brief

T = TypeVar("T")
LOG = logging.getLogger(__name__)
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Annotation"].full_name
STOP_GRACE_S = 2.0
MAX_SHOWN_CHARS = 200
"""Of a name in a request; a status with longer details than gRPC's 16 kB does not arrive."""
LOOPBACK_ACCESS = AccessConfig()


class AnnotationServicer(annotation_pb2_grpc.AnnotationServicer):
    """Checks requests and passes them to the judge; refuses them while it is not loaded."""

    def __init__(self) -> None:
        self.judge: Judge | None = None

    async def Annotate(self, request: pb.AnnotateRequest, context: grpc.aio.ServicerContext) -> pb.AnnotateResponse:
        """One judgement per item; see annotation.proto for the statuses."""
        judge = await self._ready_judge(context)
        rubric = await _named_rubric(judge, request, context)
        items, abouts = request.items, request.abouts  # no lists: the judge refuses too many before it reads them
        ask = partial(judge.submit, items, request.bypass_store, rubric=rubric, abouts=abouts)
        judgements = await _answer(context, ask)
        said = judge.describe(rubric)
        return wire.annotate_response(
            judgements, items, abouts=abouts, rubric_hash=said.rubric_hash, fingerprint=said.fingerprint
        )

    async def AnnotatePairs(
        self, request: pb.AnnotatePairsRequest, context: grpc.aio.ServicerContext
    ) -> pb.AnnotatePairsResponse:
        """One judgement per pair."""
        judge = await self._ready_judge(context)
        rubric = await _named_rubric(judge, request, context)
        pairs: list[tuple[bytes, bytes]] = []

        def submit() -> "Future[list[PairJudgement]]":
            judge.check_number(len(request.pairs))
            pairs.extend((pair.first, pair.second) for pair in request.pairs)
            return judge.submit_pairs(pairs, request.bypass_store, rubric=rubric)

        judgements = await _answer(context, submit)
        said = judge.describe(rubric)
        return wire.pairs_response(judgements, pairs, pairs_hash=said.pairs_hash, fingerprint=said.fingerprint)

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        """One vector per item."""
        judge = await self._ready_judge(context)
        items = request.items
        vectors = await _answer(context, lambda: judge.submit_embedding(items))
        return wire.embed_response(vectors, items, fingerprint=judge.describe().fingerprint)

    async def Write(self, request: pb.WriteRequest, context: grpc.aio.ServicerContext) -> pb.WriteResponse:
        """What the model writes by a brief."""
        judge = await self._ready_judge(context)
        brief, fields = await _named_brief(request, context), dict(request.fields)
        ask = partial(judge.desk.submit, brief, fields, request.num, request.seed, bypass_store=request.bypass_store)
        return wire.write_response(await _answer(context, ask), brief, judge.describe().fingerprint)

    async def Describe(self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext) -> pb.DescribeResponse:
        """The judge's description under the rubric that the request names, the first where it has none of that name."""
        judge = await self._ready_judge(context)
        rubric = _found_rubric(judge, request)
        briefs = map(load_brief, built_in_briefs())
        return wire.describe_response(judge.describe(rubric), map(judge.describe, judge.rubrics), briefs)

    async def _ready_judge(self, context: grpc.aio.ServicerContext) -> Judge:
        """The judge, once it is loaded; aborts the call otherwise."""
        if self.judge is None:
            retry = "ask again in a few seconds, or watch grpc.health.v1"
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{wire.LOADING}; {retry}")
        assert self.judge is not None  # abort raises
        return self.judge


def _found_rubric(judge: Judge, request: Any) -> Rubric | None:
    named = request.rubric_id, request.rubric_version
    return next((rubric for rubric in judge.rubrics if (rubric.id, rubric.version) == named), None)


async def _named_rubric(judge: Judge, request: Any, context: grpc.aio.ServicerContext) -> Rubric:
    """The rubric that `request` names; aborts the call where it is not served."""
    if rubric := _found_rubric(judge, request):
        return rubric
    asked, version = request.rubric_id[:MAX_SHOWN_CHARS], request.rubric_version[:MAX_SHOWN_CHARS]
    served = ", ".join(f"{rubric.id!r} version {rubric.version!r}" for rubric in judge.rubrics)
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"rubric {asked!r} version {version!r} was requested, this service has {served}; start a service with that"
        " rubric, or request one that this has",
    )
    raise AssertionError("abort raises")


async def _named_brief(request: pb.WriteRequest, context: grpc.aio.ServicerContext) -> Brief:
    """The brief that `request` names; aborts the call where it is not served."""
    briefs = [*map(load_brief, built_in_briefs())]
    for brief in briefs:
        if (brief.id, brief.version) == (request.brief_id, request.brief_version):
            return brief
    asked, version = request.brief_id[:MAX_SHOWN_CHARS], request.brief_version[:MAX_SHOWN_CHARS]
    served = ", ".join(f"{brief.id!r} version {brief.version!r}" for brief in briefs)
    await context.abort(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"brief {asked!r} version {version!r} was requested, this service has {served}; request one of these, or start"
        " a service of the same version as its clients",
    )
    raise AssertionError("abort raises")


async def _answer(context: grpc.aio.ServicerContext, ask: "Callable[[], Future[T]]") -> T:
    """The result of the future that `ask` returns; its errors become the call's status."""
    try:
        # The future is cancelled with the request (client gone, deadline passed), and then withdraws the items.
        return await asyncio.wrap_future(ask())
    except ValueError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except JudgeBusyError as error:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except JudgeClosedError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except JudgeFailedError as error:
        await context.abort(grpc.StatusCode.INTERNAL, f"{error}; the service's log has the traceback")
    raise AssertionError("abort raises")


async def serve(
    config: ServiceConfig,
    build: Callable[[], Judge],
    *,
    access: AccessConfig = LOOPBACK_ACCESS,
    on_listening: Callable[[str], None],
    on_serving: Callable[[Judge], None],
    stop: asyncio.Event,
) -> bool:
    """Listen, load the model, answer until `stop`; False if `stop` came first and `build` still runs in its thread.

    Raises ValueError for an address that is taken or needs credentials that `access` lacks, and where `build` does.
    """
    check_access(config.host, access)
    arguments = [
        ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", wire.MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # a port in use is an error; its clients are not shared with the other service
        # Clients may ping while they wait for the model.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ]
    server = grpc.aio.server(options=arguments, interceptors=[Gate(access)])
    servicer, health_servicer = AnnotationServicer(), health.aio.HealthServicer()
    annotation_pb2_grpc.add_AnnotationServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    host = f"[{config.host}]" if ":" in config.host and "[" not in config.host else config.host
    try:
        port = add_port(server, f"{host}:{config.port}", access)
    except RuntimeError as error:
        what_to_do = "give another --port, 0 for a free one"
        raise ValueError(f"cannot listen on {host}:{config.port} ({error}); {what_to_do}") from None
    await _set_health(health_servicer, health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()
    on_listening(f"{host}:{port}")
    try:
        loading, stopping = _in_daemon_thread(build), asyncio.ensure_future(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            servicer.judge = loading.result()
            await _set_health(health_servicer, health_pb2.HealthCheckResponse.SERVING)
            on_serving(servicer.judge)
            await stopping
        stopping.cancel()
        return loading.done()
    finally:
        await health_servicer.enter_graceful_shutdown()
        await server.stop(STOP_GRACE_S)
        if servicer.judge is not None:
            await asyncio.to_thread(servicer.judge.close)


def _in_daemon_thread(build: Callable[[], Judge]) -> "asyncio.Future[Judge]":
    """The result of `build`. Unlike an executor's, this thread delays neither the loop's nor the process's exit."""
    future: Future[Judge] = Future()

    def run() -> None:
        try:
            future.set_result(build())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return asyncio.wrap_future(future)


async def _set_health(
    servicer: health.aio.HealthServicer, status: "health_pb2.HealthCheckResponse.ServingStatus"
) -> None:
    for name in ("", SERVICE_NAME):
        await servicer.set(name, status)
