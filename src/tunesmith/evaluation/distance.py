"""Distances between sets of embeddings, and between code sequences."""

import numpy as np
from jaxtyping import Float, Int


def frechet_distance(first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "M D"]) -> float:
    """Frechet distance of two Gaussians fitted to embeddings (Dowson and Landau 1982; Kilgour et al. 2019).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); biased upwards where there are few embeddings, so compare only sets
    of one size.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    gap = first.mean(0) - second.mean(0)
    c1, c2 = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    # (C1 C2)^(1/2) has the trace of (R C2 R)^(1/2) with R = C1^(1/2), which is symmetric: no complex roots.
    root = _symmetric_root(c1)
    overlap = np.trace(_symmetric_root(root @ c2 @ root))
    return float(gap @ gap + np.trace(c1) + np.trace(c2) - 2 * overlap)


def _symmetric_root(matrix: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D D"]:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def pairwise_distance(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Mean Euclidean distance of all pairs (N >= 2): how far a set is spread."""
    squares = (embeddings.astype(np.float64) ** 2).sum(1)
    gram = embeddings.astype(np.float64) @ embeddings.astype(np.float64).T
    distances = np.sqrt(np.clip(squares[:, None] + squares[None] - 2 * gram, 0, None))
    return float(distances[np.triu_indices(len(embeddings), 1)].mean())


def longest_shared_run(codes: Int[np.ndarray, "S"], corpus: Int[np.ndarray, "N M"]) -> int:
    """Length of the longest stretch of `codes` that occurs somewhere in a row of `corpus`.

    O(S N M) steps, vectorised over the corpus: 500 codes against 250,000 take about 0.2 s.
    """
    # ending[n, m]: length of the shared run that ends at corpus[n, m]; a column of zeros stands before the start.
    ending = np.zeros((len(corpus), corpus.shape[1] + 1), dtype=np.int32)
    longest = 0
    for code in codes:
        ending[:, 1:] = (ending[:, :-1] + 1) * (corpus == code)
        longest = max(longest, int(ending.max(initial=0)))
    return longest
