"""Sides of the throughput benchmark take turns, and its ratios, faults and peers are what it says."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.benchmarks.marked_processes import Marked
from tests.benchmarks.throughput import FAULTS, Fault, main, run_peer, summarise, take_turns
from tests.benchmarks.whole_run import Window


def window(frames_per_s: float, **cpu: float) -> Window:
    return Window(frames_per_s=frames_per_s, seconds=60.0, cpu_us_per_frame=cpu, last_line={})


def test_sides_take_turns_in_reversed_order_every_other_time() -> None:
    order: list[str] = []
    taken = take_turns({name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b", "c")}, 3)
    assert order == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert taken == {name: [1.0, 1.0, 1.0] for name in ("a", "b", "c")}


def test_the_ratio_is_of_the_first_side_to_the_second_with_and_without_re_use() -> None:
    with_reuse = [window(3000.0, learner=90.0), window(2000.0, learner=70.0), window(9000.0, learner=50.0, service=3.0)]
    taken = {"Delphi": with_reuse, "peer": [1000.0, 1000.0, 1500.0], "Delphi without re-use": [window(1500.0)] * 3}
    result = summarise(taken, {"seconds": 60})
    assert (result["ratio"], result["ratio_spread"], result["ratio_of"]) == (3.0, [2.0, 6.0], ["Delphi", "peer"])
    assert (result["ratio_without_reuse"], result["ratio_without_reuse_spread"]) == (1.5, [1.0, 1.5])
    assert result["cpu_us_per_frame"] == {"Delphi": {"learner": 70.0, "service": 0.0}, "Delphi without re-use": {}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_strikes_the_service_and_whichever_comes_after_it(fault: str) -> None:
    strike = Fault(FAULTS[fault])
    wanted = psutil.STATUS_STOPPED if fault == "hang" else psutil.STATUS_ZOMBIE
    with Marked() as run:
        strike(run)
        with pytest.raises(RuntimeError, match="no annotation service"):
            strike.check()
        for _ in range(2):
            child = run.start(
                [sys.executable, "-c", "import time; time.sleep(60)", "llm_server.serve"], run.folder / "output.txt"
            )
            deadline = time.monotonic() + 120
            while psutil.Process(child.pid).status() != wanted:
                strike(run)
                assert time.monotonic() < deadline
            strike.check()
            child.kill()
            child.wait()


def test_a_peers_figure_is_the_last_json_it_prints(tmp_path: Path) -> None:
    script, settings = tmp_path / "peer.py", {}
    script.write_text(
        'print("[] {\\n{\\"env_steps_per_s\\": 7, \\"peer\\": \\"old\\"}\\n{\\"env_steps_per_s\\": 8.5,'
        ' \\"peer\\": \\"x\\"}\\nbye")'
    )
    assert run_peer([sys.executable, str(script)], 20.0, settings) == 8.5
    assert settings == {"peer": "x", "command": str(script)}
    script.write_text("print('no luck')")
    with pytest.raises(RuntimeError, match="no luck"):
        run_peer([sys.executable, str(script)], 20.0, settings)
    script.write_text("import time; print('busy', flush=True); time.sleep(60)")
    with pytest.raises(RuntimeError, match="not done after 1 s"):
        run_peer([sys.executable, str(script)], 1.0, settings)


def test_options_of_a_peer_need_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--against-python", "/bin/python"])
    assert "name its script with --against" in capsys.readouterr().err
