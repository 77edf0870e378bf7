"""The composer writes what its plan says, and its axes are independent."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from tunesmith.errors import RequestError
from tunesmith.training.corpus.composer import FASTEST, SLOWEST, STYLES, Plan, compose, draw_plan
from tunesmith.training.corpus.labels import Labels
from tunesmith.training.corpus.music import (
    ACCOMPANIMENTS,
    BASS,
    BASSES,
    DRUMS,
    INSTRUMENTS,
    LEAD,
    LEADS,
    METRES,
    PAD,
    TONICS,
    Key,
    Score,
)
from tunesmith.training.corpus.render import BEHIND
from tunesmith.training.corpus.split import allowed


def written(index: int, **fixed: object) -> tuple[Plan, Score, Labels]:
    rng = random.Random(index)
    plan = draw_plan(rng, "train", **fixed)
    return plan, *compose(plan, rng, 10.0)


@pytest.fixture(scope="module")
def pieces() -> list[tuple[Plan, Score, Labels]]:
    return [written(index) for index in range(300)]


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    rng = random.Random(5)
    return [draw_plan(rng, "train") for _ in range(4000)]


def test_styles_name_what_exists() -> None:
    assert 12 <= len(STYLES) <= 20
    for style in STYLES.values():
        assert set(style.leads) <= set(LEADS)
        assert set(style.accompaniments) <= set(ACCOMPANIMENTS)
        assert set(style.metres) <= set(METRES)
        assert style.bass in BASSES
        assert SLOWEST <= style.tempo[0] < style.tempo[1] <= FASTEST


def test_labels_are_what_was_written(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    for plan, score, labels in pieces:
        channels = {note.channel for note in score.notes}
        assert labels.drums == (DRUMS in channels)
        assert labels.lead == plan.lead == score.voices[LEAD] == labels.instruments[0]
        assert (BASS in channels) == any(name in BASSES for name in labels.instruments)
        assert channels - {DRUMS} <= set(score.voices)
        assert set(score.voices.values()) == set(labels.instruments)
        assert (labels.bpm, labels.key, labels.metre) == (plan.bpm, plan.key.name, plan.metre)
        assert score.bpm == plan.bpm


def test_nothing_sounds_outside_the_key(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    for plan, score, _ in pieces:
        scale = {(plan.key.tonic + plan.key.semitones(degree)) % 12 for degree in range(7)}
        leading_tone = (plan.key.tonic - 1) % 12
        assert {note.pitch % 12 for note in score.notes if note.channel != DRUMS} <= scale | {leading_tone}


def test_the_tonic_chord_comes_first_and_most(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    for plan, score, _ in pieces:
        if BASS in score.voices:
            lowest = [note.pitch % 12 for note in sorted(score.notes) if note.channel == BASS]
            assert lowest[0] == plan.key.tonic
            assert Counter(lowest)[plan.key.tonic] >= 0.15 * len(lowest)


def test_music_fills_the_clip_from_its_first_moment(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    for _, score, _ in pieces:
        seconds = 60 / score.bpm
        assert min(note.start for note in score.notes) == 0
        assert max(note.end for note in score.notes) * seconds > 10
        sounding = sorted((note.start * seconds, note.end * seconds) for note in score.notes if note.channel != DRUMS)
        reach = 0.0
        for start, end in sounding:
            assert start - reach < 2.5  # seconds without a note
            reach = max(reach, end)


def test_notes_can_be_played(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    for _, score, _ in pieces:
        assert all(0 < n.pitch < 128 and 0 < n.velocity < 128 and n.end > n.start >= 0 for n in score.notes)
        lead = INSTRUMENTS[score.voices[LEAD]]
        assert all(lead.low - 12 <= n.pitch <= lead.high + 12 for n in score.notes if n.channel == LEAD)


def test_the_lead_is_played_louder(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    def loudness(score: Score, channel: int) -> float:  # FluidSynth squares velocity and volume alike
        velocities = [note.velocity for note in score.notes if note.channel == channel]
        return sum(velocities) / len(velocities) * BEHIND.get(channel, 1.0)

    accompanied = [score for _, score, _ in pieces if PAD in score.voices]
    assert all(loudness(score, LEAD) > 1.25 * loudness(score, PAD) for score in accompanied)  # 4 dB


def test_density_is_what_was_asked_for(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    agreed = sum(labels.density == plan.density for plan, _, labels in pieces)
    assert agreed > 0.9 * len(pieces)  # the label is counted, so it is right in any case


def test_moods_fit_mode_and_tempo(pieces: list[tuple[Plan, Score, Labels]]) -> None:
    gloomy, glad = {"sad", "melancholy", "mournful", "tense"}, {"happy", "cheerful", "sunny", "peaceful"}
    for _, _, labels in pieces:
        assert not (gloomy if labels.mode == "major" else glad) & set(labels.moods)
        if labels.bpm > 130 and labels.energy != "gentle":
            assert not {"calm", "peaceful", "sad"} & set(labels.moods)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("metre", METRES)
def test_every_style_in_every_metre(style: str, metre: str) -> None:
    plan, score, labels = written(3, style=style, metre=metre, lead="flute", players=3, drums=True, bpm=66)
    assert (labels.genre, labels.metre) == (style, metre)
    assert {note.channel for note in score.notes} == {LEAD, PAD, BASS, DRUMS}
    assert plan.players == 3


def test_soloists_with_two_hands_accompany_themselves() -> None:
    _, score, labels = written(0, lead="piano", players=1, drums=False)
    assert labels.instruments == ("piano",)
    assert labels.solo
    assert score.voices == {LEAD: "piano", PAD: "piano"}
    _, score, labels = written(0, lead="flute", players=1, drums=False)
    assert {note.channel for note in score.notes} == {LEAD}


def test_chosen_properties_are_kept() -> None:
    fixed = {"bpm": 97, "lead": "harp", "drums": True, "density": "busy", "energy": "gentle", "metre": "3/4"}
    plan, _, labels = written(1, key="Eb minor", **fixed)
    assert plan.key == Key(3, "minor")
    assert all(getattr(plan, name) == value for name, value in fixed.items())
    assert (labels.key, labels.bpm, labels.drums) == ("Eb minor", 97.0, True)


@pytest.mark.parametrize(
    "fixed",
    [
        {"bpm": 40},
        {"bpm": 300},
        {"style": "opera"},
        {"lead": "kazoo"},
        {"metre": "5/4"},
        {"density": "much"},
        {"energy": "wild"},
        {"key": "X major"},
        {"players": 7},
        {"accompaniment": "kazoo"},
        {"bass": "tuba"},
    ],
)
def test_what_the_corpus_does_not_have(fixed: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        draw_plan(random.Random(0), "train", **fixed)


def test_training_never_uses_held_out_pairs(plans: list[Plan]) -> None:
    assert all(allowed(plan.style, plan.lead, "train") for plan in plans)
    rng = random.Random(1)
    test = [draw_plan(rng, "test") for _ in range(1000)]
    assert all(allowed(plan.style, plan.lead, "test") for plan in test)
    held_out = sum(not allowed(plan.style, plan.lead, "train") for plan in test)
    assert 200 < held_out < 400


# ---- the axes -------------------------------------------------------------------------------------------------------


def chi_square(pairs: list[tuple[object, object]]) -> tuple[float, int]:
    """Pearson's statistic of a contingency table, and its degrees of freedom."""
    table, rows, columns = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = {(a, b): rows[a] * columns[b] / len(pairs) for a in rows for b in columns}
    statistic = sum((table[cell] - mean) ** 2 / mean for cell, mean in expected.items())
    return statistic, (len(rows) - 1) * (len(columns) - 1)


def spread(pairs: list[tuple[object, object]]) -> float:
    """How far a table is from independence, in standard deviations of the statistic."""
    statistic, freedom = chi_square(pairs)
    return (statistic - freedom) / (2 * freedom) ** 0.5


def axes(plan: Plan) -> dict[str, object]:
    tempo = "slow" if plan.bpm < 85 else "medium" if plan.bpm < 115 else "fast"
    return {
        "tonic": plan.key.tonic,
        "mode": plan.key.mode,
        "tempo": tempo,
        "lead": plan.lead,
        "drums": plan.drums,
        "density": plan.density,
        "energy": plan.energy,
        "style": plan.style,
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("tonic", axis) for axis in ("mode", "tempo", "lead", "drums", "density", "energy", "style")),
        *(("mode", axis) for axis in ("tempo", "lead", "drums", "density", "energy", "style")),
        *(("drums", axis) for axis in ("tempo", "lead", "density", "energy", "style")),
        *(("density", axis) for axis in ("tempo", "lead", "energy", "style")),
    ],
)
def test_axes_are_independent(plans: list[Plan], one: str, other: str) -> None:
    pairs = [(axes(plan)[one], axes(plan)[other]) for plan in plans]
    assert abs(spread(pairs)) < 4


def test_dependence_would_be_seen(plans: list[Plan]) -> None:
    assert spread([(plan.style, plan.lead) for plan in plans]) > 20
    assert spread([(plan.key.tonic, plan.key.tonic % 2) for plan in plans]) > 20


def test_leads_and_tempos_lean_on_the_style_but_do_not_follow_from_it(plans: list[Plan]) -> None:
    for style, usual in STYLES.items():
        leads = Counter(plan.lead for plan in plans if plan.style == style)
        away = sum(count for name, count in leads.items() if name not in usual.leads) / leads.total()
        assert 0.1 < away < 0.45
        assert len(leads) > 15
        tempos = [plan.bpm for plan in plans if plan.style == style]
        assert min(tempos) < 70
        assert max(tempos) > 160


def test_keys_are_uniform(plans: list[Plan]) -> None:
    tonics = Counter(plan.key.tonic for plan in plans)
    expected = len(plans) / len(TONICS)
    assert sum((tonics[tonic] - expected) ** 2 / expected for tonic in range(12)) < 31.3  # p = 0.001 at 11 degrees
    assert 0.45 < sum(plan.key.mode == "minor" for plan in plans) / len(plans) < 0.55
    assert 0.45 < sum(plan.drums for plan in plans) / len(plans) < 0.55


def test_labels_survive_json() -> None:
    import json

    _, _, labels = written(2)
    assert Labels.from_dict(json.loads(json.dumps(labels.as_dict()))) == labels
    assert replace(labels, drums=not labels.drums) != labels
