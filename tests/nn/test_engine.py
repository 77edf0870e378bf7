"""The CPU's kernels: every operation against torch, with every set of instructions, alone and together."""

import os
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tunesmith.generation.sampling import Sampler, race
from tunesmith.nn import engine
from tunesmith.nn.engine import Memory, Places, Program, plain_weight

pytestmark = pytest.mark.skipif(engine.library() is None, reason="the kernels weren't compiled: there is no compiler")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_product(x: Tensor, weight: engine.Weight | None, **settings: object) -> Tensor:
    assert weight is not None
    program = Program(len(x), max(weight.inputs, weight.outputs))
    source, target = program.buffer(weight.inputs), program.buffer(weight.outputs)
    program.linear(source, weight, target, **settings)
    source.copy_(x)
    program.run(len(x))
    return target


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by_input", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 48), (2, 37, 21), (7, 130, 65), (19, 16, 5)])
def test_products(dtype: torch.dtype, by_input: bool, rows: int, inputs: int, outputs: int) -> None:
    x, matrix, bias = noise(rows, inputs), noise(outputs, inputs, seed=1).to(dtype), noise(outputs, seed=2)
    weight = plain_weight(matrix.T.contiguous() if by_input else matrix, bias, by_input)
    torch.testing.assert_close(run_product(x, weight), x @ matrix.float().T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("instructions")
def test_a_product_is_activated_weighed_and_added() -> None:
    x, matrix, first, second = noise(3, 32), noise(20, 32, seed=1), noise(3, 20, seed=2), noise(3, 20, seed=3)
    found = run_product(x, plain_weight(matrix), activation=2, own=0.5, first=(first, 2.0), second=(second, -1.0))
    torch.testing.assert_close(found, 0.5 * (x @ matrix.T).relu() + 2 * first - second)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("name", list(engine.ACTIVATIONS))
def test_activations(name: str) -> None:
    functions = {
        "gelu": F.gelu,
        "relu": F.relu,
        "silu": F.silu,
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
        "elu": F.elu,
    }
    x = torch.linspace(-30, 30, 6016).view(47, 128)
    found = run_product(x, plain_weight(torch.eye(128)), activation=engine.ACTIVATIONS[name])
    torch.testing.assert_close(found, functions[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("width", [16, 40, 100])
def test_norms(width: int) -> None:
    layer, program = nn.LayerNorm(width), Program(4, width)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x, y = program.buffer(width), program.buffer(width)
    program.norm(x, layer, y)
    x.copy_(noise(4, width) * 3 + 5)
    program.run(3)
    torch.testing.assert_close(y[:3], layer(x[:3]).detach(), rtol=1e-5, atol=1e-5)
    assert not y[3].any()


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.int8, 2e-2)])
@pytest.mark.parametrize("width", [7, 8, 16, 50, 64, 520])
def test_attention_over_a_long_memory(dtype: torch.dtype, tolerance: float, width: int) -> None:
    """Two sequences of 2 heads; rows of both see different parts, and one sees nothing."""
    heads, length = 2, 75
    keys, values = noise(2, length, heads, width), noise(2, length, heads, width, seed=1)
    memory = Memory.allocate(2, heads, width, 80, dtype)
    for s in range(2):
        spots = [(s, place, 0, 0) for place in range(length)]
        engine.write(memory, keys[s].flatten(1), values[s].flatten(1), spots)
    seen, queries = [(0, 0, 75), (1, 16, 40), (1, 0, 0), (0, 32, 1)], noise(4, heads, width, seed=2)
    places = Places(4)
    places.set([(s, -1, start, count) for s, start, count in seen])
    program = Program(4, heads * width, [places])
    q, out = program.buffer(heads * width), program.buffer(heads * width)
    program.attend(q, memory, 0, heads * width, out)
    q.copy_(queries.flatten(1))
    program.run(4)
    for row, (s, start, count) in enumerate(seen):
        k, v = (x[s, start : start + count].transpose(0, 1) for x in (keys, values))  # [N, M, H]
        wanted = (
            torch.zeros(heads, 1, width) if not count else F.scaled_dot_product_attention(queries[row][:, None], k, v)
        )
        torch.testing.assert_close(out[row].view(heads, 1, width), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_whole_numbers_neither_overflow_nor_vanish(sharpness: float) -> None:
    """1,500 places with equal values, whether all or one are looked at."""
    memory, width = Memory.allocate(1, 1, 64, 1500, torch.int8), 64
    keys, values = sharpness * noise(1500, width), torch.linspace(-1, 1, width).repeat(1500, 1)
    engine.write(memory, keys, values, [(0, place, 0, 0) for place in range(1500)])
    places = Places(1)
    places.set([(0, -1, 0, 1500)])
    program = Program(1, width, [places])
    q, out = program.buffer(width), program.buffer(width)
    program.attend(q, memory, 0, width, out)
    q.copy_(noise(1, width, seed=1))
    program.run(1)
    torch.testing.assert_close(out, values[:1], rtol=0, atol=0.01)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "rows",
    [
        [(0, 21, 0, 22), (1, 6, 0, 7), (2, 33, 16, 18)],  # each its own sequence: written on the way
        [
            (0, 40, 0, 22),
            (1, 3, 16, 10),
            (2, 5, 0, 0),
            (3, -1, 0, 30),
        ],  # unseen, nothing seen, nothing new
        [(0, 20, 0, 21), (0, 21, 0, 22), (1, 6, 0, 7)],  # the second sees what is new of the first
    ],
)
def test_what_is_new_is_remembered_first(
    dtype: torch.dtype, threads: int, rows: list[tuple[int, int, int, int]]
) -> None:
    """Bit by bit the same memory, and the same attention, as writing all of it before."""
    heads, width, sequences, length = 2, 24, 4, 45
    old = [noise(sequences * length, heads * width, seed=i) for i in (0, 1)]
    q, k, v = (noise(len(rows), heads * width, seed=i) for i in (2, 3, 4))
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    for on_the_way in (False, True):
        memory = Memory.allocate(sequences, heads, width, 48, dtype)
        engine.write(memory, *old, [(s, place, 0, 0) for s in range(sequences) for place in range(length)])
        if not on_the_way:
            engine.write(memory, k, v, rows)
        places = Places(len(rows))
        places.set(rows)
        program = Program(len(rows), heads * width, [places])
        out = program.buffer(heads * width)
        program.attend(q, memory, 0, heads * width, out, (k, v) if on_the_way else None)
        program.run(len(rows))
        found.append(
            [out, memory.keys, memory.values, *(x for x in (memory.key_scales, memory.value_scales) if x is not None)]
        )
    torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
    assert found[0][0].any()


def test_what_is_about_some_rows_leaves_the_others() -> None:
    places, weight = Places(5), plain_weight(noise(16, 16))
    program = Program(5, 16, [places])
    x, y = program.buffer(16), program.buffer(16)
    with program.only(0):
        program.linear(x, weight, y)
    program.linear(y, weight, x)
    x.copy_(noise(5, 16))
    wanted = noise(5, 16)[:2] @ noise(16, 16).T
    places.leading.fill_(2)
    program.run(5)
    torch.testing.assert_close(y[:2], wanted)
    assert not y[2:].any()
    torch.testing.assert_close(x[:2], wanted @ noise(16, 16).T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_compute_what_one_does(threads: int) -> None:
    before, found = torch.get_num_threads(), []
    for count in (1, threads):
        torch.set_num_threads(count)
        program = Program(3, 96)
        x, y, z = program.buffer(96), program.buffer(96), program.buffer(96)
        for i in range(20):
            program.norm(x, nn.LayerNorm(96), y)
            program.linear(y, plain_weight(noise(96, 96, seed=i)), z, first=(x, 1.0))
            x, z = z, x
        x.copy_(noise(3, 96))
        z.copy_(noise(3, 96))
        program.run(3)
        found.append(torch.cat([x, z]).clone())
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_programs_run_in_several_threads_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    x, matrix = noise(2, 64), noise(64, 64, seed=1)
    wanted, found = run_product(x, plain_weight(matrix)), []

    def work() -> None:
        found.extend(run_product(x, plain_weight(matrix)) for _ in range(50))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    assert len(found) == 150
    assert all(torch.equal(one, wanted) for one in found)


def test_a_forked_child_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    x, matrix = noise(2, 64), noise(64, 64, seed=1)
    wanted = run_product(x, plain_weight(matrix))
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(run_product(x, plain_weight(matrix)), wanted) else 1)
    torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    engine.library.cache_clear()
    monkeypatch.setenv("TUNESMITH_KERNELS", "off")
    assert engine.library() is None
    assert engine.instructions() is None
    assert not engine.use_instructions("plain")
    engine.library.cache_clear()


def test_what_is_special_about_a_layer_is_not_overlooked() -> None:
    from tunesmith.nn.linear import Linear

    plain, hooked = Linear(4, 4), Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert engine.weight_of(plain) is not None
    assert engine.weight_of(hooked) is None
    assert engine.weight_of(Linear(4, 4).half()) is None
    assert engine.weight_of(SimpleNamespace(engine_weight=lambda: 1)) is None
    assert engine.weight_of(type("Adapter", (Linear,), {})(4, 4)) is None


def test_torch_stands_aside_for_kernels_alone() -> None:
    """Kernels keep the threads that they had, also where they were limited, and torch gets its own back."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with engine.with_torch_aside():
            assert (torch.get_num_threads(), engine.threads()) == (1, 3)
        assert (torch.get_num_threads(), engine.threads()) == (3, 3)
        engine.limit_threads(2)
        with engine.with_torch_aside():
            assert (torch.get_num_threads(), engine.threads()) == (1, 2)
        assert (torch.get_num_threads(), engine.threads()) == (3, 2)
    finally:
        engine._HERE.threads = None
        torch.set_num_threads(before)


def exponential(*shape: int) -> Tensor:
    return torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(7))


def kept(logits: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Which codes may be chosen, [V, K]: each by the kernels with next to no noise of its own, and as torch says."""
    _, _, books, size = logits.shape
    noise = torch.where(torch.eye(size, dtype=torch.bool), 1e-30, 1.0)[:, None].expand(size, books, size)
    many = logits.expand(-1, size, -1, -1)
    codes = engine.choose(many, noise, sampler.guidance, sampler.temperature, sampler.top_k)
    return codes == torch.arange(size)[:, None], sampler.scores(logits)[0].isfinite().T


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("temperature", [0.5, 1, 1.3])
@pytest.mark.parametrize("guidance", [1, 3.0])
@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (1, 3, 2, 16), (2, 2, 4, 300), (2, 5, 4, 2048), (2, 1, 3, 2051)])
def test_codes_are_those_that_torch_chooses(shape: tuple[int, ...], guidance: float, temperature: float) -> None:
    logits = noise(*shape) * 2
    logits[..., 3] = -torch.inf
    if shape[0] == 2:
        logits[1, ..., 3] = 0.0  # where both are -inf, guidance is not finite
    by = exponential(*shape[1:])
    for k in (0, 1, 2, 250, shape[3] - 1, shape[3], 10**6):
        wanted = race(Sampler(temperature, k, guidance=guidance).scores(logits), by)
        assert torch.equal(engine.choose(logits, by, guidance, temperature, k), wanted), k


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("branches", [1, 2])
def test_what_is_kept_is_what_torch_keeps(branches: int, temperature: float) -> None:
    """To the bit: of numbers on a grid many tie, or would if they weren't rounded as torch rounds them."""
    logits = torch.randint(-40, 40, (branches, 1, 8, 299), generator=torch.Generator().manual_seed(1)) / 10
    logits[:, 0, 0, ::2] *= 0.0  # of either sign
    logits[0, 0, 1, 50:] = -torch.inf  # fewer than k are above it
    for k in (0, 1, 7, 40, 60, 80, 110, 150, 190, 240, 298, 299):
        found, wanted = kept(logits, Sampler(temperature, k))
        assert torch.equal(found, wanted), k


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 7, 36])
def test_a_row_that_is_not_finite_has_no_code(strange: float, place: int) -> None:
    logits, by = noise(1, 2, 3, 37), exponential(2, 3, 37)
    wanted = engine.choose(logits, by, 1.0, 1.0, 5)
    logits[0, 0, 1, place], logits[0, 1, 2] = strange, -torch.inf
    wanted[0, 1] = wanted[1, 2] = -1
    assert torch.equal(engine.choose(logits, by, 1.0, 1.0, 5), wanted)


@pytest.mark.usefixtures("instructions")
def test_the_first_of_equals_is_chosen() -> None:
    logits, by = torch.full((1, 1, 4, 50), -1.0), torch.ones(1, 4, 50)
    for book, places in enumerate(([0, 1], [17, 33, 40], [31, 32], [49])):
        logits[0, 0, book, places] = 2.0
    assert engine.choose(logits, by, 1.0, 1.0, 0).tolist() == [[0, 17, 31, 49]]


def test_codes_are_chosen_by_two_threads_as_by_one() -> None:
    """Also from views, and a song's alone."""
    rows, by = noise(4, 20, 2, 1000), exponential(20, 4, 1000)
    logits = rows.permute(2, 1, 0, 3)
    wanted = engine.choose(logits.contiguous(), by, 3.0, 1.0, 250)
    before = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        assert torch.equal(engine.choose(logits, by, 3.0, 1.0, 250), wanted)
    torch.set_num_threads(before)
    for song in (0, 13):
        alone = slice(song, song + 1)
        assert torch.equal(engine.choose(logits[:, alone], by[alone], 3.0, 1.0, 250), wanted[alone])
    wide = torch.stack([logits, -logits], -1)[..., 0]  # codes that don't lie side by side
    assert torch.equal(engine.choose(wide, by, 3.0, 1.0, 250), wanted)
