"""Learners in processes of their own that make updates together with one in the test's process, which reaches them by
pipes."""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch

from configs.reward_schema import RewardConfig
from configs.schema import LearnerConfig
from learner.data_parallel import Exchange, Part, meet, open_meeting
from learner.update import Learner
from tests.learner.toy_rollouts import RECALL_SPEC, SMALL_POLICY

HOST = "127.0.0.1"
TIMEOUT_S = 60.0


def make_learner(config: LearnerConfig) -> Learner:
    """A learner of `RECALL_SPEC` with extrinsic and intrinsic reward."""
    return Learner(RECALL_SPEC, SMALL_POLICY, config, RewardConfig(), run_epoch=0, seed=1)


def _serve(pipe: Connection, rank: int) -> None:
    """What a process does: the method named in each message, of its newest learner or of its exchange."""
    torch.set_num_threads(1)
    exchange: Exchange | None = None
    while True:
        name, *arguments = pipe.recv()
        if name == "meet":
            meeting, config, state = arguments
            learner = make_learner(config)
            learner.continue_from(state)
            exchange = meet(meeting, rank, learner.device, HOST)
            learner.share_work(exchange)
            pipe.send(None)
        elif name == "leave":
            exchange.close()
            pipe.send(None)
        else:
            pipe.send(getattr(learner, name)(*arguments))


class OtherLearners:
    """The `Peers` of the first learner."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(number)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=_serve, args=(theirs, rank), daemon=True)
            for rank, (_, theirs) in enumerate(pairs, 1)
        ]
        for process in self.processes:
            process.start()

    @contextmanager
    def joined_by(self, first: Learner, config: LearnerConfig) -> Iterator[None]:
        """The learners continue from the state of `first` and share its work, for the duration of the block."""
        meeting, store = open_meeting(HOST, len(self.pipes) + 1, backend="gloo", device_type="cpu", timeout_s=TIMEOUT_S)
        self._send("meet", meeting, config, first.state_dict())
        exchange = meet(meeting, 0, first.device, HOST, store)
        self.finish()
        first.share_work(exchange, self)
        try:
            yield
            self._send("leave")
        finally:
            exchange.close()
        self.finish()

    def hand_out(self, parts: Sequence[Part], progress: float) -> None:
        for pipe, part in zip(self.pipes, parts[1:], strict=True):
            pipe.send(("take_part", part, progress))

    def finish(self) -> None:
        self.answers()

    def states(self) -> list[dict[str, Any]]:
        """Each learner's state."""
        self._send("state_dict")
        return self.answers()

    def answers(self) -> list[Any]:
        return [pipe.recv() for pipe in self.pipes]

    def end(self) -> None:
        """Kill the processes."""
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()

    def _send(self, *message: Any) -> None:
        for pipe in self.pipes:
            pipe.send(message)
