"""New rows leave all that there was as it is."""

from typing import Any

import pytest
import torch

from tiny_jukebox import WINDOW, tiny_jukebox, tiny_labels
from tunesmith.models.jukebox_rows import Place, grow
from tunesmith.pipelines.levels import Options, Plan

CODES = torch.arange(WINDOW)[None] % 24


def rows(joined: bool) -> torch.Tensor:
    model = tiny_jukebox(joined)
    labels = tiny_labels("la la la, oh so blue")
    return Plan.of(model.config, labels, Options.of({"sample_length": 128}), songs=1, sampled=[0]).levels[0].labels


@pytest.mark.parametrize("joined", [False, True])
def test_what_was_known_is_the_same(joined: bool) -> None:
    prior: Any = tiny_jukebox(joined).priors[0]
    labels = rows(joined)[:, : prior.config.label_width]
    before = prior(CODES, labels)
    places = grow(prior, artists=[2, 0], genres=[1], characters=3)
    after = prior(CODES, labels)
    old = prior.lyric_shift - 3 if joined else 0
    assert torch.equal(after.logits[..., :old], before.logits[..., :old])
    assert torch.equal(after.logits[..., old + 3 * joined :], before.logits[..., old:])
    assert prior.config.metadata_dims == [5, 7]
    assert prior.config.lyric_vocab_size == 82
    assert {place.name for place in places} >= {"metadata_embedding.artist_emb.weight"}
    assert Place("metadata_embedding.artist_emb.weight", 5, 7) in places
    assert isinstance(type(prior)(prior.config).load_state_dict(prior.state_dict()), tuple)


def test_new_rows_begin_as_asked() -> None:
    prior: Any = tiny_jukebox().priors[0]
    letters = prior.encoder.embed_tokens.weight.mean(0)
    grow(prior, artists=[2, 0], characters=2)
    artists = prior.metadata_embedding.artist_emb.weight
    assert torch.equal(artists[5], artists[2])
    assert torch.equal(artists[6], artists[0])
    assert torch.allclose(prior.encoder.embed_tokens.weight[-2:], letters.expand(2, -1))
    assert len(prior.encoder.lm_head.weight) == 81


def test_heads_that_are_embeddings_stay_so() -> None:
    prior: Any = tiny_jukebox(joined=True).priors[0]
    places = grow(prior, characters=1)
    assert prior.prior.fc_proj_out.weight is prior.prior.embed_tokens.weight
    assert [place.name for place in places] == ["prior.embed_tokens.weight"]
    assert prior.sample(1, labels=rows(True)[:, : prior.config.label_width], sample_tokens=2, seeds=0).shape == (1, 2)


def test_a_head_of_its_own_grows_too() -> None:
    prior: Any = tiny_jukebox(joined=True, merged_decoder=True).priors[0]
    assert [place.name for place in grow(prior, characters=1)] == [
        "prior.embed_tokens.weight",
        "prior.fc_proj_out.weight",
    ]
