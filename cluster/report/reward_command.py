"""`delphi reward-report`: writes the Reward Report of a run anew.

Invariant: only the report's two files are written, each whole.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.paths import path_argument
from llm_server.standard_output import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command or run."""
    parser = argparse.ArgumentParser(
        prog="delphi reward-report",
        description="Write what a run optimises, by whom that is judged, when it changed, what was paid most, with what"
        " precision, and what is unknown: RUN/reward_report.md, and reward_report.json beside it. Training writes both"
        " at its checkpoints and at its end; this command reads everything anew, such as an audit that was made since.",
        epilog="examples:\n"
        "  delphi reward-report runs/nethack_score\n"
        "  delphi reward-report runs/nethack_score --json | jq .terms.main.most_paid",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory")
    out = "write the Markdown to FILE, and the JSON beside it, instead of into the run directory"
    parser.add_argument("--out", type=path_argument, metavar="FILE", help=out)
    parser.add_argument("--json", action="store_true", help="also print the facts as one JSON object")
    arguments = parser.parse_args(argv)
    from cluster.report.reward_files import MARKDOWN, write_reward_report

    path = Path(arguments.out or Path(arguments.run) / MARKDOWN)
    try:
        if path.suffix.lower() != ".md":
            raise ValueError(f"--out: got {path}, wanted a name that ends in .md, so that no other file is replaced")
        facts = write_reward_report(arguments.run, out=path)
    except (ValueError, OSError) as error:
        print(f"delphi reward-report: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts) if arguments.json else path)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
