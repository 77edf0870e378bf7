"""Every code sample of the Hugging Face MusicGen page, with `transformers` replaced by `tunesmith`.

One test a sample, in the page's order.  The bundled model is the checkpoint once it exists, a small random one until
then; a local clip plays the data set.  Where the page itself is at hand, its samples are also run word for word.
"""

import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunesmith
from tiny import save_tiny_folder
from tunesmith.nn.pretrained import ASSETS

SECONDS = 4
PAGE = Path(__file__).resolve().parents[2] / "shared" / "originals" / "huggingface-musicgen.md"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    if (ASSETS / "pocket" / "config.json").is_file():
        return "tunesmith/pocket"
    return str(save_tiny_folder(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def dataset(checkpoint: str) -> Iterator[dict[str, Any]]:
    """A stream of one clip, as `load_dataset(..., streaming=True)` gives it."""
    rate = tunesmith.AutoConfig.from_pretrained(checkpoint).sampling_rate
    time = np.arange(SECONDS * rate) / rate
    return iter([{"audio": {"array": 0.3 * np.sin(2 * np.pi * 220 * time), "sampling_rate": rate}}])


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


Unconditional = tuple[Any, torch.Tensor]


@pytest.fixture(scope="module")
def unconditional(checkpoint: str) -> Unconditional:
    from tunesmith import MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    unconditional_inputs = model.get_unconditional_inputs(num_samples=1)
    audio_values = model.generate(**unconditional_inputs, do_sample=True, max_new_tokens=256)
    return model, audio_values


def test_unconditional_generation(unconditional: Unconditional) -> None:
    model, audio_values = unconditional
    assert audio_values.shape == (1, 1, 253 * model.config.audio_encoder.hop_length)


def test_listening_in_a_notebook(unconditional: Unconditional) -> None:
    from IPython.display import Audio

    model, audio_values = unconditional
    sampling_rate = model.config.audio_encoder.sampling_rate
    assert "audio/wav" in Audio(audio_values[0].numpy(), rate=sampling_rate)._repr_html_()


def test_saving_with_scipy(unconditional: Unconditional) -> None:
    import scipy

    model, audio_values = unconditional
    sampling_rate = model.config.audio_encoder.sampling_rate
    scipy.io.wavfile.write("musicgen_out.wav", rate=sampling_rate, data=audio_values[0, 0].numpy())
    rate, samples = scipy.io.wavfile.read("musicgen_out.wav")
    assert (rate, len(samples)) == (sampling_rate, audio_values.shape[2])


def test_text_conditional_generation(checkpoint: str) -> None:
    from tunesmith import AutoProcessor, MusicgenForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    inputs = processor(
        text=["80s pop track with bassy drums and synth", "90s rock song with loud guitars and heavy drums"],
        padding=True,
        return_tensors="pt",
    )
    audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)

    assert audio_values.shape == (2, 1, 253 * model.config.audio_encoder.hop_length)


def test_audio_prompted_generation(checkpoint: str, dataset: Iterator[dict[str, Any]]) -> None:
    from tunesmith import AutoProcessor, MusicgenForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    sample = next(dataset)["audio"]
    sample["array"] = sample["array"][: len(sample["array"]) // 2]
    inputs = processor(
        audio=sample["array"],
        sampling_rate=sample["sampling_rate"],
        text=["80s blues track with groovy saxophone"],
        padding=True,
        return_tensors="pt",
    )
    audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)

    prompt = SECONDS / 2 * model.frame_rate
    assert audio_values.shape == (1, 1, round(prompt + 253) * model.config.audio_encoder.hop_length)


def test_batched_audio_prompted_generation(checkpoint: str, dataset: Iterator[dict[str, Any]]) -> None:
    from tunesmith import AutoProcessor, MusicgenForConditionalGeneration

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    sample = next(dataset)["audio"]
    sample_1 = sample["array"][: len(sample["array"]) // 4]
    sample_2 = sample["array"][: len(sample["array"]) // 2]
    inputs = processor(
        audio=[sample_1, sample_2],
        sampling_rate=sample["sampling_rate"],
        text=["80s blues track with groovy saxophone", "90s rock song with loud guitars and heavy drums"],
        padding=True,
        return_tensors="pt",
    )
    audio_values = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)
    whole = audio_values.shape[2]
    audio_values = processor.batch_decode(audio_values, padding_mask=inputs.padding_mask)

    assert [clip.shape for clip in audio_values] == [(1, whole - len(sample_2) + len(sample_1)), (1, whole)]


def test_generation_configuration(checkpoint: str) -> None:
    from tunesmith import MusicgenForConditionalGeneration

    model = MusicgenForConditionalGeneration.from_pretrained(checkpoint)
    assert model.generation_config.do_sample
    model.generation_config.guidance_scale = 4.0
    model.generation_config.max_length = 256

    settings = {"do_sample": False, **model.get_unconditional_inputs()}
    assert model.generate(**settings).shape[2] == 252 * model.config.audio_encoder.hop_length
    assert torch.equal(model.generate(**settings), model.generate(**settings))  # do_sample=False superseded the config


def test_decoder_alone(checkpoint: str) -> None:
    from tunesmith import AutoConfig, MusicgenForCausalLM, MusicgenForConditionalGeneration

    # Option 1: get decoder config and pass to `.from_pretrained`
    decoder_config = AutoConfig.from_pretrained(checkpoint).decoder
    first = MusicgenForCausalLM.from_pretrained(checkpoint, **decoder_config)

    # Option 2: load the entire composite model, but only return the decoder
    second = MusicgenForConditionalGeneration.from_pretrained(checkpoint).decoder

    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


@pytest.fixture
def small_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations without arguments describe models of half a gigabyte; here they are small."""
    small: dict[type, dict[str, Any]] = {
        tunesmith.T5Config: {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 32},
        tunesmith.EncodecConfig: {"num_filters": 2, "hidden_size": 8},
        tunesmith.MusicgenDecoderConfig: {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 16,
        },
    }
    for kind, defaults in small.items():
        for name, value in defaults.items():
            monkeypatch.setattr(kind.__dataclass_fields__[name], "default", value)


@pytest.mark.usefixtures("small_defaults")
def test_musicgen_config() -> None:
    from tunesmith import (
        EncodecConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    text_encoder_config = T5Config()
    audio_encoder_config = EncodecConfig()
    decoder_config = MusicgenDecoderConfig()
    configuration = MusicgenConfig.from_sub_models_config(text_encoder_config, audio_encoder_config, decoder_config)
    with pytest.warns(UserWarning, match="1024 codes in a book and the decoder 2048"):  # the page's own choice of codec
        model = MusicgenForConditionalGeneration(configuration)

    configuration = model.config
    assert configuration.text_encoder is text_encoder_config
    assert configuration.audio_encoder is audio_encoder_config
    assert configuration.decoder is decoder_config

    model.save_pretrained("musicgen-model")
    musicgen_config = MusicgenConfig.from_pretrained("musicgen-model")
    with pytest.warns(UserWarning, match="1024 codes"):
        loaded = MusicgenForConditionalGeneration.from_pretrained("musicgen-model", config=musicgen_config)
    assert torch.equal(loaded.decoder.lm_heads[3].weight, model.decoder.lm_heads[3].weight)


# -------------------------------------------------------------------------------------- the page, word for word


def samples() -> list[str]:
    """The Python samples of the page, or none where it isn't at hand."""
    if not PAGE.is_file():
        return []
    return re.findall(r"^ *```python\n(.*?)^ *```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def as_code(sample: str, checkpoint: str) -> str:
    """A sample without prompt signs, of tunesmith, with our checkpoint."""
    lines = [re.sub(r"^ *(>>>|\.\.\.) ?", "", line) for line in sample.splitlines()]
    code = "\n".join(lines).replace("from transformers import", "from tunesmith import")
    return code.replace("facebook/musicgen-small", checkpoint)


def test_the_page_has_the_samples_that_are_tested() -> None:
    if not PAGE.is_file():
        pytest.skip("the documentation page is not beside this checkout")
    assert len(samples()) == 9


@pytest.mark.usefixtures("small_defaults")
@pytest.mark.filterwarnings("ignore:The codec has 1024 codes")
def test_the_page_word_for_word(
    checkpoint: str, dataset: Iterator[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not PAGE.is_file():
        pytest.skip("the documentation page is not beside this checkout")
    library, clips = types.ModuleType("datasets"), list(dataset)
    library.load_dataset = lambda *_, **__: [{"audio": dict(clip["audio"])} for clip in clips]
    monkeypatch.setitem(sys.modules, "datasets", library)
    names: dict[str, Any] = {}
    for sample in samples():
        code = as_code(sample, checkpoint).replace("max_new_tokens=256", "max_new_tokens=16")
        with warnings.catch_warnings():
            exec(compile(code, "sample", "exec"), names)
    assert Path("musicgen_out.wav").is_file()
    assert Path("musicgen-model/config.json").is_file()
