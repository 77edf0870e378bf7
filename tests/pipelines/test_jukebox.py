"""The whole Jukebox: configurations, parts on disk, the modes of sampling, codes to audio, errors in sentences."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny_jukebox import (
    CODES,
    HOPS,
    RATE,
    WINDOW,
    save_tiny_jukebox,
    tiny_config,
    tiny_jukebox,
    tiny_labels,
    tiny_prompt,
)
from tunesmith import machine
from tunesmith.audio import Clip
from tunesmith.codecs.vqvae import JukeboxVQVAE, JukeboxVQVAEConfig
from tunesmith.errors import CheckpointError, IncompatiblePartsError, RequestError
from tunesmith.models.jukebox import PRESETS, JukeboxPrior, JukeboxPriorConfig
from tunesmith.models.jukebox_config import SHARED
from tunesmith.pipelines.jukebox import JukeboxConfig, JukeboxModel
from tunesmith.pipelines.levels import Options

LENGTH = 96
Codes = list[Tensor]


@pytest.fixture(scope="module")
def model() -> JukeboxModel:
    return tiny_jukebox()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_jukebox(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def codes(model: JukeboxModel) -> Codes:
    return model.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1)


def same(codes: Codes, others: Codes) -> bool:
    return all(map(torch.equal, codes, others))


def lengths(codes: Codes) -> list[int]:
    return [level.shape[1] for level in codes]


def is_on_disk(module: torch.nn.Module) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


# ------------------------------------------------------------------------------------------------------- configurations


def test_the_default_is_the_released_model() -> None:
    config = JukeboxConfig()
    assert [prior.hidden_size for prior in config.prior_configs] == [2048, 1920, 1920]
    assert [prior.level for prior in config.prior_configs] == [0, 1, 2]
    assert (config.sampling_rate, config.nb_priors, config.hop_fraction) == (44_100, 3, [0.125, 0.5, 0.5])
    assert config.to_dict() == JukeboxConfig.preset("1b_lyrics").to_dict()
    assert JukeboxConfig.preset("5b_lyrics").prior_configs[0].blocks == 128
    with pytest.raises(RequestError, match="no preset '2b'; known are 5b"):
        JukeboxConfig.preset("2b")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nb_priors": 0}, "nb_priors is 0; it must be a whole number from 1 on"),
        ({"vqvae_config": 3}, "vqvae_config is 3; it must be"),
        ({"prior_config_list": [1, 2, 3]}, "a list of JukeboxPriorConfigs or dictionaries"),
        ({"hop_fraction": 0.5}, "hop_fraction is 0.5; it must be a list of numbers above 0 to 1"),
        ({"hop_fraction": [0.5, 0, 0.5]}, "hop_fraction is"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        JukeboxConfig(**{**tiny_config().to_dict(), **changes})


def test_config_from_configs() -> None:
    codec = JukeboxVQVAEConfig(embed_dim=32, sampling_rate=22_050)
    priors = [PRESETS["prior_5b"](), PRESETS["upsampler_level_1"](), PRESETS["upsampler_level_0"]()]
    config = JukeboxConfig.from_configs(priors, codec, min_duration=3, hop_fraction=[0.25, 0.5, 0.5])
    assert config.vqvae_config.to_dict() == codec.to_dict()
    assert [prior.min_duration for prior in config.prior_configs] == [3, 3, 3]
    assert (config.min_duration, config.hop_fraction) == (3, [0.25, 0.5, 0.5])
    assert config.prior_configs[0].hidden_size == 4800
    assert priors[0].min_duration == 60  # the given ones stay as they are


def test_config_there_and_back(tmp_path: Path) -> None:
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "jukebox"
    assert [prior["level"] for prior in saved["prior_config_list"]] == [0, 1, 2]
    assert JukeboxConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert JukeboxConfig.from_pretrained(tmp_path, min_duration=0).prior_configs[0].min_duration == 0
    assert JukeboxPriorConfig.from_pretrained(tmp_path, level=1).to_dict() == config.prior_configs[1].to_dict()


def test_config_as_the_hub_has_it(tmp_path: Path) -> None:
    """Numbered priors, which say nothing of what they share, and only what differs from the defaults."""
    whole = tiny_config().to_dict()
    priors = whole.pop("prior_config_list")
    for i, prior in enumerate(priors):
        whole[f"prior_{i}"] = {name: value for name, value in prior.items() if name not in SHARED}
    whole["prior_1"]["max_nb_genres"] = 5
    whole["vqvae_config"].pop("sampling_rate")
    whole["transformers_version"] = "4.26.0"
    (tmp_path / "config.json").write_text(json.dumps(whole))
    config = JukeboxConfig.from_pretrained(tmp_path)
    assert [prior.max_nb_genres for prior in config.prior_configs] == [1, 5, 1]
    assert [prior.min_duration for prior in config.prior_configs] == [0.02] * 3
    assert config.vqvae_config.sampling_rate == RATE
    assert config.prior_configs[0].to_dict() == tiny_config().prior_configs[0].to_dict()


def test_the_hubs_wrong_settings_are_put_right(tmp_path: Path) -> None:
    whole = JukeboxConfig.preset("5b_lyrics").to_dict()
    for i, prior in enumerate(whole.pop("prior_config_list")):
        whole[f"prior_{i}"] = {**prior, "blocks": 64, "max_nb_genres": 1, "mask": False}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"transformers_version": "4.24.0"}))
    config = JukeboxConfig.from_pretrained(tmp_path, min_duration=0)
    assert [(prior.blocks, prior.max_nb_genres) for prior in config.prior_configs] == [(128, 5)] * 3
    assert config.prior_configs[0].min_duration == 0  # what the call says rules


def test_priors_of_another_number() -> None:
    config = JukeboxConfig(nb_priors=2, vqvae_config={"levels": 2, "res_downs_t": [5, 3]}, prior_1={"n_ctx": 64})
    assert (len(config.prior_configs), config.hop_fraction) == (1, [0.125])
    assert JukeboxConfig(nb_priors=2).nb_priors == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"nb_discrete_codes": CODES + 1}, f"VQ-VAE has {CODES + 1} codes a level and the prior of level 0 {CODES}"),
        ({"res_strides_t": [4, 2, 2]}, "prior of level 0 has res_downs_t"),
        (
            {"levels": 2, "res_downs_t": [1, 1], "res_strides_t": [2, 2], "multipliers": [1, 1]},
            "2 levels and there are 3",
        ),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], sentence: str) -> None:
    config = tiny_config()
    config.vqvae_config.update(changes)
    with pytest.raises(IncompatiblePartsError, match=sentence):
        JukeboxModel(config)


# -------------------------------------------------------------------------------------------------- loading and saving


def test_there_and_back_in_shards(model: JukeboxModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = JukeboxModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    for prior in loaded.priors:
        assert prior.prior.fc_proj_out.weight is prior.prior.embed_tokens.weight


def test_names_of_tensors_are_hugging_faces(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.split(".")[0] for name in names} == {"vqvae", "priors"}
    assert "vqvae.bottleneck.level_blocks.0.codebook" in names
    assert "priors.0.encoder.proj_in.weight" in names
    assert "priors.2.conditioner_blocks.upsampler.proj_in.weight" in names


def test_parts_load_alone(folder: Path, model: JukeboxModel) -> None:
    prior = JukeboxPrior.from_pretrained(folder, level=2)
    expected = model.priors[2].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in prior.state_dict().items())


@pytest.mark.parametrize("one_prior_at_a_time", [False, True])
@pytest.mark.parametrize(
    ("name", "verb"), [("priors.1.prior.pos_emb.pos_emb", "lacks"), ("priors.1.surplus", "unexpected")]
)
def test_a_misfitting_checkpoint_is_refused_by_name(
    folder: Path, tmp_path: Path, name: str, verb: str, one_prior_at_a_time: bool
) -> None:
    tensors = load_file(folder / "model.safetensors")
    if tensors.pop(name, None) is None:
        tensors[name] = torch.zeros(2)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=name):
        JukeboxModel.from_pretrained(tmp_path, one_prior_at_a_time=one_prior_at_a_time)


class Malice:
    def __reduce__(self) -> Any:
        return pytest.fail, ("code in a checkpoint was run",)


@pytest.mark.parametrize("kind", [JukeboxModel, JukeboxPrior, JukeboxVQVAE])
def test_code_in_weights_is_refused(kind: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    torch.save({"vqvae.decoders.0.out.bias": Malice()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="aren't plain tensors; no code in them was run"):
        kind.from_pretrained(tmp_path)


def test_one_prior_in_memory_at_a_time(folder: Path, codes: Codes, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[JukeboxPrior]] = []
    read = JukeboxModel._read_prior

    def watched(self: JukeboxModel, *args: Any) -> JukeboxPrior:
        assert not any(earlier() for earlier in loaded), "the one before is still there"
        prior = read(self, *args)
        loaded.append(weakref.ref(prior))
        return prior

    monkeypatch.setattr(JukeboxModel, "_read_prior", watched)
    model = JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True)
    assert model.hf_device_map == {"vqvae": "cpu", "priors.0": "disk", "priors.1": "disk", "priors.2": "disk"}
    assert same(model.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1), codes)
    assert len(loaded) == 3
    assert all(map(is_on_disk, model.priors))
    assert torch.equal(model.decode(codes), tiny_jukebox().decode(codes))


def test_priors_stay_on_disk_where_memory_is_short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(parameter.numel() for parameter in tiny_jukebox().parameters())
    for free, short in ((5.1 * weights, False), (4.9 * weights, True), (None, False)):
        monkeypatch.setattr(machine, "free_memory", lambda _, free=free: free)
        assert is_on_disk(JukeboxModel.from_pretrained(folder).priors[0]) == short
    monkeypatch.setattr(machine, "free_memory", lambda _: 2.6 * weights)
    assert not is_on_disk(JukeboxModel.from_pretrained(folder, dtype=torch.bfloat16).priors[0])


@pytest.mark.parametrize(
    ("device_map", "on_disk"),
    [
        ("cpu", []),
        ("auto", []),
        (torch.device("cpu"), []),
        ({"": "cpu"}, []),
        ("disk", [0, 1, 2]),
        ({"": "disk"}, [0, 1, 2]),
        ({"vqvae": "cpu", "priors.0": "cpu", "priors.1": "disk", "priors.2": "disk"}, [1, 2]),
        ({"vqvae": "cpu", "priors.0.prior": "disk", "priors.0.encoder": "cpu", "priors": "cpu"}, [0]),
        ({"": "cpu", "priors": "disk", "priors.2": "cpu"}, [0, 1]),
    ],
)
def test_device_map(folder: Path, device_map: Any, on_disk: list[int]) -> None:
    model = JukeboxModel.from_pretrained(folder, device_map=device_map)
    assert [level for level, prior in enumerate(model.priors) if is_on_disk(prior)] == on_disk
    assert model.device.type == "cpu"


def test_a_device_map_over_cpu_and_disk_samples(folder: Path, codes: Codes) -> None:
    places = {"vqvae": "cpu", "priors.0": "cpu", "priors.1": "disk", "priors.2": "disk"}
    model = JukeboxModel.from_pretrained(folder, device_map=places)
    assert same(model.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1), codes)


def test_settings_and_places_reach_parts_on_disk(folder: Path) -> None:
    options: dict[str, Any] = {"one_prior_at_a_time": True, "min_duration": 0, "subfolder": folder.name}
    model = JukeboxModel.from_pretrained(folder.parent, **options)
    with model.open_prior(0) as prior:
        assert prior.config.min_duration == 0
        assert torch.equal(prior.prior.pos_emb.pos_emb, tiny_jukebox().priors[0].prior.pos_emb.pos_emb)


def test_a_device_map_of_another_kind(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"device_map is \[1\]; give a device, 'auto', 'disk' or a dictionary"):
        JukeboxModel.from_pretrained(folder, device_map=[1])


def test_what_is_on_disk_can_be_saved(folder: Path, model: JukeboxModel, tmp_path: Path) -> None:
    JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True).save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = JukeboxModel.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_layers(folder: Path, dtype: torch.dtype) -> None:
    stored = JukeboxModel.from_pretrained(folder, dtype=dtype)
    assert stored.dtype == dtype
    assert {parameter.dtype for parameter in stored.vqvae.parameters()} == {torch.float32}
    assert stored.priors[0].prior.embed_tokens.weight.dtype == torch.float32
    cast = tiny_jukebox().to(dtype)
    apart = JukeboxModel.from_pretrained(folder, dtype=dtype, one_prior_at_a_time=True)
    assert apart.dtype == cast.dtype == dtype
    assert JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True).to(dtype).dtype == dtype
    assert {parameter.dtype for parameter in cast.vqvae.parameters()} == {torch.float32}
    samples = [m.ancestral_sample(tiny_labels(), sample_length=64, seeds=1) for m in (stored, cast, apart)]
    assert same(samples[0], samples[1])
    assert same(samples[0], samples[2])


def test_fp16_is_for_the_call(folder: Path, model: JukeboxModel, codes: Codes) -> None:
    half = JukeboxModel.from_pretrained(folder, dtype=torch.float16)
    expected = half.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1)
    assert same(model.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1, fp16=True), expected)
    apart = JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True)
    assert same(apart.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1, fp16=True), expected)
    assert model.dtype == torch.float32
    assert same(model.ancestral_sample(tiny_labels(), sample_length=LENGTH, seeds=1), codes)
    with model.open_prior(1, fp16=True) as twin:
        assert twin.prior.transformer.dtype == torch.float16
        assert twin.prior.embed_tokens.weight.data_ptr() == model.priors[1].prior.embed_tokens.weight.data_ptr()


# ---------------------------------------------------------------------------------------------------- modes of sampling


@pytest.mark.parametrize("joined", [False, True])
def test_all_modes(joined: bool) -> None:
    model, labels = tiny_jukebox(joined), tiny_labels(["la la la", "oh"])
    options: dict[str, Any] = {"sample_length": LENGTH, "seeds": [1, 2]}
    codes = model.ancestral_sample(labels, **options)
    assert lengths(codes) == [LENGTH // hop for hop in HOPS]
    assert all(len(level) == 2 and int(level.max()) < CODES for level in codes)
    primed = model.primed_sample(tiny_prompt(2), labels, **options)
    for level, prompt in zip(primed, model.encode(tiny_prompt(2)), strict=True):
        assert torch.equal(level[:, : prompt.shape[1]], prompt)
    assert lengths(primed) == lengths(codes)
    longer = model.continue_sample(codes, labels, sample_length=LENGTH + 32, seeds=3)
    assert all(torch.equal(level[:, : old.shape[1]], old) for level, old in zip(longer, codes, strict=True))
    assert lengths(longer) == [(LENGTH + 32) // hop for hop in HOPS]
    assert same(model.upsample(codes[:1], labels, seeds=[1, 2]), codes)


def test_levels_one_by_one(model: JukeboxModel, codes: Codes) -> None:
    top = model.ancestral_sample(tiny_labels(), sample_levels=[0], sample_length=LENGTH, seeds=1)
    assert lengths(top) == [LENGTH // HOPS[0], 0, 0]
    middle = model.upsample(top, tiny_labels(), sample_levels=[1], seeds=1)
    assert lengths(middle) == [LENGTH // HOPS[0], LENGTH // HOPS[1], 0]
    assert same(model.upsample(middle, tiny_labels(), sample_levels=[2], seeds=1), codes)
    assert model.decode(top).shape == model.decode(codes).shape == (1, LENGTH, 1)


def test_continuing_from_the_top_alone(model: JukeboxModel, codes: Codes) -> None:
    longer = model.continue_sample(codes[:1], tiny_labels(), sample_length=LENGTH + 32, seeds=3)
    assert lengths(longer) == [(LENGTH + 32) // hop for hop in HOPS]
    assert torch.equal(longer[0][:, : codes[0].shape[1]], codes[0])


def test_one_prompt_or_one_row_of_labels_stands_for_all(model: JukeboxModel) -> None:
    options: dict[str, Any] = {"sample_length": LENGTH, "seeds": [1, 2]}
    whole = model.primed_sample(tiny_prompt().expand(2, -1, -1), tiny_labels(["la la", "la la"]), **options)
    assert same(model.primed_sample(tiny_prompt(), tiny_labels("la la"), n_samples=2, **options), whole)
    assert same(model.primed_sample(tiny_prompt(), tiny_labels(["la la", "la la"]), **options), whole)
    assert same(model.primed_sample([tiny_prompt()[0]] * 2, tiny_labels("la la"), **options), whole)
    start = model.encode_prompt(tiny_prompt())
    assert same(model.continue_sample(start, tiny_labels("la la"), n_samples=2, **options), whole)


def test_prompts_may_be_arrays(model: JukeboxModel) -> None:
    prompt, options = tiny_prompt(2), {"sample_length": LENGTH, "seeds": [1, 2]}
    codes = model.primed_sample(prompt, tiny_labels("la la"), **options)
    for array in (prompt.numpy(), prompt.double().numpy(), list(prompt.numpy()), [prompt[0], prompt[1].numpy()]):
        assert same(model.primed_sample(array, tiny_labels("la la"), **options), codes)
    with pytest.raises(RequestError, match=r"type torch\.int64"):
        model.primed_sample(np.zeros((1, 64, 1), np.int64), tiny_labels(), sample_length=LENGTH)


def test_prompts_are_cut_to_whole_codes_and_coded_one_by_one(
    model: JukeboxModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    encode = type(model.vqvae).encode
    monkeypatch.setattr(
        type(model.vqvae), "encode", lambda self, audio, *rest: batches.append(len(audio)) or encode(self, audio, *rest)
    )
    codes = model.encode_prompt(tiny_prompt(3, 61))
    assert lengths(codes) == [7, 14, 28]
    assert batches == [1, 1, 1]
    assert same(codes, model.encode(tiny_prompt(3, 61)[:, :56]))


def test_a_prompt_shorter_than_a_window(model: JukeboxModel) -> None:
    codes = model.primed_sample(tiny_prompt(samples=HOPS[0] * 2), tiny_labels(), sample_length=LENGTH, seeds=1)
    assert WINDOW > 2
    assert lengths(codes) == [LENGTH // hop for hop in HOPS]


def test_a_song_longer_than_the_sample(model: JukeboxModel) -> None:
    short = {"sample_length": LENGTH, "seeds": 1, "temperature": 0}
    codes = [model.ancestral_sample(tiny_labels(), [1][0], **short, total_length=t)[0] for t in (LENGTH, 9000)]
    assert not torch.equal(*codes)


def test_a_model_without_labels_needs_none() -> None:
    config = tiny_config(
        nb_relevant_lyric_tokens=0, encoder_config=None, attention_pattern="raw_column_previous_row_attention"
    )
    config = JukeboxConfig.from_configs(config.prior_configs, config.vqvae_config, metadata_conditioning=False)
    torch.manual_seed(0)
    codes = JukeboxModel(config).eval().ancestral_sample(n_samples=2, sample_length=LENGTH, seeds=1)
    assert [level.shape for level in codes] == [(2, LENGTH // hop) for hop in HOPS]


# --------------------------------------------------------------------------------------------- encode and decode, names


def test_lists_are_top_first(model: JukeboxModel) -> None:
    audio = tiny_prompt(2)
    codes = model.encode(audio)
    assert lengths(codes) == [64 // hop for hop in HOPS]
    assert same(codes, model.vqvae.encode(audio)[::-1])
    assert same(model.encode(audio, start_level=2), codes[:1])
    assert same(model.encode(audio, 0, 2, bs_chunks=2), codes[1:])


def test_decode_hears_the_finest_level(model: JukeboxModel) -> None:
    codes = model.encode(tiny_prompt(2))
    each = [model.vqvae.decode([level], n, n + 1) for level, n in zip(codes, (2, 1, 0), strict=True)]
    assert torch.equal(model.decode(codes), each[2])
    assert torch.equal(model.decode(codes[:2]), each[1])
    assert torch.equal(model.decode(codes[:1]), each[0])
    assert torch.equal(model.decode([codes[0], codes[1][:, :0], codes[2][:, :0]]), each[0])
    assert all(torch.equal(model.decode(codes, start_level=n), each[2 - n]) for n in range(3))
    assert torch.equal(model.decode(codes[:1], start_level=2), each[0])
    assert torch.equal(model.decode(codes[1:2], start_level=1), each[1])
    torch.testing.assert_close(model.decode(codes[1:], end_level=2, bs_chunks=2), each[2])


def test_names_of_transformers(model: JukeboxModel, codes: Codes) -> None:
    labels, audio = tiny_labels(), tiny_prompt()
    empty = [torch.zeros(1, 0, dtype=torch.long)] * 3
    by_name = {"sample_length_in_seconds": LENGTH / RATE, "lower_batch_size": 4, "max_batch_size": 2, "offset": 0}
    for temperature in ("sampling_temperature", "temp"):
        found = model._sample(empty, labels, [0, 1, 2], seeds=1, **by_name, **{temperature: 0.99})
        assert same(found, codes)
    assert same(model._sample(empty, labels, [0, 1, 2], None, seeds=1, **by_name, compute_alignments=False), codes)
    assert same(model.upsample(music_tokens=codes[:1], labels=labels, seeds=1), codes)
    longer: dict[str, Any] = {"labels": labels, "sample_length": LENGTH + 8, "seeds": 1}
    assert same(model.continue_sample(music_tokens=codes, **longer), model.continue_sample(codes, **longer))
    primed: dict[str, Any] = {"labels": labels, "sample_length": LENGTH, "seeds": 1}
    assert same(model.primed_sample(raw_audio=audio, **primed), model.primed_sample(audio, **primed))
    assert torch.equal(model.decode(music_tokens=codes), model.decode(codes))
    assert same(model.encode(input_audio=audio), model.encode(audio))


def test_save_results(model: JukeboxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model.ancestral_sample(tiny_labels(["la", "oh"]), sample_length=LENGTH, seeds=1, save_results=True)
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.wav"))
    assert files == [f"jukebox/level_{level}/item_{i}.wav" for level in range(3) for i in range(2)]
    clip = Clip.read(files[0])
    assert (clip.rate, clip.samples.shape) == (RATE, (1, LENGTH))


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        (torch.zeros(1, 2, 64), r"shape \[1, 2, 64\].*takes \[batch, samples, 1\]"),
        (torch.zeros(1, 64, 2), r"shape \[1, 64, 2\].*Mix stereo down"),
        (torch.zeros(1, 64), r"shape \[1, 64\]"),
        (torch.full((1, 64, 1), float("nan")), "infinite or not a number"),
        (torch.zeros(1, 0, 1), "0 samples, which is less than one code"),
        (torch.zeros(0, 64, 1), r"shape \[0, 64, 1\]"),
        (torch.zeros(1, 64, 1, dtype=torch.long), "type torch.int64"),
        (torch.zeros(1, HOPS[0] - 1, 1), "7 samples, which is less than one code of the top level"),
        (torch.zeros(1, LENGTH, 1), "The prompt has 96 samples and the result is to have 96, which count it"),
        ([torch.zeros(64, 1), torch.zeros(32, 1)], "different shapes"),
        ([], "there are none"),
        (None, r"Give audio \(which transformers called raw_audio\)"),
    ],
)
def test_prompts_that_cannot_be_continued(model: JukeboxModel, audio: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.primed_sample(audio, tiny_labels(), sample_length=LENGTH)


def test_silence_can_be_continued(model: JukeboxModel) -> None:
    codes = model.primed_sample(torch.zeros(1, 64, 1), tiny_labels(), sample_length=LENGTH, seeds=1)
    assert lengths(codes) == [LENGTH // hop for hop in HOPS]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"compute_alignments": True}, "tunesmith align"),
        ({"metadata": [1]}, "calls it labels"),
        ({"fp16": "yes"}, "fp16 is 'yes'"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"beams": 3}, "doesn't know the argument 'beams'"),
    ],
)
def test_arguments_that_are_refused(model: JukeboxModel, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.ancestral_sample(tiny_labels(), sample_length=LENGTH, **options)


@pytest.mark.parametrize(
    ("codes", "sentence"),
    [
        ([], "list of 1 to 3 tensors"),
        ([torch.zeros(1, 0, dtype=torch.long)] * 4, "list of 1 to 3"),
        ([[[1, 2]]], "list of 1 to 3 tensors"),
        (None, "Give codes"),
    ],
)
def test_codes_that_are_refused(model: JukeboxModel, codes: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.continue_sample(codes, tiny_labels(), sample_length=LENGTH)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.decode("abc"), "a list of 1 to 3 tensors"),
        (lambda m: m.decode([np.zeros((1, 4), np.int64)]), "a list of 1 to 3 tensors"),
        (lambda m: m.upsample([torch.tensor(3)], tiny_labels()), "a list of 1 to 3 tensors"),
    ],
)
def test_values_of_other_types_get_a_sentence(model: JukeboxModel, call: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        call(model)


def test_places_and_types_that_do_not_exist(folder: Path) -> None:
    for options, sentence in (
        ({"device_map": "moon"}, "device_map is 'moon'; give a device"),
        ({"device_map": {"": "moon", "priors": "disk"}}, "device_map is 'moon'"),
        ({"device_map": "disk", "dtype": "foo"}, "no dtype 'foo' for models; use float32"),
        ({"device_map": "disk", "dtype": torch.int8}, "no dtype 'int8'"),
    ):
        with pytest.raises(RequestError, match=sentence):
            JukeboxModel.from_pretrained(folder, **options)


def test_nothing_to_decode(model: JukeboxModel, codes: Codes) -> None:
    for given in ([], [codes[0][:, :0]], [*codes, codes[0]]):
        with pytest.raises(RequestError, match=r"levels with codes in a list of|a list of 1 to 3 tensors"):
            model.decode(given)
    with pytest.raises(RequestError, match=r"start_level is 3; these codes have levels 0 \(the finest\) to 2"):
        model.decode(codes, start_level=3)


def test_options_are_checked_before_any_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = JukeboxModel.from_pretrained(folder, one_prior_at_a_time=True)
    monkeypatch.setattr(JukeboxModel, "_read_prior", lambda *_: pytest.fail("a prior was loaded"))
    monkeypatch.setattr(JukeboxModel, "encode", lambda *_: pytest.fail("the prompt was encoded"))
    wrong = tiny_labels()
    wrong[2][0, 3] = 99
    with pytest.raises(RequestError, match="artists from 99 to 99"):
        model.primed_sample(tiny_prompt(), wrong, sample_length=LENGTH)
    assert Options(fp16=True).fp16
