"""`delphi report`: writes one HTML page about one run or several, which needs nothing but a browser.

Invariant: only the page is written, and only when it is complete; Ctrl-C while replays are played leaves them out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.paths import path_argument
from llm_server.standard_output import guarded

PAGE = "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 an invalid command or run."""
    parser = argparse.ArgumentParser(
        prog="delphi report",
        description="Write a page about a run, or about several side by side: learning curves, alarms, every caption"
        " with its prompt and judgement, who was paid when, replays, and a Reward Report. One HTML file, which loads"
        " nothing.",
        epilog="examples:\n"
        "  delphi report runs/nethack_score\n"
        "  delphi report runs/seed_* --out seeds.html --no-replays",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN", help="a run directory")
    out = f"the page (default: RUN/{PAGE}; several runs: ./{PAGE})"
    parser.add_argument("--out", type=path_argument, metavar="FILE", help=out)
    parser.add_argument("--no-replays", action="store_true", help="play no episodes, and show none")
    episodes = "episodes to choose the replays from (default 64: those of `delphi eval`, where it has kept them)"
    parser.add_argument("--episodes", type=int, default=64, metavar="N", help=episodes)
    arguments = parser.parse_args(argv)
    from cluster.report.page import write_page

    try:
        if arguments.episodes < 1:
            raise ValueError(f"--episodes: got {arguments.episodes}, wanted at least 1")
        out_dir = Path(arguments.runs[0]) if len(arguments.runs) == 1 else Path()
        path = Path(arguments.out) if arguments.out else out_dir / PAGE
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"--out: got {path}, wanted a name that ends in .html, so that no other file is replaced")
        episodes_played = 0 if arguments.no_replays else arguments.episodes
        size = write_page(arguments.runs, path, episodes_played, _say)
    except (ValueError, OSError) as error:
        print(f"delphi report: {error}", file=sys.stderr)
        return 2
    print(f"{path} ({size / 1e6:.1f} MB): open it in a browser")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
