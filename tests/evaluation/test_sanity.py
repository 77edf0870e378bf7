import pytest
import torch

from tunesmith.evaluation import sanity

RATE = 16000


def sine(seconds=2.0, frequency=440.0, level=0.5):
    return level * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)


def noise(seconds=2.0):
    return 0.1 * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0))


def plucks(period=0.5, seconds=4.0):
    """Decaying tones every `period` seconds, the first after a quarter of a second."""
    time = torch.arange(int(seconds * RATE)) / RATE - 0.25
    return torch.where(time >= 0, sine(seconds) * (-6 * (time % period)).exp(), 0.0)


def test_figures_of_a_sine():
    found = sanity.measure(sine(), RATE)
    assert found.rms_dbfs == pytest.approx(-9.03, abs=0.01)
    assert found.crest_db == pytest.approx(3.01, abs=0.01)
    assert (found.clipped_share, found.silent_share) == (0, 0)
    assert found.flatness < 0.001


def test_white_noise_is_noise_and_music_is_not():
    assert sanity.flatness(noise()) == pytest.approx(0.5615, abs=0.02)  # exp(-Euler's constant)
    assert sanity.problems(sanity.measure(noise(), RATE)) == ["noise"]
    assert sanity.problems(sanity.measure(plucks(), RATE)) == []


def test_silence_is_silent():
    found = sanity.measure(torch.zeros(RATE), RATE)
    assert found.silent_share == 1
    assert found.onsets_per_second == 0
    assert "silent" in sanity.problems(found)
    half = torch.cat([torch.zeros(16 * 1024), sine(16 * 1024 / RATE)])
    assert sanity.measure(half, RATE).silent_share == 0.5


def test_clipping_is_found_but_single_peaks_are_not():
    clipped = (2 * plucks()).mul(4).clamp(-1, 1)
    assert "clipped" in sanity.problems(sanity.measure(clipped, RATE))
    peak = plucks()
    peak[[100, 5000]] = 1.0
    assert sanity.measure(peak, RATE).clipped_share == 0
    peak[101] = 1.0
    assert sanity.measure(peak, RATE).clipped_share == pytest.approx(2 / len(peak))


def test_a_buzz_without_peaks_is_clipped():
    assert sanity.problems(sanity.measure(sine(level=0.3).sign() * 0.5, RATE)) == ["clipped"]


@pytest.mark.parametrize("period", [0.25, 0.5, 1.0])
def test_onsets_of_plucks(period):
    times = sanity.onsets(plucks(period), RATE)
    expected = [0.25 + n * period for n in range(int(3.75 / period - 1e-6) + 1)]
    assert times == pytest.approx(expected, abs=0.05)
    assert sanity.onsets(sine(), RATE) == []


def test_a_pulse_is_told_from_chance():
    regular = sanity.pulse(plucks(0.5), RATE)
    loose = torch.zeros(4 * RATE)
    for start in torch.rand(8, generator=torch.Generator().manual_seed(0)) * 3.9:
        loose[int(start * RATE) :][:200] = 0.5
    assert regular > 0.6 > 0.45 > sanity.pulse(loose, RATE)
    assert sanity.pulse(torch.zeros(2 * RATE), RATE) == 0.0
