"""MusicGen in a running batch: songs that join and leave have the codes that each has alone."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith.generation.batching import Batch, Handle, Piece
from tunesmith.models import musicgen_engine, musicgen_sessions
from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM, MusicgenSlots
from tunesmith.models.musicgen_engine import EngineSlots
from tunesmith.nn import engine
from tunesmith.nn.lowbit import quantize_
from tunesmith.requests import Sampling

V, WIDTH, PLACES, FRAMES, SONGS = 32, 40, 6, 60, 20
needs_kernels = pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled")


def model(**changes: Any) -> MusicgenForCausalLM:
    torch.manual_seed(0)
    defaults = {"vocab_size": V, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 80}
    made = MusicgenForCausalLM(MusicgenDecoderConfig(**defaults | changes)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def piece(lm: MusicgenForCausalLM, number: int) -> Piece:
    """Songs of all kinds: 5 to 57 frames; with and without text, prompt, guidance."""
    source = torch.Generator().manual_seed(number)
    prompt = torch.randint(0, V, (4, number * 17 % 50), generator=source)
    return lm.piece(
        frames=prompt.shape[1] + 5 + number % 4,
        sampling=Sampling(guidance=1.0 if number % 5 == 3 else 3.0, top_k=(0, 8)[number % 2]),
        generator=torch.Generator().manual_seed(number),
        text_states=torch.randn(1 + number % PLACES, WIDTH, generator=source) if number % 7 else None,
        prompt_codes=prompt if number % 3 else None,
    )


def alone(lm: MusicgenForCausalLM, number: int) -> Tensor:
    """By `iterate_codes`, which knows nothing of slots."""
    given = piece(lm, number)
    prompt = given.codes[:, : int((given.codes[0] >= 0).sum())]
    condition = given.condition
    run = lm.iterate_codes(
        frames=given.codes.shape[1],
        sampling=Sampling(guidance=given.sampler.guidance, top_k=given.sampler.top_k),
        generators=[given.generator],
        text_states=None if condition is None else condition.states[:1],
        prompt_codes=[prompt],
    )
    *_, last = run
    return last.pattern.revert(last.grid, V)[0]


def together(lm: MusicgenForCausalLM, count: int, numbers: range) -> list[Handle]:
    """A song comes every other step."""
    batch, handles, coming = Batch(lm.slots(count, FRAMES, PLACES), V), list[Handle](), iter(numbers)
    for moment in range(10_000):
        if moment % 2 == 0 and (number := next(coming, None)) is not None:
            handles.append(batch.submit(piece(lm, number)))
        batch.step()
        if not batch.busy and len(handles) == len(numbers):
            break
    return handles


@needs_kernels
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_songs_have_the_codes_that_they_have_alone(count: int, quantize: str | None) -> None:
    lm = model()
    if quantize:
        quantize_(lm.model.decoder.layers, quantize, kernels=True)
    assert isinstance(lm.slots(count, FRAMES, PLACES), EngineSlots)
    for number, handle in enumerate(together(lm, count, range(SONGS))):
        assert handle.finished
        assert torch.equal(handle.codes, alone(lm, number))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_without_kernels_too(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "library", lambda: None)
    lm = model()
    assert isinstance(lm.slots(count, FRAMES, PLACES), MusicgenSlots)
    for number, handle in enumerate(together(lm, count, range(SONGS))):
        assert torch.equal(handle.codes, alone(lm, number))


@torch.no_grad()
def test_both_ways_give_the_same_logits_whoever_is_in_the_batch() -> None:
    lm = model()
    assert musicgen_engine.fits(lm, None) == (engine.library() is not None)
    ids = torch.randint(0, V, (4, 12), generator=torch.Generator().manual_seed(1))
    given = [piece(lm, number).condition for number in (1, 3, 7)]
    found = []
    for kind in (EngineSlots, MusicgenSlots) if engine.library() is not None else (MusicgenSlots,):
        slots = kind(lm, 3, 20, PLACES, 2)
        slots.begin({0: given[0], 2: given[1]})
        slots.feed({0: ids[:, :7], 2: ids[:, :2]})
        slots.begin({2: given[2]})  # one leaves, one without text comes
        slots.feed({2: ids[:, 3:9], 0: ids[:, 7:8]})
        found.append(slots.feed({0: ids[:, 8:9], 2: ids[:, 9:10]}))
    wanted = []
    for condition, seen in ((given[0], ids[:, :9]), (given[2], ids[:, 3:10])):
        named = (
            {}
            if condition is None
            else {"encoder_hidden_states": condition.states, "encoder_attention_mask": condition.mask}
        )
        branches = 1 if condition is None else len(condition.states)
        logits = lm(seen.repeat(branches, 1), **named, use_cache=False).logits[:, -1]
        wanted.append(logits.view(branches, 4, V))
    for each in found:
        torch.testing.assert_close(each[0], wanted[0], rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(each[2], wanted[1], rtol=1e-5, atol=2e-6)


@torch.no_grad()
def test_a_model_that_may_change_its_mind_is_asked_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded where recordings wouldn't hold, and then memory goes with the slots."""
    lm, asked = model(), list[object]()
    lm.model.decoder.layers[0].register_forward_hook(lambda *given: asked.append(given[0]))
    monkeypatch.setattr(musicgen_sessions, "Capture", lambda *_: pytest.fail("recorded"))
    slots = MusicgenSlots(lm, 2, 20, PLACES, 2)
    slots.begin({0: None, 1: None})
    for _ in range(3):
        slots.feed({0: torch.zeros(4, 1, dtype=torch.long), 1: torch.zeros(4, 1, dtype=torch.long)})
    assert len(asked) == 3
    memory = weakref.ref(slots.memory)
    gc.disable()
    try:
        del slots
        assert memory() is None
    finally:
        gc.enable()
