"""Teaching MusicGen's language model on codes and text (Copet et al. 2023, §3 and appendix A)."""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from tunesmith.errors import RequestError
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.training.callbacks import Sounds
from tunesmith.training.encoded import IGNORED, delayed
from tunesmith.training.trainer import Objective


class MusicgenObjective(Objective):
    """Cross-entropy of each codebook, delayed as in generation; codec and text encoder rest."""

    model: MusicgenForConditionalGeneration

    def __init__(
        self,
        model: MusicgenForConditionalGeneration,
        condition_dropout: float = 0.3,
        shown: dict[str, Tensor] | None = None,
    ) -> None:
        """condition_dropout: share of items whose text is withheld; shown: texts for `samples`, as token ids."""
        super().__init__()
        self.model, self.condition_dropout, self.shown = model, condition_dropout, shown or {}
        self.sample_rate = int(model.config.audio_encoder.sampling_rate)
        model.text_encoder.requires_grad_(False)
        model.freeze_audio_encoder()

    def forward(
        self,
        codes: Int[Tensor, "B K S"] | None = None,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        encoder_hidden_states: Float[Tensor, "B L W"] | None = None,
        encoder_attention_mask: Shaped[Tensor, "B L"] | None = None,
        audio: Float[Tensor, "B T"] | Float[Tensor, "B C T"] | None = None,
    ) -> dict[str, Tensor]:
        """Loss, and `ce`, `ppl`, `ce_q1`, ... by the original's names.

        Codes, or audio that the codec makes codes of; text as token ids or as the states of the text encoder.
        Raises RequestError where either is missing.
        """
        if audio is not None:
            codes = self.model.encode_prompt(audio[:, None] if audio.ndim == 2 else audio)
        mask = attention_mask if encoder_attention_mask is None else encoder_attention_mask
        if codes is None or mask is None:
            raise RequestError("MusicGen learns from codes or audio, and texts; the data lacks one of them.")
        labels = delayed(codes, self.model.config.decoder.audio_channels)
        output = self.model(
            input_ids=input_ids,
            attention_mask=self._withheld(mask),
            encoder_outputs=None if encoder_hidden_states is None else BaseModelOutput(encoder_hidden_states),
            labels=labels,
        )
        logits = output.logits.detach().unflatten(0, (len(codes), -1)).float()  # [B, K, S, V]
        parts = [
            functional.cross_entropy(logits[:, k].flatten(0, 1), labels[..., k].flatten(), ignore_index=IGNORED)
            for k in range(codes.shape[1])
        ]
        named = {f"ce_q{k + 1}": part for k, part in enumerate(parts)}
        loss = output.loss
        return {"loss": loss, "ce": loss.detach(), "ppl": torch.stack([part.exp() for part in parts]).mean(), **named}

    def _withheld(self, mask: Tensor) -> Tensor:
        """A mask that is 0 throughout for some of the items, while the model learns."""
        if not self.training or not self.condition_dropout:
            return mask
        said = torch.rand(len(mask)) >= self.condition_dropout
        return mask * said[:, None].to(mask)

    def samples(self, count: int, seconds: float) -> Sounds:
        """Music to the texts that are shown."""
        if not self.shown:
            return {}
        rows: dict[str, Any] = {name: tensor[:count].to(self.model.device) for name, tensor in self.shown.items()}
        frames = max(1, int(seconds * self.model.frame_rate))
        audio = self.model.generate(**rows, max_new_tokens=frames, seeds=list(range(len(rows["input_ids"]))))
        return {f"sample_{i}": clip.mean(0) for i, clip in enumerate(audio)}
