"""The judge that all terms of a run ask: services that run already, replicas, one service as this process's child, or
in `inline` a judge in this process; and the service of a replica.

Invariant: there is one for all terms, which loads its model once and has the rubrics of all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.plan import RunPlan, plan_run
from cluster.run.directory import RunDirectory
from configs.annotation_schema import AccessConfig, AnnotatorConfig
from configs.goal_schema import WriterConfig
from configs.schema import RunConfig
from llm_server.annotator.feedback import JudgeClient
from llm_server.channel import check_address
from llm_server.client import AnnotationClient, InProcessClient
from llm_server.credentials import NO_CREDENTIALS, ClientCredentials, CredentialFiles, load_client_credentials
from llm_server.replicas import Replicas, split_addresses
from llm_server.replicated_client import ReplicatedClient
from llm_server.rubrics.loading import load_rubric
from llm_server.rubrics.rubric import Rubric
from llm_server.service.child import ServiceProcess
from llm_server.service.judge import Judge, build_judge


class SharedJudge:
    """The services at `annotator.address`, the `replicas` that the run started (see `Replicas`; they require
    `credentials`), or else what it starts here: `service`, or in `inline` the judge `in_process`. Its user closes them.
    Raises ValueError for an error in model, rubric or store."""

    def __init__(
        self,
        plan: RunPlan,
        run: RunDirectory,
        replicas: Callable[[], Mapping[str, str]] | None = None,
        credentials: CredentialFiles | None = None,
    ) -> None:
        self.service: ServiceProcess | None = None
        self.in_process: Judge | None = None
        self._timeout_s, self._shown = plan.config.annotator.request_timeout_s, NO_CREDENTIALS
        self._is_elsewhere = bool(plan.config.annotator.address)
        self._address: Callable[[], str] | None = None  # of the one service
        self._addresses: Callable[[], Mapping[str, str]] = dict  # of several, by name
        if not plan.asks_judge:
            return
        if plan.config.annotator.address:
            self._shown = service_credentials(plan.config.annotator)
            addresses = {address: address for address in split_addresses(plan.config.annotator.address)}
            self._addresses = lambda: addresses
            if len(addresses) == 1:
                self._address = partial(str, *addresses)
        elif replicas is not None:
            self._shown = credentials.client() if credentials is not None else NO_CREDENTIALS
            self._addresses = replicas
        elif plan.config.cluster.mode == "inline":
            self.in_process = build_judge(plan.service, [load_rubric(rubric) for rubric in plan.rubrics])
        else:
            self.service = ServiceProcess(plan.service, plan.rubrics, run.path / "service.log")
            self._address = self.service.address

    def connect(self, rubric: Rubric, about: str = "") -> Callable[[], JudgeClient]:
        """What makes a client that asks under a rubric, about something; see `Annotator`."""
        if self.in_process is not None:
            return partial(InProcessClient, self.in_process, rubric, about)

        def reach(address: str) -> AnnotationClient:
            return AnnotationClient(address, rubric, self._timeout_s, self._shown, about)

        if (address := self._address) is not None:
            return lambda: reach(address())
        return partial(ReplicatedClient, Replicas(self._addresses, reach))

    def connect_writer(self, address: str, rubric: Rubric) -> Callable[[], JudgeClient]:
        """What makes a client that writes, at `writer.address` if given, and there with the credentials for
        `annotator.address`, if any: those that the run made for its own replicas are of no use anywhere else. `rubric`
        is any that its service has."""
        if address:
            shown = self._shown if self._is_elsewhere else NO_CREDENTIALS
            return partial(AnnotationClient, address, rubric, self._timeout_s, shown)
        return self.connect(rubric)


def check_writer(settings: WriterConfig, credentials: ClientCredentials = NO_CREDENTIALS) -> None:
    """ValueError unless `writer.address` is empty or an address that may get these credentials."""
    if settings.address:
        try:
            check_address(settings.address, NO_CREDENTIALS)
        except ValueError:
            raise ValueError(f"writer.address: got {settings.address!r}, wanted host:port of one service") from None
        check_address(settings.address, credentials)


def service_credentials(settings: AnnotatorConfig) -> ClientCredentials:
    """The client's credentials for `annotator.address`. Raises ValueError for invalid files or addresses."""
    credentials = load_client_credentials(settings.tls_ca, settings.tls_cert, settings.tls_key, settings.token_file)
    check_addresses(settings.address, credentials)
    return credentials


def check_addresses(setting: str, credentials: ClientCredentials = NO_CREDENTIALS) -> None:
    """ValueError unless `setting`, a non-empty `annotator.address`, holds addresses that may get these credentials."""
    for address in split_addresses(setting) or [setting]:
        check_address(address, credentials)


def replica_service(
    config: RunConfig, run: RunDirectory, index: int, host: str, credentials: CredentialFiles | None
) -> ServiceProcess:
    """Annotation replica `index`, which listens on `host`; with `credentials` it uses TLS and requires certificate and
    token.

    A configured store becomes one file per replica, because the file system may be shared by several nodes; the default
    store in the user's cache is local to each node."""
    plan = plan_run(config)
    settings, log = plan.service, run.path / f"service-{index}.log"
    store = settings.store
    if store not in ("", "memory"):
        store = str(Path(store).with_name(f"{Path(store).stem}-{index}{Path(store).suffix}"))
    settings = replace(settings, host=host, port=0, store=store)
    if credentials is None:
        return ServiceProcess(settings, plan.rubrics, log)
    access = AccessConfig(
        tls_cert=str(credentials.server_cert),
        tls_key=str(credentials.server_key),
        tls_client_ca=str(credentials.ca),
        token_file=str(credentials.token),
    )
    return ServiceProcess(settings, plan.rubrics, log, access=access, credentials=credentials.client())
