import json

import pytest

import make_card
import pocket_protocol
import tiny

RULES = pocket_protocol.protocol()


def score(value):
    return {"own": 0.6, "permuted": 0.1, "ceiling": 0.9, "score": value}


@pytest.fixture
def evaluation():
    """A sample record in which the key score and the SI-SDR fall short."""
    shares = {"tempo": 0.8, "key": 0.7, "lead": 0.65, "drums": 0.9}
    books = {"true": [5.1, 5.3], "withheld": [5.4, 5.5], "wrong": [5.6, 5.7], "unigram": [6.5, 6.6]}
    results = {
        "model": "tunesmith/pocket",
        "protocol": {
            "sha256": "abc",
            "quick": False,
            "trained_on": "cpu",
            "counts": {"prompts": 200, "single": 24},
        },
        "analysers": {"essentia": "2.1"},
        "weights_sha256": "def",
        "ceiling": {"own": shares, "lead_by_instrument": {"harp": 0.7}},
        "codec": {
            "clips": 100,
            "si_sdr": 4.25,
            "mel_distance_db": 5.5,
            "log_spectral_distance_db": 7.25,
            "perplexity": [600.0, 580.0],
            "least_perplexity_share": 0.566,
            "code_usage": [0.99, 1.0],
            "own": shares,
            "lead_top2": 0.65,
        },
        "language": {
            "clips": 100,
            "by_codebook": books,
            "mean": {"true": 5.2, "withheld": 5.45, "wrong": 5.65, "unigram": 6.55},
            "withheld_minus_true": 0.25,
            "wrong_minus_true": 0.45,
            "unigram_minus_true": 1.35,
        },
        "control": {
            **{axis: score(0.61) for axis in ("drums", "tempo", "lead")},
            "key": score(0.345),
            "lead_by_instrument": {"harp": 0.5},
        },
        "single": {"lead": score(0.5)},
        "sanity": {"failed": 0, "clips": 200, "onset_share": 0.9},
        "memory": {"generated": 9, "held_out": 12, "excess": -3, "training_clips": 400},
        "diversity": {"ratio": 0.8, "prompt": "a jig", "clips": 16},
    }
    return results | {name: pocket_protocol.judge(results, RULES[name], "cpu") for name in ("gates", "aims")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("models") / "pocket")


def written(folder, evaluation, training=None):
    return make_card.card(folder, evaluation, training or {}, RULES["control"]["leads"])


def test_the_card_says_what_falls_short(folder, evaluation):
    page = written(folder, evaluation)
    assert "passes 9 of that case's 11 gates" in page
    assert "**It falls short of: key control score; codec SI-SDR (dB).**" in page
    assert "- Falls short: key control score is 0.345, wanted ≥ 0.5." in page
    assert "- Falls short: codec SI-SDR (dB) is 4.250, wanted ≥ 5." in page
    assert "| key control score | 0.345 | ≥ 0.5 | **failed** | gate |" in page
    assert "| drums control score | 0.610 | ≥ 0.5 | passed | gate |" in page
    assert "not measured" in page  # the Frechet distances, which this record lacks


def test_the_card_gives_the_figures(folder, evaluation):
    page = written(folder, evaluation)
    assert "| with its own text | 5.100 | 5.300 | 5.200 |" in page
    assert "| by frequency alone | 6.500 | 6.600 | 6.550 |" in page
    assert "| SI-SDR | 4.25 dB |" in page
    assert "| perplexity of the codebooks | 600, 580 |" in page
    assert "| key | 60% | 10% | 90% | 0.345 |" in page
    assert "| harp | 50% | 70% |" in page
    assert "SHA-256 `def`" in page


def test_a_quick_run_is_no_verdict(folder, evaluation):
    evaluation["protocol"]["quick"] = True
    assert "quick run with few clips" in written(folder, evaluation)


def test_sizes_are_counted_in_the_file(folder):
    model = tiny.tiny_musicgen()
    rows = dict(make_card.sizes(folder))
    assert rows["codec"] == f"{sum(v.numel() for v in model.audio_encoder.state_dict().values()):,} parameters"
    assert rows["language model"].endswith(" parameters")
    assert rows["sound"] == "2 kHz mono, 50 frames/s of 4 codes from books of 32: 1 kbit/s"


def test_training_facts_of_any_shape(folder, evaluation):
    training = {
        "hardware": "2 CPU cores",
        "codec": {"steps": 16000, "seconds": 5400, "final_losses": {"mel": 0.51234, "wave": 0.02}},
        "language_model": {"seconds": 90, "dates": ["2026-11-21", "2026-11-22"]},
    }
    page = written(folder, evaluation, training)
    assert "| hardware | 2 CPU cores |" in page
    assert "### Codec\n" in page
    assert "| steps | 16,000 |" in page
    assert "| seconds | 1.5 h |" in page
    assert "| final losses | mel 0.5123, wave 0.02 |" in page
    assert "| seconds | 1.5 min |" in page
    assert "| dates | 2026-11-21, 2026-11-22 |" in page
    assert "No training record" in written(folder, evaluation)


def test_the_command(folder, evaluation, monkeypatch, capsys):
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    monkeypatch.setattr("sys.argv", ["make_card.py", str(folder)])
    make_card.main()
    assert "falls short of" in capsys.readouterr().out
    page = (folder / "README.md").read_text()
    assert page.startswith("---\nlicense: apache-2.0\n")
    assert page == written(folder, evaluation)
