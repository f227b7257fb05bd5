"""`Endpoint`: JSON over HTTP to a server that speaks OpenAI's protocol, and what its error answers mean.

Invariant: a request ends within its deadline or soon after, with an answer, `EndpointRefused` (a retry is useless) or
`EndpointUnavailable` (it was retried until the deadline). A response that holds an error, or lacks a required choice,
is an error whatever its HTTP status. The key appears in no message and is sent unencrypted only to this machine.

The transport is httpx2, not OpenAI's own client: that reads the body of an error without a deadline, counts its retries
instead of ending them at one, and takes an error under HTTP 200 for an answer, so all of this module would still be
needed around it.
"""

import contextlib
import email.utils
import json
import os
import re
import threading
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
import tenacity

from llm_server.credentials import is_loopback

UNKNOWN = 502
"""The status assumed for an error under HTTP 200 that does not name one; it is retried."""
NO_CREDIT, WRONG_KEY = 402, 401
_NO_CREDIT = re.compile(
    r"insufficient[ _](?:quota|balance|credit|funds)|billing_(?:hard_limit|not_active)|(?:credit|account) balance"
    r"|(?:no|out of) credit"
)
_WRONG_KEY = re.compile(
    r"invalid_api_key|authenticat(?:e|ion)|\bunauthori[sz]ed\b"
    r"|(?:incorrect|invalid|wrong|missing|expired|revoked|no|valid) (?:\w+ )?api[ _-]?key"
    r"|api[ _-]?key(?: \w+)? (?:not valid|invalid|incorrect|missing|expired|revoked|not found|required)"
)
_NOT_FOUND = re.compile(
    r"unexpected endpoint|\b(?:model|endpoint|route|url|path)\b.*(?:not found|not exist|unknown)"
    r"|(?:no such|unknown|invalid) (?:model|endpoint|route|url|path)\b"
)
"""Words for a wrong path or model under 200; LM Studio answers every unknown path so."""
_NO_LOGPROBS = re.compile(r"log[ _-]?probs?")
"""Words under 500 that a retry does not change: llama-cpp-python refuses log-probabilities so."""
_STATUS_OF_KIND = (
    (429, r"rate.?limit|resource.?exhausted|too.?many.?requests"),
    (503, r"overloaded|unavailable|timeout|internal|server.?error"),
    (404, r"not.?found"),
    (403, r"permission|forbidden"),
    (400, r"invalid|bad.?request|unsupported|not.?supported"),
)
"""The first pattern that occurs in an error's type or code gives its status."""
NOT_OFFERED = 501
RETRIED = frozenset({408, 409, 425, 429, 498, *range(500, 600)} - {NOT_OFFERED, 505})
"""Groq's 498 is a lack of capacity; proxies have failures of their own, such as Cloudflare's 520 to 530."""
MAX_MESSAGE_CHARS = 300
HOST_LABEL = re.compile(r"[^\x00-,/:-@\[-^`{-\x7f]{1,63}")
"""One part of a host name between dots: letters of any script, digits, hyphens, underscores."""


def error_of(content: Any, *, wants_choice: bool) -> Any:
    """The error in a response, a text or an object; None where there is none."""
    if isinstance(content, list) and content:  # Google wraps errors in a list
        content = content[0]
    if not isinstance(content, dict):
        return None
    error = content.get("error")
    if any(error.values()) if isinstance(error, dict) else error:  # some send one of empty fields with every answer
        return error
    if content.get("object") == "error":
        return content
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return content if wants_choice else None
    return choice.get("error") or ("finish_reason is error" if choice.get("finish_reason") == "error" else None)


def words_of(error: Any) -> str:
    """An error's message on one line, with that of the provider behind the endpoint where it is passed on."""
    if not isinstance(error, dict):
        return " ".join(str(error).split())
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    said = error.get("message") or error.get("detail") or error
    return " ".join(f"{said} ({raw})".split() if raw else str(said).split())


def error_status(error: Any, status: int) -> int:
    """The actual status of an error under HTTP `status`: 402 where no credit is left and 401 where the key is wrong,
    whatever the server calls it; under 200 the number in the error, or the status that its words mean, else UNKNOWN."""
    fields = error if isinstance(error, dict) else {}
    kinds = [str(fields.get(key) or "") for key in ("code", "type", "status", "status_code")]
    kind = " ".join(kinds).lower()
    text = f"{kind} {words_of(error)}".lower()
    if 200 <= status < 300:
        numbers = [int(found) for found in kinds if re.fullmatch(r"[45]\d\d", found)]
        numbers += [number for number, pattern in _STATUS_OF_KIND if re.search(pattern, kind)]
        status = next(iter(numbers), 404 if _NOT_FOUND.search(text) else UNKNOWN)
    if status == 500 and _NO_LOGPROBS.search(text):
        return NOT_OFFERED
    if status in (400, 403, 429, UNKNOWN) and _NO_CREDIT.search(text):
        return NO_CREDIT
    return WRONG_KEY if status in (400, 403, UNKNOWN) and _WRONG_KEY.search(text) else status


class EndpointRefused(RuntimeError):
    """The server refuses the request: a wrong key, model or parameter."""

    def __init__(self, message: str, status: int, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said
        """The status by `error_status`, and the server's full message."""


class EndpointUnavailable(RuntimeError):
    """No usable answer came within the deadline."""

    def __init__(self, message: str, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s, self.status = retry_after_s, status
        """How long the server asked to wait, and the status by `error_status`; None without."""


class Endpoint:
    """One base URL with one key; thread-safe."""

    def __init__(self, url: str, key: str, *, attempt_s: float, patience_s: float, connections: int = 1) -> None:
        """`attempt_s` is the deadline of one attempt, which is repeated until `patience_s` is over, never if that is 0.
        ValueError where a network would see the key, or the environment names an unusable proxy or certificates."""
        is_local = is_loopback(urlsplit(url).hostname or "")
        if key and urlsplit(url).scheme == "http" and not is_local:
            raise ValueError(
                f"endpoint '{url}' is reached over http, which shows the key to the network: use https, or a tunnel to"
                " a port of this machine; service.endpoint_key_env= (empty) sends no key"
            )
        self.url = url.rstrip("/")
        self._attempt_s, self._patience_s = attempt_s, patience_s
        self._key = key
        self._closed = threading.Event()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            # Proxies are for other machines.
            self._client = httpx2.Client(headers=headers, limits=limits, trust_env=not is_local)
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            raise ValueError(f"endpoint '{url}' cannot be reached: {_wrong_surroundings(error)}") from None

    def post(self, path: str, body: dict[str, Any], *, wants_choice: bool = False) -> dict[str, Any]:
        """The JSON object that the server returns; with `wants_choice`, one without a choice is a temporary error."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(EndpointUnavailable),
            stop=tenacity.stop_before_delay(self._patience_s) | tenacity.stop_when_event_set(self._closed),
            wait=_wait,
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        return retrying(self._once, "POST", path, body, wants_choice=wants_choice)

    def get(self, path: str) -> Any:
        """The JSON object, or list, at `path`, without a retry."""
        return self._once("GET", path, None, wants_choice=False)

    def close(self) -> None:
        """End running requests and pauses between attempts."""
        self._closed.set()
        self._client.close()

    def _once(self, method: str, path: str, body: dict[str, Any] | None, *, wants_choice: bool) -> Any:
        url = f"{self.url}/{path}"
        deadline = time.monotonic() + self._attempt_s
        try:
            # The timeout is per socket operation: a server that sends single bytes never exceeds it.
            with self._client.stream(method, url, json=body, timeout=self._attempt_s) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > deadline:
                        raise TimeoutError
        except (httpx2.TimeoutException, TimeoutError):
            raise EndpointUnavailable(f"{url} did not answer within {self._attempt_s:.3g} s") from None
        # httpx2 raises RuntimeError once the client is closed.
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, RuntimeError) as error:
            problem = self._without_key(f"{url} cannot be reached ({type(error).__name__}: {error})")
            raise EndpointUnavailable(problem) from None
        return self._content(url, response, received, wants_choice=wants_choice)

    def _content(self, url: str, response: httpx2.Response, received: bytearray, *, wants_choice: bool) -> Any:
        """The server's answer; raises where it is an error, under whatever status."""
        if response.has_redirect_location:
            problem = self._without_key(_redirected(url, response.headers["Location"]))
            raise EndpointRefused(f"{url} {problem}", response.status_code)
        content, text = None, received.decode(errors="replace").strip()
        with contextlib.suppress(ValueError, RecursionError):
            content = json.loads(received)
        is_ok = response.is_success
        error = error_of(content, wants_choice=wants_choice or not is_ok)
        if is_ok and error is None and isinstance(content, dict if wants_choice else dict | list):
            return content
        if is_ok and error is None and text:
            raise EndpointRefused(f"{url} answered with no JSON object; is it the base URL of an API?", 200)
        error = error or (text if content is None else content)
        status, said = error_status(error, response.status_code), self._without_key(words_of(error))
        shown = status if status == response.status_code else f"{response.status_code}, an error {status}"
        problem = f"{url} answered {shown}: {said[:MAX_MESSAGE_CHARS] or 'nothing'}"
        if status in RETRIED:
            raise EndpointUnavailable(problem, _retry_after_s(response), status)
        raise EndpointRefused(problem, status, said)

    def _without_key(self, message: str) -> str:
        for form in {self._key, repr(self._key)[1:-1]} if self._key else ():
            message = message.replace(form, "***")
        return message


def check_url(url: str) -> None:
    """ValueError unless `url` is the base URL of an API and contains no key."""
    example = "give a base URL such as http://127.0.0.1:8000/v1 in service.endpoint"
    shown = re.sub(r"//[^/]*@", "//***@", url).partition("?")[0]
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port != 0
    except ValueError:
        raise ValueError(f"endpoint '{shown}' is no URL: {example}") from None
    if "api-version" in parts.query:
        azure = "give Azure's URL without a version, https://NAME.openai.azure.com/openai/v1"
        raise ValueError(f"endpoint '{shown}' holds a query: {azure}, and the deployment's name as service.model")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "the endpoint's URL holds a user name, a key or a query: put the key into the variable that"
            " service.endpoint_key_env names"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"endpoint {shown!r} holds a space or a control character: {example}")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
        raise ValueError(f"endpoint '{shown}' is no URL of an API: {example}")
    labels = [] if "[" in parts.netloc else parts.hostname.removesuffix(".").split(".")  # none for an IPv6 address
    are_labels = all(HOST_LABEL.fullmatch(label) for label in labels)
    if parts.netloc.endswith(":") or parts.path.startswith("//") or not are_labels:
        raise ValueError(f"endpoint '{shown}' is no URL of an API, its host is '{parts.netloc}': {example}")
    if found := re.search(r"/(?:chat/)?completions/?$", parts.path):
        raise ValueError(f"endpoint '{shown}' is the URL of one kind of request: give the part before {found.group()}")


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=20.0)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, EndpointUnavailable) else None
    return _backoff(state) if asked_s is None else asked_s


def _retry_after_s(response: httpx2.Response) -> float | None:
    """The seconds in the header, or the seconds until its date; None for anything else."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _redirected(url: str, location: str) -> str:
    """The message about a redirection, which is not followed because it would receive the key."""
    parts = urlsplit(urljoin(url, location))
    leads_to = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    base = re.sub(r"/((chat/)?completions|models)/?$", "", leads_to)
    return f"redirects to {leads_to}: if that is intended, set service.endpoint={base}"


def _wrong_surroundings(error: Exception) -> str:
    """Which environment variable prevents the HTTP client (not its value, which may be a password) and what to do."""
    if isinstance(error, OSError):
        return f"SSL_CERT_FILE or SSL_CERT_DIR names certificates that cannot be read ({error}): correct or unset it"
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    names = " or ".join(sorted(proxies))
    if isinstance(error, ImportError):
        return (
            f"the proxy in {names} speaks SOCKS, for which a package is missing: run `pip install socksio`, or name the"
            " endpoint's host in NO_PROXY"
        )
    return f"{names} names no proxy that can be used, wanted a URL such as http://host:3128: correct or unset it"
