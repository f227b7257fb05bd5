"""The training loop: consumes rollouts, updates the policy, publishes snapshots, writes metrics and checkpoints.

    consumes             waits for                     is unblocked by
    rollouts             `Workers.take` (1 s at most)  a worker that finishes `collect`
    reward tables, goals nothing, reads the latest     -
    the first table      `wait_for_first_table_s`      a table that knows a caption, `stop`
    stop requests        nothing, read once a turn     `stop` from any thread

Invariant: `env_steps` counts exactly the steps that updates consumed; training never waits for the LLM once it has
begun; a disk error costs no progress, because only the last checkpoint must be written; a loop whose successor has
started writes nothing.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from actors.goals.sheet import GoalSheet
from actors.rollout import Rollout
from cluster.interfaces import Annotation, Workers
from cluster.report.reward_files import RewardReportWriter
from cluster.run.directory import RunDirectory, write_atomically
from cluster.run.metric_writer import MetricWriter
from cluster.run.run_metrics import RunMetrics, with_annotation
from cluster.run.stage_timing import StageClock
from cluster.supervision import CAUSES, GiveUp, UpdateWatch
from cluster.wiring import goal_sheet
from configs.goal_schema import GOAL_TERM
from configs.schema import RunConfig
from configs.terms import resolved_terms, terms_with_tables
from learner.checkpoint import load_latest, save_checkpoint
from learner.checkpoint_format import CheckpointError
from learner.episodes import EPISODES_FILE, encode_episodes
from learner.stream import RolloutStream
from learner.update import Learner, StepResult
from reward_models.published import PublishedReward

LOG = logging.getLogger(__name__)
SLOW_WAIT_S = 10.0
TABLE_POLL_S = 0.1
IDLE_TIME = 0.05
"""Share of max_time_s by which the learning rate's schedule by time is delayed: a judge may load in it, and a run that
ends by its steps follows them alone."""
CHECKPOINTED = ("learner", "annotation", "workers", "stream", "metrics")
"""The attributes whose states a checkpoint holds, besides `loop`."""


class TrainingLoop:
    """One epoch of a run: restores a checkpoint, trains to `total_env_steps`, `max_time_s` or `stop`, sums up."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, run_epoch: int, workers: Workers, annotation: Annotation
    ) -> None:
        self.config, self.run_directory = config, run
        self.workers, self.annotation = workers, annotation
        terms = resolved_terms(config)
        self._is_trusted = any(term.trust != "none" for term in terms.values())
        self.learner = Learner(
            workers.spec,
            config.policy,
            config.learner,
            config.reward,
            run_epoch=run_epoch,
            seed=config.seed,
            terms=terms,
            goals=config.goals,
            archive=config.archive,
        )
        self.stream = RolloutStream(
            config.learner, on_stale=lambda rollout: self.learner.pass_over(rollout, annotation.latest_reward())
        )
        self.metrics = RunMetrics(config.logging.episode_window)
        self.env_steps = self._steps_without_table = 0
        self._paying = terms_with_tables(config)
        self._first_table_limit_s = (
            config.annotator.wait_for_first_table_s if self._paying and config.cluster.mode != "inline" else 0.0
        )
        self._waiting: str | None = None
        self._seconds_before = 0.0
        self._started = self._last_checkpoint_s = self._saved_s = time.monotonic()
        self._checkpoints_failed = 0
        self._storage_problem: str | None = None
        self._notice: str | None = None
        self._watch = UpdateWatch()
        self._reward_report = RewardReportWriter(run.path)
        self._interval = (self._started, 0, 0.0)  # time, env_steps, annotations_total at its start
        self._stages = StageClock(config.actors.num_workers)
        self._stop = threading.Event()
        self._latest: dict[str, Any] = {"env_steps": 0}
        self._told_at: int | None = None  # env_steps of the last metric line
        self._sheet: GoalSheet | None = None  # the newest that workers were told
        self._told_goals: tuple[object, object] = None, None  # goals and table that it was made of
        self._restore()
        self._writer = MetricWriter(
            run.path, tensorboard=config.logging.tensorboard, run_name=run.path.name, env_steps=self.env_steps
        )

    def run(self, on_line: Callable[[Mapping[str, Any]], None] = lambda line: None) -> dict[str, Any]:
        """Train; the summary as JSON values. `on_line` gets the metrics after every update."""
        self.workers.publish(self.learner.snapshot())
        if self._sheet is not None:
            self.workers.publish_goals(self._sheet)
        if self.config.goals.sources:
            self._publish_goals(self.annotation.latest_reward())
        try:
            while self._goal() is None and not self._stop.is_set():
                rollouts = self._next_batch()
                if rollouts is not None:
                    reward = self.annotation.latest_reward()
                    self._publish_goals(reward)
                    result = self.learner.step(rollouts, reward, self._share_done())
                    self._note_update(rollouts, reward, result)
                    on_line(self.progress())
            reached = self._goal()
            if self._interval[1] != self.env_steps or not self._latest.get("learner_updates"):
                self._write_line()
            if reached and self._latest.get("updates_skipped_nonfinite") and not self._latest.get("learner_updates"):
                raise GiveUp(
                    f"nothing was learnt: every update was skipped, because loss or gradient were not finite; {CAUSES}"
                )
            self.stream.drop_waiting()  # their episodes continued, and the statistics include them
            self._checkpoint(is_last=True)
            return self._summary(reached)
        except Exception:
            if self._told_at != self.env_steps:
                with contextlib.suppress(Exception):  # the failure itself is reported
                    self._write_line()
            raise
        finally:
            self._writer.close()

    def stop(self) -> None:
        """Ask for a checkpoint and the end after the update in progress; any thread."""
        self._stop.set()

    def progress(self) -> dict[str, Any]:
        """The newest metric line with the present step counter, and as text: annotation's `problem`, the disk's
        `storage_problem`, a `notice`, and the workers' `problems` and `waiting`."""
        messages = {
            "problem": self.annotation.problem,
            "storage_problem": self._storage_problem or self._writer.problem,
            "notice": self._notice,
            "problems": [*self.workers.problems, *self._watch.problems],
            "waiting": self._waiting or self.workers.waiting,
        }
        return {**self._latest, "env_steps": self.env_steps, "time_s": self._seconds(), **messages}

    def _seconds(self) -> float:
        """Seconds of training so far, earlier starts included up to the checkpoints that were resumed from."""
        return self._seconds_before + time.monotonic() - self._started

    def _goal(self) -> str | None:
        """The setting whose limit has been reached and ends the run; None before."""
        if self.env_steps >= self.config.total_env_steps:
            return "total_env_steps"
        return "max_time_s" if 0 < self.config.max_time_s <= self._seconds() else None

    def _share_done(self) -> float:
        """The completed share of the run in [0, 1], by steps or by time, whichever is ahead."""
        limit_s = self.config.max_time_s
        of_time = (self._seconds() / limit_s - IDLE_TIME) / (1 - IDLE_TIME) if limit_s else 0.0
        return min(max(self.env_steps / self.config.total_env_steps, of_time), 1.0)

    def _next_batch(self) -> list[Rollout] | None:
        waiting_since = warned = time.monotonic()
        while not self._stop.is_set() and self._goal() is None:
            with self._stages.learner("wait"):
                rollout = self.workers.take(timeout_s=1.0)
            now = time.monotonic()
            if rollout is not None:
                self._stages.add_rollout(rollout.timings)
                batch = self.stream.put(rollout, self.learner.policy_version)
                if batch is not None:
                    return batch if self._first_table_limit_s == 0 or self._first_table_came(batch) else None
            elif now - warned > SLOW_WAIT_S:
                LOG.warning("waiting for rollouts for %.0f s", now - waiting_since)
                warned = now
        return None

    def _first_table_came(self, batch: list[Rollout]) -> bool:
        """Hold the first batch until a reward table knows a caption, or the time limit; False where the run is to end,
        which drops the batch.

        Nothing is published meanwhile, so collected rollouts stay fresh; workers collect no more than may be in flight.
        """
        limit_s, began = self._first_table_limit_s, time.monotonic()
        self._first_table_limit_s = 0.0
        if not self._knows_nothing(self.annotation.latest_reward()):
            return True
        limit = f"annotator.wait_for_first_table_s = {limit_s:g} s"
        self._waiting = f"the first reward table ({limit} at most)"
        LOG.info("waiting for %s", self._waiting)
        with self._stages.learner("wait"):
            while self._knows_nothing(reward := self.annotation.latest_reward()) and time.monotonic() - began < limit_s:
                if self._stop.wait(TABLE_POLL_S) or self._goal() is not None:
                    break
        self._waiting = None
        known = sum(len(table) - 1 for table in reward.tables.values())
        LOG.info("waited %.1f s; the reward tables know %d items", time.monotonic() - began, known)
        if self._stop.is_set() or self._goal() is not None:
            for rollout in batch:
                self.learner.pass_over(rollout, reward)
            return False
        if self._knows_nothing(reward):
            self._notice = f"no reward table came within {limit}: training begins without one"
        return True

    def _knows_nothing(self, reward: PublishedReward) -> bool:
        return reward.knows_nothing(self._paying)

    def _note_update(self, rollouts: list[Rollout], reward: PublishedReward, result: StepResult) -> None:
        """Publish the new policy, count the update that was made with `reward`, and write what is due."""
        self._stages.add_learner(result.timings)
        with self._stages.learner("publish"):
            self.workers.publish(self.learner.snapshot())
        self.metrics.add_update(result.metrics, result.lags, result.terms)
        self._watch.note(result)
        for rollout, intrinsic in zip(rollouts, result.intrinsic, strict=True):
            self.metrics.add_rollout(rollout, intrinsic)
        before = self.env_steps
        self.env_steps += sum(rollout.num_steps for rollout in rollouts)
        if self._knows_nothing(reward):
            self._steps_without_table += self.env_steps - before
        if _crossed(before, self.env_steps, self.config.logging.interval_env_steps):
            self._write_line()
        if self._watch.failure:
            raise GiveUp(self._watch.failure)
        checkpoint = self.config.checkpoint
        is_due = 0 < checkpoint.interval_s <= time.monotonic() - self._last_checkpoint_s
        is_due = is_due and self.config.cluster.mode != "inline"
        if is_due or _crossed(before, self.env_steps, checkpoint.interval_env_steps):
            self._checkpoint()

    def _publish_goals(self, reward: PublishedReward) -> None:
        """Tell the workers of the goals in `reward`, where these are other ones than before."""
        told = reward.goals, reward.tables.get(GOAL_TERM)
        if told[0] is self._told_goals[0] and told[1] is self._told_goals[1]:
            return  # at most updates; a comparison of all goals and items would be on the learner's path
        self._told_goals, sheet = told, goal_sheet(reward)
        if sheet is not None and (self._sheet is None or not sheet.equals(self._sheet)):
            self._sheet = sheet
            self.workers.publish_goals(sheet)

    def _write_line(self) -> None:
        self.run_directory.check_epoch(self.learner.run_epoch)
        now = time.monotonic()
        since, steps, annotations = self._interval
        seconds = max(now - since, 1e-9)
        line: dict[str, Any] = {
            **with_annotation(self.metrics.take_line(), self.annotation.metrics()),
            **self.workers.metrics(),
            **self.stream.metrics(),
            **self.learner.metrics(),
            **self._stages.take_line(seconds),
            "env_steps": self.env_steps,
            "run_epoch": self.learner.run_epoch,
            "env_steps_per_s": (self.env_steps - steps) / seconds,
            "time_s": self._seconds(),
            "checkpoint_age_s": now - self._saved_s,
            "checkpoints_failed": self._checkpoints_failed,
        }
        if (total := line.get("annotations_total")) is None:
            total = annotations
        else:
            line["annotations_per_s"] = max(0.0, total - annotations) / seconds
        if not self._is_trusted:
            line["reward_trust_min"] = None
        if self.config.reward_model.name == "none":
            line["intrinsic_unknown_fraction"] = None
        if self._paying and self.env_steps:
            line["steps_without_table_fraction"] = self._steps_without_table / self.env_steps
        self._interval = (now, self.env_steps, total)
        self._latest, self._told_at = self._writer.write(line), self.env_steps
        self._writer.write_paid(self.env_steps, self.learner.paid)

    def _checkpoint(self, *, is_last: bool = False) -> None:
        """Write a checkpoint. Only the last one raises CheckpointError; otherwise the next one is due as usual."""
        self.run_directory.check_epoch(self.learner.run_epoch)
        state = {
            **{name: getattr(self, name).state_dict() for name in CHECKPOINTED},
            "loop": {
                "env_steps": self.env_steps,
                "steps_without_table": self._steps_without_table,
                "seconds": self._seconds(),
                "latest": self._latest,
            },
            **({"goals": self._sheet.state_dict()} if self._sheet is not None else {}),
        }
        try:
            save_checkpoint(self.run_directory.checkpoints, self.env_steps, state, keep=self.config.checkpoint.keep)
            self._write_episodes()
            self._saved_s, self._storage_problem = time.monotonic(), None
        except CheckpointError as error:
            self._checkpoints_failed += 1
            self._storage_problem = str(error)
            if is_last:
                raise
            LOG.error("%s; training goes on, and the next checkpoint is tried when it is due", error)
        else:
            if not is_last:  # the report of the whole run is written after its evaluation
                self._reward_report.note(self.env_steps, state)
        self._last_checkpoint_s = time.monotonic()

    def _write_episodes(self) -> None:
        """Write the episode archive, if one is kept; the checkpoint holds it as well, so a failure costs nothing."""
        if self.learner.archive is not None:
            try:
                write_atomically(
                    self.run_directory.path / EPISODES_FILE, encode_episodes(self.learner.archive.episodes)
                )
            except OSError as error:
                LOG.error("%s could not be written: %s; the next checkpoint tries again", EPISODES_FILE, error)

    def _restore(self) -> None:
        refused: list[str] = []
        state = load_latest(self.run_directory.checkpoints, parts=(*CHECKPOINTED, "loop"), refused=refused)
        if state is None:
            self.run_directory.supersede_metrics(0)
            return
        try:
            for name in CHECKPOINTED:
                getattr(self, name).load_state_dict(state[name])
            loop = state["loop"]
            self.env_steps, self._seconds_before = loop["env_steps"], loop["seconds"]
            self._latest = dict(loop["latest"])
            self._steps_without_table = loop.get("steps_without_table", 0)
            if "goals" in state:
                self._sheet = GoalSheet.from_state_dict(state["goals"])
                self.learner.load_goals(self._sheet.vectors)
        except CheckpointError:  # it says itself what does not fit
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the newest checkpoint in {self.run_directory.checkpoints} does not fit this version of Delphi or this"
                f" run ({type(error).__name__}: {error}); move its folder away to go on from the one before it"
            ) from error
        if refused:
            self._notice = f"{refused[0]}. The one before it, of {self.env_steps:,} steps, is used"
        self._interval = (self._started, self.env_steps, self._latest.get("annotations_total") or 0)
        moved = self.run_directory.supersede_metrics(self.env_steps)
        LOG.info("resumed at %d environment steps (%d metric lines superseded)", self.env_steps, moved)

    def _summary(self, reached: str | None) -> dict[str, Any]:
        annotation = self.annotation.metrics()
        return {
            **with_annotation(self._latest, {name: value for name, value in annotation.items() if value is not None}),
            "env_steps": self.env_steps,
            "time_s": self._seconds(),
            "finished": reached is not None,
            "ended_by": reached or "a stop request",
            "annotation_problem": self.annotation.problem,
            "top_rewarded": [asdict(caption) for caption in self.annotation.top_rewarded(20, 3)],
        }


def _crossed(before: int, after: int, interval: int) -> bool:
    """Whether a multiple of `interval` lies in (before, after]; an interval of 0 never does."""
    return interval > 0 and after // interval > before // interval
