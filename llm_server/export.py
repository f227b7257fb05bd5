"""`delphi export`: a run's caption book as JSON lines, for offline annotation, labelling, or a look at it.

Invariant: one line per distinct caption, the most frequent first, with its count; what has no answer is null.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.paths import path_argument
from llm_server.standard_output import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 there is no such run or the file cannot be written."""
    parser = argparse.ArgumentParser(
        prog="delphi export",
        description="Write every caption of a run as one JSON object a line: caption, count, first_seen and last_seen (environment steps),"
        " and the judge's probability, answer_mass and status.",
        epilog="example: delphi export runs/nethack_score > captions.jsonl",
    )
    parser.add_argument("run", type=path_argument, metavar="RUN", help="a run directory or its captions.sqlite")
    parser.add_argument("--out", type=path_argument, metavar="FILE", help="write here in place of standard output")
    arguments = parser.parse_args(argv)
    from llm_server.caption_file import read_archive

    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in read_archive(arguments.run)]
        if arguments.out:
            Path(arguments.out).write_text("".join(lines), "utf-8")
        else:
            sys.stdout.flush()
            sys.stdout.buffer.writelines(line.encode() for line in lines)  # JSON Lines are UTF-8, whatever the terminal shows
    except (ValueError, OSError) as error:
        print(f"delphi export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
