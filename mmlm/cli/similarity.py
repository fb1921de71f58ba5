"""Scores word vectors on similarity sets and analogies."""

from mmlm.cli import flags
from mmlm.word_vectors import vector_experiment


def similarity(options: flags.Similarity) -> dict:
  """Scores the vectors of a file, a package or a run; prints and returns the scores."""
  return vector_experiment.similarity(
    options.vectors, options.sets, options.restrict, options.method, options.settings
  )
