"""Tables of artists and genres: read, written, searched."""

import json
from pathlib import Path

import pytest

from tunesmith.conditioning import tables
from tunesmith.conditioning.tables import KINDS, RULES, Table, fold, read_id_files, read_tables, search, write_tables
from tunesmith.errors import CheckpointError, RequestError


def write_ids(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}_ids.txt").write_bytes(text.encode())
    return folder


def test_names_under_both_rules():
    artist, genre = (Table(kind, "v2", {}) for kind in KINDS)
    assert artist.names("  Céline--Dion! ") == ["c_line_dion"]
    assert artist.names("!!!") == [""]
    assert genre.names("Country  Rock/pop") == ["country", "rock", "pop"]
    for kind in KINDS:
        assert Table(kind, "v3", {}).names(" Céline  DION") == [" céline  dion"]


def test_original_files_are_read(golden_tables):
    read = read_id_files(golden_tables)
    for kind in KINDS:
        for rules in RULES:
            text = (golden_tables / f"{rules}_{kind}_ids.txt").read_text(encoding="utf-8")
            pairs = [line.rsplit(";", 1) for line in text.split("\n") if line]
            assert read[kind, rules].ids == {name: int(number) for name, number in pairs}
            assert len(read[kind, rules].ids) > 20


def test_files_of_both_layouts_hold_the_same(golden_tables, tmp_path):
    read = read_id_files(golden_tables)
    write_tables(read, tmp_path / "new")
    again = read_tables(tmp_path / "new")
    assert {key: table.ids for key, table in again.items()} == {key: table.ids for key, table in read.items()}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["artists.json", "genres.json", "lyrics.json"]


def test_a_later_line_counts_and_names_may_hold_anything(tmp_path):
    folder = write_ids(tmp_path, v3_artist="\ufeffSpeaker;1\r\na;b;2\r\n\r\nlast \u2028;4\nspeaker;3", v2_genre="pop;1")
    read = read_id_files(folder)
    assert read["artist", "v3"].ids == {"speaker": 3, "a;b": 2, "last \u2028": 4}
    assert read["artist", "v2"].ids == {}


@pytest.mark.parametrize("text", ["prince", "prince;x", "prince;-1", "a;1\nb;"])
def test_a_bad_line_is_named(tmp_path, text):
    with pytest.raises(CheckpointError, match=r"Line \d of .*v2_artist_ids.txt' is .* instead of 'name;id'"):
        read_id_files(write_ids(tmp_path, v2_artist=text))


def test_a_folder_without_tables_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no id tables; it should hold v2_artist_ids.txt"):
        read_id_files(tmp_path)
    (tmp_path / "v2_artist_ids.txt").write_bytes(b"\xff\xfe;1")
    with pytest.raises(CheckpointError, match="can't be read as UTF-8"):
        read_id_files(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": "1"}', '{"a": -1}', '{"a": true}'])
def test_damaged_tables_are_told(tmp_path, content):
    (tmp_path / "genres.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"genres.json' is damaged"):
        read_tables(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    tables.write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tables.write_json(tmp_path / "a.json", {"a": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


def test_search_ranks_exact_before_prefix_before_fuzzy():
    table = Table("artist", "v3", {"dion": 1, "céline dion": 2, "dione & co": 3, "dixon": 4, "abba": 5})
    found = [(hit.name, hit.id, hit.match) for hit in table.search("Dion")]
    assert found == [
        ("dion", 1, "exact"),
        ("dione & co", 3, "prefix"),
        ("céline dion", 2, "prefix"),
        ("dixon", 4, "fuzzy"),
    ]
    assert [hit.name for hit in table.search("dion", 2)] == ["dion", "dione & co"]
    assert [hit.name for hit in table.search("Celine Dionn")] == ["céline dion"]


def test_search_in_all_tables(folder):
    hits = search(read_tables(folder), "Country Rok")
    assert [(hit.kind, hit.rules, hit.name, hit.match) for hit in hits] == [
        ("genre", "v2", "country", "exact"),
        ("genre", "v2", "rock", "fuzzy"),
        ("genre", "v3", "country rock", "fuzzy"),
    ]
    assert [(hit.rules, hit.id) for hit in search(read_tables(folder), "celine")] == [("v3", 1)]
    assert search(read_tables(folder), "zzzzzz") == []


@pytest.mark.parametrize("text", ["", "  ", "!?", "\ud800"])
def test_search_for_nothing_is_refused(folder, text):
    with pytest.raises(RequestError, match="nothing to search for"):
        search(read_tables(folder), text)


def test_folding():
    assert fold("  Céline_DION & the 王's\u200e ") == "celine dion the wang s"


def test_the_first_name_of_an_id_is_its_name():
    table = Table("artist", "v2", {"unknown": 0, "various": 0, "": 0})
    assert (table.name(0), table.name(7)) == ("unknown", "7")
