"""Trackers of the user's own, for the tests: they write what they are told into a file of the run directory."""

import json
import os
import time
from pathlib import Path


class Recorder:
    """Records every call."""

    place = "a file of https://me:sesame@host"

    def __init__(self, run):
        self._file = Path(run.run_dir) / "told.jsonl"
        self.run_id = run.run_id or "first"
        self.tell("begin", run.run_id, run.name, run.tags, run.config["seed"], os.environ.get("RECORDER_SETTING"))
        print("libraries print, and nobody minds", flush=True)

    def tell(self, *what):
        with self._file.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def log(self, line, env_steps):
        assert None not in line.values()
        self.tell("line", env_steps, line["episodes_total"])

    def close(self, outcome, numbers, texts):
        self.tell("end", outcome, numbers, texts)


class FailingRecorder(Recorder):
    """Its service refuses the second line."""

    def log(self, line, env_steps):
        if env_steps > 1:
            raise OSError(f"https://me:{os.environ['RECORDER_TOKEN']}@host is down")
        super().log(line, env_steps)


class HangingRecorder(Recorder):
    """Its service never answers."""

    def log(self, line, env_steps):
        if "RECORDER_ANSWERS" not in os.environ:
            time.sleep(3600)
        super().log(line, env_steps)


class DyingRecorder(Recorder):
    """Its library ends the process."""

    def log(self, line, env_steps):
        os.kill(os.getpid(), 9)
