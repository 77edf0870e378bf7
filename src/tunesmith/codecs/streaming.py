"""EnCodec's decoder piece by piece: the same audio as in one go, whatever the pieces.

    decoder = StreamingDecoder(codec)
    audio = [decoder.push(codes[:, a:b]) for a, b in pieces] + [decoder.finish()]

Everything lies [time, channels].  A layer holds back what its next windows still need, so audio lags a few frames
behind the codes (a convolution that isn't causal sees so many of them ahead) and `finish` brings the rest.

A transposed convolution of stride s is a convolution too: of frames, with s times as many outputs, which are then read
as s frames each.  So all layers but the LSTM come down to products with windows of a sequence (`nn/engine.py`), which
the CPU's kernels run at several times the speed of convolutions on large arrays; without kernels torch does the same.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.codecs.encodec import EncodecModel, Recurrence, ResidualBlock, SeaNet
from tunesmith.errors import RequestError
from tunesmith.nn import engine
from tunesmith.nn.conv import Conv1d, ConvTranspose1d, pad1d

PIECE = 50
"""Frames that are decoded at a time: enough to read the LSTM's weights seldom, few enough for the caches."""
Product = Callable[[Tensor], Tensor]
"""[T, C] -> [T - span, O]"""


@runtime_checkable
class Stream(Protocol):
    """A layer in the middle of a sequence."""

    def push(self, x: Float[Tensor, "T C"], last: bool) -> Float[Tensor, "S O"]:
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


@torch.no_grad()
def decode(codec: EncodecModel, codes: Int[Tensor, "B K S"]) -> Float[Tensor, "B C T"]:
    """Clip by clip, in pieces that stay in the processor's caches."""
    clips = []
    for clip in codes:
        decoder = StreamingDecoder(codec)
        clips.append(torch.cat([*map(decoder.push, clip.split(PIECE, 1)), decoder.finish()], 1))
    return torch.stack(clips)


class Layers:
    """What streams of a decoder share: its weights, as the products take them."""

    def __init__(self, decoder: SeaNet, kernels: bool) -> None:
        self.make = [_layer(module, kernels) for module in decoder.layers]

    def begin(self) -> "Chain":
        """A fresh stream."""
        return Chain([make() for make in self.make])


_LAYERS: "WeakKeyDictionary[EncodecModel, tuple[Any, Layers]]" = WeakKeyDictionary()


def _layers_of(codec: EncodecModel) -> Layers:
    """Made once; anew when weights have changed."""
    kernels = runs_on_kernels(codec)
    now = (kernels, *((p.data_ptr(), p._version) for p in codec.decoder.parameters()))
    known, layers = _LAYERS.get(codec, (None, None))
    if layers is None or known != now:
        layers = Layers(codec.decoder, kernels)
        _LAYERS[codec] = (now, layers)
    return layers


class StreamingDecoder:
    """Codes of one clip to audio, piece by piece."""

    def __init__(self, codec: EncodecModel) -> None:
        """Raises RequestError for a codec that can't (`can_stream`)."""
        if not can_stream(codec):
            raise RequestError(
                "This codec codes audio in chunks or norms it over all of its length, so it can't decode a stream; "
                "decode it in one go."
            )
        self.codec, self.chain = codec, _layers_of(codec).begin()

    @torch.no_grad()
    def push(self, codes: Int[Tensor, "K S"], last: bool = False) -> Float[Tensor, "C T"]:
        """Audio as far as it can be told by now."""
        latents = self.codec.quantizer.decode(codes[None])[0].T  # [S, D]
        return self.chain.push(latents, last).T

    def finish(self) -> Float[Tensor, "C T"]:
        """The rest."""
        none = torch.empty(1, 0, dtype=torch.long, device=self.codec.device)
        return self.push(none, last=True)


class Chain:
    """One after the other."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`."""
        for stream in self.streams:
            x = stream.push(x, last)
        return x


class Pointwise:
    """Step by step."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`."""
        return self.function(x)


class Sliding:
    """Products with windows: a convolution, padded at both ends."""

    def __init__(self, product: Product, span: int, left: int, right: int, mode: str) -> None:
        self.product, self.span, self.left, self.right, self.mode = product, span, left, right, mode
        self.held: Tensor | None = None
        """Before the beginning is padded, all inputs; then what the next windows begin with."""
        self.begun = False

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`."""
        x = x if self.held is None else torch.cat([self.held, x])
        if not self.begun and len(x) <= max(self.left, self.right) and not last:  # a reflection needs more
            self.held = x
            return self.product(x[:0])
        x = _padded(x, 0 if self.begun else self.left, self.right if last else 0, self.mode)
        self.begun, self.held = True, x[max(len(x) - self.span, 0) :]
        return self.product(x)


class Spreading:
    """A transposed convolution: each frame becomes several."""

    def __init__(self, inner: Sliding, left: int, excess: int, channels: int) -> None:
        self.inner, self.skip, self.excess, self.channels = inner, left, excess, channels

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`.  excess: what comes out in the end beyond what is wanted."""
        y = self.inner.push(x, last).reshape(-1, self.channels)
        skipped = min(self.skip, len(y))
        self.skip -= skipped
        return y[skipped : len(y) - (self.excess if last else 0)]


class Adding:
    """A block with a shortcut, which waits for the block."""

    def __init__(self, block: Stream, shortcut: Stream) -> None:
        self.block, self.shortcut = block, shortcut
        self.waiting: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`."""
        short, y = self.shortcut.push(x, last), self.block.push(x, last)
        short = short if self.waiting is None else torch.cat([self.waiting, short])
        self.waiting = short[len(y) :]
        return y.add_(short[: len(y)])


class Recurring:
    """An LSTM with a skip connection."""

    def __init__(self, run: Callable[[Tensor, Any], tuple[Tensor, Any]]) -> None:
        self.run, self.state = run, None

    def push(self, x: Tensor, last: bool) -> Tensor:
        """See `Stream`."""
        if not len(x):
            return x
        y, self.state = self.run(x, self.state)
        return y + x


def _layer(module: nn.Module, kernels: bool) -> Callable[[], Stream]:
    """What begins a layer's stream."""
    if isinstance(module, Conv1d):
        return _convolution(module, kernels)
    if isinstance(module, ConvTranspose1d):
        return _transposed(module, kernels)
    if isinstance(module, ResidualBlock):
        inner, shortcut = [_layer(part, kernels) for part in module.block], _layer(module.shortcut, kernels)
        return lambda: Adding(Chain([make() for make in inner]), shortcut())
    if isinstance(module, Recurrence):
        run = _lstm_by_kernels(module.lstm) if kernels else _lstm_by_torch(module.lstm)
        return lambda: Recurring(run)
    if isinstance(module, nn.Identity):
        return lambda: Pointwise(lambda x: x)
    assert isinstance(module, nn.ELU), "a decoder is made of these"
    elu = engine.ACTIVATIONS["elu"]
    return lambda: Pointwise((lambda x: engine.elementwise(x, elu)) if kernels else F.elu)


def _convolution(module: Conv1d, kernels: bool) -> Callable[[], Stream]:
    conv = module.conv
    assert isinstance(conv, nn.Conv1d)
    [taps], [dilation] = conv.kernel_size, conv.dilation
    weight = conv.weight.detach().transpose(1, 2).flatten(1)  # [O, taps · C]
    product, span = _product(weight, conv.bias, taps, dilation, kernels), (taps - 1) * dilation
    return lambda: Sliding(product, span, module.left, module.right, module.pad_mode)


def _transposed(module: ConvTranspose1d, kernels: bool) -> Callable[[], Stream]:
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
    product = _product(weight, bias, before + 1, 1, kernels)
    excess = before * stride - module.left
    channels = conv.out_channels
    return lambda: Spreading(Sliding(product, before, before, before, "constant"), module.left, excess, channels)


def _product(weight: Tensor, bias: Tensor | None, taps: int, dilation: int, kernels: bool) -> Product:
    if kernels:
        return engine.Windows(weight, bias, taps, dilation)
    span, bias = (taps - 1) * dilation, None if bias is None else bias.detach()

    def product(x: Tensor) -> Tensor:
        rows, (step, one) = max(len(x) - span, 0), x.stride()
        windows = x.as_strided((rows, taps, x.shape[1]), (step, dilation * step, one))
        return F.linear(windows.flatten(1), weight, bias)

    return product


def _lstm_by_torch(lstm: nn.LSTM) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    return lambda x, state: lstm(x, state)


def _lstm_by_kernels(lstm: nn.LSTM) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
    layers = [engine.Lstm(lstm, i) for i in range(lstm.num_layers)]

    def run(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        state = state or [(torch.zeros(1, layer.width), torch.zeros(1, layer.width)) for layer in layers]
        for layer, own in zip(layers, state, strict=True):
            x = layer(x, own)
        return x, state

    return run


def _padded(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    return pad1d(x.T[None], left, right, mode)[0].T if left or right else x
