"""The words of a text with their counts, the frequent ones first: what word vectors are learned for.

Axes: V words, N words of the text, S sentences.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np

from mmlm.data.text import words
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic


class Corpus(NamedTuple):
  """The known words of a text, one after another, and where its sentences lie. Unknown words are left out before any window is laid."""

  ids: np.ndarray  # [N] int32
  starts: np.ndarray  # [S + 1] int64: where each sentence begins, and N


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  words: list[str]  # by falling counts; of equal counts in the order of the alphabet
  counts: np.ndarray  # [V] int64

  @property
  def fingerprint(self) -> str:
    return hashlib.sha256(
      '\n'.join([*self.words, *map(str, self.counts.tolist())]).encode()
    ).hexdigest()[:16]

  def save(self, path) -> None:
    write_atomic(
      path,
      json.dumps({'words': self.words, 'counts': self.counts.tolist()}, ensure_ascii=False) + '\n',
    )

  @classmethod
  def load(cls, path) -> 'Vocabulary':
    """UserError where the file is missing or is none."""
    try:
      saved = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
      return cls(saved['words'], np.array(saved['counts'], np.int64))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f'{path}: not the vocabulary of a run ({error}).') from None

  def encode(self, sentences) -> Corpus:
    """Lists of words -> their numbers; sentences without a known word are not there."""
    numbers = {word: number for number, word in enumerate(self.words)}
    rows = [[numbers[word] for word in sentence if word in numbers] for sentence in sentences]
    lengths = np.array([len(row) for row in rows if row], np.int64)
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum()))
    return Corpus(ids, np.concatenate([[0], np.cumsum(lengths)]))


def count_words(sentences, min_count: int, most: int, name: str) -> Vocabulary:
  """The words that stand `min_count` times or more in lists of words, `most` of them at most (0 = all).

  Raises UserError where none is left; `name` says of what text.
  """
  counts = collections.Counter(itertools.chain.from_iterable(sentences))
  kept = sorted(
    ((word, n) for word, n in counts.items() if n >= min_count),
    key=lambda pair: (-pair[1], pair[0]),
  )[: most or None]
  if not kept:
    frequent = (
      ', '.join(f'{word!r} {n} times' for word, n in counts.most_common(3)) or 'it has no word'
    )
    raise UserError(
      f'{name}: no word stands {min_count} times or more (tokenizer.min_frequency), the vocabulary is empty: {frequent}.'
    )
  total = sum(counts.values())
  covered = 100 * sum(n for _, n in kept) / total
  print(
    f'{name}: {total:,} words, {len(counts):,} different ones; the vocabulary holds {len(kept):,} of these, {covered:.1f} % of the text'
  )
  return Vocabulary([word for word, _ in kept], np.array([n for _, n in kept], np.int64))


def sentences_of(source, language: str = '', lowercase: bool = True):
  """Yields the sentences of a source, each a list of words: the lines of its texts ('text', or else 'targets'), cut at spaces.

  `language`: with Moses' rules of that language first.
  """
  for i in range(len(source)):
    example = source[i]
    for text in (
      [example['text']] if isinstance(example.get('text'), str) else example.get('targets', ())
    ):
      for line in (text.lower() if lowercase else text).split('\n'):
        if found := words(line, language).split():
          yield found
