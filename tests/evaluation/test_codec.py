import math

import pytest
import torch

from tunesmith.evaluation import codec


def test_si_sdr_of_a_known_error():
    reference = torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    orthogonal = torch.tensor([[0.1, 0.1, -0.1, -0.1], [0.5, 0.5, -0.5, -0.5]])
    # An error of a tenth (half) of the amplitude is 20 dB (6.02 dB) down.
    assert codec.si_sdr(reference, reference + orthogonal).tolist() == pytest.approx([20.0, 20 * math.log10(2)])


def test_si_sdr_ignores_scale_and_mean_and_is_bounded():
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 1000, generator=generator)
    noisy = reference + 0.3 * torch.randn(3, 1000, generator=generator)
    torch.testing.assert_close(codec.si_sdr(reference, noisy), codec.si_sdr(reference, -7 * noisy + 2))
    assert codec.si_sdr(reference, reference).tolist() == [100.0] * 3
    assert codec.si_sdr(reference, torch.zeros_like(reference)).tolist() == [-100.0] * 3


def test_a_full_scale_sine_is_at_0_dbfs():
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    level = codec.decibels(codec.power_spectrum(sine, 1024))
    assert level[:, 30].max().item() == pytest.approx(0, abs=0.01)
    assert level.argmax(0)[30] == 64  # 1000 Hz / 16000 Hz * 1024
    assert level.min() == -74


def test_mel_filters_peak_at_their_centres_and_cover_the_band():
    filters = codec.mel_filters(16000, 2048, 40)
    assert filters.shape == (40, 1025)
    assert 0.9 < filters.amax(1).min() <= filters.max() <= 1
    inside = filters.sum(0)[20:900]  # neighbouring triangles add up to one
    torch.testing.assert_close(inside, torch.ones_like(inside))


@pytest.mark.parametrize("distance", [lambda a, b: codec.mel_distance(a, b, 16000), codec.log_spectral_distance])
def test_spectral_distances_of_level_changes(distance):
    audio = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    assert distance(audio, audio).tolist() == [0, 0]
    assert distance(audio, audio / 2).tolist() == pytest.approx([20 * math.log10(2)] * 2, abs=0.05)


def test_what_lies_below_the_floor_costs_nothing():
    hiss = 1e-6 * torch.randn(8000, generator=torch.Generator().manual_seed(0))
    silence = torch.zeros(8000)
    assert codec.mel_distance(silence, hiss, 16000) == 0
    assert codec.log_spectral_distance(silence, hiss) == 0
    assert codec.log_spectral_distance(silence, hiss, floor=-180.0) > 10


def test_code_statistics_by_hand():
    codes = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5]], [[0, 1, 2, 3], [5, 5, 5, 5]]])
    counts = codec.code_counts(codes, 8)
    assert counts.tolist() == [[2, 2, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 8, 0, 0]]
    assert codec.code_usage(counts).tolist() == [0.5, 0.125]
    assert codec.code_perplexity(counts).tolist() == pytest.approx([4, 1])
