"""What of a table can be learned: labels that CTC can align with their frames, and texts whose characters a tokenizer knows."""

import unicodedata

import numpy as np

from mmlm.data.pipeline import Table
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.utils.errors import UserError


def frames_needed(labels: list[int]) -> int:
  """The frames that CTC needs for labels (without an end token): one each, and one between equals (Graves et al. 2006, 3.1)."""
  return len(labels) + sum(
    a == b
    for a, b in zip(
      labels,
      labels[1:],
    )
  )


def alignable(table: Table, labels: list[list[int]], frames: np.ndarray, name: str) -> Table:
  """The rows whose `labels` fit into their `frames` [N], those that CTC aligns them with; the others are counted and named.

  UserError when none is left.
  """
  needed = np.array([*map(frames_needed, labels)], int)
  keep = np.flatnonzero(needed <= frames)
  if len(keep) < len(needed):
    worst = int(np.argmax(needed - frames))
    text = (
      f'{name}: {len(needed) - len(keep)} of {len(needed)} examples have more labels than CTC can align and are left out '
      f'({table.ids[worst]} needs {needed[worst]} frames and has {frames[worst]} after subsampling): '
      + ', '.join(table.ids[i] for i in np.flatnonzero(needed > frames)[:3])
      + '.'
    )
    if not len(keep):
      raise UserError(f'{text}\nChoose a smaller subsampling, or a tokenizer with longer pieces.')
    print(text)
  return table.select(keep)


def name_unknown(table: Table, source, tokenizer: Tokenizer, name: str) -> None:
  """Says which examples hold characters outside a vocabulary of characters: they are read as unknown, and are never written."""
  unk_id = tokenizer.unk_id
  holds = []
  for i, rows in enumerate(zip(table.targets, table.transcripts or table.targets)):
    if any(unk_id in row for row in rows):
      holds.append(i)
  if tokenizer.kind != 'char' or not holds:
    return
  examples = [source[int(table.records[i])] for i in holds]
  texts = []
  for example in examples:
    for text in (*example['targets'], example.get('transcript') or ''):
      texts.append(text)
  strange = []
  for character in sorted(set(unicodedata.normalize('NFC', ''.join(texts)))):
    if unk_id in tokenizer.encode(character):
      strange.append(character)
  ids = ', '.join(dict.fromkeys(table.ids[i] for i in holds[:3]))
  print(
    f'{name}: {len(holds)} of {len(table.ids)} examples hold characters outside the vocabulary, read as unknown: {"".join(strange)!r} ({ids}).'
  )
