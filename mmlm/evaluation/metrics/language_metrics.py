"""Metrics of language models.

Nats of the whole text over the words, characters or bytes that it has, never mixed.

Axes: N stretches of text (examples of the bootstrap), T tokens.

A stretch is a document, or BLOCK characters of a longer one; a token belongs to the stretch in
which it ends. What is counted is the text itself, so that models with different tokenizers have the
same stretches and the same counts. The end of a document, where it is predicted, counts as one
word, one character and one byte, as a line end does.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from mmlm.data.running_text import RunningText
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.evaluation.metrics import views
from mmlm.evaluation.metrics.metric import Metric, Rows, Unavailable, Value, mean_value

BLOCK = 2000  # characters of a stretch


def _nats_over(
  unit: str,
  rows: Rows,
  _,
) -> NDArray:
  """Returns [N, 2]: nats and units."""
  statistics = []
  for row in rows:
    if 'nats' not in row or row.get(unit) is None:
      raise Unavailable(
        f'The nats over {unit} are left out: the tokenizer loses {unit} of the text, '
        'which itself has no probability then.'
      )
    statistics.append([row['nats'], row[unit]])
  return np.array(statistics, float)


def _correct_over_tokens(rows: Rows, _) -> NDArray:
  """Returns [N, 2]: masked tokens predicted correctly, and masked tokens."""
  return np.array([[row['right'], row['tokens']] for row in rows], float)


def _perplexity(sums: NDArray) -> NDArray:
  return np.exp(mean_value(sums))


def _bits(sums: NDArray) -> NDArray:
  return mean_value(sums) / np.log(2)


def _nats_metric(
  unit: str,
  value: Value,
  definition: str,
) -> Metric:
  return Metric(
    definition=definition,
    higher_is_better=False,
    view=views.token_nats,
    statistics=functools.partial(_nats_over, unit),
    value=value,
  )


def _nats_of_text(unit: str) -> str:
  return (
    f'nats of all tokens of the text over its {unit}, '
    'the end of a document counting as one where it is predicted'
  )


PERPLEXITY_WORD = _nats_metric(
  'words',
  _perplexity,
  'perplexity a word: e to the power of the '
  f'{_nats_of_text("words (what stands between spaces)")}; '
  'words outside a vocabulary of words are predicted as <unk>, so that it compares within one '
  'vocabulary',
)
BITS_PER_CHARACTER = _nats_metric(
  'characters', _bits, f'bits a character: {_nats_of_text("characters")}, by ln 2'
)
NATS_PER_CHARACTER = _nats_metric(
  'characters', mean_value, f'nats a character: {_nats_of_text("characters")}'
)
BITS_PER_BYTE = _nats_metric(
  'bytes', _bits, f'bits a byte: {_nats_of_text("bytes in UTF-8")}, by ln 2'
)
PERPLEXITY_MASKED = _nats_metric(
  'tokens',
  _perplexity,
  'perplexity of masked tokens: e to the power of their mean nats, '
  '15 % of the tokens of each text, drawn once',
)
MASKED_ACCURACY = Metric(
  definition='share of these tokens that are found',
  higher_is_better=True,
  view=views.token_nats,
  statistics=_correct_over_tokens,
)


# Predictions of language models


def masked_row(
  filled: str,
  nats: float,
  tokens: float,
  right: float,
) -> dict:
  """Returns the prediction of a masked language model for one text.

  Args:
    filled: the text with the predicted tokens in place of the masks.
    nats: of the masked tokens, summed.
    tokens: how many tokens were masked.
    right: how many of them were predicted correctly.
  """
  return {
    'hypothesis': filled,
    'score': -float(nats),
    'nats': float(nats),
    'tokens': int(tokens),
    'right': int(right),
  }


def stretches(
  text: RunningText,
  nats: NDArray,
  whole: bool,
) -> Rows:
  """Returns the predictions of a running text: its stretches with their nats, tokens and units.

  Args:
    nats: [T], of the tokens of the text.
    whole: the tokens are the whole text; where they are not, or one of them is unknown, characters
      and bytes cannot be counted.
  """
  rows = []
  special_tokens = text.special_tokens
  countable = whole and not special_tokens.is_unknown(text.tokens).any()
  for number, (name, document) in enumerate(zip(text.ids, text.texts)):
    inside = slice(*text.starts[number : number + 2])
    of_document = _stretches_of_document(
      name, document, text.tokens[inside], text.places[inside], nats[inside], special_tokens
    )
    for row in of_document:
      if not countable:
        row |= {'characters': None, 'bytes': None}
      rows.append(row)
  return rows


def _stretches_of_document(
  name: str,
  document: str,
  tokens: NDArray,
  places: NDArray,
  nats: NDArray,
  special_tokens: SpecialTokens,
) -> Rows:
  """Cuts one document, BLOCK characters a stretch.

  `places` are the ends of its tokens in characters.
  """
  rows = []
  block = np.maximum(places - 1, 0) // BLOCK
  counts = _cumulative_units(document)
  begin = 0
  for part in np.unique(block):
    inside = np.flatnonzero(block == part)
    end = int(part + 1) * BLOCK
    if part == block.max():
      end = len(document)
    ends_of_document = int(np.isin(tokens[inside], special_tokens.eos_ids).sum())
    units = {}
    for unit, total in counts.items():
      units[unit] = int(total[end] - total[begin]) + ends_of_document
    total_nats = float(nats[inside].sum())
    rows.append(
      {
        'id': f'{name}/{part}' if block.max() else name,
        'hypothesis': '',
        'references': [document[begin:end]],
        'score': -total_nats,
        'nats': total_nats,
        'tokens': len(inside),
        'unknown': int(special_tokens.is_unknown(tokens[inside]).sum()),
        **units,
      }
    )
    begin = end
  return rows


def _cumulative_units(text: str) -> dict[str, NDArray]:
  """Returns {unit: [characters + 1]}: how many units end before each character."""
  codes = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  spaces = [code for code in np.unique(codes) if chr(code).isspace()]
  is_space = np.isin(codes, np.array(spaces))
  ends_word = ~is_space & np.append(is_space[1:], True)
  bytes_of_character = np.ones(len(codes), int)
  for smallest in (0x80, 0x800, 0x10000):  # codes from which UTF-8 takes one byte more
    bytes_of_character += codes >= smallest
  return {
    'words': _cumulative(ends_word),
    'characters': np.arange(len(codes) + 1),
    'bytes': _cumulative(bytes_of_character),
  }


def _cumulative(counts: NDArray) -> NDArray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(int)
