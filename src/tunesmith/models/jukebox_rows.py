"""New artists, genres and characters for a prior that is there: rows behind those of its embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.models.jukebox import JukeboxPrior


@dataclass(frozen=True)
class Place:
    """New rows of a tensor, by its name within the prior."""

    name: str
    start: int
    stop: int


@torch.no_grad()
def grow(
    prior: JukeboxPrior, *, artists: Sequence[int] = (), genres: Sequence[int] = (), characters: int = 0
) -> list[Place]:
    """Add rows in place, and set the configuration's sizes; where the new rows are.

    artists, genres: for each new id the old one whose row it begins as.  characters: how many the alphabet has more;
    each begins as the mean of those that there were.
    """
    return [*_grow_labels(prior, artists, genres), *(_grow_lyrics(prior, characters) if characters else ())]


def _grow_labels(prior: JukeboxPrior, artists: Sequence[int], genres: Sequence[int]) -> Iterator[Place]:
    tables: Any = prior.metadata_embedding
    if tables is None:
        return
    dims = list(prior.config.metadata_dims)
    for place, name, begins in ((1, "artist_emb", artists), (0, "bow_genre_emb", genres)):
        if begins:
            table = getattr(tables, name)
            _replace(table, torch.cat([table.weight, table.weight[list(begins)]]))
            yield Place(f"metadata_embedding.{name}.weight", dims[place], dims[place] + len(begins))
            dims[place] += len(begins)
    prior.config.metadata_dims = dims


def _grow_lyrics(prior: JukeboxPrior, count: int) -> Iterator[Place]:
    """In the lyric encoder, or in the vocabulary that lyrics share with music, whose codes move up."""
    old = prior.config.lyric_vocab_size
    if prior.encoder is not None:
        _insert(prior.encoder.embed_tokens, old, count)
        _insert(prior.encoder.lm_head, old, count)
        yield Place("encoder.embed_tokens.weight", old, old + count)
        yield Place("encoder.lm_head.weight", old, old + count)
    else:
        own: Any = prior.prior
        tied = own.fc_proj_out.weight is own.embed_tokens.weight
        _insert(own.embed_tokens, old, count)
        yield Place("prior.embed_tokens.weight", old, old + count)
        if tied:
            own.fc_proj_out.weight = own.embed_tokens.weight
        else:
            _insert(own.fc_proj_out, old, count)
            yield Place("prior.fc_proj_out.weight", old, old + count)
        own.fc_proj_out.out_features = len(own.fc_proj_out.weight)
        prior.lyric_shift += count
    prior.config.lyric_vocab_size = old + count


def _insert(module: nn.Module, place: int, count: int) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]  # an embedding's or a head's
    fresh = weight[:place].mean(0, keepdim=True).expand(count, -1)
    _replace(module, torch.cat([weight[:place], fresh, weight[place:]]))


def _replace(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)  # type: ignore[arg-type]  # a tensor's
    for size in ("num_embeddings", "out_features"):
        if hasattr(module, size):
            setattr(module, size, len(weight))
