"""Event records are frozen, and the time left follows the pace."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tunesmith import events
from tunesmith.events import AudioChunk, Finished, LevelDone, Pace, Progress


def test_records_are_frozen():
    samples = np.zeros((1, 3), np.float32)
    chunk = AudioChunk(song=0, samples=samples, rate=8000)
    for record in (Progress(stage="a", done=1, total=2), chunk, LevelDone(level=0, songs=(1,)), Finished(result="x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.extra = 1


def test_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    pace = Pace("sampling")
    assert pace.at(0, 10) == Progress(stage="sampling", done=0, total=10)
    now[0] += 6
    assert pace.at(3, 10) == Progress(stage="sampling", done=3, total=10, seconds_left=14.0)
    assert pace.at(10, 10).seconds_left == 0


def test_events_import_no_torch():
    code = "import sys, tunesmith.events; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
