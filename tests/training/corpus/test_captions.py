"""Captions say something, say only what is true, and use only words of the vocabulary."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from tunesmith.training.corpus.captions import (
    DENSITY_WORDS,
    GENRES,
    INSTRUMENT_WORDS,
    METRE_WORDS,
    MOOD_SYNONYMS,
    TEMPLATES,
    TEMPO_WORDS,
    describe,
    genre_words,
    key_names,
    split_words,
    tempo_words,
    unknown_words,
    vocabulary,
)
from tunesmith.training.corpus.composer import STYLES, compose, draw_plan
from tunesmith.training.corpus.labels import MOODS, Labels, arousal_of, density_of
from tunesmith.training.corpus.music import INSTRUMENTS, METRES, TONICS

LABELS = Labels(
    source="composed",
    title="a song",
    work="a song",
    genre="pop",
    bpm=123.0,
    tonic="Eb",
    mode="minor",
    metre="3/4",
    lead="violin",
    instruments=("violin", "piano", "electric bass"),
    drums=True,
    density="busy",
    notes_per_second=4.0,
    energy="strong",
    moods=("tense", "dramatic"),
)


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Labels, str]]:
    """Captions without typos for many different clips, among them all genres."""
    rng, labels = random.Random(0), []
    for i in range(1500):
        piece = compose(draw_plan(rng, "train"), rng, 2.0)[1]
        labels.append(piece if i % 2 else replace(piece, genre=rng.choice(list(GENRES))))
    return [(item, describe(item, rng, typos=0.0)) for item in labels for _ in range(4)]


def test_tables_are_complete() -> None:
    assert set(INSTRUMENT_WORDS) == set(INSTRUMENTS)
    assert set(METRE_WORDS) == set(METRES)
    assert set(STYLES) <= set(GENRES)
    assert set(MOOD_SYNONYMS) <= {mood for moods in MOODS.values() for mood in moods}
    assert len(TEMPLATES) == len(set(TEMPLATES)) >= 25


def test_moods_of_major_and_minor_share_no_word() -> None:
    def words(mode: str) -> set[str]:
        moods = [mood for (of, _), found in MOODS.items() if of == mode for mood in found]
        return {word for mood in moods for word in MOOD_SYNONYMS.get(mood, (mood,))}

    assert words("major") & words("minor") <= {"quiet"}  # which is said of dynamics in both


def test_every_word_is_in_the_vocabulary(captioned: list[tuple[Labels, str]]) -> None:
    known = set(vocabulary())
    assert {word for _, caption in captioned for word in split_words(caption)} <= known
    assert 400 <= len(known) <= 1000
    assert list(vocabulary()) == sorted(known)
    assert all(word == word.lower() and split_words(word) == [word] for word in known)


def test_captions_are_lower_case_and_tidy(captioned: list[tuple[Labels, str]]) -> None:
    for _, caption in captioned:
        assert caption == caption.lower() == caption.strip(" ,")
        assert not re.search(r"[\[\]{}|]|  |,,| ,|\ba [aeio]\w|\ban [bcdfgjkmpqstvwz]", caption), caption


def test_captions_differ_in_form_and_length(captioned: list[tuple[Labels, str]]) -> None:
    lengths = Counter(len(caption.split()) for _, caption in captioned)
    assert len({caption for _, caption in captioned}) > 0.8 * len(captioned)
    assert sum(lengths[n] for n in (1, 2)) > 0.1 * len(captioned)
    assert sum(count for n, count in lengths.items() if n >= 8) > 0.2 * len(captioned)


def mentions(caption: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w#-])", caption) for phrase in phrases)


def test_instruments_and_drums_are_true(captioned: list[tuple[Labels, str]]) -> None:
    for labels, caption in captioned:
        said = re.sub(r"\b(no|without) \w+|drumless|beats per minute", "", caption)
        for name, words in INSTRUMENT_WORDS.items():
            special = tuple(word for word in words if sum(word in other for other in INSTRUMENT_WORDS.values()) == 1)
            special = tuple(w for w in special if w not in ("strings", "brass", "organ", "bass", "voices", "pipes"))
            if name not in labels.instruments and mentions(said, special):
                shared = [w for n in labels.instruments for w in INSTRUMENT_WORDS[n] if mentions(w, special)]
                assert shared, (labels.instruments, caption)
        assert labels.drums or not mentions(said, ("drums", "percussion", "drum", "beat", "beats")), caption
        assert not labels.drums or not mentions(caption, ("no drums", "drumless", "no percussion", "without drums"))


@pytest.mark.parametrize(
    ("word", "instruments"),
    [
        ("piano", {"piano", "electric piano"}),
        ("guitar", {"acoustic guitar", "electric guitar", "distorted guitar"}),
        ("bass", {"acoustic bass", "electric bass", "synth bass"}),
        ("vocals", {"choir"}),
        ("strings", {"strings", "violin", "cello"}),
        ("brass", {"brass", "trumpet", "trombone", "french horn"}),
    ],
)
def test_negations_are_true(captioned: list[tuple[Labels, str]], word: str, instruments: set[str]) -> None:
    denied = [labels for labels, caption in captioned if mentions(caption, (f"no {word}", f"without {word}"))]
    assert denied
    assert not any(instruments & set(labels.instruments) for labels in denied)


def test_numbers_keys_and_metres_are_true(captioned: list[tuple[Labels, str]]) -> None:
    exact = 0
    for labels, caption in captioned:
        for around, number in re.findall(r"(around )?(\d+) (?:bpm|beats)", caption):
            assert abs(int(number) - labels.bpm) <= (5 if around else 0)
            exact += not around
        for key in re.findall(r"\b[a-g](?:#|b| sharp| flat)? (?:major|minor)\b", caption):
            assert key in key_names(labels.tonic, labels.mode), (labels.key, caption)
        assert not mentions(caption, ("minor" if labels.mode == "major" else "major",))
        for metre, words in METRE_WORDS.items():
            assert metre == labels.metre or not mentions(caption, words), caption
    assert exact > 0.15 * len(captioned)


def test_solo_means_alone(captioned: list[tuple[Labels, str]]) -> None:
    alone = [labels for labels, caption in captioned if mentions(caption, ("solo", "unaccompanied", "alone"))]
    assert alone
    assert all(len(labels.instruments) == 1 and not labels.drums for labels in alone)
    pairs = [labels for labels, caption in captioned if mentions(caption, ("duo", "duet"))]
    assert pairs
    assert all(len(labels.instruments) == 2 and not labels.drums for labels in pairs)


def test_words_for_tempo_density_and_dynamics(captioned: list[tuple[Labels, str]]) -> None:
    for labels, caption in captioned:
        assert labels.bpm < 90 or not mentions(caption, ("very slow", "adagio", "largo"))
        assert labels.bpm >= 118 or not mentions(caption, ("very fast", "allegro", "presto", "rapid"))
        for density, words in DENSITY_WORDS.items():
            assert density == labels.density or not mentions(caption, words), caption
        assert labels.energy != "gentle" or not mentions(caption, ("loud", "heavy drums", "forceful"))
        assert labels.energy != "strong" or not mentions(caption, ("delicate", "softly", "subtle"))


def test_electronic_and_acoustic(captioned: list[tuple[Labels, str]]) -> None:
    for labels, caption in captioned:
        tags = caption.split(", ")
        if "electronic" in tags or "synthetic" in tags:
            assert any(name.startswith("synth") for name in labels.instruments)
        if "acoustic" in tags:
            assert not any("electric" in name or "synth" in name for name in labels.instruments)


def test_beats_only_with_drums() -> None:
    house = replace(LABELS, genre="lofi", drums=True)
    assert "chill beats" in genre_words(house)
    assert not any("beat" in word for word in genre_words(replace(house, drums=False)))


def test_collections_lend_their_adjectives() -> None:
    assert "irish jig" in genre_words(replace(LABELS, genre="jig", source="O'Neill's Music of Ireland"))
    assert not any("irish" in word for word in genre_words(replace(LABELS, genre="jig", source="Aird's Airs")))


def test_each_attribute_is_kept_often_and_dropped_often() -> None:
    rng = random.Random(1)
    captions = [describe(LABELS, rng, typos=0.0) for _ in range(3000)]
    shares = {
        "lead": sum(mentions(c, ("violin", "fiddle", "violinist")) for c in captions) / 3000,
        "drums": sum(mentions(c, ("drums", "percussion", "drum", "beat")) for c in captions) / 3000,
        "key": sum("minor" in c for c in captions) / 3000,
        "tempo": sum(mentions(c, ("123", "120", "fast", "brisk", "quick", "allegro", "fast-paced")) for c in captions)
        / 3000,
        "genre": sum(mentions(c, ("pop",)) for c in captions) / 3000,
    }
    assert all(0.25 < share < 0.75 for share in shares.values()), shares
    assert {"violin", "tense", "pop"} <= set(captions)


def test_the_same_chance_gives_the_same_caption() -> None:
    captions = [describe(LABELS, random.Random(seed)) for seed in range(50)]
    assert captions == [describe(LABELS, random.Random(seed)) for seed in range(50)]
    assert len(set(captions)) > 40


def test_typos_are_rare_and_leave_numbers_alone() -> None:
    rng = random.Random(2)
    captions = [describe(LABELS, rng) for _ in range(3000)]
    words = [word for caption in captions for word in split_words(caption)]
    unknown = [word for word in words if unknown_words(word)]
    assert 0.004 < len(unknown) / len(words) < 0.03
    assert not any(word[0].isdigit() for word in unknown)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("F# minor, 3/4!", ["f#", "minor", "3/4"]),
        ("Laid-back lo-fi at 90bpm", ["laid-back", "lo-fi", "at", "90", "bpm"]),
        ("an 80s O’Neill's tune…", ["an", "80s", "o'neill's", "tune"]),
        ("bpm: 130", ["bpm", "130"]),
        ("  ", []),
        ("🎵 piano_solo", ["piano", "solo"]),
    ],
)
def test_splitting_words(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    "prompt",
    [
        "80s pop with bassy drums",
        "90s rock song with loud guitars and heavy drums",
        "a cheerful country song with acoustic guitars",
        "piano in c# minor, 66 bpm, no drums",
        "145 bpm harpsichord melody, bb major, with drums",
        "happy rock",
        "slow sad violin solo",
    ],
)
def test_common_prompts_are_understood(prompt: str) -> None:
    assert unknown_words(prompt) == []


def test_unknown_words_are_named_once_in_order() -> None:
    assert unknown_words("Zydeco accordion with theremin, zydeco!") == ["zydeco", "theremin"]


def test_key_names() -> None:
    assert key_names("D", "minor") == ("d minor",)
    assert set(key_names("F#", "major")) == {"f# major", "gb major", "f sharp major", "g flat major"}
    assert all(key_names(tonic, "minor")[0] == f"{tonic} minor".lower() for tonic in TONICS)


def test_classes() -> None:
    assert [density_of(rate) for rate in (0.5, 2.0, 5.0)] == ["sparse", "steady", "busy"]
    assert [arousal_of(bpm, "moderate") for bpm in (60.0, 105.0, 150.0)] == ["calm", "even", "lively"]
    assert arousal_of(105.0, "strong") == "even"
    assert arousal_of(120.0, "strong") == "lively"
    assert tempo_words(60.0) != tempo_words(100.0) != tempo_words(170.0)
    assert TEMPO_WORDS[-1][0] > 180
