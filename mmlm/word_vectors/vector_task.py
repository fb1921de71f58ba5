"""Word vectors out of plain text. What is learned is tables, not a network: mmlm/word_vectors/vector_experiment.py trains and evaluates them."""

from dataclasses import dataclass

from mmlm.word_vectors.objectives import WORD_VECTORS


@dataclass(frozen=True)
class WordVectors:
  metrics: tuple[str, ...] = ()
  heads: tuple[str, ...] = tuple(WORD_VECTORS)  # what can learn them
  answers: str = 'text'  # the field of an example that is learned
