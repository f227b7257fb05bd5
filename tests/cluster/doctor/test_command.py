"""`delphi doctor` through the command line: what is wrong is found, and the advice is the right one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import cli
from cluster.doctor import command, environment, label_rate, machine, packages, ray_cluster
from cluster.doctor import service as service_checks
from cluster.doctor.result import ok
from cluster.doctor.subject import Subject
from configs.annotation_schema import AccessConfig
from configs.loading import load_config
from llm_server.credentials import CredentialFiles, make_credentials
from llm_server.rubrics.loading import load_rubric
from tests.cluster.examined import examine, quiet_surroundings
from tests.head_node import free_port
from tests.llm_server.running_service import RunningService

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_surroundings(tmp_path, monkeypatch)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A scripted annotation service of the default rubric, and its address."""
    file = tmp_path / "address"
    command = [
        sys.executable,
        "-m",
        "llm_server.serve",
        "--engine=scripted",
        "--store=memory",
        "--port=0",
        f"--address-file={file}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not file.exists() or service_checks.unreachable(file.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, file.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_default_set_up_on_this_machine_has_nothing_that_fails() -> None:
    command = [sys.executable, "-m", "cluster.cli", "doctor", "--json", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    report = json.loads(result.stdout)
    assert result.returncode == 0, [result for result in report["checks"] if result["status"] == "failed"]
    assert report["configuration"] == "nethack_score"
    found = {result["check"]: result["found"] for result in report["checks"]}
    assert "single tokens" in found["judge"]
    assert "seeds are kept" in found["environment"]
    assert {
        "python",
        "packages",
        "torch",
        "machine",
        "run directory",
        "temporary files",
        "object store",
        "ray",
        "ports",
    } <= found.keys()
    assert "with the extras local-llm, nle" in found["packages"]


def test_lines_for_people_end_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--preset", "debug", f"service.model={'/absent'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok       python")
    assert "checks in" in lines[-1]


def test_a_service_that_answers_and_one_that_was_stopped(
    service: tuple[subprocess.Popen, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = service
    monkeypatch.setattr(service_checks, "ANSWER_TIMEOUT_S", 2.0)
    code, results = examine(capsys, f"annotator.address={address}")
    assert code == 0
    assert "answered in" in results["annotation service"][0]["found"]
    process.send_signal(signal.SIGSTOP)
    code, results = examine(capsys, f"annotator.address={address}")
    assert code == 1
    assert "did not answer within 2 s" in results["annotation service"][0]["found"]
    assert "it hangs" in results["annotation service"][0]["advice"]
    process.send_signal(signal.SIGCONT)
    process.terminate()
    process.wait()
    code, results = examine(capsys, f"annotator.address={address}")
    assert code == 1
    (result,) = results["annotation service"]
    assert result["status"] == "failed"
    assert f"{address}: nothing listens there" in result["found"]
    assert f"delphi serve --rubric nethack_progress --port {address.rpartition(':')[2]}" in result["advice"]


def test_a_service_with_another_rubric(
    service: tuple[subprocess.Popen, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, results = examine(capsys, f"annotator.address={service[1]}", "annotator.rubric=nethack_gold")
    assert code == 1
    assert "judges by rubric 'nethack_progress'" in results["annotation service"][0]["found"]
    assert "delphi serve --rubric nethack_gold" in results["annotation service"][0]["advice"]


@pytest.mark.parametrize(
    ("address", "words"), [("127.0.0.1", "wanted host:port"), ("absent.invalid:7431", "absent.invalid:7431: ")]
)
def test_an_address_that_is_none(address: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, f"annotator.address={address}")
    assert code == 1
    assert words in results["annotation service"][0]["found"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[tuple[str, CredentialFiles]]:
    """A service that wants TLS and a token."""
    files = make_credentials(tmp_path / "credentials")
    access = AccessConfig(tls_cert=str(files.server_cert), tls_key=str(files.server_key), token_file=str(files.token))
    service = RunningService(load_rubric("nethack_progress"), access=access)
    yield service.address, files
    service.close()


def test_tls_and_token_errors_in_words(
    guarded: tuple[str, CredentialFiles],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_checks, "ANSWER_TIMEOUT_S", 5.0)
    address, files = guarded
    (tmp_path / "wrong").write_text("another-token-than-the-service-has")
    other = make_credentials(tmp_path / "other")

    def service(*settings: str) -> dict[str, Any]:
        return examine(capsys, f"annotator.address={address}", *settings)[1]["annotation service"][0]

    tls, token = f"annotator.tls_ca={files.ca}", f"annotator.token_file={files.token}"
    result = service(tls, token)
    assert result["status"] == "ok", result
    for settings, words, advice in (
        ((), "annotator.tls_ca", "tls_ca"),
        ((tls,), "UNAUTHENTICATED", "annotator.token_file"),
        ((tls, f"annotator.token_file={tmp_path / 'wrong'}"), "UNAUTHENTICATED", "annotator.token_file"),
        ((f"annotator.tls_ca={other.ca}", token), "not signed by the CA", "tls_ca"),
        ((f"annotator.tls_ca={tmp_path / 'absent.pem'}", token), "absent.pem", "annotator.*"),
    ):
        result = service(*settings)
        assert result["status"] == "failed", settings
        assert words in result["found"], result
        assert advice in result["advice"], result


def test_each_of_several_services_is_asked(
    service: tuple[subprocess.Popen, str], capsys: pytest.CaptureFixture[str]
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    code, results = examine(capsys, f"annotator.address='{service[1]},{dead}'")
    assert code == 1
    assert [result["status"] for result in results["annotation service"]] == ["ok", "failed"]
    assert dead in results["annotation service"][1]["found"]


def test_something_else_that_listens_where_the_service_should(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_checks, "ANSWER_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code, results = examine(capsys, f"annotator.address=127.0.0.1:{listener.getsockname()[1]}")
    assert code == 1
    assert results["annotation service"][0]["status"] == "failed"


LOCAL = ("cluster.mode=local", "service.engine=scripted", "service.store=memory")


def test_an_occupied_port_and_who_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, results = examine(capsys, *LOCAL, f"service.port={port}", "cluster.dashboard=false")
    assert code == 1
    (result,) = results["ports"]
    assert f"service.port={port} is taken by process {os.getpid()}" in result["found"]
    assert "service.port=0" in result["advice"]
    code, results = examine(capsys, *LOCAL, f"service.port={port}", "cluster.dashboard=false")
    assert code == 0, "free again"
    assert f"{port} is free" in results["ports"][0]["found"]


def test_a_port_that_an_annotation_service_has(
    service: tuple[subprocess.Popen, str], capsys: pytest.CaptureFixture[str]
) -> None:
    process, address = service
    code, results = examine(capsys, *LOCAL, f"service.port={address.rpartition(':')[2]}", "cluster.dashboard=false")
    assert code == 1
    assert f"process {process.pid}" in results["ports"][0]["found"]
    assert f"annotator.address={address}" in results["ports"][0]["advice"]


def test_a_taken_dashboard_port_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(ray_cluster, "DASHBOARD_PORT", listener.getsockname()[1])
        code, results = examine(capsys, *LOCAL)
    assert code == 0
    assert results["ports"][0]["status"] == "warning"
    assert "next free port" in results["ports"][0]["advice"]


def test_a_host_that_is_not_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, *LOCAL, "service.host=192.0.2.1", "service.port=7431", "cluster.dashboard=false")
    assert code == 1
    assert "an address of this machine" in results["ports"][0]["advice"]


def test_a_run_directory_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, results = examine(capsys, f"run_dir={tmp_path / 'file' / 'run'}")
    assert code == 1
    assert "run_dir=" in results["run directory"][0]["advice"]


def test_a_disk_that_the_run_would_fill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(capsys, f"run_dir={tmp_path / 'run'}", "checkpoint.keep=9999")
    assert code == 1
    assert "make room" in results["run directory"][0]["advice"]
    assert "9999 checkpoints of" in results["run directory"][0]["found"]


def test_checkpoints_are_reckoned_by_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = tmp_path / "run" / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "learner.safetensors").write_bytes(b"x" * 77_000_000)
    assert "checkpoints of 77 MB" in examine(capsys, f"run_dir={tmp_path / 'run'}")[1]["run directory"][0]["found"]


def test_a_store_of_judgements_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    _, results = examine(capsys, f"service.store={tmp_path / 'store.sqlite'}")
    assert results["judgement store"][0]["status"] == "warning"
    assert "damaged" in results["judgement store"][0]["found"]
    assert (tmp_path / "store.sqlite").exists(), "the doctor moves nothing"


@pytest.mark.parametrize(
    ("size", "status", "word"),
    [(1_000_000, "failed", "no less than"), (80_000_000, "warning", "slow"), (0, "ok", "/dev/shm")],
)
def test_an_object_store_that_is_too_small(
    size: int, status: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    large = ("actors.envs_per_worker=256", "actors.rollout_steps=32", "learner.rollouts_per_batch=1")
    _, results = examine(capsys, *LOCAL, *large, f"cluster.object_store_bytes={size}")
    (result,) = results["object store"]
    if shutil.disk_usage("/dev/shm").free > 1e9:
        assert result["status"] == status
        assert word in result["found"] + result["advice"]


def test_more_workers_than_cores(capsys: pytest.CaptureFixture[str]) -> None:
    _, results = examine(
        capsys, *LOCAL, "actors.num_workers=16", "actors.envs_per_worker=1", "learner.rollouts_per_batch=4"
    )
    cores = len(os.sched_getaffinity(0))
    if cores < 17:
        assert f"actors.num_workers={max(1, cores - 1)}" in results["machine"][0]["advice"]


def test_more_environments_than_memory(capsys: pytest.CaptureFixture[str]) -> None:
    code, results = examine(
        capsys, *LOCAL, "actors.envs_per_worker=65536", "env.share_engine_code=false", "actors.rollout_steps=1"
    )
    assert code == 1
    assert "actors.envs_per_worker" in results["machine"][0]["advice"]


CONNECT = ("cluster.mode=connect", "run_dir=/tmp/delphi-doctor-test")


def test_no_cluster_a_dead_one_and_one_that_another_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    code, results = examine(capsys, *CONNECT)
    assert code == 1
    assert "no cluster is known here" in results["ray"][0]["found"]
    assert "ray start --head" in results["ray"][0]["advice"]
    dead = f"127.0.0.1:{free_port()}"
    code, results = examine(capsys, *CONNECT, f"cluster.address={dead}")
    assert code == 1
    assert f"cluster.address={dead}: nothing listens there" in results["ray"][0]["found"]
    (tmp_path / "left").write_text(dead)
    monkeypatch.setattr(ray_cluster, "CURRENT_CLUSTER", tmp_path / "left")
    code, results = examine(capsys, *CONNECT)
    assert code == 1
    assert "is left over: `ray stop`, and delete it" in results["ray"][0]["advice"]
    monkeypatch.setenv("RAY_ADDRESS", f"http://{dead}")
    code, results = examine(capsys, *CONNECT)
    assert code == 1
    assert f"RAY_ADDRESS=http://{dead}" in results["ray"][0]["found"]
    assert "dashboard" in results["ray"][0]["advice"]
    monkeypatch.setenv("RAY_ADDRESS", f"ray://{dead}")
    assert "submit instead" in examine(capsys, *CONNECT)[1]["ray"][0]["advice"]


def test_something_that_is_no_cluster(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "JOIN_TIMEOUT_S", 4.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code, results = examine(capsys, *CONNECT, f"cluster.address=127.0.0.1:{listener.getsockname()[1]}")
    assert code == 1
    assert "could not be joined within 4 s" in results["ray"][0]["found"]


def test_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def token(*settings: str) -> dict[str, Any]:
        return examine(capsys, *settings)[1]["ray token"][0]

    assert token(*LOCAL)["status"] == "ok"
    assert "without a token" in token(*CONNECT)["advice"]
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert token(*CONNECT)["status"] == token(*LOCAL)["status"] == "failed"
    assert "ray get-auth-token --generate" in token(*LOCAL)["advice"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-word")
    assert token(*CONNECT)["status"] == "ok"
    assert "secret-word" not in str(token(*CONNECT))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_MODE")
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("left behind")
    assert token(*CONNECT)["status"] == "warning"
    assert "an earlier cluster left" in token(*CONNECT)["found"]
    assert "later `ray start` will ask for it" in token(*LOCAL)["found"]
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    assert "does not know" in token(*LOCAL)["found"]


@pytest.mark.parametrize(
    ("env_id", "extras"),
    [
        ("Delphi/NetHackOracle-v0", {"nle"}),
        ("MiniHack-Room-5x5-v0", {"nle", "minihack"}),
        ("MiniGrid-DoorKey-8x8-v0", {"minigrid"}),
        ("BabyAI-GoToObj-v0", {"minigrid"}),
        ("CartPole-v1", set()),
    ],
)
def test_extras_are_those_of_the_environment(env_id: str, extras: set[str]) -> None:
    config = load_config(preset="debug", overrides=[f"env.id={env_id}"])
    assert packages.needed_extras(Subject(config)) == extras


def test_packages_that_are_missing_too_old_or_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[project]\ndependencies = ['numpy>=99', 'absent-package>=1', 'rich']\n"
        "[project.optional-dependencies]\nnle = ['absent-game']\nminihack = ['absent-hack']\nlocal-llm = []\n"
    )
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    monkeypatch.setattr(
        packages, "_broken_imports", lambda names: {"rich": "ImportError: no"} if "rich" in names else {}
    )
    code, results = examine(capsys)
    assert code == 1
    found = results["packages"][0]["found"]
    assert "missing: absent-package>=1, absent-game" in found
    assert "numpy" in found
    assert "wanted >=99" in found
    assert "rich cannot be imported (ImportError: no)" in found
    assert "absent-hack" not in found, "only extras that this configuration uses"
    assert "pip install" in results["packages"][0]["advice"]


def test_imports_are_tried_where_a_broken_one_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    (tmp_path / "half_installed.py").write_text("raise OSError('libabsent.so: cannot open\\nshared object')")
    (tmp_path / "deadly.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = packages._broken_imports(["json", "half_installed", "not_there_at_all"])
    assert broken.keys() == {"half_installed", "not_there_at_all"}
    assert "libabsent.so: cannot open shared object" in broken["half_installed"]
    assert "ended with 7" in str(packages._broken_imports(["json", "deadly"]))


def test_an_environment_that_cannot_be_seeded(capsys: pytest.CaptureFixture[str]) -> None:
    _, results = examine(capsys, "env.id=tests.toy_environments:Corridor-v0", "env.options={slip: 0.3}")
    assert "seeds are kept" in results["environment"][0]["found"]
    _, results = examine(capsys, "env.id=NetHackChallenge-v0")
    assert results["environment"][0]["status"] == "warning"
    assert "another game" in results["environment"][0]["found"]


def test_an_environment_that_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _, results = examine(capsys, "env.id=CartPole-v1", "env.captioner=tests.toy_environments:say_nothing")
    assert "set env.captioner" in results["environment"][0]["advice"]


def test_a_check_that_fails_is_a_result_and_the_others_still_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(subject: object) -> None:
        raise RuntimeError("no\nreason")

    monkeypatch.setattr(machine, "check_torch", explode)
    code, results = examine(capsys)
    assert code == 1
    assert "RuntimeError: no reason" in results["torch"][0]["found"]
    assert "judgement store" in results


def test_what_several_checks_find_wrong_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, results = examine(capsys, "--quick", "reward_model.goal_once_per_episode=true", "reward_model.name=retrieval")
    found = {name: result[0]["found"] for name, result in results.items() if result[0]["status"] == "failed"}
    first, *others = [name for name, text in found.items() if "goal_once_per_episode" in text]
    assert not others
    assert sum(text == f"cannot be checked, for the reason at `{first}`" for text in found.values()) > 2


@pytest.mark.parametrize(
    ("mode", "is_quick", "left_out"),
    [
        ("local", False, set()),
        ("inline", False, {"check_object_store", "check_token"}),
        ("connect", True, {"check_object_store", "check_label_rate"}),
    ],
)
def test_every_check_is_made_once_where_it_applies_under_the_name_that_the_table_gives_it(
    mode: str, is_quick: bool, left_out: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, known = [], set()
    for module in (environment, label_rate, machine, packages, ray_cluster, service_checks):
        for name, check in list(vars(module).items()):
            if name.startswith("check_") and check.__module__ == module.__name__:
                known.add(name)
                monkeypatch.setattr(module, name, lambda subject, name=name: made.append(name) or ok(name))
    config = load_config(preset="debug", overrides=[f"cluster.mode={mode}", "run_dir=/tmp/delphi-doctor-test"])
    results = list(command.examine(config, is_quick=is_quick))
    assert sorted(made) == sorted(known - left_out)
    assert [result.found for result in results] == made
    assert len({result.check for result in results} - {""}) == len(made), "each has a name of its own"


def test_a_missing_dependency_of_the_doctor_itself_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "configs.loading", None)
    assert cli.main(["doctor"]) == 1
    error = capsys.readouterr().err
    assert "packages are missing" in error
    assert "make setup" in error
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cluster.doctor.service", None)
    assert command.main(["--preset", "debug", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["check"] == "packages"
