"""`tunesmith labels search` explores the artists and genres of a model."""

import json

import pytest

from tunesmith import cli


@pytest.fixture
def model(tmp_path):
    artists = {"björk": 3, "the björks": 4, "unknown": 0, "bj_rk.v2": 7}
    (tmp_path / "artists.json").write_text(json.dumps(artists), encoding="utf-8")
    (tmp_path / "genres.json").write_text(json.dumps({"rock\u200e": 1, "rock": 2, "rock.v2": 3}), encoding="utf-8")
    return str(tmp_path)


def test_a_line_a_hit(model, capsys):
    assert cli.run(["labels", "search", "Björk", "--model", model]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["artist", "v2", "7", "exact", "bj_rk"],
        ["artist", "v3", "3", "exact", "björk"],
        ["artist", "v3", "4", "prefix", "the", "björks"],
    ]


def test_json(model, capsys):
    assert cli.run(["labels", "search", "bjork", "--model", model, "--json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"kind": "artist", "rules": "v2", "id": 7, "name": "bj_rk", "match": "fuzzy"},
        {"kind": "artist", "rules": "v3", "id": 3, "name": "björk", "match": "prefix"},
    ]


def test_invisible_marks_are_shown(model, capsys):
    assert cli.run(["labels", "search", "rock", "--model", model]) == 0
    assert "rock\\u200e" in capsys.readouterr().out


def test_nothing_found_is_no_mistake(model, capsys):
    assert cli.run(["labels", "search", "zzzz", "--model", model]) == 0
    assert capsys.readouterr().out == "nothing like 'zzzz'\n"
    assert cli.run(["labels", "search", "zzzz", "--model", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("", [], "nothing to search for"),
        ("!?", [], "nothing to search for"),
        ("a", ["--limit", "0"], "--limit is 0"),
        ("a", ["--model", "nosuchmodel"], "no model 'nosuchmodel'"),
        ("a", ["--model", "no/such"], "The labels of 'no/such' are not on this machine"),
        ("a", ["--model", "/no/folder"], "no model folder"),
        ("a", ["--model", ""], "no model ''"),
        ("a", ["--model", "tunesmith/pocket"], "of the family 'musicgen', which knows no artists and genres"),
        ("a", ["--model", "EMPTY"], "has no artists.json and genres.json"),
    ],
)
def test_bad_input_is_a_sentence(model, tmp_path, capsys, text, options, sentence):
    (tmp_path / "empty").mkdir()
    options = [option.replace("EMPTY", str(tmp_path / "empty")) for option in options]
    model_too = [] if "--model" in options else ["--model", model]
    assert cli.run(["labels", "search", text, *options, *model_too]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_damaged_tables_are_a_sentence(model, tmp_path, capsys):
    (tmp_path / "genres.json").write_text("{")
    assert cli.run(["labels", "search", "a", "--model", model]) == 2
    assert "genres.json' is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["find", "a", "--model", "b"], ["search", "a"], ["search"]])
def test_what_is_no_search_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.run(["labels", *arguments])
    assert stopped.value.code == 2
