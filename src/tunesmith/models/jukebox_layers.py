"""What Jukebox's priors are built of: labels, the level above and lyrics as vectors; tokens in, logits out.

Parameters keep the names of transformers 4.40.2's Jukebox.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.generation.capture import Keeper, Pool
from tunesmith.models.jukebox_config import ACTIVATIONS, JukeboxPriorConfig, attention_order
from tunesmith.nn import factored
from tunesmith.nn.dilated import DilatedStack, DilatedStyle, UpBlock
from tunesmith.nn.factored import FactoredStack, Factoring, LayerStyle, Projection
from tunesmith.nn.precision import Float32, Float32Embedding, Float32Head, Float32LayerNorm, in_float32


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


class Autoregressive(Keeper, Float32):
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
        self.kept = Pool[Any]()
        """Memory of recorded steps (jukebox_sessions.py)."""
        self.fuse = False
        """Let torch.compile make few kernels of a recorded step, which takes it minutes."""
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
        position: int | Int[Tensor, "1"] = 0,
        layers: int | None = None,
    ) -> Float[Tensor, "B S D"]:
        """Inputs from `position` on -> what the first `layers` layers make of them (all by default)."""
        places = _from(self.pos_emb.pos_emb, 0, position, x.shape[1])
        x = self._drop(x) + self._drop(places)
        x = _plus(x, condition.added, position)
        return self.transformer(x, condition.memory, caches, position, layers)

    def logits(
        self, hidden: Float[Tensor, "B S D"], condition: Condition, position: int | Int[Tensor, "1"] = 0
    ) -> Float[Tensor, "B S V"]:
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
        super().__init__(encoder, config.lyric_vocab_size, cut_into_rows(encoder, length), starts=True, logits=False)
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


def _plus(x: Tensor, added: Tensor | None, position: int | Tensor) -> Tensor:
    return x if added is None else x + _from(added, 1, position, x.shape[1])


def _from(x: Tensor, dimension: int, position: int | Tensor, count: int) -> Tensor:
    """So many; one where the device alone knows the position."""
    if isinstance(position, Tensor):
        return x.index_select(dimension, position)
    return x.narrow(dimension, position, min(count, x.shape[dimension] - position))


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


def cut_into_rows(config: JukeboxPriorConfig, length: int, prime: int = 0) -> Factoring:
    """How attention sees a sequence of which `prime` positions are lyrics."""
    return Factoring(length=length, blocks=config.blocks or 1, prime=prime, spread=config.spread or 1)
