"""What `delphi doctor` looks at around Ray: the cluster's address, its token, what earlier clusters left, and ports.

Invariant: nothing is started and nothing left behind; a cluster is asked from a process of its own, which a wrong token or a
half-dead cluster may hang or end.
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
    """In `connect` the cluster; in `local` what would disturb the one that the run starts."""
    mode = subject.config.cluster.mode
    if mode == "inline":
        return [ok("ray", "cluster.mode=inline uses none")]
    token = _check_token(mode)
    if mode == "local":
        left = (
            f"; {CURRENT_CLUSTER} tells of another cluster, which does not matter here"
            if CURRENT_CLUSTER.exists()
            else ""
        )
        return [token, ok("ray", f"the run starts its own{left}")]
    return [token, _check_cluster(subject)] if token.status != "failed" else [token]


def token_file() -> Path:
    """Where Ray looks for a token that the environment does not give."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def _check_token(mode: str) -> CheckResult:
    asked = os.environ.get("RAY_AUTH_MODE")
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN")) or token_file().is_file()
    if asked not in (None, "token", "disabled"):
        return failed(
            "ray token", f"RAY_AUTH_MODE={asked}, which Ray does not know", "set it to token or disabled, or unset it"
        )
    if asked == "token" and not has_token:
        advice = "export RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as the cluster has it; for a new cluster: ray get-auth-token --generate"
        return failed(
            "ray token", f"RAY_AUTH_MODE=token, but there is no token in the environment nor in {token_file()}", advice
        )
    if mode == "local":
        guard = "as RAY_AUTH_MODE says" if asked else "the run makes one of its own"
        rest = (
            f"; {token_file()} is there, and a later `ray start` will ask for it"
            if not asked and token_file().is_file()
            else ""
        )
        return ok("ray token", f"{guard}{rest}")
    if asked is None and token_file().is_file():
        advice = "where the cluster has another token, export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN; where it has none, RAY_AUTH_MODE=disabled"
        return warning("ray token", f"an earlier cluster left {token_file()}, which Ray now sends by itself", advice)
    if asked is None:
        advice = "without a token whoever reaches the cluster's ports runs code on it: ray get-auth-token --generate, RAY_AUTH_MODE=token on every node"
        return warning("ray token", "RAY_AUTH_MODE is not set, and there is no token", advice)
    return ok("ray token", f"RAY_AUTH_MODE={asked}" + (", with a token" if asked == "token" else ""))


def _check_cluster(subject: Subject) -> CheckResult:
    address, source = _address(subject.config.cluster.address)
    if not address:
        advice = f"start one with `ray start --head`, set cluster.address or RAY_ADDRESS, or submit to one: {SUBMIT}"
        return failed("ray", "cluster.mode=connect, but no cluster is known here", advice)
    if address.startswith("ray://"):
        return failed(
            "ray", f"{source}={address}: Ray Client, through which rollouts would crawl", f"submit instead: {SUBMIT}"
        )
    if address.startswith(("http://", "https://")):
        return _check_job_server(address, source)
    host, _, port = address.rpartition(":")
    problem = unreachable(host.strip("[]"), int(port)) if host and port.isdecimal() else "no host:port"
    if problem:
        stale = f"; {CURRENT_CLUSTER} is left over: `ray stop`, and delete it" if source == str(CURRENT_CLUSTER) else ""
        return failed(
            "ray",
            f"{source}={address}: {problem}",
            f"start the cluster (`ray start --head`), or correct the address{stale}",
        )
    try:
        command = [
            sys.executable,
            "-c",
            JOIN,
            address,
            subject.config.cluster.more_nodes,
            str(Path(__file__).parents[2]),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=JOIN_TIMEOUT_S)
        said = json.loads(result.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        said = {"error": f"it accepts connections, but could not be joined within {JOIN_TIMEOUT_S:.0f} s"}
    except (IndexError, ValueError):
        said = {"error": f"joining it ended with {result.returncode}: {result.stderr.strip()[-200:]}"}
    if "error" in said:
        token = "set RAY_AUTH_MODE and RAY_AUTH_TOKEN as the cluster has them"
        if "token" not in said["error"].lower() and "unauth" not in said["error"].lower():
            advice = (
                f"look at `ray status`; this machine must be one of its nodes; {token}: with another, Ray only waits"
            )
        else:
            advice = token
        return failed("ray", f"{source}={address}: {said['error']}", advice)
    nodes = [placement.Node(**node) for node in said["nodes"]]
    found = f"{address}: {len(nodes)} nodes, {sum(node.cpus for node in nodes):g} CPU, {sum(node.gpus for node in nodes):g} GPU"
    config, may_grow = subject.config, said["may_grow"]
    try:
        requests = placement.plan(
            config.cluster,
            config.actors,
            needs_annotator=config.reward_model.name != "none",
            needs_service=subject.starts_service,
            nodes=nodes,
            may_grow=may_grow,
        )
    except placement.DoesNotFit as error:
        lower = "add some, or lower actors.num_workers, cluster.*_cpus or cluster.*_gpus"
        what = f"{found}; no room for {placement.in_words(error.missing)}"
        if not may_grow:
            return failed(
                "ray",
                what,
                f"no node will join by itself, and the run fails: {lower}; cluster.more_nodes=expected waits for them",
            )
        waits = (
            f"the run waits {config.cluster.placement_timeout_s:g} s for nodes (an autoscaler is asked) and then fails"
        )
        return warning("ray", what, f"{waits}: {lower}")
    return ok("ray", f"{found}; {placement.shortage(config.cluster, requests) or 'all parts fit'}")


def _address(setting: str) -> tuple[str, str]:
    """Where the cluster is, and who says so; empty where nobody does."""
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
            return failed(
                "ray",
                f"{source}={address} wants another token",
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as the cluster has them",
            )
        return failed(
            "ray", f"{source}={address} answers with HTTP {error.code}", "give the address of Ray's dashboard"
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return failed(
            "ray",
            f"{source}={address}: {reason}",
            "start the cluster, or correct the address of its dashboard (port 8265)",
        )
    return ok("ray", f"jobs can be submitted to {address} (Ray {version}): {SUBMIT}")


def check_ports(subject: Subject) -> list[CheckResult]:
    """The ports that the run will listen on, as far as they are chosen beforehand."""
    config, results = subject.config, []
    if config.cluster.mode == "local" and config.cluster.dashboard:
        if _why_taken("127.0.0.1", DASHBOARD_PORT):
            found = f"{DASHBOARD_PORT}, the dashboard's, is taken by {holder(DASHBOARD_PORT)}"
            results.append(
                warning(
                    "ports",
                    found,
                    "end that program, or look for the dashboard where the run's first lines say: Ray takes the next free port",
                )
            )
        else:
            results.append(ok("ports", f"{DASHBOARD_PORT} is free for the dashboard"))
    service = subject.service
    if subject.starts_service and config.cluster.mode != "inline" and service.port:
        problem = _why_taken(service.host.strip("[]"), service.port)
        who = holder(service.port)
        if problem and "llm_server.serve" in who:
            advice = f"use that service: annotator.address={service.host}:{service.port}; or set service.port=0, which takes a free one"
        else:
            advice = "end that program, or set service.port=0, which takes a free one"
        if problem == "in use":
            results.append(failed("ports", f"service.port={service.port} is taken by {who}", advice))
        elif problem:
            advice = "set service.host to an address of this machine (127.0.0.1), and a service.port above 1023"
            results.append(
                failed("ports", f"service.host={service.host}, service.port={service.port}: {problem}", advice)
            )
        else:
            results.append(ok("ports", f"{service.port} is free for the annotation service"))
    return results or [ok("ports", "free ones are chosen at the start")]


def holder(port: int) -> str:
    """Who listens on `port`, as a person would name it."""
    try:
        pids = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
        }
    except psutil.AccessDenied:
        pids = set()
    for pid in sorted(pids):
        try:
            return f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:120]})"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return f"process {pid}"
    return "a process of somebody else"


def _why_taken(host: str, port: int) -> str | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that waits to be forgotten is free
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return "in use" if error.errno == errno.EADDRINUSE else str(error.strerror or error)
    return None
