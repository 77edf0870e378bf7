"""Teaching a Jukebox: its VQ-VAE on audio, its priors and upsamplers on codes (Dhariwal et al. 2020, §3 and §4).

Losses and metrics are the models' own, under the original's names: `recons_loss_l1`, `spectral_convergence`, `usage`
and so on of the VQ-VAE; `bpd`, `gen_loss`, `prime_loss` (bits per token of music and of lyrics) of priors.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tunesmith.codecs.vqvae import JukeboxVQVAE
from tunesmith.errors import RequestError
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.training.callbacks import Sounds
from tunesmith.training.trainer import Frozen, Objective


class VQVAEObjective(Objective):
    """Reconstruction at every level; in training mode the codebooks learn by their moving averages."""

    model: JukeboxVQVAE

    def __init__(self, model: JukeboxVQVAE, heard: Float[Tensor, "B T"] | None = None) -> None:
        """heard: what `samples` reconstructs."""
        super().__init__()
        self.model, self.heard, self.sample_rate = model, heard, model.sample_rate

    def forward(self, audio: Float[Tensor, "B T"]) -> dict[str, Tensor]:
        """Loss and every metric for mono crops in [-1, 1]."""
        with torch.autocast(audio.device.type, enabled=False):  # half precision changes codes and spectrograms
            output = self.model(audio[..., None])
        return {"loss": output.loss, **output.metrics}

    def samples(self, count: int, seconds: float) -> Sounds:
        """The first clips as they were, and as each level's codes tell them."""
        if self.heard is None:
            return {}
        hop = self.model.hop_lengths[-1]
        length = max(hop, min(self.heard.shape[1], int(seconds * self.sample_rate)) // hop * hop)
        audio = self.heard[:count, :length].to(self.model.device)
        sounds = {f"in_{i}": clip for i, clip in enumerate(audio)}
        for level, codes in enumerate(self.model.encode(audio[..., None])):
            decoded = self.model.decode([codes], level, level + 1)[..., 0]
            sounds |= {f"out_{i}_level_{level}": clip for i, clip in enumerate(decoded)}
        return sounds


class PriorObjective(Objective):
    """Bits per token of one level's codes, given what comes before them, labels, lyrics and the level above.

    Codes come as items of the data, or are made of its audio by a frozen VQ-VAE in every step, as the original does.
    """

    model: JukeboxPrior

    def __init__(
        self, model: JukeboxPrior, codec: JukeboxVQVAE | None = None, shown: dict[str, Tensor] | None = None
    ) -> None:
        """codec: needed for audio and for samples.  shown: labels and codes or audio, a row each, for `samples`."""
        super().__init__()
        self.model, self.shown = model, shown or {}
        self.codec = None if codec is None else Frozen(codec)
        self.level = len(model.config.res_downs_t) - 1 - model.config.level
        self.sample_rate = int(model.config.sampling_rate)

    def forward(
        self,
        codes: Int[Tensor, "B S"] | None = None,
        labels: Int[Tensor, "B Y"] | None = None,
        above: Int[Tensor, "B R"] | None = None,
        audio: Float[Tensor, "B T"] | None = None,
    ) -> dict[str, Tensor]:
        """Loss, and its parts by the original's names.  above: codes of the next level over the same music.

        Raises RequestError for audio without a codec.
        """
        if audio is not None:
            codes, above = self.encoded(audio)
        if codes is None:
            raise RequestError("A prior learns from codes, or from audio with a VQ-VAE; the data has neither.")
        output = self.model(codes, labels if self._reads_labels else None, above)
        music, lyrics = output.music_loss, output.lyrics_loss
        return {"loss": output.loss, "bpd": music.detach(), "gen_loss": music.detach(), "prime_loss": lyrics.detach()}

    @property
    def _reads_labels(self) -> bool:
        config = self.model.config
        return bool(config.metadata_conditioning or config.nb_relevant_lyric_tokens)

    def encoded(self, audio: Float[Tensor, "B T"]) -> tuple[Tensor, Tensor | None]:
        """Codes of this level, and below the top those of the next above.  Raises RequestError without a codec."""
        if self.codec is None:
            raise RequestError("The data is audio; a prior needs a VQ-VAE to make codes of it: give one with --vqvae.")
        codec, upper = self.codec.on(audio.device), self.model.config.level > 0
        with torch.autocast(audio.device.type, enabled=False):
            codes = codec.encode(audio[..., None], self.level, self.level + (2 if upper else 1), bs_chunks=len(audio))
        return codes[0], codes[1] if upper else None

    def samples(self, count: int, seconds: float) -> Sounds:
        """New music under the labels, and above the upper codes, of what is shown; temperature 1."""
        if self.codec is None:
            return {}
        device, config = self.model.device, self.model.config
        shown = {name: tensor[:count].to(device) for name, tensor in self.shown.items()}
        if "audio" in shown:
            _, above = self.encoded(shown.pop("audio"))
            shown |= {} if above is None else {"above": above}
        labels = shown.get("labels") if self._reads_labels else None
        rows = labels if labels is not None else shown.get("above")
        count = count if rows is None else len(rows)
        steps = min(config.n_ctx, max(1, int(seconds * self.sample_rate / config.hop_length)))
        codes = self.model.sample(count, labels=labels, upper_codes=shown.get("above"), sample_tokens=steps, seeds=0)
        decoded = self.codec.on(device).decode([codes], self.level, self.level + 1)[..., 0]
        return {f"sample_{i}": clip for i, clip in enumerate(decoded)}
