import math
from collections import Counter

import pytest

import pocket_protocol

RULES = pocket_protocol.protocol()


def limits(measure):
    """(sense, CPU limit, GPU limit) of a gate."""
    (rule,) = [rule for rule in RULES["gates"] if rule["measure"] == measure]
    sense = "at_least" if "at_least" in rule else "at_most"
    return sense, rule[sense]["cpu"], rule[sense]["gpu"]


def test_the_gates_are_those_of_the_work_order():
    assert limits("language.withheld_minus_true") == ("at_least", 0.15, 0.15)
    assert limits("language.wrong_minus_true") == ("at_least", 0.2, 0.2)
    assert limits("language.unigram_minus_true") == ("at_least", 0.8, 1.2)
    assert limits("codec.least_perplexity_share") == ("at_least", 0.5, 0.5)
    assert limits("control.drums.score") == ("at_least", 0.5, 0.7)
    assert limits("control.tempo.score") == ("at_least", 0.5, 0.7)
    assert limits("control.key.score") == ("at_least", 0.5, 0.7)
    assert limits("control.lead.score") == ("at_least", 0.5, 0.7)
    assert limits("codec.si_sdr") == ("at_least", 5.0, 8.0)
    assert limits("codec.lead_top2") == ("at_least", 0.6, 0.6)
    assert limits("sanity.failed") == ("at_most", 0, 0)
    assert len(RULES["gates"]) == 11
    assert (RULES["control"]["prompts"], RULES["control"]["lead_top"]) == (200, 2)


def test_prompts_are_balanced_on_each_axis():
    asked = pocket_protocol.prompts(RULES, 200, RULES["seed"])
    assert asked == pocket_protocol.prompts(RULES, 200, RULES["seed"])
    axes = {
        "lead": (Counter(p.instrument for p in asked), 8),
        "tempo": (Counter(p.labels.tempo for p in asked), 10),
        "key": (Counter(p.key for p in asked), 24),
        "drums": (Counter(p.labels.drums for p in asked), 2),
    }
    for axis, (counts, values) in axes.items():
        assert len(counts) == values, axis
        assert max(counts.values()) - min(counts.values()) <= 1, axis
    assert len({p.text for p in asked}) > 190


def test_a_prompt_says_what_its_labels_say():
    for prompt in pocket_protocol.prompts(RULES, 24, 3):
        words = prompt.text.replace(",", "").split()
        assert f"{prompt.labels.tempo:.0f} bpm" in prompt.text
        assert prompt.key.lower() in prompt.text
        assert prompt.instrument in prompt.text
        assert ("no" in words) == (not prompt.labels.drums)
        assert prompt.labels.lead == RULES["control"]["leads"][prompt.instrument][0]


def test_single_axis_prompts_name_one_axis():
    asked = pocket_protocol.single_axis_prompts(RULES, 16, 0)
    assert set(asked) == {"lead", "drums", "key", "tempo"}
    assert {p.text for p in asked["lead"]} == set(RULES["control"]["leads"])
    assert {p.text for p in asked["drums"]} == {"with drums", "no drums"}
    assert all(p.text == p.key.lower() for p in asked["key"])
    assert all(p.text == f"{p.labels.tempo:.0f} bpm" for p in asked["tempo"])


def test_words_of_the_prompts_are_words_of_the_corpus():
    corpus = pytest.importorskip("tunesmith.training.corpus.captions")
    asked = pocket_protocol.prompts(RULES, 200, RULES["seed"])
    assert {p.text: unknown for p in asked if (unknown := corpus.unknown_words(p.text))} == {}


def test_judge_reads_the_hardwares_column():
    rules = [
        {"name": "loss", "measure": "a.b", "at_least": {"cpu": 0.8, "gpu": 1.2}},
        {"name": "bad clips", "measure": "bad", "at_most": {"cpu": 0, "gpu": 0}},
    ]
    found = pocket_protocol.judge({"a": {"b": 1.0}, "bad": 1}, rules, "cpu")
    assert found[0] == {"name": "loss", "measure": "a.b", "value": 1.0, "at_least": 0.8, "passed": True}
    assert found[1] == {"name": "bad clips", "measure": "bad", "value": 1, "at_most": 0, "passed": False}
    assert [g["passed"] for g in pocket_protocol.judge({"a": {"b": 1.0}, "bad": 0}, rules, "gpu")] == [False, True]


@pytest.mark.parametrize("results", [{}, {"a": {}}, {"a": {"b": math.nan}}, {"a": 3}])
def test_what_was_not_measured_has_not_passed(results):
    rule = {"name": "loss", "measure": "a.b", "at_least": {"cpu": -9.0, "gpu": -9.0}}
    (verdict,) = pocket_protocol.judge(results, [rule], "cpu")
    assert (verdict["value"], verdict["passed"]) == (None, False)


@pytest.mark.parametrize(
    ("words", "column"), [("2 CPU cores", "cpu"), ("one NVIDIA H200", "gpu"), ("cuda:0", "gpu"), ("", "cpu")]
)
def test_trained_on(words, column):
    assert pocket_protocol.trained_on(words) == column
