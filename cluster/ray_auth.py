"""The token that guards a Ray cluster started by `cluster.mode=local`.

Invariant: set before Ray is first imported, because Ray reads it then; the home directory is left alone: a token that
`ray.init` writes there would be asked for by every cluster started on the machine afterwards.
"""

import os
import secrets
import sys
from pathlib import Path


def use_private_token(directory: Path) -> Path | None:
    """Guard this process's cluster by a token of its own, kept in `directory` for the user; its file.

    None where authentication is set already (by the user's environment, or by an earlier run in this process).
    """
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return None
    token = secrets.token_hex(32)
    path = directory / "ray_token"
    path.touch(mode=0o600)
    path.write_text(token)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    return path
