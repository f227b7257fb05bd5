"""A Ray cluster of several nodes on this machine, told by lines on standard input what is to happen to it.

In a process of its own, because Ray reads how it is to authenticate when it is first imported. Lines: `add`, `kill N`
(kill -9 of everything that node N is; 0 is the head). It answers each with a line, and ends with its input.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STORE_BYTES = 200_000_000


class SmallCluster:
    """Handle of such a process."""

    def __init__(self, num_cpus: int) -> None:
        """A head node with so many CPUs."""
        self.folder = tempfile.mkdtemp(prefix="dc-", dir="/tmp")  # short: Ray's sockets lie below it
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [sys.executable, "-m", "tests.faults.small_cluster", self.folder, str(num_cpus)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._num_nodes = 1
        self.address = self._answer()

    def add_node(self) -> int:
        """A node with one CPU; its number."""
        self._tell("add")
        self._num_nodes += 1
        return self._num_nodes - 1

    def kill_node(self, number: int) -> None:
        """kill -9 of everything that a node is."""
        self._tell(f"kill {number}")

    def actors(self) -> list[psutil.Process]:
        """Workers and learners, whichever node they are on; what a raylet starts are its children."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline()
                parents = [parent.cmdline() for parent in process.parents()]
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            is_actor = bool(words) and words[0].startswith(("ray::WorkerActor", "ray::LearnerActor"))
            if is_actor and any(self.folder in word for parent in parents for word in parent):
                found.append(process)
        return found

    def close(self) -> None:
        """End all nodes."""
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer: "):  # Ray may have something to say, too
                return line.removeprefix("answer: ").strip()
        raise AssertionError("the cluster's process has ended")


@contextmanager
def small_cluster(num_cpus: int) -> Iterator[SmallCluster]:
    """A cluster, of which nothing is left afterwards."""
    cluster = SmallCluster(num_cpus)
    try:
        yield cluster
    finally:
        cluster.close()


def main(folder: str, num_cpus: int) -> None:
    from ray.cluster_utils import Cluster

    os.environ["RAY_TMPDIR"] = folder  # of the session, and of what is written beside it: there may be no /tmp/ray
    head = {"num_cpus": num_cpus, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.head_node]
    print(f"answer: {cluster.address}", flush=True)
    for line in sys.stdin:
        verb, _, number = line.strip().partition(" ")
        if verb == "add":
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))
        else:
            cluster.remove_node(nodes[int(number)], allow_graceful=False)
        print("answer: done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
