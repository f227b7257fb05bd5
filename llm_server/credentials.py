"""Credentials of the annotation service: certificates and a token, generated, and loaded for a client.

Invariant: secrets are read from files that the configuration names; they are never part of it, of a message or of a
`repr`; files written here are readable by their owner alone; a token is sent encrypted or stays on this machine.
"""

import ipaddress
import os
import re
import secrets
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

SERVER_NAME = "delphi-annotation"
"""A name in every server certificate made here: clients that trust only its CA accept the server on any host by it."""
SYSTEM = "system"
"""In place of a CA file: gRPC's built-in roots, for a certificate of a public authority."""
HOST_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
CLOCK_SKEW = timedelta(minutes=10)
MIN_TOKEN_CHARS = 16
FIRST_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?(?:-----END CERTIFICATE-----|\Z)", re.DOTALL)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Some editors write it at the beginning of a file; gRPC finds no certificate behind it."""


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is reached by this machine alone."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What a client presents and trusts; the default is for a service on this machine that requires nothing."""

    ca: bytes | None = None
    """PEM of the trusted authorities; None without TLS, empty for gRPC's own roots."""
    cert: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    """The client's own certificate and key, where the service requires them (mTLS)."""
    token: str = field(default="", repr=False)
    server_name: str = ""
    """The name that the server's certificate must have, in place of the address's host."""


NO_CREDENTIALS = ClientCredentials()


class CredentialFiles:
    """The files that `make_credentials` writes into a directory."""

    def __init__(self, directory: Path) -> None:
        self.ca = directory / "ca.pem"
        """What clients trust."""
        self.server_cert, self.server_key = directory / "server.pem", directory / "server.key"
        """`--tls-cert` and `--tls-key` of the service."""
        self.client_cert, self.client_key = directory / "client.pem", directory / "client.key"
        """`annotator.tls_cert` and `annotator.tls_key`, for mTLS."""
        self.token = directory / "token"
        """`--token-file` and `annotator.token_file`."""

    def client(self) -> ClientCredentials:
        """For clients of services that use these files, on any host."""
        read = load_client_credentials(str(self.ca), str(self.client_cert), str(self.client_key), str(self.token))
        return replace(read, server_name=SERVER_NAME)


def make_credentials(directory: Path, hosts: Sequence[str] = (), days: float = 365.0) -> CredentialFiles:
    """Write a new CA's certificate, a server's, a client's and a token into `directory`, readable by their owner alone.

    The server's certificate is valid for `hosts` (names or addresses), this machine's name, loopback and SERVER_NAME.
    The CA's key is discarded, so no further certificate can be issued. Raises ValueError where the directory holds any
    of the files or cannot be written.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.now(UTC)
    authority, server, client = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca_name = f"Delphi annotation {secrets.token_hex(4)}"

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (name, ca_name))
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - CLOCK_SKEW).not_valid_after(now + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=name == ca_name, path_length=None), critical=True)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def private(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def general_name(host: str) -> x509.GeneralName:
        try:
            return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
        except ValueError:
            return x509.DNSName(host)

    for host in hosts:
        if not _is_name(host):
            raise ValueError(
                f"credentials: got the host {host!r}, wanted a name such as gpu-7.example.org or an address, without"
                " scheme, port or zone; a name in another script as xn--..."
            )
    own = [name for name in (socket.gethostname(),) if _is_name(name)]  # clients also know it as SERVER_NAME
    all_hosts = dict.fromkeys([SERVER_NAME, "localhost", "127.0.0.1", "::1", *own, *hosts])
    names = x509.SubjectAlternativeName([general_name(host) for host in all_hosts])
    serving = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
    asking = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    contents = {
        "ca.pem": certificate(ca_name, authority),
        "server.pem": certificate(SERVER_NAME, server, names, serving),
        "server.key": private(server),
        "client.pem": certificate("delphi-client", client, asking),
        "client.key": private(client),
        "token": secrets.token_urlsafe(32).encode() + b"\n",
    }
    _write(directory, contents)
    return CredentialFiles(directory)


def _is_name(host: str) -> bool:
    """Whether a certificate can be for `host`: an address, or a name, which may begin with `*.`."""
    try:
        return not getattr(ipaddress.ip_address(host.strip("[]")), "scope_id", None)
    except ValueError:
        return bool(HOST_NAME.fullmatch(host.removeprefix("*."))) and len(host) < 254


def _write(directory: Path, contents: Mapping[str, bytes]) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content in contents.items():
            descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
    except FileExistsError as error:
        raise ValueError(
            f"credentials: {error.filename} exists already and is not overwritten: give another directory, or delete it"
        ) from None
    except OSError as error:
        raise ValueError(
            f"credentials: {directory} cannot be written ({error.strerror}): give a directory that can"
        ) from None


def load_client_credentials(
    tls_ca: str = "", tls_cert: str = "", tls_key: str = "", token_file: str = ""
) -> ClientCredentials:
    """Credentials from files, each optional. ValueError, naming the key, where a file or the combination is invalid."""
    if bool(tls_cert) != bool(tls_key):
        raise ValueError(
            "annotator.tls_cert and annotator.tls_key: got one of the two, wanted both (a client's certificate and its"
            " key) or neither"
        )
    if tls_cert and not tls_ca:
        raise ValueError(
            "annotator.tls_cert: got a certificate without annotator.tls_ca, wanted the CA file that verifies the"
            f" service's own certificate ('{SYSTEM}' for public ones)"
        )
    if tls_cert:
        check_key_pair(tls_cert, tls_key, "annotator.tls_cert", "annotator.tls_key")
    return ClientCredentials(
        None if not tls_ca else b"" if tls_ca == SYSTEM else read_authorities(tls_ca, "annotator.tls_ca"),
        read_pem(tls_cert, "annotator.tls_cert", "CERTIFICATE") if tls_cert else None,
        read_pem(tls_key, "annotator.tls_key", "PRIVATE KEY") if tls_key else None,
        read_token(token_file, "annotator.token_file") if token_file else "",
    )


def read_pem(path: str, key: str, kind: str) -> bytes:
    """The file's content; ValueError, naming `key`, unless it can be read and holds that kind of PEM block."""
    content = _read(path, key)
    if f"{kind}-----".encode() not in content:
        raise ValueError(f"{key}: got {path}, which holds no '-----BEGIN {kind}-----', wanted a PEM file with one")
    return content


def read_authorities(path: str, key: str) -> bytes:
    """The PEM file's content; ValueError, naming `key`, unless its first certificate can be read."""
    content = read_pem(path, key, "CERTIFICATE").removeprefix(BYTE_ORDER_MARK)
    first = FIRST_CERTIFICATE.search(content)
    try:
        if first:  # none where all are of a rarer kind, such as BEGIN TRUSTED CERTIFICATE
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=first.group().decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"{key}: {path} begins with a certificate that cannot be read ({error}): copy it again"
        ) from None
    return content


def check_key_pair(cert: str, private_key: str, cert_name: str, key_name: str) -> None:
    """ValueError, naming both settings, unless the PEM files are a certificate and its own key, not encrypted."""
    read_pem(cert, cert_name, "CERTIFICATE")
    read_pem(private_key, key_name, "PRIVATE KEY")
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(Path(cert).expanduser(), Path(private_key).expanduser(), password="")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"{cert_name}: {cert} and {key_name} {private_key} do not belong together or are invalid ({error}): give a"
            " certificate and its own key, not encrypted"
        ) from None


def read_token(path: str, key: str) -> str:
    """The one-line token in a file; ValueError, which names `key` and never quotes the content, unless it is one."""
    token = _read(path, key).decode("ascii", "replace").strip()
    if len(token) < MIN_TOKEN_CHARS or not token.isprintable() or " " in token or not token.isascii():
        raise ValueError(
            f"{key}: got {path} with {len(token)} characters, wanted one line of at least {MIN_TOKEN_CHARS} printable"
            " ASCII characters without spaces: `openssl rand -hex 32` makes one"
        )
    return token


def _read(path: str, key: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{key}: {path} cannot be read ({reason}): give the path of a file that can") from None
