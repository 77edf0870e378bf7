"""Write the small Jukebox's card (README.md) from the records beside its weights: evaluation.json and training.json.

python scripts/make_jukebox_card.py src/tunesmith/assets/pocket-jukebox
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from make_card import gates, lacks, number, percent, state, table, training_section
from tunesmith.training.corpus.singing import ARTISTS, GENRES

HEAD = """---
license: apache-2.0
library_name: tunesmith
pipeline_tag: text-to-audio
tags: [music, jukebox, singing, lyrics]
---

# {name}

A small Jukebox that ships with tunesmith: artist, genre and one line of lyrics in, four seconds of singing with
accompaniment out, offline, on a laptop.  Two levels of codes, a top prior that reads labels and lyrics, and an
upsampler; all were trained from scratch with `tunesmith train`.  It is an ordinary checkpoint: nothing in the code
knows that it is small.

    tunesmith generate --model {name} --artist "Ada Finch" --genre hymn --seconds 4.096 \\
        --lyrics "the moon will find the ship at night" --seed 7 --out song

{state}

Nobody's ears went into this page: every statement about quality is a figure, and the commands at the end print it."""

DATA = """## Data and licences

All songs were sung by tunesmith's own generator (`tunesmith.training.corpus.singing`; docs/corpus.md says how).  Words:
verses put together by rules from a small vocabulary, and lines of poems, hymns and rhymes in the public domain, the
youngest of 1913.  Voices: eSpeak NG (GPL-3, a tool; what it says isn't derived from it) says the words, the vocoder
WORLD (modified BSD) puts them on notes.  Tunes: the four lines of Old Hundredth (1551), and our own.  FluidSynth played
the accompaniment with the soundfont FluidR3 (Frank Wen, MIT licence).  No recording and no performer went in, and no
audio is shipped.  The singers don't exist.  The weights are under Apache-2.0, as the code.

Artists: {artists}.  Genres: {genres}.  Lyrics are lower-case lines of seven or eight syllables.  No line of the
held-out figures below was sung in training, though nearly all of their words were."""

LIMITS = """## What it can't do

- Its words are heard now and then: the codes keep nearly all of them, but the prior sings more freely than it reads
  ("Which line was sung?").
- Eight kilohertz, six synthetic voices, sixteen tunes: a demonstration of all of Jukebox's parts, no more.
- Four seconds at a time: longer songs are possible, and beyond what it was trained on.
- Words outside its vocabulary are guessed from their letters, mostly wrongly."""

MEASURE = """## How this was measured

`scripts/pocket_jukebox_protocol.json` (SHA-256 {protocol}) was frozen before training.

    pip install tunesmith[singing] pocketsphinx
    python scripts/evaluate_pocket_jukebox.py {folder}
    python scripts/make_jukebox_card.py {folder}

Weights: SHA-256 {weights}.  The judge of sung lines is pocketsphinx (BSD), a test tool."""


def card(folder: Path, evaluation: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The whole page; what was not measured is left out."""
    name = f"tunesmith/{folder.name}"
    parts = [
        HEAD.format(name=name, state=state(evaluation)),
        DATA.format(artists=", ".join(ARTISTS), genres=", ".join(GENRES)),
        gates(evaluation),
        labels_section(evaluation.get("labels")),
        choice_section(evaluation.get("choice")),
        codec_section(evaluation.get("codec")),
        training_section(training),
        LIMITS + "".join(f"\n- {lack}" for lack in lacks(evaluation)),
        MEASURE.format(
            protocol=evaluation["protocol"]["sha256"],
            folder=folder,
            weights=evaluation.get("weights_sha256", "unknown"),
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def labels_section(found: Mapping[str, Any] | None) -> str:
    """Bits per token with each label true, withheld and wrong."""
    if not found:
        return ""
    rows = [
        (label, *(number(found[label][case]) for case in ("true", "withheld", "wrong")))
        for label in ("artist", "genre", "lyrics")
    ]
    told = f"{found['songs']} held-out songs, bits per token of the top level; the other labels stay true."
    return f"## Labels\n\n{told}\n\n" + table(("label", "true", "withheld", "wrong"), rows)


def choice_section(found: Mapping[str, Any] | None) -> str:
    """How often the recogniser picks the line that was asked for."""
    if not found:
        return ""
    names = {
        "true": "the corpus' own songs (ceiling)",
        "bottom": "reconstructed from the bottom level",
        "top": "reconstructed from the top level",
        "generated": "generated",
    }
    rows = [
        (words, percent(found[name]["share"]), percent(found[name]["permuted"]), f"{found[name]['p']:.2g}")
        for name, words in names.items()
        if name in found
    ]
    told = f"{found['songs']} lines, each to be found among ten."
    return f"## Which line was sung?\n\n{told}\n\n" + table(("songs", "found", "permuted", "p"), rows)


def codec_section(found: Mapping[str, Any] | None) -> str:
    """Reconstruction, level by level."""
    if not found:
        return ""
    figures = {
        "codes_per_second": "codes per second",
        "mel_db": "mel distance (dB)",
        "mel_share": "mel distance, relative to another song by the same singer in the same genre",
        "convergence_db": "spectral convergence (dB)",
        "si_sdr": "SI-SDR (dB)",
        "perplexity": "perplexity of the codebook",
        "usage": "share of its codes in use",
    }
    rows = [(words, *(number(found[level][name]) for level in ("bottom", "top"))) for name, words in figures.items()]
    return "## Codec\n\n" + table(("", "bottom", "top"), rows)


def main() -> None:
    """Read the folder's records and write its card."""
    parser = argparse.ArgumentParser(description="Write the small Jukebox's card.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("src/tunesmith/assets/pocket-jukebox"))
    folder: Path = parser.parse_args().folder
    record = folder / "training.json"
    training = json.loads(record.read_text()) if record.is_file() else {}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    part = folder / ".README.part"
    part.write_text(card(folder, evaluation, training), encoding="utf-8")
    part.replace(folder / "README.md")
    print(f"{folder / 'README.md'}: {state(evaluation)}")


if __name__ == "__main__":
    main()
