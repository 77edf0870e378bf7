"""Products over whole sequences by the CPU's kernels: convolutions and LSTMs, as codecs need them.

What lies [T, C] is multiplied with weights for many rows, windows of it without a copy; an LSTM's recurrence goes step
by step in one list of operations (nn/engine.py).
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tunesmith.nn.engine import (
    ACTIVATIONS,
    BFLOAT16_PANELS,
    FLOAT32_PANELS,
    GATES,
    GROUP,
    LANES,
    LINEAR,
    Op,
    Weight,
    plain_weight,
    run,
    zeros,
)

PANEL = 32
"""Outputs side by side in a weight for many rows."""
OP = np.dtype(Op)


class Signal(NamedTuple):
    """A sequence: as it is, or what ELU makes of it, or both."""

    raw: Float[Tensor, "T C"] | None
    active: Float[Tensor, "T C"] | None = None

    @property
    def input(self) -> Float[Tensor, "T C"]:
        """For one who takes what there is."""
        found = self.raw if self.active is None else self.active
        assert found is not None, "one of them is there"
        return found

    def map(self, change: Callable[[Tensor], Tensor]) -> "Signal":
        """Of what there is."""
        return Signal(*(None if x is None else change(x) for x in self))


class Wanted(NamedTuple):
    """What a product is to give."""

    raw: bool = True
    active: torch.dtype | None = None

    def empty(self, rows: int, outputs: int) -> Signal:
        """Room for it."""
        raw = torch.empty(rows, outputs) if self.raw else None
        return Signal(raw, None if self.active is None else torch.empty(rows, outputs, dtype=self.active))


RAW = Wanted()


class Form:
    """One of a product's weights, with outputs side by side in panels and inputs of bfloat16 in pairs.

    `steps` rows of a sequence are one row for it.
    """

    def __init__(
        self, weight: Float[Tensor, "O I"], bias: Tensor | None, dtype: torch.dtype, steps: int, fields: dict[str, int]
    ) -> None:
        pair = 1 if dtype == torch.float32 else 2
        full = nn.functional.pad(weight.detach(), (0, 0, 0, -len(weight) % PANEL)).unflatten(0, (-1, PANEL))
        pairs = full.unflatten(2, (-1, pair)).transpose(1, 2)  # [O / 32, I / pair, 32, pair]
        self.steps, self.data = steps, zeros(pairs.shape, dtype).copy_(pairs)
        self.bias = None if bias is None else bias.detach().float().contiguous()
        self.base = Op(
            kind=LINEAR,
            format=FLOAT32_PANELS if pair == 1 else BFLOAT16_PANELS,
            outputs=len(weight),
            barrier=1,
            weight=self.data.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            **fields,
        )

    def op(
        self, rows: int, active: bool, source: int | None, first: int | None, target: int | None, small: int | None
    ) -> Op:
        """Of so many rows, between these addresses."""
        op = Op.from_buffer_copy(self.base)
        op.rows, op.activation = rows // self.steps, ACTIVATIONS["elu"] if active else 0
        op.source, op.first, op.target, op.bytes = source, first, target, small
        return op


class Windows:
    """A product with windows of a sequence, for many rows: a convolution over time of what lies [T, C].

    Row t is `taps` steps from t on, `dilation` apart.  In bfloat16 weights and inputs (an even number) are rounded, and
    sums are float32.
    """

    def __init__(
        self,
        weight: Float[Tensor, "O I"],
        bias: Float[Tensor, " O"] | None,
        taps: int = 1,
        dilation: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.outputs, channels, self.dtype = weight.shape[0], weight.shape[1] // taps, dtype
        self.span = (taps - 1) * dilation
        shape = {"taps": taps, "inputs": channels} if dilation > 1 else {"taps": 1, "inputs": taps * channels}
        one = {"stride": channels, "gap": dilation * channels, **shape}
        self.forms = [Form(weight, bias, dtype, 1, one)]
        steps = LANES // self.outputs
        if steps > 1 and dilation == 1:  # few outputs: those of several steps fill a register
            wide = weight.new_zeros(steps, self.outputs, (taps + steps - 1) * channels)
            for step, rows in enumerate(wide):
                rows[:, step * channels :][:, : weight.shape[1]] = weight.detach()
            many = {"stride": steps * channels, "gap": 0, "taps": 1, "inputs": wide.shape[2]}
            repeated = None if bias is None else bias.repeat(steps)
            self.forms.insert(0, Form(wide.flatten(0, 1), repeated, dtype, steps, many))

    def __call__(self, parts: Sequence[tuple[Tensor, Tensor | None]], wanted: Wanted = RAW) -> Signal:
        """Of each part as many rows as it has windows, one part's after the other's.

        parts: [T, C] in this product's precision, and what is added to its rows, float32 [S, O].
        """
        parts = [(x.contiguous(), None if added is None else added.contiguous()) for x, added in parts]
        counts = [max(x.shape[0] - self.span, 0) for x, _ in parts]
        out, ops, start = wanted.empty(sum(counts), self.outputs), list[Op](), 0
        alone = out.raw is None and wanted.active == torch.float32
        target, small = _place(out.active if alone else out.raw), _place(None if alone else out.active)
        assert alone or wanted.active in (None, self.dtype), "what is activated goes into a product of this kind"
        for (x, added), count in zip(parts, counts, strict=True):
            source, first, done = _place(x), _place(added), 0
            for form in self.forms:
                rows = (count - done) // form.steps * form.steps
                if rows:
                    ends = source(done), first(done), target(start + done), small(start + done)
                    ops.append(form.op(rows, wanted.active is not None, *ends))
                done += rows
            start += count
        if ops:
            run(ops)
        return out


def _place(x: Tensor | None) -> Callable[[int], int | None]:
    """The address of a row."""
    if x is None:
        return lambda row: None
    start, size = x.data_ptr(), x.shape[1] * x.element_size()
    return lambda row: start + row * size


class Lstm:
    """A layer of an LSTM, of one sequence: all products with inputs at once, then step by step what is recurrent.

    The recurrent weight may be packed (nn/lowbit.py); then what it is multiplied with is quantised too.
    """

    def __init__(
        self, module: nn.LSTM, layer: int, recurrent: Weight | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        of_inputs, exact, *biases = (p.detach() for p in module.all_weights[layer])
        self.inputs = Windows(of_inputs, torch.stack(biases).sum(0) if biases else None, dtype=dtype)
        weight = plain_weight(exact.contiguous()) if recurrent is None else recurrent
        assert weight is not None, "the caller knows that kernels can read it"
        self.recurrent, self.width = weight, weight.inputs

    def begin(self) -> dict[str, Tensor]:
        """Zeros: output and cell, room for gates, and the output in few bits."""
        groups = -(-self.width // GROUP)
        few = {
            "bytes": torch.zeros(groups * GROUP, dtype=torch.int8),
            "byte_scales": torch.zeros(groups),
            "byte_sums": torch.zeros(groups, dtype=torch.int32),
        }
        state = {name: torch.zeros(1, size * self.width) for name, size in (("hidden", 1), ("cell", 1), ("gates", 4))}
        return state | few if self.recurrent.packed else state

    def __call__(self, x: Float[Tensor, "T C"], state: dict[str, Tensor]) -> Float[Tensor, "T D"]:
        """What comes out of each step; `state` is updated in place."""
        given, y = self.inputs([(x.to(self.inputs.dtype), None)]).input, torch.empty(len(x), self.width)
        if len(x):
            run(self._steps(given, y, state))
            state["hidden"].copy_(y[-1:])
        return y

    def _steps(self, given: Tensor, y: Tensor, state: dict[str, Tensor]) -> "ctypes.Array[Op]":
        """A product and the gates, each time."""
        at = {name: buffer.data_ptr() for name, buffer in state.items()}
        shared = {"rows": 1, "barrier": 1, "inputs": self.width} | {k: at[k] for k in at if k.startswith("byte")}
        scales = None if self.recurrent.scales is None else self.recurrent.scales.data_ptr()
        product = Op(
            kind=LINEAR,
            format=self.recurrent.format,
            outputs=4 * self.width,
            weight=self.recurrent.data.data_ptr(),
            scales=scales,
            own_weight=1.0,
            first_weight=1.0,
            source=at["hidden"],
            first=given.data_ptr(),
            raw=at["gates"],
            target=at["gates"],
            **shared,
        )
        gates = Op(kind=GATES, source=at["gates"], raw=at["cell"], target=y.data_ptr(), **shared)
        ops = np.frombuffer(bytes(product) + bytes(gates), OP)[None].repeat(len(y), 0)  # [T, 2]
        steps = 4 * self.width * np.arange(len(y), dtype=np.uint64)  # bytes
        ops["first"][:, 0] += 4 * steps
        ops["target"][:, 1] += steps
        ops["source"][1:, 0] = ops["target"][:-1, 1]
        return (Op * ops.size).from_buffer_copy(ops.tobytes())
