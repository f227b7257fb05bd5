"""`delphi export`: a run's captions as JSON lines, or, with `--policy` or `--reward`, a trained model as a folder in
Hugging Face's layout, which `learner.exported` loads.

Invariant: without those two flags it is `llm_server.offline.caption_file`, argument for argument. A folder appears
whole or not at all, and nothing that exists is overwritten.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.errors import one_line
from configs.paths import path_argument
from llm_server.offline import caption_file
from llm_server.standard_output import guarded

MODEL_FLAGS = ("--format", "--push", "--private", "--evaluation", "--license")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command or run, or a folder or repository that cannot be written."""
    parser = argparse.ArgumentParser(
        prog="delphi export",
        description="Write every caption of a run as one JSON object per line; or, with --policy or --reward, its"
        " newest policy or reward model as a folder: model.safetensors, config.json and a model card, which three lines"
        " of Python load (docs/export.md).",
        epilog="examples: delphi export runs/first > captions.jsonl;"
        " delphi export runs/first --policy --out first_policy --push me/first_policy",
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory (captions: or captions.sqlite)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--policy", action="store_true", help="export the policy")
    what.add_argument("--reward", action="store_true", help="export the reward model")
    place = "a new folder; captions: a file instead of standard output"
    parser.add_argument("--out", type=path_argument, metavar="PATH", help=place)
    portable = "also policy.pt2, which PyTorch runs without Delphi"
    parser.add_argument("--format", choices=("torch-export",), help=portable)
    evaluation = "the evaluation for the model card, from `delphi eval RUN --json` (default: the one at the run's end)"
    parser.add_argument("--evaluation", type=path_argument, metavar="FILE", help=evaluation)
    parser.add_argument("--license", default="apache-2.0", metavar="NAME", help="for the card (default apache-2.0)")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to this Hugging Face repository")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    arguments = parser.parse_args(argv)
    try:
        if not (arguments.policy or arguments.reward):
            return _export_captions(sys.argv[1:] if argv is None else argv)
        if not arguments.out:
            raise ValueError("--out: wanted the folder to write, for example --out first_policy")
        if arguments.reward and arguments.format:
            raise ValueError("--format: got torch-export with --reward, which has no portable form; only --policy has")
        if arguments.push:
            from cluster.export.push import check_login

            check_login(arguments.push)
        _export_model(arguments)
    except (ValueError, OSError) as error:
        print(f"delphi export: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _export_captions(argv: Sequence[str]) -> int:
    given = [flag for flag in MODEL_FLAGS for argument in argv if argument.partition("=")[0] == flag]
    if given:
        raise ValueError(f"{given[0]}: wanted only with --policy or --reward")
    return caption_file.main(argv)


def _export_model(arguments: argparse.Namespace) -> None:
    from cluster.export.folder import write_policy, write_reward
    from learner.checkpoint import CheckpointError

    folder = Path(arguments.out)
    name = arguments.push or folder.name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out: {folder} exists already and is kept; give another folder")
    unfinished = folder.absolute().with_name(f".{folder.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True)
        if arguments.policy:
            evaluation = _evaluation(arguments.evaluation)
            is_portable = arguments.format == "torch-export"
            write_policy(arguments.run, unfinished, name, arguments.license, evaluation, portable=is_portable)
        else:
            write_reward(arguments.run, unfinished, name, arguments.license)
        unfinished.replace(folder)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if arguments.push:
        from cluster.export.push import push

        print(push(folder, arguments.push, private=arguments.private))


def _evaluation(file: str | None) -> dict[str, Any] | None:
    if file is None:
        return None
    try:
        report = json.loads(Path(file).read_bytes())
        if not isinstance(report, dict) or not {"env_steps", "environment", "policy", "blind", "random"} <= set(report):
            raise ValueError("it is not one")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--evaluation: {file} is no report of `delphi eval --json` ({error})") from None
    return report


if __name__ == "__main__":
    sys.exit(guarded(main))
