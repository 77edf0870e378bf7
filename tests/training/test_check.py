"""A folder's troubles are found before training, and each file is listened to once."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tiny_songs import RATE, melody, small_folder, write_song
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.events import Finished, Progress
from tunesmith.training.check import Report, check_folder
from tunesmith.training.folders import open_songs


def report(folder: Path, **options: float) -> Report:
    *_, finished = check_folder(folder, workers=1, **options)
    assert isinstance(finished, Finished)
    return finished.result


def kinds(found: Report) -> set[tuple[str, str]]:
    return {(problem.kind, problem.name) for problem in found.problems}


def test_a_healthy_folder(tmp_path):
    found = report(small_folder(tmp_path, songs=4), shortest=1.0)
    assert found.problems == ()
    assert (found.files, found.songs, found.train + found.test) == (4, 4, 4)
    assert found.hours == pytest.approx(8 / 3600)
    assert (found.rates, found.formats, found.artists) == ({"8000": 4}, {"flac": 4}, {"Salt": 4})
    assert (found.described, found.lyrics, found.timed_lyrics) == (4, 3, 0)


def test_broken_silent_clipped_and_short(tmp_path):
    write_song(tmp_path / "good.wav", 3.0)
    soundfile.write(tmp_path / "silent.wav", np.full(3 * RATE, 1e-4), RATE)
    soundfile.write(tmp_path / "clipped.wav", np.clip(3 * np.sin(np.arange(3 * RATE) / 10), -1, 1), RATE)
    soundfile.write(tmp_path / "loud.wav", np.sin(np.arange(3 * RATE) / 10), RATE)
    write_song(tmp_path / "short.wav", 0.5)
    data = write_song(tmp_path / "cut.flac", 3.0, seed=1).read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    soundfile.write(tmp_path / "nan.wav", np.full(3 * RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    (tmp_path / "empty.mp3").write_bytes(b"")
    found = report(tmp_path, shortest=1.0)
    assert kinds(found) == {
        ("silent", "silent.wav"), ("clipped", "clipped.wav"), ("too short", "short.wav"), ("broken", "cut.flac"),
        ("broken", "nan.wav"), ("broken", "empty.mp3"),
    }  # fmt: skip
    assert set(open_songs(tmp_path).left_out) == {"cut.flac", "nan.wav", "empty.mp3"}  # from now on


def test_duplicates_in_other_clothes(tmp_path):
    song = melody(12.0, 24000, 1, seed=1)
    soundfile.write(tmp_path / "a.flac", song, 24000)
    soundfile.write(tmp_path / "a.wav", song, 24000)
    soundfile.write(tmp_path / "b.mp3", song, 24000)
    soundfile.write(tmp_path / "c.ogg", 0.4 * song, 24000)
    soundfile.write(tmp_path / "d.wav", soxr.resample(np.repeat(song, 2, 1), 24000, 16000), 16000)
    for i in range(3):
        soundfile.write(tmp_path / f"other{i}.wav", melody(12.0, 24000, 1, seed=2 + i), 24000)
        soundfile.write(tmp_path / f"noise{i}.wav", np.random.default_rng(i).normal(0, 0.1, 12 * 24000), 24000)
        tone = 0.3 * np.sin(2 * np.pi * (440 + 5 * i) * np.arange(12 * 24000) / 24000)
        soundfile.write(tmp_path / f"tone{i}.wav", tone, 24000)
    found = kinds(report(tmp_path))
    assert {kind for kind, _ in found} == {"duplicate"}
    assert len(found & {("duplicate", name) for name in ("a.flac", "a.wav", "b.mp3", "c.ogg", "d.wav")}) == 4
    assert len(found) == 4


def test_each_file_is_heard_once(tmp_path, monkeypatch):
    small_folder(tmp_path, songs=3)
    first = report(tmp_path)
    heard = []
    from tunesmith.training import check

    real = check.hear
    monkeypatch.setattr(check, "hear", lambda path, scan: heard.append(path.name) or real(path, scan))
    assert report(tmp_path) == first
    assert heard == []
    write_song(tmp_path / "1.flac", 3.0, seed=9)
    report(tmp_path)
    assert heard == ["1.flac"]


def test_a_check_that_is_stopped_keeps_what_it_heard(tmp_path, monkeypatch):
    from tunesmith.training import check

    small_folder(tmp_path, songs=4)
    events = check_folder(tmp_path, workers=1)
    assert isinstance(next(events), Progress)
    next(events)
    events.close()
    heard = []
    real = check.hear
    monkeypatch.setattr(check, "hear", lambda path, scan: heard.append(path.name) or real(path, scan))
    report(tmp_path)
    assert len(heard) < 4


def test_a_folder_of_broken_files_is_reported_and_an_empty_one_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"junk")
    found = report(tmp_path)
    assert (found.songs, kinds(found)) == (0, {("broken", "a.wav")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioFileError, match="holds no audio"):
        report(tmp_path / "empty")
    (tmp_path / "metadata.jsonl").write_text("{")
    with pytest.raises(RequestError, match="damaged in line 1"):
        report(tmp_path)


def test_one_short_file(tmp_path):
    write_song(tmp_path / "a.wav", 3.0)
    found = report(tmp_path)
    assert kinds(found) == {("too short", "a.wav")}
    assert (found.train, found.test) == (1, 0)
