"""`delphi design`: bad input in one line, and whole campaigns, one of them with real runs that are killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.design.command import main
from tests.cluster.design.scripted_campaign import BROKEN, ScriptedTrainer
from tests.run_processes import ROOT, wait_until

SETTINGS = [
    "env.id=MountainCar-v0",
    "env.captioner=tests.toy_environments:say_nothing",
    "env.features=[obs]",
    "env.feature_names=[position,velocity]",
    "actors.envs_per_worker=4",
    "actors.rollout_steps=25",
    "policy.core=none",
    "policy.hidden_size=16",
    "logging.interval_env_steps=500",
]
POWER = (
    "def reward(before, after, start, action):\n    return {'power': ((action == 2) - (action == 0)) * before.velocity}"
)
TEXTS = [POWER, BROKEN, "3 * after.position", "(3 * after.position)", "6 * after.velocity"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.design.runs.TrialTrainer", lambda *_: ScriptedTrainer())


def flags(folder: Path, *more: str) -> list[str]:
    return [*more, "--out", str(folder / "out"), "--steps", "1000", *SETTINGS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "eurka"], "--kind: got 'eurka' (did you mean 'eureka'?), wanted auto_mc_reward"),
        (["--programs", "POOL", "--rounds", "0"], "kind 'eureka': rounds: got 0, wanted a number from 1 to 1000"),
        (["--programs", "POOL", "--jobs", "0"], "--jobs: got 0, wanted at least 1"),
        (["--programs", "POOL", "env.features=[]", "env.feature_names=[]"], "env.features: got none, wanted blstats"),
        (["--programs", "POOL", "--max-env-steps", "999"], "--max-env-steps: got 999, wanted at least 1000: one"),
        (["--programs", "/nowhere"], "--programs: /nowhere cannot be read"),
        (["--programs", "POOL", "--critic"], "--critic: got it with --programs, wanted one of the two"),
        (["--programs", "POOL", "--select", "judge"], "--select judge: got it with --programs"),
        (["--programs", "POOL", "--feedback", "x"], "--feedback: got it with --programs"),
        (["--programs", "POOL", "--archive", "/nowhere"], "no run at /nowhere"),
        (["--programs", "POOL", "--preset", "minigrid"], "unknown preset 'minigrid'"),
        (["--programs", "POOL", "env.id=MountainCarr-v0"], "MountainCar-v0"),
        (["--programs", "POOL", "terms.design.coefficient=2"], "terms.design"),
        (["--shuffle", "--task", "x"], "--shuffle: got it without --programs"),
        ([], "--task: got none, wanted the task in one sentence"),
        (["--task", "x", "service.engine=none"], "the annotation service cannot write"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    options = [str(pool) if option == "POOL" else option for option in options]
    overrides = [option for option in options if "=" in option]
    options = [option for option in options if "=" not in option]
    assert main([*flags(tmp_path, *options), *overrides]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("delphi design: ")]
    assert message in line


@pytest.mark.usefixtures("_scripted")
def test_a_campaign_over_a_file_of_programs_ends_with_its_winner(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(tmp_path, "--programs", str(pool), "--kind", "card", "--rounds", "5")
    assert main(command) == 0
    program, file, report = capsys.readouterr().out.splitlines()
    assert program == "program 5.1: return 6"
    assert "6 * after.velocity" in Path(file).read_text()
    assert "5 rounds of 1 programs" in Path(report).read_text()
    written = (tmp_path / "out" / "campaign.jsonl").read_bytes()
    assert main(command) == 0  # once more: nothing is left to do
    assert (tmp_path / "out" / "campaign.jsonl").read_bytes() == written
    assert main([*command, "--steps", "2000"]) == 2
    assert "holds another campaign: steps: 1000 -> 2000. Give the same settings" in capsys.readouterr().err
    assert main([*command, "--jobs", "2", "--rounds", "6", "--max-env-steps", "9000"]) == 0
    assert "the file of programs has no more than 5" in capsys.readouterr().err


@pytest.mark.usefixtures("_scripted")
def test_a_scripted_writer_makes_a_campaign_with_remarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [
        {"brief": "write_reward", "matches": "person:\n- faster", "texts": ["```\n6 * after.velocity\n```"]},
        {"brief": "write_reward", "matches": "Reach", "texts": ["2 * after.position"]},
    ]
    script = tmp_path / "script"
    script.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    writer = ["service.engine=scripted", f"service.script_writings={script}", "service.store=memory"]
    command = [*flags(tmp_path, "--kind", "text2reward", "--task", "Reach the flag."), *writer]
    assert main(command) == 0
    assert main([*command, "--feedback", "faster"]) == 0
    assert main([*command, "--feedback", "faster"]) == 0  # the same remark is no other one
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("program")]
    assert told == ["program 1.1: return 2", "program 2.1: return 6", "program 2.1: return 6"]


@pytest.mark.usefixtures("_scripted")
def test_a_writer_that_never_writes_a_program_ends_the_campaign_with_a_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text(json.dumps({"brief": "write_reward", "matches": ".", "texts": ["I would like to help."]}))
    writer = ["service.engine=scripted", f"service.script_writings={script}", "service.store=memory"]
    assert main([*flags(tmp_path, "--kind", "text2reward", "--task", "Reach the flag."), *writer]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("delphi design: no winner: none of 3 writings is a program (the last one: line 1, column")
    assert "take a larger model (service.model, writer.address), or give --programs FILE" in line


@pytest.mark.slow
def test_a_real_campaign_that_is_killed_and_interrupted_goes_on_to_its_winner(tmp_path: Path, pool: Path) -> None:
    evaluation = ["--episodes", "4", "--envs", "4"]
    options = flags(tmp_path, "--programs", str(pool), "--rounds", "1", "--samples", "5", "--jobs", "2", *evaluation)
    command, out = [sys.executable, "-m", "cluster.cli", "design", *options], tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def lines() -> int:
        return len((out / "campaign.jsonl").read_text().splitlines()) if (out / "campaign.jsonl").exists() else 0

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        wait_until(lambda: (out / "runs" / "1.1" / "0" / "metrics.jsonl").exists(), process, tmp_path / "log", 120)
        process.kill()
        process.wait()
        before = lines()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        wait_until(lambda: lines() > before, process, tmp_path / "log", 120)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) in (0, 1)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 0, ended.stderr
    records = [json.loads(line) for line in (out / "campaign.jsonl").read_text().splitlines()]
    trained = {record["of"]["program"]: record["outcome"] for record in records if record["step"] == "train"}
    assert len(trained) == sum(record["step"] == "train" for record in records) == 3
    assert all(outcome["env_steps"] == 1000 and not outcome["problem"] for outcome in trained.values())
    assert "component power" in trained["1.1"]["curves"]
    assert ended.stdout.startswith("program 1.1: return -200")
