"""Connections to an annotation service: TLS and token from the credentials, and one line of advice where one fails.

Invariant: a token is sent encrypted, or to this machine only; anything else is refused before a byte is sent.
"""

import re

import grpc

from llm_server.credentials import ClientCredentials, is_loopback
from llm_server.wire import MAX_MESSAGE_BYTES

CHANNEL_ARGUMENTS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new client does not wait out an older one's back-off
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own two minutes would outlast any outage
]
# A host name may be in any script; of ASCII it has letters, digits, `-`, `_` and `.`, and no invisible space.
ADDRESS = re.compile(
    r"(?P<host>(?:[A-Za-z0-9_.-]|[^\x00-\x7f\s\u200b\u2060\ufeff])+|\[[0-9A-Fa-f:.]+(?:%[\w.]+)?\])"
    r":(?P<port>[0-9]{1,5})"
)
CERTIFICATE_ADVICE = {
    "certificate has expired": "the service's certificate has expired, wanted one that is valid: make new ones"
    " (`delphi serve --make-credentials DIR`) and start the service with them",
    "certificate is not yet valid": "the service's certificate is not valid yet: set the clocks of both machines",
    "CERTIFICATE_VERIFY_FAILED": "the service's certificate is not signed by the CA in annotator.tls_ca: give the"
    " ca.pem that belongs to the service's certificate",
    "Hostname Verification": "the service's certificate does not name the host in annotator.address: use a name that it"
    " has, or make one for this host (`delphi serve --make-credentials DIR --host HOST`)",
    "WRONG_VERSION_NUMBER": "the service speaks no TLS: start it with --tls-cert and --tls-key, or leave"
    " annotator.tls_ca empty",
}
"""By the text of gRPC's handshake error; the first match applies."""


def check_address(address: str, credentials: ClientCredentials) -> None:
    """ValueError unless `address` is host:port and these credentials may be sent to it."""
    found = ADDRESS.fullmatch(address)
    if not found or not 0 < int(found["port"]) < 65_536:
        raise ValueError(
            f"annotator.address: got {address!r}, wanted host:port without a scheme, spaces or further colons, for"
            " example 127.0.0.1:7431 or [::1]:7431; several are separated by commas"
        )
    if credentials.token and credentials.ca is None and not is_loopback(found["host"]):
        raise ValueError(
            f"annotator.token_file: got a token for {address} without annotator.tls_ca: it would travel unencrypted;"
            " give the CA file of the service's certificate"
        )


def open_channel(address: str, credentials: ClientCredentials) -> grpc.Channel:
    """A channel to the service at `address`; it connects when first used. Raises as `check_address`."""
    check_address(address, credentials)
    arguments = list(CHANNEL_ARGUMENTS)
    if re.match(r"[\w-]+:", address, re.ASCII):
        address = f"dns:///{address}"  # else a host called unix, ipv4 or dns would be read as a scheme
    if credentials.ca is None:
        return grpc.insecure_channel(address, options=arguments)
    if credentials.server_name:
        arguments.append(("grpc.ssl_target_name_override", credentials.server_name))
    tls = grpc.ssl_channel_credentials(credentials.ca or None, credentials.key, credentials.cert)
    return grpc.secure_channel(address, tls, options=arguments)


def call_metadata(credentials: ClientCredentials) -> list[tuple[str, str]]:
    """The metadata of every call."""
    return [("authorization", f"Bearer {credentials.token}")] if credentials.token else []


def advice(details: str, credentials: ClientCredentials) -> str:
    """What to do about a connection that failed with `details`; empty where the details suffice."""
    for symptom, text in CERTIFICATE_ADVICE.items():
        if symptom in details:
            return text
    if "Failed parsing HTTP/2" in details or "http1.x server" in details:
        return (
            "no annotation service listens there, but an HTTP server: correct annotator.address; for an endpoint with"
            " OpenAI's protocol leave it empty and set service.engine=openai and service.endpoint"
        )
    if details.startswith("Method not found"):
        return "no annotation service listens there, but another gRPC service: correct annotator.address"
    if "failed to connect" in details and "Socket closed" in details:
        if credentials.ca is None:
            without_tls = "the service hangs up on a connection without TLS"
            return f"{without_tls}: if it was started with --tls-cert, set annotator.tls_ca"
        if credentials.cert is None:
            return (
                "the service hangs up on a connection without a client certificate: if it was started with"
                " --tls-client-ca, set annotator.tls_cert and annotator.tls_key"
            )
        return (
            "the service hangs up on this client certificate: annotator.tls_cert must be valid and signed by its"
            " --tls-client-ca"
        )
    return ""
