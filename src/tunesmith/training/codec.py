"""Teaching an EnCodec to reconstruct a corpus, without discriminators: what a laptop can do in an hour or two."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.training.data import Crops, Shards
from tunesmith.training.losses import MelLoss, soft_si_sdr
from tunesmith.training.runs import MetricTrainer, Schedule, train, write_recipe


def pocket_codec() -> EncodecConfig:
    """The bundled model's codec: 16 kHz mono, 50 frames a second, 4 books of 1024 codes (2 kbit/s), 2 M parameters.

    The short strides sit at the low rates (2·4·5·8 in the decoder's order), because on a CPU the layers at the full
    rate cost most; one LSTM layer holds as much as two at this width.
    """
    return EncodecConfig(
        sampling_rate=16_000,
        hidden_size=64,
        num_filters=16,
        upsampling_ratios=[2, 4, 5, 8],
        num_lstm_layers=1,
        codebook_size=1024,
        target_bandwidths=[2.0],
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode="constant",
    )


@dataclass(frozen=True, kw_only=True)
class CodecRecipe:
    """Train the bundled model's codec on rendered shards of the corpus."""

    data: Path
    """Folder of shards, as the corpus command writes them."""
    run: Path
    """Folder for checkpoints and history; the trained codec is written to its `codec/`."""
    start: Path | None = None
    """Begin from the weights of this codec folder instead of random ones (ignored when the run has a checkpoint)."""
    crop_seconds: float = 1.0
    mel: float = 1.0
    """Weight of the log mel difference (in nepers)."""
    wave: float = 10.0
    """Weight of the mean absolute difference of samples."""
    si_sdr: float = 0.1
    """Weight of each dB of signal-to-distortion ratio."""
    commitment: float = 0.25
    quantize_after: int = 100
    """Updates before the codebooks come in: k-means on an untrained encoder's latents would place them badly."""
    freeze_encoder: bool = False
    """Teach the decoder alone: the codes stay what they are, so a language model can be trained on them meanwhile."""
    schedule: Schedule = field(default_factory=Schedule)


class CodecObjective(nn.Module):
    """Reconstruction through the quantizer, with the figures worth watching."""

    updates: Tensor

    def __init__(self, codec: EncodecModel, recipe: CodecRecipe) -> None:
        super().__init__()
        self.codec, self.recipe = codec, recipe
        self.mel = MelLoss(codec.sample_rate)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        if recipe.freeze_encoder:
            codec.encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "CodecObjective":
        """A frozen encoder's codebooks must not learn either."""
        super().train(mode)
        if self.recipe.freeze_encoder:
            self.codec.quantizer.eval()
        return self

    def forward(self, audio: Float[Tensor, "B T"]) -> dict[str, Tensor]:
        """Loss and its parts for mono crops in [-1, 1]."""
        latents = self.codec.encoder(audio[:, None])
        quantized, commitment = self._quantize(latents.float())
        decoded = self.codec.decoder(quantized)[:, 0]
        with torch.autocast(audio.device.type, enabled=False):
            decoded = decoded.float()
            mel, wave = self.mel(audio, decoded), (audio - decoded).abs().mean()
            ratio = soft_si_sdr(audio, decoded).clamp(min=-30).mean()
            loss = self.recipe.mel * mel + self.recipe.wave * wave - self.recipe.si_sdr * ratio
            loss = loss + self.recipe.commitment * commitment
        return {"loss": loss, "mel": mel, "wave": wave, "si_sdr": ratio, "commitment": commitment}

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.updates += 1
            if self.updates <= self.recipe.quantize_after and not self.recipe.freeze_encoder:
                return latents, latents.new_zeros(())
        output = self.codec.quantizer(latents)
        return output.quantized, output.commitment


def train_codec(recipe: CodecRecipe, config: EncodecConfig | None = None) -> EncodecModel:
    """Run or resume the recipe; the codec as it is at the end is also saved to `run/codec`."""
    write_recipe(recipe.run, recipe)
    torch.manual_seed(recipe.schedule.seed)
    codec = EncodecModel.from_pretrained(recipe.start) if recipe.start else EncodecModel(config or pocket_codec())
    data: Dataset[dict[str, Tensor]] = Crops(
        Shards(recipe.data),
        samples=round(recipe.crop_seconds * codec.sample_rate),
        count=recipe.schedule.steps * recipe.schedule.batch,
        seed=recipe.schedule.seed,
    )
    objective = CodecObjective(codec, recipe)
    trainer: MetricTrainer = train(objective, data, recipe.run, recipe.schedule)
    trained = trainer.accelerator.unwrap_model(trainer.model).codec.eval()
    trained.save_pretrained(recipe.run / "codec")
    return trained
