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


def check_ray(subject: Subject) -> list[CheckResult]:
    """In `connect` the cluster; in `local` what would conflict with the one that the run starts."""
    mode = subject.config.cluster.mode
    if mode == "inline":
        return [ok("ray", "cluster.mode=inline uses none")]
    token = _check_token(mode)
    if mode == "local":
        other = f"; {CURRENT_CLUSTER} tells of another cluster, which does not matter here"
        return [token, ok("ray", f"the run starts its own{other if CURRENT_CLUSTER.exists() else ''}")]
    return [token, _check_cluster(subject)] if token.status != "failed" else [token]


def token_file() -> Path:
    """Where Ray looks for a token that the environment does not set."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _check_token(mode: str) -> CheckResult:
    name, file = "ray token", token_file()
    setting, has_file = os.environ.get("RAY_AUTH_MODE"), file.is_file()
    if setting not in (None, "token", "disabled"):
        advice = "set it to token or disabled, or unset it"
        return failed(name, f"RAY_AUTH_MODE={setting}, which Ray does not know", advice)
    if setting == "token" and not os.environ.get("RAY_AUTH_TOKEN") and not has_file:
        found = f"RAY_AUTH_MODE=token, but there is no token in the environment nor in {file}"
        advice = "export RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as the cluster has it; for a new cluster:"
        return failed(name, found, f"{advice} ray get-auth-token --generate")
    if mode == "local":
        guard = "as RAY_AUTH_MODE says" if setting else "the run makes one of its own"
        rest = f"; {file} is there, and a later `ray start` will ask for it" if not setting and has_file else ""
        return ok(name, f"{guard}{rest}")
    if setting is None and has_file:
        advice = (
            "where the cluster has another token, export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; where it has none,"
        )
        found = f"an earlier cluster left {file}, which Ray now sends by itself"
        return warning(name, found, f"{advice} RAY_AUTH_MODE=disabled")
    if setting is None:
        danger = "without a token anyone who reaches the cluster's ports can run code on it"
        advice = f"{danger}: ray get-auth-token --generate, RAY_AUTH_MODE=token on every node"
        return warning(name, "RAY_AUTH_MODE is not set, and there is no token", advice)
    return ok(name, f"RAY_AUTH_MODE={setting}" + (", with a token" if setting == "token" else ""))


def _check_cluster(subject: Subject) -> CheckResult:
    address, source = _address(subject.config.cluster.address)
    if not address:
        advice = f"start one with `ray start --head`, set cluster.address or RAY_ADDRESS, or submit to one: {SUBMIT}"
        return failed("ray", "cluster.mode=connect, but no cluster is known here", advice)
    if address.startswith("ray://"):
        found = f"{source}={address}: Ray Client, which is too slow for rollouts"
        return failed("ray", found, f"submit instead: {SUBMIT}")
    if address.startswith(("http://", "https://")):
        return _check_job_server(address, source)
    host, _, port = address.rpartition(":")
    problem = unreachable(host.strip("[]"), int(port)) if host and port.isdecimal() else "no host:port"
    if problem:
        stale = f"; {CURRENT_CLUSTER} is left over: `ray stop`, and delete it" if source == str(CURRENT_CLUSTER) else ""
        advice = f"start the cluster (`ray start --head`), or correct the address{stale}"
        return failed("ray", f"{source}={address}: {problem}", advice)
    answer = _join(address, subject.config.cluster.more_nodes)
    if "error" in answer:
        advice = "set RAY_AUTH_MODE and RAY_AUTH_TOKEN as the cluster has them"
        if "token" not in answer["error"].lower() and "unauth" not in answer["error"].lower():
            advice = (
                f"look at `ray status`; this machine must be one of its nodes; {advice}: with another, Ray only waits"
            )
        return failed("ray", f"{source}={address}: {answer['error']}", advice)
    nodes = [placement.Node(**node) for node in answer["nodes"]]
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    found = f"{address}: {len(nodes)} nodes, {cpus:g} CPU, {gpus:g} GPU"
    config, may_grow = subject.config, answer["may_grow"]
    try:
        requests = placement.plan(
            config.cluster,
            config.actors,
            needs_annotator=config.reward_model.name != "none",
            needs_service=subject.plan.starts_service,
            nodes=nodes,
            may_grow=may_grow,
        )
    except placement.DoesNotFit as error:
        lower = "add some, or lower actors.num_workers, cluster.*_cpus or cluster.*_gpus"
        found += f"; no room for {placement.as_text(error.missing)}"
        if not may_grow:
            advice = (
                f"no node will join by itself, and the run fails: {lower}; cluster.more_nodes=expected waits for them"
            )
            return failed("ray", found, advice)
        limit_s = config.cluster.placement_timeout_s
        waits = f"the run waits {limit_s:g} s for nodes (an autoscaler is asked) and then fails"
        return warning("ray", found, f"{waits}: {lower}")
    return ok("ray", f"{found}; {placement.shortage(config.cluster, requests) or 'all parts fit'}")


def _join(address: str, more_nodes: str) -> dict[str, Any]:
    """The cluster's nodes and whether more may join, found out in another process; or `error`."""
    command = [sys.executable, "-c", JOIN, address, more_nodes, str(Path(__file__).parents[2])]
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
    if not token and token_file().is_file():
        token = token_file().read_text().strip()
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5.0) as response:
            version = json.loads(response.read(10_000)).get("ray_version")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            advice = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the cluster has them"
            return failed("ray", f"{source}={address} wants another token", advice)
        found = f"{source}={address} answers with HTTP {error.code}"
        return failed("ray", found, "give the address of Ray's dashboard")
    except (OSError, ValueError) as error:
        advice = "start the cluster, or correct the address of its dashboard (port 8265)"
        return failed("ray", f"{source}={address}: {getattr(error, 'reason', error)}", advice)
    return ok("ray", f"jobs can be submitted to {address} (Ray {version}): {SUBMIT}")


def check_ports(subject: Subject) -> list[CheckResult]:
    """The ports that the run will listen on, where the configuration fixes them."""
    config, results = subject.config, []
    if config.cluster.mode == "local" and config.cluster.dashboard:
        if _why_taken("127.0.0.1", DASHBOARD_PORT):
            found = f"{DASHBOARD_PORT}, the dashboard's, is taken by {holder(DASHBOARD_PORT)}"
            advice = (
                "end that program, or look for the dashboard where the run's first lines say: Ray takes the next free"
            )
            results.append(warning("ports", found, f"{advice} port"))
        else:
            results.append(ok("ports", f"{DASHBOARD_PORT} is free for the dashboard"))
    service = subject.plan.service
    if subject.plan.starts_service and config.cluster.mode != "inline" and service.port:
        results.append(_check_service_port(service.host, service.port))
    return results or [ok("ports", "free ones are chosen at the start")]


def _check_service_port(host: str, port: int) -> CheckResult:
    problem = _why_taken(host.strip("[]"), port)
    if problem == "in use":
        user, advice = holder(port), "end that program, or"
        if "llm_server.serve" in user:
            advice = f"use that service: annotator.address={host}:{port}; or"
        found = f"service.port={port} is taken by {user}"
        return failed("ports", found, f"{advice} set service.port=0, which takes a free one")
    if problem:
        advice = "set service.host to an address of this machine (127.0.0.1), and a service.port above 1023"
        return failed("ports", f"service.host={host}, service.port={port}: {problem}", advice)
    return ok("ports", f"{port} is free for the annotation service")


def holder(port: int) -> str:
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
