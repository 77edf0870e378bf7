"""Folders and manifests of songs, whatever is in them, and the split that no song changes."""

import csv
import gzip
import json
import os
import zipfile
from pathlib import Path

import pytest

from tiny_songs import small_folder, write_song
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.training.folders import list_folder, open_songs


def test_a_folder_in_the_audiofolder_convention(tmp_path):
    write_song(tmp_path / "b.wav", 1.0, rate=11025, channels=2)
    write_song(tmp_path / "deep" / "a.mp3", 1.5)
    write_song(tmp_path / "plain.ogg")
    (tmp_path / "cover.jpg").write_bytes(b"no audio")
    (tmp_path / ".hidden.wav").write_bytes(b"")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "b.wav", "text": "über alles"}\n\n{"file_name": "gone.wav"}\n'
    )
    with (tmp_path / "deep" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "artist", "bpm", "artsit"], ["a.mp3", "Salt", "90", "x"]])
    songs = open_songs(tmp_path)
    assert [song.name for song in songs] == ["b.wav", "deep/a.mp3", "plain.ogg"]
    assert (songs[0].rate, songs[0].channels, songs[0].seconds) == (11025, 2, 1.0)
    assert songs[0].metadata.text == "über alles"
    assert (songs[1].metadata.artist, songs[1].metadata.bpm) == ("Salt", 90.0)
    listing = list_folder(tmp_path)
    assert listing.rows_without_files == ["gone.wav"]
    assert listing.files_without_rows == ["plain.ogg"]
    assert listing.unknown_fields == ["artsit"]


def test_files_beside_a_song(tmp_path):
    write_song(tmp_path / "a.wav")
    (tmp_path / "a.json").write_text('{"description": "of the side-car", "genre": "Jazz"}')
    (tmp_path / "a.txt").write_text("a description")
    (tmp_path / "a.lrc").write_text("[00:01.00]oh")
    (tmp_path / "b.lyrics.txt").write_bytes("déjà".encode("cp1252"))
    write_song(tmp_path / "b.wav")
    a, b = open_songs(tmp_path)
    assert a.metadata.genres == ("Jazz",)
    assert (a.metadata.text, a.metadata.lyrics.times) == ("a description", ((0, 1.0),))
    assert b.metadata.lyrics.text == "déjà"
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "of the table", "lyrics": "b.lyrics.txt"}')
    a = open_songs(tmp_path)[0]
    assert (a.metadata.text, a.metadata.lyrics.text) == ("of the table", "déjà")


@pytest.mark.parametrize("packed", [False, True])
def test_manifests_of_audiocraft(tmp_path, packed):
    songs = [write_song(tmp_path / "audio" / f"{i}.wav") for i in range(2)]
    (tmp_path / "audio" / "0.json").write_text('{"description": "beside"}')
    with zipfile.ZipFile(tmp_path / "info.zip", "w") as archive:
        archive.writestr("inner/1.json", '{"description": "in the archive"}')
    lines = [
        {
            "path": str(songs[0]),
            "duration": 2.0,
            "sample_rate": 8000,
            "amplitude": None,
            "weight": None,
            "info_path": None,
        },
        {"path": "audio/1.wav", "duration": 2.0, "sample_rate": 8000, "info_path": "info.zip:inner/1.json"},
        {"path": "audio/gone.wav", "duration": 2.0, "sample_rate": 8000},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    name = "data.jsonl.gz" if packed else "data.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    for given in (tmp_path, tmp_path / name):
        assert {song.metadata.text for song in open_songs(given)} == {"beside", "in the archive"}
    assert list_folder(tmp_path).rows_without_files == ["audio/gone.wav"]


def test_no_song_changes_sides(tmp_path):
    small_folder(tmp_path, songs=30, seconds=0.1)
    before = {song.name for song in open_songs(tmp_path, test_share=0.2).test}
    for i in range(30, 50):
        write_song(tmp_path / f"{i}.flac", 0.1, seed=i)
    songs = open_songs(tmp_path, test_share=0.2)
    after = {song.name for song in songs.test}
    assert before == {name for name in after if int(name.removesuffix(".flac")) < 30}
    assert 2 <= len(before) <= 12
    assert {song.name for song in songs.train} | after == {song.name for song in songs}
    assert not {song.name for song in songs.train} & after
    assert {song.name for song in songs.between(0.0, 1.0).test} == after


def test_small_folders_are_split_too(tmp_path):
    one = open_songs(write_song(tmp_path / "a" / "x.wav").parent)
    assert (len(one.train), len(one.test)) == (1, 0)
    small_folder(tmp_path / "b", songs=2)
    two = open_songs(tmp_path / "b")
    assert (len(two.train), len(two.test)) == (1, 1)
    none = open_songs(tmp_path / "b", test_share=0.0)
    assert (len(none.train), len(none.test)) == (2, 0)


def test_a_split_that_somebody_has_made_is_kept(tmp_path):
    for name in ("train/a.wav", "validation/b.wav", "train/c.wav"):
        write_song(tmp_path / name)
    assert [song.name for song in open_songs(tmp_path).test] == ["validation/b.wav"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/a.wav", "split": "test"}')
    assert [song.name for song in open_songs(tmp_path).test] == ["train/a.wav", "validation/b.wav"]


def test_scans_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    path = write_song(tmp_path / "a.wav", 1.0)
    assert open_songs(tmp_path)[0].seconds == 1.0
    monkeypatch.setattr("tunesmith.training.scans.read_header", lambda path: pytest.fail("read again"))
    assert open_songs(tmp_path)[0].seconds == 1.0
    monkeypatch.undo()
    write_song(path, 2.0)
    assert open_songs(tmp_path)[0].seconds == 2.0
    os.utime(path, ns=(1, 1))  # same size, other time
    write_song(tmp_path / "b.wav", 1.0)
    assert [song.seconds for song in open_songs(tmp_path)] == [2.0, 1.0]


def test_a_damaged_cache_is_read_as_none(tmp_path, own_cache):
    write_song(tmp_path / "a.wav", 1.0)
    open_songs(tmp_path)
    [file] = own_cache.rglob("*.json")
    file.write_text("{")
    assert open_songs(tmp_path)[0].seconds == 1.0


def test_broken_files_are_named(tmp_path):
    write_song(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF junk")
    (tmp_path / "c.flac").write_bytes(b"")
    songs = open_songs(tmp_path)
    assert [song.name for song in songs] == ["a.wav"]
    assert set(songs.left_out) == {"b.wav", "c.flac"}


def test_folders_of_nothing(tmp_path):
    with pytest.raises(AudioFileError, match="There is no folder"):
        open_songs(tmp_path / "nowhere")
    with pytest.raises(AudioFileError, match="holds no audio files"):
        open_songs(tmp_path)
    (tmp_path / "b.wav").write_bytes(b"junk")
    with pytest.raises(AudioFileError, match=r"None of the 1 audio files .* b\.wav"):
        open_songs(tmp_path)
    with pytest.raises(RequestError, match="test_share is 1"):
        open_songs(tmp_path, test_share=1.0)


def test_lengths_are_asked_for(tmp_path):
    for i, seconds in enumerate((1.0, 2.0, 3.0)):
        write_song(tmp_path / f"{i}.wav", seconds)
    songs = open_songs(tmp_path).between(1.5, 3.0)
    assert [song.name for song in songs] == ["1.wav"]
    assert set(songs.left_out) == {"0.wav", "2.wav"}
    with pytest.raises(AudioFileError, match=r"No song .* the longest has 3 s"):
        songs = open_songs(tmp_path).between(10)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("metadata.jsonl", "{", "damaged in line 1"),
        ("metadata.jsonl", '{"text": "x"}', "without file_name"),
        ("metadata.csv", "text\nx\n", "without file_name"),
        ("metadata.csv", b"\xff\xfe", "no table"),
        ("a.json", "[]", "no JSON object"),
        ("data.jsonl", '{"duration": 3}', "without path"),
        ("data.jsonl.gz", "no gzip", "damaged"),
    ],
)
def test_damaged_metadata_are_told(tmp_path, name, text, sentence):
    write_song(tmp_path / "a.wav")
    Path(tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RequestError, match=sentence):
        open_songs(tmp_path)


def test_without_av_a_sentence_and_no_memory_of_it(tmp_path, monkeypatch):
    pytest.importorskip("av")
    write_song(tmp_path / "a.wav")
    write_song(tmp_path / "b.m4a", rate=22050)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    songs = open_songs(tmp_path)
    assert "tunesmith[av]" in songs.left_out["b.m4a"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [song.name for song in open_songs(tmp_path)] == ["a.wav", "b.m4a"]
