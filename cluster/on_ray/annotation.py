"""The training loop's handle of the annotator actor: takes reports, gives the latest tables and metrics, and never
waits.

Invariant: a dead or slow annotator costs the loop only newer tables; a dead one is replaced, and its successor's new
book epoch makes the workers send their captions again.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import ray
import torch
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

from actors.goals.counts import GoalCounts
from actors.rollout import Acknowledgement, CaptionReport, Version
from cluster.on_ray.latest_table import LatestGoals, LatestTable
from cluster.on_ray.nodes import enter_run, start_actor
from cluster.on_ray.placement import Request, as_text
from cluster.on_ray.replicas import RayReplicas
from cluster.on_ray.slot import Slot, SlotState, answered
from cluster.supervision import last_line
from cluster.wiring import build_pipeline, take_report
from configs.reward_schema import MAIN_TERM
from configs.schema import RunConfig
from configs.terms import resolved_terms
from llm_server.client import AnnotationRefused, ServiceUnavailable
from llm_server.credentials import CredentialFiles
from llm_server.wire import STARTING
from reward_models.goals.published import PublishedGoals
from reward_models.pipeline import RewardedCaption
from reward_models.published import PublishedReward
from reward_models.reward_pipeline import states_by_term
from reward_models.table import RewardTable
from reward_models.training import saved_table

LOG = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
RESTART_PAUSE_S = 5.0
STATE_TIMEOUT_S = 4.0
START_TIMEOUT_S = 9.0
"""The same before the annotator's first answer, while it still imports and restores."""
MAX_UNANSWERED_REPORTS = 64
MAX_WITHHELD = 100_000
"""Distinct items of a channel whose counts are kept for an annotator that does not answer."""
SILENCE_S = 30.0
"""An annotator that has not answered for so long is shown as down."""
ReplicaAddresses: TypeAlias = tuple[Mapping[str, str], str | None]
"""Addresses of the annotation replicas by name, and why none will ever listen."""
PUBLISHED_GOALS = "published_goals"
"""Their place in a checkpoint, beside the annotator's state."""
REPORT_LOST = "a caption report of worker %s was lost; its texts are sent again: %s"


@ray.remote(max_restarts=0)
class AnnotatorActor:
    """Annotators, reward models and, unless an address was given, the annotation service as a child process."""

    def __init__(self, config: RunConfig, run_epoch: int, credentials: CredentialFiles | None) -> None:
        run = enter_run(config)
        torch.set_num_threads(1)  # reward_model.training_share is of one core
        self._replicas: ReplicaAddresses = {}, None
        addresses = self._addresses if config.cluster.service_replicas else None
        self._pipeline = build_pipeline(config, run, run_epoch, addresses, credentials)

    def begin(
        self, state: Mapping[str, Any] | None, goals: PublishedGoals | None, replicas: ReplicaAddresses | None
    ) -> None:
        """Start annotating, from `state` where there is one, with the `goals` of the annotator before, if any, which
        keep their numbers; `replicas` as in `update`."""
        self._replicas = replicas or self._replicas
        if state is not None:
            self._pipeline.load_state_dict(state)
        if goals is not None:
            self._pipeline.adopt_goals(goals)
        self._pipeline.start()

    def _addresses(self) -> Mapping[str, str]:
        addresses, problem = self._replicas
        if problem is not None:
            raise AnnotationRefused(problem)
        if not addresses:
            raise ServiceUnavailable(f"{STARTING}: no replica listens yet")
        return addresses

    def report(self, report: CaptionReport, env_steps: int) -> Acknowledgement:
        """Add a worker's captions to the caption book."""
        return take_report(self._pipeline, report, env_steps)

    def update(
        self, known: Mapping[str, Version | None], known_goals: Version | None, replicas: ReplicaAddresses | None
    ) -> tuple[dict[str, RewardTable], PublishedGoals | None, dict[str, Any], str | None, bool]:
        """By term the newest table, and the newest goals, where these are not `known`; metrics; the problem, if any;
        whether the judge still loads.

        `replicas`: None without any."""
        self._replicas = replicas or self._replicas
        pipeline, newest = self._pipeline, self._pipeline.latest_reward()
        newer = {name: table for name, table in newest.tables.items() if table.reward_version != known.get(name)}
        goals = newest.goals if newest.goals is not None and newest.goals.version != known_goals else None
        return newer, goals, pipeline.metrics(), pipeline.problem, pipeline.is_loading

    def top_rewarded(self, n: int, min_count: int) -> list[RewardedCaption]:
        """See `cluster.interfaces.Annotation`."""
        return list(self._pipeline.top_rewarded(n, min_count))

    def state_dict(self) -> dict[str, Any]:
        """See `cluster.interfaces.Annotation`."""
        return self._pipeline.state_dict()

    def close(self) -> None:
        """Stop the service and the threads."""
        self._pipeline.close()


class RayAnnotation:
    """Handle of the annotator actor and of the annotation replicas, if any; without a request for an annotator (no
    reward tables) empty tables and no metrics. Both are requested at once, before the workers take their resources."""

    def __init__(
        self, config: RunConfig, run_epoch: int, request: Request | None, replicas: Request | None = None
    ) -> None:
        self.problem: str | None = None
        self._is_loading = False  # the judge's model is being loaded
        self._is_silent = False  # a call of `_ask` timed out, and no other was answered since
        self._config, self._run_epoch, self._request = config, run_epoch, request
        self._state: Mapping[str, Any] | None = None
        self._tables = {name: LatestTable(RewardTable.empty(run_epoch)) for name in resolved_terms(config)}
        self._metrics: dict[str, Any] = {}
        self._acknowledgements: dict[str, Acknowledgement] = {}
        self._reports: dict[ray.ObjectRef, str] = {}
        self._withheld: dict[str, Counter[int]] = {}  # by channel, counts of reports that were not forwarded
        self._withheld_goals: GoalCounts | None = None
        self._goals = LatestGoals()
        self._slot = Slot(interval_s=POLL_INTERVAL_S)  # its first call is `begin`, all others are `update`
        self._replicas = RayReplicas(config, replicas) if replicas is not None else None
        self._start_actor()

    @property
    def waiting(self) -> str | None:
        """What has been requested and has not started yet, perhaps for lack of resources; None where all is running."""
        missing = {}
        if self._replicas is not None and self._replicas.num_waiting:
            missing["replica"] = replace(self._replicas.request, count=self._replicas.num_waiting)
        if self._request is not None and self._slot.state is SlotState.STARTING:
            missing["annotator"] = self._request
        if missing:
            return f"{as_text(missing)} to start"
        model = "its model" if self._config.annotator.address else self._config.service.model
        return f"the judge, which loads {model}" if self._is_loading else None

    def report(self, report: ray.ObjectRef, worker_id: str, env_steps: int) -> None:
        """Forward a worker's caption report.

        Where there is no annotator, or it has not answered the last 64, the report is withheld: the worker sends its
        unacknowledged texts again, and its counts are added to the next report.
        """
        actor = self._running_actor()
        if actor is None or len(self._reports) >= MAX_UNANSWERED_REPORTS:
            self._withhold(report, worker_id)
        else:
            self._reports[actor.report.remote(self._with_withheld(report, worker_id), env_steps)] = worker_id
        self._poll()

    def acknowledgement(self, worker_id: str) -> Acknowledgement | None:
        """The newest acknowledgement for this worker."""
        return self._acknowledgements.get(worker_id)

    def latest_reward(self) -> PublishedReward:
        """The newest table of each term that has arrived."""
        self._poll()
        return PublishedReward(
            tables={name: latest.table for name, latest in self._tables.items()}, goals=self._goals.goals
        )

    def metrics(self) -> Mapping[str, Any]:
        """The newest metrics that have arrived."""
        self._poll()
        if self._replicas is None:
            return self._metrics
        up = len(self._replicas.addresses())
        return {**self._metrics, "service_restarts": self._replicas.restarts, "annotation_replicas_up": up}

    def top_rewarded(self, n: int, min_count: int) -> Sequence[RewardedCaption]:
        """Empty where the annotator does not answer in time."""
        return self._ask("top_rewarded", n, min_count) or []

    def state_dict(self) -> dict[str, Any]:
        """The annotator's state; its last known one where it does not answer in time. With it the goals that workers
        and learner know, which may be more."""
        self._state = self._ask("state_dict") or self._state
        return {**self._state, PUBLISHED_GOALS: self._goals.state_dict()} if self._state else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Start the annotator from `state`; called before the first report."""
        self._state = state or None
        for name, of_term in states_by_term(state).items():
            self._tables[name] = LatestTable(saved_table(of_term["trainer"], self._run_epoch))
        self._goals.load_state_dict(state.get(PUBLISHED_GOALS, {}), self._run_epoch)
        self._running_actor()

    def close(self) -> None:
        """End the annotator and the service it started."""
        if self._slot.actor is not None:
            try:
                ray.get(self._slot.actor.close.remote(), timeout=STATE_TIMEOUT_S)
            except RayError as error:
                LOG.warning("the annotator did not close in time: %s", error)
            self._slot.end()
        if self._replicas is not None:
            self._replicas.close()

    def _withhold(self, report: ray.ObjectRef, worker_id: str) -> None:
        content = self._fetch(report, worker_id)
        if content is not None and content.goals is not None:
            self._withheld_goals = content.goals + (self._withheld_goals or GoalCounts.zeros())
        for channel, counts in _counts(content).items() if content else ():
            withheld = self._withheld.setdefault(channel, Counter())
            for number, count in counts.items():
                if number in withheld or len(withheld) < MAX_WITHHELD:
                    withheld[number] += count

    def _with_withheld(self, report: ray.ObjectRef, worker_id: str) -> ray.ObjectRef | CaptionReport:
        """The report with all withheld counts, of any worker: the caption book takes counts without texts, too."""
        if not (self._withheld or self._withheld_goals) or (content := self._fetch(report, worker_id)) is None:
            return report
        withheld, self._withheld = self._withheld, {}
        goals, self._withheld_goals = self._withheld_goals, None
        if goals is not None and content.goals is not None:
            content = replace(content, goals=content.goals + goals)
        return _with_counts(content, withheld)

    def _fetch(self, report: ray.ObjectRef, worker_id: str) -> CaptionReport | None:
        """The report itself, which came with a rollout; None where its node has been lost since."""
        try:
            return ray.get(report, timeout=STATE_TIMEOUT_S)
        except RayError as error:
            LOG.warning(REPORT_LOST, worker_id, error)
            return None

    def _start_actor(self) -> None:
        if self._request is not None and self._slot.state is SlotState.EMPTY:
            credentials = self._replicas.credentials if self._replicas is not None else None
            self._slot.start(start_actor(AnnotatorActor, self._request, self._config, self._run_epoch, credentials))

    def _running_actor(self) -> Any:
        """The actor after `begin`; None where there is none."""
        self._start_actor()
        if self._slot.state is SlotState.STARTING and self._slot.call is None:
            self._slot.ask(self._slot.actor.begin.remote(self._state, self._goals.goals, self._replica_addresses))
        return self._slot.actor

    @property
    def _replica_addresses(self) -> ReplicaAddresses | None:
        return None if self._replicas is None else (self._replicas.addresses(), self._replicas.problem)

    def _ask(self, method: str, *arguments: Any) -> Any:
        actor = self._running_actor()
        if actor is None or self._is_silent:
            return None
        timeout_s = STATE_TIMEOUT_S if self._metrics else START_TIMEOUT_S
        try:
            return ray.get(getattr(actor, method).remote(*arguments), timeout=timeout_s)
        except GetTimeoutError:
            self._is_silent = True
            LOG.warning("the annotator did not answer %s within %.0f s", method, timeout_s)
        except RayError as error:
            self._lost(error)
        return None

    def _poll(self) -> None:
        actor = self._running_actor()
        if self._replicas is not None:
            self._replicas.poll()
        if actor is None:
            return
        try:
            self._take_acknowledgements()
            if answered([self._slot]) and (update := self._slot.take_answer()) is not None:
                self._is_silent = False
                tables, goals, self._metrics, self.problem, self._is_loading = update
                self._goals.offer(goals)
                for name, latest in self._tables.items():
                    latest.offer(tables.get(name))
                self._metrics["reward_version"] = self._tables[MAIN_TERM].table.reward_version[1]
            if self._slot.silent_s > SILENCE_S:
                self._metrics = {**self._metrics, "annotator_up": 0}
            if self._slot.may_ask:
                known = {name: latest.known for name, latest in self._tables.items()}
                self._slot.ask(actor.update.remote(known, self._goals.known, self._replica_addresses))
        except RayError as error:
            self._lost(error)

    def _take_acknowledgements(self) -> None:
        ready = ray.wait([*self._reports], num_returns=len(self._reports), timeout=0)[0] if self._reports else []
        for reference in ready:
            worker_id = self._reports.pop(reference)
            try:
                self._acknowledgements[worker_id] = ray.get(reference)
            except (ObjectLostError, RayTaskError) as error:  # the report was lost with its worker's node
                LOG.warning(REPORT_LOST, worker_id, error)

    def _lost(self, error: RayError) -> None:
        LOG.error("the annotator died; training goes on with the last reward table, and it is started again: %s", error)
        self._slot.lost()
        self._slot.back_off(RESTART_PAUSE_S)
        self._reports.clear()
        self._acknowledgements.clear()
        for latest in self._tables.values():
            latest.annotator_lost()
        self._goals.known = None
        self._is_silent = self._is_loading = False
        self.problem = f"the annotator ended and is started again: {last_line(str(error))}"
        self._metrics = {**self._metrics, "annotator_up": 0}


def _counts(report: CaptionReport) -> dict[str, dict[int, int]]:
    """The counts of all channels of a report."""
    return {"caption": report.counts, **{channel: counts for channel, (_, counts) in report.channels.items()}}


def _with_counts(report: CaptionReport, more: Mapping[str, Counter[int]]) -> CaptionReport:
    """The report with `more` counts, by channel."""
    total = {
        channel: dict(more.get(channel, Counter()) + Counter(counts)) for channel, counts in _counts(report).items()
    }
    channels = {channel: (texts, total[channel]) for channel, (texts, _) in report.channels.items()}
    return replace(report, counts=total["caption"], channels=channels)
