"""Certificates, keys and hosts that cannot be: one line at the start, in place of a handshake that fails for ever."""

import http.server
import socket
import threading
from concurrent import futures

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from configs.annotation_schema import AccessConfig
from llm_server.channel import open_channel
from llm_server.client import AnnotationClient, AnnotationError
from llm_server.credentials import NO_CREDENTIALS, load_client_credentials, make_credentials
from llm_server.service.auth import check_access
from tests.llm_server.running_service import WAIT_S, RunningService

GARBAGE = b"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_credentials(tmp_path_factory.mktemp("credentials") / "made")


def test_a_ca_that_cannot_be_read_is_refused_before_it_is_used(files, tmp_path):
    path = tmp_path / "ca.pem"
    for content in (GARBAGE, files.ca.read_bytes()[:-60], GARBAGE + files.ca.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^annotator\.tls_ca: .* begins with a certificate that cannot be read"):
            load_client_credentials(str(path))
        access = AccessConfig(tls_cert=str(files.server_cert), tls_key=str(files.server_key), tls_client_ca=str(path))
        with pytest.raises(ValueError, match=r"^--tls-client-ca: .* begins with a certificate that cannot be read"):
            check_access("127.0.0.1", access)


def test_a_ca_file_from_another_editor_and_one_with_text_are_read(files, rubric, tmp_path):
    access = AccessConfig(tls_cert=str(files.server_cert), tls_key=str(files.server_key))
    service = RunningService(rubric, access=access)
    pem = files.ca.read_bytes()
    try:
        for content in (b"\xef\xbb\xbf" + pem, pem.replace(b"\n", b"\r\n"), b"Data: x\n" + pem + b"\n" + GARBAGE):
            (tmp_path / "ca.pem").write_bytes(content)
            credentials = load_client_credentials(str(tmp_path / "ca.pem"))
            client = AnnotationClient(service.address, rubric, WAIT_S, credentials)
            assert client.describe().rubric_id == rubric.id
            client.close()
    finally:
        service.close()


def test_a_clients_certificate_with_another_or_an_encrypted_key_is_refused(files, tmp_path):
    key = serialization.load_pem_private_key(files.client_key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
        )
    )
    for wrong in (files.server_key, encrypted):
        with pytest.raises(ValueError, match=r"annotator\.tls_key .* do not belong together .*, not encrypted$"):
            load_client_credentials(str(files.ca), str(files.client_cert), str(wrong))
    assert load_client_credentials(str(files.ca), str(files.client_cert), str(files.client_key)).cert


def test_a_path_that_cannot_be_names_its_setting():
    with pytest.raises(ValueError, match=r"^annotator\.token_file: .* cannot be read"):
        load_client_credentials(token_file="a\0b")


@pytest.mark.parametrize("host", ["http://gpu-7", "gpu-7:7431", "gpu 7", "b\u00fccher", "fe80::1%eth0", "a,b", ""])
def test_a_certificate_is_not_made_for_what_is_no_host(host, tmp_path):
    with pytest.raises(ValueError, match=r"^credentials: got the host .*, wanted a name such as"):
        make_credentials(tmp_path / "made", [host])
    assert not (tmp_path / "made").exists()


def test_certificates_are_made_for_names_and_addresses_on_a_machine_of_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "m\u00fcller-pc")
    made = make_credentials(tmp_path / "made", ["gpu_7", "*.example.org", "[::2]", "10.0.0.7"])
    certificate = x509.load_pem_x509_certificate(made.server_cert.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"gpu_7", "*.example.org"} < set(names.get_values_for_type(x509.DNSName))
    assert {"::2", "10.0.0.7"} < {str(address) for address in names.get_values_for_type(x509.IPAddress)}


def test_another_server_at_the_address_is_said(rubric):
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    other = grpc.server(futures.ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        for address, said in (
            (f"127.0.0.1:{web.server_port}", "but an HTTP server: .* service.endpoint"),
            (f"127.0.0.1:{port}", "but another gRPC service: correct annotator.address"),
        ):
            client = AnnotationClient(address, rubric, WAIT_S)
            with pytest.raises(AnnotationError, match=f"no annotation service listens there, {said}"):
                client.describe()
            client.close()
    finally:
        web.shutdown()
        web.server_close()
        other.stop(None)


@pytest.mark.parametrize("host", ["unix", "ipv4", "dns"])
def test_a_host_may_have_the_name_of_a_scheme_of_grpc(host, monkeypatch):
    targets = []
    monkeypatch.setattr(grpc, "insecure_channel", lambda target, options: targets.append(target))
    open_channel(f"{host}:7431", NO_CREDENTIALS)
    assert targets == [f"dns:///{host}:7431"]
