"""`python -m llm_server.serve`: its address, one-line errors, and its end."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_server import serve
from llm_server.client import AnnotationClient, ServiceUnavailable
from llm_server.rubrics.loading import load_rubric

HERE = ("--store=memory", "--port=0")


def command(*arguments):
    return [sys.executable, "-m", "llm_server.serve", *HERE, *arguments]


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            command(f"--address-file={tmp_path / 'address'}", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline(), tmp_path / "address"

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--engine=scripted", "--rubric=no_such"], "no rubric 'no_such'"),
        (["--engine=scripted", "--rubric=nethack_gold", "--rubric=BROKEN"], "rubric 'BROKEN': missing id"),
        (["--engine=transformer"], "did you mean 'transformers'"),
        (["--model=/no/such/folder"], "model folder '/no/such/folder' does not exist"),
        (["--engine=scripted", "--host=0.0.0.0"], "--insecure-listen-anywhere"),
        (["--engine=scripted", "--port=70000"], "--port: got 70000, wanted a number from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, complaint, tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("goal: Nothing.")
    arguments = [argument.replace("BROKEN", str(broken)) for argument in arguments]
    complaint = complaint.replace("BROKEN", str(broken))
    assert serve.main([*HERE, *arguments]) == 2
    assert_one_line(complaint, capsys.readouterr().err)


def test_so_is_a_store_that_cannot_be_opened_and_the_process_ends():
    settings = ["--engine=scripted", "--store=/proc/no/such.sqlite"]
    result = subprocess.run(command(*settings), capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert_one_line("judgement store '/proc/no/such.sqlite' cannot be opened", result.stderr)


def assert_one_line(complaint, error):
    assert complaint in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_an_endpoint_that_is_away_is_one_line_and_an_exit_code_after_which_a_run_tries_again():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    settings = ["--engine=openai", "--model=m", f"--endpoint={url}", "--endpoint-key-env=", "--engine-timeout-s=1"]
    result = subprocess.run(command(*settings), capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "cannot be reached (ConnectError" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_at_the_address_it_wrote_and_ends_on_a_signal(start, number):
    process, first_line, address_file = start("--engine=scripted", "--script=newt=0.8")
    address = address_file.read_text()
    assert address in first_line
    assert "loading" not in first_line, "a script loads no model"
    assert "serving scripted" in process.stdout.readline()
    client = AnnotationClient(address, load_rubric("nethack_progress"), 10.0)
    assert [round(judgement.probability, 3) for judgement in client.annotate([b"a newt", b"a wall"])] == [0.8, 0.1]
    began = time.monotonic()
    process.send_signal(number)
    assert process.wait(60) == 0
    assert time.monotonic() - began < 5
    with pytest.raises(ServiceUnavailable):
        client.annotate([b"a newt"])
    client.close()


def test_it_ends_at_once_while_the_model_is_loading(start):
    process, first_line, _ = start("--model=smollm2")
    assert "loading smollm2" in first_line
    maps = Path(f"/proc/{process.pid}/maps")
    while (
        "model.safetensors" not in maps.read_text()
    ):  # in the midst of it: ended in the ordinary way, the interpreter would abort
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert time.monotonic() - began < 5


def test_several_rubrics_are_served_at_once(start):
    process, _, address_file = start("--engine=scripted", "--rubric=nethack_gold", "--rubric=minihack_subgoal")
    served = [process.stdout.readline() for _ in range(2)]
    assert ["rubric nethack_gold" in served[0], "rubric minihack_subgoal" in served[1]] == [True, True]
    for name, about in (("nethack_gold", ""), ("minihack_subgoal", "open the door")):
        client = AnnotationClient(address_file.read_text(), load_rubric(name), 10.0, about=about)
        assert client.describe().rubric_id == name
        assert len(client.annotate([b"The door opens."])) == 1
        client.close()
