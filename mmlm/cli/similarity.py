"""Scores word vectors on similarity sets and analogies."""

from mmlm.cli import flags
from mmlm.word_vectors import vector_commands


def similarity(options: flags.Similarity) -> dict:
  """Scores the vectors of a file, a package or a run; prints and returns the scores."""
  return vector_commands.similarity(
    options.vectors, options.sets, options.restrict, options.method, options.settings
  )
