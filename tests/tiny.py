"""Small random models, complete in every part, for tests: built in a blink, saved and loaded like any checkpoint.

    tiny_musicgen()                   MusicgenForConditionalGeneration in eval mode, the same weights every time
    tiny_musicgen(audio_channels=2)   stereo (8 codebooks); any MusicgenDecoderConfig argument goes to the decoder
    save_tiny_folder(path)            config, weights, generation config, tokenizer, feature extractor

2000 Hz, 50 frames/s (hop 40), 4 codebooks of 32 codes a channel: a second of music is a fraction of a second of work.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import EncodecFeatureExtractor, T5Config, T5Tokenizer

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.models.musicgen import MusicgenDecoderConfig
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import MusicgenProcessor

CODES = 32
SAMPLING_RATE = 2000
WORDS = (
    "a an and the of in with no slow fast happy sad rock pop funk blues jazz track song tune music piano drums "
    "guitar bass cello violin flute synth loud bassy heavy groovy bpm major minor jig reel waltz"
)


def tiny_config(**decoder: Any) -> MusicgenConfig:
    channels = decoder.get("audio_channels", 1)
    text = T5Config(
        vocab_size=len(tiny_tokenizer()),
        d_model=24,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        is_encoder_decoder=False,
        use_cache=False,
    )
    codec = EncodecConfig(
        target_bandwidths=[1.0],
        sampling_rate=SAMPLING_RATE,
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=[5, 4, 2],
        codebook_size=CODES,
        use_causal_conv=False,
        use_conv_shortcut=False,
        num_lstm_layers=1,
    )
    defaults: dict[str, Any] = {
        "vocab_size": CODES,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "num_codebooks": 4 * channels,
        "initializer_factor": 0.3,
    }
    return MusicgenConfig(
        text_encoder=text,
        audio_encoder=codec,
        decoder=MusicgenDecoderConfig(**defaults | decoder),
        initializer_factor=0.3,
    )


def tiny_musicgen(**decoder: Any) -> MusicgenForConditionalGeneration:
    """A model with the weights of seed 0; the caller's random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MusicgenForConditionalGeneration(tiny_config(**decoder))
        for book in model.audio_encoder.quantizer.layers:  # fresh codebooks are all zeros until they are trained
            book.codebook.embed.normal_()
    return model.eval()


def tiny_tokenizer() -> T5Tokenizer:
    """A real T5 tokenizer: a unigram model of a few words and all printable ASCII characters."""
    words = [("▁" + word, -3.0) for word in WORDS.split()]
    characters = [(chr(code), -8.0) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, ("▁", -4.0), *words, *characters], extra_ids=0)


def tiny_processor(audio_channels: int = 1) -> MusicgenProcessor:
    extractor = EncodecFeatureExtractor(feature_size=audio_channels, sampling_rate=SAMPLING_RATE, padding_side="left")
    return MusicgenProcessor(extractor, tiny_tokenizer())


def save_tiny_folder(path: Path, dtype: torch.dtype | None = None, **decoder: Any) -> Path:
    """A complete checkpoint folder; `dtype` is that of the saved weights."""
    model = tiny_musicgen(**decoder)
    model.save_pretrained(path)
    if dtype is not None:
        _recast(path, dtype)
    tiny_processor(model.config.decoder.audio_channels).save_pretrained(path)
    return path


def _recast(path: Path, dtype: torch.dtype) -> None:
    file, config = path / "model.safetensors", path / "config.json"
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    values = json.loads(config.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    config.write_text(json.dumps(values))
