"""`tunesmith data`: reports for people and programs, codes in a folder, and sentences for what is wrong."""

import json
from pathlib import Path

import pytest

from tiny import save_tiny_folder
from tiny_songs import small_folder, write_song
from tunesmith import cli
from tunesmith.training.encoded import EncodedCodes


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return small_folder(tmp_path / "songs", songs=3)


def test_a_report_for_people(songs, capsys):
    (songs / "broken.wav").write_bytes(b"junk")
    write_song(songs / "unnamed.wav", seed=9)
    (songs / "metadata.csv").write_text("file_name,artsit\ngone.wav,x\n0.flac,y\n")
    assert cli.run(["data", "check", str(songs), "--min-seconds", "1"]) == 0
    shown = capsys.readouterr().out
    assert "songs     4 of 5 files, 0.00 h" in shown
    assert "artists   Salt (3)" in shown
    assert "broken: 1\n  broken.wav: " in shown
    assert "rows without files: 1\n  gone.wav" in shown
    assert "files without rows: 2\n  broken.wav, unnamed.wav" in shown
    assert "(misspelt?): 1\n  artsit" in shown


def test_a_report_for_programs(songs, capsys):
    assert cli.run(["data", "check", str(songs), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {problem["kind"] for problem in report["problems"]} == {"too short"}
    assert (report["files"], report["artists"]) == (3, {"Salt": 3})


def test_no_problems(songs, capsys):
    assert cli.run(["data", "check", str(songs), "--min-seconds", "1"]) == 0
    assert capsys.readouterr().out.endswith("\nno problems\n")


@pytest.mark.parametrize("flag", ["--codec", "--model"])
def test_codes(songs, tmp_path, capsys, flag):
    model, out = str(save_tiny_folder(tmp_path / "model")), str(tmp_path / "codes")
    (songs / "broken.wav").write_bytes(b"junk")
    for kept in (0, 2):
        command = ["data", "encode", str(songs), flag, model, "--out", out, "--shard-songs", "2", "--test-share", "0"]
        assert cli.run(command) == 0
        shown = capsys.readouterr().out
        assert f"3 songs in 2 files, {kept} of which were there already" in shown
        assert "left out: broken.wav: " in shown
    assert len(EncodedCodes(out, steps=100).songs) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "nowhere"], "There is no folder 'nowhere'"),
        (["check", "SONGS", "--workers", "0"], "--workers is 0"),
        (["encode", "nowhere", "--codec", "tunesmith/pocket", "--out", "x"], "There is no folder 'nowhere'"),
        (["encode", "SONGS", "--codec", "no/where/at/all", "--out", "x"], "There is no model folder"),
        (["encode", "SONGS", "--codec", "tunesmith/pocket", "--out", "x", "--part", "half"], "write it as 2/4"),
        (["encode", "SONGS", "--codec", "tunesmith/pocket", "--out", "x", "--part", "3/2"], "The part is 3/2"),
        (["encode", "SONGS", "--codec", "tunesmith/pocket", "--out", "x", "--test-share", "1"], "test_share is 1"),
        (["encode", "SONGS", "--codec", "tunesmith/pocket", "--out", "x", "--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_what_is_wrong_is_a_sentence(songs, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["data", *(str(songs) if word == "SONGS" else word for word in arguments)]) == cli.WRONG
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert not (tmp_path / "x").exists()
