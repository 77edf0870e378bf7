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
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from tunesmith.errors import RequestError
from tunesmith.generation import decode, patterns, settings
from tunesmith.generation.capture import recordable
from tunesmith.generation.decode import Step
from tunesmith.generation.sampling import Sampler
from tunesmith.generation.seeds import plain
from tunesmith.models import jukebox_engine
from tunesmith.models.jukebox_checks import (
    check_layer,
    check_sampling,
    checked_codes,
    checked_labels,
    checked_upper_codes,
    whole_numbers,
)
from tunesmith.models.jukebox_config import (
    PRESETS,
    JukeboxPriorConfig,
    attention_order,
    attention_pattern,
    check_config,
)
from tunesmith.models.jukebox_layers import (
    Autoregressive,
    Condition,
    Conditioner,
    LyricEncoder,
    MetadataEmbedding,
    cut_into_rows,
)
from tunesmith.models.jukebox_sessions import PriorSession, RecordedSession, ReferenceSession
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


Given = Any
"""A tensor that users give: it is checked by us, in sentences; the docstrings say what it must be."""


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
            cut_into_rows(config, prefix + config.n_ctx, prefix),
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

    def get_input_embeddings(self) -> nn.Module:
        """Of the codes, and of lyrics that share their vocabulary."""
        return self.prior.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.prior.fc_proj_out

    def _init_weights(self, module: nn.Module) -> None:
        """Each part knows the original's deviation for its weights; convolutions and norms are as torch has them."""
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()

    # ------------------------------------------------------------------------------------- conditions

    def condition(self, labels: Given | None, upper_codes: Given | None, batch: int) -> Condition:
        """What labels and the level above say.  Raises RequestError for what doesn't fit."""
        config = self.config
        rows = checked_labels(config, labels, batch).to(self.device)
        lyrics = rows[:, 4 + config.max_nb_genres :]
        start, added = None, None
        if self.metadata_embedding is not None:
            start, added = self.metadata_embedding(rows[:, : 4 + config.max_nb_genres])
        if self.conditioner_blocks is not None:
            upper = checked_upper_codes(config, upper_codes, batch).to(self.device)
            # One by one: the conditioner is short of nothing but memory.
            added = torch.cat([self.conditioner_blocks(codes) for codes in upper.split(1)])
        elif upper_codes is not None:
            raise RequestError("This is a top-level prior, which has no level above: leave upper_codes out.")
        if added is not None and config.joined:
            added = F.pad(added, (0, 0, lyrics.shape[1], 0))  # lyrics have no condition
        memory = None if self.encoder is None else self.encoder(lyrics)
        return Condition(start, added, memory, lyrics)

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
        codes = checked_codes(self.config, codes).to(self.device)
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
        codes = checked_codes(self.config, codes).to(self.device)
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
        codes = checked_codes(self.config, codes).to(self.device)
        condition = self.condition(labels, upper_codes, len(codes))
        x = self._until(layer, codes, condition).to(self.prior.transformer.dtype)
        block = self.prior.transformer.layers[layer]
        memory = None if condition.memory is None else condition.memory.to(x.dtype)
        weights = block.attn.weights(block.layer_norm_0(x), memory, head)[:, :, x.shape[1] - codes.shape[1] :]
        return weights[..., : condition.lyrics.shape[1]] if block.attn.reads_prefix else weights

    def _layer(self, layer: int | None, head: int | None) -> int:
        layer = self.config.alignment_layer if layer is None else layer
        layers, heads = self.config.num_layers, self.config.n_heads
        found = layer in range(layers) and (head is None or head in range(heads))
        if layer is None or not found:
            raise RequestError(
                f"There is no layer {layer}, head {head}; this prior has layers 0 to {layers - 1} and heads 0 to "
                f"{heads - 1}."
            )
        return layer

    # -------------------------------------------------------------------------------------- sampling

    def session(self, condition: Condition, samples: int, steps: int, chunk_size: int | None = None) -> decode.Session:
        """Begin a window of at most `steps` codes; see generation/decode.py."""
        if jukebox_engine.fits(self.prior, self.config):
            return jukebox_engine.EngineSession(self.prior, self.config, condition, samples, steps, chunk_size)
        kind = RecordedSession if recordable(self.prior) else PriorSession
        return kind(self.prior, self.config, condition, samples, steps, chunk_size)

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
        n_samples, chunk_size = plain(n_samples), plain(chunk_size)
        steps = self.config.n_ctx if sample_tokens is None else plain(sample_tokens)
        check_sampling(n_samples, steps, self.config.n_ctx, temperature, top_k, top_p, chunk_size)
        labels = _repeated("labels", labels, n_samples)
        upper_codes = _repeated("upper_codes", upper_codes, n_samples)
        primer = self._primer(codes, n_samples, steps)
        condition = self.condition(labels, upper_codes, n_samples)
        sampler = Sampler(temperature, top_k, top_p, guidance=1.0, generators=generators)
        if use_cache:
            session: decode.Session = self.session(condition, n_samples, steps, chunk_size)
        else:
            session = ReferenceSession(self.prior, self.config, condition)
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
        seeds: Any = None,
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

    def _primer(self, codes: Given | None, samples: int, steps: int) -> Tensor:
        rows = _repeated("codes", codes, samples)
        if rows is None:
            return torch.empty(samples, 0, dtype=torch.long, device=self.device)
        primer = checked_codes(self.config, rows, shortest=0).to(self.device)
        if len(primer) != samples or primer.shape[1] > steps:
            raise RequestError(
                f"codes is {list(primer.shape)}, but {samples} samples of {steps} codes in all were asked for; "
                "give at most that many."
            )
        return primer


def _bits(logits: Float[Tensor, "B S V"], tokens: Int[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean cross-entropy in bits."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten()) / math.log(2)


def _repeated(name: str, rows: Given | None, samples: int) -> Tensor | None:
    """One row stands for all samples."""
    if rows is None:
        return None
    whole = whole_numbers(name, rows)
    return whole.expand(samples, -1) if whole.ndim == 2 and len(whole) == 1 else whole
