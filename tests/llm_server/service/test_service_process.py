"""The service as a child: started, watched, restarted, given up with the reason, never left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from configs.annotation_schema import ServiceConfig
from llm_server.client import AnnotationClient, AnnotationRefused, ServiceUnavailable
from llm_server.rubrics.loading import load_rubric
from llm_server.service.child import MAX_FAILED_STARTS, ServiceProcess, serve_command
from tests.llm_server.waiting import wait_until

PYTHON = sys.executable
SCRIPTED = ServiceConfig(engine="scripted", script="kill=0.9", store="memory")

# Stands in for the interpreter, so that each way of dying can be played; `ServiceProcess` runs it as it runs the
# service.
PROGRAM = """#!{python}
import signal, sys, time
from pathlib import Path
sys.argv.append("")
address_file = Path(sys.argv[sys.argv.index("--address-file") + 1])
print("starting up", file=sys.stderr, flush=True)
{behaviour}
"""
LISTEN = (
    "temporary = address_file.with_suffix('.new'); temporary.write_text('127.0.0.1:%d');"
    " temporary.rename(address_file); "
)
SERVE = LISTEN + "sys.stdin.read()"
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LISTEN + "time.sleep(600)"


@pytest.fixture
def make(tmp_path, monkeypatch):
    made = []

    def build(behaviour=None, config=SCRIPTED, clock=time.monotonic):
        if behaviour is not None:
            monkeypatch.setattr(sys, "executable", write_program(tmp_path, behaviour))
        made.append(ServiceProcess(config, ["nethack_progress"], tmp_path / "service.log", clock))
        return made[-1]

    yield build
    for process in made:
        process.close()


def write_program(folder, behaviour):
    program = folder / "program"
    program.write_text(PROGRAM.format(python=PYTHON, behaviour=behaviour))
    program.chmod(0o755)
    return str(program)


class SteppingClock:
    """Every reading is half a minute later, so that no back-off is waited for."""

    now = 0.0

    def __call__(self):
        self.now += 30.0
        return self.now


def address_of(process):
    wait_until(process.ensure_running)
    return process.address()


def test_it_is_unavailable_until_it_listens_and_nothing_is_left_after_close(make, tmp_path):
    process = make(SERVE % 1)
    with pytest.raises(ServiceUnavailable, match="starting"):
        process.address()
    assert address_of(process) == "127.0.0.1:1"
    pid = process.pid
    process.close()
    assert not psutil.pid_exists(pid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program", "service.log"]
    assert not process.ensure_running()
    assert "starting up" in (tmp_path / "service.log").read_text()


def test_a_killed_service_is_started_again_and_its_new_address_is_the_one_given(make, caplog, tmp_path):
    process = make(SERVE % 1)
    address_of(process)
    write_program(tmp_path, SERVE % 2)
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: not process.ensure_running())
    with pytest.raises(ServiceUnavailable):
        process.address()
    assert address_of(process) == "127.0.0.1:2"
    assert process.restarts == 1
    assert process.problem is None
    assert "exit code -9" in caplog.text


def test_a_configuration_error_is_final_at_once_and_told_in_the_services_own_words(make, caplog):
    process = make("print('no such rubric: x', file=sys.stderr); sys.exit(2)")
    wait_until(lambda: not process.ensure_running() and process.problem)
    assert "no such rubric: x" in process.problem
    assert process.restarts == 0
    with pytest.raises(AnnotationRefused, match="no such rubric: x"):
        process.address()
    assert caplog.text.count("no such rubric: x") == 1


def test_a_service_that_never_listens_is_given_up_after_some_attempts(make, caplog):
    process = make("raise SystemExit('out of memory')", clock=SteppingClock())
    with caplog.at_level(logging.ERROR):
        wait_until(lambda: not process.ensure_running() and process.problem)
    assert "exit code 1" in process.problem
    assert "out of memory" in process.problem
    assert process.restarts == MAX_FAILED_STARTS - 1


def test_a_service_that_answers_between_its_crashes_is_never_given_up(make):
    process = make((LISTEN % 1) + "sys.exit(1)", clock=SteppingClock())
    while process.restarts < 2 * MAX_FAILED_STARTS:
        process.ensure_running()
        process.served()
    assert process.problem is None


def test_attempts_are_spaced_ever_further(make, tmp_path):
    now = [0.0]
    process = make("sys.exit(1)", clock=lambda: now[0])
    starts = []
    while process.problem is None:
        before = process.pid, process.restarts
        process.ensure_running()
        if before[0] is None and process.pid is not None and process.restarts != (starts[-1][1] if starts else None):
            starts.append((now[0], process.restarts))
        if process.pid is None:
            now[0] += 0.125
        else:
            time.sleep(0.005)
    gaps = [later[0] - earlier[0] for earlier, later in pairwise(starts)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= 0.5
    assert gaps[-1] >= 2.0


def test_a_program_that_cannot_be_started_is_a_problem_not_an_exception(make, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    process = make(clock=SteppingClock())
    wait_until(lambda: not process.ensure_running() and process.problem)
    assert "/nowhere/python" in process.problem


def test_a_service_that_ignores_its_end_is_killed_within_five_seconds(make):
    process = make(STUBBORN % 1)
    address_of(process)
    pid, started = process.pid, time.monotonic()
    process.close()
    assert time.monotonic() - started < 5
    assert not psutil.pid_exists(pid)


def test_the_command_hands_on_every_setting_that_is_not_empty():
    command = serve_command(ServiceConfig(model="-odd", port=7, store=""), ["my_rubric", "other"])
    assert command[:3] == [sys.executable, "-m", "llm_server.serve"]
    assert {"--rubric=my_rubric", "--rubric=other", "--model=-odd", "--port=7", "--nice=10"} <= set(command)
    assert not any(argument.startswith("--store") for argument in command)
    assert "--endpoint-key-env=" in serve_command(ServiceConfig(endpoint_key_env=""), ["my_rubric"])


def test_the_real_service_serves_restarts_and_ends(make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it must not matter where the run was started
    process = make()

    def judge():
        client = AnnotationClient(address_of(process), load_rubric("nethack_progress"), timeout_s=10.0)
        try:
            return client.annotate([b"you kill the newt", b"a wall"])
        except ServiceUnavailable:
            return None
        finally:
            client.close()

    wait_until(judge)
    assert [round(judgement.probability, 2) for judgement in judge()] == [0.9, 0.1]
    first = process.pid
    assert psutil.Process(first).nice() >= 10
    os.kill(first, signal.SIGKILL)
    wait_until(judge)
    assert process.pid != first
    second = process.pid
    process.close()
    assert not psutil.pid_exists(second)


def test_the_real_service_says_why_it_cannot_start(make):
    process = make(config=ServiceConfig(engine="no_such_engine"))
    wait_until(lambda: not process.ensure_running() and process.problem)
    assert "no_such_engine" in process.problem
    assert process.restarts == 0


def test_the_real_service_dies_with_its_parent_even_when_that_is_killed(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from configs.annotation_schema import ServiceConfig;"
        "from llm_server.service.child import ServiceProcess;"
        "settings = ServiceConfig(engine='scripted', store='memory');"
        "p = ServiceProcess(settings, ['nethack_progress'], Path(sys.argv[1]));\n"
        "while not p.ensure_running(): time.sleep(0.01)\n"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [PYTHON, "-c", program, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, cwd=root
    ) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(timeout=10)


def test_the_first_start_and_the_first_restart_load_at_full_priority(make, tmp_path, monkeypatch):
    started = tmp_path / "started"
    behaviour = f"open({str(started)!r}, 'a').write(' '.join(sys.argv) + chr(10)); sys.exit(1)"
    process = make(behaviour, config=ServiceConfig(store="memory"), clock=SteppingClock())
    wait_until(lambda: process.ensure_running() or (started.exists() and len(started.read_text().splitlines()) >= 3))
    assert ["--nice-once-ready" in line for line in started.read_text().splitlines()][:3] == [True, True, False]


THREADS = """
import os, threading
from pathlib import Path
from llm_server.serve import be_nice
go = threading.Event()
thread = threading.Thread(target=go.wait, daemon=True)
thread.start()
before = os.getpriority(os.PRIO_PROCESS, 0)
be_nice(3)
print([os.getpriority(os.PRIO_PROCESS, int(task.name)) - before for task in Path("/proc/self/task").iterdir()])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux gives each thread a niceness of its own")
def test_a_service_becomes_nice_with_all_its_threads():
    done = subprocess.run([PYTHON, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[3, 3]"
