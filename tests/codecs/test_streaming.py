"""Decoding piece by piece: what decoding in one go gives, with kernels and without."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tunesmith
from tunesmith.codecs import streaming
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.codecs.streaming import StreamingDecoder, can_stream
from tunesmith.errors import RequestError
from tunesmith.nn import engine
from tunesmith.nn.sequences import Lstm, Wanted, Windows

TINY: dict[str, Any] = {
    "num_filters": 3,
    "hidden_size": 8,
    "codebook_size": 16,
    "upsampling_ratios": [4, 2],
    "sampling_rate": 1600,
    "target_bandwidths": [1.6, 3.2],
}
CODECS: list[dict[str, Any]] = [
    {"use_causal_conv": False, "use_conv_shortcut": False},
    {"num_residual_layers": 3, "dilation_growth_rate": 3, "residual_kernel_size": 5, "use_causal_conv": False},
    {"audio_channels": 2, "trim_right_ratio": 0.4, "last_kernel_size": 5, "num_lstm_layers": 1},
    {"pad_mode": "constant", "upsampling_ratios": [5, 3], "num_lstm_layers": 0, "use_causal_conv": False},
    {"pad_mode": "replicate", "compress": 1, "num_filters": 20},
]


def codec(**changes: Any) -> EncodecModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = EncodecModel(EncodecConfig(**TINY | changes)).eval()
        for book in made.quantizer.layers:
            book.codebook.embed.normal_()
    return made


def codes(frames: int) -> Tensor:
    return torch.randint(0, 16, (2, frames), generator=torch.Generator().manual_seed(frames))


@torch.no_grad()
def by_modules(made: EncodecModel, given: Tensor) -> Tensor:
    return made.decoder(made.quantizer.decode(given[None]))[0]


@pytest.fixture(params=["kernels", "torch"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(engine, "library", lambda: None)
    elif engine.library() is None:
        pytest.skip("the kernels weren't compiled: there is no compiler")


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("changes", CODECS)
def test_any_pieces_give_the_audio_of_one_go(changes: dict[str, Any]) -> None:
    made = codec(**changes)
    for frames in (1, 2, 3, 7, 40):
        given, wanted = codes(frames), by_modules(made, codes(frames))
        for sizes in ([frames], [1] * frames, [5, 1, 0, 11, 2, 40]):
            decoder, audio, start = StreamingDecoder(made), [], 0
            for size in sizes:
                audio.append(decoder.push(given[:, start : start + size]))
                start += size
            whole = torch.cat([*audio, decoder.finish()], 1)
            assert whole.shape == wanted.shape
            torch.testing.assert_close(whole, wanted, rtol=0, atol=1e-6)


def test_audio_lags_only_a_few_frames_behind_the_codes() -> None:
    decoder = StreamingDecoder(codec(use_causal_conv=False))
    told = torch.tensor([decoder.push(codes(1)).shape[1] for _ in range(40)]).cumsum(0)
    assert int(told[39]) >= 8 * (40 - 6)
    assert all(int(told[i + 1]) - int(told[i]) == 8 for i in range(10, 39))


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
def test_whole_decoding_goes_by_pieces_where_there_are_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = codec(use_causal_conv=False), torch.stack([codes(120), codes(120).flip(1)])
    pushed: list[int] = []
    original = StreamingDecoder.push

    def push(self: StreamingDecoder, part: Tensor, last: bool = False) -> Tensor:
        pushed.append(part.shape[1])
        return original(self, part, last)

    monkeypatch.setattr(StreamingDecoder, "push", push)
    with torch.no_grad():
        audio = made.decode_codes(given)
    assert pushed == [50, 50, 20, 0] * 2
    for row, clip in zip(given, audio, strict=True):
        torch.testing.assert_close(clip, by_modules(made, row), rtol=0, atol=1e-6)
    made.decode_codes(given)  # with gradients: the modules' way
    assert len(pushed) == 8


@torch.no_grad()
def test_weights_that_change_are_heard() -> None:
    made = codec().fold_weight_norm()
    before = torch.cat([(decoder := StreamingDecoder(made)).push(codes(9)), decoder.finish()], 1)
    for parameter in made.decoder.parameters():
        parameter.mul_(0.5)
    after = torch.cat([(decoder := StreamingDecoder(made)).push(codes(9)), decoder.finish()], 1)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, by_modules(made, codes(9)), rtol=0, atol=1e-6)


def test_what_cannot_be_streamed_is_refused() -> None:
    for changes in (
        {"chunk_length_s": 0.05, "overlap": 0.1},
        {"norm_type": "time_group_norm"},
        {"pad_mode": "circular"},
    ):
        made = codec(**changes)
        assert not can_stream(made)
        with pytest.raises(RequestError, match="decode it in one go"):
            StreamingDecoder(made)


def check_windows(rows: int, channels: int, outputs: int, taps: int, dilation: int, *, dtype: torch.dtype) -> None:
    """Two parts, one with something added, as they are and activated."""
    random = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, channels, generator=random).to(dtype) for _ in range(2)]
    weight, bias = torch.randn(outputs, taps * channels, generator=random), torch.randn(outputs, generator=random)
    product = Windows(weight, bias, taps, dilation, dtype)
    kernel = weight.to(dtype).float().unflatten(1, (taps, -1)).transpose(1, 2)
    made = [nn.functional.conv1d(x.float().T[None], kernel, bias, 1, 0, dilation)[0].T for x in parts]
    wanted, pairs = torch.cat([made[0], 2 * made[1]]), [(parts[0], None), (parts[1], made[1])]
    torch.testing.assert_close(product(pairs).raw, wanted, rtol=1e-5, atol=1e-5)
    active = product(pairs, Wanted(raw=False, active=torch.float32)).active
    torch.testing.assert_close(active, F.elu(wanted), rtol=1e-5, atol=1e-5)
    both = product(pairs, Wanted(active=dtype))
    torch.testing.assert_close(both.raw, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.active, F.elu(wanted).to(dtype))


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
@pytest.mark.parametrize("name", ["avx512-bf16", "avx512-vnni", "avx2", "plain"])
def test_kernels_of_every_instruction_set(name: str) -> None:
    best = engine.instructions()
    if not engine.use_instructions(name):
        pytest.skip(f"this machine has no {name}")
    try:
        for shape in ((1, 8, 3, 1, 1), (300, 20, 40, 3, 1), (31, 5, 33, 3, 4), (45, 4, 1, 7, 1), (17, 4, 5, 2, 1)):
            check_windows(*shape, dtype=torch.float32)
        lstm, x = nn.LSTM(24, 20), torch.randn(9, 24)
        layer = Lstm(lstm, 0)
        state = layer.begin()
        with torch.no_grad():
            wanted, ends = lstm(x)
        found = torch.cat([layer(x[:4], state), layer(x[4:], state)])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        for name, theirs in zip(("hidden", "cell"), ends, strict=True):
            torch.testing.assert_close(state[name], theirs, rtol=0, atol=1e-6)
    finally:
        engine.use_instructions(str(best))


def test_pieces_are_of_a_second() -> None:
    assert streaming.PIECE == 50


few_bits = pytest.mark.skipif(not engine.multiplies_bfloat16(), reason="this machine doesn't multiply bfloat16")


def distance(found: Tensor, wanted: Tensor) -> float:
    """Decibels of what is wanted (its mean left out) above the error."""
    power = (wanted - wanted.mean()).square().sum() / (found - wanted).square().sum()
    return float(10 * power.log10())


@few_bits
def test_windows_of_bfloat16() -> None:
    for shape in ((1, 8, 3, 1, 1), (300, 20, 40, 3, 1), (31, 6, 33, 3, 4), (1000, 64, 64, 2, 1)):
        check_windows(*shape, dtype=torch.bfloat16)


@few_bits
@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"use_conv_shortcut": False}, {"num_residual_layers": 2}, {"num_lstm_layers": 0, "compress": 1}]
)
def test_few_bits_are_close_and_any_pieces_give_the_same(changes: dict[str, Any]) -> None:
    made, given = codec(num_filters=16, use_causal_conv=False, **changes), codes(90)
    exact = made.decode_codes(given[None])[0]
    made.few_bits = True
    few = made.decode_codes(given[None])[0]
    assert not torch.equal(few, exact)
    assert distance(few, exact) > 40
    for sizes in ([90], [1] * 90, [5, 1, 0, 11, 73]):
        decoder = StreamingDecoder(made)
        pieces = [decoder.push(part) for part in given.split(sizes, 1)]
        assert torch.equal(torch.cat([*pieces, decoder.finish()], 1), few)
    assert torch.equal(made.decode_codes(torch.stack([codes(90).flip(1), given]))[1], few)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(made.decode_codes(given[None])[0], few)
    finally:
        torch.set_num_threads(threads)


@few_bits
@torch.no_grad()
def test_few_bits_are_left_where_they_cannot_be() -> None:
    made, odd = codec(num_filters=16), codec(num_filters=3)
    exact = made.decode_codes(codes(9)[None])
    made.few_bits = odd.few_bits = True
    assert not streaming.runs_in_few_bits(odd)
    assert engine.use_instructions("avx2")
    try:
        torch.testing.assert_close(made.decode_codes(codes(9)[None]), exact, rtol=0, atol=1e-6)
    finally:
        engine.use_instructions("avx512-bf16")
    assert not torch.equal(made.decode_codes(codes(9)[None]), exact)


@pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")
@torch.no_grad()
def test_the_bundled_codec_has_few_bits_only_with_a_quantised_model() -> None:
    given = torch.randint(0, 1024, (1, 4, 50), generator=torch.Generator().manual_seed(0))
    exact, few = (tunesmith.load("tunesmith/pocket", quantize=name).model.audio_encoder for name in ("none", "int8"))
    assert not exact.few_bits
    assert few.few_bits
    if engine.multiplies_bfloat16():
        assert distance(few.decode_codes(given), exact.decode_codes(given)) > 40
