"""Sentences with a sentiment.

SST-2 (Socher et al. 2013), MR (Pang & Lee 2005) and the scored snippets of VADER (Hutto & Gilbert
2014).
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.sources.parallel_text import read_lines, read_table
from mmlm.utils.errors import UserError

F = tfds.features
CLASSES = ['negative', 'positive']
FOLDS = 10
PACKED = ('', '.xz')  # endings of a file as it is, or packed


class Sentences(SourceDatasetBuilder, skip_registration=True):
  """Features: id, text and label, the name of a class or a number."""

  FIELDS = {'id': 'id', 'text': 'text', 'label': 'label'}
  LABEL = F.ClassLabel(names=CLASSES)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=F.FeaturesDict(
        {
          'id': F.Text(),
          'text': F.Text(),
          'label': self.LABEL,
        }
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    return {split: self._generate_examples(rows) for split, rows in self.read_splits().items()}

  def _generate_examples(self, rows: Iterable) -> Iterator:
    for name, text, label in rows:
      yield name, {'id': name, 'text': text, 'label': label}

  def read_splits(self) -> dict[str, list[tuple[str, str, Any]]]:
    """Returns {split: (id, text, label) of each example}."""
    raise NotImplementedError


class Sst2(Sentences):
  """Training phrases, sentences of the other splits, as in GLUE: 67,349 / 872 / 1,821."""

  name = 'sst2'
  FOLDER = 'text/sst'
  HOW = """\
Get SST-2.zip of GLUE (https://gluebenchmark.com/tasks) and unpack it:  ./launch.sh prepare sst2
--source FOLDER
FOLDER holds train.tsv and dev.tsv with a header (sentence, label), and test.tsv if it has labels
(GLUE's own has none)."""

  def read_splits(self) -> dict[str, list]:
    files = {
      'train': ('train.tsv', 'glue_like_train.tsv'),
      'dev': ('dev.tsv', 'glue_like_dev.tsv'),
      'test': ('test.tsv', 'glue_like_test.tsv'),
    }
    found = {}
    for split, names in files.items():
      try:
        path = self.find(*names, endings=PACKED)
      except UserError:
        if split != 'test':
          raise
        continue
      rows = read_table(path, ())
      text = next((column for column in ('sentence', 'content') if column in rows[0]), None)
      if text is None or 'label' not in rows[0]:
        if split == 'test':
          continue
        raise UserError(
          f'{path}, line 1: expected the columns sentence and label, found {", ".join(rows[0])}.'
        )
      for number, row in enumerate(rows, 2):
        if row['label'] not in ('0', '1') or not row[text].strip():
          raise UserError(
            f'{path}, line {number}: expected a sentence with label 0 or 1, found '
            f'{row["label"]!r}, {row[text][:40]!r}.'
          )
      found[split] = [
        (
          f'{split}/{i}',
          row[text].strip(),
          int(row['label']),
        )
        for i, row in enumerate(rows)
      ]
    return found


class Mr(Sentences):
  """10,662 sentences of film reviews, half of them positive, in ten folds of their own for
  cross-validation: 'fold_0' to 'fold_9'.
  """

  name = 'mr'
  FOLDER = 'text/mr'
  HOW = """\
Get rt-polarity (https://www.cs.cornell.edu/people/pabo/movie-review-data) as one file in UTF-8, a
line each: label (0 or 1), space, sentence:
  ./launch.sh prepare mr --source FOLDER, which holds it as rt-polarity.all.txt (.xz)"""

  def read_splits(self) -> dict[str, list]:
    path = self.find('rt-polarity.all.txt', endings=PACKED)
    rows = []
    for number, line in enumerate(read_lines(path), 1):
      label, _, text = line.partition(' ')
      if label not in ('0', '1') or not text.strip():
        raise UserError(
          f'{path}, line {number}: expected 0 or 1, a space and a sentence, found {line[:40]!r}.'
        )
      rows.append((f'line {number}', text.strip(), int(label)))
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: row[-1])  # so that the folds have as many of each class
    return {f'fold_{k}': rows[k::FOLDS] for k in range(FOLDS)}


class Vader(Sentences):
  """Snippets of four kinds with the mean of twenty people's scores, -4 to 4; snippets of one text
  are in one split: about 8 : 1 : 1.
  """

  name = 'vader'
  FOLDER = 'text/vader'
  FILES = {
    'tweets': 'tweets',
    'movies': 'movieReviewSnippets',
    'products': 'amazonReviewSnippets',
    'editorials': 'nytEditorialSnippets',
  }
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=form) for form in FILES]
  LABEL = F.Scalar(dtype=np.float32)
  HOW = """\
Get the ground truth files of https://github.com/cjhutto/vaderSentiment and give each a header (id,
score, text), tab-separated:
  ./launch.sh prepare vader/tweets --source FOLDER   (tweets.tsv, movieReviewSnippets.tsv,
  amazonReviewSnippets.tsv, nytEditorialSnippets.tsv)"""

  def read_splits(self) -> dict[str, list]:
    path = self.find(f'{self.FILES[self.form]}.tsv', endings=PACKED)
    found = {'train': [], 'valid': [], 'test': []}
    for number, row in enumerate(read_table(path, ('id', 'score', 'text')), 2):
      try:
        score = float(row['score'])
      except ValueError:
        raise UserError(
          f'{path}, line {number}: the score {row["score"]!r} is no number.'
        ) from None
      if not -4 <= score <= 4 or not row['text'].strip():
        raise UserError(
          f'{path}, line {number}: expected a text with a score from -4 to 4, found {score}, '
          f'{row["text"][:40]!r}.'
        )
      draw = random.Random(row['id'].partition('_')[0]).random()
      found['train' if draw < 0.8 else 'valid' if draw < 0.9 else 'test'].append(
        (row['id'], row['text'].strip(), score)
      )
    return found
