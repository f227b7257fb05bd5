"""Certificates and tokens that are missing, wrong or expired, and a message that is too large: one line each, and
nobody else is harmed."""

import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from configs.annotation_schema import AccessConfig
from llm_server.annotation_pb2 import AnnotateRequest
from llm_server.annotation_pb2_grpc import AnnotationStub
from llm_server.channel import open_channel
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable
from llm_server.credentials import ClientCredentials, load_client_credentials, make_credentials
from llm_server.rubrics.loading import load_rubric
from tests.faults.annotating import Annotating, captions, expected
from tests.llm_server.running_service import WAIT_S, RunningService

pytestmark = pytest.mark.faults
RUBRIC = load_rubric("nethack_progress")
TEXTS = captions(40)
SCRIPT = "kill=0.9"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_credentials(tmp_path_factory.mktemp("credentials") / "ours")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return make_credentials(tmp_path_factory.mktemp("credentials") / "others")


@pytest.fixture
def serve(files):
    started = []

    def serve(files=files, *, token=True, client_ca=False, **access):
        access |= {"token_file": str(files.token)} if token else {}
        access |= {"tls_client_ca": str(files.ca)} if client_ca else {}
        access = AccessConfig(tls_cert=str(files.server_cert), tls_key=str(files.server_key), **access)
        started.append(RunningService(RUBRIC, access=access, script=SCRIPT))
        return started[-1]

    yield serve
    for service in started:
        service.close()


def keys(files, token_of=None, client_of=None):
    """The configuration of a run that trusts the CA of `files`."""
    given = {"tls_ca": files.ca}
    given |= {"token_file": token_of.token} if token_of else {}
    given |= {"tls_cert": client_of.client_cert, "tls_key": client_of.client_key} if client_of else {}
    return [f"annotator.{name}={path}" for name, path in given.items()]


def said(address, credentials, kind):
    """The one line in which asking fails."""
    client = AnnotationClient(address, RUBRIC, WAIT_S, credentials)
    try:
        with pytest.raises(kind) as error:
            client.annotate([b"a newt"])
    finally:
        client.close()
    assert "\n" not in str(error.value)
    return str(error.value)


def annotates(address, credentials):
    client = AnnotationClient(address, RUBRIC, WAIT_S, credentials)
    try:
        return [round(judgement.probability, 1) for judgement in client.annotate([b"you kill", b"a wall"])] == [
            0.9,
            0.1,
        ]
    finally:
        client.close()


@pytest.mark.parametrize("client_ca", [False, True], ids=["token", "token and client certificate"])
def test_a_run_with_the_right_credentials_gets_its_labels_and_writes_no_secret_down(serve, files, tmp_path, client_ca):
    service = serve(client_ca=client_ca)
    run = Annotating(
        tmp_path, f"annotator.address={service.address}", *keys(files, files, files if client_ca else None)
    )
    try:
        run.report(TEXTS)
        run.wait_for_rewards(TEXTS)
        assert run.rewarded(TEXTS) == expected(TEXTS)
    finally:
        run.close()
    secrets = (files.token.read_bytes().strip(), files.client_key.read_bytes().splitlines()[1])
    for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert not any(secret in path.read_bytes() for secret in secrets)


def test_a_wrong_token_is_a_problem_in_one_line_and_asks_no_more(serve, files, others, tmp_path, record_recovery):
    service = serve()
    run = Annotating(tmp_path, f"annotator.address={service.address}", *keys(files, others))
    try:
        run.report(TEXTS)
        run.wait_until(lambda: run.pipeline.problem)
        assert (
            "UNAUTHENTICATED: got another token than this service's, wanted the one in its --token-file"
            in run.pipeline.problem
        )
        assert (run.figure("annotator_up"), run.figure("annotations_total")) == (0, 0)
        assert others.token.read_text().strip() not in run.pipeline.problem
    finally:
        run.close()
    assert annotates(service.address, load_client_credentials(str(files.ca), token_file=str(files.token)))
    record_recovery(
        "wrong token", "refused in one line, shown as the run's problem; training goes on without labels", None
    )


def test_no_token_opens_nothing_but_health(serve, files):
    service = serve()
    without = ClientCredentials(ca=files.ca.read_bytes())
    assert "UNAUTHENTICATED: got no token, wanted" in said(service.address, without, AnnotationRefused)
    with open_channel(service.address, without) as channel:
        stub = AnnotationStub(channel)
        for call, request in ((stub.Describe, None), (stub.Embed, None), (stub.AnnotatePairs, None)):
            with pytest.raises(grpc.RpcError) as error:
                call(request or AnnotateRequest(), timeout=WAIT_S)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as error:
            stub.Annotate(AnnotateRequest(items=[b"x" * (60 << 20)]), timeout=WAIT_S)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.RpcError) as error:
            next(iter(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=WAIT_S)))
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_certificates_that_do_not_fit_are_said_to_be_so_and_to_whom(serve, files, others, record_recovery):
    service, strict = serve(token=False), serve(token=False, client_ca=True)
    ca, other_ca = files.ca.read_bytes(), others.ca.read_bytes()
    pair, other_pair = [[each.client_cert.read_bytes(), each.client_key.read_bytes()] for each in (files, others)]
    for address, credentials, complaint in (
        (
            service.address,
            ClientCredentials(),
            "hangs up on a connection without TLS: if it was started with --tls-cert, set annotator.tls_ca",
        ),
        (
            service.address,
            ClientCredentials(other_ca),
            "not signed by the CA in annotator.tls_ca: give the ca.pem that belongs",
        ),
        (
            service.address,
            ClientCredentials(ca, server_name="elsewhere"),
            "does not name the host in annotator.address",
        ),
        (
            strict.address,
            ClientCredentials(ca),
            "without a client certificate: if it was started with --tls-client-ca, set annotator.tls_cert",
        ),
        (strict.address, ClientCredentials(ca, *other_pair), "hangs up on this client certificate"),
    ):
        assert complaint in said(address, credentials, ServiceUnavailable)
    assert annotates(service.address, ClientCredentials(ca))
    assert annotates(strict.address, ClientCredentials(ca, *pair))
    record_recovery(
        "TLS: no certificate, one of another CA, one of another host",
        "one line says which and what to do; nobody else is harmed",
        None,
    )


def test_tls_to_a_service_that_speaks_none_is_said_to_be_so(files):
    service = RunningService(RUBRIC, script=SCRIPT)
    try:
        complaint = said(service.address, ClientCredentials(files.ca.read_bytes()), ServiceUnavailable)
        assert "speaks no TLS: start it with --tls-cert and --tls-key, or leave annotator.tls_ca empty" in complaint
        assert annotates(service.address, ClientCredentials())
    finally:
        service.close()


def test_a_certificate_that_expires_is_said_and_a_new_one_at_the_same_address_ends_it(
    serve, files, tmp_path, record_recovery
):
    short = make_credentials(tmp_path / "short", days=2.0 / 86_400)
    service = RunningService(
        RUBRIC, access=AccessConfig(tls_cert=str(short.server_cert), tls_key=str(short.server_key)), script=SCRIPT
    )
    try:
        time.sleep(2.5)
        complaint = said(service.address, ClientCredentials(short.ca.read_bytes()), ServiceUnavailable)
        assert "the service's certificate has expired, wanted one that is valid: make new ones" in complaint
    finally:
        service.close()
    with pytest.raises(ValueError, match=r"expired on .* UTC: make a new one"):
        RunningService(
            RUBRIC, access=AccessConfig(tls_cert=str(short.server_cert), tls_key=str(short.server_key)), script=SCRIPT
        )
    record_recovery("TLS: an expired certificate", "one line says so; a service does not start with one", None)


def test_a_message_that_is_too_large_is_one_clear_line_and_others_are_served(serve, files, record_recovery):
    service = serve()
    credentials = load_client_credentials(str(files.ca), token_file=str(files.token))
    client = AnnotationClient(service.address, RUBRIC, WAIT_S, credentials)
    other = AnnotationClient(service.address, RUBRIC, WAIT_S, credentials)
    try:
        assert other.annotate([b"you kill"])
        with pytest.raises(
            AnnotationRefused,
            match=r"got a message of \d+ bytes, wanted at most 67108864: send fewer or shorter items",
        ):
            client.annotate([b"x" * (65 << 20)])
        with pytest.raises(AnnotationRefused, match="item 0 has 5000 bytes, at most 4096 are taken: shorten it"):
            client.annotate([b"x" * 5000])
        with open_channel(service.address, credentials) as channel:  # a client that minds no limit of its own
            stub = channel.unary_unary("/delphi.annotation.v1.Annotation/Annotate")
            with pytest.raises(grpc.RpcError) as error:
                stub(b"x" * (63 << 20), timeout=WAIT_S, metadata=[("authorization", f"Bearer {credentials.token}")])
            assert error.value.code() is not grpc.StatusCode.OK
        assert client.annotate([b"you kill"])
        assert other.annotate([b"you kill"])
    finally:
        client.close()
        other.close()
    record_recovery(
        "an oversized message",
        "one line says how large it was and may be; the sender's next and everybody else's are served",
        None,
    )
