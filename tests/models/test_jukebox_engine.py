"""Jukebox's priors on the CPU's kernels: every pattern, alone and together, in all precisions."""

import pytest
import torch
from torch import Tensor, nn

from tiny_prior import KINDS, conditions, inputs, prior
from tunesmith.models import jukebox_engine
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.models.jukebox_engine import EngineSession
from tunesmith.models.jukebox_sessions import ReferenceSession
from tunesmith.nn import engine
from tunesmith.nn.lowbit import quantize_

pytestmark = pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")

CHANGES = {
    "plain": {"attn_res_scale": True, "act_fn": "gelu", "n_heads": 1},
    "single": {},
    "separate": {"act_fn": "relu"},
    "upsampler": {"act_fn": "silu"},
}


def logits_of(session: EngineSession | ReferenceSession, codes: Tensor, prompt: int) -> Tensor:
    """Of every step after a prompt, which has the start before it [S, B, V]."""
    ids = torch.cat([codes[:, :1] * 0, codes], 1)[:, None]
    found = [session.prefill(ids[:, :, : prompt + 1])]
    found += [session.step(ids[:, :, i]) for i in range(prompt + 1, ids.shape[2])]
    return torch.stack([each[0, :, 0] for each in found])


@pytest.mark.parametrize("prompt", [0, 14])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_those_of_the_obvious_version(kind: str, prompt: int) -> None:
    model = prior(kind, **CHANGES[kind])
    given = inputs(model)
    condition = model.condition(**{"labels": None, "upper_codes": None} | conditions(given), batch=3)
    codes = given["codes"][:, :-1] + model.lyric_shift
    session = model.session(condition, 3, 24)
    assert isinstance(session, EngineSession)
    wanted = logits_of(ReferenceSession(model.prior, model.config, condition), codes, prompt)
    torch.testing.assert_close(logits_of(session, codes, prompt), wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.03), ("int4", 0.25)])
@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_change_little_and_depend_on_no_other_sample(kind: str, quantize: str, most: float) -> None:
    model = prior(kind, hidden_size=32, init_scale=8.0)
    given = conditions(inputs(model))
    codes = inputs(model)["codes"]

    @torch.no_grad()
    def run(rows: slice) -> Tensor:
        own = {name: value[rows] for name, value in given.items()}
        condition = model.condition(**{"labels": None, "upper_codes": None} | own, batch=len(codes[rows]))
        session = model.session(condition, len(codes[rows]), 24)
        assert isinstance(session, EngineSession)
        return logits_of(session, codes[rows][:, :-1] + model.lyric_shift, 5)

    wanted = run(slice(None))
    quantize_(model.prior.transformer, quantize, kernels=True)
    found = run(slice(None))
    assert 1e-5 < (found - wanted).norm() / wanted.norm() < most
    if model.encoder is None and model.conditioner_blocks is None:  # those are torch's, and of a batch
        assert all(torch.equal(run(slice(i, i + 1))[:, 0], found[:, i]) for i in range(3))


def test_what_kernels_cannot_run_goes_through_torch() -> None:
    model = prior("plain")
    assert jukebox_engine.fits(model.prior, model.config)
    assert not jukebox_engine.fits(prior("plain").train().prior, model.config)
    hooked = prior("plain").prior
    next(part for part in hooked.transformer.modules() if isinstance(part, nn.LayerNorm)).register_forward_hook(
        lambda *_: None
    )
    assert not jukebox_engine.fits(hooked, model.config)
    halved = JukeboxPrior(model.config).eval().half()
    assert not jukebox_engine.fits(halved.prior, model.config)
