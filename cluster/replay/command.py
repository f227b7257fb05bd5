"""`delphi replay`: plays a game of a run's evaluation back, in the terminal, as text, or into a file.

Invariant: what is shown has the return that `delphi eval` counted; a game that cannot be repeated is an error.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.verbs.evaluate import add_game_flags, check_game_flags
from configs.checks import ConfigError
from configs.errors import did_you_mean
from configs.paths import path_argument
from llm_server.standard_output import guarded

if TYPE_CHECKING:  # --help must not load torch
    from cluster.replay.games import Game

BY_RETURN = ("best", "median", "worst")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the game cannot be repeated or written, 2 an invalid command or run."""
    arguments = _parser().parse_args(argv)
    from cluster.replay.animation import LacksEncoder
    from cluster.replay.games import NotReproducible

    try:
        _check(arguments)
        return _replay(arguments)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except NotReproducible as error:
        return _say(str(error), 1)
    except (ValueError, LacksEncoder) as error:
        return _say(str(error), 2)
    except (OSError, RuntimeError) as error:
        return _say(f"{arguments.out or arguments.run}: {error}", 1)


def _replay(arguments: argparse.Namespace) -> int:
    from cluster.replay.games import evaluated_games, record

    which = {"episodes": arguments.episodes, "envs": arguments.envs, "seed": arguments.seed}
    games = evaluated_games(arguments.run, player=arguments.player, **which)
    if arguments.list:
        _print_list(games)
        return 0
    recording = record(arguments.run, chosen(games, arguments.episode), arguments.player)
    last = len(recording.moments) - 1
    begin, end = min(arguments.from_, last), last if arguments.to is None else min(arguments.to, last)
    moments = range(begin, end + 1, arguments.every)
    if arguments.out:
        from cluster.replay.files import write_file

        write_file(recording, moments, arguments.speed, arguments.out)
        print(f"{arguments.out}: {len(moments)} frames of {last} steps, return {recording.metrics['return']:g}")
        return 0
    from cluster.replay.terminal import is_possible, play_back
    from cluster.replay.text import text_lines

    if is_possible() and not arguments.text:
        play_back(recording, arguments.speed, begin)
    else:
        for line in text_lines(recording, moments):
            print(line)
    return 0


def chosen(games: Sequence["Game"], which: str) -> "Game":
    """The game of that number in the list, or the one of best, median or worst return. ConfigError for any other."""
    if which.isdecimal():
        if int(which) >= len(games):
            raise ConfigError(f"--episode: got {which}, wanted at most {len(games) - 1}; --list shows the games")
        return games[int(which)]
    ordered = sorted(games, key=lambda game: -game.metrics["return"])
    return ordered[{"best": 0, "median": len(games) // 2, "worst": -1}[which]]


def _print_list(games: Sequence["Game"]) -> None:
    """A line per game, in columns as wide as they need to be."""
    names = [*dict.fromkeys(name for game in games for name in game.metrics)]
    rows = [["game", "env", "episode", *names]]
    for number, game in enumerate(games):
        metrics = [f"{game.metrics[name]:.6g}" if name in game.metrics else "-" for name in names]
        rows.append([str(number), *map(str, game.place[1:]), *metrics])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _check(arguments: argparse.Namespace) -> None:
    """ConfigError for flags that mean nothing."""
    check_game_flags(arguments)
    if not arguments.episode.isdecimal() and arguments.episode not in BY_RETURN:
        hint = did_you_mean(arguments.episode, BY_RETURN)
        wanted = f"{', '.join(BY_RETURN)}, or the number of a game (--list shows them)"
        raise ConfigError(f"--episode: got {arguments.episode!r}{hint}, wanted {wanted}")
    for flag, value, least in (("every", arguments.every, 1), ("from", arguments.from_, 0), ("to", arguments.to, 0)):
        if value is not None and value < least:
            raise ConfigError(f"--{flag}: got {value}, wanted at least {least}")
    if arguments.to is not None and arguments.to < arguments.from_:
        raise ConfigError(f"--to: got {arguments.to}, which is before --from {arguments.from_}")
    if not 0 < arguments.speed < math.inf:
        raise ConfigError(f"--speed: got {arguments.speed:g}, wanted a number above 0")
    if arguments.out:
        from cluster.replay.files import format_of

        format_of(arguments.out)


def _say(message: str, code: int) -> int:
    print(f"delphi replay: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi replay",
        description="Play a game of the evaluation back (`delphi eval` with the same --episodes, --envs and --seed),"
        " with message, action, caption, rewards, the judge's probability and the policy's value estimate. What"
        " `delphi eval` has kept is not played again.",
        epilog="In the terminal: space pauses, left and right step, + and - change the speed, ? shows all keys.\n"
        "examples: delphi replay runs/nethack_score\n"
        "          delphi replay runs/nethack_score --episode worst --player random --out worst.gif\n"
        "          delphi replay runs/nethack_score --text --every 10 | less",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_game_flags(parser)
    episode = "best, median or worst return, or a game's number in --list (default best)"
    parser.add_argument("--episode", default="best", metavar="WHICH", help=episode)
    players = ("policy", "blind", "random")
    parser.add_argument("--player", choices=players, default="policy", help="who plays (default policy)")
    parser.add_argument("--list", action="store_true", help="print the games with their metrics instead")
    out = "write a file instead: .cast (asciicast), .gif, .mp4, .ttyrec or .ttyrec.bz2 (NetHack)"
    parser.add_argument("--out", type=path_argument, metavar="FILE", help=out)
    text = "print one line per step, as without a terminal"
    parser.add_argument("--text", action="store_true", help=text)
    speed = "steps per second, in the terminal at the beginning, and in files (default 10)"
    parser.add_argument("--speed", type=float, default=10.0, metavar="N", help=speed)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of lines and frames, only each N-th")
    parser.add_argument("--from", dest="from_", type=int, default=0, metavar="STEP", help="begin here (default 0)")
    parser.add_argument("--to", type=int, metavar="STEP", help="the last step of lines and frames (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
