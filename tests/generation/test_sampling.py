"""Sampling: by hand on small vectors, against the reference tables, and seed for seed."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.generation.sampling import Sampler, draw, drawing, guide, guide_twice, keep_top_k, keep_top_p, warp
from tunesmith.nn import engine

INF = float("inf")
TIES = [3, 4]  # rows of the reference table in which top-p meets exact ties: only the number kept is defined


def table(goldens: Path) -> dict[str, torch.Tensor]:
    return load_file(goldens / "musicgen" / "sampling" / "io.safetensors")


def test_guidance_by_hand() -> None:
    both, partial, null = torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([1.0])
    assert guide(both, null, 3.0).item() == 10.0
    assert guide_twice(both, partial, null, scale=3.0, beta=2.0).item() == 1 + 3 * (2 + 2 * (4 - 2) - 1)
    assert guide_twice(both, partial, null, scale=3.0, beta=1.0).item() == 10.0


def test_top_k_keeps_ties_and_bears_a_large_k() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert keep_top_k(logits, 1).tolist() == [-INF, 2.0, 2.0, -INF]
    assert keep_top_k(logits, 99).tolist() == logits.tolist()


def test_top_p_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [True, True, False, False]
    assert keep_top_p(logits, 1e-6).isfinite().tolist() == [True, False, False, False]


@pytest.mark.parametrize("implementation", ["a", "b"])
def test_reference_probabilities(goldens: Path, implementation: str) -> None:
    values, seen = table(goldens), 0
    guided = {1.5, 2.0, 3.0}
    sources = {"rows": values["rows"], **{f"guided{c:g}": guide(values["cond"], values["uncond"], c) for c in guided}}
    for name, want in values.items():
        found = re.fullmatch(rf"{implementation}\.(\w+\.?\d*)\.t([\d.]+)_k(\d+)_p([\d.]+)\.probs", name)
        if found is None:
            continue
        source, t, k, p = found[1], float(found[2]), int(found[3]), float(found[4])
        probs = warp(sources[source], t, k, p, top_p_replaces_top_k=implementation == "b").softmax(-1)
        if source == "rows" and p > 0:
            counts, wanted = (probs > 0).sum(-1)[TIES], (want > 0).sum(-1)[TIES]
            assert implementation == "b" or torch.equal(counts, wanted), name
            probs, want = (torch.cat([x[:3], x[5:]]) for x in (probs, want))
        assert torch.equal(probs > 0, want > 0), name
        torch.testing.assert_close(probs, want, atol=1e-6, rtol=0, msg=name)
        seen += 1
    assert seen == 18


def test_reference_k_above_the_vocabulary(goldens: Path) -> None:
    values = table(goldens)
    probs = warp(values["rows"], top_k=10**6).softmax(-1)
    torch.testing.assert_close(probs, values["a.rows.k_larger_than_vocab.probs"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("scale", "beta"), [(2.5, 5.0), (3.0, 2.0)])
def test_reference_double_guidance(goldens: Path, scale: float, beta: float) -> None:
    values = table(goldens)
    scores = guide_twice(values["cond"], values["wav_only"], values["uncond"], scale, beta)
    torch.testing.assert_close(
        scores.softmax(-1), values[f"b.double_guided{scale:g}_{beta:g}.probs"], atol=1e-6, rtol=0
    )


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[[[0.0, 2.0, 1.0]]]])
    assert Sampler(temperature=0.0)(logits, [0]).tolist() == [[1]]


def test_one_branch_is_not_guided() -> None:
    logits = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(temperature=0.0, guidance=3.0)
    assert torch.equal(sampler.scores(logits[:1]), logits[0])
    assert torch.equal(sampler.scores(logits), guide(logits[0], logits[1], 3.0))


def test_draws_follow_the_probabilities() -> None:
    scores = torch.tensor([0.7, 0.2, 0.1, 0.0]).log().expand(1, 4000, 4)
    codes = draw(scores, [0], [torch.Generator().manual_seed(3)])
    shares = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    torch.testing.assert_close(shares, torch.tensor([0.7, 0.2, 0.1, 0.0]), atol=0.03, rtol=0)


def test_a_generator_alone_equals_the_global_one() -> None:
    scores = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    assert torch.equal(draw(scores, [0], None), draw(scores, [0], [torch.Generator().manual_seed(5)]))


def test_a_draw_is_that_of_multinomial() -> None:
    scores = torch.randn(1, 4, 300, generator=torch.Generator().manual_seed(0))
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(20):
        wanted = scores[0].softmax(-1).multinomial(1, generator=theirs)[:, 0]
        assert torch.equal(draw(scores, [0], [ours])[0], wanted)
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_global_draws_are_those_of_multinomial() -> None:
    scores = torch.randn(3, 4, 300, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    wanted = scores.softmax(-1).flatten(0, 1).multinomial(1).view(3, 4)
    torch.manual_seed(5)
    assert torch.equal(draw(scores, [], None), wanted)


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        draw(torch.full((1, 1, 4), torch.nan), [0], [torch.Generator()])


@pytest.mark.parametrize("kernels", [True, False])
def test_so_they_are_for_a_sampler(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        monkeypatch.setattr(engine, "library", lambda: None)
    logits = torch.zeros(2, 2, 4, 40)
    logits[0, 1, 2, 3] = torch.nan
    with pytest.raises(RuntimeError, match="the model's logits are not finite"):
        Sampler(generators=[torch.Generator(), torch.Generator()])(logits, [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seeds", [(5, 6, 7), None])
@pytest.mark.parametrize("settings", [{}, {"top_k": 0, "temperature": 0.7}, {"top_k": 3, "top_p": 0.9}])
def test_a_sampler_chooses_with_kernels_as_without(
    settings: dict[str, float], seeds: tuple[int, ...] | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code for code, call after call, and the generators stand where they would."""
    source = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 4, 3, 300, generator=source).mul(2).to(dtype).transpose(1, 2) for _ in range(10)]
    found = []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr(engine, "library", lambda: None)
        torch.manual_seed(5)
        makers = None if seeds is None else [torch.Generator().manual_seed(s) for s in seeds]
        codes = torch.stack([Sampler(**settings, generators=makers)(x, [0, 2]) for x in logits])
        rest = torch.get_rng_state() if makers is None else torch.cat([g.get_state() for g in makers])
        found.append((codes if makers is None else codes[:, [0, 2]], rest))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 0, "top_p": 0.9, "temperature": 0.7}])
def test_a_drawing_is_the_sampler_in_buffers(settings: dict[str, float]) -> None:
    """For fewer samples than it has room for, of which some have nothing to choose, time after time."""
    sampler, source = Sampler(**settings), torch.Generator().manual_seed(0)
    made = drawing(sampler, (2, 4, 3, 40), torch.float32, torch.device("cpu"))
    assert drawing(Sampler(**settings), (2, 4, 3, 40), torch.float32, torch.device("cpu")) is made
    makers = [[torch.Generator().manual_seed(s) for s in (5, 6, 7)] for _ in range(2)]
    for items in ([0, 1, 2], [0, 2], [1]):
        logits = torch.randn(2, 3, 3, 40, generator=source)
        wanted = replace(sampler, generators=makers[0])(logits, items)
        assert torch.equal(made(logits, items, makers[1])[items], wanted[items])


def test_a_drawing_serves_inference_mode_and_others() -> None:
    logits = torch.randn(1, 1, 3, 41)
    with torch.inference_mode():
        made = drawing(Sampler(), (1, 1, 3, 41), torch.float32, torch.device("cpu"))
        inside = made(logits, [0], [torch.Generator().manual_seed(5)])
    assert torch.equal(made(logits, [0], [torch.Generator().manual_seed(5)]), inside)


def test_draws_do_not_depend_on_batch_mates() -> None:
    scores = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    together = draw(scores, [0, 1, 2], [torch.Generator().manual_seed(s) for s in (5, 6, 7)])
    alone = draw(scores[2:], [0], [torch.Generator().manual_seed(7)])
    assert torch.equal(together[2:], alone)


def test_a_sample_with_nothing_to_choose_leaves_its_generator_alone() -> None:
    generators = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)]
    before = generators[0].get_state()
    draw(torch.zeros(2, 4, 8), [1], generators)
    assert torch.equal(generators[0].get_state(), before)
