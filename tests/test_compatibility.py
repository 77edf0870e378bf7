"""docs/compatibility.md is complete, and every test that it names exists."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import tunesmith
from tunesmith.pipelines.levels import Options

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS.parent / "docs" / "compatibility.md").read_text()
NAMED = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)


def test_every_named_test_exists() -> None:
    assert len(NAMED) > 100
    for file, name in NAMED:
        assert f"\ndef {name}(" in (TESTS / file).read_text(), f"{file}::{name}"


def test_every_row_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.rstrip().endswith("| Test |")]
    assert len(rows) > 90
    for row in rows:
        assert re.search(r"`[\w/]+\.py::\w+`", row.split(" | ")[-1]), row


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("MusicgenModel", "forward"),
        ("MusicgenForCausalLM", "forward"),
        ("MusicgenForCausalLM", "generate"),
        ("MusicgenForConditionalGeneration", "__init__"),
        ("MusicgenForConditionalGeneration", "forward"),
        ("MusicgenForConditionalGeneration", "generate"),
    ],
)
def test_every_argument_has_a_row(kind: str, method: str) -> None:
    for name in set(inspect.signature(getattr(getattr(tunesmith, kind), method)).parameters) - {"self", "kwargs"}:
        assert f"`{name}`" in PAGE, f"{kind}.{method}({name})"


def test_every_documented_argument_has_a_row() -> None:
    decoder = PAGE.split("## MusicgenDecoderConfig")[1].split("##")[0]
    for name in set(tunesmith.MusicgenDecoderConfig().keys()) - {
        "eos_token_id",
        "is_decoder",
        "add_cross_attention",
        "cross_attention_hidden_size",
    }:
        assert f"`{name}`" in decoder, name


@pytest.mark.parametrize("kind", ["JukeboxConfig", "JukeboxPriorConfig", "JukeboxVQVAEConfig"])
def test_every_setting_of_jukebox_has_a_row(kind: str) -> None:
    """Those that transformers 4.40.2 has; those of training are described where they are."""
    ours = {"reverse_decoder_dilation", "revival_threshold", "spectral", "multispectral", "loss_fn", "linf_k"}
    ours |= {"use_nonrelative_specloss", "bandwidth", "tie_word_embeddings", "model_type", "base_config_key"}
    section = PAGE.split(f"## {kind}\n")[1].split("\n## ")[0]
    for name in set(vars(getattr(tunesmith, kind))["__annotations__"]) - ours - {"sub_configs"}:
        if not name.startswith(("lmix_", "multispec_")) and (kind, name) != ("JukeboxVQVAEConfig", "sampling_rate"):
            assert f"`{name}`" in section, name


def test_every_option_of_jukebox_has_a_row() -> None:
    section = PAGE.split("## JukeboxModel\n")[1].split("\n## ")[0]
    for field in fields(Options):
        assert f"`{field.name}`" in section, field.name
