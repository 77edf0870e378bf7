"""Every attention pattern against the mask that defines it: whole sequences, pieces through caches, gradients."""

import pytest
import torch
from torch import Tensor

from tunesmith.nn import factored
from tunesmith.nn.cache import PieceCache, Room, SpotCache
from tunesmith.nn.factored import (
    CROSS,
    PREVIOUS_ROW,
    FactoredStack,
    Factoring,
    LayerStyle,
    Pattern,
    Projection,
    attend_masked,
    attention_kinds,
    attention_weights,
    make_pattern,
)

# Rows of 4 and 6 with a prefix that ends within a row, and rows that are longer than there are.
CUTS = [
    Factoring(length=24, blocks=6, prime=7, spread=2),
    Factoring(length=24, blocks=4, prime=3, spread=2),
    Factoring(length=24, blocks=2, prime=2, spread=3),
]
LENGTHS = [24, 17, 3, 1]
PIECES = [1, 3, 2, 5, 1, 4]
SELF = [kind for kind in range(8) if kind != CROSS]


def triple(length: int, memory: int | None = None, heads: int = 3, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    lengths = (length, memory or length, memory or length)
    q, k, v = (torch.randn(2, heads, n, width, generator=generator, requires_grad=True) for n in lengths)
    return q, k, v


def run_pieces(pattern: Pattern, cache: PieceCache, q: Tensor, k: Tensor, v: Tensor, pieces: list[int]) -> Tensor:
    outputs, position, length, row = [], 0, q.shape[2], pattern.cut.row
    while position < length:
        count = min(pieces[len(outputs) % len(pieces)], length - position, row - position % row)
        now = slice(position, position + count)
        outputs.append(pattern.look(q[:, :, now], cache.update(k[:, :, now], v[:, :, now], position)))
        position += count
    return torch.cat(outputs, 2)


# ------------------------------------------------------------------------------------------- definitions


def grid(kind: int, cut: Factoring) -> list[str]:
    places = torch.arange(cut.length)
    return ["".join(".x"[int(seen)] for seen in row) for row in make_pattern(kind, cut).visible(places, places)]


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (0, ["x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx"]),
        (1, ["x.....", "xx....", "..x...", "..xx..", "....x.", "....xx"]),
        (2, ["x.....", ".x....", "x.x...", ".x.x..", "x.x.x.", ".x.x.x"]),
        (3, ["......", "......", "xx....", "xx....", "..xx..", "..xx.."]),
        (4, ["......", ".x....", ".x....", ".x.x..", ".x.x..", ".x.x.."]),
        (5, ["x.....", "xx....", "xxx...", "xxxx..", "xxxx..", "xxxx.."]),
        (6, ["xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx", "xxxxxx"]),
        (7, ["x.....", "xx....", "xxx...", "xxx...", "xxx...", "xxx..."]),  # P = (1 // 3 + 1) · 3
    ],
)
def test_who_sees_whom(kind: int, rows: list[str]) -> None:
    assert grid(kind, Factoring(length=6, blocks=3, prime=1, spread=2)) == rows


def test_reach_of_the_released_lyric_prefix() -> None:
    """384 lyric tokens in 64 rows: 64 positions of music can be seen too."""
    pattern = make_pattern(factored.PRIME, Factoring(length=6528, blocks=64, prime=384))
    assert isinstance(pattern, factored.Prime)
    assert (pattern.cut.row, pattern.reach) == (102, 448)


@pytest.mark.parametrize(
    ("order", "first"),
    [
        (0, [0] * 8),
        (1, [1, 2] * 4),
        (2, [1, 2, 3, 1, 2, 3, 1, 2]),
        (3, [1, 4] * 4),
        (4, [1, 5] * 4),
        (5, [1, 4, 1, 1] * 2),
        (6, [1, 2, 3, 6] * 2),
        (7, [1, 2, 3] * 5 + [6, 1, 2, 3]),
        (8, [1, 2, 3] * 3 + [6, 1, 2, 3]),
        (9, [1, 2, 3, 0] * 2),
        (10, [1, 2, 3] * 6 + [6, 1, 2, 3]),
        (11, [1, 2, 3] * 5 + [6, 2, 3, 1]),
        (12, [1, 2, 3] * 5 + [7, 2, 3, 1]),
    ],
)
def test_orders(order: int, first: list[int]) -> None:
    assert attention_kinds(order, len(first)) == first


def test_orders_of_the_released_lyric_models() -> None:
    large, small = attention_kinds(10, 79), attention_kinds(12, 72)
    assert [i for i, kind in enumerate(large) if kind == 6] == [18, 28, 38, 48, 58, 68, 78]
    assert [large.count(kind) for kind in (1, 2, 3)] == [24, 24, 24]
    assert {i: kind for i, kind in enumerate(small) if kind not in (1, 2, 3)} == {15: 7, 31: 7, 47: 0, 63: 7}
    assert [small.count(kind) for kind in (1, 2, 3)] == [22, 23, 23]
    assert attention_kinds(11, 64)[15::16] == [6, 6, 0, 6]


# ---------------------------------------------------------------------------- fast versions and the mask


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", range(8))
def test_whole_equals_masked(kind: int, cut: Factoring) -> None:
    pattern = make_pattern(kind, cut)
    for length in LENGTHS:
        inputs = triple(length, memory=5 if kind == CROSS else None)
        found, wanted = pattern.attend(*inputs), attend_masked(pattern, *inputs)
        torch.testing.assert_close(found, wanted)
        weight = torch.randn_like(found)
        gradients = (torch.autograd.grad((x * weight).sum(), inputs) for x in (found, wanted))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("pieces", [[1], PIECES, [100]], ids=["singly", "mixed", "rows"])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", SELF)
@torch.no_grad()
def test_cached_equals_masked(kind: int, cut: Factoring, pieces: list[int]) -> None:
    pattern = make_pattern(kind, cut)
    for length in LENGTHS:
        inputs = triple(length)
        found = run_pieces(pattern, pattern.cache(Room(2, 3, 5), length), *inputs, pieces)
        torch.testing.assert_close(found, attend_masked(pattern, *inputs))


@pytest.mark.parametrize("known", [0, 1, 5, 12])
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", SELF)
@torch.no_grad()
def test_steps_whose_place_the_device_alone_knows_equal_masked(kind: int, cut: Factoring, known: int) -> None:
    """Some positions in pieces, the others by spots; the memory is larger than it need be, and never replaced."""
    pattern, inputs = make_pattern(kind, cut), triple(21)
    cache, wanted = pattern.cache(Room(2, 3, 5), 24), attend_masked(pattern, *inputs)
    q, k, v = inputs
    if known:
        run_pieces(pattern, cache, *(x[:, :, :known] for x in inputs), [100])
    shapes = set()
    for position in range(known, 21):
        spot = pattern.spot(torch.tensor([position]), 24, 22, torch.float32)
        now = slice(position, position + 1)
        view = SpotCache(cache, spot).update(k[:, :, now], v[:, :, now], torch.tensor([position]))
        shapes.add((view.keys.shape, spot.mask.shape))
        torch.testing.assert_close(pattern.look(q[:, :, now], view), wanted[:, :, now])
    assert len(shapes) == 1


def test_the_first_row_has_no_row_before() -> None:
    pattern = make_pattern(PREVIOUS_ROW, CUTS[0])
    assert (pattern.attend(*triple(24))[:, :, :4] == 0).all()
    assert (attention_weights(pattern, *triple(24)[:2])[:, :, :4] == 0).all()


@pytest.mark.parametrize("width", [150, 480])
@pytest.mark.parametrize("kind", SELF)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_released_head_widths_in_half_precision(kind: int, dtype: torch.dtype, width: int) -> None:
    pattern, inputs = make_pattern(kind, CUTS[0]), [x.to(dtype) for x in triple(24, heads=1, width=width)]
    wanted = attend_masked(pattern, *(x.float() for x in inputs))
    cache = pattern.cache(Room(2, 1, width, dtype), 24)
    for found in (pattern.attend(*inputs), run_pieces(pattern, cache, *inputs, PIECES)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, atol=2e-2, rtol=2e-2)


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize(
    ("kind", "places"), [(0, 20), (1, 4), (2, 20), (3, 8), (4, 7), (5, 13), (7, 13)], ids=lambda x: str(x)
)
def test_caches_are_small(kind: int, places: int) -> None:
    """For 20 positions in rows of 4: dense and column need all of them, others a part (and a place for the rest)."""
    cache = make_pattern(kind, CUTS[0]).cache(Room(2, 3, 5), 20)
    stored = [value for value in vars(cache).values() if isinstance(value, Tensor)]
    assert [x.numel() for x in stored] == [2 * 3 * 5 * places] * 2


@pytest.mark.parametrize("kind", SELF)
def test_caches_stay_where_they_are(kind: int) -> None:
    """What a step shows lies in the memory that was allocated at the start."""
    cache = make_pattern(kind, CUTS[0]).cache(Room(1, 2, 5), 24)
    inside = {x.untyped_storage().data_ptr() for x in vars(cache).values() if isinstance(x, Tensor)}
    for position in range(24):
        view = cache.update(*torch.randn(2, 1, 2, 1, 5), position)
        assert {view.keys.untyped_storage().data_ptr(), view.values.untyped_storage().data_ptr()} == inside


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_pieces_stay_within_a_row(kind: int) -> None:
    cache = make_pattern(kind, CUTS[0]).cache(Room(1, 2, 5), 24)
    with pytest.raises(AssertionError, match="within a row"):
        cache.update(*torch.randn(2, 1, 2, 3, 5), 2)


# ------------------------------------------------------------------------------------------------- layers


def stack(order: int, layers: int, **changes: float | bool) -> FactoredStack:
    torch.manual_seed(0)
    style = LayerStyle(
        width=8, heads=2, attention_width=4, ffn_width=12, activation=torch.relu, deviation=0.5, **changes
    )
    made = FactoredStack(style, attention_kinds(order, layers), CUTS[0]).eval()
    for part in made.modules():
        if isinstance(part, Projection):
            part.reset_parameters()
    return made


@pytest.mark.parametrize("order", range(13))
@torch.no_grad()
def test_stack_in_steps_equals_whole(order: int) -> None:
    made = stack(order, 16)
    for layer in made.layers:
        torch.nn.init.normal_(layer.attn.c_proj.weight)  # cross layers begin as the identity, which proves nothing
    x, memory = torch.randn(2, 24, 8), torch.randn(2, 5, 8)
    caches = made.caches(Room(2, 2, 2), 24)
    steps = [made(x[:, p : p + 1], memory, caches, p) for p in range(24)]
    torch.testing.assert_close(torch.cat(steps, 1), made(x, memory), atol=1e-4, rtol=1e-4)


def test_cross_layers_begin_as_the_identity() -> None:
    x, memory = torch.randn(2, 24, 8), torch.randn(2, 5, 8)
    layers = stack(6, 4).layers
    assert torch.equal(layers[3](x, memory), x)
    assert not torch.equal(layers[0](x), x)
    assert torch.equal(stack(2, 3, zero_out=True)(x), x)


def test_residual_scale_weighs_what_a_layer_adds() -> None:
    plain, scaled = stack(0, 1).layers[0], stack(0, 1, residual_scale=0.25).layers[0]
    x = torch.randn(2, 24, 8)
    torch.testing.assert_close(scaled(x) - x, 0.25 * (plain(x) - x))


def test_fewer_layers() -> None:
    made, x = stack(2, 4), torch.randn(2, 24, 8)
    torch.testing.assert_close(made(x, layers=2), made.layers[1](made.layers[0](x)))
    assert torch.equal(made(x, layers=0), x)


def test_norms_stay_in_float32() -> None:
    half = stack(2, 3).to(torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    assert {kinds[name] for name in kinds if "layer_norm" in name} == {torch.float32}
    assert {kinds[name] for name in kinds if "layer_norm" not in name} == {torch.bfloat16}
    assert half(torch.randn(2, 24, 8)).dtype == torch.float32
    assert half.double().layers[0].layer_norm_0.weight.dtype == torch.float64


def test_dropouts_act_in_training_alone() -> None:
    x = torch.randn(2, 24, 8)
    for name in ("attention_dropout", "residual_dropout"):
        made = stack(2, 3, **{name: 0.5})
        assert torch.equal(made(x), made(x))
        made.train()
        assert not torch.equal(made(x), made(x))


def test_projection_is_stored_input_first() -> None:
    layer = Projection(3, 5, deviation=1.0)
    layer.reset_parameters()
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(layer(x), x @ layer.weight + layer.bias)
    assert layer.weight.shape == (3, 5)
