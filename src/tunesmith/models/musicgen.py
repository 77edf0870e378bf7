"""MusicGen's decoder: a transformer over K streams of audio codes, conditioned on text through cross-attention (Copet
et al. 2023).

    ids [B·K, S] -> sum of K embeddings + sinusoidal positions [B, S, D] -> decoder layers -> K heads -> logits [B·K,
    S, V]

Codebooks are folded into the batch, batch first, as in transformers, whose names of classes, arguments and parameters
these are. The vocabulary has one more entry than there are codes: the special token V is start, padding and hole of
the delay pattern. Training sees delayed grids whole; generation feeds a column at a time through a `MusicgenSession`.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

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
from tunesmith.generation.capture import Keeper, Pool, recordable
from tunesmith.generation.decode import FREE, Session, Step, iterate_codes, with_prompts
from tunesmith.generation.sampling import Sampler
from tunesmith.models import musicgen_engine
from tunesmith.models.musicgen_config import PRESETS, MusicgenDecoderConfig
from tunesmith.models.musicgen_layers import MusicgenDecoder, Text, bias_of
from tunesmith.models.musicgen_sessions import (
    MusicgenSession,
    MusicgenSlots,
    RecordedSession,
    ReferenceSession,
    SlotMemory,
)
from tunesmith.nn.cache import DecoderCache, GrowingCache
from tunesmith.nn.linear import Linear
from tunesmith.nn.pretrained import Model, StrictLoading
from tunesmith.requests import Sampling

__all__ = [
    "IGNORED",
    "PRESETS",
    "SECONDS",
    "MusicgenDecoderConfig",
    "MusicgenForCausalLM",
    "MusicgenModel",
    "MusicgenPreTrainedModel",
    "MusicgenSession",
    "MusicgenSlots",
    "ReferenceSession",
    "Text",
    "codes_loss",
    "shift_right",
]

SECONDS = 30.0
"""What the released models were trained on: the most that one window holds."""

IGNORED = -100
"""In labels: not counted."""


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
            bias_of(encoder_attention_mask, inputs_embeds.dtype),
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


class MusicgenForCausalLM(Keeper, MusicgenPreTrainedModel, GenerationMixin):
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
        self.kept = Pool[SlotMemory]()
        """Memory of recorded steps (musicgen_sessions.py)."""
        self.fuse = False
        """Let torch.compile make few kernels of a recorded step, which takes it minutes."""
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
        kind = RecordedSession if recordable(self) else MusicgenSession
        return kind(self, samples, capacity, text, branches)

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


def _choose(given: bool | None, default: bool | None) -> bool:
    return bool(default if given is None else given)
