"""Filters training examples: targets that CTC can align, and texts within the vocabulary."""

import unicodedata

import numpy as np

from mmlm.data.pipeline import Table
from mmlm.data.sources.source import Source
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.errors import UserError


def frames_needed(labels: list[int]) -> int:
  """Returns the frames that CTC needs for labels without an end token (Graves et al. 2006, 3.1).

  That is one for each label, and a blank between equal neighbours.
  """
  repeated = [first == second for first, second in zip(labels, labels[1:])]
  return len(labels) + sum(repeated)


def alignable(
  table: Table,
  labels: list[list[int]],
  frames: np.ndarray,
  name: str,
) -> Table:
  """Returns the examples that CTC can align; the others are counted and named.

  Args:
    labels: of each example, without an end token.
    frames: [N] frames of each example after subsampling.
    name: of the split, for the message.

  Raises:
    UserError: no example can be aligned.
  """
  needed = np.array([frames_needed(each) for each in labels], int)
  fits = needed <= frames
  too_long = np.flatnonzero(~fits)
  if len(too_long):
    worst = int(np.argmax(needed - frames))
    ids = ', '.join(table.ids[i] for i in too_long[:3])
    message = (
      f'{name}: {len(too_long)} of {len(needed)} examples have more labels than CTC can align '
      f'and are left out ({table.ids[worst]} needs {needed[worst]} frames and has '
      f'{frames[worst]} after subsampling): {ids}.'
    )
    if not fits.any():
      raise UserError(
        f'{message}\nChoose a smaller subsampling, or a tokenizer with longer pieces.'
      )
    print(message)
  return table.select(np.flatnonzero(fits))


def name_unknown(
  table: Table,
  source: Source,
  tokenizer: Tokenizer,
  name: str,
) -> None:
  """Prints which examples have characters outside a vocabulary of characters.

  Such characters are read as unknown and never written.

  Args:
    name: of the split, for the message.
  """
  if tokenizer.kind != 'char':
    return
  unk_id = tokenizer.unk_id
  examples = []
  for i, encoded in enumerate(zip(table.targets, table.transcripts or table.targets)):
    if any(unk_id in ids for ids in encoded):
      examples.append(i)
  if not examples:
    return
  texts = []
  for i in examples:
    example = source[int(table.records[i])]
    texts += [*example['targets'], example.get('transcript') or '']
  characters = sorted(set(unicodedata.normalize('NFC', ''.join(texts))))
  unknown = ''.join(each for each in characters if unk_id in tokenizer.encode(each))
  ids = ', '.join(dict.fromkeys(table.ids[i] for i in examples[:3]))
  print(
    f'{name}: {len(examples)} of {len(table.ids)} examples hold characters outside the vocabulary, '
    f'read as unknown: {unknown!r} ({ids}).'
  )
