"""Sessions of recorded steps, here without a GPU (the work is called as it is): the logits of ordinary sessions, in
memory that serves piece after piece; and no break or recompilation in what torch.compile would fuse.
"""

import copy
import gc
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tiny_prior import KINDS, conditions, inputs, prior
from tunesmith.generation import capture
from tunesmith.generation.capture import Capture, fused
from tunesmith.models import jukebox, jukebox_engine, jukebox_sessions, musicgen, musicgen_engine, musicgen_sessions
from tunesmith.models.jukebox import JukeboxPrior
from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM, ReferenceSession, Text
from tunesmith.nn import lowbit
from tunesmith.requests import Sampling

V = 32


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Capture]:
    """As if this were a GPU, with small sizes; every recording that is made."""
    found: list[Capture] = []

    class Counted(Capture):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            found.append(self)

    for module in (musicgen, musicgen_sessions, jukebox):
        monkeypatch.setattr(module, "recordable", lambda _: True)
    for module in (musicgen_sessions, jukebox_sessions):
        monkeypatch.setattr(module, "Capture", Counted)
    for engine in (musicgen_engine, jukebox_engine):
        monkeypatch.setattr(engine, "fits", lambda *_: False)
    monkeypatch.setattr(capture, "BUCKET", 16)
    monkeypatch.setattr(musicgen_sessions, "BUCKET", 16)
    return found


def musicgen_model() -> MusicgenForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80}
    model = MusicgenForCausalLM(MusicgenDecoderConfig(**sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def texts(samples: int, length: int) -> Text:
    """Of different lengths, padded."""
    lengths = 1 + torch.arange(samples) % length
    return Text.of(torch.randn(samples, length, 40), torch.arange(length) < lengths[:, None])


# Like ordinary sessions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("samples", [1, 3])
@torch.no_grad()
def test_musicgen_gives_the_logits_of_the_reference(samples: int, guided: bool, made: list[Capture]) -> None:
    """Pieces of several lengths, with prompts and without, one after the other in the same memory."""
    lm = musicgen_model()
    for turn, (known, columns, length) in enumerate([(1, 40, 5), (7, 64, 9), (20, 23, 2), (1, 17, 3)]):
        text = texts(samples, length)
        ids = torch.randint(0, V, (samples, 4, columns))
        session = lm.session(samples, columns, text, guided=guided)
        assert isinstance(session, musicgen_sessions.RecordedSession)
        obvious = ReferenceSession(lm, text.above(text.null()) if guided else text, 1 + guided)
        torch.testing.assert_close(session.prefill(ids[:, :, :known]), obvious.prefill(ids[:, :, :known]))
        for s in range(known, columns):
            found, wanted = session.step(ids[:, :, s]), obvious.step(ids[:, :, s])
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        if turn == 1:  # sizes 16, 32, 48 of the first piece, whose room was too small; then 16, 32, 64 of all others
            recorded = len(made)
    assert len(made) == recorded == 6


@torch.no_grad()
def test_without_text(made: list[Capture]) -> None:
    lm, ids = musicgen_model(), torch.randint(0, V, (2, 4, 30))
    session, obvious = lm.session(2, 30), ReferenceSession(lm, None, 1)
    torch.testing.assert_close(session.prefill(ids[:, :, :2]), obvious.prefill(ids[:, :, :2]))
    for s in range(2, 30):
        torch.testing.assert_close(session.step(ids[:, :, s]), obvious.step(ids[:, :, s]), atol=1e-5, rtol=1e-5)
    assert len(made) == 2


def prior_sessions(model: JukeboxPrior, samples: int, steps: int) -> tuple[Any, Any]:
    given = conditions(inputs(model, samples))
    condition = model.condition(**{"upper_codes": None, **given}, batch=samples)
    return model.session(condition, samples, steps), jukebox.ReferenceSession(model.prior, model.config, condition)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("kind", "changes", "sizes"),
    [
        *((kind, {}, 1) for kind in KINDS),
        ("plain", {"attention_pattern": "full_dense_attention", "n_ctx": 48}, 3),
        ("upsampler", {"attention_pattern": "attn_order_4", "spread": 3}, 1),
    ],
    ids=[*KINDS, "dense", "spread"],
)
@torch.no_grad()
def test_jukebox_gives_the_logits_of_the_reference(
    kind: str, changes: dict[str, Any], sizes: int, samples: int, made: list[Capture]
) -> None:
    """Windows with codes that are known and without, whole and short, one after the other in the same memory."""
    model = prior(kind, **changes)
    whole = model.config.n_ctx
    codes = torch.randint(0, model.config.music_vocab_size, (samples, whole)) + model.lyric_shift
    for known, steps in [(1, whole), (whole // 2 + 1, whole), (5, 9), (whole, whole)]:
        session, obvious = prior_sessions(model, samples, steps)
        assert isinstance(session, jukebox_sessions.RecordedSession)
        primer = codes[:, None, :known]
        near = {"atol": 3e-6 * obvious.prefill(primer).abs().max().item(), "rtol": 1e-5}
        torch.testing.assert_close(session.prefill(primer), obvious.prefill(primer), **near)
        for s in range(known, steps):
            torch.testing.assert_close(session.step(codes[:, s : s + 1]), obvious.step(codes[:, s : s + 1]), **near)
        del session
    assert len(made) == sizes
    assert len(model.prior.kept.free) == 1


@torch.no_grad()
def test_what_is_known_may_come_in_pieces() -> None:
    model = prior("upsampler")
    given, codes = inputs(model), inputs(model)["codes"]
    condition = model.condition(given["labels"], given["upper_codes"], 3)
    found = [model.session(condition, 3, 24, chunk).prefill(codes[:, None, :18]) for chunk in (None, 1, 100)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-5)


# Codes and memory -----------------------------------------------------------------------------------------------------


def test_the_same_codes_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, model = musicgen_model(), prior("single")
    states = torch.randn(2, 4, 40, generator=torch.Generator().manual_seed(1))

    def both() -> tuple[Tensor, Tensor]:
        makers = [torch.Generator().manual_seed(i) for i in range(2)]
        run = lm.iterate_codes(frames=40, sampling=Sampling(), generators=makers, text_states=states)
        *_, last = run
        return last.codes, model.sample(2, seeds=[1, 2], **conditions(inputs(model, 2)))

    found = both()
    for module in (musicgen, jukebox):
        monkeypatch.setattr(module, "recordable", lambda _: False)
    for ours, wanted in zip(found, both(), strict=True):
        assert torch.equal(ours, wanted)


def test_two_at_a_time_have_memory_of_their_own_and_other_weights_recordings_of_theirs(made: list[Capture]) -> None:
    model = prior("plain")
    with torch.no_grad():
        (first, one), (second, two) = (prior_sessions(model, 1, 24) for _ in range(2))
        codes = torch.tensor([[[0, 3, 5, 7]], [[0, 9, 2, 4]]])
        for session, obvious, known in ((first, one, codes[:1]), (second, two, codes[1:])):
            session.prefill(known)
            obvious.prefill(known)
        for code in torch.tensor([[[5]], [[1]], [[8]]]):
            for session, obvious in ((first, one), (second, two)):
                torch.testing.assert_close(session.step(code), obvious.step(code), atol=1e-5, rtol=1e-5)
        assert len(made) == 2
        del first, second, session
        gc.collect()
        for parameter in model.prior.transformer.parameters():
            parameter.data = parameter.data.clone() * 2
        session, obvious = prior_sessions(model, 1, 24)
        session.prefill(codes[:1])
        obvious.prefill(codes[:1])
        torch.testing.assert_close(session.step(code), obvious.step(code), atol=1e-5, rtol=1e-5)
    assert len(made) == 3


@pytest.mark.parametrize("first", [True, False])
def test_in_inference_mode_and_out_of_it(first: bool) -> None:
    """What one leaves serves the other."""
    lm, model, ids = musicgen_model(), prior("single"), torch.randint(0, V, (1, 4, 3))
    for inference in (first, not first):
        with torch.inference_mode() if inference else torch.no_grad():
            session, (window, _) = lm.session(1, 9, texts(1, 4)), prior_sessions(model, 1, 9)
            session.prefill(ids[:, :, :1])
            session.step(ids[:, :, 1])
            window.prefill(torch.tensor([[[0, 3]]]))
            window.step(torch.tensor([[5]]))
            del session, window
    assert len(lm.kept.free) == len(model.prior.kept.free) == 1


def test_a_model_that_moves_takes_no_memory_where_it_was() -> None:
    lm, model = musicgen_model(), prior("plain")
    with torch.no_grad():
        lm.session(1, 9)
        prior_sessions(model, 1, 9)
    assert len(lm.kept.free) == len(model.prior.kept.free) == 1
    lm.to(torch.float64)
    model.to("cpu")
    assert not lm.kept.free
    assert not model.prior.kept.free


def test_nothing_of_ours_is_in_the_way_of_a_recording() -> None:
    plain = [musicgen_model(), *(prior(kind).prior for kind in KINDS)]
    plain += [lowbit.quantize_(copy.deepcopy(model), "int8", kernels=False) for model in plain[:2]]
    assert all(capture._is_plain(part) for model in plain for part in model.modules())
    hooked, adapted = musicgen_model(), musicgen_model()
    hooked.lm_heads[0].register_forward_hook(lambda *_: None)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), adapted)
    assert not all(map(capture._is_plain, hooked.modules()))
    assert not all(map(capture._is_plain, adapted.modules()))


# torch.compile --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_steps_compile_without_breaks_and_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, made: list[Capture]
) -> None:
    """Requests of different length make no new graphs."""
    if request.config.getoption("--jaxtyping-packages", None):
        pytest.skip("checks of types break graphs")
    monkeypatch.setattr(capture, "fused", lambda work: fused(work, backend="eager"))
    lm, priors = musicgen_model(), [prior("single", num_layers=3, n_ctx=16), prior("upsampler", num_layers=2)]
    lm.fuse = True
    for model in priors:
        model.prior.fuse = True

    def songs(columns: int, steps: int) -> None:
        ids = torch.randint(0, V, (1, 4, columns))
        session = lm.session(1, columns, texts(1, 4))
        session.prefill(ids[:, :, :1])
        for s in range(1, columns):
            session.step(ids[:, :, s])
        for model in priors:
            session, obvious = prior_sessions(model, 2, steps)
            codes = torch.arange(2 * steps).view(2, steps) % 7 + model.lyric_shift
            session.prefill(codes[:, None, :2])
            obvious.prefill(codes[:, None, :2])
            for s in range(2, steps):
                found, wanted = session.step(codes[:, s : s + 1]), obvious.step(codes[:, s : s + 1])
                torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)

    counters.clear()
    songs(32, 12)
    assert counters["stats"]["unique_graphs"] == len(made) == 4
    for columns, steps in ((20, 7), (9, 16), (31, 5)):
        songs(columns, steps)
    assert counters["stats"]["unique_graphs"] == len(made) == 4
    assert not counters["graph_break"]
