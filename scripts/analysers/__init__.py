"""Analysers that know nothing of tunesmith: they judge the bundled model from outside.  Tools for tests, not a product.

- essentia, for key and tempo.  AGPL-3.0, so it is no dependency of tunesmith: `pip install essentia`.
- musicnn, for instruments, drums and distances.  ISC; its package holds the weights, which are read here without
  TensorFlow: `pip install --no-deps musicnn`.
"""
