"""The corpus as a whole: the same clips for the same index, splits that share no work, labels that are balanced."""

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tunesmith.errors import MissingDependencyError, RequestError
from tunesmith.training.corpus import VERSION, Corpus, Labels, library
from tunesmith.training.corpus.__main__ import main
from tunesmith.training.corpus.build import CLIPS_PER_SHARD, Recipe, render_shards
from tunesmith.training.corpus.library import load_library, music21_corpus
from tunesmith.training.corpus.render import Renderer
from tunesmith.training.corpus.split import SPLITS, allowed, split_of

FORBIDDEN = ("palestrina", "essen", "josquin", "monteverdi", "leadsheet")


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "dev"},
        {"seconds": 0.0},
        {"seconds": 1e9},
        {"seconds": float("nan")},
        {"sample_rate": 100},
        {"sample_rate": 192_000},
    ],
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Corpus(**{"seed": 0} | wrong)


def test_composed_labels_need_nothing_installed() -> None:
    corpus = Corpus(seed=3, split="test", seconds=10.0)
    labels = corpus.labels_for(4, key="F# minor", bpm=72, lead="cello", drums=False)
    assert (labels.key, labels.bpm, labels.lead, labels.drums) == ("F# minor", 72.0, "cello", False)
    assert labels == corpus.labels_for(4, key="F# minor", bpm=72, lead="cello", drums=False)
    assert labels != corpus.labels_for(5, key="F# minor", bpm=72, lead="cello", drums=False)
    assert corpus.describe(labels, random.Random(1)) == corpus.describe(labels, random.Random(1))
    with pytest.raises(RequestError, match="can't be chosen"):
        corpus.labels_for(0, tempo=90)


def test_clips_of_a_version_never_change() -> None:
    """Whoever changes what an index gives raises `VERSION`, so that folders of shards are never mixed."""
    corpus = Corpus(seed=0, split="train", seconds=8.0)
    made = [corpus.labels_for(i).as_dict() for i in range(40)]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
    assert (VERSION, digest) == (2, "c823d12a29177e31")


def test_labels_are_the_same_in_another_process_and_order(works: None) -> None:
    code = (
        "from tunesmith.training.corpus import Corpus; c = Corpus(7, 'validation', 5.0);"
        "print([c.labels_of(i).title for i in (5, 1, 3)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    corpus = Corpus(7, "validation", 5.0)
    titles = [corpus.labels_of(i).title for i in range(6)]
    assert other.strip() == str([titles[5], titles[1], titles[3]])


# ---- the works ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(works: None) -> dict[str, list[Labels]]:
    return {split: [Corpus(0, split, 5.0).labels_of(i) for i in range(1200)] for split in SPLITS}


def test_only_collections_that_are_free_to_use(works: None) -> None:
    books = {tune.book for tune in load_library().tunes}
    assert books == {"oneills1850", "ryansMammoth", "airdsAirs", "miscFolk"}
    sources = Path(library.__file__).parent
    assert not any(f'"{name}' in path.read_text().lower() for path in sources.glob("*.py") for name in FORBIDDEN)


def test_how_much_there_is(works: None) -> None:
    tunes, chorales = load_library()
    assert len(tunes) > 3000
    assert len({tune.work for tune in tunes}) > 2400
    assert len(chorales) > 150
    shared = Counter(tune.work for tune in tunes)
    assert shared.most_common(1)[0][1] < 20  # no work swallows the rest
    joined = [work for work in shared if len({tune.book for tune in tunes if tune.work == work}) > 1]
    assert len(joined) > 50  # the books do share tunes


def test_tunes_are_sound(works: None) -> None:
    for tune in load_library().tunes:
        assert tune.notes[0][0] == 0
        assert all(start < end for start, end, _ in tune.notes)
        assert list(tune.bars) == sorted(tune.bars)
        assert tune.notes[-1][2] % 12 == tune.key.tonic


def test_splits_share_no_work_and_no_held_out_pair(drawn: dict[str, list[Labels]]) -> None:
    works = {split: {labels.work for labels in found} for split, found in drawn.items()}
    assert not works["train"] & works["test"]
    assert not works["train"] & works["validation"]
    assert not works["test"] & works["validation"]
    for split, found in drawn.items():
        assert all(allowed(labels.genre, labels.lead, split) for labels in found)
        assert all(split_of(labels.work) == split for labels in found if labels.source != "composed")


def test_sources_have_their_shares(drawn: dict[str, list[Labels]]) -> None:
    for found in drawn.values():
        composed = sum(labels.source == "composed" for labels in found) / len(found)
        chorales = sum(labels.genre == "chorale" for labels in found) / len(found)
        assert abs(composed - 0.5) < 0.06
        assert abs(chorales - 0.1) < 0.04


def test_keys_modes_and_leads_are_balanced_over_all_sources(drawn: dict[str, list[Labels]]) -> None:
    labels = drawn["train"]
    tonics = Counter(item.tonic for item in labels)
    assert len(tonics) == 12
    assert sum((count - 100) ** 2 / 100 for count in tonics.values()) < 31.3  # p = 0.001 at 11 degrees of freedom
    assert 0.45 < sum(item.mode == "minor" for item in labels) / len(labels) < 0.55
    assert 0.4 < sum(item.drums for item in labels) / len(labels) < 0.55
    leads = Counter(item.lead for item in labels)
    assert max(leads.values()) < 0.09 * len(labels)
    assert min(leads[name] for name in ("piano", "violin", "flute", "harp", "cello", "harpsichord", "choir")) > 12


def test_other_seeds_give_other_clips(works: None) -> None:
    assert Corpus(0, "train", 5.0).labels_of(0) != Corpus(1, "train", 5.0).labels_of(0)


# ---- sound ----------------------------------------------------------------------------------------------------------


def test_examples_are_the_same_in_any_order(works: None, player: Renderer) -> None:
    one, other = Corpus(0, "train", 3.0), Corpus(0, "train", 3.0)
    examples = [one.example(i) for i in range(6)]
    for i in (4, 0, 5, 2):
        again = other.example(i)
        assert np.array_equal(again.audio, examples[i].audio)
        assert (again.labels, again.caption) == (examples[i].labels, examples[i].caption)
        assert again.labels == other.labels_of(i)


def test_examples_are_music(works: None, player: Renderer) -> None:
    corpus = Corpus(2, "test", 6.0)
    for i in range(16):
        audio = corpus.example(i).audio
        assert audio.shape == (96_000,)
        assert 0.2 < np.abs(audio).max() <= 0.9
        assert np.abs(audio[:1600]).max() > 0.01  # music starts at once
        windows = audio.reshape(12, -1)  # half seconds
        assert (np.sqrt((windows**2).mean(1)) > 1e-4).all()


def test_chosen_clips_are_rendered(player: Renderer) -> None:
    example = Corpus(0, "test", 2.0, sample_rate=32_000).compose(0, key="C major", lead="piano", drums=True)
    assert example.audio.shape == (64_000,)
    assert example.labels.lead == "piano"
    assert example.caption


# ---- shards ---------------------------------------------------------------------------------------------------------


def test_shards_are_resumed_and_never_mixed(works: None, player: Renderer, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    arguments = [str(out), "--seconds", "1", "--split", "validation"]
    assert main([*arguments, "--clips", "3"]) == 0
    samples = np.load(out / "validation-00000.npy")
    assert samples.shape == (3, 16_000)
    assert samples.dtype == np.int16
    rows = [json.loads(row) for row in (out / "validation-00000.jsonl").read_text().splitlines()]
    example = Corpus(0, "validation", 1.0).example(1)
    assert Labels.from_dict(rows[1]["labels"]) == example.labels
    assert rows[1]["caption"] == example.caption
    assert np.abs(samples[1] / 32767 - example.audio).max() < 1e-4
    stamp = (out / "validation-00000.npy").stat().st_mtime_ns
    assert main([*arguments, "--clips", "3"]) == 0
    assert (out / "validation-00000.npy").stat().st_mtime_ns == stamp  # nothing was done again
    assert main([*arguments, "--clips", "5"]) == 0
    assert len(np.load(out / "validation-00000.npy")) == 5
    assert main([*arguments, "--clips", "5", "--seed", "1"]) == 2
    assert {path.suffix for path in out.iterdir()} == {".npy", ".jsonl", ".json"}


def test_progress_counts_clips(works: None, player: Renderer, tmp_path: Path) -> None:
    from tunesmith.events import Finished, Progress

    events = list(render_shards(Recipe(out=tmp_path, clips=2, seconds=1.0)))
    counts = [(event.done, event.total) for event in events if isinstance(event, Progress)]
    assert counts == [(0, 2), (2, 2)]
    assert events[-1] == Finished(result=tmp_path)


def test_recipes_cut_clips_into_shards() -> None:
    recipe = Recipe(out=Path("x"), clips=CLIPS_PER_SHARD + 1)
    assert [len(clips) for clips in recipe.shards] == [CLIPS_PER_SHARD, 1]
    with pytest.raises(RequestError, match="1 or more"):
        Recipe(out=Path("x"), clips=0)


def test_the_command_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNESMITH_SOUNDFONT", str(tmp_path / "none"))
    assert main([str(tmp_path / "out")]) == 2
    assert "is not a file" in capsys.readouterr().err
    assert main([str(tmp_path / "out"), "--seconds", "0"]) == 2
    assert "0 seconds" in capsys.readouterr().err


# ---- cache ----------------------------------------------------------------------------------------------------------


def test_the_cache_holds_what_was_parsed(works: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed = load_library()
    small = library.Library(parsed.tunes[:3], parsed.chorales[:2])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "read_books", lambda _: list(small.tunes))
    monkeypatch.setattr(library, "read_chorales", lambda _: list(small.chorales))
    fresh = load_library.__wrapped__
    assert fresh() == small
    monkeypatch.setattr(library, "read_books", None)
    assert fresh() == small  # from the cache
    assert [path.suffix for path in (tmp_path / "tunesmith").iterdir()] == [".json"]


def test_music21_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install tunesmith\[corpus\]"):
        music21_corpus()
