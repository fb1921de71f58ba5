"""The words in which a hypothesis differs from its nearest reference."""

import itertools

from mmlm.evaluation.metrics.speech_metrics import alignment

# ('equal', 'substitute', 'delete' or 'insert', words of the reference, words of the hypothesis)
Edit = tuple[str, list[str], list[str]]


def nearest_alignment(prediction: dict) -> list[Edit]:
  """Aligns a hypothesis with the reference that fewest words differ from; of equals the longest."""
  hypothesis = prediction['hypothesis']
  alignments = []
  for reference in prediction['references']:
    edits = alignment(reference, hypothesis)
    alignments.append(edits)

  def order(edits: list[Edit]) -> tuple[int, int]:
    differing = _differing_words(edits)
    length = 0
    for _, reference, _ in edits:
      length += len(reference)
    return differing, -length

  return min(alignments, key=order)


def _differing_words(edits: list[Edit]) -> int:
  total = 0
  for kind, reference, hypothesis in edits:
    if kind != 'equal':
      total += max(len(reference), len(hypothesis))
  return total


def word_differences(prediction: dict) -> list[tuple[str, str, str]]:
  """Returns [(kind, text of the reference, text of the hypothesis)], word by word if not equal."""
  differences = []
  for kind, reference, hypothesis in nearest_alignment(prediction):
    if kind == 'equal':
      text = ' '.join(reference)
      same_text = ' '.join(hypothesis)
      differences.append((kind, text, same_text))
      continue
    pairs = itertools.zip_longest(reference, hypothesis, fillvalue='')
    for word, replacement in pairs:
      differences.append((kind, word, replacement))
  return differences
