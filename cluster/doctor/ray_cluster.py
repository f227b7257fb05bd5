"""`delphi doctor`'s checks around Ray: the cluster's address, its token, leftovers of earlier clusters, and ports.

Invariant: nothing is started and nothing left behind; a cluster is joined from another process, which a wrong token or
a half-dead cluster may hang or end.
"""

import errno
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from cluster.doctor.result import CheckResult, failed, ok, warning
from cluster.doctor.service import unreachable
from cluster.doctor.subject import Subject
from cluster.on_ray import placement
from cluster.run.provenance import CHECKOUT
from configs.terms import has_reward_tables

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
DASHBOARD_PORT = 8265
JOIN_TIMEOUT_S = 25.0
JOIN = """
import dataclasses, json, logging, sys
sys.path.insert(0, sys.argv[3])
import ray
from cluster.on_ray.nodes import more_nodes_may_come, nodes
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
    there = [dataclasses.asdict(node) for node in nodes() if node.alive]
    print("\\n" + json.dumps({"nodes": there, "may_grow": more_nodes_may_come(sys.argv[2])}))
except Exception as error:
    print("\\n" + json.dumps({"error": " ".join(str(error).split())[:400] or type(error).__name__}))
"""
SUBMIT = "`ray job submit --working-dir . -- python -m cluster.train … cluster.mode=connect`"


def check_token(subject: Subject) -> CheckResult:
    """Whether a token is set where the run, or the cluster that it joins, needs one."""
    is_local, file = subject.config.cluster.mode == "local", _token_file()
    setting, has_file = os.environ.get("RAY_AUTH_MODE"), file.is_file()
    if setting not in (None, "token", "disabled"):
        return failed(f"RAY_AUTH_MODE={setting}, which Ray does not know", "set it to token or disabled, or unset it")
    if setting == "token" and not os.environ.get("RAY_AUTH_TOKEN") and not has_file:
        found = f"RAY_AUTH_MODE=token, but there is no token in the environment nor in {file}"
        advice = "export RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as the cluster has it; for a new cluster:"
        return failed(found, f"{advice} ray get-auth-token --generate")
    if is_local and setting:
        return ok("as RAY_AUTH_MODE says")
    if is_local:
        rest = f"; {file} is there, and a later `ray start` will ask for it" if has_file else ""
        return ok(f"the run makes one of its own{rest}")
    if setting:
        return ok(f"RAY_AUTH_MODE={setting}" + (", with a token" if setting == "token" else ""))
    if has_file:
        found = f"an earlier cluster left {file}, which Ray now sends by itself"
        other = "where the cluster has another token, export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        return warning(found, f"{other}; where it has none, RAY_AUTH_MODE=disabled")
    danger = "without a token anyone who reaches the cluster's ports can run code on it"
    advice = f"{danger}: ray get-auth-token --generate, RAY_AUTH_MODE=token on every node"
    return warning("RAY_AUTH_MODE is not set, and there is no token", advice)


def _token_file() -> Path:
    """Where Ray looks for a token that the environment does not set."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def check_ray(subject: Subject) -> CheckResult | list[CheckResult]:
    """In `connect` the cluster; in `local` what would conflict with the one that the run starts."""
    mode = subject.config.cluster.mode
    if mode == "inline":
        return ok("cluster.mode=inline uses none")
    if mode == "local":
        other = f"; {CURRENT_CLUSTER} tells of another cluster, which does not matter here"
        return ok(f"the run starts its own{other if CURRENT_CLUSTER.exists() else ''}")
    if check_token(subject).status == "failed":  # without its token the cluster cannot be joined
        return []
    address, source = _address(subject.config.cluster.address)
    if not address:
        advice = f"start one with `ray start --head`, set cluster.address or RAY_ADDRESS, or submit to one: {SUBMIT}"
        return failed("cluster.mode=connect, but no cluster is known here", advice)
    if address.startswith("ray://"):
        return failed(f"{source}={address}: Ray Client, which is too slow for rollouts", f"submit instead: {SUBMIT}")
    if address.startswith(("http://", "https://")):
        return _check_job_server(address, source)
    if problem := unreachable(address):
        stale = f"; {CURRENT_CLUSTER} is left over: `ray stop`, and delete it" if source == str(CURRENT_CLUSTER) else ""
        advice = f"start the cluster (`ray start --head`), or correct the address{stale}"
        return failed(f"{source}={address}: {problem}", advice)
    answer = _join(address, subject.config.cluster.more_nodes)
    if "error" not in answer:
        nodes = [placement.Node(**node) for node in answer["nodes"]]
        return _check_room(subject, address, nodes, answer["may_grow"])
    advice = "set RAY_AUTH_MODE and RAY_AUTH_TOKEN as the cluster has them"
    if not any(word in answer["error"].lower() for word in ("token", "unauth")):
        advice = f"look at `ray status`; this machine must be one of its nodes; {advice}: with another, Ray only waits"
    return failed(f"{source}={address}: {answer['error']}", advice)


def _check_room(subject: Subject, address: str, nodes: list[placement.Node], may_grow: bool) -> CheckResult:
    """Whether the run's parts fit the cluster."""
    config, cpus, gpus = subject.config, sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"{address}: {len(nodes)} nodes, {cpus:g} CPU, {gpus:g} GPU"
    try:
        requests = placement.plan(
            config.cluster,
            config.actors,
            needs_annotator=has_reward_tables(config),
            needs_service=subject.plan.starts_service,
            nodes=nodes,
            may_grow=may_grow,
        )
    except placement.DoesNotFit as error:
        lower = "add some, or lower actors.num_workers, cluster.*_cpus or cluster.*_gpus"
        found += f"; no room for {placement.as_text(error.missing)}"
        if not may_grow:
            advice = f"no node will join by itself, and the run fails: {lower}"
            return failed(found, f"{advice}; cluster.more_nodes=expected waits for them")
        limit_s = config.cluster.placement_timeout_s
        return warning(found, f"the run waits {limit_s:g} s for nodes (an autoscaler is asked) and then fails: {lower}")
    return ok(f"{found}; {placement.shortage(config.cluster, requests) or 'all parts fit'}")


def _join(address: str, more_nodes: str) -> dict[str, Any]:
    """The cluster's nodes and whether more may join, found out in another process; or `error`."""
    command = [sys.executable, "-c", JOIN, address, more_nodes, str(CHECKOUT)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=JOIN_TIMEOUT_S)
        return json.loads(result.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"it accepts connections, but could not be joined within {JOIN_TIMEOUT_S:.0f} s"}
    except (IndexError, ValueError):
        return {"error": f"joining it ended with {result.returncode}: {result.stderr.strip()[-200:]}"}


def _address(setting: str) -> tuple[str, str]:
    """The cluster's address and its source; both empty where none is set."""
    if setting != "auto":
        return setting, "cluster.address"
    if address := os.environ.get("RAY_ADDRESS", ""):
        return ("", "") if address == "local" else (address, "RAY_ADDRESS")
    try:
        return CURRENT_CLUSTER.read_text().strip(), str(CURRENT_CLUSTER)
    except OSError:
        return "", ""


def _check_job_server(address: str, source: str) -> CheckResult:
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token and _token_file().is_file():
        token = _token_file().read_text().strip()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version", headers=headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5.0) as response:
            version = json.loads(response.read(10_000)).get("ray_version")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            advice = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the cluster has them"
            return failed(f"{source}={address} wants another token", advice)
        return failed(f"{source}={address} answers with HTTP {error.code}", "give the address of Ray's dashboard")
    except (OSError, ValueError) as error:
        advice = "start the cluster, or correct the address of its dashboard (port 8265)"
        return failed(f"{source}={address}: {getattr(error, 'reason', error)}", advice)
    return ok(f"jobs can be submitted to {address} (Ray {version}): {SUBMIT}")


def check_ports(subject: Subject) -> list[CheckResult]:
    """The ports that the run will listen on, where the configuration fixes them."""
    cluster, service, results = subject.config.cluster, subject.plan.service, []
    if cluster.mode == "local" and cluster.dashboard:
        results.append(_check_dashboard_port())
    if subject.plan.starts_service and cluster.mode != "inline" and service.port:
        results.append(_check_service_port(service.host, service.port))
    return results or [ok("free ones are chosen at the start")]


def _check_dashboard_port() -> CheckResult:
    if not _why_taken("127.0.0.1", DASHBOARD_PORT):
        return ok(f"{DASHBOARD_PORT} is free for the dashboard")
    found = f"{DASHBOARD_PORT}, the dashboard's, is taken by {_holder(DASHBOARD_PORT)}"
    other = "look for the dashboard where the run's first lines say: Ray takes the next free port"
    return warning(found, f"end that program, or {other}")


def _check_service_port(host: str, port: int) -> CheckResult:
    problem = _why_taken(host.strip("[]"), port)
    if problem == "in use":
        user, advice = _holder(port), "end that program, or"
        if "llm_server.serve" in user:
            advice = f"use that service: annotator.address={host}:{port}; or"
        return failed(f"service.port={port} is taken by {user}", f"{advice} set service.port=0, which takes a free one")
    if problem:
        advice = "set service.host to an address of this machine (127.0.0.1), and a service.port above 1023"
        return failed(f"service.host={host}, service.port={port}: {problem}", advice)
    return ok(f"{port} is free for the annotation service")


def _holder(port: int) -> str:
    """The process that listens on `port`, for the user."""
    try:
        sockets = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        sockets = []
    for pid in sorted({c.pid for c in sockets if c.laddr and c.laddr.port == port and c.pid}):
        try:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:120]})"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return f"process {pid}"
    return "a process of another user"


def _why_taken(host: str, port: int) -> str | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return "in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    return None
