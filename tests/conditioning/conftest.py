import json
from pathlib import Path

import pytest

from tunesmith.conditioning.tables import Tables, read_id_files, write_tables

ARTISTS = {"alan jackson": 3, "céline dion": 1, "zoë & the zeros": 2, "unknown": 0, "1975": 7, "the mint": 4}
V2_ARTISTS = {"unknown": 0, "": 0, "alan_jackson": 9, "c_line_dion": 5, "the_mint": 2}
GENRES = {"unknown": 0, "country rock": 2, "pop": 1}
V2_GENRES = {"unknown": 0, "country": 4, "rock": 3, "pop": 1, "hip": 2, "hop": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's tables and settings as Hugging Face has them, with names of our own."""
    for name, v3, v2 in (("artists", ARTISTS, V2_ARTISTS), ("genres", GENRES, V2_GENRES)):
        ids = v3 | {f"{key}.v2": number for key, number in v2.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps(ids), encoding="utf-8")
    settings = {"version": ["v3", "v2", "v2"], "n_genres": 1, "max_n_lyric_tokens": 16, "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


@pytest.fixture(params=["tables", "tables_more"])
def golden_tables(request: pytest.FixtureRequest, goldens: Path) -> Path:
    """A folder of the original's four files, abridged."""
    return goldens / "jukebox" / "labels" / str(request.param)


@pytest.fixture
def golden_folder(goldens: Path, tmp_path: Path) -> Path:
    """The original's tables, abridged, as Hugging Face's files."""
    tables: Tables = read_id_files(goldens / "jukebox" / "labels" / "tables")
    write_tables(tables, tmp_path)
    return tmp_path
