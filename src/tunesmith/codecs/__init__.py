"""Codecs: sound to codes and back.  They know no language model."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Codec(Protocol):
    """What language models, trainers and evaluations rely on."""

    @property
    def sample_rate(self) -> int:
        """Audio samples per second."""

    @property
    def frame_rate(self) -> float:
        """Code steps per second."""

    @property
    def hop_length(self) -> int:
        """Audio samples per code step."""

    @property
    def channels(self) -> int:
        """Audio channels (C)."""

    @property
    def codebooks(self) -> int:
        """Codes per step (K)."""

    @property
    def cardinality(self) -> int:
        """Codes in a codebook (V)."""

    def encode_codes(self, audio: Float[Tensor, "B C T"]) -> Int[Tensor, "B K S"]:
        """Samples in about -1..1 to codes in 0..V-1; S = ceil(T / hop_length)."""

    def decode_codes(self, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
        """Codes to S · hop_length samples."""
