"""EnCodec against the reference tensors, against transformers' own on random shapes, and by itself."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tunesmith
from tunesmith.codecs import Codec
from tunesmith.codecs.encodec import PRESETS, EncodecConfig, EncodecModel, overlap_add
from tunesmith.errors import CheckpointError, RequestError

CASES = ("music_mono", "music_stereo", "causal24", "seg48")
TINY: dict[str, Any] = {
    "num_filters": 2,
    "hidden_size": 8,
    "codebook_size": 16,
    "upsampling_ratios": [4, 2],
    "sampling_rate": 1600,
    "target_bandwidths": [1.6, 3.2],
}
CHUNKED: dict[str, Any] = {
    "chunk_length_s": 0.05,
    "overlap": 0.1,
    "normalize": True,
    "norm_type": "time_group_norm",
    "audio_channels": 2,
    "use_causal_conv": False,
}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(**overrides: Any) -> EncodecModel:
    """A random codec whose codes vary: its books are spread as its latents are."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = EncodecModel(EncodecConfig(**{**TINY, **overrides})).eval()
        spread_codebooks(model)
    return model


@torch.no_grad()
def spread_codebooks(model: Any) -> None:
    """Books of vectors that occur, so that all sorts of codes are chosen (for both implementations)."""
    residual = model.encoder(0.3 * torch.randn(1, model.config.audio_channels, 2000)).transpose(1, 2).flatten(0, 1)
    for layer in model.quantizer.layers:
        book = residual[torch.randperm(len(residual))[: model.config.codebook_size]]
        layer.codebook.embed.copy_(book)
        layer.codebook.embed_avg.copy_(book)
        residual = residual - book[torch.cdist(residual, book).argmin(1)]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, goldens: Path) -> Path:
    return goldens / "musicgen" / "encodec" / request.param


class Golden:
    """One folder of reference tensors."""

    def __init__(self, folder: Path, model: str = "model") -> None:
        self.model = EncodecModel.from_pretrained(folder / model)
        self.io = load_file(folder / "io.safetensors")
        self.meta = json.loads((folder / "meta.json").read_text())

    def check(self) -> None:
        """Every run of the folder: codes equal, audio close."""
        for run in self.meta["runs"]:
            index = self.model.config.target_bandwidths.index(run["bandwidth"])
            self.check_run(run, f"in{run['input']}.audio", f"in{run['input']}.bw{index}")

    def check_run(self, run: dict[str, Any], audio: str, name: str) -> None:
        clip = self.io[audio]
        coded = self.model.encode(clip, bandwidth=run["bandwidth"])
        assert torch.equal(coded.audio_codes, self.io[f"{name}.codes"].long())
        assert coded.last_frame_pad_length == run["last_frame_pad_length"]
        assert len(coded.audio_scales) == run["nb_frames"]
        if f"{name}.scales" in self.io:
            close(torch.stack(coded.audio_scales), self.io[f"{name}.scales"])
        decoded = self.model.decode(
            coded.audio_codes, coded.audio_scales, last_frame_pad_length=coded.last_frame_pad_length
        )
        close(decoded.audio_values, self.io[f"{name}.decoded"])
        if f"{name}.forward_audio" in self.io:
            close(self.model(clip, bandwidth=run["bandwidth"]).audio_values, self.io[f"{name}.forward_audio"])


def test_goldens(case):
    Golden(case).check()


def test_goldens_folded(case):
    golden = Golden(case)
    golden.model.fold_weight_norm()
    golden.check()


def test_goldens_older_weight_norm_names(goldens):
    Golden(goldens / "musicgen" / "encodec" / "causal24", "model_legacy_names").check()


def test_goldens_latents(case):
    golden = Golden(case)
    model, io = golden.model, golden.io
    compared = 0
    for name in [n for n in io if n.endswith(".encoder_out")]:
        audio = io[name.replace("encoder_out", "audio")]
        close(model.encoder(audio), io[name])
        out = model.quantizer(model.encoder(audio))
        close(out.quantized, io[name.replace("encoder_out", "quantized_last_bw")])
        compared += 1
    if "in0.encoder_out_frame0" in io:
        last = io["in0.audio"][..., model.config.chunk_stride :]  # despite its name, the tensor is the last chunk's
        close(model.encoder(last / io["in0.bw0.scales"][-1][..., None]), io["in0.encoder_out_frame0"])
        compared += 1
    assert compared


@pytest.mark.parametrize("name", ["music_mono", "music_stereo", "causal24"])
def test_goldens_arbitrary_codes(name, goldens):
    golden = Golden(goldens / "musicgen" / "encodec" / name)
    codes = golden.io["rand.codes"].long()
    close(golden.model.decode(codes, [None]).audio_values, golden.io["rand.decoded"])
    close(golden.model.decode_codes(codes[0]), golden.io["rand.decoded"])


def test_goldens_ragged_clips_through_the_feature_extractor(case):
    golden = Golden(case)
    extractor = tunesmith.EncodecFeatureExtractor.from_pretrained(case / "model")
    clips = [golden.io[f"ragged.audio{i}"].squeeze(0).numpy() for i in range(len(golden.meta["ragged_lengths"]))]
    inputs = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    assert torch.equal(inputs["input_values"], golden.io["ragged.input_values"])
    assert torch.equal(inputs["padding_mask"].long(), golden.io["ragged.padding_mask"].long())
    bandwidth = golden.model.config.target_bandwidths[-1]
    coded = golden.model.encode(**inputs, bandwidth=bandwidth)
    assert torch.equal(coded.audio_codes, golden.io["ragged.codes"].long())
    if "ragged.scales" in golden.io:
        close(torch.stack(coded.audio_scales), golden.io["ragged.scales"])
    close(golden.model(**inputs, bandwidth=bandwidth).audio_values, golden.io["ragged.forward_audio"])


@pytest.mark.parametrize("name", ["music_mono", "music_stereo", "causal24"])
def test_goldens_with_two_codebooks(name, goldens):
    folder = goldens / "musicgen" / "encodec" / name
    model, io = EncodecModel.from_pretrained(folder / "model"), load_file(folder / "audiocraft_io.safetensors")
    audio = load_file(folder / "io.safetensors")["in0.audio"]
    assert torch.equal(model.quantizer.encode(model.encoder(audio), 2), io["two_codebooks.codes"])
    close(model.decode_codes(io["two_codebooks.codes"]), io["two_codebooks.decoded"])


def test_goldens_stereo_through_the_mono_codec(goldens):
    golden = Golden(goldens / "musicgen" / "encodec" / "music_mono")
    stereo = golden.io["interleave.audio"]
    left, right = (golden.model.encode_codes(stereo[:, i : i + 1]) for i in range(2))
    codes = torch.stack([left, right], dim=2).flatten(1, 2)  # left0, right0, left1, right1, ...
    assert torch.equal(codes, golden.io["interleave.codes"].long())


def test_saving_keeps_names_and_numbers(case, tmp_path):
    golden = Golden(case)
    golden.model.save_pretrained(tmp_path / "plain")
    source, saved = (load_file(folder / "model.safetensors") for folder in (case / "model", tmp_path / "plain"))
    assert source.keys() == saved.keys()
    assert all(torch.equal(source[k], saved[k]) for k in source)
    golden.model.fold_weight_norm()
    golden.model.save_pretrained(tmp_path / "folded")
    assert source.keys() == load_file(tmp_path / "folded" / "model.safetensors").keys()
    golden.model = EncodecModel.from_pretrained(tmp_path / "folded")
    golden.check()


def test_saving_renews_older_names(goldens, tmp_path):
    folder = goldens / "musicgen" / "encodec" / "causal24"
    EncodecModel.from_pretrained(folder / "model_legacy_names").save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / "model" / "model.safetensors").keys()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"audio_channels": 2, "use_causal_conv": False, "pad_mode": "constant", "codebook_size": 32},
        {"num_residual_layers": 3, "dilation_growth_rate": 3, "residual_kernel_size": 5, "use_conv_shortcut": False},
        {
            "trim_right_ratio": 0.4,
            "kernel_size": 3,
            "last_kernel_size": 5,
            "upsampling_ratios": [5, 3],
            "num_filters": 4,
        },
        {"compress": 1, "num_lstm_layers": 1, "upsampling_ratios": [2, 3, 5], "use_causal_conv": False},
        {"norm_type": "time_group_norm", "normalize": True, "pad_mode": "replicate"},
        CHUNKED,
        {**CHUNKED, "overlap": 0.4, "norm_type": "weight_norm", "audio_channels": 1, "use_causal_conv": True},
        {**CHUNKED, "normalize": False, "upsampling_ratios": [5, 2], "target_bandwidths": [0.7, 1.3, 2.0]},
    ],
)
def test_equal_to_transformers(overrides, tmp_path):
    settings = {**TINY, **overrides}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = transformers.EncodecModel(transformers.EncodecConfig(**settings)).eval()
        for module in theirs.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight.normal_(1, 0.2)
                module.bias.normal_(0, 0.2)
        spread_codebooks(theirs)
    theirs.save_pretrained(tmp_path)
    ours = EncodecModel.from_pretrained(tmp_path).fold_weight_norm()
    whole = 433 if ours.config.chunk_length is None else 5 * ours.config.chunk_stride + ours.config.chunk_length
    for length in (3, 80, whole):
        clip = torch.randn(2, ours.channels, length, generator=seeded(length)) * 0.3
        mask = torch.ones(2, length, dtype=torch.long)
        mask[1, : length // 3] = 0
        for bandwidth in [None, *ours.config.target_bandwidths]:
            expected, found = (model.encode(clip, mask, bandwidth) for model in (theirs, ours))
            assert torch.equal(found.audio_codes, expected.audio_codes)
            assert found.last_frame_pad_length == expected.last_frame_pad_length
            assert length < whole or found.audio_codes.unique().numel() > 3
            expected, found = (model(clip, mask, bandwidth) for model in (theirs, ours))
            close(found.audio_values, expected.audio_values)


@pytest.mark.parametrize("length", [147, 149, 152, 153, 200, 224, 225, 227])
def test_chunked_lengths_that_transformers_refuses(length):
    model = tiny(**CHUNKED)  # chunks of 80 samples every 72
    clip = torch.randn(1, 2, length, generator=seeded())
    coded = model.encode(clip)
    out = model(clip).audio_values
    assert out.shape == clip.shape
    assert out.isfinite().all()
    frames = [80 // 8] * (len(coded.audio_codes) - 1) + [80 // 8 - coded.last_frame_pad_length]
    covered = 72 * (len(frames) - 1) + 8 * frames[-1]
    assert length <= covered < length + 8


def test_chunks_without_overlap_lie_side_by_side():
    model = tiny(chunk_length_s=0.05)
    clip = torch.randn(1, 1, 200, generator=seeded())
    alone = torch.cat([model.encode(part).audio_codes[0] for part in clip.split(80, dim=-1)], dim=-1)
    coded = model.encode(clip)
    together = torch.cat(list(coded.audio_codes), dim=-1)[..., : alone.shape[-1]]
    assert torch.equal(together, alone)
    assert model(clip).audio_values.shape == clip.shape


def test_overlap_add_by_hand():
    joined = overlap_add([torch.tensor([[[1.0, 1, 1, 1]]]), torch.tensor([[[5.0, 5, 5]]])], 3)
    # Triangle of 4: 0.2 0.4 0.4 0.2; sample 3 has 0.2 of each.
    torch.testing.assert_close(joined, torch.tensor([[[1.0, 1, 1, 3, 5, 5]]]))


def test_the_codec_protocol():
    model = tiny()
    assert isinstance(model, Codec)
    assert (model.sample_rate, model.hop_length, model.frame_rate) == (1600, 8, 200.0)
    assert (model.channels, model.codebooks, model.cardinality) == (1, 4, 16)
    clip = torch.randn(2, 1, 100, generator=seeded())
    codes = model.encode_codes(clip)
    assert codes.shape == (2, 4, 13)
    assert torch.equal(codes, model.encode(clip, bandwidth=3.2).audio_codes[0])
    audio = model.decode_codes(codes)
    assert audio.shape == (2, 1, 104)
    assert torch.equal(audio, model.decode(codes[None], [None]).audio_values)
    assert torch.equal(model.decode(codes[None]).audio_values, audio)


def test_tuples_instead_of_outputs():
    model = tiny()
    clip = torch.randn(2, 1, 100, generator=seeded())
    codes, scales, filling = model.encode(clip, return_dict=False)
    assert (scales, filling) == ([None], 0)
    (audio,) = model.decode(codes, scales, return_dict=False)
    again, cut = model(clip, return_dict=False)
    assert torch.equal(again, codes)
    assert torch.equal(cut, audio[..., :100])
    assert torch.equal(model(clip, audio_codes=codes, audio_scales=scales).audio_values, cut)


def test_a_model_without_lstm():
    model = tiny(num_lstm_layers=0)
    assert not any("lstm" in name for name in model.state_dict())
    assert model(torch.randn(1, 1, 50, generator=seeded())).audio_values.shape == (1, 1, 50)


def test_training_reaches_every_parameter_and_lowers_the_error():
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = EncodecModel(EncodecConfig(**TINY)).train()
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        clip = torch.sin(torch.arange(800) * 0.3).view(1, 1, -1).repeat(4, 1, 1) * torch.tensor(
            [0.2, 0.4, 0.6, 0.8]
        ).view(-1, 1, 1)
        losses = []
        for _ in range(60):
            out = model.quantizer(model.encoder(clip), generator=seeded())
            error = (model.decoder(out.quantized) - clip).abs().mean()
            optimiser.zero_grad()
            (error + out.commitment).backward()
            optimiser.step()
            losses.append(error.item())
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        assert losses[-1] < 0.8 * losses[0]


def test_trained_codebooks_survive_saving(tmp_path):
    model = EncodecModel(EncodecConfig(**TINY)).train()
    model.quantizer(model.encoder(torch.randn(2, 1, 400, generator=seeded())), generator=seeded())
    model.save_pretrained(tmp_path)
    again = EncodecModel.from_pretrained(tmp_path)
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


def test_loading_is_float32_unless_asked(tmp_path):
    tiny().half().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["encoder.layers.0.conv.bias"].dtype == torch.float16
    assert EncodecModel.from_pretrained(tmp_path).dtype == torch.float32
    assert EncodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.pop("decoder.layers.0.conv.bias"), r"lacks decoder\.layers\.0\.conv\.bias\b"),
        (lambda state: state.update(stray=torch.zeros(1)), r"has unexpected stray\b"),
        (
            lambda state: state.update({"encoder.layers.0.conv.bias": torch.zeros(5)}),
            r"has misshapen encoder\.layers\.0\.conv\.bias \(\[5\] instead of \[2\]\)",
        ),
        (lambda state: [state.pop(k) for k in list(state) if k.startswith("encoder")], r"lacks encoder.* and \d+ more"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(spoil, said, tmp_path):
    tiny().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    spoil(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        EncodecModel.from_pretrained(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="incomplete"):
        EncodecModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.encode(torch.zeros(1, 2, 50)), r"shape \[1, 2, 50\]; this codec takes \[batch, 1, samples\]"),
        (lambda m: m.encode(torch.zeros(50)), r"shape \[50\]"),
        (lambda m: m.encode(torch.zeros(1, 1, 0)), "at least one sample"),
        (lambda m: m.encode_codes(torch.zeros(1, 3, 50)), r"shape \[1, 3, 50\]"),
        (lambda m: m.encode(torch.zeros(2, 1, 50), torch.ones(2, 49)), r"mask has the shape \[2, 49\].*\[2, 1, 50\]"),
        (lambda m: m.decode(torch.zeros(1, 1, 4, 9)), "whole numbers"),
        (lambda m: m.encode(torch.zeros(1, 1, 50), bandwidth=5.0), r"5\.0 kbit/s; choose from \[1\.6, 3\.2\]"),
        (lambda m: m.decode(torch.zeros(1, 1, 5, 9, dtype=torch.long)), "1 to 4 codebooks"),
        (lambda m: m.decode(torch.zeros(1, 1, 0, 9, dtype=torch.long)), "1 to 4 codebooks"),
        (lambda m: m.decode(torch.zeros(1, 1, 4, 0, dtype=torch.long)), "at least one step"),
        (lambda m: m.decode(torch.zeros(2, 1, 4, 9, dtype=torch.long)), r"takes \[1, batch, codebooks, steps\]"),
        (lambda m: m.decode(torch.zeros(1, 4, 9, dtype=torch.long)), r"shape \[1, 4, 9\]"),
        (lambda m: m.decode(torch.full((1, 1, 4, 9), 16)), "range from 16 to 16; this codec has 0 to 15"),
        (lambda m: m.decode_codes(torch.full((1, 4, 9), -1)), "range from -1 to -1"),
        (lambda m: m(torch.zeros(1, 1, 8), audio_codes=torch.zeros(1, 1, 4, 1).long()), "belong together"),
    ],
)
def test_bad_input_gets_a_sentence(call, said):
    with pytest.raises(RequestError, match=said):
        call(tiny())


def test_masks_silence_what_they_hide():
    model = tiny(audio_channels=2)
    clip = torch.randn(2, 2, 100, generator=seeded())
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[1, 60:] = 0
    expected = model.encode(clip * mask[:, None]).audio_codes
    for form in (mask, mask.bool(), mask[:, None].expand(2, 2, 100)):
        assert torch.equal(model.encode(clip, form).audio_codes, expected)
    assert not torch.equal(model.encode(clip).audio_codes, expected)
    assert model.decode(expected, padding_mask=mask[:, :70]).audio_values.shape == (2, 2, 70)


def test_folding_keeps_frozen_weights_frozen():
    model = tiny()
    model.encoder.requires_grad_(False)
    model.fold_weight_norm()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())


def test_codes_of_a_chunked_model_need_their_scales():
    with pytest.raises(RequestError, match="use `encode` and `decode`"):
        tiny(**CHUNKED).encode_codes(torch.zeros(1, 2, 100))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"codebook_dim": 4}, "both must be equal"),
        ({"codebook_size": 12}, "power of 2"),
        ({"target_bandwidths": [0.1]}, "doesn't pay for one codebook"),
        ({"norm_type": "batch_norm"}, "norm_type is 'batch_norm'"),
        ({"use_causal_conv": False, "trim_right_ratio": 0.5}, "only causal"),
    ],
)
def test_impossible_configurations_get_a_sentence(overrides, said):
    with pytest.raises(RequestError, match=said):
        EncodecModel(EncodecConfig(**{**TINY, **overrides}))


def test_config_equals_transformers():
    ours, theirs = EncodecConfig(), transformers.EncodecConfig()
    names = [k for k in theirs.to_dict() if k not in ("transformers_version",)]
    assert {k: ours.to_dict()[k] for k in names} == {k: theirs.to_dict()[k] for k in names}
    for settings in ({}, {"chunk_length_s": 1.0, "overlap": 0.01, "sampling_rate": 48_000}, {"codebook_size": 2048}):
        pair = EncodecConfig(**settings), transformers.EncodecConfig(**settings)
        for name in ("chunk_length", "chunk_stride", "hop_length", "codebook_nbits", "frame_rate", "num_quantizers"):
            assert getattr(pair[0], name) == getattr(pair[1], name)


@pytest.mark.parametrize(
    ("name", "books", "codes", "rate", "millions"),
    [
        ("encodec_32khz", 4, 2048, 50, 56.884674),
        ("encodec_16khz", 4, 2048, 50, 56.82),
        ("encodec_24khz", 32, 1024, 75, 14.85),
        ("encodec_48khz", 16, 1024, 150, 14.86),
    ],
)
def test_presets_have_the_published_sizes(name, books, codes, rate, millions):
    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**PRESETS[name]))
    assert (model.codebooks, model.cardinality, model.frame_rate) == (books, codes, rate)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
