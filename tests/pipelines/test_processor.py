"""The processor: text and audio in, audio and text out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import SAMPLING_RATE, save_tiny_folder, tiny_processor
from tunesmith.errors import RequestError
from tunesmith.pipelines.processor import MusicgenProcessor, load_tokenizer


def clip(samples: int, channels: int | None = None) -> np.ndarray:
    shape = (samples,) if channels is None else (channels, samples)
    return np.random.default_rng(samples).normal(size=shape).astype(np.float32)


def test_text() -> None:
    inputs = tiny_processor()(text=["happy rock", "slow funk"], padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs.input_ids[0, -1] == 1  # the end token
    single = tiny_processor()(text="happy rock", return_tensors="pt")
    assert single.input_ids.shape[0] == 1
    assert isinstance(tiny_processor()(text=["happy", "slow funk"])["input_ids"][0], list)


def test_audio_is_padded_on_the_left() -> None:
    inputs = tiny_processor()(audio=[clip(3), clip(5)], sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
    assert inputs.input_values.shape == (2, 1, 5)
    assert inputs.padding_mask.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    torch.testing.assert_close(inputs.input_values[0, 0, 2:], torch.from_numpy(clip(3)))


def test_stereo_audio() -> None:
    inputs = tiny_processor(2)(clip(5, 2), sampling_rate=SAMPLING_RATE, return_tensors="pt")
    assert inputs.input_values.shape == (1, 2, 5)
    with pytest.raises(ValueError, match="stereo"):
        tiny_processor(2)(clip(5), sampling_rate=SAMPLING_RATE)


def test_both_at_once_and_audio_as_the_first_argument() -> None:
    inputs = tiny_processor()(clip(5), text=["happy"], sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "input_values", "padding_mask"}
    assert inputs.to("cpu").input_values.shape == (1, 1, 5)


def test_what_is_refused() -> None:
    with pytest.raises(RequestError, match="text, audio, or both"):
        tiny_processor()()
    with pytest.raises(ValueError, match="sampling rate"):
        tiny_processor()(audio=clip(5), sampling_rate=44_100)
    with pytest.raises(RequestError, match="mask is of 3 clips and there are 2"):
        tiny_processor().batch_decode(torch.zeros(2, 1, 6), padding_mask=torch.ones(3, 6))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_batch_decode_removes_the_padding(as_tensor: bool) -> None:
    audio = torch.arange(2 * 2 * 6.0).view(2, 2, 6)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    audio, mask = (audio, mask) if as_tensor else (audio.numpy(), mask.numpy())
    clips = tiny_processor(2).batch_decode(audio, padding_mask=mask)
    assert [c.shape for c in clips] == [(2, 4), (2, 6)]
    assert clips[0].tolist() == [[2, 3, 4, 5], [8, 9, 10, 11]]
    assert all(isinstance(c, np.ndarray) for c in clips)
    assert [c.shape for c in tiny_processor(2).batch_decode(audio=audio)] == [(2, 6), (2, 6)]


def test_a_mask_longer_than_the_audio() -> None:
    clips = tiny_processor().batch_decode(torch.ones(1, 1, 3), padding_mask=torch.tensor([[0, 1, 1, 1]]))
    assert clips[0].shape == (1, 2)


def test_ids_to_texts() -> None:
    processor = tiny_processor()
    ids = processor(text=["happy rock", "slow funk"])["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["happy rock", "slow funk"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "happy rock"


def test_any_script_is_tokenised() -> None:
    for words in ("", "🎸🔥", "日本の音楽", "موسيقى", "a" * 10_000):
        assert tiny_processor()(text=[words], return_tensors="pt").input_ids[0, -1] == 1


def test_saved_and_loaded(tmp_path: Path) -> None:
    processor = tiny_processor(2)
    processor.save_pretrained(tmp_path)
    loaded = MusicgenProcessor.from_pretrained(tmp_path)
    assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert loaded(text="happy rock")["input_ids"] == processor(text="happy rock")["input_ids"]
    assert load_tokenizer(tmp_path)("slow")["input_ids"] == processor.tokenizer("slow")["input_ids"]


def test_loading_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tiny_folder(tmp_path)
    caplog.clear()
    MusicgenProcessor.from_pretrained(tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
