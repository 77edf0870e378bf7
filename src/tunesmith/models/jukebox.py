"""Jukebox's priors: sparse transformers over the codes of one VQ-VAE level (Dhariwal et al. 2020, §4 and appendix B).

    codes [B, S] -> embeddings, moved right by one + positions + condition [B, S, D] -> factored layers -> logits
    [B, S, V]

A prior is conditioned on labels (artist and genres as its first input; at the top level also how long the song is and
where in it the window lies), and below the top on the codes of the level above.  Lyrics come in one of two ways: as a
prefix of the same sequence and vocabulary ("single", config `is_encoder_decoder`), or through a transformer of their
own that cross-attention layers look at ("separate", config `encoder_config`).

Labels [B, 4 + G + n], int64: total length, offset and window length (in samples), artist, G genres (-1 is none), and n
lyric tokens (0 pads on the left).  Names of arguments and parameters are those of transformers 4.40.2; all attention is
causal whatever the config's `mask` says.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from tunesmith.errors import RequestError
from tunesmith.generation import decode, patterns, settings
from tunesmith.generation.decode import Step
from tunesmith.generation.sampling import Sampler
from tunesmith.models.jukebox_config import (
    ACTIVATIONS,
    PRESETS,
    JukeboxPriorConfig,
    attention_order,
    attention_pattern,
    check_config,
)
from tunesmith.nn import factored
from tunesmith.nn.cache import Room
from tunesmith.nn.dilated import DilatedStack, DilatedStyle, UpBlock
from tunesmith.nn.factored import FactoredStack, Factoring, LayerStyle, Projection
from tunesmith.nn.precision import Float32, Float32Embedding, Float32Head, Float32LayerNorm, in_float32
from tunesmith.nn.pretrained import Model, StrictLoading

__all__ = [
    "PRESETS",
    "Condition",
    "JukeboxPrior",
    "JukeboxPriorConfig",
    "JukeboxPriorOutput",
    "PriorSession",
    "ReferenceSession",
    "attention_order",
    "attention_pattern",
]


@dataclass
class JukeboxPriorOutput(ModelOutput):
    """What a teacher-forced pass returns; losses are in bits per token."""

    loss: Float[Tensor, ""] | None = None
    logits: Float[Tensor, "B S V"] | None = None
    """Row t predicts token t; for a lyric prefix in the same sequence its rows come first, in the same vocabulary."""
    music_loss: Float[Tensor, ""] | None = None
    lyrics_loss: Float[Tensor, ""] | None = None
    lyrics_logits: Float[Tensor, "B L U"] | None = None
    """Of a separate lyric encoder."""
    encoder_states: Float[Tensor, "B L D"] | None = None
    """What cross-attention looks at."""


Given = Shaped[Tensor, "..."]
"""What users give is checked by us, in sentences; the docstrings say what it must be."""


class Condition(NamedTuple):
    """All that a prior knows besides the codes."""

    start: Float[Tensor, "B 1 D"] | None
    """The first input; None is the learned start token."""
    added: Float[Tensor, "B S D"] | None
    """Added at each position that predicts a code, before the stack (and after it, unless `merged_decoder`)."""
    memory: Float[Tensor, "B L D"] | None
    """States of the lyric encoder."""
    lyrics: Int[Tensor, "B L"]
    """Lyric tokens; none without lyrics."""


class RangeEmbedding(nn.Module):
    """Where positions lie between `low` and `high`, in equal bins."""

    def __init__(self, bins: int, low: float | int, high: float | int, width: int, deviation: float) -> None:
        super().__init__()
        self.bins, self.low, self.high = bins, low, high
        self.emb = Float32Embedding(bins, width, deviation)

    def forward(
        self, start: Float[Tensor, "B 1"], end: Float[Tensor, "B 1"] | None = None, count: int = 1
    ) -> Float[Tensor, "B S D"]:
        """`count` positions from start towards end, which is clamped to the range.

        In float32, in this order of operations: which bin a position falls into depends on it.  What float32 rounds up
        to the end of the range belongs to the last bin.
        """
        positions = start
        if end is not None:
            steps = torch.arange(count, dtype=torch.float32, device=start.device) / count
            positions = start + (end.clamp(self.low, self.high) - start) * steps
        bins = (self.bins * ((positions - self.low) / (self.high - self.low))).floor().long()
        return self.emb(bins.clamp(0, self.bins - 1))


class MetadataEmbedding(nn.Module):
    """Labels as vectors: artist and genres together, and (with `timing`) where each position lies in the song."""

    def __init__(self, config: JukeboxPriorConfig, timing: bool) -> None:
        super().__init__()
        genres, artists = config.metadata_dims
        width, bins, rate = config.hidden_size, config.timing_dims, config.sampling_rate
        self.timing, self.positions, deviation = timing, config.n_ctx, 0.01 * config.init_scale
        self.bow_genre_emb = Float32Embedding(genres, width, deviation)
        self.artist_emb = Float32Embedding(artists, width, deviation)
        if timing:
            longest = config.max_duration * rate
            self.total_length_emb = RangeEmbedding(bins, config.min_duration * rate, longest, width, deviation)
            self.absolute_pos_emb = RangeEmbedding(bins, 0.0, longest, width, deviation)
            self.relative_pos_emb = RangeEmbedding(bins, 0.0, 1.0, width, deviation)

    def forward(self, labels: Int[Tensor, "B A"]) -> tuple[Float[Tensor, "B 1 D"], Float[Tensor, "B S D"] | None]:
        """Labels without lyrics: the first input, and the timing of each position or None."""
        artist, genres = labels[:, 3:4], labels[:, 4:]
        chosen = self.bow_genre_emb(genres.clamp(min=0)) * (genres >= 0)[..., None]
        start = self.artist_emb(artist) + chosen.sum(1, keepdim=True)
        return start, self._timing(*labels[:, :3].float().split(1, 1)) if self.timing else None

    def _timing(self, total: Tensor, offset: Tensor, length: Tensor) -> Tensor:
        end = offset + length
        absolute = self.absolute_pos_emb(offset, end, self.positions)
        relative = self.relative_pos_emb(offset / total, end / total, self.positions)
        timing: Tensor = self.total_length_emb(total) + absolute + relative
        return timing


class Conditioner(nn.Module):
    """Codes of the level above, brought to this level's rate: the condition of an upsampler."""

    def __init__(self, config: JukeboxPriorConfig) -> None:
        super().__init__()
        width, (stages, stride) = config.hidden_size, config.upsampling
        style = DilatedStyle(
            depth=config.res_conv_depth,
            growth=config.res_dilation_growth_rate,
            cycle=config.res_dilation_cycle,
            multiplier=float(config.res_convolution_multiplier),
            scaled=bool(config.conv_res_scale),
        )
        self.embed_tokens = Float32Embedding(config.music_vocab_size, width, 0.02 * config.init_scale)
        self.upsampler = UpBlock(width, config.res_conv_width, width, stages=stages, stride=stride, style=style)
        self.layer_norm = Float32LayerNorm(width)

    def forward(self, codes: Int[Tensor, "B R"]) -> Float[Tensor, "B S D"]:
        """In float32 whatever the convolutions are stored in, each cast when its turn comes."""
        x = self.embed_tokens(codes).transpose(1, 2)
        for part in self._parts():
            x = in_float32(part, x)
        return self.layer_norm(x.transpose(1, 2))

    def _parts(self) -> Iterator[nn.Module]:
        yield self.upsampler.proj_in
        for layer in self.upsampler.upsample_block:
            yield from layer.resnet_block if isinstance(layer, DilatedStack) else [layer]


class Positions(Float32):
    """A learned vector a position."""

    def __init__(self, length: int, width: int, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation
        self.pos_emb = nn.Parameter(torch.empty(length, width, dtype=torch.float32))

    def reset_parameters(self) -> None:
        """Fresh vectors."""
        nn.init.normal_(self.pos_emb, std=self.deviation)


class Autoregressive(Float32):
    """Tokens in, logits of the next token out: what priors, upsamplers and the lyric encoder have in common.

    starts: has it a start token of its own (otherwise labels are the start); logits: has it a head.
    """

    def __init__(
        self, config: JukeboxPriorConfig, vocabulary: int, cut: Factoring, *, starts: bool, logits: bool
    ) -> None:
        super().__init__()
        width, deviation = config.hidden_size, 0.02 * config.init_scale
        self.deviation, self.dropout = deviation / 2, config.emb_dropout
        self.merged = bool(config.merged_decoder)
        self.embed_tokens = Float32Embedding(vocabulary, width, deviation)
        self.pos_emb = Positions(cut.length, width, deviation / 2)
        if starts:
            self.start_token = nn.Parameter(torch.empty(1, width, dtype=torch.float32))
        kinds = factored.attention_kinds(attention_order(config.attention_pattern), config.num_layers)
        self.transformer = FactoredStack(_style(config), kinds, cut)
        if logits:
            self.fc_proj_out = Float32Head(width, vocabulary, None if self.merged else deviation)
            if not self.merged:
                self.fc_proj_out.weight = self.embed_tokens.weight

    def shifted(self, tokens: Int[Tensor, "B S"], start: Float[Tensor, "B 1 D"] | None) -> Float[Tensor, "B S+1 D"]:
        """The start, then the tokens: inputs of all positions that see no further."""
        first = self.start_token.expand(len(tokens), 1, -1) if start is None else start
        return torch.cat([first, self.embed_tokens(tokens)], 1)

    def hidden(
        self,
        x: Float[Tensor, "B S D"],
        condition: Condition,
        caches: list[Any] | None = None,
        position: int = 0,
        layers: int | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Inputs from `position` on -> what the first `layers` layers make of them (all by default)."""
        places = self.pos_emb.pos_emb[position : position + x.shape[1]]
        x = self._drop(x) + self._drop(places)
        x = _plus(x, condition.added, position)
        return self.transformer(x, condition.memory, caches, position, layers)

    def logits(self, hidden: Float[Tensor, "B S D"], condition: Condition, position: int = 0) -> Float[Tensor, "B S V"]:
        """Of the tokens at these positions."""
        return self.fc_proj_out(hidden if self.merged else _plus(hidden, condition.added, position))

    def reset_parameters(self) -> None:
        """A fresh start token; all else is reset part by part."""
        if hasattr(self, "start_token"):
            nn.init.normal_(self.start_token, std=self.deviation)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class LyricEncoder(Autoregressive):
    """A transformer over lyric tokens, causal and moved right by one like the others, and the way to its reader."""

    def __init__(self, config: JukeboxPriorConfig) -> None:
        encoder, length = config.encoder_config, config.nb_relevant_lyric_tokens
        super().__init__(encoder, config.lyric_vocab_size, _cut(encoder, length), starts=True, logits=False)
        self.proj_in = Float32Projection(encoder.hidden_size, config.hidden_size, 0.02 * encoder.init_scale)
        self.final_layer_norm = Float32LayerNorm(config.hidden_size)
        self.lm_head = Float32Head(config.hidden_size, config.lyric_vocab_size, 0.02 * config.init_scale)

    def forward(self, lyrics: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """States that the prior's cross-attention looks at; state i has seen the tokens before i."""
        x = self.hidden(self.shifted(lyrics[:, :-1], None), Condition(None, None, None, lyrics))
        return self.final_layer_norm(self.proj_in(x))


class Float32Projection(Float32, Projection):
    """A projection outside the stack, which stays in float32."""

    def __init__(self, inputs: int, outputs: int, deviation: float) -> None:
        super().__init__(inputs, outputs, deviation, torch.float32)


def _plus(x: Tensor, added: Tensor | None, position: int) -> Tensor:
    return x if added is None else x + added[:, position : position + x.shape[1]]


def _style(config: JukeboxPriorConfig) -> LayerStyle:
    return LayerStyle(
        width=config.hidden_size,
        heads=config.n_heads,
        attention_width=int(config.attention_multiplier * config.hidden_size),
        ffn_width=int(config.mlp_multiplier * config.hidden_size),
        activation=ACTIVATIONS[config.act_fn],
        attention_dropout=float(config.attn_dropout),
        residual_dropout=float(config.resid_dropout),
        residual_scale=1.0 / config.num_layers if config.attn_res_scale else 1.0,
        deviation=0.02 * config.init_scale,
        zero_out=config.zero_out,
    )


def _cut(config: JukeboxPriorConfig, length: int, prime: int = 0) -> Factoring:
    return Factoring(length=length, blocks=config.blocks or 1, prime=prime, spread=config.spread or 1)


class JukeboxPrior(StrictLoading):
    """The language model of one level."""

    config_class = JukeboxPriorConfig
    config: JukeboxPriorConfig
    default_dtype = torch.float32
    base_model_prefix = ""
    main_input_name = "codes"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean already: Trainer must not rescale it
    _no_split_modules = ["FactoredLayer"]
    _tied_weights_keys = {"prior.fc_proj_out.weight": "prior.embed_tokens.weight"}
    _keep_in_fp32_modules_strict = {
        *("embed_tokens", "fc_proj_out", "pos_emb", "start_token", "metadata_embedding", "lm_head"),
        *("layer_norm", "layer_norm_0", "layer_norm_1", "final_layer_norm", "encoder.proj_in"),
    }
    # A whole model's folder holds the VQ-VAE and other levels besides.
    _keys_to_ignore_on_load_unexpected = {r"^vqvae\.", r"^priors\.\d+\."}

    def __init__(self, config: JukeboxPriorConfig) -> None:
        check_config(config)
        super().__init__(config)
        lyrics, joined = config.nb_relevant_lyric_tokens, config.joined
        self.lyric_shift = config.lyric_vocab_size if joined else 0
        """What is added to a music code in the model's own vocabulary."""
        prefix = lyrics if joined else 0
        self.prior = Autoregressive(
            config,
            self.lyric_shift + config.music_vocab_size,
            _cut(config, prefix + config.n_ctx, prefix),
            starts=not config.metadata_conditioning,
            logits=True,
        )
        self.encoder = LyricEncoder(config) if lyrics and not joined else None
        self.conditioner_blocks = Conditioner(config) if config.level else None
        self.metadata_embedding = (
            MetadataEmbedding(config, timing=not config.level) if config.metadata_conditioning else None
        )
        self.post_init()

    @classmethod
    def from_pretrained(
        cls: type[Model], pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Model:
        """As transformers'; of a whole model the prior number `level` (a keyword; 0, the top, by default)."""
        level = kwargs.pop("level", 0)
        kwargs.setdefault("key_mapping", {rf"^priors\.{level}\.": ""})
        if "config" not in kwargs:
            kwargs["level"] = level
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @property
    def raw_to_tokens(self) -> int:
        """Audio samples per code, by transformers' name."""
        return self.config.hop_length

    def _init_weights(self, module: nn.Module) -> None:
        """Each part knows the original's deviation for its weights; convolutions and norms are as torch has them."""
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()

    # ------------------------------------------------------------------------------------- conditions

    def condition(self, labels: Given | None, upper_codes: Given | None, batch: int) -> Condition:
        """What labels and the level above say.  Raises RequestError for what doesn't fit."""
        config = self.config
        rows = self._labels(labels, batch)
        lyrics = rows[:, 4 + config.max_nb_genres :]
        start, added = None, None
        if self.metadata_embedding is not None:
            start, added = self.metadata_embedding(rows[:, : 4 + config.max_nb_genres])
        if self.conditioner_blocks is not None:
            upper = self._upper_codes(upper_codes, batch)
            # One by one: the conditioner is short of nothing but memory.
            added = torch.cat([self.conditioner_blocks(codes) for codes in upper.split(1)])
        elif upper_codes is not None:
            raise RequestError("This is a top-level prior, which has no level above: leave upper_codes out.")
        if added is not None and config.joined:
            added = F.pad(added, (0, 0, lyrics.shape[1], 0))  # lyrics have no condition
        memory = None if self.encoder is None else self.encoder(lyrics)
        return Condition(start, added, memory, lyrics)

    def _labels(self, labels: Tensor | None, batch: int) -> Tensor:
        """[B, 4 + G + n] on this device; zeros where nothing reads them."""
        config = self.config
        if labels is None:
            if config.metadata_conditioning or config.nb_relevant_lyric_tokens:
                raise RequestError(f"This prior needs labels: int64 [{batch}, {config.label_width}].")
            return torch.zeros(batch, config.label_width, dtype=torch.long, device=self.device)
        check_labels(config, labels, batch)
        return labels.to(self.device)

    def _upper_codes(self, codes: Tensor | None, batch: int) -> Tensor:
        wanted = self.config.n_ctx // self.config.upper_ratio
        if codes is None:
            raise RequestError(
                f"This prior is an upsampler: it needs upper_codes, [{batch}, {wanted}] codes of the level above."
            )
        if tuple(codes.shape) != (batch, wanted):
            raise RequestError(
                f"upper_codes is {list(codes.shape)}; a window of this prior needs [{batch}, {wanted}] codes of the "
                "level above."
            )
        _check_codes("upper_codes", codes, self.config.music_vocab_size)
        return codes.to(self.device)

    def _codes(self, codes: Tensor, shortest: int = 1) -> Tensor:
        window = self.config.n_ctx
        if codes.dim() != 2 or not shortest <= codes.shape[1] <= window:
            raise RequestError(
                f"codes is {list(codes.shape)}; it must be [batch, steps] with {shortest} to {window} steps."
            )
        _check_codes("codes", codes, self.config.music_vocab_size)
        return codes.to(self.device)

    # --------------------------------------------------------------------------- teacher-forced passes

    def forward(
        self,
        codes: Given,
        labels: Given | None = None,
        upper_codes: Given | None = None,
        return_dict: bool | None = None,
    ) -> "JukeboxPriorOutput | tuple[Any, ...]":
        """Logits and losses of all codes, each predicted from those before it.

        codes: of one window (S = n_ctx) or its beginning; labels: see the head of this file; upper_codes: of the same
        window, n_ctx divided by the ratio of the levels.  The loss weighs music and lyrics by their share of tokens in
        a window, lyrics also by `encoder_loss_fraction`.  Raises RequestError for what doesn't fit.
        """
        codes = self._codes(codes)
        condition = self.condition(labels, upper_codes, len(codes))
        tokens = self._tokens(codes, condition)
        x = self.prior.shifted(tokens[:, :-1], condition.start)
        logits = self.prior.logits(self.prior.hidden(x, condition), condition)
        prefix = tokens.shape[1] - codes.shape[1]
        music = _bits(logits[:, prefix:], tokens[:, prefix:])
        lyrics, lyrics_logits = torch.zeros_like(music), None
        if self.encoder is not None:
            lyrics_logits = self.encoder.lm_head(condition.memory)
            lyrics = _bits(lyrics_logits, condition.lyrics)
        elif prefix:
            lyrics = _bits(logits[:, :prefix], condition.lyrics)
        output = JukeboxPriorOutput(
            loss=self._weigh(music, lyrics),
            logits=logits,
            music_loss=music,
            lyrics_loss=lyrics,
            lyrics_logits=lyrics_logits,
            encoder_states=condition.memory,
        )
        chosen = self.config.return_dict if return_dict is None else return_dict
        return output if chosen else output.to_tuple()

    def _tokens(self, codes: Tensor, condition: Condition) -> Tensor:
        """The sequence in the model's own vocabulary."""
        return torch.cat([condition.lyrics, codes + self.lyric_shift], 1) if self.config.joined else codes

    def _weigh(self, music: Tensor, lyrics: Tensor) -> Tensor:
        config = self.config
        tokens = config.n_ctx + config.nb_relevant_lyric_tokens
        lyric_part = lyrics * config.nb_relevant_lyric_tokens / tokens
        return config.encoder_loss_fraction * lyric_part + music * config.n_ctx / tokens

    @torch.no_grad()
    def activations(
        self,
        codes: Given,
        labels: Given | None = None,
        upper_codes: Given | None = None,
        *,
        layer: int,
    ) -> Float[Tensor, "B S D"]:
        """What the first `layer` layers make of the codes (1: the first layer's output; 0: their input), in float32.

        Later layers aren't run.  Row t has seen the codes before t.
        """
        check_layer(self.config, layer)
        codes = self._codes(codes)
        condition = self.condition(labels, upper_codes, len(codes))
        hidden = self._until(layer, codes, condition)
        return hidden[:, hidden.shape[1] - codes.shape[1] :]

    def _until(self, layer: int, codes: Tensor, condition: Condition) -> Tensor:
        tokens = self._tokens(codes, condition)
        x = self.prior.shifted(tokens[:, :-1], condition.start)
        return self.prior.hidden(x, condition, layers=layer)

    @torch.no_grad()
    def attention(
        self,
        codes: Given,
        labels: Given | None = None,
        upper_codes: Given | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
    ) -> Float[Tensor, "B N S M"]:
        """Attention probabilities of one layer (0 is the first), of one head or (None) all.  Later layers aren't run.

        Queries are the music's.  In a layer that attends to lyrics, keys are the lyric tokens (of a lyric prefix in
        the same sequence only those, so that rows may sum to less than 1); in others, all positions.  The layer is
        `alignment_layer` by default.
        """
        layer = self._layer(layer, head)
        codes = self._codes(codes)
        condition = self.condition(labels, upper_codes, len(codes))
        x = self._until(layer, codes, condition).to(self.prior.transformer.dtype)
        block = self.prior.transformer.layers[layer]
        memory = None if condition.memory is None else condition.memory.to(x.dtype)
        weights = block.attn.weights(block.layer_norm_0(x), memory, head)[:, :, x.shape[1] - codes.shape[1] :]
        return weights[..., : condition.lyrics.shape[1]] if block.attn.reads_prefix else weights

    def _layer(self, layer: int | None, head: int | None) -> int:
        layer = self.config.alignment_layer if layer is None else layer
        layers, heads = self.config.num_layers, self.config.n_heads
        if layer is None or not 0 <= layer < layers or not (head is None or 0 <= head < heads):
            raise RequestError(
                f"There is no layer {layer}, head {head}; this prior has layers 0 to {layers - 1} and heads 0 to "
                f"{heads - 1}."
            )
        return layer

    # -------------------------------------------------------------------------------------- sampling

    def session(self, condition: Condition, samples: int, steps: int, chunk_size: int | None = None) -> "PriorSession":
        """Begin a window of at most `steps` codes; see generation/decode.py."""
        return PriorSession(self, condition, samples, steps, chunk_size)

    @torch.no_grad()
    def iterate_codes(
        self,
        n_samples: int,
        *,
        labels: Given | None = None,
        upper_codes: Given | None = None,
        codes: Given | None = None,
        sample_tokens: int | None = None,
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 0.0,
        chunk_size: int | None = None,
        generators: Sequence[torch.Generator] | None = None,
        use_cache: bool = True,
    ) -> Generator[Step, None, Int[Tensor, "B S"]]:
        """What `sample` does, step by step: yields a `Step` (generation/decode.py) a code, returns the codes.

        A step's own codes are in the model's vocabulary; `to_codes` turns them into music codes.
        """
        steps = self.config.n_ctx if sample_tokens is None else sample_tokens
        _check_sampling(n_samples, steps, self.config.n_ctx, temperature, top_k, top_p, chunk_size)
        labels, upper_codes = _repeated(labels, n_samples), _repeated(upper_codes, n_samples)
        primer = self._primer(codes, n_samples, steps)
        condition = self.condition(labels, upper_codes, n_samples)
        sampler = Sampler(temperature, top_k, top_p, guidance=1.0, generators=generators)
        if use_cache:
            session: decode.Session = self.session(condition, n_samples, steps, chunk_size)
        else:
            session = ReferenceSession(self, condition)
        grid = decode.with_prompts(list(primer[:, None] + self.lyric_shift), steps, self.device)
        raw = yield from decode.iterate_codes(session, patterns.parallel(steps, 1), grid, sampler, special=0)
        return self.to_codes(raw[:, 0])

    def sample(
        self,
        n_samples: int = 1,
        *,
        labels: Given | None = None,
        upper_codes: Given | None = None,
        codes: Given | None = None,
        sample_tokens: int | None = None,
        temperature: float | int = 1.0,
        top_k: int = 0,
        top_p: float | int = 0.0,
        chunk_size: int | None = None,
        seeds: int | Sequence[int] | None = None,
        generators: Sequence[torch.Generator] | None = None,
        use_cache: bool = True,
        music_tokens: Given | None = None,
        music_tokens_conds: Any = None,
        metadata: Given | None = None,
        temp: float | int | None = None,
    ) -> Int[Tensor, "B S"]:
        """Draw codes; given ones (`codes`, the primer) come first and are part of the result.

        labels, upper_codes, codes: one row, or one a sample.  upper_codes: of the whole window.
        sample_tokens: codes in all, the primer included; a window (n_ctx) by default.
        temperature: 0 takes the likeliest code; top_k 0 and top_p 0 are off, both together act one after the other.
        chunk_size: how many known codes are fed at a time, at most a row (which is the default); the result is the
        same, memory and speed differ.
        seeds (one a sample; of a single number sample i has seed + i) or generators make each sample's codes
        independent of its batch-mates; without them torch's global generator is drawn from.
        use_cache False computes everything anew for each code.
        music_tokens, music_tokens_conds, metadata, temp: transformers' names of codes, upper_codes, labels,
        temperature.  Raises RequestError for what doesn't fit.
        """
        if isinstance(music_tokens_conds, list | tuple):
            music_tokens_conds = music_tokens_conds[0] if music_tokens_conds else None
        if seeds is not None:
            generators = settings.generators(seeds, n_samples, self.device)
        if generators is not None and len(generators) != n_samples:
            raise RequestError(f"There are {len(generators)} generators for {n_samples} samples; give one each.")
        run = self.iterate_codes(
            n_samples,
            labels=metadata if labels is None else labels,
            upper_codes=music_tokens_conds if upper_codes is None else upper_codes,
            codes=music_tokens if codes is None else codes,
            sample_tokens=sample_tokens,
            temperature=temperature if temp is None else temp,
            top_k=top_k,
            top_p=top_p,
            chunk_size=chunk_size,
            generators=generators,
            use_cache=use_cache,
        )
        return decode.finish(run)

    def to_codes(self, tokens: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
        """Music codes of tokens in the model's own vocabulary; a stray lyric token becomes code 0."""
        return (tokens - self.lyric_shift).clamp(min=0)

    def _primer(self, codes: Tensor | None, samples: int, steps: int) -> Tensor:
        if codes is None:
            return torch.empty(samples, 0, dtype=torch.long, device=self.device)
        primer = self._codes(codes.expand(samples, -1) if len(codes) == 1 else codes, shortest=0)
        if len(primer) != samples or primer.shape[1] > steps:
            raise RequestError(
                f"codes is {list(primer.shape)}, but {samples} samples of {steps} codes in all were asked for; "
                "give at most that many."
            )
        return primer


class PriorSession:
    """A window in the making: caches of the smallest size, lyrics and known codes fed in pieces within a row."""

    def __init__(
        self, prior: JukeboxPrior, condition: Condition, samples: int, steps: int, chunk_size: int | None
    ) -> None:
        self.model, self.condition, config = prior.prior, condition, prior.config
        self.prefix = condition.lyrics if config.joined else condition.lyrics[:, :0]
        stack = self.model.transformer
        self.chunk = min(chunk_size or stack.row, stack.row)
        head_width = int(config.attention_multiplier * config.hidden_size) // config.n_heads
        room = Room(samples, config.n_heads, head_width, stack.dtype, prior.device)
        self.caches = stack.caches(room, self.prefix.shape[1] + steps)
        self.position = 0

    def prefill(self, ids: Int[Tensor, "B 1 P"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py.  The first column is the start, which labels or a learned vector stand for."""
        tokens = torch.cat([self.prefix, ids[:, 0, 1:]], 1)
        *_, last = self.feed(self.model.shifted(tokens, self.condition.start))
        return self._next(last)

    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        return self._next(self._hidden(self.model.embed_tokens(ids)))

    def feed(self, x: Float[Tensor, "B S D"]) -> Iterator[Float[Tensor, "B P D"]]:
        """Inputs of the next positions, piece by piece: the output of the stack for each piece."""
        row = self.model.transformer.row
        while x.shape[1]:
            count = min(self.chunk, row - self.position % row)
            yield self._hidden(x[:, :count])
            x = x[:, count:]

    def _hidden(self, x: Tensor) -> Tensor:
        hidden = self.model.hidden(x, self.condition, self.caches, self.position)
        self.position += x.shape[1]
        return hidden

    def _next(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden[:, -1:], self.condition, self.position - 1)
        return logits[None]


class ReferenceSession:
    """The obvious version: no cache, everything anew for every code.  What `use_cache=False` means."""

    def __init__(self, prior: JukeboxPrior, condition: Condition) -> None:
        self.model, self.condition = prior.prior, condition
        self.prefix = condition.lyrics if prior.config.joined else condition.lyrics[:, :0]

    def prefill(self, ids: Int[Tensor, "B 1 P"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        self.ids = ids
        x = self.model.shifted(torch.cat([self.prefix, ids[:, 0, 1:]], 1), self.condition.start)
        hidden = self.model.hidden(x, self.condition)
        return self.model.logits(hidden[:, -1:], self.condition, x.shape[1] - 1)[None]

    def step(self, ids: Int[Tensor, "B 1"]) -> Float[Tensor, "1 B 1 V"]:
        """See generation/decode.py."""
        return self.prefill(torch.cat([self.ids, ids[:, :, None]], 2))


def _bits(logits: Float[Tensor, "B S V"], tokens: Int[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in bits."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) / math.log(2)


def _repeated(rows: Tensor | None, samples: int) -> Tensor | None:
    """One row stands for all samples."""
    return rows if rows is None or len(rows) != 1 else rows.expand(samples, -1)


def _check_codes(name: str, codes: Tensor, vocabulary: int) -> None:
    if codes.dtype != torch.long:
        raise RequestError(f"{name} has type {codes.dtype}; codes must be torch.int64.")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= vocabulary):
        raise RequestError(
            f"{name} holds values from {int(codes.min())} to {int(codes.max())}; codes of this model lie between 0 and "
            f"{vocabulary - 1}."
        )


def check_layer(config: JukeboxPriorConfig, layer: int) -> None:
    """Raise RequestError for a layer whose output the prior can't give; 0 is the input."""
    if not 0 <= layer <= config.num_layers:
        raise RequestError(f"layer is {layer}; this prior has layers 0 (the input) to {config.num_layers}.")


def check_labels(config: JukeboxPriorConfig, labels: Tensor, batch: int) -> None:
    """Raise RequestError for labels that the embeddings have no room for."""
    genres, artists = config.metadata_dims
    if labels.dtype != torch.long or tuple(labels.shape) != (batch, config.label_width):
        raise RequestError(
            f"labels is {labels.dtype} {list(labels.shape)}; this prior needs torch.int64 "
            f"[{batch}, {config.label_width}]: 4 numbers, {config.max_nb_genres} genres, "
            f"{config.nb_relevant_lyric_tokens} lyric tokens."
        )
    rows = labels.cpu()
    if config.nb_relevant_lyric_tokens:
        _check_range("lyric tokens", rows[:, 4 + config.max_nb_genres :], 0, config.lyric_vocab_size - 1)
    if config.metadata_conditioning:
        _check_range("artists", rows[:, 3], 0, artists - 1)
        _check_range("genres", rows[:, 4 : 4 + config.max_nb_genres], -1, genres - 1)
        if not config.level:
            _check_timing(config, rows)


def _check_timing(config: JukeboxPriorConfig, rows: Tensor) -> None:
    """In samples; the ends of ranges are excluded."""
    # Products such as 0.07 · 100 miss their integer by a hair.
    shortest, longest = (math.ceil(x * config.sampling_rate - 1e-6) for x in (config.min_duration, config.max_duration))
    _check_range("total lengths", rows[:, 0], shortest, longest - 1)
    _check_range("window lengths", rows[:, 2], 0, longest)
    if bool(((rows[:, 1] < 0) | (rows[:, 1] >= rows[:, 0])).any()):
        raise RequestError(
            f"labels have offsets {rows[:, 1].tolist()} for total lengths {rows[:, 0].tolist()} (in samples); an "
            "offset must be at least 0 and below its total length."
        )


def _check_range(what: str, values: Tensor, low: int, high: int) -> None:
    if values.numel() and not (low <= int(values.min()) and int(values.max()) <= high):
        raise RequestError(
            f"labels have {what} from {int(values.min())} to {int(values.max())}; this model's lie between {low} and "
            f"{high}."
        )


def _check_sampling(
    samples: int,
    steps: int,
    window: int,
    temperature: float | int,
    top_k: int,
    top_p: float | int,
    chunk_size: int | None,
) -> None:
    checks: tuple[tuple[str, Any, bool, str], ...] = (
        ("n_samples", samples, samples >= 1, "at least 1"),
        ("sample_tokens", steps, 1 <= steps <= window, f"from 1 to {window}, the window of this prior"),
        ("temperature", temperature, temperature >= 0, "0 (the likeliest code) or above"),
        ("top_k", top_k, top_k >= 0, "0 (off) or more"),
        ("top_p", top_p, 0 <= top_p <= 1, "between 0 (off) and 1"),
        ("chunk_size", chunk_size, chunk_size is None or chunk_size >= 1, "at least 1"),
    )
    for name, value, fits, allowed in checks:
        if not fits:
            raise RequestError(f"{name} is {value!r}, but it must be {allowed}.")
