"""Access to a service: what it refuses at the start, credentials, and limits on requests."""

import dataclasses
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.judge import check_addresses
from cluster.wiring import check_parts
from configs.annotation_schema import AccessConfig
from configs.checks import ConfigError
from configs.loading import load_config
from llm_server.channel import call_metadata, check_address
from llm_server.client import AnnotationClient, ServiceUnavailable
from llm_server.credentials import (
    SERVER_NAME,
    ClientCredentials,
    CredentialFiles,
    is_loopback,
    load_client_credentials,
    make_credentials,
    read_token,
)
from llm_server.offline import annotate
from llm_server.offline.judgement_file import read_judgements
from llm_server.service.auth import check_access
from llm_server.service.service import SERVICE_NAME
from tests.llm_server.gated_engine import GatedEngine
from tests.llm_server.running_service import WAIT_S, RunningService
from tests.refusals import assert_refused


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_credentials(tmp_path_factory.mktemp("credentials") / "ours", ["node-7", "10.1.2.3"])


@pytest.fixture
def access(files):
    def access(*names, **more):
        paths = {
            "tls_cert": files.server_cert,
            "tls_key": files.server_key,
            "tls_client_ca": files.ca,
            "token_file": files.token,
        }
        return AccessConfig(**{name: str(paths[name]) for name in names} | more)

    return access


NO_ADDRESS = r"^annotator\.address: got .*, wanted host:port without a scheme, spaces or further colons"
TLS = ("tls_cert", "tls_key")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "node-7"])
@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ((), ["--tls-cert and --tls-key", "--token-file or --tls-client-ca"]),
        (("token_file",), ["--tls-cert and --tls-key"]),
        (TLS, ["--token-file or --tls-client-ca"]),
    ],
)
def test_an_address_that_others_reach_needs_tls_and_a_secret_and_is_told_what_is_missing(access, host, given, missing):
    with pytest.raises(ValueError, match=f"--host: got {host}, which other machines reach") as error:
        check_access(host, access(*given))
    assert all(name in str(error.value) for name in missing)
    assert ("--token-file or" in str(error.value)) == ("--token-file or --tls-client-ca" in missing)
    check_access(host, access(*given, insecure_listen_anywhere=True))
    check_access(host, access(*TLS, "token_file"))
    check_access(host, access(*TLS, "tls_client_ca"))


def test_this_machine_alone_needs_nothing(access):
    for host in ("127.0.0.1", "127.0.0.5", "localhost", "::1", "[::1]"):
        assert is_loopback(host)
        check_access(host, access())
    assert not is_loopback("localhost.example.org")


def test_credentials_that_cannot_be_are_refused_at_the_start(access, files, tmp_path):
    others = make_credentials(tmp_path / "others")
    (tmp_path / "short").write_text("secret")
    (tmp_path / "garbage").write_text("-----BEGIN CERTIFICATE-----\n")
    for config, complaint in (
        (access("tls_cert"), "wanted both"),
        (access("tls_client_ca"), "--tls-client-ca: got it without --tls-cert"),
        (dataclasses.replace(access(*TLS), **{"tls_key": str(others.server_key)}), "do not belong together"),
        (dataclasses.replace(access(*TLS), **{"tls_cert": str(tmp_path / "garbage")}), "are invalid"),
        (dataclasses.replace(access(*TLS), **{"tls_cert": str(tmp_path / "none")}), "--tls-cert: .* cannot be read"),
        (
            dataclasses.replace(access(*TLS), **{"tls_key": str(files.server_cert)}),
            "holds no '-----BEGIN PRIVATE KEY-----'",
        ),
        (
            dataclasses.replace(access(), **{"token_file": str(tmp_path / "short")}),
            "--token-file: got .* with 6 characters, wanted one line of at least 16",
        ),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            check_access("127.0.0.1", config)
        assert "secret" not in str(error.value)


def test_made_credentials_are_for_their_owner_alone_and_are_never_overwritten(files):
    assert stat.S_IMODE(files.ca.parent.stat().st_mode) == 0o700
    assert {path.name for path in files.ca.parent.iterdir()} == {
        "ca.pem",
        "server.pem",
        "server.key",
        "client.pem",
        "client.key",
        "token",
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.ca.parent.iterdir()} == {0o600}
    before = {path: path.read_bytes() for path in files.ca.parent.iterdir()}
    with pytest.raises(ValueError, match="exists already and is not overwritten"):
        make_credentials(files.ca.parent)
    assert {path: path.read_bytes() for path in files.ca.parent.iterdir()} == before


def test_made_credentials_can_be_handed_to_another_machine(files, rubric, tmp_path):
    there = CredentialFiles(shutil.copytree(files.ca.parent, tmp_path / "there"))
    access = AccessConfig(
        tls_cert=str(there.server_cert),
        tls_key=str(there.server_key),
        tls_client_ca=str(there.ca),
        token_file=str(there.token),
    )
    service = RunningService(rubric, access=access)
    client = AnnotationClient(service.address, rubric, WAIT_S, files.client())
    try:
        assert client.annotate([b"good"])[0].probability == 0.9
    finally:
        client.close()
        service.close()
    assert files.client().server_name == SERVER_NAME


def test_secrets_are_in_no_repr_and_no_complaint(files, tmp_path):
    credentials = files.client()
    assert credentials.token not in repr(credentials)
    assert "PRIVATE" not in repr(credentials)
    (tmp_path / "token").write_text("two words of a secret")
    with pytest.raises(ValueError, match=r"annotator\.token_file") as error:
        load_client_credentials(token_file=str(tmp_path / "token"))
    assert "words" not in str(error.value)
    assert read_token(str(files.token), "token") == credentials.token


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"tls_cert": "client_cert"}, "got one of the two, wanted both"),
        ({"tls_cert": "client_cert", "tls_key": "client_key"}, "without annotator.tls_ca"),
        ({"tls_ca": "client_key"}, "annotator.tls_ca: got .* holds no '-----BEGIN CERTIFICATE-----'"),
    ],
)
def test_a_client_is_told_what_does_not_fit(files, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_client_credentials(**{key: str(getattr(files, name)) for key, name in given.items()})


def test_a_token_goes_nowhere_unencrypted(files):
    token = load_client_credentials(token_file=str(files.token))
    for address in ("127.0.0.1:7431", "LOCALHOST:7431", "localhost.:7431", "[::ffff:127.0.0.1]:7431"):
        check_address(address, token)
    with pytest.raises(ValueError, match="would travel unencrypted"):
        check_address("10.1.2.3:7431", token)
    check_address("10.1.2.3:7431", ClientCredentials(files.ca.read_bytes(), token=token.token))
    check_address("10.1.2.3:7431", load_client_credentials("system", token_file=str(files.token)))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:7431",
        "localhost:1",
        "node-7.example.org:65535",
        "[::1]:7431",
        "[fe80::1%eth0]:7431",
        "b\u00fccher.example:7431",
        "gpu_7:7431",
    ],
)
def test_an_address_is_a_host_and_a_port(address):
    check_address(address, ClientCredentials())


@pytest.mark.parametrize(
    "address",
    [
        *(
            "somewhere",
            "http://127.0.0.1:7431",
            "grpc://node:7431",
            "dns:///node:7431",
            "unix:/tmp/socket",
            "node:7431/",
            "user@node:7431",
        ),
        *("127.0.0.1 :7431", "127.0.0.1: 7431", "a:1 b:2", "a:1;b:2", "a b:7431", "node\t:7431", " ", ",", " , "),
        *("::1:7431", "node::7431", "node:7431:", ":7431", "node:", "[::1]", "[]:7431", "[::1:7431", "::1]:7431"),
        *('"127.0.0.1":7431', "<host>:7431", "*:7431", "node#1:7431", "node%41:7431", "a;b:7431", "\u200bnode:7431"),
        *("node:0", "node:65536", "node:seven", "node:\u00b2", "node:-1", "node:7431.0", "good:7431,http://bad:7431"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(address):
    with pytest.raises(ValueError, match=NO_ADDRESS) as error:
        check_addresses(address)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("mode", ["local", "connect"])
def test_a_run_with_what_is_no_address_does_not_start(mode, tmp_path):
    config = load_config(
        preset="debug", overrides=[f"cluster.mode={mode}", f"run_dir={tmp_path}", "annotator.address=http://node:7431"]
    )
    with pytest.raises(ConfigError, match=NO_ADDRESS):
        check_parts(config)


def test_more_requests_than_may_be_at_once_are_turned_away_and_served_later(rubric):
    engine = GatedEngine()
    service = RunningService(rubric, engine, AccessConfig(max_requests=1))
    engine.gate.clear()
    first, second = (AnnotationClient(service.address, rubric, WAIT_S) for _ in range(2))
    try:
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(first.annotate, [b"one"])
            assert engine.entered.acquire(timeout=WAIT_S)
            with pytest.raises(
                ServiceUnavailable,
                match="RESOURCE_EXHAUSTED: 1 requests are under way, at most 1 may be: ask again later",
            ):
                second.annotate([b"two"])
            with grpc.insecure_channel(service.address) as channel:
                health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
                assert health.status == health_pb2.HealthCheckResponse.SERVING
            engine.gate.set()
            assert under_way.result(WAIT_S)
        assert second.annotate([b"two"])
    finally:
        engine.gate.set()
        first.close()
        second.close()
        service.close()


def test_more_requests_per_second_than_may_be_are_turned_away(rubric):
    service = RunningService(rubric, access=AccessConfig(max_requests_per_s=2.0))
    client = AnnotationClient(service.address, rubric, WAIT_S)
    refusals = []
    try:
        for _ in range(20):
            try:
                client.annotate([b"good"])
            except ServiceUnavailable as error:
                refusals.append(str(error))
    finally:
        client.close()
        service.close()
    assert 10 <= len(refusals) <= 18, "a burst of one second's worth is served"
    assert all("more than 2 requests per second: ask again later" in refusal for refusal in refusals)


def test_malformed_method_paths_reach_nothing_and_the_service_stays_up(rubric, files):
    service = RunningService(rubric, access=AccessConfig(token_file=str(files.token)))
    shown = load_client_credentials(token_file=str(files.token))
    known = f"/{SERVICE_NAME}/Describe"
    paths = [
        "",
        "/",
        "//",
        "x",
        "*",
        "/../../etc/passwd",
        "/%2e/..",
        "/a b/c",
        "/\u2603/x",
        f"/{'a' * 5000}/b",
        "http://host" + known,
    ]
    paths += [
        known[1:],
        known + "/",
        known + "/x",
        known + "?x=1",
        known.lower(),
        known.replace("/D", "//D"),
        known.removesuffix("Describe"),
    ]
    paths += ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/" + known]
    client = AnnotationClient(service.address, rubric, WAIT_S, shown)
    try:
        with grpc.insecure_channel(service.address) as channel:
            for metadata, wanted in (
                (None, grpc.StatusCode.UNAUTHENTICATED),
                (call_metadata(shown), grpc.StatusCode.UNIMPLEMENTED),
            ):
                for path in paths:
                    with pytest.raises(grpc.RpcError) as error:
                        channel.unary_unary(path)(b"", timeout=WAIT_S, metadata=metadata)
                    assert error.value.code() is wanted, path
            # Health needs no token: what merely begins like it must be health, or nothing.
            for path in (
                "/grpc.health.v1.Health/",
                "/grpc.health.v1.Health/.." + known,
                "/grpc.health.v1.Health" + known,
            ):
                with pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(path)(b"", timeout=WAIT_S)
                assert error.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED), path
        assert len(client.annotate([b"good"])) == 1
    finally:
        client.close()
        service.close()


def test_a_verb_asks_a_guarded_service_with_the_same_credentials(rubric, files, tmp_path, capsys):
    access = AccessConfig(tls_cert=str(files.server_cert), tls_key=str(files.server_key), token_file=str(files.token))
    service = RunningService(rubric, access=access)
    (tmp_path / "captions.jsonl").write_text('{"caption": "a good one"}\n{"caption": "a wall"}\n')
    asked = ["--address", service.address, "--out", str(tmp_path / "out.sqlite"), str(tmp_path / "captions.jsonl")]
    try:
        assert annotate.main(["--tls-ca", str(files.ca), "--token-file", str(files.token), *asked]) == 0
        assert sorted(item.judgement.probability for item in read_judgements(tmp_path / "out.sqlite").captions) == [
            0.1,
            0.9,
        ]
        capsys.readouterr()
        assert (
            annotate.main(["--tls-ca", str(files.ca), *asked[:2], "--out", str(tmp_path / "other.sqlite"), asked[-1]])
            == 2
        )
        assert_refused(2, capsys.readouterr().err, "UNAUTHENTICATED: got no token")
    finally:
        service.close()
    assert annotate.main(["--token-file", str(files.token), *asked[2:]]) == 2
    assert_refused(2, capsys.readouterr().err, "--token-file: got it without --address")


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["annotator.address=10.1.2.3:7431", "annotator.token_file={token}"], "would travel unencrypted"),
        (
            ["annotator.address=127.0.0.1:7431,here", "annotator.tls_ca={ca}"],
            "annotator.address: got 'here', wanted host:port",
        ),
        (
            ["annotator.address=127.0.0.1:7431", "annotator.tls_ca=/no/such.pem"],
            "annotator.tls_ca: /no/such.pem cannot be read",
        ),
    ],
)
def test_a_run_is_told_of_wrong_credentials_before_it_begins(files, overrides, complaint):
    given = [each.format(token=files.token, ca=files.ca) for each in overrides]
    with pytest.raises(ConfigError, match=complaint):
        check_parts(load_config(preset="debug", overrides=["cluster.mode=local", *given]))


def test_one_command_makes_credentials_and_says_how_to_use_them(tmp_path):
    command = [
        sys.executable,
        "-m",
        "llm_server.serve",
        "--make-credentials",
        str(tmp_path / "made"),
        "--host",
        "node-7",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for wanted in (
        "--host node-7",
        f"--tls-cert {tmp_path / 'made' / 'server.pem'}",
        "annotator.address=node-7:7431",
        "annotator.token_file=",
    ):
        assert wanted in result.stdout
    assert (tmp_path / "made" / "token").read_text().strip() not in result.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 2
    assert len(again.stderr.strip().splitlines()) == 1
