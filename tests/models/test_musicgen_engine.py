"""MusicGen on the CPU's kernels: the numbers of the modules' own forward, the same alone and together."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith.models import musicgen_engine
from tunesmith.models.musicgen import MusicgenDecoderConfig, MusicgenForCausalLM, ReferenceSession, Text
from tunesmith.models.musicgen_engine import EngineSession
from tunesmith.nn import engine
from tunesmith.nn.lowbit import quantize_

pytestmark = pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")

V, WIDTH, COLUMNS = 32, 40, 90


def model(**changes: Any) -> MusicgenForCausalLM:
    torch.manual_seed(0)
    defaults = {"vocab_size": V, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 80}
    made = MusicgenForCausalLM(MusicgenDecoderConfig(**defaults | changes)).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def texts() -> tuple[Text, Text]:
    """Of three samples, one with a hole; and none."""
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]])
    text = Text(torch.randn(3, 5, WIDTH), mask)
    return text, text.null()


def ids(columns: int = COLUMNS) -> Tensor:
    return torch.randint(0, V + 1, (3, 4, columns), generator=torch.Generator().manual_seed(2))


def logits_of(session: Any, codes: Tensor, prompt: int) -> Tensor:
    """Of every step after a prompt [S, G, B, K, V]."""
    found = [session.prefill(codes[:, :, :prompt])]
    found += [session.step(codes[:, :, i]) for i in range(prompt, codes.shape[2])]
    return torch.stack(found)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "gelu_new"])
@pytest.mark.parametrize("prompt", [1, 70])
@torch.no_grad()
def test_logits_are_those_of_the_obvious_version(activation: str, prompt: int) -> None:
    lm, (text, null) = model(activation_function=activation), texts()
    session = lm.session(3, COLUMNS, text)
    assert isinstance(session, EngineSession)
    wanted = logits_of(ReferenceSession(lm, text.above(null), 2), ids(), prompt)
    torch.testing.assert_close(logits_of(session, ids(), prompt), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_negative_texts_tied_heads_and_no_text(tied: bool) -> None:
    lm, (text, _) = model(tie_word_embeddings=tied), texts()
    negative = Text(text.states.flip(0), text.mask.flip(0))
    for given, branches in ((text, 2), (None, 1)):
        session = lm.session(3, 9, given, negative if branches == 2 else None)
        assert isinstance(session, EngineSession)
        both = text.above(negative) if branches == 2 else None
        wanted = logits_of(ReferenceSession(lm, both, branches), ids(9), 2)
        torch.testing.assert_close(logits_of(session, ids(9), 2), wanted, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_sample_is_bit_by_bit_the_same_in_every_batch(quantize: str | None, dtype: torch.dtype) -> None:
    lm, (text, _) = model().to(dtype), texts()
    text = Text(text.states.to(dtype), text.mask)
    if quantize:
        quantize_(lm.model.decoder.layers, quantize, kernels=True)
    together = logits_of(lm.session(3, COLUMNS, text), ids(), 20)
    for i in range(3):
        alone = lm.session(1, COLUMNS, Text(text.states[i : i + 1], text.mask[i : i + 1]))
        assert isinstance(alone, EngineSession)
        assert torch.equal(logits_of(alone, ids()[i : i + 1], 20)[:, :, 0], together[:, :, i])


@pytest.mark.parametrize(("quantize", "most"), [("int8", 1e-3), ("int4", 0.05)])
@torch.no_grad()
def test_few_bits_change_probabilities_little(quantize: str, most: float) -> None:
    lm, (text, null) = model(hidden_size=64, ffn_dim=256), texts()
    text, null = (Text(torch.randn(3, 5, 64), each.mask) for each in (text, null))
    wanted = logits_of(ReferenceSession(lm, text, 1), ids(30), 1)
    wanted, scale = wanted / wanted.std() * 2, 2 / wanted.std()
    quantize_(lm.model.decoder.layers, quantize, kernels=True)
    found = logits_of(lm.session(3, 30, text, guided=False), ids(30), 1) * scale
    whole = lm.forward(ids(30), encoder_hidden_states=text.states, encoder_attention_mask=text.mask).logits * scale
    torch.testing.assert_close(whole.view(3, 4, 30, V)[:, :, -1], found[-1, 0], rtol=0.1, atol=0.5)
    divergence = (wanted.softmax(-1) * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1).mean()
    assert 1e-7 < divergence < most


@torch.no_grad()
def test_what_kernels_cannot_run_goes_through_torch() -> None:
    text, _ = texts()
    assert musicgen_engine.fits(model(), text)
    assert not musicgen_engine.fits(model().train(), text)
    assert not musicgen_engine.fits(model().half(), text)
    assert not musicgen_engine.fits(model(activation_function=torch.tanh), text)
    assert not musicgen_engine.fits(model(), Text(text.states, torch.zeros_like(text.mask)))
    hooked = model()
    hooked.model.decoder.layers[1].fc1.register_forward_hook(lambda *_: None)
    assert not musicgen_engine.fits(hooked, text)
    with torch.autocast("cpu", torch.bfloat16):
        assert not musicgen_engine.fits(model(), text)
