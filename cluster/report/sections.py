"""The Reward Report in sections of sentences, tables and texts, made from its facts; the Markdown file and the page
show the same ones.

Invariant: every sentence follows from the facts; where they do not hold what is asked, the sentence says so. A text is
data: whoever shows it escapes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.goals.facts import goal_row
from cluster.report.words import HOW, OUTPUTS, commit_in_short

SOURCE = (
    "After “Reward Reports for Reinforcement Learning” (Gilbert et al. 2022, arXiv 2204.10817): what a system"
    " optimises, by whom that is judged, and how it changes, written down beside its results."
)
PAYMENTS = {
    "program": "R of what happened",
    "event": "R({reads}) / N^{count_exponent:g}, with N how often that {reads} has occurred in the running episode",
    "potential": "({gamma:g} · R({reads} after) - R({reads} before)), which leaves the optimal policy as it is",
    "improvement": "max(0, R({reads}) - the largest R of the episode before)",
    "goals": "the sum of the weights of the goals, of those in scope, that the {reads} newly achieves",
    "visits": "1 / √n at the n-th visit, over the {visits_of}, of one of {bins} bins of R({reads})",
}
MAX_GOALS_SHOWN = 50
ROBUST_OFF = {"ensemble": 1, "noise_rate": 0, "pseudo_confidence": 0, "distance_alarm": 0}
"""Safeguards that do nothing at this value; `pessimism` and `pseudo_share` belong to others of them."""


class Table(NamedTuple):
    """A table; every row has the same keys."""

    title: str
    rows: Sequence[Mapping[str, str]]


class Section(NamedTuple):
    """A part of the report (facts -> Markdown, page)."""

    title: str
    lines: Sequence[str]
    tables: Sequence[Table] = ()
    texts: Sequence[tuple[str, str]] = ()
    """Titles and texts that are shown as they are, such as a prompt."""


def sections(facts: Mapping[str, Any]) -> list[Section]:
    """All sections but alarms and what is missing, which the page shows elsewhere."""
    return [
        _optimised(facts),
        _judged(facts),
        _changes(facts),
        _over_time(facts),
        _items(facts),
        *_goals(facts),
        Section("With what precision", _precision(facts)),
        Section("What is unknown", _unknown(facts)),
        Section("Known limits", _limits(facts)),
    ]


def how_paid(term: Mapping[str, Any]) -> str:
    """What a term pays, as a formula in words, from its settings."""
    return PAYMENTS["program" if term["program"] and term["pays"] == "event" else term["pays"]].format_map(term)


def alarms(facts: Mapping[str, Any]) -> Section:
    """The alarms, and the checks that are good or cannot be made."""
    loud = [f"{one['what']}: {one['found']}. {one['advice']}" for one in facts["alarms"] if one["level"] == "alarm"]
    rows = [
        {"Check": one["what"], "Result": one["level"], "Found": one["found"]}
        for one in facts["alarms"]
        if one["level"] != "alarm"
    ]
    return Section("Alarms", loud or ["No alarm."], [Table("Other checks", rows)] if rows else [])


def _optimised(facts: Mapping[str, Any]) -> Section:
    optimised, terms = facts["optimised"], facts["terms"]
    extrinsic = optimised["extrinsic"]
    lines = [
        f"The policy maximises the discounted sum (gamma = {optimised['gamma']:g}) of"
        f" r = {extrinsic['coefficient']:g} · clip({extrinsic['scale']:g} · r_env, ±{extrinsic['clip']:g}) + "
        + " + ".join(f"{term['coefficient']:g} · r_{name}" for name, term in terms.items())
        + ", where r_env is the environment's own reward."
    ]
    for name, term in terms.items():
        model = term["model"]
        lines.append(f"r_{name} is {how_paid(term)}. R is {HOW.get(model['name'], model['name'])}.")
        if model["name"] in ("retrieval", "classification"):
            lines.append(f"{OUTPUTS[model['output']]}.")
        if model["permute"]:
            lines.append("A control: R is permuted among captions of similar frequency, so it carries no meaning.")
    if optimised["max_intrinsic_share"] < 1:
        lines.append(f"Intrinsic reward is scaled to at most {optimised['max_intrinsic_share']:.0%} of all reward.")
    robust = {key: value for key, value in optimised["robust"].items() if value != ROBUST_OFF.get(key)}
    on = ", ".join(f"{key} = {value:g}" for key, value in robust.items())
    if robust.keys() & ROBUST_OFF.keys():
        lines.append(f"Safeguards of reward models that are trained (robust.*): {on}.")
    return Section("What is optimised", lines, [Table("Terms of the reward", [_term(*one) for one in terms.items()])])


def _term(name: str, term: Mapping[str, Any]) -> dict[str, str]:
    """A term's row of settings, beside what they have become."""
    now = term["now"]
    return {
        "Term": name,
        "Reads": term["reads"],
        "About": term["about"] or "-",
        "Model": term["model"]["name"],
        "Paid as": term["pays"],
        "Coefficient": f"{term['coefficient']:g}",
        "Now": _number(now.get("coefficient") if term["anneal_env_steps"] else term["coefficient"]),
        "Cap of an episode": f"{term['episode_cap']:g}" if term["episode_cap"] else "none",
        "Annealed over": f"{term['anneal_env_steps']:,} steps" if term["anneal_env_steps"] else "no",
        "Trust": _number(now.get("trust")) if term["trust"] != "none" else "not weighed",
    }


def _goals(facts: Mapping[str, Any]) -> Iterator[Section]:
    goals = sorted(facts["goals"], key=lambda goal: -abs(goal["paid"]))
    if not goals:
        return
    reached = sum(goal["achieved"] > 0 for goal in goals)
    lines = [f"{len(goals)} goals, of which {reached} were ever achieved; those that were paid most come first."]
    if len(goals) > MAX_GOALS_SHOWN:
        lines.append(f"{len(goals) - MAX_GOALS_SHOWN} more are in `delphi goals`.")
    yield Section("Goals", lines, [Table("The goal book", [goal_row(goal) for goal in goals[:MAX_GOALS_SHOWN]])])


def _judged(facts: Mapping[str, Any]) -> Section:
    lines, rows, texts = [], [], dict[str, str]()
    for name, term in facts["terms"].items():
        judge, rubric = term["judge"], term["rubric"]
        lines.append(f"{name}: {term['judged_by']}.")
        lines += [f"{name}: {note}" for note in rubric["notes"]]
        if term["program"]:
            texts[f"Program of {name}"] = term["program"]
        if goal := rubric.get("goal"):
            lines.append(f"{name}: A positive answer means: “{goal}”")
            title = f"Question of the rubric {rubric['id']} {rubric['version']}, hash {rubric['hash']}"
            texts[title] = rubric["text"].replace("\ue000", "[the item]")
        if judge:
            band = f" ± {judge['noise']:.2g}" if judge["noise"] else ""
            rows.append(
                {
                    "Term": name,
                    "Model": str(judge["model"]),
                    "Engine, number type": f"{judge['engine']}, {judge['dtype']}",
                    "Service": judge["service"],
                    "Threshold θ": (f"{judge['threshold']:.4f}" if judge["threshold"] is not None else "-") + band,
                    "Fingerprint": str(judge["fingerprint"]),
                    "Hash of the rubric": str(judge["rubric_hash"]),
                }
            )
    if rows:
        lines.append("An answer within the ± of the threshold, in log-odds, is undecided and not paid.")
    return Section("By whom it is judged", lines, [Table("Judges", rows)] if rows else [], list(texts.items()))


def _changes(facts: Mapping[str, Any]) -> Section:
    starts = facts["starts"]
    commits = {start["commit"] for start in starts}
    hashes = list(dict.fromkeys(start["rubric_hash"] for start in starts if start["rubric_hash"]))
    rubrics = f"Rubrics: {', '.join(hashes) or 'none'}."
    lines = [
        f"The run was started {len(starts) or 1} time(s), with {len(commits) or 1} version(s) of the code.",
        f"The rubrics stayed the same ({hashes[0]})." if len(hashes) == 1 else rubrics,
    ]
    for one in facts["judge_replaced"]:
        lines.append(
            f"By step {one['env_steps']:,} the judge was replaced: {one['labels_dropped']:,.0f} labels of a former one"
            " were dropped."
        )
    for name, term in facts["terms"].items():
        for drift in term["drifts"]:
            lines.append(
                f"{name}: from step {drift['from_steps']:,} to {drift['to_steps']:,} the reward table moved by"
                f" {drift['distance']:.3f} (0: not at all, 1: to the opposite; items that both know, weighted by how"
                " often they occurred)."
            )
    rows = [
        {
            "Start": str(start["run_epoch"]),
            "At": start["started"] or "not known",
            "From step": _number(start["from_steps"]),
            "Commit": commit_in_short(start["commit"]),
            "Hash of the rubric": start["rubric_hash"] or "-",
            "Reward tables published": _number(start["reward_versions"]),
        }
        for start in starts
    ]
    return Section("How it changed over the run", lines, [Table("Starts", rows)] if rows else [])


def _over_time(facts: Mapping[str, Any]) -> Section:
    title = "Which term the reward came from"
    if not facts["parts"]:
        return Section(title, ["Nothing was measured yet."])
    names = [name for name in facts["terms"] if any(name in part["terms"] for part in facts["parts"])]
    rows = []
    for part in facts["parts"]:
        row = {
            "Steps": f"{part['from_steps']:,} to {part['to_steps']:,}",
            "Extrinsic reward per 1,000": _number(part["extrinsic"]),
            "Intrinsic reward per 1,000": _number(part["intrinsic"]),
            "Unknown": _share(part["unknown"]),
        }
        for name in names:
            term = part["terms"].get(name, {})
            row[f"Share of {name}"] = _share(term.get("share"))
            if facts["terms"][name]["trust"] != "none":
                row[f"Trust in {name}"] = _number(term.get("trust"))
        rows.append(row)
    lines = ["Means over equal parts of the run. A term's share is of the sum of all terms' absolute values."]
    if not names:
        lines = ["Means over equal parts of the run. The intrinsic reward has one term."]
    return Section(title, lines, [Table("Reward over the run", rows)])


def _items(facts: Mapping[str, Any]) -> Section:
    """The items that were paid most and that cost most, by term."""
    lines, tables = [], []
    for name, term in facts["terms"].items():
        if not term["items_paid"]:
            lines.append(f"{name}: nothing was paid by the newest checkpoint.")
            continue
        lines.append(f"{name}: {term['items_paid']:,} items were paid {term['paid_total']:,.4g} in sum.")
        for title, key in (("paid most", "most_paid"), ("that cost most", "most_costly")):
            if term[key]:
                tables.append(Table(f"{name}: items {title}", [_item(item) for item in term[key]]))
    if any(term["model"]["name"] in ("ranking", "embedding") for term in facts["terms"].values()):
        lines.append("An item costs what its negative rewards sum up to.")
    return Section("What was paid", lines, tables)


def _item(item: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Paid": _number(item["paid"]),
        "R": _number(item["reward"]),
        "p": _number(item["probability"]),
        "Count": _number(item["count"]),
        "Item": item["text"],
    }


def _precision(facts: Mapping[str, Any]) -> list[str]:
    from llm_server.offline.audit import ROWS

    precision, lines = facts["precision"], []
    if audit := precision["audit"]:
        lines.append(f"Audit: {audit.get('title', 'captions labelled by people')}.")
        figures = ((row.label, audit.get(name)) for name, row in ROWS.items())
        lines += [f"{label}: {value:.4g}." for label, value in figures if isinstance(value, int | float)]
    else:
        lines.append(
            "Not audited. `delphi audit --run RUN LABELLED --json > RUN/audit.json` compares the rewards with captions"
            " that people have labelled, and this section then shows its figures."
        )
    if (accuracy := precision["reward_model_accuracy"]) is not None:
        lines.append(f"The reward model agrees with its judge on {accuracy:.1%} of the held-out labels.")
    if (disagreement := precision["reward_model_disagreement"]) is not None:
        lines.append(
            f"The networks of the ensemble differ by a standard deviation of {disagreement:.4g} (log-odds or z)."
        )
    if (apart := precision["pair_order_disagreement"]) is not None:
        lines.append(f"In {apart:.1%} of the compared pairs the judge prefers another caption in the other order.")
    if pseudo := precision["pseudo_labels"]:
        lines.append(f"{pseudo:,.0f} captions were trained on with the model's own prediction.")
    if top := precision["top_item"]:
        lines.append(f"The item that was paid most, “{top['text']}”, has {top['share']:.1%} of the intrinsic reward.")
    return lines


def _unknown(facts: Mapping[str, Any]) -> list[str]:
    unknown, lines = facts["unknown"], []
    if (fraction := unknown["intrinsic_unknown_fraction"]) is not None:
        lines.append(f"At the end {fraction:.1%} of the steps had a caption without a reward yet.")
    for name, term in facts["terms"].items():
        if len(facts["terms"]) > 1 and (fraction := term["now"].get("unknown")) is not None:
            lines.append(f"{name}: {fraction:.1%} of the steps had an item without a reward yet.")
    if without := unknown["steps_without_table_fraction"]:
        lines.append(f"{without:.1%} of the steps were trained on before the first reward table came.")
    if answers := unknown["annotations_total"]:
        counted = {word: unknown[f"annotations_{word}"] or 0 for word in ("unparsed", "undecided", "rejected")}
        words = ", ".join(f"{number:,.0f} {word}" for word, number in counted.items())
        lines.append(f"Of {answers:,.0f} answers: {words}.")
    if pending := unknown["annotations_pending"]:
        lines.append(f"{pending:,.0f} captions of {unknown['captions_distinct'] or 0:,.0f} wait for a judgement.")
    if evicted := unknown["captions_evicted"]:
        lines.append(f"{evicted:,.0f} captions were evicted from the full caption book: they are paid nothing.")
    return lines or ["Nothing was measured yet."]


def _limits(facts: Mapping[str, Any]) -> list[str]:
    terms = facts["terms"]
    reads = sorted({term["reads"] for term in terms.values()})
    lines = [
        f"The judge sees one item at a time ({', '.join(reads)}), never the whole state of the environment: what has no"
        " text cannot be paid."
    ]
    if any(term["pays"] == "event" and term["count_exponent"] for term in terms.values()):
        lines.append("What occurs again in an episode earns less than before, so novelty is part of what is optimised.")
    for name, term in terms.items():
        if term["pays"] == "potential":
            lines.append(f"{name}: each new reward table leaks the change of the present state's value once.")
        if term["max_labels"]:
            lines.append(f"{name}: the judge was asked at most {term['max_labels']:,} times.")
    lines.append("Sums by item are of the newest checkpoint; those of main are of absolute values, with the sign of R.")
    lines.append("One run is one seed: differences between two runs may be chance.")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
