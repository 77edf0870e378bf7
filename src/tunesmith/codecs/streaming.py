"""EnCodec's decoder piece by piece: the same audio as in one go, whatever the pieces.

    decoder = StreamingDecoder(codec)
    audio = [decoder.push(codes[:, a:b]) for a, b in pieces] + [decoder.finish()]

Everything lies [time, channels].  A layer holds back what its next windows still need, so audio lags a few frames
behind the codes (a convolution that isn't causal sees so many of them ahead) and `finish` brings the rest.

A transposed convolution of stride s is a convolution too: of frames, with s times as many outputs, which are then read
as s frames each.  So all layers but the LSTM come down to products with windows of a sequence (`nn/sequences.py`).  The
CPU's kernels run these at several times the speed of convolutions on large arrays; without kernels torch does the same.
A product adds a block's shortcut and applies the ELU that comes after it, while its results are at hand.

In few bits (`EncodecModel.few_bits`) the inner layers multiply bfloat16 by bfloat16, and the LSTM's recurrent weights
and their inputs have 8 bits; sums, cells and shortcuts remain float32.  The first and the last layer stay exact, for
they are cheap, and rounding what the last one reads would cost more than all else.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.codecs.encodec import EncodecModel, Recurrence, ResidualBlock
from tunesmith.errors import RequestError
from tunesmith.nn import engine, lowbit
from tunesmith.nn.conv import Conv1d, ConvTranspose1d, pad1d
from tunesmith.nn.sequences import RAW, Lstm, Signal, Wanted, Windows

PIECE = 50
"""Frames that are decoded at a time: enough to read large weights seldom."""
ROWS = 400
"""Steps that go through all layers of small weights at a time: few enough to stay in a processor's own cache."""
SMALL = 2**18
"""Numbers in such a weight, at the most."""


@runtime_checkable
class Product(Protocol):
    """Of windows that reach `span` steps beyond their first: [T, C] -> [T - span, O] (nn/sequences.py)."""

    span: int

    def __call__(self, parts: Sequence[tuple[Tensor, Tensor | None]], wanted: Wanted = RAW) -> Signal:
        """Of each part's windows, plus what is added to them."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A layer in the middle of a sequence."""

    def push(self, x: Signal, last: bool) -> Signal:
        """What can be told with these inputs; with the last ones all that remains."""
        ...


def can_stream(codec: EncodecModel) -> bool:
    """Not if it codes chunks of its own, norms over all of the time, or wraps around."""
    config = codec.config
    plain = config.chunk_length is None and not config.normalize and config.norm_type == "weight_norm"
    return plain and config.pad_mode != "circular"


def runs_on_kernels(codec: EncodecModel) -> bool:
    """Is decoding piece by piece the quick way here?"""
    weights = list(codec.decoder.parameters())
    exact = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in weights)
    plain = exact and all(map(engine.is_plain, codec.decoder.modules()))
    return plain and engine.library() is not None and can_stream(codec)


def runs_in_few_bits(codec: EncodecModel) -> bool:
    """Was that asked for, and do kernels multiply bfloat16 here?  They take inputs in pairs."""
    inner = [module for layer in codec.decoder.layers[1:-1] for module in layer.modules()]
    even = all(module.in_channels % 2 == 0 for module in inner if isinstance(module, nn.Conv1d | nn.ConvTranspose1d))
    return codec.few_bits and even and engine.multiplies_bfloat16() and runs_on_kernels(codec)


@torch.no_grad()
def decode(codec: EncodecModel, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
    """Clip by clip, in pieces that stay in the processor's caches."""
    clips = []
    for clip in codes:
        decoder = StreamingDecoder(codec)
        clips.append(torch.cat([*map(decoder.push, clip.split(PIECE, 1)), decoder.finish()], 1))
    return torch.stack(clips)


class StreamingDecoder:
    """Codes of one clip to audio, piece by piece."""

    def __init__(self, codec: EncodecModel) -> None:
        """Raises RequestError for a codec that can't (`can_stream`)."""
        if not can_stream(codec):
            raise RequestError(
                "This codec codes audio in chunks or norms it over all of its length, so it can't decode a stream; "
                "decode it in one go."
            )
        layers = _layers_of(codec)
        self.codec, self.kernels, self.chain = codec, layers.kernels, layers.begin()

    @torch.no_grad()
    def push(self, codes: Int[Tensor, "K S"], last: bool = False) -> Float[Tensor, "C T"]:
        """Audio as far as it can be told by now."""
        with engine.with_torch_aside() if self.kernels else nullcontext():
            latents = self.codec.quantizer.decode(codes[None])[0].T  # [S, D]
            return self.chain.push(Signal(latents), last).input.T

    def finish(self) -> Float[Tensor, "C T"]:
        """The rest."""
        none = torch.empty(1, 0, dtype=torch.long, device=self.codec.device)
        return self.push(none, last=True)


# Streams --------------------------------------------------------------------------------------------------------------


class Chain:
    """One after the other."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        for stream in self.streams:
            x = stream.push(x, last)
        return x


class Tiled(Chain):
    """A few steps go through all of them, before others follow."""

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        starts = range(0, max(x.input.shape[0], 1), ROWS)
        tiles = [Signal(*(None if y is None else y[i : i + ROWS] for y in x)) for i in starts]
        done = [super(Tiled, self).push(tile, last and tile is tiles[-1]) for tile in tiles]
        return Signal(torch.cat([tile.input for tile in done]))


class Activating:
    """ELU, unless the product before it did it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        return Signal(None, F.elu(x.input).to(self.dtype)) if x.active is None else x


class Sliding:
    """Products with windows: a convolution, padded at both ends."""

    def __init__(self, product: Product, left: int, right: int, mode: str, wanted: Wanted) -> None:
        self.product, self.left, self.right, self.mode, self.wanted = product, left, right, mode, wanted
        self.held: Tensor | None = None
        """Before the beginning is padded, all inputs; then what the next windows begin with."""
        self.begun = False

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        new, span = x.input, self.product.span
        if self.begun and self.held is not None and not last:  # what is new isn't copied
            edge = torch.cat([self.held, new[:span]])
            self.held = _tail(new if len(new) >= span else edge, span)
            return self.product([(edge, None), (new, None)], self.wanted)
        whole = new if self.held is None else torch.cat([self.held, new])
        if not last and len(whole) <= max(self.left, self.right):  # a reflection needs more
            self.held = whole
            return self.product([(whole[:0], None)], self.wanted)
        whole = _padded(whole, 0 if self.begun else self.left, self.right if last else 0, self.mode)
        self.begun, self.held = True, _tail(whole, span)
        return self.product([(whole, None)], self.wanted)


class Spreading:
    """A transposed convolution: each frame becomes several."""

    def __init__(self, inner: Sliding, left: int, excess: int, channels: int) -> None:
        self.inner, self.skip, self.excess, self.channels = inner, left, excess, channels

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`.  excess: what comes out in the end beyond what is wanted."""
        y = self.inner.push(x, last).map(lambda z: z.reshape(-1, self.channels))
        begin = min(self.skip, len(y.input))
        end = len(y.input) - (self.excess if last else 0)
        self.skip -= begin
        return y.map(lambda z: z[begin:end])


class Adding:
    """A block: what it makes is added to its input, which waits for it."""

    def __init__(self, block: Stream, product: Product, shortcut: Product | None, wanted: Wanted) -> None:
        self.block, self.product, self.shortcut, self.wanted = block, product, shortcut, wanted
        self.waiting: Tensor | None = None

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        inner, short = self.block.push(x, last).input, x.raw
        assert short is not None, "it was asked for"
        if self.shortcut is not None:
            short = self.shortcut([(short, None)]).input
        waiting = short[:0] if self.waiting is None else self.waiting
        first = min(len(waiting), len(inner))
        rest = len(inner) - first
        self.waiting = torch.cat([waiting[first:], short[rest:]])
        return self.product([(inner[:first], waiting[:first]), (inner[first:], short[:rest])], self.wanted)


class Recurring:
    """An LSTM with a skip connection."""

    def __init__(self, run: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        self.run, self.state = run, None

    def push(self, x: Signal, last: bool) -> Signal:
        """See `Stream`."""
        if not x.input.shape[0]:
            return x
        y, self.state = self.run(x.input, self.state)
        return Signal(y + x.input)


def _tail(x: Tensor, count: int) -> Tensor:
    """A copy, for x is large."""
    return x[max(len(x) - count, 0) :].clone()


def _padded(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    return pad1d(x.T[None], left, right, mode)[0].T if left or right else x


# Weights --------------------------------------------------------------------------------------------------------------


class Layers:
    """What streams of a decoder share: its weights, as the products take them."""

    def __init__(self, codec: EncodecModel) -> None:
        self.layers, self.exact = list(codec.decoder.layers), codec.dtype
        self.kernels, self.few = runs_on_kernels(codec), runs_in_few_bits(codec)
        self.make = [self._layer(i) for i in range(len(self.layers))]
        small = (i for i, layer in enumerate(self.layers) if isinstance(layer, ConvTranspose1d) and _is_small(layer))
        self.large = next(small, len(self.layers)) if self.kernels else len(self.layers)

    def begin(self) -> Chain:
        """A fresh stream."""
        streams = [make() for make in self.make]
        return Chain([*streams[: self.large], Tiled(streams[self.large :])])

    def _layer(self, i: int) -> Callable[[], Stream]:
        """What begins a layer's stream."""
        module, dtype, wanted = self.layers[i], self._dtype(i), self._wanted(i)
        if isinstance(module, Conv1d):
            return self._convolution(module, dtype, wanted)
        if isinstance(module, ConvTranspose1d):
            return self._transposed(module, dtype, wanted)
        if isinstance(module, ResidualBlock):
            return self._block(module, dtype, wanted)
        if isinstance(module, Recurrence):
            run = self._by_kernels(module.lstm) if self.kernels else _by_torch(module.lstm)
            return lambda: Recurring(run)
        assert isinstance(module, nn.ELU), "a decoder is made of these"
        return lambda: Activating(self._dtype(i + 1))

    def _dtype(self, i: int) -> torch.dtype:
        """That a layer multiplies."""
        return torch.bfloat16 if self.few and 0 < i < len(self.layers) - 1 else self.exact

    def _wanted(self, i: int) -> Wanted:
        """What the layers after this one read; only those before blocks and ELUs of which there are many do more."""
        module, after = self.layers[i], self.layers[i + 1 : i + 2]
        if not isinstance(module, ConvTranspose1d | ResidualBlock):
            return RAW
        if isinstance(after[0], ResidualBlock):
            return Wanted(True, self._dtype(i + 1))
        return Wanted(False, self._dtype(i + 2))

    def _product(self, weight: Tensor, bias: Tensor | None, taps: int, dilation: int, dtype: torch.dtype) -> Product:
        if self.kernels:
            return Windows(weight, bias, taps, dilation, dtype)
        return ByTorch(weight, None if bias is None else bias.detach(), taps, dilation)

    def _conv_product(self, module: Conv1d, dtype: torch.dtype) -> Product:
        conv = module.conv
        assert isinstance(conv, nn.Conv1d)
        weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [O, taps · C]
        return self._product(weight, conv.bias, conv.kernel_size[0], conv.dilation[0], dtype)

    def _convolution(self, module: Conv1d, dtype: torch.dtype, wanted: Wanted) -> Callable[[], Sliding]:
        product = self._conv_product(module, dtype)
        return lambda: Sliding(product, module.left, module.right, module.pad_mode, wanted)

    def _block(self, module: ResidualBlock, dtype: torch.dtype, wanted: Wanted) -> Callable[[], Adding]:
        _, first, _, second = module.block
        assert isinstance(first, Conv1d)
        assert isinstance(second, Conv1d)
        inner, product = self._convolution(first, dtype, Wanted(False, dtype)), self._conv_product(second, dtype)
        given = module.shortcut
        shortcut = self._conv_product(given, self.exact) if isinstance(given, Conv1d) else None
        return lambda: Adding(inner(), product, shortcut, wanted)

    def _transposed(self, module: ConvTranspose1d, dtype: torch.dtype, wanted: Wanted) -> Callable[[], Spreading]:
        """Frame t sees itself and those before that reach as far: the part of the kernel that is j strides on, of frame
        t - j.
        """
        conv = module.conv
        assert isinstance(conv, nn.ConvTranspose1d)
        [kernel], [stride] = conv.kernel_size, conv.stride
        before = (kernel - 1) // stride
        whole = F.pad(conv.weight.detach(), (0, (before + 1) * stride - kernel))  # [C, O, (before + 1) · stride]
        parts = whole.unflatten(2, (before + 1, stride)).flip(2)  # the frame that lies farthest back comes first
        weight = parts.permute(3, 1, 2, 0).flatten(2).flatten(0, 1)  # [stride · O, taps · C]
        bias = None if conv.bias is None else conv.bias.detach().repeat(stride)
        product = self._product(weight, bias, before + 1, 1, dtype)
        excess, channels = before * stride - module.left, conv.out_channels
        return lambda: Spreading(Sliding(product, before, before, "constant", wanted), module.left, excess, channels)

    def _by_kernels(self, lstm: nn.LSTM) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
        dtype = torch.bfloat16 if self.few else torch.float32
        recurrent = [
            lowbit.QuantizedLinear(weights[1]).engine_weight() if self.few else None for weights in lstm.all_weights
        ]
        layers = [Lstm(lstm, i, weight, dtype) for i, weight in enumerate(recurrent)]

        def run(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            state = state or [layer.begin() for layer in layers]
            for layer, own in zip(layers, state, strict=True):
                x = layer(x, own)
            return x, state

        return run


class ByTorch:
    """A product with windows, anywhere."""

    def __init__(self, weight: Tensor, bias: Tensor | None, taps: int, dilation: int) -> None:
        self.weight, self.bias, self.taps, self.dilation = weight, bias, taps, dilation
        self.span = (taps - 1) * dilation

    def __call__(self, parts: Sequence[tuple[Tensor, Tensor | None]], wanted: Wanted = RAW) -> Signal:
        """See `Product`."""
        y = torch.cat([self._rows(x) if added is None else self._rows(x) + added for x, added in parts])
        return Signal(y if wanted.raw else None, None if wanted.active is None else F.elu(y))

    def _rows(self, x: Tensor) -> Tensor:
        rows, (step, one) = max(len(x) - self.span, 0), x.stride()
        windows = x.as_strided((rows, self.taps, x.shape[1]), (step, self.dilation * step, one))
        return F.linear(windows.flatten(1), self.weight, self.bias)


_LAYERS: "WeakKeyDictionary[EncodecModel, tuple[Any, Layers]]" = WeakKeyDictionary()


def _layers_of(codec: EncodecModel) -> Layers:
    """Made once; anew when weights have changed."""
    kinds = runs_on_kernels(codec), runs_in_few_bits(codec)
    now = (kinds, *((p.data_ptr(), p._version) for p in codec.decoder.parameters()))
    known, layers = _LAYERS.get(codec, (None, None))
    if layers is None or known != now:
        layers = Layers(codec)
        _LAYERS[codec] = (now, layers)
    return layers


def _by_torch(lstm: nn.LSTM) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    return lambda x, state: lstm(x, state)


def _is_small(module: ConvTranspose1d) -> bool:
    weight = module.conv.weight
    assert isinstance(weight, Tensor)
    return weight.numel() <= SMALL
