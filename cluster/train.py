"""`delphi train`: reads the command line, resolves the configuration, and launches the run.

Invariant: nothing heavy is imported before the configuration has been checked.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from configs.checks import ConfigError
from configs.fields import field_docs
from configs.flags import add_configuration
from configs.loading import load_config, preset_names, to_dict
from configs.schema import RunConfig
from llm_server.standard_output import guarded, output_may_be_lost


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 finished or stopped on request, 1 the run failed or its judge never answered, 2 invalid command."""
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.keys:
        for key, default, doc in field_docs(RunConfig):
            print(f"{key} = {json.dumps(default)}\n    {doc}")
        return 0
    try:
        config = load_config(preset=arguments.preset, file=arguments.config, overrides=arguments.overrides)
        if arguments.show:
            print(json.dumps(to_dict(config), indent=2))
            return 0
        from cluster.launch import launch

        output_may_be_lost()
        return launch(config)
    except ConfigError as error:
        print(f"delphi train: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi train",
        description="Train an agent on extrinsic reward plus an LLM's judgements. Running the same command again"
        " continues the run, which ends at total_env_steps or after max_time_s seconds of training, whichever comes"
        " first; then, with evaluation.at_end=true, its policy, a blind and a random player play held-out games, and"
        " their scores are the last line.",
        epilog="examples:\n"
        "  delphi train --preset debug\n"
        "  delphi train --preset nethack_score run_dir=runs/first max_time_s=3600 seed=7\n"
        "  delphi train --preset nethack_staircase reward_model.name=counts cluster.mode=inline",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_configuration(parser, f"a built-in configuration: {', '.join(preset_names())}")
    parser.add_argument("--keys", action="store_true", help="list every key with its default and meaning, and exit")
    parser.add_argument("--show", action="store_true", help="print the resolved configuration as JSON, and exit")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
