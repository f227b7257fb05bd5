"""`delphi new-environment`: writes a folder to start from with one's own environment: captioner, rubric, configuration,
tests, and the next commands.

Invariant: a folder that is there is never touched, and one that cannot be completed is not left behind.
"""

import argparse
import contextlib
import importlib
import importlib.util
import keyword
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.checks import ConfigError
from configs.paths import path_argument
from llm_server.standard_output import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 an invalid command or environment."""
    arguments = _parser().parse_args(argv)
    try:
        folder = _checked_folder(arguments.name, Path(arguments.out))
        lines = write_project(folder, arguments.id)
    except (ValueError, OSError) as error:
        print(f"delphi new-environment: {error}", file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    return 0


def write_project(folder: Path, env_id: str | None) -> list[str]:
    """Write the new folder `folder`, whose name is the project's, and return what to tell the user. Without an id it
    gets an environment of its own, to be replaced. Raises ValueError, in one line, for an environment that cannot be
    played here, and OSError."""
    folder.mkdir()
    try:
        with _importable(folder):
            return _write_into(folder, env_id)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_into(folder: Path, env_id: str | None) -> list[str]:
    from cluster.new_environment import looking, writing
    from configs.loading import load_config

    name = folder.name
    files: list[str] = []

    def write(file: str, text: str | None) -> None:
        if text is not None:
            (folder / file).write_text(text, "utf-8")
            files.append(file)

    if env_id is None:
        env_id, source = writing.environment_file(name)
        write("environment.py", source)
    look = looking.look_at(env_id)
    write("captioner.py", writing.captioner_file(look))
    write("config.yaml", writing.config_file(name, look))
    importlib.invalidate_caches()
    seen = looking.captions_of_random_play(load_config(file=str(folder / "config.yaml")))
    write("rubric.yaml", writing.rubric_file(name, look, seen))
    write(f"test_{name}.py", writing.test_file())
    write("README.md", writing.readme_file(name, look, seen, files))
    there = "" if folder.parent == Path() else f"cd {folder.parent}; "
    return [
        *writing.found_lines(look, seen),
        f"{folder} has {', '.join(files)}; {folder / 'README.md'} has the next commands, the first of them:",
        f"  {there}PYTHONPATH=. delphi doctor --config {name}/config.yaml",
    ]


def _checked_folder(name: str, out: Path) -> Path:
    """The folder to write; ValueError for a name that cannot be imported as a module, or that means another one."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        wanted = "wanted letters, digits and underscores, as in my_task, because Python imports it as a module"
        raise ConfigError(f"got the name {name!r}, {wanted}")
    folder = out / name
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is there already; give another name, or another --out")
    if not out.is_dir():
        raise ConfigError(f"--out: got {out}, wanted a folder that exists")
    found = importlib.util.find_spec(name)
    if found is not None or name in sys.stdlib_module_names:
        place = found.origin if found and found.origin else "this Python"
        raise ConfigError(f"got the name {name!r}, which is a module of {place}; give another name")
    return folder


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder's parent on the Python path, as the commands in its README put it, without leaving bytecode there."""
    place, writes_none = str(folder.parent.absolute()), sys.dont_write_bytecode
    sys.path.insert(0, place)
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        sys.dont_write_bytecode = writes_none
        for module in (folder.name, f"{folder.name}.captioner"):  # the user will change it
            sys.modules.pop(module, None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="delphi new-environment",
        description="Write a folder to start from with an environment of your own: a captioner, a rubric, a"
        " configuration, tests, and a README.md with the next commands. With --id it plays the environment at random"
        " for some hundred steps, and writes a captioner and examples that fit it.",
        epilog="examples:\n"
        "  delphi new-environment pole --id CartPole-v1\n"
        "  delphi new-environment maze --id my_package:MyMaze-v0 --out experiments\n"
        "  delphi new-environment my_task",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="the folder's name, and the module's")
    id_help = "a registered gymnasium id, module:Id to import its module first; default: write an environment too"
    parser.add_argument("--id", metavar="REGISTERED_ID", help=id_help)
    out = "the existing folder to write it into (default: here); run `delphi train` there"
    parser.add_argument("--out", type=path_argument, default=".", metavar="FOLDER", help=out)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main))
