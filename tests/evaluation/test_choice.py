"""Forced choice: exact on small groups, and no better than chance where nothing is related."""

import numpy as np
import pytest

from tunesmith.evaluation.choice import chosen, forced_choice


def test_the_highest_score_is_chosen() -> None:
    scores = np.array([[[1.0, 2.0], [4.0, 3.0]], [[-1.0, -2.0], [0.0, 5.0]]])
    assert chosen(scores).tolist() == [[1, 0], [0, 1]]


def test_whoever_follows_is_far_from_chance() -> None:
    scores = np.stack([np.eye(10)] * 6)
    found = forced_choice(scores, draws=2000)
    assert found.share == 1.0
    assert found.permuted == pytest.approx(0.1, abs=0.01)
    assert found.p == 1 / 2001


def test_a_judge_with_a_favourite_proves_nothing() -> None:
    scores = np.zeros((6, 10, 10))
    scores[:, :, 3] = 1.0
    found = forced_choice(scores, draws=500)
    assert found.share == pytest.approx(found.permuted) == pytest.approx(0.1)
    assert found.p == 1.0


def test_p_is_the_share_of_permutations_that_do_as_well() -> None:
    scores = np.array([np.eye(3)])  # of 6 permutations only one puts all three right
    assert forced_choice(scores, draws=60_000).p == pytest.approx(1 / 6, abs=0.01)


def test_unrelated_scores_are_seldom_significant() -> None:
    rng = np.random.default_rng(0)
    small = sum(forced_choice(rng.standard_normal((5, 10, 10)), draws=400).p < 0.05 for _ in range(200))
    assert 1 <= small <= 20
