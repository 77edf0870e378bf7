"""Configurations: audiocraft's settings beside our layout's `config.json`, which is Hugging Face's.

Reading refuses what our models can't play (another codebook pattern, biases, style conditioning, MAGNeT, ...) instead
of making a checkpoint that sounds wrong.  Writing gives audiocraft's loader every setting that it asks for.
"""

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.codecs.encodec import EncodecConfig
from tunesmith.convert.settings import Settings
from tunesmith.errors import CheckpointError, IncompatiblePartsError
from tunesmith.models.musicgen import MusicgenDecoderConfig

Json = dict[str, Any]

CHROMA_WINDOW = 14  # log2 of the samples in a window of the chroma extractor
CHROMA_HOP = 2**CHROMA_WINDOW // 4
SEGMENT_SECONDS = 30.0  # what released models were trained on
HUB_LENGTH = 1500  # `max_length` in released generation configs; meant as 30 s, though the delay takes K of these steps

_CHROMA = "conditioners.self_wav.chroma_stem"
_SAMPLE_RATE, _SEGMENT = "sample_rate", "dataset.segment_duration"

# What released checkpoints have and our model is: path in the settings -> the values that it can play.
_LANGUAGE_MODEL: Mapping[str, tuple[Any, ...]] = {
    "lm_model": ("transformer_lm",),
    "transformer_lm.norm_first": (True,),
    "transformer_lm.norm": ("layer_norm",),
    "transformer_lm.activation": ("gelu", "relu"),
    "transformer_lm.causal": (True,),
    "transformer_lm.bias_ff": (False,),
    "transformer_lm.bias_attn": (False,),
    "transformer_lm.bias_proj": (False,),
    "transformer_lm.positional_embedding": ("sin",),
    "transformer_lm.past_context": (None,),
    "transformer_lm.layer_scale": (None,),
    "transformer_lm.kv_repeat": (1,),
    "transformer_lm.qk_layer_norm": (False,),
    "transformer_lm.qk_layer_norm_cross": (False,),
    "interleave_stereo_codebooks.per_timestep": (False,),
    "codebooks_pattern.delay.flatten_first": (0,),
    "codebooks_pattern.delay.empty_initial": (0,),
    "conditioners.description.model": ("t5",),
    "fuser.cross_attention_pos_emb": (False,),
    f"{_CHROMA}.radix2_exp": (CHROMA_WINDOW,),
    f"{_CHROMA}.argmax": (True,),
}
_CODEC: Mapping[str, tuple[Any, ...]] = {
    "compression_model": ("encodec",),
    "encodec.autoencoder": ("seanet",),
    "encodec.quantizer": ("rvq",),
    "seanet.norm": ("weight_norm", "time_group_norm"),
    "seanet.activation": ("ELU",),
    "seanet.activation_params.alpha": (1,),
    "seanet.disable_norm_outer_blocks": (0,),
    "seanet.decoder.final_activation": (None,),
}
# Our name of a codec setting -> audiocraft's, and its type.
_SEANET: Mapping[str, tuple[str, type]] = {
    "audio_channels": ("channels", int),
    "hidden_size": ("dimension", int),
    "num_filters": ("n_filters", int),
    "num_residual_layers": ("n_residual_layers", int),
    "upsampling_ratios": ("ratios", list),
    "norm_type": ("norm", str),
    "kernel_size": ("kernel_size", int),
    "last_kernel_size": ("last_kernel_size", int),
    "residual_kernel_size": ("residual_kernel_size", int),
    "dilation_growth_rate": ("dilation_base", int),
    "use_causal_conv": ("causal", bool),
    "pad_mode": ("pad_mode", str),
    "compress": ("compress", int),
    "num_lstm_layers": ("lstm", int),
}
# The text encoders that audiocraft can load, and their widths.
TEXT_ENCODERS: Mapping[str, int] = {
    "t5-small": 512,
    "t5-base": 768,
    "t5-large": 1024,
    "t5-3b": 1024,
    "t5-11b": 1024,
    "google/flan-t5-small": 512,
    "google/flan-t5-base": 768,
    "google/flan-t5-large": 1024,
}


def read_codec(settings: Settings) -> Json:
    """An EnCodec's `config.json`; raises `CheckpointError` for another kind of codec."""
    _demand(settings, _CODEC)
    config = {ours: _shared(settings, theirs, kind) for ours, (theirs, kind) in _SEANET.items()}
    config |= {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "sampling_rate": settings.need(_SAMPLE_RATE, int),
        "normalize": settings.need("encodec.renormalize", bool, False),
        "use_conv_shortcut": not _shared(settings, "true_skip", bool),
        "trim_right_ratio": settings.need("seanet.decoder.trim_right_ratio", float, 1.0),
        "codebook_size": settings.need("rvq.bins", int),
        "codebook_dim": config["hidden_size"],
        "chunk_length_s": None,
        "overlap": None,
    }
    return with_codebooks(config, settings.need("rvq.n_q", int))


def with_codebooks(config: Json, books: int) -> Json:
    """The codec's configuration with one bandwidth: that of so many codebooks, in kbit/s."""
    codec = EncodecConfig(**config)
    kilobits = round(books * codec.frame_rate * codec.codebook_nbits / 1000, 6)
    enough = 1000 * kilobits // (codec.frame_rate * codec.codebook_nbits) >= books  # EnCodec rounds the quotient down
    return {**config, "target_bandwidths": [kilobits if enough else math.nextafter(kilobits, math.inf)]}


def read_language_model(settings: Settings, codec: Json) -> Json:
    """A composite `config.json`, of whose text encoder only `_name_or_path` is known.

    Raises `CheckpointError` for a model that can't be played, `IncompatiblePartsError` if codec isn't the one it knows.
    """
    melody = _is_melody(settings)
    _demand(settings, _LANGUAGE_MODEL)
    decoder = _decoder(settings)
    _demand_delay(settings, decoder)
    family = "musicgen_melody" if melody else "musicgen"
    config: Json = {
        "architectures": ["MusicgenMelodyForConditionalGeneration" if melody else "MusicgenForConditionalGeneration"],
        "model_type": family,
        "is_encoder_decoder": True,
        "text_encoder": {"model_type": "t5", "_name_or_path": settings.need("conditioners.description.t5.name", str)},
        "audio_encoder": {key: value for key, value in _fitted(codec, decoder).items() if key != "architectures"},
        "decoder": {"model_type": f"{family}_decoder", **decoder},
    }
    if melody:
        config["num_chroma"] = settings.need(f"{_CHROMA}.n_chroma", int)
        rate = settings.need(f"{_CHROMA}.sample_rate", int)
        config["chroma_length"] = _chroma_frames(settings.need(_SEGMENT, float), rate)
    return config


def read_generation(settings: Settings, config: Json) -> Json:
    """The `generation_config.json` that plays the segment the model was trained on, guided as the settings say."""
    decoder = config["decoder"]
    frames = round(
        settings.need(_SEGMENT, float, SEGMENT_SECONDS) * EncodecConfig(**config["audio_encoder"]).frame_rate
    )
    return {
        "bos_token_id": decoder["bos_token_id"],
        "pad_token_id": decoder["pad_token_id"],
        "decoder_start_token_id": decoder["decoder_start_token_id"],
        "do_sample": True,
        "guidance_scale": settings.need("classifier_free_guidance.inference_coef", float, 3.0),
        "max_length": frames + _delay_steps(decoder),
    }


def write_codec(config: EncodecConfig) -> Json:
    """Settings from which audiocraft's loader builds the same codec, chunks aside: it has none."""
    return {
        "compression_model": "encodec",
        "device": "cpu",
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": config.use_causal_conv,
            "renormalize": config.normalize,
        },
        "seanet": {
            **{theirs: kind(getattr(config, ours)) for ours, (theirs, kind) in _SEANET.items()},
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm_params": {},
            "true_skip": not config.use_conv_shortcut,
            "disable_norm_outer_blocks": 0,
            "decoder": {
                "trim_right_ratio": config.trim_right_ratio,
                "final_activation": None,
                "final_activation_params": None,
            },
            "encoder": {},
        },
        "rvq": {
            "n_q": config.num_quantizers,
            "q_dropout": len(config.target_bandwidths) > 1,
            "bins": config.codebook_size,
            "decay": 0.99,
            "kmeans_init": True,
            "kmeans_iters": 50,
            "threshold_ema_dead_code": 2,
            "orthogonal_reg_weight": 0.0,
            "orthogonal_reg_active_codes_only": False,
        },
        "no_quant": {},
    }


def write_language_model(config: Json, generation: Json) -> Json:
    """Settings from which audiocraft's loader builds the same language model."""
    decoder, codec = MusicgenDecoderConfig(**config["decoder"]), EncodecConfig(**config["audio_encoder"])
    melody = config["model_type"] == "musicgen_melody"
    segment = _segment_seconds(config, codec, generation)
    return {
        "solver": "musicgen",
        "device": "cpu",
        "dtype": "float32",
        "autocast": False,
        "sample_rate": codec.sampling_rate,
        "channels": decoder.audio_channels,
        "compression_model_checkpoint": "compression_state_dict.bin",
        "compression_model_n_q": None,
        "tokens": {"padding_with_special_token": False},
        "interleave_stereo_codebooks": {"use": decoder.audio_channels == 2, "per_timestep": False},
        "dataset": {"segment_duration": int(segment) if segment.is_integer() else segment},
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": _delays(config["decoder"]), "flatten_first": 0, "empty_initial": 0},
        },
        "transformer_lm": _transformer(decoder, cross=not melody),
        "classifier_free_guidance": {
            "training_dropout": 0.3,
            "inference_coef": float(generation.get("guidance_scale", 3.0)),
        },
        "attribute_dropout": {"args": {"active_on_eval": False}, "text": {}, "wav": {"self_wav": 0.5}}
        if melody
        else {},
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": ["self_wav", "description"] if melody else [],
            "cross": [] if melody else ["description"],
            "input_interpolate": [],
        },
        "conditioners": _conditioners(config),
    }


def _demand(settings: Settings, playable: Mapping[str, tuple[Any, ...]]) -> None:
    for path, values in playable.items():
        found = settings.get(path, values[0])
        if found not in values:
            allowed = " or ".join(map(repr, values))
            raise CheckpointError(f"{settings.source} has {path} = {found!r}; only {allowed} is supported.")


def _shared(settings: Settings, name: str, kind: type) -> Any:
    """A setting that encoder and decoder share, though each of them may override it."""
    paths = [f"seanet.{side}.{name}" for side in ("encoder", "decoder")]
    values: list[Any] = [
        settings.need(path if settings.get(path) is not None else f"seanet.{name}", kind) for path in paths
    ]
    if values[0] != values[1]:
        raise CheckpointError(
            f"{settings.source} has {name} = {values[0]!r} in its encoder and {values[1]!r} in its decoder; "
            "only equal ones are supported."
        )
    return values[0]


def _is_melody(settings: Settings) -> bool:
    """Whether melody and text stand before the audio; otherwise text comes through cross-attention."""
    if settings.get("conditioners.self_wav.model") == "style":
        raise CheckpointError(f"{settings.source} is a style-conditioned model, which isn't supported yet.")
    conditioners = sorted(name for name in settings.get("conditioners") or () if name != "args")
    cross, prepend = settings.get("fuser.cross") or [], settings.get("fuser.prepend") or []
    others = [name for way in ("sum", "input_interpolate") for name in settings.get(f"fuser.{way}") or ()]
    chroma = settings.get("conditioners.self_wav.model") == "chroma_stem"
    if (conditioners, cross, prepend, others) == (["description"], ["description"], [], []):
        return False
    if chroma and (cross, prepend, others) == ([], ["self_wav", "description"], []) and len(conditioners) == 2:
        return True
    raise CheckpointError(
        f"{settings.source} is conditioned on {', '.join(conditioners) or 'nothing'} in a way that isn't supported; "
        "text through cross-attention, or melody and text before the audio, are."
    )


def _decoder(settings: Settings) -> Json:
    width, codes = settings.need("transformer_lm.dim", int), settings.need("transformer_lm.card", int)
    dropout = settings.need("transformer_lm.dropout", float, 0.0)
    same = settings.get("transformer_lm.attention_dropout") is None
    return {
        "vocab_size": codes,
        "hidden_size": width,
        "num_hidden_layers": settings.need("transformer_lm.num_layers", int),
        "num_attention_heads": settings.need("transformer_lm.num_heads", int),
        "ffn_dim": int(settings.need("transformer_lm.hidden_scale", float, 4.0) * width),
        "activation_function": settings.get("transformer_lm.activation", "gelu"),
        "dropout": dropout,
        "attention_dropout": dropout if same else settings.need("transformer_lm.attention_dropout", float),
        "activation_dropout": dropout,
        "num_codebooks": settings.need("transformer_lm.n_q", int),
        "audio_channels": 2 if settings.need("interleave_stereo_codebooks.use", bool, False) else 1,
        "max_position_embeddings": 2048,
        "pad_token_id": codes,
        "bos_token_id": codes,
        "eos_token_id": None,
        "decoder_start_token_id": codes,
        "tie_word_embeddings": False,
    }


def _delays(decoder: Json) -> list[int]:
    """Steps by which each codebook comes late: those of left and right together."""
    return [k // decoder["audio_channels"] for k in range(decoder["num_codebooks"])]


def _delay_steps(decoder: Json) -> int:
    """Steps that a generation is longer than its frames."""
    return int(decoder["num_codebooks"] // decoder["audio_channels"])


def _demand_delay(settings: Settings, decoder: Json) -> None:
    """Only the released codebook pattern; old settings name it `transformer_lm.q_modeling`, without its delays."""
    pattern, delays = settings.get("codebooks_pattern.modeling"), settings.get("codebooks_pattern.delay.delays")
    if pattern is None:
        pattern, delays = settings.get("transformer_lm.q_modeling"), None
    delays = delays or list(range(decoder["num_codebooks"]))
    if pattern != "delay" or delays != _delays(decoder):
        raise CheckpointError(
            f"{settings.source} has the codebook pattern {pattern} {delays}; "
            f"only delay {_delays(decoder)} is supported."
        )


def _fitted(codec: Json, decoder: Json) -> Json:
    """The codec, with as many codebooks as the language model uses."""
    books, config = _delay_steps(decoder), EncodecConfig(**codec)
    channels = config.audio_channels if decoder["audio_channels"] == 2 else 1  # stereo models code left and right apart
    if config.num_quantizers < books or config.codebook_size != decoder["vocab_size"] or channels != 1:
        raise IncompatiblePartsError(
            f"The language model needs a codec with {books} codebooks of {decoder['vocab_size']} codes"
            f"{' and one channel' if channels != 1 else ''}; the given one has {config.num_quantizers} of "
            f"{config.codebook_size} and {config.audio_channels} channel(s)."
        )
    return codec if config.num_quantizers == books else with_codebooks(codec, books)


def _segment_seconds(config: Json, codec: EncodecConfig, generation: Json) -> float:
    """The length of audio that the model was trained on, as far as its longest generation and its chroma tell."""
    steps = generation.get("max_length") or HUB_LENGTH
    frames = steps - _delay_steps(config["decoder"])
    seconds = SEGMENT_SECONDS if steps == HUB_LENGTH else float(frames / codec.frame_rate)
    wanted = config.get("chroma_length", _chroma_frames(seconds, codec.sampling_rate))
    if _chroma_frames(seconds, codec.sampling_rate) == wanted:
        return seconds
    return math.ceil(10 * (wanted - 1) * CHROMA_HOP / codec.sampling_rate) / 10


def _chroma_frames(seconds: float, sampling_rate: int) -> int:
    """Windows of a centred transform: one more than hops."""
    return int(seconds * sampling_rate) // CHROMA_HOP + 1


def _transformer(decoder: MusicgenDecoderConfig, *, cross: bool) -> Json:
    if decoder.activation_function not in _LANGUAGE_MODEL["transformer_lm.activation"] or decoder.scale_embedding:
        raise CheckpointError("audiocraft has neither scaled embeddings nor other activations than gelu and relu.")
    scale = decoder.ffn_dim / decoder.hidden_size
    if int(scale * decoder.hidden_size) < decoder.ffn_dim:  # audiocraft rounds the product down
        scale = math.nextafter(scale, math.inf)
    return {
        "dim": decoder.hidden_size,
        "num_heads": decoder.num_attention_heads,
        "num_layers": decoder.num_hidden_layers,
        "hidden_scale": int(scale) if scale.is_integer() else scale,
        "n_q": decoder.num_codebooks,
        "card": decoder.vocab_size,
        "dropout": decoder.dropout,
        "emb_lr": None,
        "activation": decoder.activation_function,
        "norm_first": True,
        "bias_ff": False,
        "bias_attn": False,
        "bias_proj": False,
        "past_context": None,
        "causal": True,
        "custom": False,
        "memory_efficient": True,
        "attention_as_float32": False,
        "layer_scale": None,
        "positional_embedding": "sin",
        "xpos": False,
        "checkpointing": "none",
        "weight_init": "gaussian",
        "depthwise_init": "current",
        "zero_bias_init": True,
        "norm": "layer_norm",
        "cross_attention": cross,
        "qk_layer_norm": False,
        "qk_layer_norm_cross": False,
        "attention_dropout": decoder.attention_dropout,
        "kv_repeat": 1,
        "two_step_cfg": False,
    }


def _conditioners(config: Json) -> Json:
    t5 = {
        "name": _text_encoder_name(config["text_encoder"]),
        "finetune": False,
        "word_dropout": 0.3,
        "normalize_text": False,
    }
    conditioners: Json = {"description": {"model": "t5", "t5": t5}}
    if config["model_type"] != "musicgen_melody":
        return conditioners
    chroma = {
        "sample_rate": "${sample_rate}",
        "n_chroma": config["num_chroma"],
        "radix2_exp": CHROMA_WINDOW,
        "argmax": True,
        "match_len_on_eval": False,
        "eval_wavs": None,
        "n_eval_wavs": 100,
        "cache_path": None,
    }
    return {"self_wav": {"model": "chroma_stem", "chroma_stem": chroma}, **conditioners}


def _text_encoder_name(config: Json) -> str:
    """The name by which audiocraft knows a T5: its own, else the first of its width, else a stand-in."""
    name, width = str(config.get("_name_or_path")).removeprefix("google-t5/"), config.get("d_model", 512)
    if TEXT_ENCODERS.get(name) == width:
        return name
    stand_in = name if name in TEXT_ENCODERS else "t5-base"
    return next((other for other, its_width in TEXT_ENCODERS.items() if its_width == width), stand_in)
