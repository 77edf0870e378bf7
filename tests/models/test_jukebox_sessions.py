"""Sampling a prior of Jukebox: in every way the same codes, without new caches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_prior import KINDS, conditions, inputs, prior
from tunesmith.generation.sampling import keep_top_k


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_equals_the_obvious_version(kind: str, chunk_size: int | None) -> None:
    model = prior(kind)
    given = inputs(model)
    settings = conditions(given) | {"codes": given["codes"][:, :9], "seeds": [5, 6, 7], "temperature": 3.0}
    wanted = model.sample(3, use_cache=False, **settings)
    assert torch.equal(model.sample(3, chunk_size=chunk_size, **settings), wanted)
    assert torch.equal(wanted[:, :9], given["codes"][:, :9])
    assert wanted.shape == (3, 24)
    assert len(wanted[:, 9:].unique()) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_codes_in_every_batch(kind: str) -> None:
    model = prior(kind)
    given = conditions(inputs(model))
    together = model.sample(3, seeds=[5, 6, 5], **given)
    for i, seed in enumerate([5, 6, 5]):
        alone = model.sample(1, seeds=[seed], **{name: value[i : i + 1] for name, value in given.items()})
        assert torch.equal(alone[0], together[i])
    assert not torch.equal(together[0], together[1])


def test_a_single_seed_counts_up() -> None:
    model = prior("plain")
    labels = inputs(model)["labels"]
    assert torch.equal(model.sample(3, labels=labels, seeds=4), model.sample(3, labels=labels, seeds=[4, 5, 6]))


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_serves_all_samples(kind: str) -> None:
    model = prior(kind)
    given = inputs(model, batch=1)
    settings = {**conditions(given), "codes": given["codes"][:, :5], "sample_tokens": 12}
    found = model.sample(2, seeds=[1, 2], **settings)
    assert found.shape == (2, 12)
    assert torch.equal(found[1:], model.sample(1, seeds=[2], **settings))


def test_steps_tell_progress_and_can_be_cancelled() -> None:
    model = prior("single")
    given = inputs(model)
    run = model.iterate_codes(3, **conditions(given), codes=given["codes"][:, :20], temperature=0)
    steps = []
    for step in run:
        steps.append((step.done, step.total, step.frames))
        if step.done == 3:
            break
    run.close()
    assert steps == [(1, 4, 21), (2, 4, 22), (3, 4, 23)]
    assert torch.equal(model.to_codes(step.codes[:, 0, :20]), given["codes"][:, :20])


def test_a_complete_primer_is_returned() -> None:
    model = prior("plain")
    given = inputs(model)
    assert torch.equal(model.sample(3, **given), given["codes"])


def test_names_that_transformers_uses() -> None:
    model = prior("upsampler")
    given = inputs(model)
    primer, upper = given["codes"][:, :4], given["upper_codes"]
    theirs = model.sample(
        3, music_tokens=primer, music_tokens_conds=[upper], metadata=given["labels"], temp=0.0, sample_tokens=9
    )
    ours = model.sample(3, codes=primer, upper_codes=upper, labels=given["labels"], temperature=0.0, sample_tokens=9)
    assert torch.equal(theirs, ours)
    empty = torch.empty(3, 0, dtype=torch.long)
    assert torch.equal(
        model.sample(3, codes=empty, temperature=0, **conditions(given)),
        model.sample(3, temperature=0, **conditions(given)),
    )


def test_global_randomness_and_generators() -> None:
    model = prior("plain")
    given = conditions(inputs(model))
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(model.sample(3, **given))
    assert torch.equal(*drawn)
    makers = [torch.Generator().manual_seed(i) for i in range(3)]
    assert torch.equal(model.sample(3, generators=makers, **given), model.sample(3, seeds=[0, 1, 2], **given))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_of_any_width(kind: str) -> None:
    model = prior(kind)
    given = inputs(model)
    narrow = {name: value.to(torch.int16 if name == "labels" else torch.int32) for name, value in given.items()}
    torch.testing.assert_close(model(**narrow).loss, model(**given).loss)
    wanted = model.sample(3, seeds=[3, 4, 5], sample_tokens=12, **{**given, "codes": given["codes"][:, :5]})
    for seeds in (np.int64(3), torch.tensor([3, 4, 5])):
        found = model.sample(3, seeds=seeds, sample_tokens=12, **{**narrow, "codes": narrow["codes"][:, :5]})
        assert torch.equal(found, wanted)


def test_top_k_and_top_p_narrow_the_choice() -> None:
    model = prior("plain")
    given = conditions(inputs(model))
    greedy = model.sample(3, temperature=0, **given)
    assert torch.equal(model.sample(3, top_k=1, **given), greedy)
    assert torch.equal(model.sample(3, top_p=1e-6, **given), greedy)
    assert keep_top_k(torch.tensor([1.0, 2.0, 2.0]), 1).isfinite().tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_allocates_no_cache(kind: str) -> None:
    """The largest tensor that a step makes is far smaller than what it remembers."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            inside = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            for x in tree_leaves(out):
                if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in inside:
                    self.largest = max(self.largest, x.numel())
            return out

    model = (
        prior(kind, n_ctx=1200, blocks=8, nb_relevant_lyric_tokens=8 if kind == "single" else 0)
        if kind != "separate"
        else prior(kind, n_ctx=1200, blocks=8)
    )
    given = conditions(inputs(model, batch=1))
    with torch.no_grad():
        session = model.session(model.condition(**{"upper_codes": None, **given}, batch=1), 1, 1200)
        session.prefill(torch.zeros(1, 1, 1000, dtype=torch.long))
        with Sizes() as sizes:
            session.step(torch.zeros(1, 1, dtype=torch.long))
    assert 0 < sizes.largest < 3 * 1010 < 0.4 * 1200 * 4 * 2  # scores at most: heads x positions
