"""`delphi design`: bad input in one line, and whole campaigns, one of them with real runs that are killed."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.design.command import main
from cluster.design.kind import kind_names
from cluster.design.runs import run_of
from configs.loading import to_dict
from learner.episodes import EPISODES_FILE, Episodes, encode_episodes
from tests.cluster.design.scripted_campaign import BASE, BROKEN, ScriptedTrainer, make_episode
from tests.refusals import assert_refused
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
        (["--programs", "POOL", "learner.device=cuda:77"], "learner.device"),
        (["--programs", "POOL", "policy.instruction=mission"], "mission"),
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
def test_the_example_of_the_manual_works_and_terms_and_goals_of_the_configuration_are_left_out(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("cluster.design.campaign.run_of", lambda *a, **k: seen.append(run_of(*a, **k)) or seen[-1])
    blocks = re.findall(r"```\w+\n# (\S+)\n(.*?)```", (ROOT / "docs" / "programs.md").read_text(), re.DOTALL)
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    command = ["--kind", "card", "--rounds", "1", "--programs", str(pool), "--out", str(tmp_path / "out")]
    command += ["--config", "mountaincar.yaml"]
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith("delphi design: terms.climb of the configuration left out")
    assert {tuple(run.terms) for run in seen} == {("design",)}
    goals = ["goals.sources=[config]", "goals.texts=[reach the flag]", "goals.task=Reach the flag."]
    goals += ["env.captioner=tests.toy_environments:say_nothing", "policy.reads_goal=true"]
    command[command.index("--out") + 1] = str(tmp_path / "goals")
    seen.clear()
    assert main([*command, *goals]) == 0
    assert "terms.climb, goals of the configuration left out" in capsys.readouterr().err
    assert not any(run.goals.sources or run.policy.reads_goal for run in seen)
    assert "# Campaign: Reach the flag." in (tmp_path / "goals" / "report.md").read_text()


@pytest.mark.parametrize("kind", kind_names())
def test_the_check_of_a_run_has_a_program_of_the_form_of_every_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    assert main(flags(tmp_path, "--kind", kind, "--task", "x", "--max-env-steps", "1")) == 2
    assert "--max-env-steps: got 1, wanted at least" in capsys.readouterr().err


def test_an_archive_of_another_environment_is_refused(
    tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, made = tmp_path / "run", make_episode([[0, 1], [2, 1]])
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(BASE)))
    for names, actions, message in (
        (
            ("x", "velocity"),
            (),
            "1 episodes with the features x, velocity, wanted at least one with position, velocity",
        ),
        (("position", "velocity"), ("left", "right"), "the actions left, right, wanted those of the environment here:"),
    ):
        episodes = Episodes(episodes=[made], seen=(1, 0), features=names, actions=actions)
        (run / EPISODES_FILE).write_bytes(encode_episodes(episodes))
        assert main(flags(tmp_path, "--programs", str(pool), "--archive", str(run))) == 2
        assert_refused(2, capsys.readouterr().err, "--archive: ", message)


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
