"""Real engines on shared pages: resets, refusals and other processes do not change their games."""

import gc
import hashlib
import logging
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import psutil
import pytest
from nle.nethack import Command, Nethack

from actors.environments.factory import make_environment
from actors.environments.nethack import relinking
from actors.environments.nethack.game import TERMINAL, Game, make_screens
from actors.environments.nethack.shared_code import MAP_FIXED, EnginePages, LibC, engine_pages
from configs.schema import EnvConfig

KEYS = np.array([ord(key) for key in "hjklyubn.s\r<>"])
OWN_LIBRARY = "nle.so"


@pytest.fixture
def pages(caplog: pytest.LogCaptureFixture) -> EnginePages:
    caplog.set_level(logging.INFO, logger="actors.environments.nethack.shared_code")
    return EnginePages()


class Engines:
    """Engines that are closed at the end of the test."""

    def __init__(self) -> None:
        self.open: list[Nethack] = []

    def __call__(self, number: int) -> list[Nethack]:
        new = [
            Nethack(observation_keys=("glyphs", "blstats", "message"), ttyrec=None, fix_moon_phase=True)
            for _ in range(number)
        ]
        self.open += new
        return new


@pytest.fixture
def make_engines() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    for engine in engines.open:
        engine.close()


def mapped(name: str = "nethack-pages") -> list[str]:
    """This process's mappings of memory files of that name."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"memfd:{name}" in line]


def executable_copies() -> int:
    return sum(line.split()[1][2] == "x" for line in mapped(OWN_LIBRARY))


def game(engine: Nethack, pages: EnginePages | None, seed: int, num_steps: int = 150) -> bytes:
    """A digest of all observations of a short game, from a reset on."""
    engine.set_initial_seeds(seed, seed, False)
    engine.reset()
    if pages is not None:
        pages.share(engine.dlpath)
    digest = hashlib.sha256()
    for key in np.random.default_rng(seed).choice(KEYS, num_steps).tolist():
        observations, done = engine.step(key)
        if done:
            break
        for array in observations:
            digest.update(array.tobytes())
    return digest.digest()


def refuse(*args: object) -> None:
    raise OSError(1, "Operation not permitted")


def test_every_reset_brings_the_shared_pages_back(pages: EnginePages, make_engines: Engines) -> None:
    gc.collect()  # other tests' engines, which may have private code
    before, copies, engines = len(mapped()), executable_copies(), make_engines(3)
    for engine in engines:
        pages.prepare(engine.dlpath)
    for _ in range(4):
        for engine in engines:
            engine.reset()
            pages.share(engine.dlpath)
        assert len(mapped()) - before == 3
        assert executable_copies() == copies
    assert all(line.split()[1] == "r-xs" for line in mapped())


def test_the_shared_pages_are_huge(pages: EnginePages, make_engines: Engines) -> None:
    (engine,) = make_engines(1)
    pages.prepare(engine.dlpath)
    assert pages._file is not None
    if pages._file.no_huge_pages:
        pytest.skip(f"this kernel gives none: {pages._file.no_huge_pages}")
    game(engine, pages, 0)
    after = Path("/proc/self/smaps").read_text().split("memfd:nethack-pages", 1)[1]
    (huge,) = [line.split()[1] for line in after.split("VmFlags")[0].splitlines() if line.startswith("ShmemPmdMapped")]
    assert int(huge) >= 2048


def test_games_on_shared_pages_go_like_games_without(pages: EnginePages) -> None:
    configs = [EnvConfig(max_episode_steps=90, share_engine_code=share) for share in (True, False)]
    shared, alone = envs = [make_environment(config, num_envs=8, run_seed=3, worker_index=0) for config in configs]
    rng, ended, before = np.random.default_rng(3), 0, len(mapped())
    try:
        assert shared.reset()[1] == alone.reset()[1]
        assert len(mapped()) - before == 8
        for _ in range(400):
            actions = rng.integers(shared.spec.num_actions, size=8)
            one, other = (env.step(actions) for env in envs)
            assert one.captions == other.captions
            for name, array in one.obs.items():
                np.testing.assert_array_equal(array, other.obs[name])
            np.testing.assert_array_equal(one.rewards, other.rewards)
            np.testing.assert_array_equal(one.terminated, other.terminated)
            assert [end.reset_caption for end in one.ends] == [end.reset_caption for end in other.ends]
            ended += len(one.ends)
        assert ended >= 32
        assert len(mapped()) - before == 8
    finally:
        shared.close()
        alone.close()


def test_memory_stays_flat_over_hundreds_of_resets(pages: EnginePages, make_engines: Engines) -> None:
    engines, process = make_engines(2), psutil.Process()
    for engine in engines:
        pages.prepare(engine.dlpath)

    def reset(times: int) -> tuple[int, int, int]:
        for _ in range(times):
            for engine in engines:
                engine.reset()
                pages.share(engine.dlpath)
        return len(Path("/proc/self/maps").read_text().splitlines()), process.num_fds(), process.memory_info().rss

    maps, files, rss = reset(100)
    maps_after, files_after, rss_after = reset(400)
    assert maps_after <= maps + 2  # the allocator may add one of its own
    assert files_after == files
    assert rss_after < rss + (1 << 20)


def test_closing_an_engine_takes_its_mapping_along_and_leaves_the_others(
    pages: EnginePages, make_engines: Engines
) -> None:
    before, (first, second) = len(mapped()), make_engines(2)
    for engine in (first, second):
        pages.prepare(engine.dlpath)
    expected = game(first, pages, 5)
    game(second, pages, 6)
    first.close()
    assert len(mapped()) - before == 1
    assert game(second, pages, 5) == expected
    second.close()
    assert len(mapped()) == before


def test_another_build_is_shared_unchanged_and_said_so(
    pages: EnginePages, make_engines: Engines, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relinking, "KNOWN_BUILDS", {})
    before, (engine, alone) = len(mapped()), make_engines(2)
    pages.prepare(engine.dlpath)
    assert game(engine, pages, 4) == game(alone, None, 4)
    assert len(mapped()) - before == 1
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "shared unchanged, which is slower: it is another build" in record.message


@pytest.mark.parametrize(
    ("draws", "options", "shows_terminal", "stepping"),
    [
        (False, {}, False, "lean"),
        (True, {}, True, "lean"),
        (True, {}, False, "gymnasium"),
        (True, {"allow_all_modes": True}, False, "lean"),
        (True, {"actions": [ord("h"), int(Command.OVERVIEW)]}, False, "lean"),
        (True, {"actions": [ord("h"), ord("#")]}, False, "lean"),
    ],
)
def test_engines_draw_where_somebody_may_look(
    draws: bool, options: dict[str, Any], shows_terminal: bool, stepping: str
) -> None:
    config, others = EnvConfig(stepping=stepping, options=options), TERMINAL if shows_terminal else ()
    screens = make_screens(1, ("glyphs",), ("blstats", "message", *others))
    made = Game(gymnasium.spec(config.id), config, {name: array[0] for name, array in screens.items()})
    made.played.close()
    assert made._pages is engine_pages(draws)


def test_nobody_can_write_to_the_shared_pages(pages: EnginePages, make_engines: Engines) -> None:
    (engine,) = make_engines(1)
    pages.prepare(engine.dlpath)
    assert pages._file is not None
    with pytest.raises(OSError):
        os.pwrite(pages._file._fd, b"\x90", 4096)
    with open(f"/proc/self/fd/{pages._file._fd}", "r+b", buffering=0) as file:
        with pytest.raises(PermissionError):
            file.write(b"\x90")
        with pytest.raises(PermissionError):
            file.truncate(0)


def test_an_engine_that_was_not_prepared_is_left_alone(pages: EnginePages, make_engines: Engines) -> None:
    before, (first,) = len(mapped()), make_engines(1)
    path = first.dlpath
    pages.prepare(path)
    game(first, pages, 1)
    first.close()
    (other,) = make_engines(1)
    assert other.dlpath == path, "this test needs a file descriptor that is used again"
    other.reset()
    pages.share(path)
    assert len(mapped()) == before


def test_another_library_than_the_first_is_not_replaced_by_it(
    pages: EnginePages, make_engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    before, (first, changed, last) = len(mapped()), make_engines(3)
    with open(changed.dlpath, "r+b") as file:
        file.seek(0x250)  # within the identifier of the build
        file.write(b"another")
    for engine in (first, changed, last):
        pages.prepare(engine.dlpath)
        game(engine, pages, 1)
    assert len(mapped()) - before == 2
    assert "differs" in caplog.text


def test_what_is_no_library_is_refused_with_one_notice(
    pages: EnginePages, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(b"no library")
    for _ in range(3):
        pages.prepare(str(path))
        pages.share(str(path))
    assert path.read_bytes() == b"no library"
    assert len(caplog.records) == 1
    assert "not shared" in caplog.text


@pytest.mark.parametrize(
    ("call", "shares", "words"),
    [
        ("collapse", True, "not in huge pages"),
        ("map", False, "not shared"),
        ("memfd_create", False, "no memory files"),
        ("find_library", False, "no longer shared"),
        ("share", False, "no longer shared"),
        ("misplaced", False, "unknown way"),
    ],
)
def test_where_the_system_refuses_games_go_on_with_one_notice(
    call: str,
    shares: bool,
    words: str,
    pages: EnginePages,
    make_engines: Engines,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [game(engine, None, seed) for seed, engine in enumerate(make_engines(3))]
    real_map, real_unmap, real_find = LibC.map, LibC.unmap, LibC.find_library

    def refuse_in_place(
        libc: LibC, address: int | None, length: int, protection: int, flags: int, fd: int, offset: int = 0
    ) -> int:
        # Kernels before 6.12 unmap what was there before they refuse.
        if address is not None and flags == mmap.MAP_SHARED | MAP_FIXED and pages._file is not None:
            real_unmap(libc, address, length)
            raise OSError(12, "Cannot allocate memory")
        return real_map(libc, address, length, protection, flags, fd, offset)

    def misplace(libc: LibC, path: str) -> tuple[int, int] | None:
        place = real_find(libc, path)
        return place and (place[0], place[1] + 16)

    if call == "memfd_create":
        engines = make_engines(3)  # NLE needs it too
        monkeypatch.delattr(os, "memfd_create")
    else:
        engines = make_engines(3)
        stands_in = {"share": ("map", refuse_in_place), "misplaced": ("find_library", misplace)}.get(
            call, (call, refuse)
        )
        monkeypatch.setattr(LibC, *stands_in)
    before = len(mapped())
    for engine in engines:
        pages.prepare(engine.dlpath)
    for _ in range(2):
        assert [game(engine, pages, seed) for seed, engine in enumerate(engines)] == expected
    assert len(mapped()) - before == (3 if shares else 0)
    assert len(caplog.records) == 1
    assert words in caplog.text


def test_code_that_cannot_be_brought_back_is_an_error_before_the_next_step(
    pages: EnginePages, make_engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    (engine,) = make_engines(1)
    pages.prepare(engine.dlpath)
    engine.reset()
    monkeypatch.setattr(LibC, "map", refuse)
    with pytest.raises(RuntimeError, match="is lost"):
        pages.share(engine.dlpath)


def digests(num_engines: int = 4) -> list[str]:
    """One digest per engine of two games on this process's shared pages; asserts that they are shared."""
    pages = engine_pages()
    engines = Engines()
    made = engines(num_engines)
    for engine in made:
        pages.prepare(engine.dlpath)
    shown = [(game(engine, pages, seed) + game(engine, pages, seed + 10)).hex() for seed, engine in enumerate(made)]
    assert len(mapped()) == num_engines
    for engine in made:
        engine.close()
    assert not mapped()
    return shown


def test_two_processes_share_pages_at_once_and_play_the_same_games() -> None:
    code = "from tests.actors.environments.nethack.test_shared_code import digests; print(*digests())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code],
            cwd=Path(__file__).parents[4],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    first, second = (process.communicate(timeout=120)[0].split() for process in processes)
    assert first == second
    assert len(set(first)) == 4
