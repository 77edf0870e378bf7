"""What MusicGen's decoder is made of: its configuration, and the sizes that were released."""

import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from tunesmith.errors import RequestError
from tunesmith.nn.pretrained import BundledConfig
from tunesmith.nn.transformer import ACTIVATIONS


@typing.no_type_check
class MusicgenDecoderConfig(BundledConfig):
    """What the decoder is made of; the defaults are those of facebook/musicgen-small.

    `**config` unpacks the arguments below.  Token ids left at None become `vocab_size`, the special token.
    """

    model_type = "musicgen_decoder"
    base_config_key = "decoder"
    keys_to_ignore_at_inference: typing.ClassVar = ["past_key_values"]

    vocab_size: int = 2048  # codes in a codebook; embeddings have one row more
    max_position_embeddings: int = 2048  # longest sequence that `generate` attempts
    num_hidden_layers: int = 24
    ffn_dim: int = 4096
    num_attention_heads: int = 16
    layerdrop: float = 0.0  # share of layers left out in training
    use_cache: bool = True  # does `forward` return keys and values
    activation_function: str | Callable[[Tensor], Tensor] = "gelu"  # or "relu", "silu", "gelu_new"
    hidden_size: int = 1024
    dropout: float = 0.1  # of embeddings and of each block's output
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0  # inside the feed-forward
    initializer_factor: float = 0.02  # standard deviation of fresh weights
    scale_embedding: bool = False  # divide embeddings by sqrt(hidden_size)
    num_codebooks: int = 4
    audio_channels: int = 1  # 2: codebooks alternate left and right
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = False  # heads are the embeddings' first vocab_size rows
    is_decoder: bool = False
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None  # set: text states have this width already and aren't projected

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, self.vocab_size)
        super().__post_init__(**kwargs)

    def validate(self) -> None:
        """Not transformers' checks: they would warn of the special token, which is no code on purpose."""

    def keys(self) -> list[str]:
        """The names of the arguments, which makes the config a mapping for `**`."""
        common = {field.name for field in fields(PreTrainedConfig)}
        return [field.name for field in fields(self) if field.name not in common]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


def _size(width: int, layers: int, heads: int, channels: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "num_codebooks": 4 * channels,
        "audio_channels": channels,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "small": _size(1024, 24, 16, 1),
    "medium": _size(1536, 48, 24, 1),
    "large": _size(2048, 48, 32, 1),
    "stereo-small": _size(1024, 24, 16, 2),
    "stereo-medium": _size(1536, 48, 24, 2),
    "stereo-large": _size(2048, 48, 32, 2),
}
"""`MusicgenDecoderConfig` arguments of the released text models."""


def check_config(config: MusicgenDecoderConfig) -> None:
    """Raise RequestError for a model that can't be built."""
    if config.hidden_size % config.num_attention_heads:
        raise RequestError(
            f"hidden_size {config.hidden_size} can't be divided among {config.num_attention_heads} heads; "
            "choose a multiple."
        )
    if config.audio_channels not in (1, 2) or config.num_codebooks % config.audio_channels:
        raise RequestError(
            f"{config.num_codebooks} codebooks for {config.audio_channels} audio channels don't work: "
            "1 channel, or 2 and an even number of codebooks, are possible."
        )
    if isinstance(config.activation_function, str) and config.activation_function not in ACTIVATIONS:
        raise RequestError(
            f"activation_function is {config.activation_function!r}; known are {', '.join(ACTIVATIONS)}, or a function."
        )
