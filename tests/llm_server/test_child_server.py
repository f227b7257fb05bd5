"""A server as a child: however it dies or hangs, it is replaced, says why, and leaves no process behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llm_server.child_server import ChildServer, ProbeRefused, ServerSettings
from tests.llm_server.waiting import wait_until

WAIT_S = 30.0
# It has a process of its own, as vLLM has; each start plays the next behaviour; a connection's first byte says what to
# do.
PROGRAM = """
import os, signal, socket, subprocess, sys, time
port, folder = int(sys.argv[1]), sys.argv[2]
with open(folder + "/starts", "a+") as starts:
    starts.write(f"{time.monotonic()}\\n")
    starts.flush()
    starts.seek(0)
    number = len(starts.readlines()) - 1
behaviours = sys.argv[3:]
behaviour = behaviours[min(number, len(behaviours) - 1)]
if behaviour == "crash":
    print("(Server pid=7) WARNING 01-01 [a.py:1] This can cause errors like `OSError: too many open files`.")
    prefix = "(Core pid=8) ERROR 01-01 [b.py:2]"
    print(f"{prefix} Traceback (most recent call last):\\n{prefix}   raise ValueError: no")
    print(f"{prefix} pydantic.ValueError: 1 problem:\\n  no such weights: x\\nRuntimeError: it all failed")
    sys.exit(1)
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
core = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(folder + "/pids", "a") as pids:
    pids.write(f"{os.getpid()} {core.pid} {os.environ['TMPDIR']}\\n")
listener = socket.create_server(("127.0.0.1", port))
while True:
    connection, _ = listener.accept()
    asked = connection.recv(1)
    if asked == b"0":
        os._exit(0)
    if asked == b"h":
        time.sleep(600)
    connection.sendall(b"!")
    connection.close()
"""


def ask(port, question=b"?", timeout_s=WAIT_S):
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(question)
        return connection.recv(1)


def probe(port, timeout_s):
    if ask(port, timeout_s=timeout_s) != b"!":
        raise RuntimeError("no answer")


def settings(folder, *behaviours, **changes):
    command = [sys.executable, "-S", "-c", PROGRAM]
    quick = {"probe": probe, "probe_timeout_s": 10.0, "first_backoff_s": 0.01, "start_timeout_s": WAIT_S}
    return ServerSettings(
        name="the server", command=lambda port: [*command, str(port), str(folder), *behaviours], **quick | changes
    )


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*behaviours, **changes):
        started.append(ChildServer(settings(tmp_path, *behaviours, **changes)))
        return started[-1]

    yield start
    for server in started:
        server.close()


def incarnations(folder):
    """(server's pid, its own child's pid, its temporary folder) of every start that listened."""
    rows = [line.split() for line in (folder / "pids").read_text().splitlines()]
    return [(int(server), int(core), Path(scratch)) for server, core, scratch in rows]


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def assert_nothing_is_left(folder, number=-1):
    server, core, scratch = incarnations(folder)[number]
    wait_until(lambda: is_gone(server) and is_gone(core))
    return scratch


def next_port(server, port):
    """The port after the child on `port` has failed."""
    server.doubt(port)
    return server.wait_until_up(WAIT_S)


def test_one_that_ends_with_exit_code_0_is_replaced_and_leaves_nothing(start, tmp_path):
    server = start("serve")
    first = server.wait_until_up(WAIT_S)
    assert ask(first) == b"!"
    assert server.restarts == 0
    ask(first, b"0")
    second = next_port(server, first)
    assert ask(second) == b"!"
    assert server.restarts == 1
    assert not assert_nothing_is_left(tmp_path, 0).exists()


def test_one_that_hangs_is_found_by_its_probe_when_a_request_fails(start, tmp_path):
    server = start("serve", probe_timeout_s=0.3, probe_interval_s=3600.0)
    first = server.wait_until_up(WAIT_S)
    with pytest.raises(TimeoutError):
        ask(first, b"h", timeout_s=0.1)
    assert next_port(server, first) != first
    assert server.restarts == 1
    assert_nothing_is_left(tmp_path, 0)


def test_one_that_hangs_is_found_by_its_probe_when_nobody_asks(start):
    server = start("serve", probe_timeout_s=0.3, probe_interval_s=0.1)
    with pytest.raises(TimeoutError):
        ask(server.wait_until_up(WAIT_S), b"h", timeout_s=0.1)
    wait_until(lambda: server.restarts == 1)


def test_one_that_answers_its_probe_is_only_slow_and_stays(start):
    server = start("serve", probe_interval_s=3600.0)
    first = server.wait_until_up(WAIT_S)
    assert next_port(server, first) == first
    assert server.restarts == 0


def test_one_that_is_killed_with_its_guard_is_replaced_and_leaves_nothing(start, tmp_path):
    server = start("serve")
    first = server.wait_until_up(WAIT_S)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: server.restarts == 1)
    assert ask(next_port(server, first)) == b"!"
    assert not assert_nothing_is_left(tmp_path, 0).exists()


def test_one_that_never_answered_is_given_up_with_its_first_error_in_one_line(start, tmp_path):
    server = start("crash", max_failures=2)
    with pytest.raises(
        ValueError, match=r"^the server ended with exit code 1: pydantic\.ValueError: 1 problem: no such weights: x$"
    ):
        server.wait_until_up(WAIT_S)
    assert len((tmp_path / "starts").read_text().splitlines()) == 2


def test_one_that_refuses_its_probe_for_good_is_given_up_at_once_with_what_it_said(start, tmp_path):
    def refused(port, timeout_s):
        ask(port, timeout_s=timeout_s)
        raise ProbeRefused("answered 400: no such\nparameter")

    server = start("serve", probe=refused, max_failures=2)
    with pytest.raises(ValueError, match=r"^the server refuses its probe question: answered 400: no such parameter$"):
        server.wait_until_up(WAIT_S)
    assert len((tmp_path / "starts").read_text().splitlines()) == 2
    assert_nothing_is_left(tmp_path)


def test_one_that_once_answered_is_never_given_up_and_starts_are_spaced_ever_further(start, tmp_path):
    server = start("serve", "crash", "crash", "crash", "serve", max_failures=1, first_backoff_s=0.05)
    first = server.wait_until_up(WAIT_S)
    ask(first, b"0")
    server.doubt(first)
    assert ask(server.wait_until_up(WAIT_S)) == b"!"
    assert server.restarts == 4
    times = [float(line) for line in (tmp_path / "starts").read_text().splitlines()]
    for number, backoff_s in enumerate((0.05, 0.1, 0.2, 0.4)):
        assert times[number + 1] - times[number] > backoff_s


def test_while_none_is_up_the_wait_ends_with_the_reason(start):
    server = start("serve", "crash", first_backoff_s=3600.0, max_backoff_s=3600.0)
    first = server.wait_until_up(WAIT_S)
    ask(first, b"0")
    wait_until(lambda: server.pid is None)
    with pytest.raises(
        RuntimeError, match=r"the server is down: ended with exit code 0: .*; it is being started again"
    ):
        server.wait_until_up(0.01)


def test_a_program_that_does_not_exist_is_one_clear_line(tmp_path):
    nowhere = ServerSettings(
        name="the server", command=lambda port: ["/no/such/program"], probe=probe, first_backoff_s=0.01
    )
    server = ChildServer(nowhere)
    with pytest.raises(
        ValueError, match=re.escape("exit code 127: /no/such/program cannot be run: [Errno 2] No such file")
    ):
        server.wait_until_up(WAIT_S)
    server.close()


def test_a_command_that_cannot_even_be_written_is_a_reason_and_not_a_silence():
    def broken(port):
        raise LookupError("no such setting")

    server = ChildServer(ServerSettings(name="the server", command=broken, probe=probe, first_backoff_s=0.01))
    with pytest.raises(ValueError, match=r"^the server cannot be run \(LookupError: no such setting\)$"):
        server.wait_until_up(WAIT_S)
    server.close()


def test_one_that_ignores_its_end_is_killed(start, tmp_path):
    server = start("stubborn")
    server.wait_until_up(WAIT_S)
    server.close()
    assert not assert_nothing_is_left(tmp_path).exists()
    with pytest.raises(RuntimeError, match="was closed"):
        server.wait_until_up(WAIT_S)


def test_it_dies_with_its_parent_even_when_that_is_killed(tmp_path):
    code = (
        "from pathlib import Path\n"
        "from llm_server.child_server import ChildServer\n"
        "from tests.llm_server.test_child_server import settings\n"
        f"ChildServer(settings(Path({str(tmp_path)!r}), 'serve')).wait_until_up(30)\n"
        "print('up', flush=True)\n"
        "input()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    scratch = assert_nothing_is_left(tmp_path)
    wait_until(lambda: not scratch.exists())
