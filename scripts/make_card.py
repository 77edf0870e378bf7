"""Write the bundled model's card (README.md) from the records beside its weights: evaluation.json and training.json.

python scripts/make_card.py src/tunesmith/assets/pocket
"""

import argparse
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """---
license: apache-2.0
library_name: tunesmith
pipeline_tag: text-to-audio
tags: [music, musicgen, encodec]
---

# {name}

A small MusicGen that ships with tunesmith: words in, instrumental music out, offline, on a laptop.  All parts (codec,
text encoder, language model) were trained from scratch for this package.  It is an ordinary checkpoint: nothing in the
code knows that it is small.

    tunesmith generate "a lively jig for violin with drums, 120 bpm" --seconds 10 --seed 7 --out song.wav

{state}

Nobody's ears went into this page: every statement about quality is a figure, and the commands at the end print it."""

DATA = """## Data and licences

All training music was made by tunesmith's own corpus generator (`tunesmith.training.corpus`; docs/corpus.md has each
source and its terms): half of the clips are composed by rules, four in ten are traditional dance tunes from books of
1778 to 1903 in the public domain, one in ten is a chorale by J. S. Bach.  FluidSynth played them with the soundfont
FluidR3 (Frank Wen, MIT licence).  Captions come from the parameters that were played, so they are exact.  No recording
and no performer went in, and no rendered audio is shipped.  The weights are under Apache-2.0, as the code.

Training, validation and test share no work (tunes that several books have are one work); the held-out figures below are
of works, and partly of pairs of style and lead instrument, that training never saw."""

LIMITS = """- It has heard only a soundfont: no real performance, no singing.  Voices are the soundfont's choir.
- Its codec is narrow (see "Sizes"): dull treble, and a watery or radio-like colour.
- It has read the words of its corpus alone (instruments, styles, moods, keys, tempos, metres); how far its music
  follows them, "Control" says.  Other words are reported and ignored.
- It keeps no steady beat, whatever tempo is asked for, and a floor of noise lies between its notes ("Control" and the
  pulse say how much).
- It knows no artists, no songs and no lyrics.
- Songs are at most 30 s in one piece, and form beyond a few phrases is not to be expected."""

MEASURE = """## Measured how

    pip install essentia && pip install --no-deps musicnn
    python scripts/evaluate_pocket.py
    python scripts/make_card.py {folder}

The gates were frozen before training (scripts/pocket_protocol.json, SHA-256 `{protocol}`).
Key and tempo are heard by essentia {essentia} (KeyExtractor and RhythmExtractor2013; AGPL-3.0, a test tool only),
instruments, drums and embeddings by musicnn (Pons and Serra 2019; ISC).  The control score is
(own - permuted) / (ceiling - permuted): how often a clip meets its own prompt, how often it meets the other prompts,
and how often corpus renders with the same labels meet theirs.  Leads and the tags that stand for them: {leads}.
The asked lead must be among the two strongest of these tags, each measured against its usual strength on renders.
Weights: SHA-256 `{weights}`."""


def card(
    folder: Path, evaluation: Mapping[str, Any], training: Mapping[str, Any], leads: Mapping[str, Sequence[str]]
) -> str:
    """The whole page."""
    parts = [
        HEAD.format(name=evaluation["model"], state=state(evaluation)),
        gates(evaluation),
        "## Sizes\n\n" + table(("part", "size"), sizes(folder)),
        DATA,
        training_section(training),
        language_section(evaluation.get("language")),
        codec_section(evaluation.get("codec"), evaluation.get("ceiling")),
        control_section(evaluation),
        other_section(evaluation),
        "## What it can't do\n\n" + LIMITS + "".join(f"\n- {lack}" for lack in lacks(evaluation)),
        MEASURE.format(
            folder=f"src/tunesmith/assets/{folder.name}",
            protocol=evaluation["protocol"]["sha256"],
            essentia=evaluation["analysers"].get("essentia", ""),
            weights=evaluation.get("weights_sha256", "unknown"),
            leads=", ".join(f"{name} ({' or '.join(tags)})" for name, tags in leads.items()),
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def state(evaluation: Mapping[str, Any]) -> str:
    """How it stands with the gates, in a sentence or two."""
    found = evaluation["gates"]
    failed = [gate["name"] for gate in found if not gate["passed"]]
    trained = {"cpu": "a CPU", "gpu": "a GPU"}[evaluation["protocol"]["trained_on"]]
    text = f"It was trained on {trained} and passes {len(found) - len(failed)} of that case's {len(found)} gates."
    if failed:
        text += f"  **It falls short of: {'; '.join(failed)}.**"
    if evaluation["protocol"]["quick"]:
        text += "  **These figures are from a quick run with few clips: they show that the measuring works, no more.**"
    return text


def gates(evaluation: Mapping[str, Any]) -> str:
    """All gates and aims with their verdicts."""
    rows = [(*_verdict(gate), "gate") for gate in evaluation["gates"]]
    rows += [(*_verdict(aim), "aim") for aim in evaluation["aims"]]
    return "## Gates\n\n" + table(("what", "measured", "wanted", "verdict", "kind"), rows)


def _verdict(gate: Mapping[str, Any]) -> tuple[str, str, str, str]:
    sense, sign = ("at_least", "≥") if "at_least" in gate else ("at_most", "≤")
    value = "not measured" if gate["value"] is None else number(gate["value"])
    return gate["name"], value, f"{sign} {gate[sense]:g}", "passed" if gate["passed"] else "**failed**"


def sizes(folder: Path) -> list[tuple[str, str]]:
    """Parameters of each part, and the size of the file."""
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    counts: dict[str, int] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            part = PARTS.get(name.split(".")[0], "other")
            counts[part] = counts.get(part, 0) + math.prod(tensor["shape"])
    rows = [(part, f"{count:,} parameters") for part, count in sorted(counts.items())]
    rows += [("all", f"{sum(counts.values()):,} parameters"), ("file", f"{weights.stat().st_size / 1e6:.1f} MB")]
    return [*rows, ("sound", sound(json.loads((folder / "config.json").read_text())["audio_encoder"]))]


def sound(codec: Mapping[str, Any]) -> str:
    """What the codec carries, from its configuration."""
    rate, size = codec["sampling_rate"], codec["codebook_size"]
    frames = rate / math.prod(codec["upsampling_ratios"])
    kilobits = codec["target_bandwidths"][-1]
    books = round(1000 * kilobits / frames / math.log2(size))
    channels = {1: "mono", 2: "stereo"}[codec["audio_channels"]]
    grid = f"{frames:g} frames/s of {books} codes from books of {size}"
    return f"{rate / 1000:g} kHz {channels}, {grid}: {kilobits:g} kbit/s"


PARTS = {
    "audio_encoder": "codec",
    "decoder": "language model",
    "text_encoder": "text encoder",
    "enc_to_dec_proj": "text projection",
}


def training_section(training: Mapping[str, Any]) -> str:
    """What the trainers wrote down, whatever it is: plain values as one table, groups as one each."""
    if not training:
        return "## Training\n\nNo training record came with these weights."
    groups = {name: value for name, value in training.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in training.items() if name not in groups}
    parts = [table(("", ""), [(_words(n), _fact(n, v)) for n, v in plain.items()])] if plain else []
    for name, facts in groups.items():
        rows = [(_words(n), _fact(n, v)) for n, v in facts.items()]
        parts.append(f"### {_words(name).capitalize()}\n\n" + table(("", ""), rows))
    return "## Training\n\n" + "\n\n".join(parts)


def language_section(found: Mapping[str, Any] | None) -> str:
    """Nats per token, by codebook."""
    if not found:
        return ""
    names = {
        "true": "with its own text",
        "withheld": "text withheld",
        "wrong": "another clip's text",
        "unigram": "by frequency alone",
    }
    books = found["by_codebook"]
    rows = [(names[n], *map(number, books[n]), number(found["mean"][n])) for n in names]
    head = ("held-out loss", *(f"book {k + 1}" for k in range(len(books["true"]))), "mean")
    told = f"{found['clips']} held-out clips of 10 s, in nats per token."
    return f"## Language model\n\n{told}\n\n" + table(head, rows)


def codec_section(found: Mapping[str, Any] | None, ceiling: Mapping[str, Any] | None) -> str:
    """Reconstruction, use of the codes, and what analysers still hear."""
    if not found:
        return ""
    rows = [
        ("SI-SDR", f"{found['si_sdr']:.2f} dB"),
        ("mel distance", f"{found['mel_distance_db']:.2f} dB"),
        ("log-spectral distance", f"{found['log_spectral_distance_db']:.2f} dB"),
        ("perplexity of the codebooks", ", ".join(f"{value:.0f}" for value in found["perplexity"])),
        ("codes in use", ", ".join(f"{value:.0%}" for value in found["code_usage"])),
    ]
    text = f"## Codec\n\n{found['clips']} held-out clips of 10 s; spectra end at -74 dBFS.\n\n" + table(("", ""), rows)
    if ceiling:
        heard = [(axis, percent(ceiling["own"][axis]), percent(share)) for axis, share in found["own"].items()]
        text += "\n\nWhat analysers hear of the labels:\n\n" + table(
            ("axis", "in renders", "in reconstructions"), heard
        )
    return text


def control_section(evaluation: Mapping[str, Any]) -> str:
    """Does the music follow the prompt?"""
    found = evaluation.get("control")
    if not found:
        return ""
    axes = [name for name, value in found.items() if "score" in value]
    head = ("axis", "own prompt", "other prompts", "renders (ceiling)", "score")
    count = evaluation["protocol"]["counts"]["prompts"]
    text = f"## Control\n\n{count} clips from prompts that name lead, drums, key and tempo.\n\n"
    text += table(head, [_scores(axis, found[axis]) for axis in axes])
    if single := evaluation.get("single"):
        count = evaluation["protocol"]["counts"]["single"]
        text += f"\n\nPrompts that name one axis alone ({count} clips each):\n\n"
        text += table(head, [_scores(axis, value) for axis, value in single.items()])
    ceiling = evaluation.get("ceiling", {}).get("lead_by_instrument", {})
    rows = [(lead, percent(share), percent(ceiling.get(lead))) for lead, share in found["lead_by_instrument"].items()]
    return text + "\n\nLead instrument among the top two:\n\n" + table(("lead", "generated", "renders"), rows)


def _scores(axis: str, value: Mapping[str, float]) -> tuple[str, ...]:
    return axis, *(percent(value[name]) for name in ("own", "permuted", "ceiling")), number(value["score"])


def other_section(evaluation: Mapping[str, Any]) -> str:
    """Soundness, likeness, copying, sameness."""
    rows: list[tuple[str, str]] = []
    if sound := evaluation.get("sanity"):
        rows.append(("silent, clipped or noisy clips", f"{sound['failed']} of {sound['clips']}"))
    if pulse := evaluation.get("rhythm"):
        told = f"renders {pulse['ceiling']:.2f}, codec {pulse['reconstructed']:.2f}, generated {pulse['generated']:.2f}"
        rows.append(("pulse: autocorrelation of onsets, median", told))
    if far := evaluation.get("distance"):
        names = ("renders", "codec", "generated", "unigram")
        told = ", ".join(f"{name} {far[name]:.1f}" for name in names)
        rows.append((f"Frechet distance to renders (musicnn, {far['embeddings']} embeddings)", told))
    if memory := evaluation.get("memory"):
        told = f"generated {memory['generated']} frames, held-out music {memory['held_out']}"
        rows.append((f"longest run of first-book codes shared with {memory['training_clips']} training clips", told))
    if spread := evaluation.get("diversity"):
        rows.append(
            (
                f'spread of {spread["clips"]} takes of "{spread["prompt"]}"',
                f"{spread['ratio']:.2f} of that of one style",
            )
        )
    return "## Also measured\n\n" + table(("", ""), rows) if rows else ""


def lacks(evaluation: Mapping[str, Any]) -> Iterable[str]:
    """A sentence for each gate and aim that it misses."""
    for kind in ("gates", "aims"):
        for gate in evaluation[kind]:
            if not gate["passed"]:
                name, value, wanted, _ = _verdict(gate)
                yield f"Falls short: {name} is {value}, wanted {wanted}."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three places after the point; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else str(value)


def percent(share: float | None) -> str:
    """Whole percents, likewise."""
    return "–" if share is None else f"{share:.0%}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _fact(name: str, value: Any) -> str:
    """A value of training.json: lengths of time with a unit, numbers with thousands, lists and groups on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_fact(key, item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_fact(name, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("seconds") or name.startswith("seconds"):
        return (
            f"{value / 3600:,.1f} h" if value >= 3600 else f"{value / 60:,.1f} min" if value >= 60 else f"{value:g} s"
        )
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def main() -> None:
    """Read the folder's records and write its card."""
    parser = argparse.ArgumentParser(description="Write the bundled model's card.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("src/tunesmith/assets/pocket"))
    folder: Path = parser.parse_args().folder
    record = folder / "training.json"
    training = json.loads(record.read_text()) if record.is_file() else {}
    rules = json.loads(Path(__file__).with_name("pocket_protocol.json").read_text())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    part = folder / "part-README.md"
    part.write_text(card(folder, evaluation, training, rules["control"]["leads"]), encoding="utf-8")
    part.replace(folder / "README.md")
    print(f"{folder / 'README.md'}: {state(evaluation)}")


if __name__ == "__main__":
    main()
