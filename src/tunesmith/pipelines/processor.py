"""Words and sound to the tensors that MusicGen takes, and back."""

from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import AutoTokenizer, EncodecFeatureExtractor, ProcessorMixin, T5Config
from transformers.feature_extraction_utils import BatchFeature
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tunesmith.errors import RequestError
from tunesmith.nn.pretrained import bundled

Audio = Shaped[np.ndarray, "C _"]


class MusicgenProcessor(ProcessorMixin):
    """A feature extractor for audio prompts and a tokenizer for text, as one."""

    def __init__(self, feature_extractor: EncodecFeatureExtractor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(feature_extractor, tokenizer)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # transformers names each keyword
        cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any
    ) -> "MusicgenProcessor":
        """From a checkpoint folder or hub id; keywords say where to look (`revision`, `cache_dir`, ...)."""
        extractor = EncodecFeatureExtractor.from_pretrained(bundled(pretrained_model_name_or_path), **kwargs)
        return cls(extractor, load_tokenizer(pretrained_model_name_or_path, **kwargs))

    def __call__(
        self,
        audio: Any = None,
        text: str | list[str] | None = None,
        *,
        sampling_rate: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tensors for `generate`: input_ids and attention_mask of text, input_values [B, C, T] and padding_mask [B,
        T] of audio.

        audio: one clip or a list, [T] or for stereo models [2, T], at `sampling_rate` Hz; shorter ones are padded on
        the left. Other keywords go to the tokenizer.  Raises RequestError without either, ValueError for a wrong
        sampling rate.
        """
        if audio is None and text is None:
            raise RequestError("The processor needs text, audio, or both.")
        features: dict[str, Any] = {}
        if text is not None:
            options = {} if padding is None else {"padding": padding}
            features |= self.tokenizer(text, return_tensors=return_tensors, **options, **kwargs)
        if audio is not None:
            features |= self.feature_extractor(
                audio, sampling_rate=sampling_rate, padding=padding, return_tensors=return_tensors
            )
        return BatchFeature(features)

    def batch_decode(
        self, *args: Any, audio: Any = None, padding_mask: Any = None, **kwargs: Any
    ) -> list[Audio] | list[str]:
        """Audio [B, C, T] (the first argument) to a list of arrays [C, n] without the prompts' padding; without
        audio, ids to texts.
        """
        if args and audio is None and getattr(args[0], "ndim", 0) == 3:
            audio, args = args[0], args[1:]
        if audio is None:
            return self.tokenizer.batch_decode(*args, **kwargs)
        return unpad(audio, padding_mask)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Ids to text."""
        return self.tokenizer.decode(*args, **kwargs)


def load_tokenizer(name_or_path: str | PathLike[str], **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a MusicGen checkpoint: of the class that its own files name, else T5's."""
    return AutoTokenizer.from_pretrained(bundled(name_or_path), config=T5Config(), **kwargs)


def unpad(
    audio: Shaped[Tensor, "B C T"] | Shaped[np.ndarray, "B C T"],
    padding_mask: Shaped[Tensor, "B P"] | Shaped[np.ndarray, "B P"] | None = None,
) -> list[Audio]:
    """Leave out the samples that the mask marks with 0; what lies beyond the mask was generated and stays.

    Raises RequestError for a mask of another number of clips.
    """
    clips = _array(audio)
    if padding_mask is None:
        return list(clips)
    mask = _array(padding_mask).astype(bool)[:, : clips.shape[-1]]
    if len(mask) != len(clips):
        raise RequestError(f"The padding mask is of {len(mask)} clips and there are {len(clips)}; give one row each.")
    mask = np.pad(mask, ((0, 0), (0, clips.shape[-1] - mask.shape[-1])), constant_values=True)
    return [clip[:, keep] for clip, keep in zip(clips, mask, strict=True)]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().float().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
