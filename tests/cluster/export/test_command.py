"""Folders exported from real runs, loaded again as a user loads them."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml

from actors.environments.factory import make_environment
from actors.environments.vector import SeedStream
from actors.policy import PolicyNet
from cluster.export.command import main
from cluster.export.folder import CARD, write_reward
from cluster.export.model_card import reward_card
from cluster.export.portable import pickled_parts
from configs.loading import from_dict, load_config, to_dict
from configs.schema import EnvConfig, PolicyConfig, RunConfig
from learner.checkpoint import load_latest, save_checkpoint
from learner.evaluation import PolicyPlayer
from learner.exported import load_policy, load_reward
from llm_server.annotation import Caption, JudgedCaption, Judgement, Status
from reward_models.building import build_reward_model
from reward_models.shaping import RewardShaping

NETHACK_KEYS = ("glyphs", "chars", "colors", "blstats", "message", "inv_letters", "inv_oclasses")
BEFORE = Path(__file__).parents[2] / "end_to_end/run_before"


def estimate(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1}


EVALUATION = {
    "env_steps": 1024,
    "environment": "CartPole-v1",
    "episodes": 9,
    **{player: {"return": estimate(mean)} for player, mean in (("policy", 30.0), ("blind", 20.0), ("random", 19.0))},
}


def run_of(path: Path, config: RunConfig, annotation: dict[str, Any] | None = None) -> Path:
    """A run directory with a checkpoint of an untrained policy."""
    env = make_environment(config.env, num_envs=1, run_seed=0, worker_index=0, policy=config.policy)
    torch.manual_seed(1)
    net = PolicyNet(env.spec, config.policy)
    env.close()
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    state = {"learner": {"weights": weights}, "annotation": annotation or {}, "loop": {"env_steps": 5}}
    save_checkpoint(path / "checkpoints", 5, state, keep=1)
    (path / "config.json").write_text(json.dumps(to_dict(config)))
    return path


def weights_of(run: Path) -> dict[str, Any]:
    state = load_latest(run / "checkpoints")
    assert state is not None
    return state["learner"]["weights"]


def test_an_exported_policy_acts_as_the_evaluations_player_does(tmp_path: Path) -> None:
    folder = tmp_path / "cart"
    assert main([str(BEFORE), "--policy", "--out", str(folder)]) == 0
    shutil.move(folder, tmp_path / "moved")  # the folder is all that it needs
    policy = load_policy(tmp_path / "moved", seed=3)
    config = from_dict(json.loads((BEFORE / "config.json").read_text()))
    env = make_environment(config.env, num_envs=1, run_seed=0, worker_index=0, stream="eval", policy=config.policy)
    net = PolicyNet(env.spec, config.policy)
    net.load_state_dict({name: torch.as_tensor(array) for name, array in weights_of(BEFORE).items()})
    player, seen = PolicyPlayer(net, 1, seed=3), []
    step = net.step
    net.step = lambda *args: (seen.append(step(*args)), seen[-1])[1]  # type: ignore[method-assign, func-returns-value]
    obs, _ = env.reset()
    for _ in range(60):
        given = {name: array.copy() for name, array in obs.items()}
        (wanted,) = player.act(given, np.ones(1, bool))
        core = {name: tensor.clone() for name, tensor in policy._core.items()}
        logits, value = policy.evaluate(given["obs"][0])
        assert np.array_equal(logits, seen[-1][0][0].numpy()), "bit for bit"
        assert value == float(seen[-1][1][0])
        policy._core = core
        assert policy.act(given["obs"][0]) == wanted
        taken = env.step(np.array([wanted]))
        if taken.ends:
            player.restart([0])
            policy.reset()
        obs = taken.obs
    env.close()


@pytest.mark.parametrize("network", ["glyph_crop", "nethack_full", "rendered_crop"])
def test_on_nethack_it_reads_the_games_own_observations(tmp_path: Path, network: str) -> None:
    policy = PolicyConfig(network=network, core_size=8, hidden_size=8, embedding_size=4, previous_action=True)
    config = dataclasses.replace(load_config(preset="debug"), env=EnvConfig(), policy=policy)
    run = run_of(tmp_path / "run", config)
    is_portable = network == "nethack_full"
    form = ["--format", "torch-export"] if is_portable else []
    assert main([str(run), "--policy", "--out", str(tmp_path / "out"), *form]) == 0
    loaded = load_policy(tmp_path / "out")
    env = make_environment(config.env, num_envs=1, run_seed=4, worker_index=0, stream="eval", policy=config.policy)
    single = gymnasium.make(config.env.id, observation_keys=NETHACK_KEYS, fix_moon_phase=True, disable_env_checker=True)
    seeds = SeedStream(run_seed=4, stream="eval", worker_index=0)
    single.unwrapped.seed(seeds.seed(0, 0, "core"), seeds.seed(0, 0, "disp"), reseed=False)
    own, _ = single.reset()
    net = PolicyNet(env.spec, config.policy)
    net.load_state_dict({name: torch.as_tensor(array) for name, array in weights_of(run).items()})
    core = net.initial_state(1)
    obs, _ = env.reset()
    rng = np.random.default_rng(0)
    steps: list[tuple[dict[str, Any], Any]] = []
    assert len(loaded.action_names) == env.spec.num_actions
    for _ in range(25):
        tensors = {name: torch.from_numpy(array.copy()) for name, array in obs.items()}
        with torch.no_grad():
            logits, _, core = net.step(tensors, core)
        steps.append(({name: tensor.tolist() for name, tensor in tensors.items()}, logits.tolist()))
        np.testing.assert_array_equal(loaded.evaluate(own)[0], logits[0].numpy())
        action = int(rng.integers(env.spec.num_actions))
        loaded._last_action = action + 1
        taken = env.step(np.array([action]))
        own, _, terminated, truncated, _ = single.step(action)
        assert [*taken.ends, terminated, truncated] == [False, False], "the game goes on"
        obs = taken.obs
    env.close()
    single.close()
    with pytest.raises(
        ValueError, match=r"the observation has no '.*' \(it has blstats\); wanted .*, blstats, message"
    ):
        loaded.act({"blstats": own["blstats"]})
    if is_portable:
        check_portable(tmp_path, steps)


def check_portable(tmp_path: Path, steps: list[Any]) -> None:
    """The portable form gives the same logits in a fresh process, without Delphi."""
    script = (
        "import json, sys, numpy as np, torch; folder = sys.argv[1];"
        "config = json.load(open(folder + '/config.json')); data = json.load(open(sys.argv[2]));"
        "torch.set_grad_enabled(False);"
        "step = torch.export.load(folder + '/policy.pt2').module();"
        "core = {name: torch.zeros(1, *shape) for name, shape in config['portable']['core'].items()}; worst = 0\n"
        "for obs, wanted in data:\n"
        "    obs = {n: torch.tensor(v, dtype=getattr(torch, config['observations'][n]['dtype']))"
        " for n, v in obs.items()}\n"
        "    logits, _, core = step(obs, core)\n"
        "    worst = max(worst, (logits - torch.tensor(wanted)).abs().max().item())\n"
        "assert not {'actors', 'learner'} & set(sys.modules)\n"
        "print(worst)"
    )
    (tmp_path / "data.json").write_text(json.dumps(steps))
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "out"), str(tmp_path / "data.json")]
    output = subprocess.run(command, cwd="/", env={}, stdout=subprocess.PIPE, text=True, check=True)
    assert float(output.stdout) < 1e-5
    assert pickled_parts(tmp_path / "out/policy.pt2") == []


def test_the_card_has_the_evaluation_as_hugging_face_reads_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "eval.json").write_text(json.dumps(EVALUATION))
    arguments = [str(BEFORE), "--policy", "--out", str(tmp_path / "cart"), "--license", "mit"]
    assert main([*arguments, "--evaluation", str(tmp_path / "eval.json")]) == 0
    card = hub.ModelCard.load(tmp_path / "cart" / CARD)
    assert (card.data.license, card.data.library_name) == ("mit", "delphi-rl")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"return": 30.0, "blind_return": 20.0, "random_return": 19.0}
    assert card.data.eval_results[0].metric_args == {"low": 29.0, "high": 31.0, "episodes": 9}
    assert "| return | 30 [29, 31] | 20 [19, 21] | 19 [18, 20] |" in card.text
    assert "seed 1" in card.text
    assert str(Path.home()) not in (tmp_path / "cart" / CARD).read_text() + (tmp_path / "cart/config.json").read_text()


def test_the_card_says_of_every_term_what_it_pays_and_who_judges_it(tmp_path: Path) -> None:
    terms = [
        "terms.door={reads: change, rubric: minihack_subgoal, about: open the door, coefficient: 0.5, trust: earned}",
        "terms.far={reads: state, pays: improvement, model: {name: counts}, anneal_env_steps: 2000, episode_cap: 3}",
        "env={id: 'tests.toy_environments:Corridor-v0', describer: 'tests.toy_environments:describe'}",
    ]
    run = run_of(tmp_path / "run", load_config(preset="debug", overrides=[*terms, "service.engine=transformers"]))
    (run / "provenance.json").write_text(json.dumps([{"rubric_hash": "aaa door=bbb"}]))
    assert main([str(run), "--policy", "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / CARD).read_text()
    assert "x R(caption) / n^3 + 0.5 x `door` + 1 x `far`.\n" in card
    (door,) = (line for line in card.splitlines() if line.startswith("- `door`"))
    assert "R(change) / N^3" in door
    assert "weighed by trust (earned)" in door
    assert door.endswith("under the rubric `minihack_subgoal` about `open the door` (hash bbb).")
    (far,) = (line for line in card.splitlines() if line.startswith("- `far`: max(0, R(state)"))
    assert far.endswith("`counts`, annealed over 2,000 steps, at most 3 in an episode. No judge was asked.")
    assert "(hash aaa)" in card
    config = json.loads((tmp_path / "out/config.json").read_text())
    config |= {"reward_model": {"name": "retrieval"}, "accuracy": None, "num_captions": 0}
    assert "main term's; the terms `door`, `far` had models of their own" in reward_card("r", "mit", config, [])


def judged(text: str, p: float, number: int) -> JudgedCaption:
    judgement = Judgement(status=Status.OK, probability=p, answer_mass=1.0)
    return JudgedCaption(caption=Caption(id=number, text=text), judgement=judgement)


def run_with_rewards(path: Path, name: str) -> tuple[Path, list[str], np.ndarray]:
    """A run, its captions, and the rewards of its table."""
    from actors.captions import caption_id

    overrides = [f"reward_model.name={name}", "reward_model.steps_per_turn=25", "reward_model.threshold=0.5"]
    if name == "ensemble":
        overrides = ["reward_model.name=classification", *overrides[1:], "robust.ensemble=2", "robust.pessimism=1"]
    config = load_config(preset="debug", overrides=overrides if name != "counts" else overrides[:2])
    env = EnvConfig(id="tests.toy_environments:Corridor-v0")
    config = dataclasses.replace(config, env=env)
    texts = [f"You kill the {beast}!" for beast in ("newt", "jackal", "rat")] + ["It's a wall.", "You see here a rock."]
    captions = [Caption(id=caption_id(text), text=text) for text in texts]
    model = build_reward_model(config.reward_model, robust=config.robust)
    if name != "counts":
        model.calibrate(0.5)
        model.learn([judged(c.text, 0.9 if "kill" in c.text else 0.1, c.id) for c in captions])
        for _ in range(config.robust.ensemble):
            model.train()
    rewards = model.score(captions, np.ones(len(captions), np.int64))
    trainer = {
        "model": model.state_dict(),
        "options": RewardShaping(config.reward_model, 1).state_dict(),
        "ids": np.array([c.id for c in captions], np.uint64),
        "rewards": rewards,
        "goals": None,
        "figures": {"accuracy": 0.75},
    }
    return run_of(path, config, {"trainer": trainer}), texts, rewards


@pytest.mark.parametrize("name", ["retrieval", "classification", "ensemble", "counts"])
def test_an_exported_reward_model_scores_as_the_runs_table_does(tmp_path: Path, name: str) -> None:
    run, texts, rewards = run_with_rewards(tmp_path / "run", name)
    assert main([str(run), "--reward", "--out", str(tmp_path / "reward")]) == 0
    loaded = load_reward(tmp_path / "reward")
    assert np.isfinite(rewards).all()
    np.testing.assert_array_equal(loaded.score([*texts, ""]), [*rewards, 0.0])
    assert loaded.score([f" {texts[0]} \n"])[0] == rewards[0], "captions are normalised as in training"
    (unknown,) = loaded.score(["You kill the giant bat!"])
    assert np.isnan(unknown) == (name == "retrieval") == (not loaded.scores_any_caption)
    front = yaml.safe_load((tmp_path / "reward" / CARD).read_text().split("---")[1])
    assert front["library_name"] == "delphi-rl"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--policy"], "--out: wanted the folder to write"),
        (["--policy", "--out", "."], "exists already and is kept"),
        (["--reward", "--out", "x", "--format", "torch-export"], "--format: got torch-export with --reward"),
        (["--push", "me/x"], "--push: wanted only with --policy or --reward"),
        (["--policy", "--out", "x", "--push", "no id"], "wanted owner/name"),
        (["--policy", "--out", "x", "--evaluation", str(BEFORE / "config.json")], "no report of `delphi eval --json`"),
    ],
)
def test_a_wrong_command_is_one_line_and_writes_nothing(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kept").write_text("kept")
    assert main([str(BEFORE), *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_is_no_export_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder .* and it is no Hugging Face id"):
        load_policy(tmp_path / "absent")
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="holds no export of Delphi"):
        load_policy(tmp_path)
    run, _, _ = run_with_rewards(tmp_path / "run", "retrieval")
    (tmp_path / "reward").mkdir()
    write_reward(str(run), tmp_path / "reward", "reward", "mit")
    with pytest.raises(ValueError, match="holds delphi-reward, wanted delphi-policy"):
        load_policy(tmp_path / "reward")
