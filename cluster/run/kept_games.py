"""The games that an evaluation has played, kept in the run directory: a repeated or interrupted one goes on after them,
and a replay finds them.

Invariant: a file holds games of one checkpoint, one environment and one set of seeds, and whole players only. One that
cannot be read or is of anything else counts as empty; one that cannot be written costs nothing but its use later.
"""

import json
import logging
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import xxhash

from cluster.run.directory import write_atomically
from learner.checkpoint_format import DECODING_ERRORS, decode_tree, encode_tree, parse_json
from learner.game_log import PlayedGames

LOG = logging.getLogger(__name__)
MAX_FILES = 16
"""Files that a run keeps; the oldest are removed."""
TREE, SUBJECT = "tree", "subject"


class KeptGames:
    """One file, with the games of each player that has finished."""

    def __init__(self, file: Path, subject: str) -> None:
        """`subject`: identifies what is evaluated (`subject_hash`)."""
        self.file, self._subject = file, subject
        self.players: dict[str, PlayedGames] = self._read()
        """By the player's name; change it through `keep`."""

    def keep(self, name: str, played: PlayedGames) -> None:
        """Add a player's games and write the file."""
        self.players[name] = played
        tree, tensors = encode_tree({key: value.state_dict() for key, value in self.players.items()}, "players")
        content = safetensors.torch.save(tensors, {SUBJECT: self._subject, TREE: json.dumps(tree, allow_nan=False)})
        try:
            self.file.parent.mkdir(exist_ok=True)
            write_atomically(self.file, content)
            files = sorted(self.file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
            for old in files[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as error:
            LOG.warning("the games of this evaluation are not kept: %s cannot be written (%s)", self.file, error)

    def _read(self) -> dict[str, PlayedGames]:
        try:
            with safetensors.safe_open(self.file, framework="pt") as opened:
                said: dict[str, Any] = opened.metadata() or {}
                if said.get(SUBJECT) != self._subject:
                    return {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            players = decode_tree(parse_json(said[TREE].encode()), tensors)
            return {name: PlayedGames.from_state_dict(state) for name, state in players.items()}
        except FileNotFoundError:
            return {}
        except (OSError, safetensors.SafetensorError, *DECODING_ERRORS) as error:
            LOG.warning("%s is damaged (%s): its games are played anew", self.file, error)
            return {}


def subject_hash(settings: Any, weights: dict[str, Any]) -> str:
    """Of what is evaluated: the settings (JSON values) of environment and policy, and the policy's weights."""
    hashed = xxhash.xxh3_128(json.dumps(settings, sort_keys=True).encode())
    for name, array in sorted(weights.items()):
        hashed.update(name.encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()
