"""What an endpoint's answer says went wrong: under which status, and in which words.

Invariant: an answer that holds an error, or no choice where one was asked for, is never taken for one that does, whatever its HTTP
status.
"""

import re
from typing import Any

UNKNOWN = 502
"""Of an error under status 200 that does not say what it is: asked again."""
NO_CREDIT, WRONG_KEY = 402, 401
_NO_CREDIT = re.compile(
    r"insufficient[ _](?:quota|balance|credit|funds)|billing_(?:hard_limit|not_active)|(?:credit|account) balance|(?:no|out of) credit"
)
_WRONG_KEY = re.compile(
    r"invalid_api_key|authenticat(?:e|ion)|(?:incorrect|invalid|wrong|missing|expired|revoked|no|valid) (?:\w+ )?api[ _-]?key"
    r"|api[ _-]?key(?: \w+)? (?:not valid|invalid|incorrect|missing|expired|revoked|not found|required)"
)
_STATUS_OF_WORDS = (
    (429, r"rate.?limit|resource.?exhausted|too.?many.?requests"),
    (503, r"overloaded|unavailable|timeout|internal|server.?error"),
    (404, r"not.?found"),
    (403, r"permission|forbidden"),
    (400, r"invalid|bad.?request|unsupported|not.?supported"),
)
"""By the first that occurs in an error's type or code."""


def error_of(content: Any, *, wants_choice: bool) -> Any:
    """The error in an answer: text or an object; None where there is none."""
    if isinstance(content, list) and content:  # Google wraps errors so
        content = content[0]
    if not isinstance(content, dict):
        return None
    if error := content.get("error"):
        return error
    if content.get("object") == "error":
        return content
    choices = content.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return content if wants_choice else None
    return choice.get("error") or ("finish_reason is error" if choice.get("finish_reason") == "error" else None)


def words_of(error: Any) -> str:
    """What an error says, on one line; with what a provider behind the endpoint said, where that is passed on."""
    if not isinstance(error, dict):
        return " ".join(str(error).split())
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    said = error.get("message") or error.get("detail") or error
    return " ".join(f"{said} ({raw})".split() if raw else str(said).split())


def status_of(error: Any, status: int) -> int:
    """The status that an error under HTTP `status` stands for: 402 where no credit is left and 401 where the key is wrong, whatever the
    server calls it; under 200 the error's own number, or what its words say, else UNKNOWN."""
    kinds = [str(error.get(key) or "") for key in ("code", "type", "status", "status_code")] if isinstance(error, dict) else []
    kind = " ".join(kinds).lower()
    text = f"{kind} {words_of(error)}".lower()
    if status == 200:
        numbers = [int(found) for found in kinds if re.fullmatch(r"[45]\d\d", found)]
        words = next((number for number, pattern in _STATUS_OF_WORDS if re.search(pattern, kind)), UNKNOWN)
        status = numbers[0] if numbers else words
    if status in (400, 403, 429, UNKNOWN) and _NO_CREDIT.search(text):
        return NO_CREDIT
    return WRONG_KEY if status in (400, 403, UNKNOWN) and _WRONG_KEY.search(text) else status
