"""Codec and language model runs on small data: they learn, and go on where they stopped."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunesmith.codecs.encodec import EncodecConfig, EncodecModel
from tunesmith.errors import RequestError
from tunesmith.pipelines.musicgen import MusicgenForConditionalGeneration
from tunesmith.pipelines.processor import load_tokenizer
from tunesmith.training.codec import CodecRecipe, train_codec
from tunesmith.training.corpus import vocabulary
from tunesmith.training.data import Crops, Shards
from tunesmith.training.language_model import (
    CaptionedCodes,
    Collator,
    LanguageRecipe,
    delayed_labels,
    pocket_tokenizer,
    save_model,
    train_language_model,
)
from tunesmith.training.losses import MelLoss, soft_si_sdr
from tunesmith.training.runs import Schedule

PACK = Path(__file__).parents[2] / "scripts" / "pack_pocket.py"
LABELS = {
    "source": "composed",
    "title": "x",
    "work": "x",
    "genre": "waltz",
    "bpm": 100.0,
    "tonic": "C",
    "mode": "major",
    "metre": "3/4",
    "lead": "piano",
    "instruments": ["piano"],
    "drums": False,
    "density": "steady",
    "notes_per_second": 2.0,
    "energy": "moderate",
    "moods": ["bright"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of two seconds at 2000 Hz: chords of sines."""
    folder = tmp_path_factory.mktemp("shards")
    t = np.arange(4000) / 2000
    clips = np.stack([np.sin(2 * np.pi * f * t) + np.sin(3 * np.pi * f * t) for f in (110, 140, 170, 200)])
    np.save(folder / "train-00000.npy", (clips * 8000).astype(np.int16))
    lines = [json.dumps({"index": i, "caption": "piano", "labels": LABELS}) for i in range(4)]
    (folder / "train-00000.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def small_codec() -> EncodecConfig:
    return EncodecConfig(
        sampling_rate=2000,
        hidden_size=8,
        num_filters=2,
        upsampling_ratios=[2, 4, 5],
        num_lstm_layers=1,
        codebook_size=16,
        target_bandwidths=[0.8],
        use_causal_conv=False,
        use_conv_shortcut=False,
    )


def schedule(**changes: float) -> Schedule:
    settings = {"steps": 24, "batch": 2, "warmup": 2, "log_every": 4, "learning_rate": 5e-3}
    return Schedule(**settings | changes)


def codec_recipe(shards: Path, run: Path, **changes: float) -> CodecRecipe:
    return CodecRecipe(data=shards, run=run, quantize_after=4, schedule=schedule(**changes))


@pytest.fixture(scope="module")
def codec_run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("codec")
    train_codec(codec_recipe(shards, run), small_codec())
    return run


def test_codec_learns(codec_run: Path) -> None:
    records = [json.loads(line) for line in (codec_run / "history.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]
    assert all({"mel", "wave", "si_sdr", "commitment"} <= set(record) for record in records if "loss" in record)
    assert all(book.inited for book in EncodecModel.from_pretrained(codec_run / "codec").quantizer.books)


def test_interrupted_equals_uninterrupted(codec_run: Path, shards: Path, tmp_path: Path) -> None:
    recipe = codec_recipe(shards, tmp_path)
    train_codec(replace(recipe, schedule=schedule(budget_seconds=0.0)), small_codec())  # stops after one step
    assert json.loads((next(tmp_path.glob("checkpoint-*")) / "trainer_state.json").read_text())["global_step"] < 24
    train_codec(recipe, small_codec())
    whole, halves = (load_file(run / "codec/model.safetensors") for run in (codec_run, tmp_path))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def test_frozen_encoder_keeps_codes(codec_run: Path, shards: Path, tmp_path: Path) -> None:
    before = EncodecModel.from_pretrained(codec_run / "codec")
    recipe = replace(codec_recipe(shards, tmp_path), start=codec_run / "codec", freeze_encoder=True)
    after = train_codec(recipe)
    audio = Shards(shards).crop(0, 0, 4000)[None, None]
    assert torch.equal(before.encode_codes(audio), after.encode_codes(audio))
    assert not torch.equal(
        before.decode_codes(before.encode_codes(audio)), after.decode_codes(after.encode_codes(audio))
    )


@pytest.fixture(scope="module")
def language_run(codec_run: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lm")
    train_language_model(language_recipe(codec_run, shards, run))
    return run


def language_recipe(codec_run: Path, shards: Path, run: Path) -> LanguageRecipe:
    return LanguageRecipe(
        data=shards,
        codec=codec_run / "codec",
        run=run,
        width=16,
        layers=1,
        heads=2,
        seconds=1.0,
        short_seconds=0.5,
        schedule=schedule(),
    )


def test_language_model_learns_and_is_complete(language_run: Path) -> None:
    assert str(language_run.parent.parent) not in (language_run / "model/config.json").read_text()
    records = [json.loads(line) for line in (language_run / "history.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]
    model = MusicgenForConditionalGeneration.from_pretrained(language_run / "model")
    assert model.config.decoder.num_codebooks == 4
    assert load_tokenizer(language_run / "model")("Piano").input_ids == pocket_tokenizer()("piano").input_ids


def test_interrupted_language_run_equals_uninterrupted(
    language_run: Path, codec_run: Path, shards: Path, tmp_path: Path
) -> None:
    recipe = language_recipe(codec_run, shards, tmp_path)
    train_language_model(replace(recipe, schedule=schedule(budget_seconds=0.0)))
    assert json.loads((next(tmp_path.glob("checkpoint-*")) / "trainer_state.json").read_text())["global_step"] < 24
    train_language_model(recipe)
    whole, halves = (load_file(run / "model/model.safetensors") for run in (language_run, tmp_path))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def test_weights_alone_are_a_start(language_run: Path, codec_run: Path, shards: Path, tmp_path: Path) -> None:
    recipe = replace(language_recipe(codec_run, shards, tmp_path), start=language_run / "model")
    still = dict.fromkeys(("embedding_learning_rate", "head_learning_rate", "text_learning_rate"), 0.0)
    model = train_language_model(replace(recipe, schedule=schedule(learning_rate=0.0), **still))
    saved = load_file(language_run / "model/model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in model.decoder.named_parameters(prefix="decoder"))


def test_packing_keeps_the_weights_and_tells_of_each_run(language_run: Path, codec_run: Path, tmp_path: Path) -> None:
    packing = [sys.executable, PACK, "--language", language_run, "--codec", codec_run, "--target", tmp_path]
    subprocess.run(packing, check=True)
    packed, trained = (
        MusicgenForConditionalGeneration.from_pretrained(folder) for folder in (tmp_path, language_run / "model")
    )
    pairs = zip(packed.parameters(), trained.parameters(), strict=True)
    assert all(torch.equal(p, q.half().float()) for p, q in pairs)
    facts = json.loads((tmp_path / "training.json").read_text())
    (codec,), (language,) = facts["codec"]["runs"], facts["language_model"]["runs"]
    assert (codec["steps_done"], codec["batch"], language["width"], language["codec"]) == (24, 2, 16, "codec")


def test_packing_refuses_another_codec(language_run: Path, codec_run: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    EncodecModel(small_codec()).save_pretrained(tmp_path / "other/codec")
    other = ["--language", language_run, "--codec", tmp_path / "other", "--target", tmp_path / "packed"]
    packing = [sys.executable, PACK, *other]
    done = subprocess.run(packing, capture_output=True, text=True)
    assert "was trained on codes of another codec" in done.stderr
    assert not (tmp_path / "packed").exists()


def test_half_precision_files_load_in_float32(language_run: Path, tmp_path: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(language_run / "model")
    save_model(model, pocket_tokenizer(), tmp_path, torch.float16)
    kinds = {t.dtype for t in load_file(tmp_path / "model.safetensors").values() if t.is_floating_point()}
    assert kinds == {torch.float16}
    assert MusicgenForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.float32


def test_delayed_labels() -> None:
    codes = torch.arange(1, 9).reshape(1, 2, 4)  # two books of four frames
    assert delayed_labels(codes)[0].T.tolist() == [[1, 2, 3, 4], [-100, 5, 6, 7]]


def test_hidden_steps_are_hidden_as_inputs_only() -> None:
    codes, hidden = torch.arange(8).reshape(2, 4), torch.tensor([False, False, True, False])
    item = {"long": {"codes": codes, "text": None, "hidden": hidden}, "short": [], "chance": 0.0}
    batch = Collator(pocket_tokenizer(), special=99)([item])
    assert batch["decoder_input_ids"][0].tolist() == [[99, 0, 99, 2], [99, 99, 99, 5]]
    assert torch.equal(batch["labels"], delayed_labels(codes[None]))
    assert batch["attention_mask"].sum() == 0  # withheld


def test_short_crops_fill_whole_batches(language_run: Path, codec_run: Path, shards: Path) -> None:
    whole = language_recipe(codec_run, shards, language_run)
    recipe = replace(whole, seconds=1.0, short=0.5, short_seconds=0.25, hide=1.0)
    data = CaptionedCodes(language_run / "codes", shards, rate=40.0, recipe=recipe)
    items = [data[i] for i in range(40)]
    for crop in (crop for item in items for crop in item["short"]):
        assert crop["codes"].shape[1] == 10
        assert any((clip[:, :10] == crop["codes"].numpy()).all() for clip in data.codes)  # a beginning
    assert any(crop["hidden"].any() for item in items for crop in item["short"])
    assert not any(item["long"]["hidden"].any() for item in items)
    collate = Collator(pocket_tokenizer(), special=99, short=0.5)
    shapes = [tuple(collate(items[i : i + 2])["labels"].shape[:2]) for i in range(0, 40, 2)]
    assert set(shapes) == {(2, 40), (8, 10)}


def test_crops_longer_than_clips_are_refused(language_run: Path, codec_run: Path, shards: Path) -> None:
    recipe = replace(language_recipe(codec_run, shards, language_run), seconds=100.0)
    with pytest.raises(RequestError, match="Crops of 100 s don't fit into clips of"):
        CaptionedCodes(language_run / "codes", shards, rate=40.0, recipe=recipe)


def test_tokenizer_is_closed_and_ignores_case() -> None:
    tokenizer = pocket_tokenizer()
    assert not any(tokenizer.unk_token_id in tokenizer(word).input_ids for word in vocabulary())
    assert tokenizer("80s  Pop").input_ids == tokenizer("80s pop").input_ids
    assert tokenizer("dubstep").input_ids.count(tokenizer.unk_token_id)
    assert tokenizer("121 bpm").input_ids[0] == tokenizer("129 bpm").input_ids[0]  # tens are shared


def test_losses_are_zero_for_equal_signals() -> None:
    x = torch.randn(2, 4000)
    assert MelLoss(16_000)(x, x) == 0
    assert MelLoss(16_000)(x, 0.5 * x) == pytest.approx(np.log(2), rel=0.05)
    assert soft_si_sdr(x, 0.3 * x).min() > 60  # the scale doesn't count


def test_crops_depend_on_their_index_alone(shards: Path) -> None:
    crops = Crops(Shards(shards), samples=500, count=10, seed=3)
    assert torch.equal(crops[7]["audio"], Crops(Shards(shards), samples=500, count=99, seed=3)[7]["audio"])
    assert not torch.equal(crops[7]["audio"], crops[8]["audio"])


def test_no_shards(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no shards"):
        Shards(tmp_path)
