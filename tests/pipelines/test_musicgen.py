"""The whole MusicGen: parts, precision, prompts, and generation that equals transformers' where that is right."""

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tiny import CODES, SAMPLING_RATE, save_tiny_folder, tiny_config, tiny_musicgen, tiny_processor
from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.errors import CheckpointError, IncompatiblePartsError, RequestError
from tunesmith.models.musicgen import PRESETS, MusicgenDecoderConfig, MusicgenForCausalLM
from tunesmith.nn.pretrained import bundled
from tunesmith.pipelines.musicgen import MusicgenConfig, MusicgenForConditionalGeneration

PROMPTS = ["happy rock", "slow funk track with piano, 90 bpm"]


@pytest.fixture(scope="module")
def model() -> MusicgenForConditionalGeneration:
    return tiny_musicgen()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_folder(tmp_path_factory.mktemp("tiny"))


def text(*prompts: str) -> dict[str, Tensor]:
    return dict(tiny_processor()(text=list(prompts or PROMPTS), padding=True, return_tensors="pt"))


def audio(batch: int = 2, channels: int = 1, samples: int = 400) -> Tensor:
    return torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(4)) * 0.3


def codes_of(model: MusicgenForConditionalGeneration, **kwargs: Any) -> Tensor:
    """The codes that `generate` hands to the codec."""
    seen: list[Tensor] = []
    decode = model.audio_encoder.decode
    model.audio_encoder.decode = lambda codes, **kw: seen.append(codes) or decode(codes, **kw)
    try:
        model.generate(**kwargs)
    finally:
        del model.audio_encoder.decode
    return torch.stack(seen, 3).flatten(2, 3)[0]


# -------------------------------------------------------------------------------------- as transformers


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers.logging.set_verbosity_error()
    return transformers.MusicgenForConditionalGeneration.from_pretrained(folder)


SETTINGS: list[dict[str, Any]] = [
    {"guidance_scale": None, "top_k": None},
    {"do_sample": False},
    {"do_sample": False, "guidance_scale": 1.0},
    {},
    {"guidance_scale": 1.0},
    {"top_k": 5, "temperature": 0.7},
    {"top_k": 0, "top_p": 0.8},
    {"top_k": 12, "top_p": 0.7},
    {"max_new_tokens": 5},  # too short for the delay
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_global_seed_gives_the_same_audio(model: Any, theirs: Any, settings: dict[str, Any]) -> None:
    results = []
    for each in (model, theirs):
        torch.manual_seed(3)
        results.append(each.generate(**text(), **{"max_new_tokens": 20} | settings))
    torch.testing.assert_close(*results)


def test_the_same_global_seed_continues_alike(model: Any, theirs: Any) -> None:
    results = []
    for each in (model, theirs):
        torch.manual_seed(3)
        results.append(each.generate(**text(), input_values=audio(), max_new_tokens=12))
    torch.testing.assert_close(*results)


def test_checkpoints_are_read_by_transformers(model: Any, theirs: Any) -> None:
    ids = torch.randint(0, CODES, (8, 6))
    torch.testing.assert_close(
        model(**text(), decoder_input_ids=ids).logits, theirs(**text(), decoder_input_ids=ids).logits
    )


# -------------------------------------------------------------------------------------- where others are wrong


def test_labels_on_a_fresh_model_need_no_setting(model: Any) -> None:
    labels = torch.randint(0, CODES, (2, 6, 4))
    assert model(**text(), labels=labels).loss.isfinite()


def test_several_sequences_a_prompt(model: Any) -> None:
    both = codes_of(model, **text(), num_return_sequences=2, do_sample=False, max_new_tokens=10)
    once = codes_of(model, **text(), do_sample=False, max_new_tokens=10)
    assert torch.equal(both, once.repeat_interleave(2, 0))
    shape = model.generate(**text(), num_return_sequences=2, max_new_tokens=10).shape
    assert shape == (4, 1, 7 * 40)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_encoder_outputs_with_guidance(model: Any, as_tuple: bool) -> None:
    inputs = text()
    states = model.text_encoder(**inputs).last_hidden_state
    outputs = (states,) if as_tuple else BaseModelOutput(last_hidden_state=states)
    kwargs: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10, "guidance_scale": 3.0}
    given = codes_of(model, encoder_outputs=outputs, attention_mask=inputs["attention_mask"], **kwargs)
    assert torch.equal(given, codes_of(model, **inputs, **kwargs))


def test_negative_prompts(model: Any) -> None:
    negative = text("sad music with no drums", "loud")
    kwargs: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10}
    inputs = {
        "negative_prompt_ids": negative["input_ids"],
        "negative_prompt_attention_mask": negative["attention_mask"],
    }
    steered = codes_of(model, **text(), **inputs, **kwargs)
    assert not torch.equal(steered, codes_of(model, **text(), **kwargs))
    unguided = codes_of(model, **text(), **kwargs, guidance_scale=1.0)
    same = {"negative_prompt_ids": text()["input_ids"], "negative_prompt_attention_mask": text()["attention_mask"]}
    assert torch.equal(codes_of(model, **text(), **same, **kwargs), unguided)


# -------------------------------------------------------------------------------------- generation


def test_padded_text_does_not_matter(model: Any) -> None:
    kwargs: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10}
    together = codes_of(model, **text(), **kwargs)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(codes_of(model, **text(prompt), **kwargs)[0], together[i])
    unmasked = codes_of(model, **text(), **kwargs, mask_text=False)
    assert torch.equal(unmasked[1], together[1])
    assert not torch.equal(unmasked[0], together[0])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_seeds_do_not_depend_on_the_batch(model: Any, batch: int) -> None:
    prompts = [PROMPTS[i % 2] + " loud" * (i % 3) for i in range(batch)]
    together = codes_of(model, **text(*prompts), max_new_tokens=9, seeds=list(range(batch)))
    for i, prompt in enumerate(prompts):
        assert torch.equal(codes_of(model, **text(prompt), max_new_tokens=9, seeds=[i])[0], together[i])


def test_no_inputs_at_all(model: Any) -> None:
    nothing = codes_of(model, do_sample=False, max_new_tokens=10)
    inputs = model.get_unconditional_inputs(num_samples=1)
    assert inputs.guidance_scale == 1.0
    assert torch.equal(nothing, codes_of(model, **inputs, do_sample=False, max_new_tokens=10))
    assert model.generate(**model.get_unconditional_inputs(num_samples=3), max_new_tokens=10).shape[0] == 3


@pytest.mark.parametrize("channels", [1, 2])
def test_audio_prompts_are_in_the_result(channels: int) -> None:
    model = tiny_musicgen(audio_channels=channels)
    prompt = audio(channels=channels)
    codes = codes_of(model, **text(), input_values=prompt, max_new_tokens=10)
    known = model.encode_prompt(prompt)
    assert known.shape == (2, 4 * channels, 10)
    assert torch.equal(codes[:, :, :10], known)
    assert model.generate(**text(), input_values=prompt, max_new_tokens=10).shape == (2, channels, 17 * 40)


def test_stereo_channels_are_coded_alone() -> None:
    model = tiny_musicgen(audio_channels=2)
    stereo = audio(channels=2)
    codes = model.encode_prompt(stereo)
    for c in (0, 1):
        mono = model.audio_encoder.encode_codes(stereo[:, c : c + 1])
        assert torch.equal(codes[:, c::2], mono)
        torch.testing.assert_close(model.decode_audio(codes)[:, c : c + 1], model.audio_encoder.decode_codes(mono))


def test_codes_in_place_of_audio(model: Any) -> None:
    kwargs: dict[str, Any] = {**text(), "do_sample": False, "max_new_tokens": 10}
    by_audio = codes_of(model, input_values=audio(), **kwargs)
    ids = model.encode_prompt(audio()).flatten(0, 1)
    assert torch.equal(codes_of(model, decoder_input_ids=ids, **kwargs), by_audio)


def slow_codec(**changes: Any) -> MusicgenConfig:
    """A codec with fewer frames a second, so that 30 s are few steps."""
    config = tiny_config()
    config.audio_encoder = EncodecConfig(**{**config.audio_encoder.to_dict(), **changes})
    return config


def test_the_default_is_thirty_seconds() -> None:
    model = MusicgenForConditionalGeneration(slow_codec(sampling_rate=80, target_bandwidths=[0.04])).eval()
    model.audio_encoder.quantizer.layers[0].codebook.embed.normal_()
    settings = model.generation_config
    assert (settings.do_sample, settings.guidance_scale) == (True, 3.0)
    assert settings.max_length == 1 + 30 * 2 + 3
    assert model.generate(**text("happy")).shape == (1, 1, 30 * 80)
    assert tiny_musicgen().generation_config.max_length == 1504


def test_the_generation_config_is_respected(model: Any) -> None:
    changed = tiny_musicgen()
    changed.generation_config.max_length = 20
    changed.generation_config.do_sample = False
    changed.generation_config.guidance_scale = 4.0
    wanted = codes_of(model, **text(), max_length=20, do_sample=False, guidance_scale=4.0)
    assert wanted.shape[2] == 16
    assert torch.equal(codes_of(changed, **text()), wanted)
    assert codes_of(changed, **text(), max_new_tokens=9).shape[2] == 6
    given = transformers.GenerationConfig(max_new_tokens=9, do_sample=False)
    by_config = codes_of(changed, **text(), generation_config=given)
    assert torch.equal(by_config, codes_of(changed, **text(), max_new_tokens=9))


def test_generate_with_a_dictionary(model: Any) -> None:
    out = model.generate(**text(), max_new_tokens=9, return_dict_in_generate=True, output_scores=True)
    assert out.sequences.shape == (2, 1, 6 * 40)
    assert len(out.scores) == 9


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"input_values": audio(channels=2)}, "has 2 channels; this model takes 1"),
        ({"input_values": audio(batch=1)}, "2 texts for 1 samples"),
        ({"input_values": torch.zeros(400)}, r"samples\], not \[400\]"),
        ({"input_values": audio(samples=40 * 1000), "max_new_tokens": 504}, "at most 503 new tokens remain"),
        ({"num_beams": 3}, "num_beams=3"),
        ({"melody": 1}, "'melody'"),
    ],
)
def test_generate_refuses_in_words(model: Any, kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        model.generate(**text(), **{"max_new_tokens": 6} | kwargs)


# -------------------------------------------------------------------------------------- forward and training


def test_long_prompts_are_refused_before_they_are_coded(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.audio_encoder, "encode", lambda *_: pytest.fail("coded"))
    with pytest.raises(RequestError, match="at most 0 new tokens remain"):
        model.generate(input_values=torch.zeros(1, 1, SAMPLING_RATE * 3600), max_new_tokens=10)


def test_forward_from_audio_and_from_nothing(model: Any) -> None:
    ids = model.encode_prompt(audio()).flatten(0, 1)
    from_audio = model(**text(), input_values=audio()).logits
    torch.testing.assert_close(from_audio, model(**text(), decoder_input_ids=ids).logits)
    with pytest.raises(RequestError, match="decoder_input_ids"):
        model(**text())


def test_forward_gives_mono_audio_to_both_channels() -> None:
    model = tiny_musicgen(audio_channels=2)
    ids = model.encode_prompt(audio().expand(-1, 2, -1)).flatten(0, 1)
    torch.testing.assert_close(
        model(**text(), input_values=audio()).logits, model(**text(), decoder_input_ids=ids).logits
    )


def test_forward_outputs(model: Any) -> None:
    ids = torch.randint(0, CODES, (8, 3))
    out = model(**text(), decoder_input_ids=ids, output_hidden_states=True, output_attentions=True)
    assert out.logits.shape == (8, 3, CODES)
    assert len(out.decoder_hidden_states) == 3
    assert len(out.encoder_hidden_states) == 3
    assert len(out.decoder_attentions) == len(out.cross_attentions) == 2
    assert isinstance(model(**text(), decoder_input_ids=ids, return_dict=False), tuple)


def test_forward_in_other_ways(model: Any) -> None:
    inputs, ids = text(), torch.randint(0, CODES, (8, 3))
    wanted = model(**inputs, decoder_input_ids=ids).logits
    mask = inputs["attention_mask"]
    states = model.text_encoder(**inputs).last_hidden_state
    words = model.text_encoder.get_input_embeddings()(inputs["input_ids"])
    codes = model.decoder.model.decoder.embed(ids.view(2, 4, 3))
    for other in (
        model(encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=ids),
        model(inputs_embeds=words, attention_mask=mask, decoder_input_ids=ids),
        model(**inputs, decoder_inputs_embeds=codes),
    ):
        torch.testing.assert_close(other.logits, wanted)


def test_forward_takes_no_other_keywords(model: Any) -> None:
    with pytest.raises(TypeError, match="decoder_tempo"):
        model(**text(), decoder_input_ids=torch.zeros(8, 3, dtype=torch.long), decoder_tempo=1)


def test_synced_gpus_is_accepted(model: Any) -> None:
    assert model.generate(**text(), max_new_tokens=8, synced_gpus=True).shape == (2, 1, 200)


def test_prepared_inputs_are_the_shifted_labels(model: Any) -> None:
    labels = torch.randint(0, CODES, (2, 6, 4))
    ids = model.prepare_decoder_input_ids_from_labels(labels)
    assert (ids[:, :, 0] == CODES).all()
    torch.testing.assert_close(
        model(**text(), labels=labels).logits, model(**text(), decoder_input_ids=ids.flatten(0, 1)).logits
    )


def test_frozen_parts_rest_in_training() -> None:
    model = tiny_musicgen()
    model.freeze_text_encoder()
    model.freeze_audio_encoder()
    model.train()
    assert model.decoder.training
    assert not model.text_encoder.training
    assert not model.audio_encoder.training
    model(**text(), labels=torch.randint(0, CODES, (2, 6, 4))).loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"decoder", "enc_to_dec_proj"}
    assert tiny_musicgen().train().text_encoder.training


def test_trainer_trains_and_evaluates(tmp_path: Path) -> None:
    model, inputs = tiny_musicgen(dropout=0.0), text()
    model.freeze_text_encoder()
    model.freeze_audio_encoder()
    labels = torch.randint(0, CODES, (2, 6, 4), generator=torch.Generator().manual_seed(5))
    rows = [{**{name: value[i] for name, value in inputs.items()}, "labels": labels[i]} for i in range(2)] * 4
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=20, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    with torch.no_grad():
        before = float(model(**inputs, labels=labels).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-4)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2


def test_autocast_leaves_text_and_codec_in_full_precision(model: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**text(), decoder_input_ids=torch.zeros(8, 3, dtype=torch.long))
        codes, sound = model.encode_prompt(audio()), model.decode_audio(torch.ones(1, 4, 5, dtype=torch.long))
    assert out.logits.dtype is torch.bfloat16
    assert torch.equal(out.encoder_last_hidden_state, model.text_encoder(**text()).last_hidden_state)
    assert torch.equal(codes, model.encode_prompt(audio()))
    assert torch.equal(sound, model.decode_audio(torch.ones(1, 4, 5, dtype=torch.long)))


# -------------------------------------------------------------------------------------- precision


def dtypes(model: MusicgenForConditionalGeneration) -> dict[str, set[torch.dtype]]:
    parts = ("text_encoder", "audio_encoder", "decoder", "enc_to_dec_proj")
    return {part: {p.dtype for p in getattr(model, part).parameters()} for part in parts}


@pytest.mark.parametrize("how", ["from_pretrained", "to", "method", "half-precision file"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_is_the_decoders(folder: Path, tmp_path: Path, how: str, dtype: torch.dtype) -> None:
    if how == "from_pretrained":
        model = MusicgenForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    elif how == "half-precision file":
        model = MusicgenForConditionalGeneration.from_pretrained(save_tiny_folder(tmp_path, dtype), dtype="auto")
    elif how == "to":
        model = tiny_musicgen().to(dtype)
    else:
        model = tiny_musicgen().half() if dtype is torch.float16 else tiny_musicgen().bfloat16()
    full, low = {torch.float32}, {dtype}
    assert dtypes(model) == {"text_encoder": full, "audio_encoder": full, "decoder": low, "enc_to_dec_proj": low}
    assert model.dtype is dtype
    out = model.generate(**text(), max_new_tokens=9, do_sample=False)
    assert out.dtype is torch.float32
    assert out.isfinite().all()


def test_half_precision_files_load_as_float32(tmp_path: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(save_tiny_folder(tmp_path, torch.float16))
    assert set.union(*dtypes(model).values()) == {torch.float32}


def test_to_moves_everything(model: Any) -> None:
    there = tiny_musicgen().to("meta", torch.bfloat16)
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert there.dtype is torch.bfloat16
    assert tiny_musicgen().to(torch.bfloat16).float().dtype is torch.float32


# -------------------------------------------------------------------------------------- construction


def test_from_parts_and_from_a_config() -> None:
    model = tiny_musicgen()
    again = MusicgenForConditionalGeneration(
        text_encoder=model.text_encoder, audio_encoder=model.audio_encoder, decoder=model.decoder
    )
    assert again.config.decoder is again.decoder.config
    assert again.config.to_dict()["decoder"] == model.config.to_dict()["decoder"]
    with pytest.raises(RequestError, match="from a config, or from"):
        MusicgenForConditionalGeneration(text_encoder=model.text_encoder)


def test_config_from_sub_models(tmp_path: Path) -> None:
    parts = tiny_config()
    made = MusicgenConfig.from_sub_models_config(parts.text_encoder, parts.audio_encoder, parts.decoder)
    assert made.sampling_rate == SAMPLING_RATE
    made.save_pretrained(tmp_path)
    loaded = MusicgenConfig.from_pretrained(tmp_path)
    for part in ("text_encoder", "audio_encoder", "decoder"):
        assert getattr(loaded, part).to_dict() == getattr(made, part).to_dict()
    assert isinstance(loaded.audio_encoder, EncodecConfig)
    assert isinstance(loaded.decoder, MusicgenDecoderConfig)
    fresh = MusicgenConfig()
    assert (fresh.text_encoder.model_type, fresh.decoder.hidden_size) == ("t5", 1024)


def test_configs_of_transformers_are_understood() -> None:
    theirs = transformers.MusicgenDecoderConfig(vocab_size=2048, num_hidden_layers=3)
    made = MusicgenConfig(decoder=theirs, audio_encoder=transformers.EncodecConfig())
    assert isinstance(made.decoder, MusicgenDecoderConfig)
    assert made.decoder.num_hidden_layers == 3
    assert isinstance(made.audio_encoder, EncodecConfig)
    with pytest.raises(IncompatiblePartsError, match="not a bert"):
        MusicgenConfig(decoder=transformers.BertConfig())


def test_configs_of_2023_are_read() -> None:
    """They carry generation settings, null token ids and old names of things."""
    legacy = {"max_length": 20, "do_sample": False, "num_beams": 1, "torch_dtype": "float32", "use_bfloat16": False}
    config = MusicgenConfig(
        text_encoder={"model_type": "t5", "d_model": 24, "task_specific_params": {"x": {"max_length": 9}}, **legacy},
        audio_encoder={"model_type": "encodec", "sampling_rate": 32000, "codebook_dim": 128, **legacy},
        decoder={"model_type": "musicgen_decoder", "decoder_start_token_id": None, "bos_token_id": 2048, **legacy},
        _name_or_path="somewhere",
        torch_dtype="float32",
        transformers_version="4.31.0",
        is_encoder_decoder=True,
    )
    assert config.decoder.decoder_start_token_id == config.decoder.pad_token_id == 2048
    assert (config.text_encoder.d_model, config.sampling_rate) == (24, 32000)


def test_a_device_map_places_the_parts(folder: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(folder, device_map="auto")
    assert model.generate(**text(), max_new_tokens=8).shape == (2, 1, 200)


def test_equal_widths_need_no_projection() -> None:
    model = tiny_musicgen(hidden_size=24, num_attention_heads=3)
    assert not hasattr(model, "enc_to_dec_proj")
    assert model.generate(**text(), max_new_tokens=8).shape == (2, 1, 5 * 40)
    with pytest.raises(IncompatiblePartsError, match="width 99"):
        tiny_musicgen(cross_attention_hidden_size=99)


# Parameters of the released models, all parts together.
COUNTS = {
    "small": 586_884_674,
    "medium": 2_005_251_138,
    "large": 3_423_470_146,
    "stereo-small": 603_665_986,
    "stereo-medium": 2_030_423_106,
    "stereo-large": 3_457_032_770,
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_released_sizes(name: str) -> None:
    with torch.device("meta"):
        model = MusicgenForConditionalGeneration(MusicgenConfig.preset(name))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def test_unknown_presets_are_named() -> None:
    with pytest.raises(RequestError, match="stereo-large"):
        MusicgenConfig.preset("huge")


MISFITS = {
    "codes": {"vocab_size": 2 * CODES},
    "codebooks": {"num_codebooks": 8},
}


@pytest.mark.parametrize("changes", MISFITS.values(), ids=MISFITS)
def test_misfits_warn_and_are_refused_at_generation(changes: dict[str, int]) -> None:
    with pytest.warns(UserWarning, match="Generation will be refused"):
        model = tiny_musicgen(**changes)
    with pytest.raises(IncompatiblePartsError, match="Use a codec and a decoder that were trained together"):
        model.generate(**text(), max_new_tokens=8)
    labels = torch.randint(0, CODES, (2, 6, model.decoder.num_codebooks))
    assert model(**text(), labels=labels).loss.isfinite()  # the decoder alone works


@pytest.mark.parametrize("changes", [{"audio_channels": 2}, {"chunk_length_s": 1.0, "overlap": 0.01}], ids=str)
def test_codecs_of_another_kind_are_refused(changes: dict[str, Any]) -> None:
    config = tiny_config()
    config.audio_encoder = EncodecConfig(**{**config.audio_encoder.to_dict(), **changes})
    with pytest.warns(UserWarning, match="Generation will be refused"):
        model = MusicgenForConditionalGeneration(config)
    with pytest.raises(IncompatiblePartsError):
        model.generate(**text(), max_new_tokens=8)


def test_a_codec_may_have_more_codebooks_than_are_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = tiny_musicgen(num_codebooks=3)
    assert model.encode_prompt(audio()).shape == (2, 3, 10)
    assert model.generate(**text(), input_values=audio(), max_new_tokens=8).shape == (2, 1, 16 * 40)


def test_other_frame_rates_have_windows_of_thirty_seconds() -> None:
    model = MusicgenForConditionalGeneration(slow_codec(sampling_rate=1000, target_bandwidths=[0.5]))
    assert model.frame_rate == 25
    assert model.decoder.window_steps == 25 * 30 + 3


# -------------------------------------------------------------------------------------- checkpoints


def test_there_and_back(model: Any, folder: Path) -> None:
    loaded = MusicgenForConditionalGeneration.from_pretrained(folder)
    for name, wanted in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], wanted), name
    assert not loaded.training
    assert loaded.generation_config.max_length == 1504


def test_the_hubs_generation_config_rules(tmp_path: Path) -> None:
    model = tiny_musicgen()
    model.generation_config.max_length = 1500
    model.save_pretrained(tmp_path)
    loaded = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.max_length == 1500
    (tmp_path / "generation_config.json").unlink()
    bare = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    settings = {"max_new_tokens": 9, "seeds": [1, 2]}
    assert torch.equal(codes_of(bare, **text(), **settings), codes_of(tiny_musicgen(), **text(), **settings))


def test_sharded_checkpoints(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.decoder.lm_heads[3].weight, model.decoder.lm_heads[3].weight)


@pytest.mark.parametrize(
    "name", ["text_encoder.shared.weight", "audio_encoder.quantizer.layers.0.codebook.embed", "enc_to_dec_proj.bias"]
)
def test_a_misfitting_checkpoint_is_refused_by_name(folder: Path, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = load_file(folder / "model.safetensors")

    def refused(tensors: dict[str, Tensor], *named: str) -> None:
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError) as error:
            MusicgenForConditionalGeneration.from_pretrained(tmp_path)
        assert all(word in str(error.value) for word in named)

    refused({k: v for k, v in whole.items() if k != name}, "lacks", name)
    refused(whole | {name: torch.ones(7, 7, 7)}, "misshapen", name)
    for extra in ("text_encoder.decoder.block.0.weight", "audio_encoder.more", "decoder.lm_heads.9.weight"):
        refused(whole | {extra: torch.ones(1)}, "unexpected", extra)
    old = {"decoder.model.decoder.embed_positions.weights": torch.ones(4, 32)}
    save_file(whole | old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    MusicgenForConditionalGeneration.from_pretrained(tmp_path)


def test_three_checkpoints_make_one_model(model: Any, folder: Path, tmp_path: Path) -> None:
    for part in ("text_encoder", "audio_encoder", "decoder"):
        getattr(model, part).save_pretrained(tmp_path / part)
    made = MusicgenForConditionalGeneration.from_sub_models_pretrained(
        tmp_path / "text_encoder", tmp_path / "audio_encoder", tmp_path / "decoder", decoder_dropout=0.3
    )
    assert made.decoder.config.dropout == 0.3
    whole = MusicgenForConditionalGeneration.from_sub_models_pretrained(folder, folder, folder)
    given = MusicgenForConditionalGeneration.from_sub_models_pretrained(
        text_encoder_model=model.text_encoder,
        audio_encoder_pretrained_model_name_or_path=folder,
        decoder_model=MusicgenForCausalLM.from_pretrained(folder),
    )
    for other in (made, whole, given):
        for part in ("text_encoder", "audio_encoder", "decoder"):
            wanted, found = getattr(model, part).state_dict(), getattr(other, part).state_dict()
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert isinstance(given.audio_encoder, EncodecModel)
    with pytest.raises(RequestError, match="audio_encoder is missing"):
        MusicgenForConditionalGeneration.from_sub_models_pretrained(folder, None, folder)


def test_parts_are_reached_by_the_documented_names(model: Any) -> None:
    assert model.get_encoder() is model.get_text_encoder() is model.text_encoder
    assert model.get_encoder(modality="audio") is model.get_audio_encoder() is model.audio_encoder
    assert model.get_decoder() is model.decoder
    assert model.get_output_embeddings() is model.decoder.lm_heads
    with pytest.raises(NotImplementedError):
        model.resize_token_embeddings(5)


def test_names_of_bundled_models(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("tunesmith.nn.pretrained.ASSETS", folder.parent)
    name = f"tunesmith/{folder.name}"
    assert bundled(name) == folder
    assert bundled("facebook/musicgen-small") == "facebook/musicgen-small"
    assert bundled("tunesmith/absent") == "tunesmith/absent"
    assert MusicgenForConditionalGeneration.from_pretrained(name).config.decoder.vocab_size == CODES
    assert MusicgenConfig.from_pretrained(name).decoder.vocab_size == CODES


def test_frame_rate_is_samples_by_hop(model: Any) -> None:
    assert model.frame_rate == SAMPLING_RATE / math.prod(model.config.audio_encoder.upsampling_ratios) == 50
