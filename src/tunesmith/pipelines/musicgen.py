"""MusicGen whole: a text encoder, the decoder and a codec, under the names of the Hugging Face documentation.

    text --T5--> states [B, L, D'] --projection--> [B, L, D] --cross-attention--> decoder --codes [B, K, S]--> codec
    --> audio [B, C, T]

The decoder does the work (models/musicgen.py); here conditions become vectors, audio prompts codes, and codes audio.
Text encoder and codec stay in float32 whatever the decoder's dtype is: half precision there is heard, and saves little.
"""

import builtins
import math
import typing
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForTextEncoding, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.generation.utils import GenerateEncoderDecoderOutput, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from tunesmith.codecs.encodec import PRESETS as CODECS
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.errors import IncompatiblePartsError, RequestError
from tunesmith.generation import settings
from tunesmith.models.musicgen import (
    PRESETS,
    SECONDS,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenPreTrainedModel,
    Text,
    shift_right,
)
from tunesmith.nn.pretrained import BundledConfig, bundled, refuse_misfits

# The text encoder of all released models.
T5_BASE: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 768,
    "d_ff": 3072,
    "num_heads": 12,
    "num_layers": 12,
    "vocab_size": 32128,
    "n_positions": 512,
    "is_encoder_decoder": False,
    "use_cache": False,
}


@typing.no_type_check
class MusicgenConfig(BundledConfig):
    """The configurations of the three parts; a part left out has its class's defaults (T5, EnCodec, small decoder)."""

    model_type = "musicgen"
    keys_to_ignore_at_inference: typing.ClassVar = ["past_key_values"]
    sub_configs: typing.ClassVar = {
        "text_encoder": AutoConfig,
        "audio_encoder": EncodecConfig,
        "decoder": MusicgenDecoderConfig,
    }

    text_encoder: Any = None  # a configuration, its arguments, or None for T5's defaults
    audio_encoder: Any = None  # likewise EnCodec's
    decoder: Any = None  # likewise MusicgenDecoderConfig's
    initializer_factor: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_encoder = _text_config(self.text_encoder)
        self.audio_encoder = _our_config(self.audio_encoder, EncodecConfig)
        self.decoder = _our_config(self.decoder, MusicgenDecoderConfig)
        self.is_encoder_decoder = True
        super().__post_init__(**kwargs)

    def validate(self) -> None:
        """As the decoder's."""

    @classmethod
    def from_sub_models_config(
        cls,
        text_encoder_config: PreTrainedConfig,
        audio_encoder_config: PreTrainedConfig,
        decoder_config: PreTrainedConfig,
        **kwargs: Any,
    ) -> "MusicgenConfig":
        """A configuration from those of the parts."""
        return cls(
            text_encoder=text_encoder_config, audio_encoder=audio_encoder_config, decoder=decoder_config, **kwargs
        )

    @classmethod
    def preset(cls, name: str) -> "MusicgenConfig":
        """The configuration of a released model: "small", "medium", "large", "stereo-small", ..."""
        if name not in PRESETS:
            raise RequestError(f"There is no preset {name!r}; known are {', '.join(PRESETS)}.")
        return cls(text_encoder=dict(T5_BASE), audio_encoder=dict(CODECS["encodec_32khz"]), decoder=PRESETS[name])

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the audio."""
        return self.audio_encoder.sampling_rate


@dataclass
class MusicgenUnconditionalInput(ModelOutput):
    """What `generate` needs to make music from nothing."""

    encoder_outputs: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None
    guidance_scale: float | None = None


class MusicgenForConditionalGeneration(MusicgenPreTrainedModel, GenerationMixin):
    """Text and audio prompts to music.

    Made from a configuration (random weights), from three parts, or by `from_pretrained`.
    """

    config_class: Any = MusicgenConfig
    base_model_prefix = "encoder_decoder"
    main_input_name = "input_ids"
    output_modalities = ("audio",)
    _no_split_modules = ["DecoderLayer", "T5Block"]
    _keep_in_fp32_modules_strict = ["text_encoder", "audio_encoder"]

    def __init__(
        self,
        config: MusicgenConfig | None = None,
        text_encoder: PreTrainedModel | None = None,
        audio_encoder: PreTrainedModel | None = None,
        decoder: MusicgenForCausalLM | None = None,
    ) -> None:
        if config is None:
            if text_encoder is None or audio_encoder is None or decoder is None:
                raise RequestError("MusicGen is made from a config, or from a text encoder, a codec and a decoder.")
            config = MusicgenConfig.from_sub_models_config(text_encoder.config, audio_encoder.config, decoder.config)
        super().__init__(config)
        self.text_encoder: Any = text_encoder or AutoModelForTextEncoding.from_config(config.text_encoder)
        self.audio_encoder: Any = audio_encoder or EncodecModel(config.audio_encoder)
        self.decoder = decoder or MusicgenForCausalLM(config.decoder)
        for name in ("text_encoder", "audio_encoder", "decoder"):
            getattr(self, name).config = getattr(config, name)  # one object, so that changes are seen by both
        width, wanted = config.text_encoder.hidden_size, config.decoder.hidden_size
        if config.decoder.cross_attention_hidden_size not in (None, width):
            raise IncompatiblePartsError(
                f"The decoder expects text states of width {config.decoder.cross_attention_hidden_size}, "
                f"but the text encoder makes {width}."
            )
        if width != wanted and config.decoder.cross_attention_hidden_size is None:
            self.enc_to_dec_proj = nn.Linear(width, wanted)
        self.post_init()
        self.decoder.window_frames = round(SECONDS * self.frame_rate)
        settings.fill(self.generation_config, self.decoder.generation_defaults())
        if misfit := self.misfit():
            warnings.warn(f"{misfit} Generation will be refused.", stacklevel=2)

    @classmethod
    def from_sub_models_pretrained(
        cls,
        text_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        audio_encoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        decoder_pretrained_model_name_or_path: str | PathLike[str] | None = None,
        **kwargs: Any,
    ) -> "MusicgenForConditionalGeneration":
        """A model from three checkpoints (each may also be a whole MusicGen, of which the part is taken).

        Keywords that begin with `text_encoder_`, `audio_encoder_` or `decoder_` go to that part's `from_pretrained`;
        `text_encoder_model` and so on give a part itself.  The others go to the configuration.
        """
        names = {
            "text_encoder": text_encoder_pretrained_model_name_or_path,
            "audio_encoder": audio_encoder_pretrained_model_name_or_path,
            "decoder": decoder_pretrained_model_name_or_path,
        }
        options: dict[str, dict[str, Any]] = {part: {} for part in names}
        for key in list(kwargs):
            part = next((part for part in names if key.startswith(part + "_")), None)
            if part is not None:
                options[part][key.removeprefix(part + "_")] = kwargs.pop(key)
        parts: dict[str, Any] = {part: _load_part(part, name, options[part]) for part, name in names.items()}
        kwargs |= {part: model.config for part, model in parts.items()}
        config = MusicgenConfig(**kwargs)
        return cls(config, **parts)

    # ------------------------------------------------------------------------------------------- parts and precision

    @property
    def dtype(self) -> torch.dtype:
        """The decoder's dtype; text encoder and codec are float32."""
        return self.decoder.dtype

    def to(self, *args: Any, **kwargs: Any) -> "MusicgenForConditionalGeneration":  # type: ignore[override]  # torch has overloads
        """As torch's, but a dtype applies to the decoder and the projection alone."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is None:
            return super().to(*args, **kwargs)
        if device is not None:
            super().to(device)  # type: ignore[arg-type]  # transformers leaves `to` untyped
        self.decoder.to(dtype)  # type: ignore[arg-type]  # the same
        if hasattr(self, "enc_to_dec_proj"):
            self.enc_to_dec_proj.to(dtype)
        return self

    def half(self, *_: Any) -> "MusicgenForConditionalGeneration":
        """The decoder in float16."""
        return self.to(torch.float16)

    def bfloat16(self, *_: Any) -> "MusicgenForConditionalGeneration":
        """The decoder in bfloat16."""
        return self.to(torch.bfloat16)

    def float(self, *_: Any) -> "MusicgenForConditionalGeneration":
        """The decoder in float32."""
        return self.to(torch.float32)

    def double(self, *_: Any) -> "MusicgenForConditionalGeneration":
        """The decoder in float64."""
        return self.to(torch.float64)

    def train(self, mode: bool = True) -> "MusicgenForConditionalGeneration":
        """As torch's, but the codec never trains here, nor does a frozen text encoder: their dropout and statistics
        rest.
        """
        super().train(mode)
        self.audio_encoder.eval()
        if not any(p.requires_grad for p in self.text_encoder.parameters()):
            self.text_encoder.eval()
        return self

    def freeze_text_encoder(self) -> None:
        """The text encoder's weights stay as they are."""
        self.text_encoder.requires_grad_(False).eval()

    def freeze_audio_encoder(self) -> None:
        """The codec's weights stay as they are."""
        self.audio_encoder.requires_grad_(False).eval()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The text encoder, or with modality "audio" the codec."""
        return self.audio_encoder if modality == "audio" else self.text_encoder

    def get_text_encoder(self) -> nn.Module:
        """The text encoder."""
        return self.text_encoder

    def get_audio_encoder(self) -> nn.Module:
        """The codec."""
        return self.audio_encoder

    def get_decoder(self) -> MusicgenForCausalLM:
        """The language model."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's embeddings."""
        return self.text_encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's heads."""
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, value: nn.ModuleList) -> None:
        """Replace the decoder's heads."""
        self.decoder.set_output_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not of the whole: resize the part that you mean."""
        raise NotImplementedError(
            "Resize the embeddings of .text_encoder or .decoder; the whole model has none of its own."
        )

    @property
    def sample_rate(self) -> int:
        """Samples per second of the audio."""
        return int(self.config.audio_encoder.sampling_rate)

    @property
    def frame_rate(self) -> builtins.float:
        """Frames of codes per second."""
        return self.config.audio_encoder.sampling_rate / self.config.audio_encoder.hop_length

    def misfit(self) -> str | None:
        """Why the codec and the decoder don't fit each other, as a sentence; None if they do."""
        codec, decoder = self.config.audio_encoder, self.config.decoder
        needed = decoder.num_codebooks // decoder.audio_channels
        if codec.codebook_size != decoder.vocab_size:
            return f"The codec has {codec.codebook_size} codes in a book and the decoder {decoder.vocab_size}."
        if codec.num_quantizers < needed:
            return f"The codec has {codec.num_quantizers} codebooks a channel and the decoder needs {needed}."
        if codec.audio_channels != 1:
            return (
                f"The codec has {codec.audio_channels} channels and the decoder needs a mono one for each of its own."
            )
        if codec.chunk_length is not None:
            return "The codec codes audio in overlapping chunks and the decoder needs one piece."
        return None

    # ------------------------------------------------------------------------------------------- conditions and codes

    def encode_text(
        self, input_ids: Int[Tensor, "B L"], attention_mask: Shaped[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Token ids to what the decoder attends to; zero where the mask is 0."""
        with self._full_precision():
            states = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.project_text(states, attention_mask)

    def project_text(
        self, states: Float[Tensor, "B L W"], mask: Shaped[Tensor, "B L"] | None
    ) -> Float[Tensor, "B L D"]:
        """The text encoder's states in the decoder's width and dtype; zero where the mask is 0."""
        states = states.to(self.dtype)
        if hasattr(self, "enc_to_dec_proj"):
            states = self.enc_to_dec_proj(states)
        return states if mask is None else states * mask[..., None].to(states.dtype)

    @torch.no_grad()
    def encode_prompt(
        self, audio: Float[Tensor, "B C T"], padding_mask: Shaped[Tensor, "B T"] | None = None
    ) -> Int[Tensor, "B K S"]:
        """Audio to codes, each channel coded alone; codebooks of a stereo pair alternate left and right."""
        self._require_fit()
        channels = self.config.decoder.audio_channels
        if audio.ndim != 3:
            raise RequestError(f"Audio prompts are [songs, {channels}, samples], not {list(audio.shape)}.")
        if audio.shape[1] != channels:
            raise RequestError(f"The audio prompt has {audio.shape[1]} channels; this model takes {channels}.")
        each = [self._encode_channel(audio[:, c : c + 1], padding_mask) for c in range(channels)]
        return torch.stack(each, 2).flatten(1, 2)  # [B, K/C, C, S] -> [B, K, S]

    def _encode_channel(self, audio: Tensor, padding_mask: Tensor | None) -> Tensor:
        bandwidth = self.config.audio_encoder.target_bandwidths[-1]
        with self._full_precision():
            codes = self.audio_encoder.encode(audio, padding_mask, bandwidth).audio_codes
        return codes[0, :, : self.decoder.num_codebooks // self.config.decoder.audio_channels]

    @torch.no_grad()
    def decode_audio(self, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
        """Codes to audio, the inverse of `encode_prompt`."""
        self._require_fit()
        channels, scales = self.config.decoder.audio_channels, [None] * len(codes)
        with self._full_precision():
            each = [
                self.audio_encoder.decode(codes[None, :, c::channels], audio_scales=scales).audio_values
                for c in range(channels)
            ]
        return each[0] if channels == 1 else torch.cat(each, 1)

    def _require_fit(self) -> None:
        if misfit := self.misfit():
            raise IncompatiblePartsError(f"{misfit} Use a codec and a decoder that were trained together.")

    def _full_precision(self) -> AbstractContextManager[None]:
        """Text encoder and codec don't take part in autocast."""
        return torch.autocast(self.device.type, enabled=False)

    # ------------------------------------------------------------------------------------------- forward and generate

    def forward(
        self,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        input_values: Float[Tensor, "B C T"] | None = None,
        padding_mask: Shaped[Tensor, "B T"] | None = None,
        decoder_input_ids: Int[Tensor, "BK S"] | Int[Tensor, "B K S"] | None = None,
        decoder_attention_mask: Shaped[Tensor, "B M"] | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B L W"] | None = None,
        decoder_inputs_embeds: Float[Tensor, "B S D"] | None = None,
        labels: Int[Tensor, "B P K"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits [B·K, S, V] of what follows each decoder position; the loss too when there are labels.

        The text comes as ids, embeddings or `encoder_outputs`.  The decoder's inputs are `decoder_input_ids`, or
        embeddings, or the labels moved right by one, or else the codes of `input_values`, not delayed.
        labels: delayed codes, time before codebook; -100 and the special token are not counted.
        """
        if encoder_outputs is None:
            with self._full_precision():
                encoder_outputs = self.text_encoder(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    inputs_embeds=inputs_embeds,
                    output_attentions=output_attentions,
                    output_hidden_states=output_hidden_states,
                )
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if labels is None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._prompt_ids(input_values, padding_mask)
        out = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            self.project_text(encoder_outputs[0], attention_mask),
            attention_mask,
            past_key_values,
            decoder_inputs_embeds,
            labels,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        output = Seq2SeqLMOutput(
            loss=out.loss,
            logits=out.logits,
            past_key_values=out.past_key_values,
            decoder_hidden_states=out.hidden_states,
            decoder_attentions=out.attentions,
            cross_attentions=out.cross_attentions,
            encoder_last_hidden_state=encoder_outputs[0],
            encoder_hidden_states=encoder_outputs.get("hidden_states"),
            encoder_attentions=encoder_outputs.get("attentions"),
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _prompt_ids(self, audio: Tensor | None, padding_mask: Tensor | None) -> Tensor:
        if audio is None:
            raise RequestError("The decoder needs decoder_input_ids, decoder_inputs_embeds, labels or input_values.")
        if audio.shape[1] == 1 and self.config.decoder.audio_channels == 2:
            audio = audio.expand(-1, 2, -1)  # both channels of mono audio get the same codes
        return self.encode_prompt(audio, padding_mask).flatten(0, 1)

    def prepare_decoder_input_ids_from_labels(self, labels: Int[Tensor, "B S K"]) -> Int[Tensor, "B K S"]:
        """Labels moved right by one, after a start token."""
        return shift_right(labels, self.config.decoder.pad_token_id, self.config.decoder.decoder_start_token_id)

    @torch.no_grad()
    def generate(  # type: ignore[override]  # only what is supported
        self,
        inputs: Int[Tensor, "B L"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Int[Tensor, "B L"] | None = None,
        attention_mask: Shaped[Tensor, "B L"] | None = None,
        input_values: Float[Tensor, "A C T"] | None = None,
        padding_mask: Shaped[Tensor, "A T"] | None = None,
        decoder_input_ids: Int[Tensor, "AK P"] | None = None,
        encoder_outputs: Any = None,
        negative_prompt_ids: Int[Tensor, "B N"] | None = None,
        negative_prompt_attention_mask: Shaped[Tensor, "B N"] | None = None,
        mask_text: bool = True,
        seeds: Sequence[int] | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Float[Tensor, "R C S"] | GenerateEncoderDecoderOutput:
        """Audio from text, from an audio prompt, from both, or from nothing.

        inputs or input_ids: text tokens, `attention_mask` 0 where padded; or `encoder_outputs` in their place.
        input_values: audio to continue, or its codes as `decoder_input_ids`; it is part of the result.
        negative_prompt_ids: text to steer away from, in place of no text.
        mask_text: padded text is not attended to, so a sample doesn't depend on its batch-mates; with False it is, as
            in the original implementation.
        seeds: one a sample; without them torch's global generator is drawn from, as in transformers.

        Other keywords override the generation config: do_sample, guidance_scale, max_new_tokens, temperature, top_k,
        top_p, num_return_sequences, ...  Raises RequestError for what isn't supported or doesn't fit the window,
        IncompatiblePartsError for a codec that doesn't fit.
        """
        self._require_fit()
        defaults = self.decoder.generation_defaults()
        config = settings.resolve(self.generation_config, generation_config, kwargs, defaults)
        text = self._text(input_ids if inputs is None else inputs, attention_mask, encoder_outputs)
        if decoder_input_ids is None and input_values is not None:
            given = math.ceil(input_values.shape[-1] / self.config.audio_encoder.hop_length)
            self.decoder.check_window(given, settings.grid_columns(config, given) - 1)  # before the work of coding it
            decoder_input_ids = self.encode_prompt(input_values, padding_mask).flatten(0, 1)
        prompt = self.decoder.prompt_of(decoder_input_ids, 1 if text is None else len(text.states))
        negative = self._text(negative_prompt_ids, negative_prompt_attention_mask)
        if text is not None and not mask_text:
            text = Text.of(text.states, None)
        run = self.decoder.continue_codes(prompt, config, text, negative, seeds=seeds, streamer=streamer)
        audio = self.decode_audio(run.sequences)
        if not config.return_dict_in_generate:
            return audio
        return GenerateEncoderDecoderOutput(**{**run, "sequences": audio})

    def _text(self, ids: Tensor | None, mask: Tensor | None, encoder_outputs: Any = None) -> Text | None:
        if encoder_outputs is not None:
            return Text.of(self.project_text(encoder_outputs[0], mask), mask)
        return None if ids is None else Text.of(self.encode_text(ids, mask), mask)

    def get_unconditional_inputs(self, num_samples: int = 1) -> MusicgenUnconditionalInput:
        """Arguments of `generate` for music from nothing: text states of zeros, masked, and no guidance."""
        width = self.config.text_encoder.hidden_size
        return MusicgenUnconditionalInput(
            encoder_outputs=(torch.zeros(num_samples, 1, width, device=self.device),),
            attention_mask=torch.zeros(num_samples, 1, dtype=torch.long, device=self.device),
            guidance_scale=1.0,
        )


def _text_config(given: dict[str, Any] | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(given or {})
    return AutoConfig.for_model(values.pop("model_type", "t5"), **values)


def _our_config(given: Any, kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """Of our class, also when a dictionary or transformers' twin was given."""
    if isinstance(given, kind):
        return given
    values = given.to_dict() if isinstance(given, PreTrainedConfig) else dict(given or {})
    if (found := values.pop("model_type", kind.model_type)) != kind.model_type:
        raise IncompatiblePartsError(f"MusicGen needs a {kind.model_type} here, not a {found}.")
    return kind(**values)


def _load_part(part: str, name: str | PathLike[str] | None, options: dict[str, Any]) -> PreTrainedModel:
    """A part itself, or from its checkpoint, or from that of a whole MusicGen."""
    if (model := options.pop("model", None)) is not None:
        return model
    if name is None:
        raise RequestError(f"The {part} is missing: give {part}_pretrained_model_name_or_path or {part}_model.")
    if part == "decoder":
        return MusicgenForCausalLM.from_pretrained(name, **options)
    kind = PreTrainedConfig.get_config_dict(bundled(name))[0].get("model_type")
    if kind == MusicgenConfig.model_type:
        return getattr(MusicgenForConditionalGeneration.from_pretrained(name, **options), part)
    if part == "audio_encoder":
        return EncodecModel.from_pretrained(name, **options)
    model, info = AutoModelForTextEncoding.from_pretrained(name, output_loading_info=True, **options)
    refuse_misfits(name, missing=info["missing_keys"])
    return model
