"""Crops are exact parts of songs, and depend on seed, epoch and index alone, whatever happens to files and workers."""

import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from tiny_songs import RATE, small_folder, write_song
from tunesmith.audio import Clip, Sound
from tunesmith.errors import AudioFileError, RequestError
from tunesmith.training.crops import AudioCrops, Places
from tunesmith.training.epochs import Epochs
from tunesmith.training.folders import open_songs

FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")
TYPES = ["wav", "flac", "ogg", "mp3", "opus", "m4a", "aac"]


@pytest.mark.parametrize("suffix", TYPES)
@pytest.mark.parametrize("rate", [24000, 22050, 32000, 16000])
def test_crops_are_parts_of_the_whole_song(tmp_path, suffix, rate):
    if suffix in ("m4a", "aac"):
        pytest.importorskip("av")
    path = write_song(tmp_path / f"song.{suffix}", 3.0, rate=24000, channels=2)
    whole = Clip.read(path).remix(1).resample(rate).samples[0]
    places = []
    crops = AudioCrops(
        open_songs(tmp_path), rate=rate, samples=rate // 2, count=8, labels=lambda crop: places.append(crop.start) or {}
    )
    for i in range(len(crops)):
        crop = crops[i]["audio"].numpy()
        expected = whole[places[i] :][: len(crop)]
        np.testing.assert_allclose(crop[: len(expected)], expected, atol=1e-4 if suffix in ("m4a", "aac") else 2e-6)
    assert len(set(places)) > 4


@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_mp3_of_varying_bitrate_is_read_in_parts_without_noise(tmp_path, rate, capfd):
    """Its frames borrow bits from earlier ones; libsndfile alone makes noise after a seek, also between two reads."""
    import soundfile

    path = write_song(tmp_path / "song.mp3", 20.0, rate=rate)
    whole = soundfile.read(path, dtype="float32")[0]
    with Sound(path) as sound:
        for start in np.random.default_rng(0).integers(0, len(whole) - 3000, 20):
            np.testing.assert_allclose(sound.read(int(start), 3000)[0], whole[start : start + 3000], atol=1e-6)
        blocks = np.concatenate(list(sound.blocks(50_000)), axis=1)[0]
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    np.testing.assert_allclose(Clip.read(path).samples[0], whole, atol=1e-6)
    assert capfd.readouterr().err == ""


def test_stereo_and_mono(tmp_path):
    path = write_song(tmp_path / "two.wav", 1.0, channels=2)
    left, right = Clip.read(path).samples
    songs = open_songs(tmp_path)
    np.testing.assert_array_equal(AudioCrops(songs, rate=RATE, samples=RATE, channels=2)[0]["audio"], [left, right])
    np.testing.assert_allclose(AudioCrops(songs, rate=RATE, samples=RATE)[0]["audio"], (left + right) / 2, atol=1e-7)
    blended = AudioCrops(songs, rate=RATE, samples=RATE, aug_blend=True)
    shares = []
    for epoch in range(20):
        blended.set_epoch(epoch)
        mix = blended[0]["audio"].numpy()
        share = float(((mix - right) @ (left - right)) / ((left - right) @ (left - right)))
        np.testing.assert_allclose(mix, share * left + (1 - share) * right, atol=1e-5)
        shares.append(share)
    assert 0 <= min(shares) < 0.3
    assert 0.7 < max(shares) <= 1
    mono = open_songs(write_song(tmp_path / "one" / "one.wav", 1.0).parent)
    sides = AudioCrops(mono, rate=RATE, samples=RATE, channels=2)[0]["audio"]
    assert torch.equal(sides[0], sides[1])


def test_an_epoch_is_each_song_once(tmp_path):
    small_folder(tmp_path, songs=3, seconds=2.0)
    places = []
    crops = AudioCrops(
        open_songs(tmp_path), rate=RATE, samples=RATE, labels=lambda crop: places.append((crop.name, crop.start)) or {}
    )
    assert len([crops[i] for i in range(len(crops))]) == 6
    assert places == [(f"{song}.flac", start) for song in range(3) for start in (0, RATE)]


def test_crops_are_moved_into_the_song_that_holds_their_middle():
    places = Places([10, 4, 10], size=6)
    random = np.random.default_rng(0)
    assert [places.at(i, random) for i in range(len(places))] == [(0, 0), (0, 4), (2, 0), (2, 4)]
    shifted = Places([1000], size=100, aug_shift=True)
    starts = [shifted.at(5, np.random.default_rng(i))[1] for i in range(200)]
    assert 450 <= min(starts) < 460
    assert 540 < max(starts) <= 550


def test_crops_drawn_anew_may_reach_beyond_the_end():
    starts = [Places([100], size=50, count=1, least_part=0.8).at(0, np.random.default_rng(i))[1] for i in range(300)]
    assert (min(starts), max(starts)) == (0, 60)


def test_short_songs_are_followed_by_silence(tmp_path):
    path = write_song(tmp_path / "a.wav", 0.5)
    crops = AudioCrops(open_songs(tmp_path), rate=RATE, samples=RATE)
    assert len(crops) == 1
    np.testing.assert_array_equal(crops[0]["audio"][: RATE // 2], Clip.read(path).samples[0])
    assert not crops[0]["audio"][RATE // 2 :].any()


@FEW_CORES
@pytest.mark.parametrize("workers", [1, 2])
def test_items_depend_on_seed_epoch_and_index_alone(tmp_path, workers):
    songs = open_songs(small_folder(tmp_path, songs=3))

    def epochs(workers, first=0):
        crops = AudioCrops(songs, rate=RATE, samples=2000, seed=1, count=6, aug_blend=True)
        loader = DataLoader(crops, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
        for epoch in range(first, 2):
            crops.set_epoch(epoch)
            yield torch.cat([batch["audio"] for batch in loader])

    alone, shared = list(epochs(0)), list(epochs(workers))
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(next(epochs(0, first=1)), alone[1])
    other = AudioCrops(songs, rate=RATE, samples=2000, seed=2, count=6)
    assert not torch.equal(other[0]["audio"], alone[0][0])


class Memory(nn.Module):
    """A model that learns what it hears, so its losses tell what that was."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(500))

    def forward(self, audio):
        return {"loss": (audio - self.weight).square().mean()}


@FEW_CORES
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_in_mid_epoch_hears_what_it_would_have_heard(tmp_path, workers):
    songs = open_songs(small_folder(tmp_path / "songs", songs=2))

    def run(name, steps, resume=None):
        arguments = TrainingArguments(
            str(tmp_path / name), per_device_train_batch_size=2, max_steps=steps, logging_steps=1, save_steps=5,
            learning_rate=1.0, lr_scheduler_type="constant", report_to=[], use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, dataloader_num_workers=workers, dataloader_pin_memory=False,
        )  # fmt: skip
        crops = AudioCrops(songs, rate=RATE, samples=500, seed=3, count=8)
        trainer = Trainer(Memory(), arguments, train_dataset=crops, callbacks=[Epochs(crops)])
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.weight.detach()

    whole = run("whole", 9)  # two epochs of four batches, and one more batch
    run("stopped", 5)
    assert torch.equal(run("stopped", 9, str(tmp_path / "stopped" / "checkpoint-5")), whole)


@FEW_CORES
@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_break_during_an_epoch_are_skipped_counted_and_named(tmp_path, workers):
    small_folder(tmp_path, songs=4)
    songs = open_songs(tmp_path)
    data = (tmp_path / "1.flac").read_bytes()
    (tmp_path / "1.flac").write_bytes(data[: len(data) // 2])
    (tmp_path / "2.flac").unlink()
    crops = AudioCrops(songs, rate=RATE, samples=RATE)
    items = [batch["audio"] for batch in DataLoader(crops, batch_size=None, num_workers=workers)]
    assert len(items) == 8
    assert crops.skipped["1.flac"] >= 1
    assert crops.skipped["2.flac"] >= 2
    assert set(crops.skipped) == {"1.flac", "2.flac"}


def test_a_file_that_was_replaced_is_not_taken_for_the_old_one(tmp_path):
    small_folder(tmp_path, songs=2)
    songs = open_songs(tmp_path)
    write_song(tmp_path / "0.flac", rate=2 * RATE)
    crops = AudioCrops(songs, rate=RATE, samples=RATE)
    assert crops[0]["audio"].shape == (RATE,)
    assert set(crops.skipped) == {"0.flac"}


def test_a_disk_that_is_gone_ends_the_run(tmp_path):
    songs = open_songs(small_folder(tmp_path, songs=2))
    for path in tmp_path.glob("*.flac"):
        path.unlink()
    with pytest.raises(AudioFileError, match="10 songs in a row can't be read; the last: There is no audio file"):
        AudioCrops(songs, rate=RATE, samples=RATE)[0]


def test_not_a_number_is_no_sound(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT")
    with pytest.raises(AudioFileError, match="not finite"):
        AudioCrops(open_songs(tmp_path), rate=RATE, samples=RATE)[0]


def test_open_files_stay_behind_when_a_data_set_travels(tmp_path):
    crops = AudioCrops(open_songs(small_folder(tmp_path, songs=2)), rate=RATE, samples=RATE)
    first = crops[0]["audio"]
    assert torch.equal(pickle.loads(pickle.dumps(crops))[0]["audio"], first)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"channels": 3}, {"rate": 0}, {"count": 0}, {"least_part": 0.0}])
def test_sizes_that_make_no_sense(tmp_path, wrong):
    songs = open_songs(small_folder(tmp_path, songs=1))
    with pytest.raises(RequestError):
        AudioCrops(songs, **{"rate": RATE, "samples": 10, **wrong})


def test_no_songs(tmp_path):
    songs = open_songs(small_folder(tmp_path, songs=1))
    with pytest.raises(AudioFileError, match="no songs"):
        AudioCrops(songs.test, rate=RATE, samples=10)


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.training.crops.OPEN_FILES", 2)
    crops = AudioCrops(open_songs(small_folder(tmp_path, songs=5)), rate=RATE, samples=RATE)
    for i in islice(range(len(crops)), 10):
        crops[i]
        assert len(crops._open._files) <= 2
