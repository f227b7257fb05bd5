"""Calls that no well-behaved client sends: each is refused in words, and the next one is answered."""

import socket
import struct

import grpc
import pytest

from llm_server import annotation_pb2 as pb
from llm_server.client import AnnotationClient
from llm_server.service.service import SERVICE_NAME
from tests.llm_server.running_service import WAIT_S, RunningService


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def send_call(address, path):
    """Send one call with `path`, any bytes, as HTTP/2 frames; what comes back until the call ends."""
    host, port = address.rsplit(":", 1)
    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": path,
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    with socket.create_connection((host, int(port)), WAIT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        connection.sendall(frame(1, 4, 1, b"".join(literal(*header) for header in headers.items())))
        connection.sendall(frame(0, 1, 1, bytes(5)))
        connection.settimeout(WAIT_S)
        got = b""
        while b"grpc-status" not in got and b"Server shutdown" not in got:
            received = connection.recv(65_536)
            if not received:
                break
            got += received
    return got


@pytest.mark.parametrize("path", [b"/\xff\xfe/x", f"/{SERVICE_NAME}/Describe".encode() + b"\xff"])
def test_after_a_method_that_is_no_utf8_the_service_answers(rubric, path):
    """grpc 1.84.2 and 1.85 end their server at such a call; no other client is answered again."""
    service = RunningService(rubric)
    try:
        send_call(service.address, path)
        client = AnnotationClient(service.address, rubric, WAIT_S)
        assert len(client.annotate([b"good"])) == 1
        client.close()
    finally:
        service.close()


def test_far_too_many_items_and_a_long_name_are_refused_in_words(rubric):
    service = RunningService(rubric)
    ids = {"rubric_id": rubric.id, "rubric_version": rubric.version}
    many = {
        "Annotate": pb.AnnotateRequest(**ids, items=[b""] * 100_000),
        "AnnotatePairs": pb.AnnotatePairsRequest(**ids, pairs=[pb.Pair()] * 100_000),
        "Embed": pb.EmbedRequest(items=[b""] * 100_000),
    }
    long_name = pb.AnnotateRequest(rubric_id="x" * 100_000, rubric_version="y" * 100_000)
    try:
        with grpc.insecure_channel(service.address) as channel:
            for method, request in (*many.items(), ("Annotate", long_name)):
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(f"/{SERVICE_NAME}/{method}")(request.SerializeToString(), timeout=WAIT_S)
                if request is long_name:
                    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
                    assert error.value.details().startswith("rubric 'xxx")
                else:
                    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                    assert "the request has 100000 items, at most 1024 are taken" in error.value.details()
    finally:
        service.close()
