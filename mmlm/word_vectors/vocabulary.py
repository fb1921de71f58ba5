"""The words of a text with their counts, the frequent ones first: those that get word vectors.

Axes: V words, N words of the text, S sentences.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmlm.data.text import words
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_atomic

Sentence = list[str]


class Corpus(NamedTuple):
  """The words of a text that are in the vocabulary, and where its sentences lie.

  Other words are dropped before any window is laid.
  """

  ids: NDArray  # [N] int32
  starts: NDArray  # [S + 1] int64: where each sentence begins, and N


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Words by falling counts; of equal counts in alphabetical order."""

  words: list[str]
  counts: NDArray  # [V] int64

  @property
  def fingerprint(self) -> str:
    """A hash of the words and their counts."""
    lines = [*self.words, *map(str, self.counts.tolist())]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]

  def save(self, path: pathlib.Path) -> None:
    """Writes the vocabulary as JSON."""
    content = {'words': self.words, 'counts': self.counts.tolist()}
    write_atomic(path, json.dumps(content, ensure_ascii=False) + '\n')

  @classmethod
  def load(cls, path: pathlib.Path) -> 'Vocabulary':
    """Reads a vocabulary.

    Raises:
      UserError: the file is missing or is no vocabulary.
    """
    try:
      saved = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
      return cls(saved['words'], np.array(saved['counts'], np.int64))
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise UserError(f'{path}: not the vocabulary of a run ({error}).') from None

  def encode(self, sentences: Iterable[Sentence]) -> Corpus:
    """Returns the ids of the words; sentences without a known word are left out."""
    ids = {word: number for number, word in enumerate(self.words)}
    encoded = []
    for sentence in sentences:
      known = [ids[word] for word in sentence if word in ids]
      if known:
        encoded.append(known)
    lengths = np.array([len(known) for known in encoded], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat = itertools.chain.from_iterable(encoded)
    return Corpus(np.fromiter(flat, np.int32, int(lengths.sum())), starts)


def count_words(
  sentences: Iterable[Sentence],
  min_count: int,
  most: int,
  name: str,
) -> Vocabulary:
  """Returns the words that occur `min_count` times or more, at most `most` of them (0 = all).

  Args:
    name: of the text, for messages.

  Raises:
    UserError: no word is left.
  """
  counts = collections.Counter(itertools.chain.from_iterable(sentences))
  frequent = [(word, count) for word, count in counts.items() if count >= min_count]
  frequent.sort(key=lambda pair: (-pair[1], pair[0]))
  kept = frequent[: most or None]
  if not kept:
    examples = [f'{word!r} {count} times' for word, count in counts.most_common(3)]
    raise UserError(
      f'{name}: no word occurs {min_count} times or more (tokenizer.min_frequency), '
      f'the vocabulary is empty: {", ".join(examples) or "it has no word"}.'
    )
  total = sum(counts.values())
  covered = 100 * sum(count for _, count in kept) / total
  print(
    f'{name}: {total:,} words, {len(counts):,} distinct; '
    f'the vocabulary holds {len(kept):,} of these, {covered:.1f} % of the text'
  )
  return Vocabulary([word for word, _ in kept], np.array([count for _, count in kept], np.int64))


def sentences_of(
  source,
  language: str = '',
  lowercase: bool = True,
) -> Iterator[Sentence]:
  """Yields the sentences of a source as lists of words.

  They are the lines of its texts ('text', or else 'targets'), split at spaces.

  Args:
    language: '' or the language whose Moses rules are applied before.
  """
  for i in range(len(source)):
    for text in _texts_of(source[i]):
      if lowercase:
        text = text.lower()
      for line in text.split('\n'):
        sentence = words(line, language).split()
        if sentence:
          yield sentence


def _texts_of(example: dict) -> Iterable[str]:
  text = example.get('text')
  if isinstance(text, str):
    return [text]
  return example.get('targets', ())
