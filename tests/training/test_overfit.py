"""Ten clips are learnt by heart within a stated number of steps: what a bug in an objective would prevent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig, measure_bandwidth
from tunesmith.models.jukebox import JukeboxPrior, JukeboxPriorConfig
from tunesmith.training.jukebox import PriorObjective, VQVAEObjective
from tunesmith.training.losses import soft_si_sdr
from tunesmith.training.runs import Objective, Schedule, train


class Clips(Dataset[dict[str, Tensor]]):
    def __init__(self, items: list[dict[str, Tensor]], count: int) -> None:
        self.items, self.count = items, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index % len(self.items)]


def learn(goal: Objective, items: list[dict[str, Tensor]], run: Path, steps: int, **changes: Any) -> Objective:
    torch.set_num_threads(1)
    settings = {"warmup": 10, "clip": 1.0, "weight_decay": 0.0, "beta2": 0.95, "log_every": 100, "batch": 10}
    schedule = Schedule(**{**settings, "steps": steps, **changes})
    train(goal, Clips(items, steps * schedule.batch), run, schedule)
    return goal.eval()


PRIOR: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 3,
    "n_heads": 1,
    "blocks": 4,
    "n_ctx": 64,
    "music_vocab_size": 64,
    "metadata_conditioning": False,
    "nb_relevant_lyric_tokens": 0,
    "lyric_vocab_size": 0,
    "is_encoder_decoder": False,
    "merged_decoder": False,
    "attention_pattern": "raw_column_previous_row_attention",
    "init_scale": 0.7,
    "res_downs_t": [1, 1],
    "res_strides_t": [2, 2],
    "res_conv_width": 16,
    "res_conv_depth": 1,
}


@pytest.mark.parametrize("level", [0, 1])
def test_priors_come_below_a_tenth_of_a_bit_in_140_steps(tmp_path: Path, level: int) -> None:
    """Windows whose first code differs, so that all that follows can be known."""
    torch.manual_seed(0)
    codes = torch.randint(64, (10, 64))
    codes[:, 0] = torch.arange(10)
    above = {"above": torch.randint(64, (10, 32))} if level else {}
    items = [{"codes": codes[i], **{name: value[i] for name, value in above.items()}} for i in range(10)]
    goal = PriorObjective(JukeboxPrior(JukeboxPriorConfig(**PRIOR, level=level)))
    learn(goal, items, tmp_path, 140, learning_rate=1e-2)
    with torch.no_grad():
        assert goal(codes=codes, **above)["bpd"] < 0.1  # which of ten clips it is costs log2(10) / 64 = 0.05 of that


def test_a_codec_reaches_15_db_in_180_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    t = torch.arange(1152) / 2000
    notes = [80.0, 100.0, 120.0, 140.0, 160.0, 180.0, 200.0, 220.0, 240.0, 260.0]
    clips = torch.stack([0.5 * torch.sin(2 * torch.pi * f * t) * (1 - t / 2) for f in notes])
    config = JukeboxVQVAEConfig(
        sampling_rate=2000,
        levels=1,
        nb_discrete_codes=256,
        embed_dim=16,
        res_downs_t=[2],
        res_strides_t=[2],
        multipliers=[1],
        res_conv_width=16,
        res_conv_depth=2,
        loss_fn="l2",
        bandwidth=measure_bandwidth([clips[..., None]]),
    )
    goal = VQVAEObjective(JukeboxVQVAE(config))
    learn(goal, [{"audio": clip} for clip in clips], tmp_path, 180, learning_rate=6e-3)
    codec = goal.model
    with torch.no_grad():
        heard = codec.decode(codec.encode(clips[..., None]))[..., 0]
    assert soft_si_sdr(clips, heard).min() > 15
