"""What a prior of Jukebox can't be given gets a sentence."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tiny_prior import conditions, inputs, prior
from tunesmith.errors import RequestError
from tunesmith.models.jukebox_checks import check_sampling


def relabelled(column: int, value: int) -> Any:
    def change(given: dict[str, Tensor]) -> None:
        given["labels"][0, column] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("plain", lambda g: g["codes"].fill_(12), "codes holds values from 12 to 12; .* between 0 and 11"),
        ("plain", lambda g: g["codes"].fill_(-1), "codes holds values from -1"),
        ("plain", lambda g: g.update(codes=g["codes"].float()), "codes has type torch.float32"),
        ("plain", lambda g: g.update(codes=g["codes"][0]), "1 to 24 steps"),
        ("plain", lambda g: g.update(codes=torch.zeros(3, 25, dtype=torch.long)), r"codes is \[3, 25\]"),
        ("plain", lambda g: g.update(codes=g["codes"][:, :0]), r"codes is \[3, 0\]"),
        ("plain", lambda g: g.update(labels=g["labels"][:, :5]), r"\[3, 5\]; this prior needs torch.int64 \[3, 6\]"),
        ("single", lambda g: g.update(labels=g["labels"][:, :6]), "4 numbers, 2 genres, 8 lyric tokens"),
        ("plain", lambda g: g.update(labels=g["labels"][:2]), r"\[2, 6\]"),
        ("plain", lambda g: g.update(labels=g["labels"].float()), "labels has type torch.float32"),
        ("plain", lambda g: g.pop("labels"), r"needs labels: int64 \[3, 6\]"),
        ("plain", lambda g: g.update(upper_codes=g["codes"]), "leave upper_codes out"),
        ("upsampler", lambda g: g.pop("upper_codes"), r"needs upper_codes, \[3, 6\]"),
        ("upsampler", lambda g: g.update(upper_codes=g["upper_codes"][:, :5]), r"\[3, 5\]; a window .* \[3, 6\]"),
        ("upsampler", lambda g: g["upper_codes"].fill_(40), "upper_codes holds values from 40 to 40"),
        ("plain", relabelled(3, 9), "artists from .* to 9; this model's lie between 0 and 8"),
        ("plain", relabelled(3, -1), "artists from -1"),
        ("plain", relabelled(4, 5), "genres from .* to 5; this model's lie between -1 and 4"),
        ("single", relabelled(-1, 7), "lyric tokens from .* to 7; this model's lie between 0 and 6"),
        ("single", relabelled(-1, -1), "lyric tokens from -1"),
        ("plain", relabelled(0, 499), "total lengths from 499 .* between 500 and 9999"),
        ("plain", relabelled(0, 10_000), "total lengths from .* to 10000"),
        ("plain", relabelled(1, -1), "an offset must be at least 0 and below its total length"),
        ("plain", relabelled(1, 9999), "an offset must be at least 0"),
        ("plain", relabelled(2, -1), "window lengths from -1"),
    ],
)
def test_wrong_inputs_get_a_sentence(kind: str, change: Any, sentence: str) -> None:
    model = prior(kind)
    given = inputs(model)
    change(given)
    with pytest.raises(RequestError, match=sentence):
        model(**given)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n_samples": 0}, "n_samples is 0"),
        ({"sample_tokens": 0}, "sample_tokens is 0, but it must be from 1 to 24"),
        ({"sample_tokens": 25}, "sample_tokens is 25"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"seeds": [1]}, "1 seeds for 3 samples"),
        ({"seeds": 1.5}, "seeds is 1.5; give a whole number"),
        ({"seeds": -1}, "seeds is -1; give a whole number from 0"),
        ({"seeds": True}, "seeds is True"),
        ({"codes": [[1, 2]]}, "codes has type list; it must be a tensor of whole numbers"),
        ({"labels": np.zeros((3, 6), np.int64)}, "labels has type ndarray"),
        ({"generators": [torch.Generator()]}, "1 generators for 3 samples"),
        ({"codes": torch.zeros(3, 10, dtype=torch.long), "sample_tokens": 9}, "3 samples of 9 codes in all"),
        ({"codes": torch.zeros(2, 4, dtype=torch.long)}, r"codes is \[2, 4\], but 3 samples"),
        ({"codes": torch.full((3, 4), 12)}, "codes holds values from 12"),
    ],
)
def test_wrong_settings_get_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    model = prior("plain")
    with pytest.raises(RequestError, match=sentence):
        model.sample(**{"n_samples": 3, **conditions(inputs(model)), **settings})


@pytest.mark.parametrize("value", ["a", 1.5, math.nan, [1], True, None])
def test_settings_of_other_types_get_a_sentence(value: Any) -> None:
    right = {"samples": 1, "steps": 3, "window": 8, "temperature": 1.0, "top_k": 0, "top_p": 0.0, "chunk_size": None}
    check_sampling(**right)
    for name in ("samples", "steps", "top_k"):
        with pytest.raises(RequestError, match=rf"is {re.escape(repr(value))}, but it must be"):
            check_sampling(**{**right, name: value})


def test_wrong_layers_get_a_sentence() -> None:
    model = prior("plain")
    given = inputs(model)
    with pytest.raises(RequestError, match=r"layer is 5; this prior has layers 0 \(the input\) to 4"):
        model.activations(**given, layer=5)
    with pytest.raises(RequestError, match="no layer 68, head None; this prior has layers 0 to 3 and heads 0 to 1"):
        model.attention(**given)
    with pytest.raises(RequestError, match="no layer 0, head 2"):
        model.attention(**given, layer=0, head=2)
