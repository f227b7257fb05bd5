"""The model card of an exported folder: README.md with front matter as Hugging Face reads it.

Invariant: the card says what was measured and with which uncertainty, or that nothing was; a policy's figures stand
beside those of the blind and the random player.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from cluster.report.sections import how_paid
from cluster.run.evaluation import PLAYERS


def policy_card(name: str, license_: str, config: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> str:
    """README.md of a policy; `config` is its config.json, `evaluation` a report of `delphi eval`."""
    env_id = config["environment"]["id"]
    front = _front(license_, ["reinforcement-learning", env_id.rpartition(":")[2]])
    if evaluation:
        front["model-index"] = [_index(name, env_id, evaluation)]
    observations = "\n".join(
        f"| `{entry}` | {spec['shape']} | {spec['dtype']} |" for entry, spec in config["observations"].items()
    )
    pursued = _pursued(config.get("goals"))
    return f"""{_as_front_matter(front)}
# {name}

A policy for {_code(env_id)}, trained by Delphi for {config["training"]["env_steps"]:,} environment steps.

```python
from learner.exported import load_policy  # pip install delphi-rl

policy = load_policy("{name}")  # this folder, or its Hugging Face id
{pursued}action = policy.act(obs)  # one observation as the environment gives it; policy.reset() at an episode's start
```

## How it plays

{_evaluation_table(evaluation)}

## Interface

Actions: {len(config["action_names"])} ({", ".join(map(_code, config["action_names"][:40]))}). Options of the
environment: {_code(json.dumps(config["environment"]["options"]))}. The network reads

| entry | shape | dtype |
|---|---|---|
{observations}

which `load_policy` makes of the environment's own observations. config.json has all of it.
{_goals(config.get("goals"))}
{_training(config["training"])}
## Limits

The policy was trained and measured in this one environment, with these options, and is known to play nothing else. Its
figures are means over games; single games differ widely. It optimises the reward above, which need not be what you
want of it. An observation from another version of the environment may be read without an error and played badly.
"""


def reward_card(
    name: str, license_: str, config: Mapping[str, Any], most_paid: Sequence[tuple[str, float, int]]
) -> str:
    """README.md of a reward model; `most_paid`: (caption, reward, count)."""
    kind, env_id = config["reward_model"]["name"], config["environment"]["id"]
    front = _front(license_, ["reward-model", env_id.rpartition(":")[2]])
    rows = "\n".join(f"| {_code(text)} | {reward:.3g} | {count:,} |" for text, reward, count in most_paid)
    paid = f"| caption | reward | times |\n|---|---|---|\n{rows}" if rows else "No caption was rewarded."
    accuracy = "was not measured" if config["accuracy"] is None else f"is {config['accuracy']:.3f} on held-out answers"
    return f"""{_as_front_matter(front)}
# {name}

A reward model of kind `{kind}`: it gives a number to a caption, the short text of what one step of {_code(env_id)}
showed. It was trained by Delphi while a policy trained, and knows {config["num_captions"]:,} captions.{_others(config)}

```python
from learner.exported import load_reward  # pip install delphi-rl

reward = load_reward("{name}")  # this folder, or its Hugging Face id
rewards = reward.score(["You kill the newt!"])
```

No judge is asked. A caption that the run knew has the reward that the run gave it; for others,
`reward.scores_any_caption` says whether the model scores them or gives NaN.

## What it rewards

Of the rewarded captions, those that the run saw most often:

{paid}

Its agreement with its judge {accuracy}.

{_training(config["training"])}
## Limits

The rewards are one judge's opinions about single captions, without what came before or after, distilled and normalised
over this run's captions. They say nothing about other environments, and a policy that maximises them may do so in ways
that nobody meant.
"""


def _pursued(goals: Sequence[str] | None) -> str:
    """The line that gives a goal to a policy that reads one; None: it reads none."""
    return "" if goals is None else f"policy.pursue({json.dumps(goals[0]) if goals else None})\n"


def _goals(goals: Sequence[str] | None) -> str:
    """What a policy that reads goals was given to pursue."""
    if goals is None:
        return ""
    known = "\n".join(f"- {_code(goal)}" for goal in goals) or "It was trained without any goal so far."
    return f"\nIt pursues one goal at a time, which `policy.pursue(goal)` sets before it acts:\n\n{known}\n"


def _front(license_: str, tags: Sequence[str]) -> dict[str, Any]:
    return {"license": license_, "library_name": "delphi-rl", "tags": [*tags, "delphi-rl"]}


def _as_front_matter(front: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)}---\n"


def _index(name: str, env_id: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """One `model-index` entry: every metric of each player, with its interval and number of games."""
    dataset = {"name": env_id.rpartition(":")[2], "type": env_id}
    metrics = [
        {
            "type": metric if player == "policy" else f"{player}_{metric}",
            "name": f"{metric} of the {player}{'' if player == 'policy' else ' player'} (mean, 95 % interval)",
            "value": estimate["mean"],
            "args": {"low": estimate["low"], "high": estimate["high"], "episodes": evaluation["episodes"]},
        }
        for player in PLAYERS
        for metric, estimate in evaluation[player].items()
    ]
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}


def _evaluation_table(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "It was not evaluated: `delphi eval RUN --json` measures it beside a blind and a random player."
    lines = ["| mean, 95 % interval | policy | blind | random |", "|---|---|---|---|"]
    for metric in evaluation["policy"]:
        cells = [evaluation[player].get(metric) for player in PLAYERS]
        lines.append(f"| {metric} | {' | '.join(_interval(cell) for cell in cells)} |")
    lines.append(
        f"\nOver {evaluation['episodes']} held-out games, the same for each. The blind player draws from the policy's"
        " average action frequencies without looking: what the policy is better by, it owes to its observations."
    )
    return "\n".join(lines)


def _interval(estimate: Mapping[str, float] | None) -> str:
    return "-" if estimate is None else f"{estimate['mean']:.4g} [{estimate['low']:.4g}, {estimate['high']:.4g}]"


def _training(facts: Mapping[str, Any]) -> str:
    reward, versions = facts["reward"], {name: one for name, one in facts["versions"].items() if one}
    paid, terms = facts["reward_model"] != "none" or not facts["terms"], facts["terms"]
    summands = [
        f"{reward['extrinsic_coefficient']:g} x clip({reward['extrinsic_scale']:g} x the environment's reward,"
        f" ±{reward['extrinsic_clip']:g})",
        *([f"{reward['intrinsic_coefficient']:g} x R(caption) / n^{reward['count_exponent']:g}"] if paid else []),
        *(f"{term['coefficient']:g} x {_code(name)}" for name, term in terms.items()),
    ]
    lines = [
        f"{facts['env_steps']:,} environment steps, seed {facts['seed']}, commit {facts['commit'] or 'unknown'}.",
        f"Reward of a step: {' + '.join(summands)}.",
    ]
    if paid:
        lines.append(f"n is the caption's occurrences in the episode so far, {_model(facts, reward)}")
    lines += [f"{_code(name)}: {how_paid(term)}, {_model(term, term)}" for name, term in terms.items()]
    lines.append(f"Versions: {', '.join(f'{package} {version}' for package, version in versions.items())}.")
    return "## Training\n\n" + "".join(f"- {line}\n" for line in lines)


def _model(facts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A term's reward model, what its `settings` multiply it by and cut it at, and who answered about its items."""
    told = [f"R of the reward model `{facts['reward_model']}`"]
    told += [f"weighed by trust ({settings['trust']})"] if settings["trust"] != "none" else []
    told += [f"annealed over {settings['anneal_env_steps']:,} steps"] if settings["anneal_env_steps"] else []
    told += [f"at most {settings['episode_cap']:g} in an episode"] if settings["episode_cap"] else []
    judged = "No judge was asked."
    if facts["judge"]:
        judged = f"The judge was {_code(facts['judge'])} under the rubric {_code(facts['rubric'])}"
        judged += f" about {_code(facts['about'])}" if facts.get("about") else ""
        judged += f" (hash {facts['rubric_hash']})." if facts["rubric_hash"] else "."
    return f"{', '.join(told)}. {judged}"


def _others(config: Mapping[str, Any]) -> str:
    terms = config["training"]["terms"]
    named = ", ".join(map(_code, terms))
    return f"\nIt is the main term's; the terms {named} had models of their own, which are not here." if terms else ""


def _code(text: str) -> str:
    """Untrusted text as inline code: on one line, within a table, without marks of its own."""
    plain = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return f"`{plain}`"
