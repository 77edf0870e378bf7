from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import MissingDependencyError
from tunesmith.training.corpus import render
from tunesmith.training.corpus.music import DRUMS, INSTRUMENTS, LEAD, Note, Score
from tunesmith.training.corpus.render import Renderer, decimate, find_soundfont, level, lowpass, trimmed

SILENCE_DBFS = -60.0


def line(instrument: str = "piano", *, start: float = 0.0, pitch: int = 69) -> Score:
    notes = tuple(Note(start + i * 0.5, start + i * 0.5 + 0.45, pitch, 100, LEAD) for i in range(10))
    return Score(notes=notes, voices={LEAD: instrument}, bpm=60.0)


def tone(frequency: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def test_decimation_keeps_what_fits_and_removes_the_rest() -> None:
    low, high = decimate(tone(1000, 32_000), 2), decimate(tone(9500, 32_000), 2)
    assert len(low) == 16_000
    inner = slice(100, -100)
    assert np.abs(low - tone(1000, 16_000))[inner].max() < 1e-3
    assert np.abs(high[inner]).max() < 1e-3
    assert np.array_equal(decimate(low, 1), low)
    assert len(decimate(tone(100, 48_000), 3)) == 16_000


def test_lowpass_passes_constants() -> None:
    for factor in (2, 3, 4):
        assert lowpass(factor).sum() == pytest.approx(1)


def test_trimming_begins_at_the_first_attack() -> None:
    audio = np.zeros(100, np.float32)
    audio[10] = 0.001
    audio[20:] = 1
    assert np.array_equal(trimmed(audio, 50), audio[20:70])
    assert np.array_equal(trimmed(audio, 50, 15), audio[15:65])  # whole steps are cut
    assert len(trimmed(audio, 95)) == 95  # too late an attack: what there is


def test_levels_are_bounded_by_peak_and_power() -> None:
    organ, click = np.full(1000, 0.01, np.float32), np.zeros(1000, np.float32)
    click[5] = 0.01
    assert np.sqrt(np.mean(level(organ) ** 2)) == pytest.approx(0.14, rel=1e-3)
    assert np.abs(level(click)).max() == pytest.approx(0.89, rel=1e-3)


def test_a_missing_soundfont_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(render.SOUNDFONT_VARIABLE, str(tmp_path / "none.sf3"))
    with pytest.raises(MissingDependencyError, match="is not a file"):
        find_soundfont()
    monkeypatch.delenv(render.SOUNDFONT_VARIABLE)
    monkeypatch.setattr(render, "_FOLDERS", (str(tmp_path),))
    with pytest.raises(MissingDependencyError, match="apt-get install fluidr3mono-gm-soundfont"):
        find_soundfont()


def test_a_chosen_soundfont_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = tmp_path / "mine.sf2"
    chosen.write_bytes(b"")
    monkeypatch.setenv(render.SOUNDFONT_VARIABLE, str(chosen))
    assert find_soundfont() == chosen


def test_a_missing_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    with pytest.raises(MissingDependencyError, match=r"pip install tunesmith\[corpus\]"):
        Renderer(Path("any.sf3"), 16_000)


def test_what_is_no_soundfont_is_named(player: Renderer, tmp_path: Path) -> None:
    (tmp_path / "bad.sf3").write_text("no soundfont")
    with pytest.raises(MissingDependencyError, match=r"bad\.sf3 can't be read as a soundfont"):
        Renderer(tmp_path / "bad.sf3", 16_000)


def test_rendering_is_the_same_whatever_came_before(player: Renderer) -> None:
    first = player.render(line("vibraphone"), 3.0)
    player.render(line("organ", pitch=50), 2.0)
    assert np.array_equal(player.render(line("vibraphone"), 3.0), first)


def test_music_begins_at_once_and_has_the_length_asked_for(player: Renderer) -> None:
    for instrument in ("piano", "strings", "choir"):
        audio = player.render(line(instrument, start=0.2), 2.5)
        assert audio.shape == (40_000,)
        assert audio.dtype == np.float32
        assert np.abs(audio[:800]).max() > 0.01


def test_pitch_is_right(player: Renderer) -> None:
    audio = player.render(line("flute"), 4.0)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert np.fft.rfftfreq(len(audio), 1 / 16_000)[spectrum.argmax()] == pytest.approx(440, abs=4)


def test_every_instrument_sounds_and_sounds_different(player: Renderer) -> None:
    centroids = set()
    for name in INSTRUMENTS:
        audio = player.render(line(name, pitch=60), 2.0)
        spectrum = np.abs(np.fft.rfft(audio))
        assert np.sqrt(np.mean(audio**2)) > 0.03
        centroids.add(round(float((spectrum * np.arange(len(spectrum))).sum() / spectrum.sum())))
    assert len(centroids) == len(INSTRUMENTS)


def test_drums_sound(player: Renderer) -> None:
    notes = tuple(Note(i * 0.5, i * 0.5 + 0.1, (36, 42, 38, 42)[i % 4], 100, DRUMS) for i in range(10))
    audio = player.render(Score(notes=notes, voices={}, bpm=60.0), 3.0)
    windows = audio[: 6 * 8000].reshape(6, 8000)
    assert (20 * np.log10(np.sqrt((windows**2).mean(1))) > SILENCE_DBFS).all()


def test_on_a_grid_the_same_note_gives_the_same_samples(player: Renderer) -> None:
    notes = tuple(Note(beat, beat + 0.3, 76, 90, LEAD) for beat in (0.0, 1.0, 2.0))
    score = Score(notes=notes, voices={LEAD: "piano"}, bpm=97.0, room=0.0)  # a beat of 30.93 frames of 20 ms
    audio = player.render(score, 2.0, 0.02)
    first, second = audio[:5_000], audio[31 * 320 :][:5_000]
    assert np.corrcoef(first, second)[0, 1] > 0.99
    loose = player.render(score, 2.0)
    assert np.corrcoef(loose[:5_000], loose[31 * 320 :][:5_000])[0, 1] < 0.9
