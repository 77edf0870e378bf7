"""A hash of what a codec's codes mean: the same for the same codes, whatever holds the codec."""

from pathlib import Path

import pytest
import torch

from tiny import save_tiny_folder, tiny_musicgen
from tiny_jukebox import save_tiny_jukebox, tiny_jukebox
from tunesmith.convert.fingerprint import codes_hash


def test_alone_or_in_a_model(tmp_path: Path) -> None:
    whole, jukebox = save_tiny_folder(tmp_path / "m"), save_tiny_jukebox(tmp_path / "j", max_shard_size="20KB")
    tiny_musicgen().audio_encoder.save_pretrained(tmp_path / "encodec")
    tiny_jukebox().vqvae.save_pretrained(tmp_path / "vqvae")
    tiny_jukebox().priors[0].save_pretrained(tmp_path / "prior")
    assert codes_hash(whole) == codes_hash(tmp_path / "encodec")
    for dtype in (torch.float16, torch.bfloat16):
        assert codes_hash(save_tiny_folder(tmp_path / str(dtype), dtype)) == codes_hash(whole)
    assert codes_hash(jukebox) == codes_hash(tmp_path / "vqvae")
    assert codes_hash(whole) != codes_hash(jukebox)
    assert codes_hash(tmp_path / "prior") is None


def test_a_step_of_training_makes_another(tmp_path: Path) -> None:
    model = tiny_jukebox().vqvae.train()
    model.save_pretrained(tmp_path / "0")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    model(torch.randn(1, 2048, 1)).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path / "1")
    assert codes_hash(tmp_path / "0") != codes_hash(tmp_path / "1")


@pytest.mark.parametrize(
    ("part", "counts"),
    [
        ("decoders.0.level_blocks.0.proj_in.bias", False),
        ("bottleneck.level_blocks.0.k_sum", False),
        ("bottleneck.level_blocks.2.codebook", True),
        ("encoders.1.level_blocks.0.proj_out.bias", True),
    ],
)
def test_encoder_and_codebooks_count(tmp_path: Path, part: str, counts: bool) -> None:
    hashes = []
    for number in (0, 1):
        model = tiny_jukebox().vqvae
        with torch.no_grad():
            model.state_dict()[part].add_(number)
        model.save_pretrained(tmp_path / str(number))
        hashes.append(codes_hash(tmp_path / str(number)))
    assert (hashes[0] != hashes[1]) == counts
