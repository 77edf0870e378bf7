"""The Jukebox VQ-VAE against the reference tensors, and by itself: pieces, training, checkpoints, bad input."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tunesmith
from tunesmith.codecs import Codec
from tunesmith.codecs.vqvae import (
    PRESETS,
    JukeboxVQVAE,
    JukeboxVQVAEConfig,
    ReconstructionLoss,
    Stft,
    measure_bandwidth,
)
from tunesmith.errors import CheckpointError, RequestError

TINY: dict[str, Any] = {
    "sampling_rate": 2000,
    "levels": 3,
    "nb_discrete_codes": 16,
    "embed_dim": 4,
    "res_downs_t": [2, 1, 1],
    "res_strides_t": [2, 2, 4],
    "multipliers": [2, 1, 1],
    "res_conv_width": 4,
    "res_conv_depth": 2,
}
SETTINGS = ("commit", "spectral", "multispectral", "loss_fn", "linf_k", "lmix_l1", "lmix_l2", "lmix_linf", "bandwidth")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=seeded(seed))


@torch.no_grad()
def tiny(**overrides: Any) -> JukeboxVQVAE:
    """A random model whose codes vary: its codes are vectors that occur."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = JukeboxVQVAE(JukeboxVQVAEConfig(**{**TINY, **overrides})).eval()
        for encoder, book in zip(model.encoders, model.bottleneck.level_blocks, strict=True):
            rows = encoder(noise(1, model.config.conv_input_shape, 4096))[0].T
            book.codebook.copy_(rows[torch.randperm(len(rows))[: len(book.codebook)]])
    return model


def close(found: Tensor, wanted: Tensor, relative: float = 1e-4) -> None:
    """Within `relative` of the scale of the wanted values."""
    torch.testing.assert_close(found, wanted, atol=relative * wanted.abs().max().item(), rtol=0)


# --- the reference tensors


@pytest.fixture
def folder(goldens: Path) -> Path:
    return goldens / "jukebox" / "vqvae"


def reference(folder: Path, **overrides: Any) -> JukeboxVQVAE:
    hps = json.loads((folder / "hps.json").read_text())
    return JukeboxVQVAE.from_pretrained(folder / "hf", **{name: hps[name] for name in SETTINGS} | overrides)


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return load_file(folder / f"{name}.safetensors")


def scalars(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "scalars.json").read_text())


def test_codes_and_audio_are_the_originals(folder):
    model, audio, wanted = reference(folder), tensors(folder, "inputs")["audio"], tensors(folder, "outputs")
    for level, codes in enumerate(model.encode(audio)):
        close(model.encoders[level](audio.transpose(1, 2)), wanted[f"encoder_out_level{level}"])
        assert torch.equal(codes, wanted[f"codes_level{level}"])
        close(model.decode([codes], start_level=level), wanted[f"decoded_from_level{level}"])
        drawn = wanted[f"random_codes_level{level}"]
        close(model.decode([drawn], level, level + 1, bs_chunks=2), wanted[f"decoded_random_from_level{level}"])


def test_forward_gives_the_originals_reconstructions(folder):
    out, wanted = reference(folder)(tensors(folder, "inputs")["audio"]), tensors(folder, "outputs")
    close(out.recon, wanted["eval_forward_x_out"])
    for level, recon in enumerate(out.recons):
        close(recon, wanted[f"eval_forward_recon_level{level}"])


@pytest.mark.parametrize(
    ("case", "overrides"),
    [
        ("eval_forward", {}),
        ("eval_forward_relative_spectral", {"loss_fn": "l2", "use_nonrelative_specloss": False}),
        *((f"eval_forward_{kind}", {"loss_fn": kind}) for kind in ("l1", "l2", "linf", "lmix")),
    ],
)
def test_losses_and_metrics_are_the_originals(folder, case, overrides):
    out, wanted = reference(folder, **overrides)(tensors(folder, "inputs")["audio"]), scalars(folder)[case]
    assert out.loss.item() == pytest.approx(wanted["loss"], rel=1e-4)
    assert {name: value.item() for name, value in out.metrics.items()} == pytest.approx(wanted["metrics"], rel=1e-4)


@pytest.mark.parametrize("variant", ["no_restart", "restart", "init_from_batch"])
def test_codebooks_learn_as_the_originals(folder, variant):
    audio, states = tensors(folder, "inputs")["audio"], tensors(folder, "codebook_states")
    told = scalars(folder)["train_variants"][variant]
    model = reference(folder).train()
    for level, book in enumerate(model.bottleneck.level_blocks):
        book.threshold = told["threshold"][level]
        if variant == "init_from_batch":
            book.reset_parameters()
        else:
            assert torch.equal(book.codebook, states[f"{variant}.level{level}.k.before"])
            for name in ("k_sum", "k_elem"):
                getattr(book, name).copy_(states[f"{variant}.level{level}.{name}.before"])
    for step in told["steps"]:
        given = audio[:1] if variant == "init_from_batch" else audio
        with torch.no_grad():
            out = model(given, generator=seeded(step["rng_seed"]))
        found = {name: value.item() for name, value in out.metrics.items()}
        assert found == pytest.approx(step["metrics"], rel=1e-4)
        assert out.loss.item() == pytest.approx(step["loss"], rel=1e-4)
        after = f"after{step['step']}"
        if f"{variant}.x_out.{after}" in states:
            close(out.recon, states[f"{variant}.x_out.{after}"])
            for level, book in enumerate(model.bottleneck.level_blocks):
                for ours, theirs in (("codebook", "k"), ("k_sum", "k_sum"), ("k_elem", "k_elem")):
                    close(getattr(book, ours), states[f"{variant}.level{level}.{theirs}.{after}"], 1e-5)


def our_name(name: str) -> str:
    """The original's parameter name in our layout."""
    up = name.startswith("decoders")
    last = {0: 3, 1: 2, 2: 2}  # stages of the blocks; what follows them is the projection

    def layer(match: re.Match[str]) -> str:
        block, index = int(match[1]), int(match[2])
        if index == (0 if up else last[block]):
            return f"level_blocks.{block}.{'proj_in' if up else 'proj_out'}."
        return f"level_blocks.{block}.{f'upsample_block.{2 * index - 2}' if up else f'downsample_block.{2 * index}'}."

    def numbered(match: re.Match[str]) -> str:
        return f"{match[1]}.{int(match[2]) + int(match[3])}."

    name = re.sub(r"level_blocks\.(\d+)\.model\.(\d+)\.", layer, name)
    name = re.sub(r"((?:up|down)sample_block)\.(\d+)\.([01])\.", numbered, name)
    return re.sub(
        r"model\.(\d+)\.model\.([13])\.", lambda m: f"resnet_block.{m[1]}.conv1d_{1 if m[2] == '1' else 2}.", name
    )


def test_gradients_are_the_originals(folder):
    model = reference(folder).train()
    for book in model.bottleneck.level_blocks:
        book.threshold = 1e-9
        book.k_elem.fill_(1.0)
        book.k_sum.copy_(book.codebook)
    out = model(tensors(folder, "inputs")["audio"], generator=seeded())
    assert out.loss.item() == pytest.approx(scalars(folder)["gradient_loss"], rel=1e-4)
    out.loss.backward()
    wanted = json.loads((folder / "gradients.json").read_text())
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {our_name(name) for name in wanted} == set(found)
    for name, told in wanted.items():
        gradient = found[our_name(name)]
        assert gradient.norm().item() == pytest.approx(told["l2"], rel=1e-3)
        assert gradient.abs().mean().item() == pytest.approx(told["mean_abs"], rel=1e-3)
        scale = told["mean_abs"] * gradient.numel()
        assert gradient.sum().item() == pytest.approx(told["sum"], rel=1e-3, abs=1e-3 * scale)


@pytest.mark.parametrize("style", ["1b_lyrics_style", "5b_lyrics_style"])
def test_the_codec_of_a_whole_models_folder_loads_alone(goldens, style):
    folder = goldens / "jukebox" / "full_model" / style
    model = JukeboxVQVAE.from_pretrained(folder / "hf")
    given, wanted = tensors(folder, "inputs"), tensors(folder, "outputs")
    for level, codes in enumerate(model.encode(given["prompt_audio"])):
        assert torch.equal(codes, wanted[f"primed.encoded_prompt_level{level}"])
        sampled = wanted[f"ancestral.codes_level{level}"]
        close(model.decode([sampled], start_level=level), wanted[f"ancestral.audio_from_level{level}"])


# --- pieces


VARIANTS: list[dict[str, Any]] = [
    {},
    {"res_dilation_growth_rate": 2, "res_dilation_cycle": 1, "conv_input_shape": 2, "res_convolution_multiplier": 1.5},
    {
        "res_strides_t": [4, 2, 2],
        "reverse_decoder_dilation": False,
        "conv_res_scale": True,
        "res_dilation_growth_rate": 2,
        "multipliers": [1, 3, 1],
    },
]


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize(("samples", "piece"), [(333, 1), (64, 100), (1500, 100), (2048, 512), (2047, 512)])
def test_in_pieces_as_in_one(overrides, samples, piece):
    model = tiny(**overrides)
    audio = noise(2, samples, model.config.conv_input_shape)
    whole = model.encode(audio)
    drawn = [torch.randint(16, codes.shape, generator=seeded(3)) for codes in whole]
    sound = [model.decode([codes], level) for level, codes in enumerate(drawn)]
    model.chunk_samples = piece
    for level, codes in enumerate(model.encode(audio)):
        assert torch.equal(codes, whole[level])
        torch.testing.assert_close(model.decode([drawn[level]], level), sound[level], atol=1e-6, rtol=0)
    assert len(whole[0].unique()) > 4


def far(x: Tensor, middle: slice, reach: int) -> Tensor:
    """The same but for what lies `reach` or more steps from the middle."""
    assert reach < middle.start
    assert middle.stop + reach < x.shape[-1]
    y = x + 1
    near = slice(middle.start - reach, middle.stop + reach)
    y[..., near] = x[..., near]
    return y


@pytest.mark.parametrize("overrides", VARIANTS)
@torch.no_grad()
def test_what_lies_beyond_the_reach_is_not_heard_and_what_lies_within_is(overrides):
    model = tiny(**overrides).double()
    for level, hop in enumerate(model.hop_lengths):
        encoder, decoder = model.encoders[level], model.decoders[level]
        frame = encoder.reach // hop + 2
        x = torch.randn(1, model.config.conv_input_shape, 2 * (frame + 1) * hop, generator=seeded()).double()
        y = far(x, slice(frame * hop, (frame + 1) * hop), encoder.reach)
        assert torch.equal(encoder(x)[..., frame], encoder(y)[..., frame])
        y = far(x, slice(frame * hop, (frame + 1) * hop), encoder.reach // 2)
        assert not torch.equal(encoder(x)[..., frame], encoder(y)[..., frame])

        frame = decoder.reach + 2
        x = torch.randn(1, 4, 2 * frame + 1, generator=seeded()).double()
        inside = slice(frame * hop, (frame + 1) * hop)
        y = far(x, slice(frame, frame + 1), decoder.reach)
        assert torch.equal(decoder(x)[..., inside], decoder(y)[..., inside])
        y = far(x, slice(frame, frame + 1), decoder.reach // 2)
        assert not torch.equal(decoder(x)[..., inside], decoder(y)[..., inside])


def test_memory_does_not_grow_with_the_length():
    model = tiny()
    model.chunk_samples = 256
    longest = []
    for part in (*model.encoders, *model.decoders):
        part.register_forward_pre_hook(lambda _, given: longest.append(given[0].shape[-1]))
    codes = model.encode(noise(1, 20_000, 1))
    model.decode(codes)
    reach = max(encoder.reach for encoder in model.encoders)
    assert max(longest) <= 256 + 2 * reach + 2 * model.hop_lengths[-1] < 20_000


def test_the_batch_in_parts():
    model, audio = tiny(), noise(5, 300, 1)
    whole = model.encode(audio)
    for parts in (2, 5, 9):
        assert all(torch.equal(a, b) for a, b in zip(model.encode(audio, bs_chunks=parts), whole, strict=True))
        torch.testing.assert_close(model.decode(whole, bs_chunks=parts), model.decode(whole))


# --- what callers see


def test_lengths_and_levels():
    model = tiny()
    assert model.hop_lengths == [4, 8, 32]
    audio = noise(2, 1000, 1)
    codes = model.encode(audio)
    assert [tuple(z.shape) for z in codes] == [(2, 250), (2, 125), (2, 31)]
    assert all(z.dtype == torch.int64 for z in codes)
    assert torch.equal(model.encode(audio, 1, 2)[0], codes[1])
    assert len(model.encode(audio, start_level=1)) == 2
    assert model.decode(codes).shape == (2, 1000, 1)
    assert torch.equal(model.decode(codes), model.decode(codes[:1], 0, 1))
    assert torch.equal(model.decode(codes[2:], start_level=2), model.decode([codes[2]], 2, 3))
    assert not model.decode(codes).requires_grad


def test_hugging_faces_argument_names():
    model, audio = tiny(), noise(1, 2048, 1)
    codes = model.encode(input_audio=audio, start_level=1)
    assert torch.equal(codes[0], model.encode(audio)[1])
    assert torch.equal(model.decode(music_tokens=codes, start_level=1), model.decode(codes, 1))
    assert torch.equal(model(raw_audio=audio).recon, model(audio).recon)
    assert model.decode([torch.randint(16, (4, 1), generator=seeded())]).shape == (4, 4, 1)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_level_is_a_codec(index):
    model = tiny()
    level = model.level(index)
    assert isinstance(level, Codec)
    hop = model.hop_lengths[index]
    assert (level.codebooks, level.channels, level.cardinality, level.sample_rate) == (1, 1, 16, 2000)
    assert (level.hop_length, level.frame_rate) == (hop, 2000 / hop)
    audio = noise(2, 1, 333)
    codes = level.encode_codes(audio)
    assert codes.shape == (2, 1, -(-333 // hop))
    filled = torch.nn.functional.pad(audio, (0, -333 % hop)).transpose(1, 2)
    assert torch.equal(codes[:, 0], model.encode(filled, index, index + 1)[0])
    sound = level.decode_codes(codes)
    assert sound.shape == (2, 1, codes.shape[-1] * hop)
    assert torch.equal(sound.transpose(1, 2), model.decode([codes[:, 0]], index))


BAD = [
    (lambda m: m.encode(torch.zeros(1, 64, 2)), "Mix stereo down"),
    (lambda m: m.encode(torch.zeros(64, 1)), r"shape \[64, 1\]"),
    (lambda m: m.encode(torch.zeros(0, 64, 1)), r"shape \[0, 64, 1\]"),
    (lambda m: m.encode(torch.zeros(1, 64, 1, dtype=torch.int16)), "floating-point samples"),
    (lambda m: m.encode(torch.zeros(1, 0, 1)), "0 samples, which is less than one code"),
    (lambda m: m.encode(torch.zeros(1, 31, 1)), "give at least 32"),
    (lambda m: m.encode(torch.full((1, 64, 1), torch.nan)), "not a number"),
    (lambda m: m.encode(torch.full((1, 64, 1), torch.inf)), "infinite"),
    (lambda m: m.encode(torch.zeros(1, 64, 1), 2, 2), "no levels 2 to 2"),
    (lambda m: m.encode(torch.zeros(1, 64, 1), -1), "no levels -1 to 3"),
    (lambda m: m.encode(torch.zeros(1, 64, 1), 0, 4), "at most 3"),
    (lambda m: m.encode(torch.zeros(1, 64, 1), bs_chunks=0), "bs_chunks is 0"),
    (lambda m: m.decode([]), "codes of 0 levels where 1 are wanted"),
    (lambda m: m.decode([torch.zeros(1, 4).long()] * 2, 0, 3), "codes of 2 levels where 3"),
    (lambda m: m.decode([torch.zeros(1, 4).long()] * 3, 1), "codes of 3 levels where 2"),
    (lambda m: m.decode([torch.zeros(1, 4).long()], 3), "no levels 3 to 3"),
    (lambda m: m.decode([torch.zeros(1, 4)]), "whole numbers"),
    (lambda m: m.decode([torch.zeros(4).long()]), r"shape \[4\]"),
    (lambda m: m.decode([torch.zeros(1, 0).long()]), "at least one step"),
    (lambda m: m.decode([torch.full((1, 4), 16)]), "range from 16 to 16; this codec has 0 to 15"),
    (lambda m: m.decode([torch.full((1, 4), -1)]), "range from -1 to -1"),
    (lambda m: m(torch.zeros(1, 2049, 1)), "a multiple of 32, for example 2048"),
    (lambda m: m(torch.zeros(1, 1024, 1)), "give more than 1024"),
    (lambda m: m(torch.zeros(1, 2048, 1), bandwidth={"l1": 1.0, "l2": 0.0, "spec": 1.0}), "needs numbers above 0"),
    (lambda m: m(torch.full((1, 2048, 1), torch.nan)), "not a number"),
    (lambda m: m.level(3), "no level 3; this model has 0"),
    (lambda m: m.level(0).decode_codes(torch.zeros(1, 2, 4).long()), r"takes \[batch, 1, steps\]"),
]


@pytest.mark.parametrize(("call", "said"), BAD)
def test_bad_input_gets_a_sentence(call, said):
    with pytest.raises(RequestError, match=said):
        call(tiny())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"levels": 2}, "levels is 2, but"),
        ({"levels": 0, "res_downs_t": [], "res_strides_t": [], "multipliers": []}, "levels is 0"),
        ({"res_strides_t": [2, 3, 2]}, "strides are even"),
        ({"res_downs_t": [2, 0, 1]}, "res_downs_t is"),
        ({"loss_fn": "l3"}, "choose from l1, l2, linf, lmix"),
        ({"act_fn": "gelu"}, "'relu' alone"),
        ({"lmu": 1.0}, "lmu is 1.0; it lies between"),
        ({"lmu": "x"}, "lmu is 'x'"),
        ({"revival_threshold": 0.0}, "revival_threshold is 0.0; it must be a number above 0"),
        ({"nb_discrete_codes": 0}, "nb_discrete_codes is 0; it must be a whole number from 1 on"),
        ({"embed_dim": -4}, "embed_dim is -4"),
        ({"res_conv_width": 1.5}, "res_conv_width is 1.5"),
        ({"res_conv_width": 1, "res_convolution_multiplier": 0.5}, "leaves no width"),
        ({"res_convolution_multiplier": math.nan}, "res_convolution_multiplier is nan"),
        ({"res_dilation_cycle": 0}, "res_dilation_cycle is 0; it must be a whole number from 1 on, or None"),
        ({"multipliers": [1, 0, 1]}, r"multipliers is \[1, 0, 1\]; it must be a list of whole numbers"),
        ({"commit": -0.1}, "commit is -0.1; it must be a number from 0 on"),
        ({"multispec_loss_n_fft": [2048]}, "an entry a spectrogram"),
        ({"multispec_loss_window_size": [4096, 600, 240]}, "no window is longer than its n_fft"),
    ],
)
def test_impossible_configurations_get_a_sentence(overrides, said):
    with pytest.raises(RequestError, match=said):
        JukeboxVQVAE(JukeboxVQVAEConfig(**{**TINY, **overrides}))


@pytest.mark.parametrize(
    ("name", "hops", "codes", "parameters"),
    [
        ("vqvae", [8, 32, 128], 2048, 1_485_763),
        ("small_vqvae", [32, 256], 1024, 586_050),
        ("DEFAULTS", [2, 4], 512, None),
    ],
)
def test_presets_have_the_published_sizes(name, hops, codes, parameters):
    with torch.device("meta"):
        model = JukeboxVQVAE(JukeboxVQVAEConfig(**PRESETS[name]))
    assert (model.hop_lengths, model.level(0).cardinality) == (hops, codes)
    if parameters:
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_released_models_parts_have_the_published_sizes():
    with torch.device("meta"):
        model = JukeboxVQVAE(JukeboxVQVAEConfig())
    sizes = [
        [sum(p.numel() for p in part.parameters()) for part in parts] for parts in (model.encoders, model.decoders)
    ]
    assert sizes == [[441_856, 116_384, 168_224], [458_177, 124_641, 176_481]]


def test_public_names():
    assert tunesmith.JukeboxVQVAE is JukeboxVQVAE
    assert tunesmith.JukeboxVQVAEConfig is JukeboxVQVAEConfig


# --- checkpoints


def test_saving_and_loading_keeps_everything(tmp_path):
    model = tiny(bandwidth={"l1": 0.5, "l2": 0.25, "spec": 3.0}).train()
    model(noise(1, 2048, 1), generator=seeded())
    model.save_pretrained(tmp_path)
    loaded = JukeboxVQVAE.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert loaded.config.bandwidth == {"l1": 0.5, "l2": 0.25, "spec": 3.0}
    assert loaded.bottleneck.book(0).k_elem.any()


def edited(tmp_path: Path, edit: Any) -> Path:
    tiny().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(edit(state), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_checkpoints_without_statistics_load(tmp_path):
    kept = edited(tmp_path, lambda state: {k: v for k, v in state.items() if not k.endswith(("k_sum", "k_elem"))})
    model = JukeboxVQVAE.from_pretrained(kept)
    assert torch.equal(model.bottleneck.book(1).codebook, tiny().bottleneck.book(1).codebook)
    assert not model.bottleneck.book(1).k_elem.any()
    assert not model.bottleneck.book(1).k_sum.any()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "bottleneck.level_blocks.0.codebook"}, "lacks .*0.codebook"),
        (lambda s: {k: v for k, v in s.items() if k != "decoders.1.out.bias"}, "lacks decoders.1.out.bias"),
        (lambda s: s | {"decoders.7.out.bias": torch.zeros(1)}, "unexpected decoders.7.out.bias"),
        (lambda s: s | {"decoders.1.out.bias": torch.zeros(2)}, r"misshapen decoders.1.out.bias \(\[2\] instead"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(tmp_path, edit, said):
    with pytest.raises(CheckpointError, match=said):
        JukeboxVQVAE.from_pretrained(edited(tmp_path, edit))


def test_the_order_of_loading_does_not_need_transformers():
    model, fresh = tiny(), JukeboxVQVAE(JukeboxVQVAEConfig(**TINY))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval().encode(noise(1, 500, 1))[0], model.encode(noise(1, 500, 1))[0])


def test_zero_out_begins_with_blocks_that_add_nothing():
    model = JukeboxVQVAE(JukeboxVQVAEConfig(**TINY, zero_out=True))
    stack, x = model.encoders[0].level_blocks[0].downsample_block[1], noise(1, 8, 40)
    assert torch.equal(stack(x), x)


# --- training


def test_evaluation_changes_nothing():
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = model(noise(2, 2048, 1)).metrics
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "usage" not in metrics


def test_training_makes_the_loss_small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JukeboxVQVAE(
            JukeboxVQVAEConfig(
                **{
                    **TINY,
                    "levels": 1,
                    "res_downs_t": [1],
                    "res_strides_t": [2],
                    "multipliers": [1],
                    "revival_threshold": 0.01,
                }
            )
        ).train()
    time = torch.arange(2048) / 2000
    audio = torch.stack([(2 * torch.pi * pitch * time).sin() for pitch in (60, 90)])[:, :, None]
    model.config.bandwidth = measure_bandwidth([audio])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    seen = []
    for step in range(60):
        out = model(audio, generator=seeded(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        seen.append(out)
    first, last = (sum(out.loss.item() for out in part) / 5 for part in (seen[:5], seen[-5:]))
    assert last < 0.6 * first
    assert seen[-1].metrics["spectral_convergence"] < 0.7 * seen[0].metrics["spectral_convergence"]
    assert all(not value.requires_grad for value in out.metrics.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_first_batch_gives_the_first_codes():
    model = JukeboxVQVAE(JukeboxVQVAEConfig(**TINY)).train()
    model(noise(2, 2048, 1), generator=seeded(4))
    again = JukeboxVQVAE(model.config).train()
    again.load_state_dict({k: v for k, v in model.state_dict().items() if "bottleneck" not in k}, strict=False)
    again(noise(2, 2048, 1), generator=seeded(4))
    for one, other in zip(model.bottleneck.level_blocks, again.bottleneck.level_blocks, strict=True):
        assert torch.equal(one.codebook, other.codebook)
        assert len(one.codebook.unique(dim=0)) == 16


def test_silence_has_finite_gradients():
    model = tiny(spectral=1.0).train()
    audio = torch.zeros(1, 2048, 1)
    out = model(audio, generator=seeded())
    out.loss.backward()
    assert out.metrics["spectral_convergence"] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())
    measure = ReconstructionLoss(model.config, {"l1": 1.0, "l2": 1.0, "spec": 1.0})
    same = noise(1, 2048, 1).requires_grad_()
    terms = measure(same.detach(), same)
    assert all(value == 0 for value in terms.values())
    (terms["spectral"] + terms["multispectral"]).backward()
    assert same.grad.isfinite().all()


def test_half_precision_regions_keep_codebooks_and_losses_in_float32():
    model, audio = tiny().train(), noise(2, 2048, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(audio, generator=seeded())
    out.loss.backward()
    assert out.recon.dtype == out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    assert all(book.codebook.dtype == torch.float32 for book in model.bottleneck.level_blocks)


def test_the_losses_by_hand():
    config = JukeboxVQVAEConfig(linf_k=2, lmix_l1=1.0, lmix_l2=10.0, lmix_linf=100.0)
    target, recon = torch.zeros(1, 2048, 1), torch.zeros(1, 2048, 1)
    recon[0, :3, 0] = torch.tensor([1.0, -2.0, 3.0])
    terms = ReconstructionLoss(config, {"l1": 2.0, "l2": 4.0, "spec": 1.0})(target, recon)
    l1, l2, linf = 6 / 2048 / 2, 14 / 2048 / 4, 13 / 2 / 4
    assert [terms[name].item() for name in ("l1", "l2", "linf")] == pytest.approx([l1, l2, linf])
    assert terms["lmix"].item() == pytest.approx(l1 + 10 * l2 + 100 * linf)
    assert Stft(8, 2, 4).magnitudes(torch.ones(2, 16, 1)).shape == (2, 5, 9)


def test_bandwidth():
    clips = [torch.full((1, 2048, 2), 0.5), -0.5 * torch.ones(3, 2048, 2)]
    measured = measure_bandwidth(clips)
    assert measured["l1"] == pytest.approx(0.5)
    assert measured["l2"] == pytest.approx(0.25 - 0.25**2)
    frame = torch.fft.rfft(torch.nn.functional.pad(0.5 * torch.hann_window(1536), (256, 256))).abs()
    assert measured["spec"] == pytest.approx(9**0.5 * frame.norm().item(), rel=1e-5)  # nine equal frames
    model, audio = tiny(), noise(1, 2048, 1)
    loud = {"l1": 2.0, "l2": 4.0, "spec": 5.0}
    plain, scaled = model(audio).metrics, model(audio, bandwidth=loud).metrics
    assert scaled["l1_loss"] == pytest.approx(plain["l1_loss"].item() / 2)
    assert scaled["recons_loss"] == pytest.approx(plain["recons_loss"].item() / 4)
    assert scaled["multispectral_loss"] == pytest.approx(plain["multispectral_loss"].item() / 5)
    model.config.bandwidth = loud
    assert model(audio).metrics == scaled
    for bad, said in (([], "no sound"), ([torch.zeros(1, 2048, 1)], "no sound"), ([noise(1, 99, 1)], "more than 1024")):
        with pytest.raises(RequestError, match=said):
            measure_bandwidth(bad)
