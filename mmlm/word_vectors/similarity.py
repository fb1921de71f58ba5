"""Word vectors beside people's judgements of similarity, and on analogies (Mikolov et al. 2013).

Axes: N words, W width, Q pairs or questions, S samples of the bootstrap.

  - A word is looked up as it is written, or else in lower case. A pair or a question with a word that has no vector is left out; how many
    are left is told beside each value.
  - Similarity is the cosine; the value is Spearman's rank correlation with the judgements, where equal values share the mean of their ranks.
  - Of an analogy a : b = c : ?, the answer is right when the nearest word is the one that is asked for; a, b and c are never answers.
    Questions and answers are of the `most` first words of the vectors, which are the most frequent ones. Of two words that are equally near
    the first one is the answer.
"""

import os
import pathlib

import numpy as np
from scipy.stats import rankdata

from mmlm.data.sources.parallel_text import read_lines
from mmlm.evaluation.metrics.metric import mean_value
from mmlm.evaluation.significance import bootstrap_interval
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError

SETS = '$MMLM_DATA/text/wordsim'
HOW = """\
DIR holds sets of pairs, a line each: word, word, score, with tabs or spaces between (https://github.com/mfaruqui/eval-word-vectors), and
analogies, four words a line in sections that begin with ': NAME' (questions-words.txt of word2vec). Name it by --sets DIR, by
evaluate.similarity of a config, or have it as text/wordsim below $MMLM_DATA."""
_BLOCK = 1 << 24  # cosines held at once


SIMILARITY = "Spearman's rank correlation of cosine and judgement, over the pairs that are known, equal values with their mean rank"
ANALOGIES = 'share of analogies answered by the nearest word ({}), of those whose words are known'


def definition_of(name: str) -> str:
  """What the value of a set is, for tables; 'questions-words' and its sections are analogies."""
  if name.startswith('questions-words'):
    return ANALOGIES.format('3CosMul' if '-mul' in name else '3CosAdd')
  return SIMILARITY


def sets_of(folder: str = '') -> list[pathlib.Path]:
  """The files of a folder, or one file; '' is $MMLM_DATA/text/wordsim."""
  place = pathlib.Path(os.path.expandvars(folder or SETS)).expanduser()
  if place.is_dir():
    found = sorted(place.glob('*.txt'))
  elif place.is_file():
    found = [place]
  else:
    found = []
  if not found:
    raise UserError(f'{place}: no such file or folder, or no *.txt in it.\n{HOW}')
  return found


def read_pairs(path) -> list[tuple[str, str, float]]:
  rows = []
  for number, line in enumerate(read_lines(path), 1):
    if line.strip() and not line.startswith('#'):
      try:
        first, second, score = line.split()
        rows.append((first, second, float(score)))
      except ValueError:
        raise UserError(
          f'{path}, line {number}: expected two words and a score, found {line[:60]!r}.'
        ) from None
  return rows


def read_analogies(path) -> dict[str, list[tuple]]:
  """{section: [(a, b, c, d), ...]}"""
  sections: dict = {}
  for number, line in enumerate(read_lines(path), 1):
    if line.startswith(':'):
      section = sections.setdefault(line[1:].strip(), [])
    elif words := line.split():
      if len(words) != 4:
        raise UserError(f'{path}, line {number}: expected four words, found {line[:60]!r}.')
      section.append(tuple(words))
  return sections


class Known:
  """The first `most` vectors (0 = all) of length 1 [N, W], and the rows of words; `vectors` has `words` {word: row} and `array`."""

  def __init__(self, vectors, most: int = 0):
    array = np.asarray(vectors.array[: most or None], np.float32)
    self.array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    self.words = vectors.words

  def row(self, word: str) -> int | None:
    found = next(
      (self.words[form] for form in (word, word.lower()) if form in self.words), len(self.array)
    )
    return found if found < len(self.array) else None

  def rows(self, lines: list[tuple], words: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [Q, words] of the lines all of whose words are known, [Q] which lines these are)"""
    found = [[self.row(word) for word in line[:words]] for line in lines]
    kept = [i for i, rows in enumerate(found) if None not in rows]
    return np.array([found[i] for i in kept], int).reshape(
      -1,
      words,
    ), np.array(kept, int)


def spearman(first, second) -> np.ndarray:
  """Rank correlation along the last axis of [..., Q]; 0 where all values of a side are equal."""
  ranks = [rankdata(values, axis=-1) for values in (first, second)]
  x, y = (rank - rank.mean(-1, keepdims=True) for rank in ranks)
  scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
  return np.where(
    scale > 0,
    (x * y).sum(-1) / np.where(scale > 0, scale, 1),
    0.0,
  )


def score_pairs(
  known: Known, pairs: list[tuple], samples: int = 1000, seed: int = 0
) -> dict | None:
  """{'value', 'low', 'high', 'n': pairs that are known, 'of': all}, the interval by bootstrap over pairs; None with fewer than 3."""
  rows, kept = known.rows(pairs, 2)
  if len(kept) < 3:
    return None
  cosines = (known.array[rows[:, 0]] * known.array[rows[:, 1]]).sum(1)
  judged = np.array([pairs[i][2] for i in kept])
  draws = np.random.default_rng(seed).integers(len(kept), size=(samples, len(kept)))  # [S, Q]
  low, high = np.percentile(spearman(cosines[draws], judged[draws]), [2.5, 97.5])
  return {
    'value': float(spearman(cosines, judged)),
    'low': float(low),
    'high': float(high),
    'n': len(kept),
    'of': len(pairs),
  }


def answers(known: Known, rows: np.ndarray, method: str = 'add') -> np.ndarray:
  """[Q] the rows that answer questions a, b, c [Q, 3 or more]: by 3CosAdd, or by 3CosMul (Levy & Goldberg 2014, eq. 4, epsilon 0.001)."""
  one_of('--method', method, ('add', 'mul'))
  found = []
  size = max(1, _BLOCK // len(known.array))
  for start in range(0, len(rows), size):
    asked = rows[start : start + size, :3]
    a, b, c = (known.array[asked[:, i]] for i in range(3))
    if method == 'add':
      scores = (b - a + c) @ known.array.T
    else:
      a, b, c = ((1 + x @ known.array.T) / 2 for x in (a, b, c))
      scores = b * c / (a + 1e-3)
    np.put_along_axis(scores, asked, -np.inf, 1)
    found.append(scores.argmax(1))
  if found:
    return np.concatenate(found)
  return np.zeros(0, int)


def score_analogies(known: Known, sections: dict, samples: int = 1000, method: str = 'add') -> dict:
  """{'all', and each section: {'value', 'low', 'high', 'n', 'of'}} of those with a question that is known."""
  questions = [(name, line) for name, lines in sections.items() for line in lines]
  rows, kept = known.rows([line for _, line in questions], 4)
  right = answers(known, rows, method) == rows[:, 3]
  names = np.array([questions[i][0] for i in kept])
  scores = {}
  for name in ('all', *sections):
    if name == 'all':
      chosen = right
    else:
      chosen = right[names == name]
    if len(chosen):
      statistics = np.stack([chosen, np.ones(len(chosen))], 1)
      if name == 'all':
        of = len(questions)
      else:
        of = len(sections[name])
      scores[name] = dict(
        zip(('value', 'low', 'high'), bootstrap_interval(statistics, mean_value, samples))
      ) | {'n': len(chosen), 'of': of}
  return scores


def score_vectors(
  vectors, folder: str = '', most: int = 30000, method: str = 'add', samples: int = 1000
) -> dict:
  """{name of a set: its score} over the files of `sets_of`; of analogies also 'NAME: section'. `most`: words of the analogies, 0 = all."""
  whole = Known(vectors)
  frequent = None
  scores = {}
  for path in sets_of(folder):
    name = path.stem.removeprefix('EN-').lower() + ('' if method == 'add' else '-mul')
    if read_lines(path)[:1] and read_lines(path)[0].startswith(':'):
      frequent = frequent or Known(vectors, most)
      found = score_analogies(frequent, read_analogies(path), samples, method)
      scores |= {
        name if section == 'all' else f'{name}: {section}': score
        for section, score in found.items()
      }
    elif found := score_pairs(whole, read_pairs(path), samples):
      scores[name.removesuffix('-mul')] = found
  return scores
