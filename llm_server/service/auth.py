"""Access to an annotation service: TLS, client certificates, a bearer token, limits on requests.

Invariant: a service that other machines reach serves no client without credentials, unless a flag allows it; a refused
call gets the reason and costs no forward pass. Only health checks are open: they reveal no more than serving or not.
"""

import hmac
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc

from configs.annotation_schema import AccessConfig
from llm_server.credentials import check_key_pair, is_loopback, read_authorities, read_pem, read_token
from llm_server.token_bucket import TokenBucket

HEALTH = "/grpc.health.v1.Health/"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def check_access(host: str, access: AccessConfig) -> None:
    """ValueError, with what to do, where the credentials are invalid or `host` requires more of them."""
    if bool(access.tls_cert) != bool(access.tls_key):
        both = "both (the service's certificate and its key)"
        raise ValueError(f"--tls-cert and --tls-key: got one of the two, wanted {both} or neither")
    if access.tls_client_ca and not access.tls_cert:
        reason = "client certificates are part of TLS"
        raise ValueError(f"--tls-client-ca: got it without --tls-cert and --tls-key, wanted all three: {reason}")
    if access.token_file:
        read_token(access.token_file, "--token-file")
    if access.tls_cert:
        _check_certificate(access)
    if is_loopback(host) or access.insecure_listen_anywhere:
        return
    missing = []
    if not access.tls_cert:
        missing.append("--tls-cert and --tls-key (without them a token could be read on the way)")
    if not (access.token_file or access.tls_client_ca):
        missing.append(
            "--token-file or --tls-client-ca (without them any machine that reaches the port may use the model)"
        )
    if missing:
        raise ValueError(
            f"--host: got {host}, which other machines reach, wanted {' and '.join(missing)}; `delphi serve"
            f" --make-credentials DIR --host {host}` makes them. On a trusted network, add --insecure-listen-anywhere"
        )


def _check_certificate(access: AccessConfig) -> None:
    from cryptography import x509

    check_key_pair(access.tls_cert, access.tls_key, "--tls-cert", "--tls-key")
    end = x509.load_pem_x509_certificates(read_pem(access.tls_cert, "--tls-cert", "CERTIFICATE"))[0].not_valid_after_utc
    if end < datetime.now(UTC):
        raise ValueError(
            f"--tls-cert: {access.tls_cert} expired on {end:%Y-%m-%d %H:%M} UTC: make a new one, `delphi serve"
            " --make-credentials DIR`"
        )
    if access.tls_client_ca:
        read_authorities(access.tls_client_ca, "--tls-client-ca")


def add_port(server: grpc.aio.Server, address: str, access: AccessConfig) -> int:
    """Let the server listen on host:port with the TLS settings of `access`; the port. RuntimeError where it cannot."""
    if not access.tls_cert:
        return server.add_insecure_port(address)
    pair = read_pem(access.tls_key, "--tls-key", "PRIVATE KEY"), read_pem(access.tls_cert, "--tls-cert", "CERTIFICATE")
    roots = read_authorities(access.tls_client_ca, "--tls-client-ca") if access.tls_client_ca else None
    return server.add_secure_port(
        address, grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
    )


def requirements(access: AccessConfig) -> str:
    """What a client needs, for the line that gives the service's address."""
    needs = {"TLS": access.tls_cert, "client certificate": access.tls_client_ca, "token": access.token_file}
    return f"clients need {', '.join(name for name, is_needed in needs.items() if is_needed) or 'no credentials'}"


class Gate(grpc.aio.ServerInterceptor):
    """Refuses calls without the token, before their message is read, and calls beyond the limits."""

    def __init__(self, access: AccessConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = f"Bearer {read_token(access.token_file, '--token-file')}".encode() if access.token_file else None
        self._max_requests, self._rate = access.max_requests, access.max_requests_per_s
        self._under_way, self._rate_limit = 0, TokenBucket(self._rate, clock)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: Any,
    ) -> grpc.RpcMethodHandler:
        """The handler of the call, wrapped so that it is counted, or one that refuses."""
        if handler_call_details.method.startswith(HEALTH):
            return await continuation(handler_call_details)
        if not self._has_token(handler_call_details.invocation_metadata):
            # A stream's messages are read on demand: an unauthenticated client cannot fill the service's memory.
            return grpc.stream_stream_rpc_method_handler(_refuse_unauthenticated)
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            partial(self._counted, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _has_token(self, metadata: Any) -> bool:
        if self._token is None:
            return True
        shown = [value for key, value in metadata or () if key == "authorization"]
        shown = [value.encode() if isinstance(value, str) else value for value in shown]
        return any(hmac.compare_digest(value, self._token) for value in shown)

    async def _counted(
        self, behaviour: Callable[..., Awaitable[Any]], request: Any, context: grpc.aio.ServicerContext
    ) -> Any:
        if self._under_way >= self._max_requests:
            limit = f"at most {self._max_requests} may be: ask again later"
            await context.abort(EXHAUSTED, f"{self._under_way} requests are under way, {limit}")
        if not self._rate_limit.take(1):
            await context.abort(EXHAUSTED, f"more than {self._rate:g} requests per second: ask again later")
        self._under_way += 1
        try:
            return await behaviour(request, context)
        finally:
            self._under_way -= 1


async def _refuse_unauthenticated(_: Any, context: grpc.aio.ServicerContext) -> None:
    shown = any(key == "authorization" for key, _ in context.invocation_metadata() or ())
    got = "another token than this service's" if shown else "no token"
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        f"got {got}, wanted the one in its --token-file: give a file with it as annotator.token_file",
    )
