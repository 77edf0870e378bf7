"""A decode step on the CPU as one call: a list of operations that nn/csrc/engine.cpp works through.

A model writes its step down once, when a piece begins: norms, products, attention over caches, all on buffers that are
allocated then (`Program`).  A step copies its inputs in, says where each row stands (`Places`), and runs the list.
What that saves is everything but reading weights and caches once: a step in torch is hundreds of operations.

The list has rows.  A row is one position of one sequence, so a step of a batch is a row a sample (and guidance branch),
and a prompt is as many rows as positions.  A row's result depends on its own inputs alone, bit by bit.

The kernels are compiled when the package is installed, where there is a compiler.  `library()` is None without them,
and then everything works through torch.
"""

import contextlib
import ctypes
import math
import mmap
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

VERSION = 6
"""Of the interface; the compiled kernels say theirs."""
LANES = 16
GROUP = 64
"""Inputs that share a scale."""
ROWS = 64
"""That are fed at a time; longer prompts go piece by piece."""
LARGE = 2**21
"""Bytes in a large page."""
SHARED = 2**16
"""Scores that are worth more than one thread."""
FLOAT32, BFLOAT16, INT8, INT4, FLOAT32_BY_INPUT, BFLOAT16_BY_INPUT, FLOAT32_PANELS, BFLOAT16_PANELS = range(8)
NORM, QUANTISE, LINEAR, REMEMBER, PREPARE, ATTEND, GATES, CHOOSE = range(8)

FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.int8: INT8}
ACTIVATIONS = {"gelu": 1, "relu": 2, "silu": 3, "quick_gelu": 4, "gelu_new": 5, "elu": 6}
"""By their names in configurations, as the kernels number them; 0 is none."""


class Op(ctypes.Structure):
    """One operation; engine.cpp has the same fields in the same order."""

    _fields_ = [
        *((name, c_int32) for name in ("kind", "format", "inputs", "outputs", "activation", "barrier")),
        *((name, c_int32) for name in ("heads", "width", "stride", "view", "rows", "taps", "gap")),
        *((name, c_float) for name in ("epsilon", "own_weight", "first_weight", "second_weight")),
        ("capacity", c_int64),
        *((name, c_void_p) for name in ("source", "first", "second", "target", "raw", "weight", "scales")),
        *((name, c_void_p) for name in ("gain", "bias", "bytes", "byte_scales", "byte_sums")),
        *((name, c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
    ]


class View(ctypes.Structure):
    """Four arrays, a number a row; and two numbers."""

    _fields_ = [(name, c_void_p) for name in ("sequence", "write", "start", "length", "leading", "apart")]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none, or none that fit this version."""
    if os.environ.get("TUNESMITH_KERNELS") == "off":
        return None
    for file in sorted(Path(__file__).parent.glob("_engine*")):
        try:
            found = ctypes.CDLL(str(file))
            found.tunesmith_instructions.restype = c_char_p
            found.tunesmith_run.argtypes = [POINTER(Op), c_int, c_int, POINTER(View), c_void_p, c_int64, c_int]
            found.tunesmith_run.restype = None
            if (found.tunesmith_version(), found.tunesmith_op_size()) == (VERSION, ctypes.sizeof(Op)):
                return found
            warnings.warn(f"{file.name} belongs to another version of tunesmith; install it anew.", stacklevel=2)
        except (OSError, AttributeError):
            continue
    return None


def instructions() -> str | None:
    """What the kernels use: "avx512-bf16", "avx512-vnni", "avx2" or "plain"; None without kernels."""
    found = library()
    return None if found is None else str(found.tunesmith_instructions().decode())


def multiplies_bfloat16() -> bool:
    """Can the kernels multiply bfloat16 by bfloat16?"""
    return instructions() == "avx512-bf16"


def use_instructions(name: str) -> bool:
    """Use another set of instructions of this machine; false if it has none of that name.  For tests."""
    found = library()
    return found is not None and bool(found.tunesmith_use(name.encode()))


class Weight(NamedTuple):
    """A matrix as the kernels read it."""

    format: int
    outputs: int
    inputs: int
    data: Tensor
    """[O, I] or, "by input", [I, O] as it is; or packed (nn/lowbit.py)."""
    scales: Tensor | None = None
    bias: Float[Tensor, " O"] | None = None

    @property
    def matrix(self) -> Float[Tensor, "O I"]:
        """Of one that isn't packed."""
        return self.data if self.format in (FLOAT32, BFLOAT16) else self.data.T

    @property
    def packed(self) -> bool:
        """Does it take quantised inputs?"""
        return self.format in (INT8, INT4)


def plain_weight(data: Tensor, bias: Float[Tensor, " O"] | None = None, by_input: bool = False) -> Weight | None:
    """A float32 or bfloat16 matrix [O, I], or by input [I, O], without a copy; None for what kernels can't read."""
    if data.device.type != "cpu" or data.dtype not in (torch.float32, torch.bfloat16) or not data.is_contiguous():
        return None
    if by_input:
        return Weight(FORMATS[data.dtype] + FLOAT32_BY_INPUT, data.shape[1], data.shape[0], data, None, bias)
    return Weight(FORMATS[data.dtype], data.shape[0], data.shape[1], data, None, bias)


def weight_of(module: object) -> Weight | None:
    """Of a linear layer without anything special about it; None for what kernels can't read."""
    make = getattr(module, "engine_weight", None)
    found: Weight | None = make() if callable(make) and is_plain(module) else None
    return found


def is_plain(module: object) -> bool:
    """Without hooks, and its parameters are such of torch's own."""
    if not isinstance(module, nn.Module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(type(p) is nn.Parameter for p in module.parameters(recurse=False))


def float_dtype(x: Tensor) -> torch.dtype:
    """What is remembered of x without a loss: its own type, or float32."""
    return x.dtype if x.dtype == torch.bfloat16 else torch.float32


def memory_dtype(model: nn.Module) -> torch.dtype:
    """Of keys and values: as many bits as weights have, but 8 where those have 4."""
    if is_packed(model):
        return torch.int8
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    return torch.float32 if exact else torch.bfloat16


def is_packed(model: nn.Module) -> bool:
    """Is there any layer with a weight in few bits?"""
    return any(weight is not None and weight.packed for weight in map(weight_of, model.modules()))


def head_weight(data: Float[Tensor, "O I"], packed: bool) -> Weight | None:
    """Of a head: as it is, or (where the layers have few bits) a copy in 16."""
    return plain_weight(data.bfloat16() if packed else data)


def write(memory: "Memory", keys: Tensor, values: Tensor, rows: Sequence[tuple[int, int, int, int]]) -> None:
    """Write keys and values [rows, heads · width] to the places that the rows say (`Places.set`)."""
    places = Places(len(rows))
    places.set(rows)
    program = Program(len(rows), 1, [places])
    program.remember(keys, values, memory, 0, keys.shape[1])
    program.run(len(rows))


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """On large pages where the system has them: what a step reads from end to end is read faster."""
    count = math.prod(shape) * dtype.itemsize
    if count < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(*shape, dtype=dtype)
    pages = mmap.mmap(-1, count + LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones have small pages
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    room = torch.frombuffer(pages, dtype=torch.uint8)
    return room[-room.data_ptr() % LARGE :][:count].view(dtype).view(*shape)


@dataclass
class Memory:
    """Keys and values of one layer, for `sequences` sequences of at most `capacity` places."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None
    value_scales: Tensor | None
    heads: int
    width: int
    capacity: int

    @classmethod
    def allocate(cls, sequences: int, heads: int, width: int, places: int, dtype: torch.dtype) -> "Memory":
        """All zeros; float32, bfloat16 or int8."""
        capacity = -(-places // LANES) * LANES
        even = width + width % 2 if dtype == torch.int8 else width  # which lie in pairs
        blocks = (sequences, capacity // LANES, heads)
        values, keys = zeros((*blocks, LANES, -(-width // LANES) * LANES), dtype), zeros((*blocks, even, LANES), dtype)
        of_keys, of_values = (torch.zeros(*blocks, LANES) if dtype == torch.int8 else None for _ in range(2))
        return cls(keys, values, of_keys, of_values, heads, width, capacity)


class Places:
    """Where each row writes and what it sees, for all layers that have this in common.

    Filled for every step: `sequence` is the row's memory, `write` its place there (-1: none), and it sees `length`
    places from `start` (a multiple of 16) on.  Seeing none gives zeros.  `leading` rows are what operations work on
    that are `only` about this view.
    """

    def __init__(self, rows: int) -> None:
        self.table: Int[Tensor, "4 R"] = torch.zeros(4, rows, dtype=torch.int32)
        self.leading: Int[Tensor, " 1"] = torch.zeros(1, dtype=torch.int32)
        self.apart: Int[Tensor, " 1"] = torch.zeros(1, dtype=torch.int32)
        """1: each row has a sequence of its own."""

    def set(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """(sequence, write, start, length) of each row."""
        self.table[:, : len(rows)] = torch.tensor(rows, dtype=torch.int32).T
        self.apart.fill_(len({sequence for sequence, *_ in rows}) == len(rows))

    def view(self) -> View:
        """The addresses."""
        return View(*(x.data_ptr() for x in (*self.table, self.leading, self.apart)))


class Program:
    """A list of operations on buffers of at most `rows` rows; each method adds one."""

    def __init__(self, rows: int, widest: int, views: Sequence[Places] = ()) -> None:
        """widest: inputs or outputs of any product."""
        self.rows, self.ops, self.kept = rows, list[Op](), list[object](views)
        groups = -(-widest // GROUP)
        self.raw = torch.zeros(rows, widest)
        self.bytes = torch.zeros(rows, groups * GROUP, dtype=torch.int8)
        self.byte_scales, self.byte_sums = torch.zeros(rows, groups), torch.zeros(rows, groups, dtype=torch.int32)
        self.threads = threads()
        self.room = 0
        """Numbers that a thread needs for attention."""
        self.views = (View * max(len(views), 1))(*(places.view() for places in views))
        self.compiled: tuple[ctypes.Array[Op], Tensor] | None = None
        """The list, and room for each thread."""
        self.quantised: Tensor | None = None
        """The buffer that has been quantised last, and not been written to since."""
        self.part: dict[str, int] = {}
        """Fields of all that is added, while it is about some of the rows."""

    def buffer(self, width: int) -> Float[Tensor, "R D"]:
        """A row each."""
        return torch.zeros(self.rows, width)

    @contextlib.contextmanager
    def only(self, view: int) -> Iterator[None]:
        """What is added meanwhile works on the rows alone that lead in this view (`Places.leading`)."""
        self.part, self.quantised = {"rows": -1, "view": view}, None
        yield
        self.part, self.quantised = {}, None

    def norm(self, x: Tensor, layer: nn.LayerNorm, y: Tensor) -> None:
        """Mean 0 and variance 1, then gain and bias, of x into y."""
        gain, bias = (p.detach().float().contiguous() for p in (layer.weight, layer.bias))
        self._add(NORM, inputs=x.shape[1], source=x, target=y, gain=gain, bias=bias, epsilon=layer.eps)

    def linear(
        self,
        x: Tensor,
        weight: Weight | None,
        y: Tensor,
        activation: int = 0,
        own: float = 1.0,
        first: tuple[Tensor, float] | None = None,
        second: tuple[Tensor, float] | None = None,
        barrier: bool = True,
    ) -> None:
        """Y = own · activation(x W' + bias), plus weighted buffers.

        barrier: what follows needs y whole; without one, the next operation is a product with as many outputs.
        """
        assert weight is not None, "the caller knows that kernels can read it"
        if weight.packed:
            self._quantise(x)
        a, b = (None, 0.0) if first is None else first, (None, 0.0) if second is None else second
        self._add(
            LINEAR,
            format=weight.format,
            inputs=weight.inputs,
            outputs=weight.outputs,
            source=x,
            weight=self._keep(weight.data),
            scales=self._keep(weight.scales),
            bias=self._keep(None if weight.bias is None else weight.bias.detach().float().contiguous()),
            target=y,
            raw=self.raw,
            activation=activation,
            own_weight=own,
            first=a[0],
            first_weight=a[1],
            second=b[0],
            second_weight=b[1],
            barrier=barrier,
            **self._bytes(),
        )

    def remember(self, keys: Tensor, values: Tensor, memory: Memory, view: int, stride: int) -> None:
        """Write each row's key and value; their rows lie `stride` numbers apart."""
        self.room = max(self.room, memory.width)
        self._add(REMEMBER, source=keys, second=values, view=view, **self._memory(memory, stride))

    def attend(
        self,
        queries: Tensor,
        memory: Memory,
        view: int,
        stride: int,
        y: Tensor,
        new: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Y = softmax(q K' / sqrt(H)) V over what each row sees; keys and values that are `new` are remembered first.

        Rows of queries, and of what is new, lie `stride` numbers apart.
        """
        scale, wide = memory.width**-0.5, -(-memory.width // LANES) * LANES
        self.room = max(self.room, memory.heads * (memory.capacity + 2 * wide + LANES))
        shared = {"view": view, **self._memory(memory, stride)}
        if new is not None:  # where rows of one sequence see each other's; else they are written on the way
            shared |= {"source": new[0], "second": new[1]}
            self._add(PREPARE, **shared)
        self._add(ATTEND, first=queries, target=y, epsilon=scale, **shared)

    def run(self, rows: int) -> None:
        """Work through the list, for the first `rows` rows."""
        found = library()
        assert found is not None, "programs run where there are kernels"
        assert rows <= self.rows, "a program is written for so many rows"
        if self.compiled is None:
            self.compiled = (Op * len(self.ops))(*self.ops), torch.zeros(self.threads, self.room)
        ops, scratch = self.compiled
        found.tunesmith_run(ops, len(ops), rows, self.views, scratch.data_ptr(), self.room, self.threads)

    def _quantise(self, x: Tensor) -> None:
        """What packed products take, of x, unless it is there already; a norm can make it as it goes."""
        if self.quantised is x:
            return
        last = self.ops[-1] if self.ops else None
        if last is not None and last.kind == NORM and last.target == x.data_ptr():
            for name, buffer in self._bytes().items():
                setattr(last, name, buffer.data_ptr())
        else:
            self._add(QUANTISE, inputs=x.shape[1], source=x, **self._bytes())
        self.quantised = x

    def _memory(self, memory: Memory, stride: int) -> dict[str, object]:
        return {
            "format": FORMATS[memory.keys.dtype],
            "heads": memory.heads,
            "width": memory.width,
            "capacity": memory.capacity,
            "stride": stride,
            **{name: self._keep(getattr(memory, name)) for name in ("keys", "values", "key_scales", "value_scales")},
        }

    def _bytes(self) -> dict[str, Tensor]:
        return {"bytes": self.bytes, "byte_scales": self.byte_scales, "byte_sums": self.byte_sums}

    def _keep(self, x: Tensor | None) -> Tensor | None:
        self.kept.append(x)
        return x

    def _add(self, kind: int, **fields: object) -> None:
        if fields.get("target") is self.quantised:
            self.quantised = None
        self.kept += [x for x in fields.values() if isinstance(x, Tensor)]
        values = {name: x.data_ptr() if isinstance(x, Tensor) else x for name, x in fields.items() if x is not None}
        self.ops.append(Op(**{"kind": kind, "barrier": True, **self.part, **values}))


def product(x: Float[Tensor, "R I"], weight: Weight | None) -> Float[Tensor, "R O"]:
    """Rows times a matrix, by the kernels; a few at a time."""
    assert weight is not None, "the caller knows that kernels can read it"
    program = Program(min(len(x), ROWS), max(weight.inputs, weight.outputs))
    source, target = program.buffer(weight.inputs), program.buffer(weight.outputs)
    program.linear(source, weight, target)
    out = torch.empty(len(x), weight.outputs)
    for given, found in zip(x.split(ROWS), out.split(ROWS), strict=True):
        source[: len(given)] = given
        program.run(len(given))
        found.copy_(target[: len(given)])
    return out


def choose(
    logits: Float[Tensor, "G B K V"], noise: Float[Tensor, "B K V"], guidance: float, temperature: float, top_k: int
) -> Int[Tensor, "B K"]:
    """Codes from the logits of one branch or of two (conditional, null); -1 where they are not finite.

    What `generation/sampling.py` does with torch: guidance, temperature, top-k (0: off), and the code whose probability
    is the largest beside its noise.
    """
    count, songs, books, size = logits.shape
    assert 1 <= count <= 2, "one branch, or two"
    assert noise.shape == logits.shape[1:], "a number for each score"
    assert noise.numel(), "there is something to choose"
    logits, noise = logits.float(), noise.contiguous()
    if logits.stride(3) != 1:
        logits = logits.contiguous()
    codes = torch.empty(songs, books, dtype=torch.int64)
    op = Op(
        kind=CHOOSE,
        rows=songs * books,
        inputs=size,
        heads=books,
        stride=logits.stride(1),
        gap=logits.stride(2),
        width=min(top_k, size),
        own_weight=guidance,
        epsilon=temperature,
        source=logits[0].data_ptr(),
        second=logits[1].data_ptr() if count == 2 else None,
        first=noise.data_ptr(),
        bytes=codes.data_ptr(),
    )
    helpers = threads() if songs * books * size >= SHARED else 1
    run([op], torch.empty(helpers, -(-size // LANES) * LANES))
    return codes


def run(ops: "Sequence[Op] | ctypes.Array[Op]", scratch: Float[Tensor, "N V"] | None = None) -> None:
    """Work through operations that say themselves how many rows they have.

    scratch: room for each thread, as many as there are to be.
    """
    found = library()
    assert found is not None, "the caller knows that there are kernels"
    array = ops if isinstance(ops, ctypes.Array) else (Op * len(ops))(*ops)
    room = (None, 0, threads()) if scratch is None else (scratch.data_ptr(), scratch.shape[1], len(scratch))
    found.tunesmith_run(array, len(ops), 1, (View * 1)(), *room)


def threads() -> int:
    """That kernels use when they are called from this thread."""
    return getattr(_HERE, "threads", None) or torch.get_num_threads()


@contextlib.contextmanager
def with_torch_aside() -> Iterator[None]:
    """Torch works in this thread alone; kernels have all that they had.

    Threads that torch has called spin for a while when they are done, on the processors that kernels need next, and
    what torch does between kernels is too little to be shared.
    """
    before, own = torch.get_num_threads(), getattr(_HERE, "threads", None)
    _HERE.threads = own or before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _HERE.threads = own


def limit_threads(count: int) -> None:
    """How many threads `run` may use, when it is called from this one."""
    _HERE.threads = count


_HERE = threading.local()
