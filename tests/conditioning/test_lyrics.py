"""Lyrics of any script become characters that the model knows."""

import importlib.util
import sys
from types import ModuleType

import pytest

from tunesmith.conditioning import lyrics
from tunesmith.conditioning.lyrics import ALPHABETS, Alphabet, spell

V2, V3 = Alphabet(ALPHABETS["v2"]), Alphabet(ALPHABETS["v3"])


@pytest.fixture(autouse=True)
def fresh_spellings():
    """Spellings are remembered, but in these tests libraries come and go."""
    for remembered in (spell, lyrics._library):
        remembered.cache_clear()
    yield
    for remembered in (spell, lyrics._library):
        remembered.cache_clear()


@pytest.fixture
def without_unidecode(monkeypatch):
    monkeypatch.setitem(sys.modules, "unidecode", None)


def test_ids_count_from_one_and_zero_is_padding():
    assert (len(ALPHABETS["v2"]), len(ALPHABETS["v3"])) == (80, 79)
    for alphabet in ALPHABETS.values():
        assert sorted(alphabet.values()) == list(range(len(alphabet)))
        assert alphabet[""] == 0
    assert [ALPHABETS["v3"][c] for c in "Az09.-' \t\n"] == [1, 52, 53, 62, 63, 69, 70, 76, 77, 78]
    assert [ALPHABETS["v2"][c] for c in ".-+' \t\n"] == [63, 69, 70, 71, 77, 78, 79]


def test_only_the_v2_models_know_a_plus_sign():
    assert V2.clean("1 + 1") == "1 + 1"
    assert V3.clean("1 + 1") == "1  1"


def test_backslashes_end_lines_and_other_characters_go():
    assert V3.clean("one\\two\r\n{three} <four> \\\\ *five*_") == "one\ntwo\nthree four \n\n five"


@pytest.mark.usefixtures("without_unidecode")
@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("Près d'un étang — où naît l'été…", "Pres d'un etang -- ou nait l'ete..."),
        ("Straße, Ærø, œuvre, İstanbul", "Strasse, AEro, oeuvre, Istanbul"),
        ("Подмосковные вечера, ёлка", "Podmoskovnye vechera, iolka"),
        ("„Їжак“", ',,Yizhak"'),
        ("改变自己。好", "Gai Bian Zi Ji . Hao "),
        ("まざる ふじ", "mazaru huzi"),
        ("가나다", "ganada"),
        ("Καλημέρα ψυχή", "Kalemera psukhe"),
        ("♪ la 🎵 la ★ ©", " la  la  (c)"),
        ("½ cup", " 12  cup"),
        ("e\u0301te\u0301", "ete"),
        ("\ud800half\udfff", "half"),
        ("\u202eمرحبا", "mrhb"),
    ],
)
def test_scripts_are_spelled(text, spelled):
    assert V3.clean(text) == spelled


@pytest.mark.usefixtures("without_unidecode")
def test_every_character_becomes_some_that_the_model_knows():
    for point in [*range(0x10000), *range(0x10000, sys.maxunicode + 1, 97)]:
        assert spell(chr(point)).isascii()
    everything = "".join(map(chr, range(0x3000)))
    assert min(V3.encode(everything)) > 0
    assert V3.decode(V3.encode(everything)) == V3.clean(everything)


def test_unidecode_is_used_where_it_is_installed(monkeypatch):
    fake = ModuleType("unidecode")
    fake.unidecode = lambda text: f"<{text.upper()}>"
    monkeypatch.setitem(sys.modules, "unidecode", fake)
    assert V3.clean("aé") == "aÉ".replace("É", "")
    assert spell("é") == "<É>"
    assert spell("\ud800") == ""


def test_padding_is_no_character():
    assert V3.decode([0, 0, 8, 35, -1, -1]) == "Hi"
    assert V3.encode("") == []


def test_a_model_with_an_alphabet_of_its_own_keeps_its_script():
    own = Alphabet({"": 0, "ж": 1, "а": 2, "a": 3})
    assert own.encode("Жжа á") == [1, 2, 3]


def test_one_character_is_spelled_once():
    calls = lyrics.spell.cache_info().misses
    V3.clean("é" * 1000)
    assert lyrics.spell.cache_info().misses == calls + 1


@pytest.mark.skipif(importlib.util.find_spec("unidecode") is None, reason="Unidecode (GPL) is not installed")
def test_the_real_unidecode():
    assert V3.clean("日本語の歌詞") == "Ri Ben Yu noGe Ci "
