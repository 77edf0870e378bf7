"""Codes on disk are those of the codec, whoever shares the work and however often it is stopped."""

import json
import sys
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from tiny import SAMPLING_RATE, save_tiny_folder, tiny_musicgen
from tiny_jukebox import save_tiny_jukebox, tiny_jukebox
from tiny_songs import small_folder, write_song
from tunesmith.audio import Clip
from tunesmith.codecs.encodec import EncodecModel
from tunesmith.convert.fingerprint import codes_hash
from tunesmith.errors import RequestError, RunError
from tunesmith.models.musicgen import MusicgenForCausalLM
from tunesmith.training.encode import Encoded, Job, encode_songs
from tunesmith.training.encoded import DelayedCollator, EncodedCodes, Encoding
from tunesmith.training.epochs import Epochs
from tunesmith.training.folders import open_songs
from tunesmith.training.labels import Captions

RATE = SAMPLING_RATE
HOP = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def jukebox(tmp_path_factory):
    return str(save_tiny_jukebox(tmp_path_factory.mktemp("jukebox")))


def encode(folder: Path, out: Path, codec: str, **options) -> Encoded:
    *_, finished = encode_songs(Job(songs=open_songs(folder), out=out, codec=codec, **options))
    return finished.result


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_codes_are_those_of_the_model(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=3)
    done = encode(songs, tmp_path / "codes", model, shard_songs=2)
    assert (done.songs, done.shards, done.kept, done.failed) == (3, 2, 0, {})
    found = load_file(tmp_path / "codes" / "shards" / "00000.safetensors")
    audio = torch.from_numpy(Clip.read(songs / "1.flac").resample(RATE).samples)
    assert torch.equal(found["1.flac"].long(), tiny_musicgen().encode_prompt(audio[None])[0])
    assert found["1.flac"].dtype == torch.int16


def test_both_sides_of_stereo(tmp_path, tmp_path_factory):
    folder = str(save_tiny_folder(tmp_path_factory.mktemp("stereo"), audio_channels=2))
    songs = small_folder(tmp_path / "songs", songs=1, channels=2)
    encode(songs, tmp_path / "codes", folder)
    [codes] = load_file(tmp_path / "codes" / "shards" / "00000.safetensors").values()
    audio = torch.from_numpy(Clip.read(songs / "0.flac").resample(RATE).samples)
    assert torch.equal(codes.long(), tiny_musicgen(audio_channels=2).encode_prompt(audio[None])[0])


def test_long_songs_go_in_pieces(tmp_path, model):
    """Almost the codes of the whole; the recurrent layers remember further than the pieces hear."""
    write_song(tmp_path / "songs" / "a.wav", 70.0, rate=RATE)
    encode(tmp_path / "songs", tmp_path / "codes", model)
    [codes] = load_file(tmp_path / "codes" / "shards" / "00000.safetensors").values()
    whole = tiny_musicgen().encode_prompt(torch.from_numpy(Clip.read(tmp_path / "songs" / "a.wav").samples)[None])[0]
    assert codes.shape == whole.shape
    assert (codes == whole).float().mean() > 0.99


def test_every_level_of_a_vqvae(tmp_path, jukebox):
    songs = small_folder(tmp_path / "songs", songs=2)
    done = encode(songs, tmp_path / "codes", jukebox)
    assert (done.encoding.hops, done.encoding.codebooks) == ((2, 4, 8), 1)
    found = load_file(tmp_path / "codes" / "shards" / "00000.safetensors")
    audio = torch.from_numpy(Clip.read(songs / "0.flac").resample(1000).samples)
    for level, codes in enumerate(tiny_jukebox().vqvae.encode(audio.T[None])):
        assert torch.equal(found[f"0.flac/{level}"].long(), codes[0])
    middle = EncodedCodes(tmp_path / "codes", steps=64, level=1, split=None, aug_shift=True)
    starts = []
    middle.labels = lambda crop: starts.append((crop.name, crop.start)) or {}
    for i in range(len(middle)):
        item = middle[i]
        name, start = starts[-1]
        assert start % 8 == 0
        assert torch.equal(item["codes"], found[f"{name}/1"][start // 4 :][:64].long())
        assert torch.equal(item["above"], found[f"{name}/2"][start // 8 :][:32].long())
    assert "above" not in EncodedCodes(tmp_path / "codes", steps=16, level=2, split=None)[0]
    with pytest.raises(RequestError, match="say which: 0"):
        EncodedCodes(tmp_path / "codes", steps=16)
    with pytest.raises(RequestError, match="no multiple of 2"):
        EncodedCodes(tmp_path / "codes", steps=15, level=1)


def test_shared_stopped_and_repeated_work_is_the_same_work(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=5)
    encode(songs, tmp_path / "whole", model, text=model, shard_songs=2)
    for part in ((2, 2), (1, 2)):
        encode(songs, tmp_path / "parts", model, text=model, shard_songs=2, part=part)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    (tmp_path / "parts" / "shards" / "00001.safetensors").unlink()
    (tmp_path / "parts" / "text" / "00002.safetensors").write_bytes(b"half")
    done = encode(songs, tmp_path / "parts", model, text=model, shard_songs=2)
    assert (done.shards, done.kept) == (3, 1)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    events = encode_songs(Job(songs=open_songs(songs), out=tmp_path / "stopped", codec=model, shard_songs=2))
    next(events), next(events), events.close()
    assert encode(songs, tmp_path / "stopped", model, shard_songs=2).kept == 1


def test_processes_share_the_work(tmp_path, model, monkeypatch):
    """Forked, for spawned ones would spend their time importing torch; what they are given is pickled all the same."""
    monkeypatch.setattr("tunesmith.training.encode.get_context", lambda _: get_context("fork"))
    songs = small_folder(tmp_path / "songs", songs=2, seconds=0.5)
    encode(songs, tmp_path / "one", model, shard_songs=1)
    encode(songs, tmp_path / "two", model, shard_songs=1, workers=2)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_new_and_changed_songs(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=3)
    encode(songs, tmp_path / "codes", model, shard_songs=2)
    write_song(songs / "00.flac", seed=7)
    done = encode(songs, tmp_path / "codes", model, shard_songs=2)
    assert (done.songs, done.shards, done.kept) == (4, 3, 2)
    write_song(songs / "0.flac", 3.0, seed=8)
    assert encode(songs, tmp_path / "codes", model, shard_songs=2).kept == 2
    codes = EncodedCodes(tmp_path / "codes", steps=120, split=None)
    assert [song.name for song in codes.songs] == ["0.flac"]


def test_captions_may_change_without_new_codes(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=1)
    encode(songs, tmp_path / "codes", model)
    (songs / "metadata.jsonl").write_text('{"file_name": "0.flac", "text": "another"}')
    done = encode(songs, tmp_path / "codes", model, text=model)  # and text states may come later
    assert done.kept == 0
    item = EncodedCodes(tmp_path / "codes", steps=10, split=None, text_states=True, labels=Captions())[0]
    assert item["text"] == "another"


def test_codes_say_what_they_mean(tmp_path, model):
    """Folders of older versions don't; they learn it when the command is given again, and nothing is encoded anew."""
    songs = small_folder(tmp_path / "songs", songs=1)
    known = encode(songs, tmp_path / "codes", model).encoding.codes_hash
    assert known == codes_hash(Path(model))
    file = tmp_path / "codes" / "encoding.json"
    file.write_text(json.dumps({name: x for name, x in json.loads(file.read_text()).items() if name != "codes_hash"}))
    assert Encoding.read(tmp_path / "codes").codes_hash is None
    assert encode(songs, tmp_path / "codes", model).kept == 1
    assert Encoding.read(tmp_path / "codes").codes_hash == known


def test_another_codec_is_told(tmp_path, model, jukebox):
    songs = small_folder(tmp_path / "songs", songs=1)
    encode(songs, tmp_path / "codes", model)
    with pytest.raises(RunError, match=r"codes of another kind: .*rate was 2000 and is 1000"):
        encode(songs, tmp_path / "codes", jukebox)
    with pytest.raises(RunError, match=r"pad_seconds was 0\.0 and is 5\.0"):
        encode(songs, tmp_path / "codes", model, pad_seconds=5.0)


def test_a_song_that_breaks_is_named(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=3)
    opened = open_songs(songs)
    data = (songs / "1.flac").read_bytes()
    (songs / "1.flac").write_bytes(data[: len(data) // 2])
    *_, finished = encode_songs(Job(songs=opened, out=tmp_path / "codes", codec=model))
    assert set(finished.result.failed) == {"1.flac"}
    codes = EncodedCodes(tmp_path / "codes", steps=10, split=None)
    assert {song.name for song in codes.songs} == {"0.flac", "2.flac"}


def test_short_songs(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=2)
    encode(songs, tmp_path / "codes", model)
    with pytest.raises(RequestError, match="has 200 codes; the longest has 100"):
        EncodedCodes(tmp_path / "codes", steps=200, split=None)
    encode(songs, tmp_path / "padded", model, pad_seconds=4.0)
    assert EncodedCodes(tmp_path / "padded", steps=200, split=None)[0]["codes"].shape == (4, 200)


def test_the_split_is_kept(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=6, seconds=0.5)
    encode(songs, tmp_path / "codes", model)
    there = open_songs(songs)
    for split in ("train", "test"):
        codes = EncodedCodes(tmp_path / "codes", steps=10, split=split)
        assert [song.name for song in codes.songs] == [song.name for song in getattr(there, split)]


def test_codes_that_lack_or_are_damaged_are_told(tmp_path, model):
    with pytest.raises(RunError, match="holds no codes"):
        EncodedCodes(tmp_path, steps=10)
    songs = small_folder(tmp_path / "songs", songs=2)
    encode(songs, tmp_path / "codes", model)
    shard = tmp_path / "codes" / "shards" / "00000.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:100])
    with pytest.raises(RunError, match="is damaged"):
        EncodedCodes(tmp_path / "codes", steps=10)
    shard.unlink()
    with pytest.raises(RunError, match="is missing"):
        EncodedCodes(tmp_path / "codes", steps=10)


def test_the_decoder_trains_alone(tmp_path, model):
    """The loss is that of the whole model on the same song and words, and Trainer lowers it."""
    songs = small_folder(tmp_path / "songs", songs=3)
    encode(songs, tmp_path / "codes", model, text=model)
    data = EncodedCodes(tmp_path / "codes", steps=100, split=None, text_states=True, count=4, labels=Captions())
    whole, alone = tiny_musicgen(), MusicgenForCausalLM.from_pretrained(model).eval()
    item = data[0]
    batch = DelayedCollator()([item])
    from tiny import tiny_tokenizer

    ids = tiny_tokenizer()(item["text"], return_tensors="pt").input_ids
    expected = whole(input_ids=ids, attention_mask=torch.ones_like(ids), labels=batch["labels"]).loss
    assert alone(**batch).loss.item() == pytest.approx(expected.item(), rel=1e-3)  # states are kept in float16
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=20, learning_rate=3e-3, per_device_train_batch_size=4, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=20, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(alone, arguments, train_dataset=data, data_collator=DelayedCollator(), callbacks=[Epochs(data)])
    before = trainer.evaluate(data)["eval_loss"]
    trainer.train()
    assert trainer.evaluate(data)["eval_loss"] < 0.9 * before


def test_text_is_withheld(tmp_path, model):
    songs = small_folder(tmp_path / "songs", songs=2)
    encode(songs, tmp_path / "codes", model, text=model)
    data = EncodedCodes(tmp_path / "codes", steps=50, split=None, text_states=True, withhold=0.5, count=200)
    masks = [bool(data[i]["encoder_attention_mask"].any()) for i in range(200)]
    assert 70 < sum(masks) < 130
    none = next(i for i, mask in enumerate(masks) if not mask)
    assert not data[none]["encoder_hidden_states"].any()
    data.set_epoch(1)
    assert [bool(data[i]["encoder_attention_mask"].any()) for i in range(200)] != masks


def test_codes_are_read_without_audio_libraries(tmp_path, model, request):
    if request.config.getoption("jaxtyping_packages"):
        pytest.skip("checked types and modules that are imported twice don't go together")
    songs = small_folder(tmp_path / "songs", songs=2)
    encode(songs, tmp_path / "codes", model)
    with patch.dict(sys.modules):  # in which tunesmith is imported anew, without
        for name in [name for name in sys.modules if name.partition(".")[0] == "tunesmith"]:
            del sys.modules[name]
        sys.modules.update(dict.fromkeys(("soundfile", "soxr", "av")))
        encoded = import_module("tunesmith.training.encoded")
        assert encoded.EncodedCodes is not EncodedCodes
        assert encoded.EncodedCodes(tmp_path / "codes", steps=10, split=None)[0]["codes"].shape == (4, 10)


def test_a_codec_that_has_learnt_is_opened_anew(tmp_path):
    """In the same process, under the same name."""
    songs, folder = small_folder(tmp_path / "songs", songs=1), tmp_path / "codec"
    for run in ("before", "after"):
        tiny_musicgen().audio_encoder.save_pretrained(folder)
        if run == "after":
            codec = EncodecModel.from_pretrained(folder)
            for book in codec.quantizer.books:
                book.embed.copy_(book.embed.flip(0))
            codec.save_pretrained(folder)
        encode(songs, tmp_path / run, str(folder))
    before, after = (load_file(tmp_path / run / "shards/00000.safetensors")["0.flac"] for run in ("before", "after"))
    assert not torch.equal(before, after)
    assert Encoding.read(tmp_path / "before").codec_hash != Encoding.read(tmp_path / "after").codec_hash


@pytest.mark.parametrize("wrong", [{"part": (3, 2)}, {"part": (0, 2)}, {"shard_songs": 0}, {"workers": 0}])
def test_jobs_that_make_no_sense(tmp_path, model, wrong):
    songs = open_songs(small_folder(tmp_path / "songs", songs=1))
    with pytest.raises(RequestError):
        Job(songs=songs, out=tmp_path, codec=model, **wrong)


def test_songs_are_listed_for_people(tmp_path, model):
    encode(small_folder(tmp_path / "songs", songs=1), tmp_path / "codes", model)
    [row] = [json.loads(line) for line in (tmp_path / "codes" / "songs.jsonl").read_text().splitlines()]
    assert row["name"] == "0.flac"
    assert row["metadata"]["text"] == "song 0"
