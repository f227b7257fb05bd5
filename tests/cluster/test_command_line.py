"""Every mistake on the command line is one clear message and exit code 2, without a traceback, and leaves nothing
behind."""

import os
import sys
from pathlib import Path

import pytest

from cluster import cli
from cluster.cli import VERBS, main
from tests.refusals import assert_refused


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["unknown verb 'trian'", "did you mean 'train'", "eval"]),
        (["train", "--preset", "nethack_scor"], ["unknown preset", "did you mean 'nethack_score'"]),
        (["train", "--preset", "debug", "learner.gama=0.9"], ["unknown key learner.gama", "learner.gamma"]),
        (["train", "--preset", "debug", "seed=abc"], ["seed", "'abc'", "a whole number"]),
        (["train", "--preset", "debug", "learner.gamma=1.5"], ["learner.gamma", "1.5", "from 0 to"]),
        (["train", "--preset", "debug", "env.id=NetHackScor-v0"], ["NetHackScor-v0", "NetHackScore-v0"]),
        (["train", "--preset", "debug", "env.id=absent_module:Env-v0"], ["absent_module"]),
        (["train", "--preset", "debug", "env.captioner=info:note", "env.id=CartPole-v1"], ["note"]),
        (["train", "--preset", "debug", "annotator.rubric=nethack_progres"], ["nethack_progres", "nethack_progress"]),
        (
            ["train", "--preset", "debug", "service.engine=transformers", "service.model={absent}"],
            ["model", "absent-model"],
        ),
        (["train", "--preset", "debug", "policy.network=cnn"], ["cnn"]),
        (["train", "--preset", "debug", "learner.device=cuda:9"], ["learner.device", "cuda:9"]),
        (["train", "seed=1", "--preset", "debug", "run_dir=${HOME}/x"], ["run_dir"]),
        (["eval", "{absent}", "--seed", "-1"], ["--seed", "at least 0"]),
        (["eval", "{absent}"], ["no run at", "config.json"]),
        (["eval", "{absent}", "--episodes", "0"], ["--episodes", "at least 1"]),
        (["serve", "--model", "{absent}", "--port", "0"], ["absent-model"]),
        (
            ["serve", "--engine", "scripted", "--port", "0", "--address-file", "{absent}/x"],
            ["--address-file", "a folder that exists"],
        ),
        (["audit", "{absent}"], ["cannot read", "No such file"]),
        (["audit", "--min-auc", "7", "{absent}"], ["--min-auc", "7"]),
        (["annotate", "--out", "out.sqlite", "{absent}"], ["cannot read", "No such file"]),
        (["bench", "anotation"], ["unknown benchmark 'anotation'", "did you mean 'annotation'"]),
        (["doctor", "--preset", "debug", "learner.gama=0.9"], ["unknown key learner.gama", "learner.gamma"]),
        (["doctor", "--config", "{absent}"], ["absent-model"]),
        (["export", "{absent}"], ["no captions.sqlite", "delphi train"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [argument.replace("{absent}", str(tmp_path / "absent-model")) for argument in argv]
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    assert_refused(code, capsys.readouterr().err, *words)
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"delphi {verb}" in capsys.readouterr().out


def test_the_bare_command_and_keys_tell_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    help_ = capsys.readouterr().out
    assert all(verb in help_ for verb in VERBS)
    assert main(["train", "--keys"]) == 0
    assert "learner.max_policy_lag = 20" in capsys.readouterr().out


def test_a_reader_that_leaves_does_not_change_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    class Verb:
        @staticmethod
        def main(argv: list[str]) -> int:
            print("is not written before the end")
            return 1

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Verb)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["audit"]) == 1
