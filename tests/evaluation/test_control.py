import math

import numpy as np
import pytest

from tunesmith.evaluation import control
from tunesmith.evaluation.control import Heard, Labels


def heard(tempo=120.0, tonic=0, mode="major", drums=0.0, **leads):
    return Heard(tempo=tempo, tonic=tonic, mode=mode, leads=leads or {"piano": 1.0}, drums=drums)


def asked(tempo=120.0, tonic=0, mode="major", lead="piano", drums=False):
    return Labels(tempo=tempo, tonic=tonic, mode=mode, lead=lead, drums=drums)


@pytest.mark.parametrize(
    ("found", "plain", "octaves"),
    [(120, True, True), (124.7, True, True), (115.3, True, True), (125, False, False), (60, False, True),
     (240, False, True), (180, False, False), (40, False, False)],
)  # fmt: skip
def test_tempo_hit(found, plain, octaves):
    assert control.tempo_hit(float(found), 120.0) == plain
    assert control.tempo_hit(float(found), 120.0, octaves=True) == octaves


@pytest.mark.parametrize(
    ("tonic", "mode", "related"),
    [(0, "major", True), (9, "minor", True), (0, "minor", True), (7, "major", True), (5, "major", True),
     (3, "minor", False), (7, "minor", False), (1, "major", False)],
)  # fmt: skip
def test_keys_related_to_c_major(tonic, mode, related):
    assert control.related_key(heard(tonic=tonic, mode=mode), asked()) == related


def test_the_relative_of_a_minor_is_c_major():
    assert control.related_key(heard(tonic=0, mode="major"), asked(tonic=9, mode="minor"))
    assert not control.related_key(heard(tonic=6, mode="major"), asked(tonic=9, mode="minor"))


def test_lead_hit_takes_the_strongest_tags():
    leads = {"piano": 0.1, "harp": 0.7, "flute": 0.4}
    assert [control.lead_hit(leads, name) for name in leads] == [False, True, True]
    assert [control.lead_hit(leads, name, top=1) for name in leads] == [False, True, False]


def test_hits_compare_every_clip_with_every_prompt():
    clips = [heard(tempo=100.0, tonic=2, mode="minor", drums=0.9, harp=1.0, flute=0.5, piano=0.1), heard(drums=0.2)]
    prompts = [asked(tempo=100.0, tonic=2, mode="minor", lead="harp", drums=True), asked()]
    tables = control.hits(clips, prompts, drums_threshold=0.5)
    for axis in ("tempo", "key", "drums", "related key", "tempo, octaves forgiven"):
        assert tables[axis].tolist() == [[True, False], [False, True]], axis
    assert tables["lead"].tolist() == [[True, False], [False, True]]
    assert control.hits(clips, prompts, drums_threshold=0.1)["drums"].tolist() == [[True, False], [True, False]]


def test_own_and_permuted_by_hand():
    table = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=bool)
    assert control.own_and_permuted(table) == (pytest.approx(2 / 3), pytest.approx(1 / 6))


def test_control_score():
    assert control.control_score(own=0.5, permuted=0.1, ceiling=0.9) == pytest.approx(0.5)
    assert control.control_score(own=0.9, permuted=0.1, ceiling=0.9) == 1
    assert control.control_score(own=0.1, permuted=0.1, ceiling=0.9) == 0
    assert math.isnan(control.control_score(own=0.5, permuted=0.5, ceiling=0.5))


def test_best_threshold_and_auc():
    scores, truth = np.array([0.1, 0.2, 0.8, 0.4, 0.9]), np.array([False, False, False, True, True])
    assert control.best_threshold(scores, truth) == pytest.approx(0.3)
    assert control.auc(scores, truth) == pytest.approx(5 / 6)
    assert control.auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5
