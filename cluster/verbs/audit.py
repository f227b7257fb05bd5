"""`delphi audit`: how well a judge, or a run's trained reward model, agrees with captions that people have labelled;
or, with `--trajectories`, whether a reward passes the gates on archived episodes.

Invariant: metrics are on captions that are not among the model's examples; nothing of the audit enters the judgement
store.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from configs.flags import flag
from configs.paths import path_argument
from llm_server.offline.judge_flags import add_judge_flags, given_flags, opened_judge, read_judge_flags
from llm_server.standard_output import guarded

NUM_TIMED = 512
NUM_PAIRS = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 AUC below --min-auc (or undefined) or a gate that is not passed, 2 no audit could be
    made."""
    arguments = _parser().parse_args(argv)
    from llm_server.client import AnnotationError
    from llm_server.offline.audit import print_table

    try:
        _check(arguments)
        if arguments.trajectories:
            from cluster.verbs.trajectories import audit_trajectories

            return audit_trajectories(arguments.trajectories, arguments.program, arguments.run, as_json=arguments.json)
        if arguments.goals:
            return _audit_goals(arguments)
        what, found = _audit_run(arguments.run, arguments.labelled) if arguments.run else _audit_judge(arguments)
    except (ValueError, AnnotationError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        print(f"delphi audit: {reason}", file=sys.stderr)
        return 2
    number = found["examples_left_out"]
    left_out = f", {number} left out as examples of the rubric" if number else ""
    report = {"title": f"{what}: {found['captions']} captions{left_out}", **found}
    if arguments.json:
        print(json.dumps(report))
    else:
        print_table(report)
    if arguments.min_auc is not None and not (report["auc"] is not None and report["auc"] >= arguments.min_auc):
        shown = "undefined" if report["auc"] is None else f"{report['auc']:.3f}"
        print(f"delphi audit: AUC is {shown}, --min-auc {arguments.min_auc}", file=sys.stderr)
        return 1
    return 0


def _audit_goals(arguments: argparse.Namespace) -> int:
    from cluster.goals.audit import audit_goals, print_goal_audit
    from configs.goal_schema import GoalsConfig
    from llm_server.offline.caption_file import read_goals

    labelled = read_goals(arguments.labelled)
    rubric, config = read_judge_flags(arguments, with_store=False)
    similarity = GoalsConfig().similarity if arguments.similarity is None else arguments.similarity
    with opened_judge(rubric, config, arguments) as judge:
        found = audit_goals(judge, rubric, labelled, similarity)
    left_out = f", {found['examples_left_out']} left out as examples of the rubric" * bool(found["examples_left_out"])
    what = f"goals by {rubric.id} version {rubric.version}, cosine above {similarity:g}"
    report = {"title": f"{what}: {found['captions']} captions, {found['goals']} goals{left_out}", **found}
    if arguments.json:
        print(json.dumps(report))
    else:
        print_goal_audit(report)
    return 0


def _audit_judge(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What was audited, and the report."""
    from llm_server.offline.audit import audit_judge
    from llm_server.offline.caption_file import captions_about, read_labelled

    labelled = read_labelled(arguments.labelled)
    rubric, config = read_judge_flags(arguments, with_store=False)
    if arguments.about is not None:
        keeps = bool(rubric.about_label) or arguments.similarity is not None
        labelled = captions_about(labelled, arguments.about, keep_about=keeps)
    if arguments.similarity is None:
        for caption in labelled:
            rubric.check_about(bool(caption.about))
    elif rubric.about_label or not all(caption.about for caption in labelled):
        got = (
            f"rubric '{rubric.id}' judges about something itself" if rubric.about_label else "captions without `about`"
        )
        raise ValueError(f"--similarity: got {got}, wanted a rubric without about_label and lines with `about`")
    if labelled[0].value is not None and (arguments.pairs or arguments.min_auc is not None):
        flag_of = "--pairs" if arguments.pairs else "--min-auc"
        raise ValueError(f"{flag_of}: got it with graded labels (`value`), wanted labels `helpful`, 0 or 1")
    if arguments.pairs and rubric.pairs is None:
        raise ValueError(f"--pairs: rubric '{rubric.id}' has no `pairs` section, so it compares nothing")
    if arguments.pairs and arguments.similarity is not None:
        raise ValueError("--pairs: got it with --similarity, which counts single captions: leave one of the two out")
    is_here = config is not None and config.engine != "openai"
    # By default only where the model runs here: elsewhere it may cost money.
    num_pairs = (NUM_PAIRS if is_here else 0) if arguments.pairs is None else arguments.pairs
    num_pairs = num_pairs if arguments.similarity is None else 0
    num_timed = (NUM_TIMED if is_here else 0) if arguments.speed_captions is None else arguments.speed_captions
    with opened_judge(rubric, config, arguments) as judge:
        report = audit_judge(
            judge, rubric, labelled, num_pairs=num_pairs, num_timed=num_timed, min_similarity=arguments.similarity
        )
    return f"{report['rubric']} version {report['rubric_version']}, {report['model']} ({report['engine']})", report


def _audit_run(run_dir: str, labelled_path: str) -> tuple[str, dict[str, Any]]:
    """The same of the reward model of the run's latest checkpoint, by its margins, which rewards are made of; captions
    without a margin count as unparsed. Examples of the run's rubric are left out, as for its judge."""
    from actors.captions import normalize
    from cluster.plan import embedding_goals
    from cluster.verbs.offline_reward_model import load_reward_model
    from llm_server.annotation import EmbeddedCaption
    from llm_server.engines.sentence_encoder import SentenceEncoder
    from llm_server.offline.audit import score_metrics, shown_by, without_examples
    from llm_server.offline.audit_metrics import precision_metrics
    from llm_server.offline.caption_file import read_labelled
    from llm_server.offline.judgement_file import caption_of
    from llm_server.rubrics.loading import load_rubric
    from reward_models.interface import Asks

    labelled = read_labelled(labelled_path)
    if any(caption.about or caption.value is not None for caption in labelled):
        problem = "with `about` or `value`, wanted lines of caption and helpful alone"
        raise ValueError(f"--run: got {labelled_path} {problem}")
    model, config, env_steps, paid = load_reward_model(run_dir)
    is_judged = model.asks in (Asks.JUDGEMENTS, Asks.PAIRS)
    examples = shown_by(load_rubric(config.annotator.rubric)) if is_judged else []
    kept = without_examples(labelled, examples)
    as_met = partial(normalize, fold_case=config.env.fold_case, fold_digits=config.env.fold_digits)
    captions = [caption_of(as_met(row.text.encode())) for row in kept]
    began = time.perf_counter()
    if model.asks is Asks.EMBEDDINGS:  # with the cosines that the annotation service would return
        goals = embedding_goals(config)
        vectors = SentenceEncoder(config.service).encode([*goals, *(caption.text for caption in captions)])
        cosines = vectors[len(goals) :] @ vectors[: len(goals)].T
        model.learn([EmbeddedCaption(caption=c, cosines=row) for c, row in zip(captions, cosines, strict=True)])
    margins = model.margins(captions)
    seconds = time.perf_counter() - began
    labels = {as_met(row.text.encode()): row.is_positive for row in labelled}
    return f"{model.name} of {run_dir} at {env_steps:,} steps", {
        "run": run_dir,
        "env_steps": env_steps,
        "reward_model": model.name,
        "examples_left_out": len(labelled) - len(kept),
        **score_metrics(margins, kept, 0.0, are_probabilities=False),
        **precision_metrics(_paid_by_text(run_dir, paid), labels),
        "labels_per_s": len(kept) / seconds,
        "labels_timed": len(kept),
        "seconds_timed": seconds,
    }


def _paid_by_text(run_dir: str, paid: Mapping[int, float]) -> dict[str, float]:
    from llm_server.offline.caption_file import read_archive
    from llm_server.offline.judgement_file import caption_of

    texts = {caption_of(row["caption"]).id: row["caption"] for row in read_archive(run_dir)} if paid else {}
    return {texts[number]: reward for number, reward in paid.items() if number in texts}


def _check(arguments: argparse.Namespace) -> None:
    for name in ("pairs", "speed_captions"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise ValueError(f"{flag(name)}: got {value}, wanted at least 0")
    if arguments.min_auc is not None and not 0.0 <= arguments.min_auc <= 1.0:
        raise ValueError(f"--min-auc: got {arguments.min_auc}, wanted 0 to 1")
    if arguments.similarity is not None and not -1.0 <= arguments.similarity <= 1.0:
        raise ValueError(f"--similarity: got {arguments.similarity}, wanted a cosine, -1 to 1")
    if arguments.trajectories:
        _check_trajectories(arguments)
        return
    if arguments.program:
        raise ValueError("--program: got it without --trajectories, wanted a run whose episodes it is held to")
    if arguments.labelled is None:
        raise ValueError("LABELLED: got none, wanted a file of labelled captions, or --trajectories RUN")
    if arguments.goals:
        not_read = ("run", "pairs", "speed_captions", "about", "min_auc")
        if others := [flag(name) for name in not_read if getattr(arguments, name) is not None]:
            raise ValueError(
                f"--goals audits the matching of goals, {others[0]} something else: leave one of the two out"
            )
    if arguments.run:
        own = ("rubric", "address", "pairs", "speed_captions", "about", "similarity")
        others = given_flags(arguments, with_store=False)
        others += [flag(name) for name in own if getattr(arguments, name) is not None]
        if others:
            raise ValueError(f"--run audits a run's reward model, {others[0]} a judge: leave one of the two out")


def _check_trajectories(arguments: argparse.Namespace) -> None:
    own = ("rubric", "address", "pairs", "speed_captions", "about", "similarity", "min_auc", "labelled")
    others = given_flags(arguments, with_store=False)
    others += [flag(name) for name in own if getattr(arguments, name) is not None] + ["--goals"] * arguments.goals
    if others:
        other = others[0].replace(flag("labelled"), "LABELLED")
        raise ValueError(
            f"--trajectories holds a reward to episodes, {other} judges captions: leave one of the two out"
        )
    if arguments.program and arguments.run:
        raise ValueError("--program: got it with --run, wanted one reward: leave one of the two out")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi audit",
        description="Hold a judge, or a run's trained reward model, to captions that people have labelled; or a reward"
        " to episodes that a run has archived.",
        epilog='LABELLED has one JSON object a line: {"caption": "You kill the newt!", "helpful": 1}, beside it\n'
        '"about": "..." for a rubric with an about_label; or graded, {"caption": "...", "value": 0.5}\n'
        "examples:\n"
        "  delphi audit labelled.jsonl\n"
        "  delphi audit --rubric my_rubric.yaml --model my_folder --min-auc 0.85 labelled.jsonl\n"
        "  delphi audit --run runs/nethack_score labelled.jsonl\n"
        "  delphi audit --goals --rubric minihack_progress goals.jsonl\n"
        "  delphi audit --trajectories runs/mountain_car --program candidate.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    remote = "with --address or engine openai 0"
    labelled = "JSON lines of captions with helpful = 1 (progress) or 0"
    run = "audit the reward model of this run's latest checkpoint in place of a judge"
    run += "; with --trajectories: the reward of this run"
    trajectories = "hold a reward to the episodes that this run has archived (archive.keep): its own terms, by default"
    program = "with --trajectories: the reward of this program"
    goals = "audit how captions are matched with goals: LABELLED has lines of caption and goal, null for none"
    pairs = f"pairs to compare where the rubric compares pairs (default: {NUM_PAIRS}; {remote}, none)"
    timed = "captions to time at least; where the file has fewer, others are made of its words"
    timed += f" (default: {NUM_TIMED}; {remote}, the file's own)"
    parser.add_argument("labelled", type=path_argument, nargs="?", metavar="LABELLED", help=labelled)
    parser.add_argument("--run", type=path_argument, metavar="RUN", help=run)
    parser.add_argument("--trajectories", type=path_argument, metavar="RUN", help=trajectories)
    parser.add_argument("--program", type=path_argument, metavar="FILE", help=program)
    parser.add_argument("--goals", action="store_true", help=goals)
    parser.add_argument("--pairs", type=int, metavar="N", help=pairs)
    parser.add_argument("--speed-captions", type=int, metavar="N", help=timed)
    about = "audit only lines with this `about`; a rubric without about_label judges their captions alone"
    similar = "judge captions alone, and count them as positive only where their sentence embedding's cosine with that"
    similar += " of their `about` (or, with --goals, of a goal) exceeds X"
    parser.add_argument("--about", metavar="TEXT", help=about)
    parser.add_argument("--similarity", type=float, metavar="X", help=similar)
    parser.add_argument("--min-auc", type=float, metavar="X", help="exit with code 1 where the AUC is below X")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_judge_flags(parser, with_store=False)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
