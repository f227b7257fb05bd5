"""What a run's judge needs in order to play the run's environment: its prompt, the states in words, the model.

Invariant: mistakes are found before a game is played or a model is loaded; games are kept under everything that decides
what the judge plays.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import xxhash

from actors.captions import normalize
from actors.channels import channel_text
from actors.environments.describer import NAMES
from actors.environments.factory import make_environment
from actors.environments.vector import VectorEnvironment
from configs.checks import ConfigError
from configs.features import without_features
from configs.schema import EnvConfig, RunConfig
from learner.evaluation import JudgePlayer
from llm_server.playing.action_judge import ActionJudge
from llm_server.playing.play_rubric import built_in_play_rubrics, load_play_rubric

JUDGE = "judge"
"""The player's name."""
NOT_THE_MODEL = ("host", "port", "nice", "torch_threads", "batch_size", "store", "hang_timeout_s", "encoder")
"""Settings of the service that change no answer."""


class JudgeSeat:
    """The judge of one run as a player. Raises ConfigError where it cannot play."""

    def __init__(self, config: RunConfig, *, rubric: str = "", describer: str = "", greedy: bool = False) -> None:
        """`rubric`: a play rubric's name or file; empty for that of the describer. `describer`: in place of
        `env.describer`. `greedy`: play the likeliest action instead of drawing from the answers."""
        describer = describer or config.env.describer
        _check(config, rubric, describer)
        self._greedy, self._service = greedy, config.service
        self.env: EnvConfig = dataclasses.replace(without_features(config.env), describer=describer)
        try:
            self._rubric = load_play_rubric(rubric or describer)
            with contextlib.closing(
                make_environment(self.env, policy=config.policy, num_envs=1, run_seed=0, worker_index=0)
            ) as env:
                self.action_names = env.spec.action_names
            if not self.action_names:
                what = f"{config.env.id} does not name its actions"
                raise ConfigError(f"env.action_names: {what}, and the judge answers with their names; train with them")
            prompt = self._rubric.rubric(self.action_names)
            self._judge = ActionJudge(config.service, prompt, self.action_names)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        model = {key: value for key, value in dataclasses.asdict(config.service).items() if key not in NOT_THE_MODEL}
        decides = [model, dataclasses.asdict(self._rubric), self.action_names, describer, greedy]
        self._key = f"{JUDGE} {xxhash.xxh3_64_hexdigest(json.dumps(decides, sort_keys=True).encode())}"

    def key_of(self, player: str) -> str:
        """A player's name among the kept games; the judge's says which judge it is."""
        return self._key if player == JUDGE else player

    def player(self, env: VectorEnvironment, seed: int) -> JudgePlayer:
        """The player of these environments, which are of the configuration `env`."""
        return JudgePlayer(
            self._probabilities,
            lambda: env.states or [],
            len(self.action_names),
            env.num_envs,
            seed,
            greedy=self._greedy,
        )

    def summary(self, num_steps: int, seconds: float) -> str:
        """What the games so far took, in a line."""
        asked, unanswered = self._judge.num_passes, self._judge.num_unanswered
        rate = f"{num_steps:,} steps, {num_steps / max(seconds, 1e-9):,.0f} a second, loading included"
        unread = f"; {unanswered:,} of them were not answered and played at random" if unanswered else ""
        return f"judge: {rate}; {asked:,} forward passes so far, one for each distinct text{unread}"

    def facts(self) -> dict[str, object]:
        """Who played, as JSON values."""
        service, rubric = self._service, self._rubric
        return {
            "engine": service.engine,
            "model": "" if service.engine == "scripted" else service.model,
            "play_rubric": rubric.id,
            "play_rubric_version": rubric.version,
            "describer": self.env.describer,
            "greedy": self._greedy,
        }

    def close(self) -> None:
        """Release the model."""
        self._judge.close()

    def _probabilities(self, states: Sequence[bytes], captions: Sequence[bytes]) -> np.ndarray:
        both = zip(states, captions, strict=True)
        texts = [self._rubric.asked_text(channel_text(state), normalize(caption)) for state, caption in both]
        return self._judge.probabilities(texts)


def _check(config: RunConfig, rubric: str, describer: str) -> None:
    if not describer:
        what = "the judge reads states in words, and the run has no env.describer"
        raise ConfigError(f"--player judge: {what}; give --describer {', '.join(NAMES)} or module:function")
    if not rubric and describer not in built_in_play_rubrics():
        what = f"there is no play rubric for the describer {describer!r}"
        raise ConfigError(f"--player judge: {what}; give one with --rubric FILE (docs/judges.md)")
    if config.annotator.address:
        what = f"the run's judge is a service at {config.annotator.address}, which does not play"
        raise ConfigError(f"--player judge: {what}; play a run whose judge is loaded here (service.engine, .model)")
