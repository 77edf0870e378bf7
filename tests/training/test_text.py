"""A text encoder that learns to read captions, and a language model that takes it as it is."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5EncoderModel

from tunesmith.errors import RequestError
from tunesmith.pipelines.processor import load_tokenizer
from tunesmith.training.corpus import Corpus, Labels, specify
from tunesmith.training.runs import Schedule
from tunesmith.training.text import Captions, TextRecipe, facts, pocket_tokenizer, read_labels
from tunesmith.training.text import train_text_encoder as train_it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of 64 clips that nobody rendered."""
    folder = tmp_path_factory.mktemp("labels")
    corpus = Corpus(seed=3)
    lines = [json.dumps({"labels": corpus.labels_for(i).as_dict()}) for i in range(64)]
    (folder / "train-00000.jsonl").write_text("\n".join(lines))
    return folder


def recipe(data: Path, run: Path, **changes: object) -> TextRecipe:
    schedule = Schedule(steps=200, batch=16, learning_rate=5e-3, beta2=0.98, warmup=5, clip=1.0, log_every=20)
    return TextRecipe(data=data, run=run, width=64, layers=1, specify=1.0, schedule=replace(schedule, **changes))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    train_it(recipe(data, folder))
    return folder


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_it_learns_to_read(run: Path) -> None:
    first, *_, last = [record for record in history(run) if "key" in record]
    assert last["loss"] < 0.7 * first["loss"]
    assert last["key"] > 0.2  # of 24 keys


def test_what_it_writes_is_an_encoder_with_its_tokenizer(run: Path) -> None:
    assert T5EncoderModel.from_pretrained(run / "text").config.d_model == 64
    assert load_tokenizer(run / "text")("Piano").input_ids == pocket_tokenizer()("piano").input_ids


def test_interrupted_equals_uninterrupted(run: Path, data: Path, tmp_path: Path) -> None:
    train_it(recipe(data, tmp_path, budget_seconds=0.0))
    train_it(recipe(data, tmp_path))
    whole, halves = (load_file(folder / "text/model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())


def test_facts_name_what_is_known() -> None:
    labels = Corpus(seed=3).labels_for(0, key="D minor", bpm=120, lead="flute", drums=True)
    assert {"key D minor", "tonic D", "mode minor", "lead flute", "plays flute", "drums True", "tempo 83"} <= facts(
        labels
    )


def test_a_specific_caption_names_all_four() -> None:
    labels = Corpus(seed=3).labels_for(0, key="D minor", bpm=120, lead="flute", drums=False)
    for seed in range(50):
        text = specify(labels, random.Random(seed), typos=0.0)
        assert all(word in text for word in ("d minor", "120", "flut")), text
        assert any(word in text for word in ("no ", "without", "drumless")), text


def test_items_depend_on_their_number_alone(data: Path, tmp_path: Path) -> None:
    labels = read_labels(data)
    few, many = (Captions(labels, count=count, recipe=recipe(data, tmp_path)) for count in (3, 30))
    assert few[2]["text"] == many[2]["text"]
    assert few[2]["facts"].sum() == len(facts(next(item for item in labels if fits(item, few, 2))))


def fits(labels: Labels, captions: Captions, index: int) -> bool:
    told = {name for name, true in zip(captions.names, captions[index]["facts"], strict=True) if true}
    return facts(labels) == told


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="holds no labels"):
        read_labels(tmp_path)
