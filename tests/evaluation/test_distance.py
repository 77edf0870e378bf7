import numpy as np
import pytest
import scipy.linalg

from tunesmith.evaluation import distance


def test_frechet_distance_of_known_gaussians():
    # Mean gap 3, variances 2 and 18 in one dimension: 9 + (sqrt 2 - sqrt 18)^2 = 9 + 8.
    first, second = np.array([[-1.0], [1.0]]), np.array([[0.0], [6.0]])
    assert distance.frechet_distance(first, second) == pytest.approx(9 + (np.sqrt(2) - np.sqrt(18)) ** 2)


def test_frechet_distance_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(300, 5)) + 1
    c1, c2 = np.cov(first.T), np.cov(second.T)
    gap = first.mean(0) - second.mean(0)
    expected = gap @ gap + np.trace(c1 + c2 - 2 * scipy.linalg.sqrtm(c1 @ c2).real)
    assert distance.frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert distance.frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_stands_fewer_embeddings_than_dimensions():
    points = np.random.default_rng(0).normal(size=(6, 20)).astype(np.float32)
    assert distance.frechet_distance(points, points + 1) == pytest.approx(20, rel=1e-3)


def test_pairwise_distance_by_hand():
    assert distance.pairwise_distance(np.array([[0.0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)


@pytest.mark.parametrize(
    ("codes", "longest"), [([7, 1, 2, 3, 7], 3), ([4, 5, 6], 3), ([3, 4], 1), ([9, 9], 0), ([2, 3], 2), ([], 0)]
)
def test_longest_shared_run_stays_within_a_row(codes, longest):
    corpus = np.array([[1, 2, 3], [4, 5, 6]])
    assert distance.longest_shared_run(np.array(codes, dtype=np.int64), corpus) == longest


def test_longest_shared_run_equals_the_obvious_search():
    rng = np.random.default_rng(3)
    codes, corpus = rng.integers(0, 3, 30), rng.integers(0, 3, (4, 40))
    rows = ["".join(map(str, row)) for row in corpus]
    text = "".join(map(str, codes))
    pieces = {text[i:j] for i in range(30) for j in range(i + 1, 31)}
    expected = max(len(piece) for piece in pieces if any(piece in row for row in rows))
    assert distance.longest_shared_run(codes, corpus) == expected
