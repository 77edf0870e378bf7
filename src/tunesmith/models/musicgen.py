"""MusicGen's decoder: a transformer over K streams of audio codes, conditioned on text through cross-attention (Copet
et al. 2023).

    ids [B·K, S] -> sum of K embeddings + sinusoidal positions [B, S, D] -> decoder layers -> K heads -> logits [B·K,
    S, V]

Codebooks are folded into the batch, batch first, as in transformers, whose names of classes, arguments and parameters
these are. The vocabulary has one more entry than there are codes: the special token V is start, padding and hole of
the delay pattern. Training sees delayed grids whole; generation feeds a column at a time through a `MusicgenSession`.
"""

import typing
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions

from tunesmith.errors import RequestError
from tunesmith.generation import patterns, settings
from tunesmith.generation.batching import Piece, Slots
from tunesmith.generation.decode import FREE, Session, Step, iterate_codes, with_prompts
from tunesmith.generation.sampling import Sampler
from tunesmith.models import musicgen_engine
from tunesmith.nn.cache import DecoderCache, DenseCache, GrowingCache, LayerCache, ManyCache, Room, View, additive
from tunesmith.nn.linear import Linear
from tunesmith.nn.pretrained import BundledConfig, Model, StrictLoading
from tunesmith.nn.transformer import ACTIVATIONS, DecoderLayer, sinusoid, survives
from tunesmith.requests import Sampling

SECONDS = 30.0
"""What the released models were trained on: the most that one window holds."""

IGNORED = -100
"""In labels: not counted."""


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


class Text(NamedTuple):
    """Text as the decoder sees it: states of its width, and 1 where they may be attended to."""

    states: Float[Tensor, "B L D"]
    mask: Shaped[Tensor, "B L"]

    @classmethod
    def of(cls, states: Float[Tensor, "B L D"], mask: Shaped[Tensor, "B L"] | None) -> "Text":
        """Without a mask all of it is text."""
        return Text(states, states.new_ones(states.shape[:2]) if mask is None else mask.to(states))

    def null(self) -> "Text":
        """No text, in the same shape."""
        return Text(torch.zeros_like(self.states), torch.zeros_like(self.mask))

    def repeat(self, times: int) -> "Text":
        """Each sample several times, one after the other."""
        return Text(self.states.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0))

    def rows(self, start: int, step: int) -> "Text":
        """Every so manieth row: of a batch above another, a sample's own of each."""
        return Text(self.states[start::step], self.mask[start::step])

    def above(self, other: "Text") -> "Text":
        """Both batches as one, the shorter texts padded."""
        more = other.states.shape[1] - self.states.shape[1]
        first, second = self._padded(more), other._padded(-more)
        return Text(torch.cat([first.states, second.states]), torch.cat([first.mask, second.mask]))

    def _padded(self, more: int) -> "Text":
        more = max(more, 0)
        return Text(F.pad(self.states, (0, 0, 0, more)), F.pad(self.mask, (0, more)))


class DecoderOutput(NamedTuple):
    """What the stack computes; the tuples are None unless they were asked for."""

    hidden: Float[Tensor, "B S D"]
    states: tuple[Tensor, ...] | None
    weights: tuple[Tensor, ...] | None
    cross_weights: tuple[Tensor, ...] | None


class MusicgenDecoder(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: MusicgenDecoderConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width, function = config.hidden_size, config.activation_function
        self.embed_scale = width**-0.5 if config.scale_embedding else 1.0
        self.embed_tokens = nn.ModuleList(
            nn.Embedding(config.vocab_size + 1, width) for _ in range(config.num_codebooks)
        )
        self.layers = nn.ModuleList(
            DecoderLayer(
                width,
                config.num_attention_heads,
                config.ffn_dim,
                ACTIVATIONS[function] if isinstance(function, str) else function,
                config.dropout,
                config.attention_dropout,
                config.activation_dropout,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def tables(self) -> list[nn.Embedding]:
        """One a codebook."""
        return [table for table in self.embed_tokens if isinstance(table, nn.Embedding)]

    def embed(self, ids: Int[Tensor, "B K S"]) -> Float[Tensor, "B S D"]:
        """The sum of the codebooks' embeddings."""
        total: Tensor = self.embed_tokens[0](ids[:, 0])
        for k, table in enumerate(self.embed_tokens[1:], start=1):
            total = total + table(ids[:, k])
        return total if self.embed_scale == 1.0 else total * self.embed_scale

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        mask: Shaped[Tensor, "B M"] | None = None,
        memory: Float[Tensor, "B L D"] | None = None,
        memory_bias: Float[Tensor, "B 1 1 L"] | None = None,
        cache: DecoderCache | None = None,
        need_states: bool = False,
        need_weights: bool = False,
    ) -> DecoderOutput:
        """Embeddings x (of codes, or of a prefix); masks are 1 where something may be looked at.

        With a cache, x continues at `cache.position`, which moves on.
        """
        position = 0 if cache is None else cache.position
        own_mask = _causal_mask(mask, position, x)
        places = sinusoid(position, x.shape[1], x.shape[2], x.device).to(x.dtype)
        x = F.dropout(x + places, self.config.dropout, self.training)
        states: list[Tensor] = []
        weights: list[Tensor] = []
        cross: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            states.append(x)
            if not survives(self.config.layerdrop, self.training):
                continue
            past = None if cache is None else cache.layers[i]
            x, own, other = self._run(layer, x, own_mask, memory, memory_bias, past, position, need_weights)
            weights += [] if own is None else [own]
            cross += [] if other is None else [other]
        if cache is not None:
            cache.position = position + x.shape[1]
        x = self.layer_norm(x)
        return DecoderOutput(
            x,
            (*states, x) if need_states else None,
            tuple(weights) if need_weights else None,
            tuple(cross) if need_weights and memory is not None else None,
        )

    def _run(self, layer: nn.Module, *inputs: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            assert self._gradient_checkpointing_func is not None, "set by gradient_checkpointing_enable()"
            return self._gradient_checkpointing_func(layer.__call__, *inputs)
        return layer(*inputs)


class MusicgenPreTrainedModel(StrictLoading):
    """What the decoder's classes share: how weights are named, loaded and initialised."""

    config_class = MusicgenDecoderConfig
    default_dtype = torch.float32
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean already: Trainer must not rescale it
    _no_split_modules = ["DecoderLayer"]
    _supports_sdpa = True
    # Checkpoints of 2023 carry the position table, which is computed.
    _keys_to_ignore_on_load_unexpected = {r"embed_positions\.weights$"}

    def post_init(self) -> None:
        """As transformers', but what a part may ignore when loaded alone is not ignored in the whole."""
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected)


class MusicgenModel(MusicgenPreTrainedModel):
    """The decoder without heads: ids to hidden states."""

    _keys_to_ignore_on_load_unexpected = {
        *MusicgenPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(decoder\.)?lm_heads\.",
        r"^(text_encoder|audio_encoder|enc_to_dec_proj)\.",
    }

    def __init__(self, config: PreTrainedConfig) -> None:
        config = _decoder_config(config)
        super().__init__(config)
        self.decoder = MusicgenDecoder(config)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Model:
        """As transformers'; the folder may also hold the language model or the whole MusicGen."""
        kwargs.setdefault("key_mapping", {r"^(decoder\.)?model\.": ""})
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def get_input_embeddings(self) -> nn.ModuleList:
        """One table a codebook."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the tables."""
        assert isinstance(value, nn.ModuleList)
        self.decoder.embed_tokens = value

    def forward(
        self,
        input_ids: Int[Tensor, "BK S"] | Int[Tensor, "B K S"] | None = None,
        attention_mask: Shaped[Tensor, "B M"] | None = None,
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        encoder_attention_mask: Shaped[Tensor, "B L"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B S D"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Hidden states of each position; several positions see each other causally.

        input_ids: codes or the special token, codebooks folded into the batch; or `inputs_embeds` in their place.
        attention_mask: 1 where a position may be attended to, all positions so far (M).
        encoder_hidden_states: text, as wide as the decoder; encoder_attention_mask: 1 text, 0 padding.
        past_key_values: what an earlier call returned (a `DecoderCache`); input_ids are then what follows.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise RequestError("Exactly one of input_ids and inputs_embeds is needed.")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.decoder.embed(input_ids.reshape(-1, self.config.num_codebooks, input_ids.shape[-1]))
        if past_key_values is None and self._wants_cache(use_cache):
            past_key_values = DecoderCache.build(self.config.num_hidden_layers, GrowingCache)
        out = self.decoder(
            inputs_embeds,
            attention_mask,
            encoder_hidden_states,
            _bias(encoder_attention_mask, inputs_embeds.dtype),
            past_key_values,
            need_states=_choose(output_hidden_states, self.config.output_hidden_states),
            need_weights=_choose(output_attentions, self.config.output_attentions),
        )
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=out.hidden,
            past_key_values=past_key_values,
            hidden_states=out.states,
            attentions=out.weights,
            cross_attentions=out.cross_weights,
        )
        return output if _choose(return_dict, self.config.return_dict) else output.to_tuple()

    def _wants_cache(self, use_cache: bool | None) -> bool:
        """By default as configured, but not in training, where nothing would read it."""
        if self.training and (use_cache is None or self.decoder.gradient_checkpointing):
            return False
        return _choose(use_cache, self.config.use_cache)


class MusicgenForCausalLM(MusicgenPreTrainedModel, GenerationMixin):
    """The language model: ids to logits, one head a codebook."""

    output_modalities = ("audio",)
    _keys_to_ignore_on_load_unexpected = {
        *MusicgenPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(text_encoder|audio_encoder|enc_to_dec_proj)\.",
    }

    def __init__(self, config: PreTrainedConfig) -> None:
        config = _decoder_config(config)
        super().__init__(config)
        self.model = MusicgenModel(config)
        self.num_codebooks = config.num_codebooks
        tied = config.tie_word_embeddings
        self.lm_heads = nn.ModuleList(
            Linear(config.hidden_size, config.vocab_size) for _ in range(0 if tied else self.num_codebooks)
        )
        self.window_frames = round(50 * SECONDS)  # a codec with another frame rate sets its own
        self.post_init()
        settings.fill(self.generation_config, self.generation_defaults())

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Model:
        """As transformers'; of a whole MusicGen the decoder's weights are taken."""
        kwargs.setdefault("key_mapping", {r"^decoder\.(?=model\.|lm_heads\.)": ""})
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def window_steps(self) -> int:
        """The most columns that `generate` feeds: 30 s of frames and the delay's tail (1503), if the config allows."""
        tail = self.num_codebooks // self.config.audio_channels - 1
        return min(self.window_frames + tail, self.config.max_position_embeddings)

    def generation_defaults(self) -> dict[str, Any]:
        """What a generation config says that leaves everything open."""
        return settings.defaults(self.config, max_length=self.window_steps + 1)

    def get_input_embeddings(self) -> nn.ModuleList:
        """One table a codebook."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the tables."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.ModuleList:
        """One head a codebook; none when they are tied to the embeddings."""
        return self.lm_heads

    def set_output_embeddings(self, value: nn.ModuleList) -> None:
        """Replace the heads."""
        self.lm_heads = value

    def heads(self, hidden: Float[Tensor, "B S D"]) -> list[Float[Tensor, "B S V"]]:
        """Logits of each codebook."""
        if self.config.tie_word_embeddings:
            rows = self.config.vocab_size
            return [F.linear(hidden, embedding.weight[:rows]) for embedding in self.model.decoder.tables()]
        return [head(hidden) for head in self.lm_heads]

    def forward(
        self,
        input_ids: Int[Tensor, "BK S"] | Int[Tensor, "B K S"] | None = None,
        attention_mask: Shaped[Tensor, "B M"] | None = None,
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        encoder_attention_mask: Shaped[Tensor, "B L"] | None = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "B S D"] | None = None,
        labels: Int[Tensor, "B P K"] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Logits [B·K, S, V] of what follows each position; the loss too when there are labels.

        labels: delayed codes, time before codebook; -100 and the special token are not counted.  Without `input_ids`
        the inputs are the labels moved right by one, after a start token.  The loss is the mean over codebooks of
        each one's mean cross-entropy.  The other arguments are those of `MusicgenModel.forward`.
        """
        if labels is not None and input_ids is None and inputs_embeds is None:
            input_ids = shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)
        out = self.model(
            input_ids,
            attention_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        heads = self.heads(out.last_hidden_state)
        output = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else codes_loss(heads, labels, self.config.pad_token_id),
            logits=torch.stack(heads, 1).flatten(0, 1),
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            cross_attentions=out.cross_attentions,
        )
        return output if _choose(return_dict, self.config.return_dict) else output.to_tuple()

    def build_delay_pattern_mask(
        self, input_ids: Int[Tensor, "BK P"], pad_token_id: int, max_length: int | None = None
    ) -> tuple[Int[Tensor, "BK _"], Int[Tensor, "BK S"]]:
        """The ids that decoding starts from, and a grid of `max_length` columns: forced ids, -1 where one is predicted.

        input_ids begin with the start token; the rest is the prompt, not yet delayed.  A grid that is too short for
        the delay is left free.
        """
        max_length = self.generation_config.max_length if max_length is None else max_length
        prompt = input_ids.reshape(-1, self.num_codebooks, input_ids.shape[1])[:, :, 1:]
        delay = self.num_codebooks // self.config.audio_channels
        if max_length < 2 * delay - 1:
            return input_ids, torch.full((len(input_ids), max_length), FREE, device=input_ids.device)
        frames = max(max_length - delay, 0)
        pattern = patterns.musicgen(frames, self.num_codebooks, self.config.audio_channels)
        grid = pattern.build(with_prompts(list(prompt[:, :, :frames]), frames, input_ids.device), pad_token_id)
        free = (grid[:, 0] == FREE).any(0).nonzero()
        start = int(free[0]) if len(free) else input_ids.shape[1]
        return grid[:, :, :start].flatten(0, 1), grid.flatten(0, 1)

    @staticmethod
    def apply_delay_pattern_mask(
        input_ids: Int[Tensor, "BK S"], decoder_pad_token_mask: Int[Tensor, "BK M"]
    ) -> Int[Tensor, "BK S"]:
        """The forced ids of the grid written over `input_ids`."""
        grid = decoder_pad_token_mask[:, : input_ids.shape[1]]
        return torch.where(grid == FREE, input_ids, grid)

    def session(
        self,
        samples: int,
        capacity: int,
        text: Text | None = None,
        negative: Text | None = None,
        guided: bool = True,
        use_cache: bool = True,
    ) -> Session:
        """Begin a piece of at most `capacity` columns.

        Without text there is nothing to guide towards, so one branch; with text and `guided` a second one sees the
        negative text, or none.
        """
        branches = 2 if guided and text is not None else 1
        if branches == 2 and text is not None:
            text = text.above(negative or text.null())
        if not use_cache:
            return ReferenceSession(self, text, branches)
        if musicgen_engine.fits(self, text):
            return musicgen_engine.EngineSession(self, samples, capacity, text, branches)
        return MusicgenSession(self, samples, capacity, text, branches)

    def slots(self, count: int, frames: int, text_places: int = 0, guided: bool = True) -> Slots:
        """Memory for so many pieces at once, of at most `frames` frames (generation/batching.py).

        text_places: tokens of the longest text; conditions are `Text`s of one sample, or None.  guided: may any of
        them be?
        """
        capacity, branches = self.pattern(frames).steps, 2 if guided and text_places else 1
        kind = musicgen_engine.EngineSlots if musicgen_engine.fits(self, None) else MusicgenSlots
        return kind(self, count, capacity, text_places, branches)

    def piece(
        self,
        *,
        frames: int,
        sampling: Sampling,
        generator: torch.Generator,
        text_states: Float[Tensor, "L D"] | None = None,
        prompt_codes: Int[Tensor, "K _"] | None = None,
    ) -> Piece:
        """A song for a `Batch`: what `iterate_codes` makes of the same, alone.  Raises RequestError past the window."""
        prompt = torch.empty(self.num_codebooks, 0, dtype=torch.long) if prompt_codes is None else prompt_codes
        pattern = self._checked_pattern(frames, prompt.shape[1])
        text = None if text_states is None else Text.of(text_states[None], None)
        guided = text is not None and sampling.guidance != 1.0
        return Piece(
            pattern=pattern,
            codes=with_prompts([prompt], frames, self.device)[0],
            sampler=_sampler(sampling),
            generator=generator,
            condition=text.above(text.null()) if guided and text is not None else text,
        )

    def pattern(self, frames: int) -> patterns.Pattern:
        """Where the codes of so many frames are."""
        return patterns.musicgen(frames, self.num_codebooks, self.config.audio_channels)

    def _checked_pattern(self, frames: int, prompt: int) -> patterns.Pattern:
        if prompt > frames:
            raise RequestError(f"A prompt has {prompt} frames, but only {frames} were asked for in all; ask for more.")
        pattern = self.pattern(frames)
        self.check_window(prompt, pattern.steps - 1)
        return pattern

    def iterate_codes(
        self,
        *,
        frames: int,
        sampling: Sampling,
        generators: Sequence[torch.Generator],
        text_states: Float[Tensor, "B L D"] | None = None,
        text_mask: Shaped[Tensor, "B L"] | None = None,
        prompt_codes: Sequence[Int[Tensor, "K _"]] | None = None,
    ) -> Generator[Step, None, Int[Tensor, "B K S"]]:
        """Choose codes up to `frames` frames, prompt included: yields a `Step` a column, returns the codes.

        frames: to end with, the prompts included; generators: one a sample, their number is the batch size.
        text_states, text_mask: from `encode_text`, 1 where there is text; None: unconditional.
        prompt_codes: from `encode_prompt`; lengths may differ, 0 is allowed.  Raises RequestError past the window.
        """
        sampler = replace(_sampler(sampling), generators=tuple(generators))
        prompts = prompt_codes or [torch.empty(self.num_codebooks, 0, dtype=torch.long)] * len(generators)
        assert len(prompts) == len(generators), "a prompt and a generator for each sample"
        pattern = self._checked_pattern(frames, max(prompt.shape[1] for prompt in prompts))
        text = None if text_states is None else Text.of(text_states, text_mask)
        session = self.session(len(prompts), pattern.steps, text, guided=sampling.guidance != 1.0)
        codes = with_prompts(prompts, frames, self.device)
        return iterate_codes(session, pattern, codes, sampler, self.config.pad_token_id)

    def check_window(self, prompt: int, steps: int) -> None:
        """Refuse what is longer than the window.  prompt: frames given; steps: columns in all."""
        if steps > self.window_steps:
            left = max(self.window_steps - prompt, 0)
            given = f"a prompt of {prompt} tokens and {steps - prompt} new ones" if prompt else f"{steps} tokens"
            raise RequestError(
                f"{given[0].upper()}{given[1:]} were asked for, but this model's window holds {self.window_steps}: "
                f"at most {left} new tokens remain."
            )

    @torch.no_grad()
    def generate(  # type: ignore[override]  # only what is supported
        self,
        inputs: Int[Tensor, "BK P"] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        input_ids: Int[Tensor, "BK P"] | None = None,
        encoder_hidden_states: Float[Tensor, "B L D"] | None = None,
        encoder_attention_mask: Shaped[Tensor, "B L"] | None = None,
        seeds: Sequence[int] | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Int[Tensor, "R K S"] | GenerateDecoderOnlyOutput:
        """Codes from nothing, or that continue the prompt `inputs` (also as `input_ids`), which they include.

        Keywords override the generation config.  With `guidance_scale` above 1 the text states are weighed against
        none.  `seeds`, one a sample, make each sample's codes independent of its batch-mates; otherwise torch's
        global generator is drawn from.  Raises RequestError for what isn't supported or doesn't fit the window.
        """
        config = settings.resolve(self.generation_config, generation_config, kwargs, self.generation_defaults())
        text = None if encoder_hidden_states is None else Text.of(encoder_hidden_states, encoder_attention_mask)
        prompt = self.prompt_of(input_ids if inputs is None else inputs, 1 if text is None else len(text.states))
        run = self.continue_codes(prompt, config, text, seeds=seeds, streamer=streamer)
        return run if config.return_dict_in_generate else run.sequences

    def prompt_of(self, ids: Int[Tensor, "BK P"] | None, samples: int) -> Int[Tensor, "B K _"]:
        """Prompt codes from ids that may begin with the start token; no ids, no prompt."""
        if ids is None:
            return torch.empty(samples, self.num_codebooks, 0, dtype=torch.long, device=self.device)
        if len(ids) % self.num_codebooks:
            raise RequestError(
                f"The ids have {len(ids)} rows; with {self.num_codebooks} codebooks a multiple of that is needed."
            )
        codes = ids.reshape(-1, self.num_codebooks, ids.shape[1])
        begun = bool((codes[:, :, :1] == self.config.pad_token_id).all()) and codes.shape[2] > 0
        return codes[:, :, 1:] if begun else codes

    def continue_codes(
        self,
        prompt: Int[Tensor, "B K _"],
        config: GenerationConfig,
        text: Text | None = None,
        negative: Text | None = None,
        seeds: Sequence[int] | None = None,
        streamer: Any = None,
    ) -> GenerateDecoderOnlyOutput:
        """What `generate` does once its settings are resolved; `sequences` are codes [B, K, frames]."""
        takes, given = config.num_return_sequences or 1, prompt.shape[2]
        for kind, rows in (("texts", text), ("negative texts", negative)):
            if rows is not None and len(rows.states) != len(prompt):
                raise RequestError(f"There are {len(rows.states)} {kind} for {len(prompt)} samples; give one each.")
        text, negative = (None if t is None else t.repeat(takes) for t in (text, negative))
        prompt = prompt.repeat_interleave(takes, 0)
        pattern = self._pattern_of(settings.grid_columns(config, given), given)
        generators = settings.generators(seeds, len(prompt), self.device)
        guided, use_cache = settings.guided(config), config.use_cache is not False
        session = self.session(len(prompt), pattern.steps, text, negative, guided, use_cache)
        choose = settings.Recorder(
            settings.sampler(config, generators), bool(config.output_scores or config.output_logits)
        )
        codes = with_prompts(list(prompt), pattern.frames, self.device)
        for step in iterate_codes(session, pattern, codes, choose, self.config.pad_token_id):
            if streamer is not None:
                streamer.put(step.grid[:, :, step.column].flatten().cpu())
        if streamer is not None:
            streamer.end()
        found: dict[str, Any] = {"sequences": pattern.revert(step.grid, self.config.pad_token_id)}
        if config.output_scores:
            found["scores"] = tuple(choose.scores)
        if config.output_logits:
            found["logits"] = tuple(choose.logits)
        return GenerateDecoderOnlyOutput(**found)

    def _pattern_of(self, columns: int, prompt: int) -> patterns.Pattern:
        """The delay; in grids that are too short for its head and tail, all codebooks at once, as in transformers."""
        self.check_window(prompt, columns - 1)
        delay = self.num_codebooks // self.config.audio_channels
        if columns < 2 * delay - 1:
            return patterns.parallel(columns - 1, self.num_codebooks)
        if columns - delay <= prompt:
            raise RequestError(
                f"{columns - 1 - prompt} new tokens complete no frame after a prompt: ask for {delay} or more."
            )
        return patterns.musicgen(columns - delay, self.num_codebooks, self.config.audio_channels)


class MusicgenSession:
    """A piece in the making: caches of fixed size, for one or two guidance branches of the same samples."""

    def __init__(
        self,
        model: MusicgenForCausalLM,
        samples: int,
        capacity: int,
        text: Text | None,
        branches: int,
    ) -> None:
        config, decoder = model.config, model.model.decoder
        self.heads, self.decoder, self.branches = model.heads, decoder, branches
        self.memory = None if text is None else text.states
        self.memory_bias = None if text is None else _bias(text.mask, model.dtype)
        heads = config.num_attention_heads
        self.cache = DecoderCache.build(
            config.num_hidden_layers,
            lambda: DenseCache(
                samples * branches, heads, capacity, config.hidden_size // heads, model.dtype, model.device
            ),
        )

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        x = self.decoder.embed(ids.repeat(self.branches, 1, 1))
        hidden = self.decoder(x, None, self.memory, self.memory_bias, self.cache).hidden[:, -1:]
        return torch.cat(self.heads(hidden), 1).unflatten(0, (self.branches, -1))

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(ids[:, :, None])


class MusicgenSlots:
    """Several pieces in the making, each at a place of its own, through torch (generation/batching.py).

    A step is one call for all slots, those without a piece included, so that a piece's numbers don't depend on how many
    there are; prompts are fed slot by slot.  Slot s has the sequences s · branches and following.
    """

    def __init__(self, model: MusicgenForCausalLM, count: int, capacity: int, text_places: int, branches: int) -> None:
        """text_places: tokens of the longest text; 0 where none will come."""
        config, sequences, heads = model.config, count * branches, model.config.num_attention_heads
        self.count, self.capacity, self.branches = count, capacity, branches
        self.heads, self.decoder = model.heads, model.model.decoder
        room = Room(sequences, heads, config.hidden_size // heads, model.dtype, model.device)
        self.own = [room.allocate(capacity) for _ in self.decoder.layers]
        self.fed, self.used = [0] * count, [1] * count
        states = torch.zeros(sequences, text_places, config.hidden_size, dtype=model.dtype, device=model.device)
        self.text = Text(states, states.new_zeros(states.shape[:2])) if text_places else None
        self.memories = [self._memory(layer, slice(None)) for layer in self.decoder.layers]

    @torch.no_grad()
    def begin(self, conditions: Mapping[int, Text | None]) -> None:
        """See generation/batching.py.  A text has a row for each guidance branch."""
        for slot, text in conditions.items():
            self.fed[slot], self.used[slot] = 0, 1 if text is None else len(text.states)
            if self.text is None:
                assert text is None, "there is room for text"
                continue
            here = self._sequences(slot)
            for whole, given in zip(self.text, text or (None, None), strict=True):
                whole[here] = 0
                if given is not None:
                    whole[here][: self.used[slot], : given.shape[1]] = given
            for memory, layer in zip(self.memories, self.decoder.layers, strict=True):
                fresh = self._memory(layer, here)
                assert memory is not None
                assert fresh is not None
                memory.keys[here], memory.values[here] = fresh.keys, fresh.values

    @torch.no_grad()
    def feed(self, columns: Mapping[int, Int[Tensor, "K _"]]) -> dict[int, Float[Tensor, "G K V"]]:
        """See generation/batching.py."""
        steps = {slot: ids for slot, ids in columns.items() if ids.shape[1] == 1}
        found = self._step(steps) if steps else {}
        for slot in columns.keys() - steps.keys():
            found[slot] = self._run(columns[slot][None], self._sequences(slot), [self.fed[slot]])[: self.used[slot]]
        for slot, ids in columns.items():
            self.fed[slot] += ids.shape[1]
        return {slot: found[slot] for slot in columns}

    def _step(self, columns: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Slots that have nothing to feed write where they will write next, or nobody reads."""
        [some, *_] = columns.values()
        ids = torch.stack([columns.get(slot, torch.zeros_like(some)) for slot in range(self.count)])
        logits = self._run(ids, slice(None), [fed % self.capacity for fed in self.fed])
        return {slot: logits[self._sequences(slot)][: self.used[slot]] for slot in columns}

    def _run(self, ids: Int[Tensor, "B K P"], here: slice, position: list[int]) -> Float[Tensor, "GB K V"]:
        """Logits of what follows, of the sequences `here`."""
        end, device = max(position) + ids.shape[2], ids.device
        own = [ManyCache(keys[here, :, :end], values[here, :, :end]) for keys, values in self.own]
        memories = [None if m is None else View(m.keys[here], m.values[here]) for m in self.memories]
        layers = [LayerCache(cache, memory) for cache, memory in zip(own, memories, strict=True)]
        cache = DecoderCache(layers, torch.tensor(position, device=device).repeat_interleave(self.branches)[:, None])
        text = None if self.text is None else Text(self.text.states[here], self.text.mask[here])
        x = self.decoder.embed(ids.repeat_interleave(self.branches, 0))
        states, bias = (None, None) if text is None else (text.states, _bias(text.mask, x.dtype))
        hidden = self.decoder(x, None, states, bias, cache).hidden[:, -1:]
        return torch.cat(self.heads(hidden), 1)

    def _memory(self, layer: Any, here: slice) -> View | None:
        return None if self.text is None else View(*layer.encoder_attn.keys_values(self.text.states[here]))

    def _sequences(self, slot: int) -> slice:
        return slice(slot * self.branches, (slot + 1) * self.branches)


class ReferenceSession:
    """The obvious version: no cache, everything anew for every column.  What `use_cache=False` means."""

    def __init__(self, model: MusicgenForCausalLM, text: Text | None, branches: int) -> None:
        self.model, self.branches = model, branches
        self.condition = (
            {} if text is None else {"encoder_hidden_states": text.states, "encoder_attention_mask": text.mask}
        )

    def prefill(self, ids: Int[Tensor, "B K P"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        self.ids = ids
        seen = ids.repeat(self.branches, 1, 1).flatten(0, 1)  # [G·B·K, P]
        logits = self.model(seen, **self.condition, use_cache=False).logits[:, -1]
        return logits.view(self.branches, *ids.shape[:2], -1)

    def step(self, ids: Int[Tensor, "B K"]) -> Float[Tensor, "G B K V"]:
        """See generation/decode.py."""
        return self.prefill(torch.cat([self.ids, ids[:, :, None]], 2))


def shift_right(labels: Int[Tensor, "B S K"], pad: int, start: int) -> Int[Tensor, "B K S"]:
    """Labels -> inputs: a start column, then all but the last; uncounted labels become the special token."""
    ids = labels.transpose(1, 2)
    return F.pad(ids[:, :, :-1].masked_fill(ids[:, :, :-1] == IGNORED, pad), (1, 0), value=start)


def codes_loss(heads: list[Float[Tensor, "B S V"]], labels: Int[Tensor, "B P K"], pad: int) -> Float[Tensor, ""]:
    """The mean over codebooks of the mean cross-entropy over counted labels (0 where a codebook has none).

    Logits longer than the labels count from their end.
    """
    total = torch.zeros((), device=heads[0].device)
    for k, logits in enumerate(heads):
        wanted = labels[:, :, k].masked_fill(labels[:, :, k] == pad, IGNORED).flatten()
        found = logits[:, -labels.shape[1] :].flatten(0, 1)
        loss = F.cross_entropy(found, wanted, ignore_index=IGNORED, reduction="sum")
        total = total + loss / (wanted != IGNORED).sum().clamp(min=1)
    return total / len(heads)


def _sampler(sampling: Sampling) -> Sampler:
    return Sampler(sampling.temperature, sampling.top_k, sampling.top_p, sampling.guidance)


def _decoder_config(config: PreTrainedConfig) -> MusicgenDecoderConfig:
    """The configuration itself, or of a whole MusicGen the decoder's."""
    found: Any = getattr(config, "decoder", config)
    return found


def _check(config: MusicgenDecoderConfig) -> None:
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


def _bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask [B, L] as what to add to scores [B, 1, 1, L]."""
    return None if mask is None else additive(mask, dtype)[:, None, None, :]


def _causal_mask(mask: Tensor | None, position: int | Tensor, x: Tensor) -> Tensor | None:
    """None where plain causality or the cache says it all, else what to add to scores [B or 1, 1, S, M]."""
    count = x.shape[1]
    if isinstance(position, Tensor) or (mask is None and (position == 0 or count == 1)):
        return None
    rows = position + torch.arange(count, device=x.device)
    visible = torch.arange(position + count, device=x.device) <= rows[:, None]
    visible = visible[None, None] if mask is None else visible & mask.bool()[:, None, None, :]
    return additive(visible, x.dtype)


def _choose(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)
