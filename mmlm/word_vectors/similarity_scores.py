"""Evaluation of word vectors: similarity judged by people, and analogies (Mikolov et al. 2013).

Axes: N words, W width, Q pairs or questions, S samples of the bootstrap.

  - A word is looked up as it is written, or else in lower case. A pair or a question with a word
    that has no vector is left out; how many remain is stated beside each value.
  - Similarity is the cosine; the value is Spearman's rank correlation with the judgements, where
    equal values share the mean of their ranks.
  - An analogy a : b = c : ? is answered by the nearest word, never by a, b or c. Questions and
    answers are among the first words of the vectors, which are the most frequent ones. Of two
    words that are equally near the first one is the answer.
"""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mmlm.data.sources.parallel_text import read_lines
from mmlm.evaluation.metrics.metric import mean_statistics, mean_value
from mmlm.evaluation.significance import bootstrap_interval
from mmlm.pretrained.formats.vector_files import Vectors
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

SETS = '$MMLM_DATA/text/wordsim'
HOW = """\
DIR holds sets of pairs, a line each: word, word, score, with tabs or spaces between
(https://github.com/mfaruqui/eval-word-vectors), and analogies, four words a line in sections that
begin with ': NAME' (questions-words.txt of word2vec). Name it by --sets DIR, by
evaluate.similarity of a config, or have it as text/wordsim below $MMLM_DATA."""
METHODS = ('add', 'mul')  # 3CosAdd, and 3CosMul (Levy & Goldberg 2014)
_BLOCK = 1 << 24  # cosines held at once

SIMILARITY = (
  "Spearman's rank correlation of cosine and judgement, over the pairs that are known, "
  'equal values with their mean rank'
)
ANALOGIES = 'share of analogies answered by the nearest word ({}), of those whose words are known'

Pair = tuple[str, str, float]
Question = tuple[str, str, str, str]
Score = dict[str, float]  # 'value', 'low', 'high', 'n' of 'of'


def definition_of(name: str) -> str:
  """Returns the definition of the score of a set, for tables.

  'questions-words' and its sections are analogies.
  """
  if name.startswith('questions-words'):
    return ANALOGIES.format('3CosMul' if '-mul' in name else '3CosAdd')
  return SIMILARITY


# Files


def sets_of(folder: str = '') -> list[pathlib.Path]:
  """Returns the files of a folder, or one file; '' is $MMLM_DATA/text/wordsim."""
  place = pathlib.Path(os.path.expandvars(folder or SETS)).expanduser()
  if place.is_file():
    return [place]
  files = sorted(place.glob('*.txt'))
  if not files:
    raise UserError(f'{place}: no such file or folder, or no *.txt in it.\n{HOW}')
  return files


def read_pairs(path: pathlib.Path) -> list[Pair]:
  """Reads lines of two words and a score."""
  pairs = []
  for number, line in enumerate(read_lines(path), 1):
    if not line.strip() or line.startswith('#'):
      continue
    try:
      first, second, score = line.split()
      pairs.append((first, second, float(score)))
    except ValueError:
      raise UserError(
        f'{path}, line {number}: expected two words and a score, found {line[:60]!r}.'
      ) from None
  return pairs


def read_analogies(path: pathlib.Path) -> dict[str, list[Question]]:
  """Reads {section: questions a, b, c with their answer}."""
  sections: dict = {}
  questions: list = []
  for number, line in enumerate(read_lines(path), 1):
    words = tuple(line.split())
    if line.startswith(':'):
      questions = sections.setdefault(line[1:].strip(), [])
    elif len(words) == 4:
      questions.append(words)
    elif words:
      raise UserError(f'{path}, line {number}: expected four words, found {line[:60]!r}.')
  return sections


# Scores


class KnownLines(NamedTuple):
  """The lines of a set whose words all have vectors."""

  rows: NDArray  # [Q, words] of the vectors
  lines: NDArray  # [Q], numbers of the lines


class UnitVectors:
  """Vectors scaled to length 1.

  Args:
    most: only the first of the vectors; 0 = all.
  """

  def __init__(
    self,
    vectors: Vectors,
    most: int = 0,
  ):
    array = np.asarray(vectors.array[: most or None], np.float32)
    norms = np.linalg.norm(
      array,
      axis=1,
      keepdims=True,
    )
    self.array = array / np.maximum(norms, 1e-12)  # [N, W]
    self.words = vectors.words

  def row(self, word: str) -> int | None:
    """Returns the row of a word; None for one without a vector."""
    for form in (word, word.lower()):
      if form in self.words:
        row = self.words[form]
        return row if row < len(self.array) else None
    return None

  def known(
    self,
    lines: list[tuple],
    words: int,
  ) -> KnownLines:
    """Looks up the first `words` words of each line."""
    rows = []
    numbers = []
    for number, line in enumerate(lines):
      of_line = [self.row(word) for word in line[:words]]
      if None not in of_line:
        rows.append(of_line)
        numbers.append(number)
    return KnownLines(np.array(rows, int).reshape(-1, words), np.array(numbers, int))


def spearman(first: NDArray, second: NDArray) -> NDArray:
  """Returns the rank correlation along the last axis of [..., Q].

  It is 0 where all values of a side are equal.
  """
  x = _centered_ranks(first)
  y = _centered_ranks(second)
  scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
  defined = scale > 0
  return np.where(defined, (x * y).sum(-1) / np.where(defined, scale, 1), 0.0)


def _centered_ranks(values: NDArray) -> NDArray:
  ranks = rankdata(values, axis=-1)
  return ranks - ranks.mean(-1, keepdims=True)


def score_pairs(
  vectors: UnitVectors,
  pairs: list[Pair],
  samples: int = 1000,
  seed: int = 0,
) -> Score | None:
  """Scores similarity.

  Returns:
    {'value', 'low', 'high', 'n': pairs that are known, 'of': all pairs}, the interval by bootstrap
    over pairs; None with fewer than 3 known pairs.
  """
  rows, lines = vectors.known(pairs, 2)
  count = len(lines)
  if count < 3:
    return None
  cosines = (vectors.array[rows[:, 0]] * vectors.array[rows[:, 1]]).sum(1)
  judgements = np.array([pairs[line][2] for line in lines])
  draws = np.random.default_rng(seed).integers(count, size=(samples, count))  # [S, Q]
  low, high = np.percentile(spearman(cosines[draws], judgements[draws]), [2.5, 97.5])
  return {
    'value': float(spearman(cosines, judgements)),
    'low': float(low),
    'high': float(high),
    'n': count,
    'of': len(pairs),
  }


def answers(
  vectors: UnitVectors,
  rows: NDArray,
  method: str = 'add',
) -> NDArray:
  """Returns the rows that answer questions a, b, c.

  Args:
    rows: [Q, 3 or more].
    method: 'add', 3CosAdd, or 'mul', 3CosMul (Levy & Goldberg 2014, eq. 4, epsilon 0.001).

  Returns:
    [Q]
  """
  one_of('--method', method, METHODS)
  result = [np.zeros(0, int)]
  size = max(1, _BLOCK // len(vectors.array))
  for start in range(0, len(rows), size):
    questions = rows[start : start + size, :3]
    scores = _scores_of_words(vectors.array, questions, method)
    np.put_along_axis(scores, questions, -np.inf, 1)
    result.append(scores.argmax(1))
  return np.concatenate(result)


def _scores_of_words(
  array: NDArray,
  questions: NDArray,
  method: str,
) -> NDArray:
  """Returns [Q, N]: how well each word answers."""
  a, b, c = (array[questions[:, i]] for i in range(3))
  if method == 'add':
    return (b - a + c) @ array.T
  a, b, c = ((1 + vectors @ array.T) / 2 for vectors in (a, b, c))
  return b * c / (a + 1e-3)


def score_analogies(
  vectors: UnitVectors,
  sections: dict[str, list[Question]],
  samples: int = 1000,
  method: str = 'add',
) -> dict[str, Score]:
  """Returns the scores of 'all' questions, and of each section that has a known question."""
  names = []
  questions = []
  for name, of_section in sections.items():
    names += [name] * len(of_section)
    questions += of_section
  rows, lines = vectors.known(questions, 4)
  correct = answers(vectors, rows, method) == rows[:, 3]
  section = np.array(names)[lines]
  scores = {'all': _share(correct, len(questions), samples)}
  for name, of_section in sections.items():
    scores[name] = _share(correct[section == name], len(of_section), samples)
  return {name: score for name, score in scores.items() if score is not None}


def _share(
  correct: NDArray,
  questions: int,
  samples: int,
) -> Score | None:
  """Returns the share of correct answers; None without any."""
  if not len(correct):
    return None
  value, low, high = bootstrap_interval(mean_statistics(correct), mean_value, samples)
  return {'value': value, 'low': low, 'high': high, 'n': len(correct), 'of': questions}


def score_vectors(
  vectors: Vectors,
  folder: str = '',
  most: int = 30000,
  method: str = 'add',
  samples: int = 1000,
) -> dict[str, Score]:
  """Returns {name of a set: its score} over the files of `sets_of`.

  Sections of analogies are named 'NAME: section'.

  Args:
    most: words of the analogies, the first ones; 0 = all.
  """
  scores = {}
  all_vectors = UnitVectors(vectors)
  frequent = None
  for path in sets_of(folder):
    name = path.stem.removeprefix('EN-').lower()
    if not _is_analogies(path):
      score = score_pairs(all_vectors, read_pairs(path), samples)
      if score:
        scores[name] = score
      continue
    if method != 'add':
      name = f'{name}-{method}'
    frequent = frequent or UnitVectors(vectors, most)
    of_sections = score_analogies(frequent, read_analogies(path), samples, method)
    for section, score in of_sections.items():
      scores[name if section == 'all' else f'{name}: {section}'] = score
  return scores


def _is_analogies(path: pathlib.Path) -> bool:
  lines = read_lines(path)
  return bool(lines) and lines[0].startswith(':')
