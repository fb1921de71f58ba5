"""Metrics of language models: nats of the whole text over the words, characters or bytes that it has, never mixed.

Axes: N stretches of text (examples of the bootstrap), T tokens.

A stretch is a document, or BLOCK characters of a longer one; a token belongs to the stretch in which it ends. What is counted is the text
itself, so that models with other tokenizers have the same stretches and the same counts. The end of a document, where it is predicted,
counts as one word, one character and one byte, as a line end does.
"""

import numpy as np

from mmlm.data.running_text import RunningText
from mmlm.data.tokenizers.tokenizer import EOS, UNK
from mmlm.evaluation.metrics.meteor import Unavailable
from mmlm.evaluation.metrics.metric import Metric, mean_value

BLOCK = 2000
UNITS = ('words', 'characters', 'bytes')


def _nats_over(unit: str):
  def statistics(rows, _) -> np.ndarray:
    if any('nats' not in row or row.get(unit) is None for row in rows):
      raise Unavailable(
        f'The nats over {unit} are left out: the tokenizer loses {unit} of the text, which itself has no probability then.'
      )
    return np.array([[row['nats'], row[unit]] for row in rows], float)

  return statistics


_OF_ALL = 'nats of all tokens of the text over its {}, the end of a document counting as one where it is predicted'
LANGUAGE_METRICS = {
  'perplexity_word': Metric(
    f'perplexity a word: e to the power of the {_OF_ALL.format("words (what stands between spaces)")}; words outside a vocabulary of words are '
    'predicted as <unk>, so that it compares within one vocabulary',
    _nats_over('words'),
    lambda sums: np.exp(mean_value(sums)),
    'nats',
  ),
  'bits_per_character': Metric(
    f'bits a character: {_OF_ALL.format("characters")}, by ln 2',
    _nats_over('characters'),
    lambda sums: mean_value(sums) / np.log(2),
    'nats',
  ),
  'nats_per_character': Metric(
    f'nats a character: {_OF_ALL.format("characters")}',
    _nats_over('characters'),
    mean_value,
    'nats',
  ),
  'bits_per_byte': Metric(
    f'bits a byte: {_OF_ALL.format("bytes in UTF-8")}, by ln 2',
    _nats_over('bytes'),
    lambda sums: mean_value(sums) / np.log(2),
    'nats',
  ),
  'perplexity_masked': Metric(
    'perplexity of masked tokens: e to the power of their mean nats, 15 % of the tokens of each text, drawn once',
    _nats_over('tokens'),
    lambda sums: np.exp(mean_value(sums)),
    'nats',
  ),
  'masked_accuracy': Metric(
    'share of these tokens that are found',
    lambda rows, _: np.array([[row['right'], row['tokens']] for row in rows], float),
    mean_value,
    'nats',
  ),
}


def masked_row(filled: str, nats: float, tokens: float, right: float) -> dict:
  """A row of predictions of a masked language model; `filled` is the text as it was found."""
  return {
    'hypothesis': filled,
    'score': -float(nats),
    'nats': float(nats),
    'tokens': int(tokens),
    'right': int(right),
  }


def stretches(text: RunningText, nats: np.ndarray, whole: bool) -> list[dict]:
  """The rows of predictions for nats [T] of the tokens of a text: its stretches with their nats, tokens and units.

  Args:
    whole: the tokens are the whole text; where they are not, or one of them is unknown, there are no characters and bytes to count.
  """
  rows = []
  unknown = bool((text.tokens == UNK).any())
  for number, (name, document) in enumerate(zip(text.ids, text.texts)):
    here = slice(*text.starts[number : number + 2])
    tokens = text.tokens[here]
    places = text.places[here]
    block = np.maximum(places - 1, 0) // BLOCK
    counts = _cumulative(document)
    begin = 0
    for part in np.unique(block):
      inside = np.flatnonzero(block == part)
      if part == block.max():
        border = len(document)
      else:
        border = int(part + 1) * BLOCK
      row = {}
      for unit, total in counts.items():
        row[unit] = int(total[border] - total[begin]) + int((tokens[inside] == EOS).sum())
      if unknown or not whole:
        row |= {'characters': None, 'bytes': None}
      rows.append(
        {
          'id': f'{name}/{part}' if block.max() else name,
          'hypothesis': '',
          'references': [document[begin:border]],
          'score': -float(nats[here][inside].sum()),
          'nats': float(nats[here][inside].sum()),
          'tokens': len(inside),
          'unknown': int((tokens[inside] == UNK).sum()),
          **row,
        }
      )
      begin = border
  return rows


def _cumulative(text: str) -> dict[str, np.ndarray]:
  """{unit: [characters + 1]}: how many end before each character."""
  codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  spaces = np.array([chr(code) for code in np.unique(codes) if chr(code).isspace()])
  space = np.isin(codes, [ord(character) for character in spaces])
  ends = ~space & np.append(space[1:], True)
  sizes = 1 + sum((codes >= border).astype(int) for border in (0x80, 0x800, 0x10000))

  def total(values):
    return np.concatenate([[0], np.cumsum(values)]).astype(int)

  return {'words': total(ends), 'characters': np.arange(len(codes) + 1), 'bytes': total(sizes)}
