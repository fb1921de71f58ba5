"""An experiment on word vectors: a config and a run folder -> the parts of its training.

Axes: V words, D width, R rows of the inputs.
"""

import contextlib
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jax import Array
from ml_collections import ConfigDict
from numpy.typing import NDArray

from mmlm.data.open_split import open_split
from mmlm.data.text import check_language
from mmlm.evaluation.metrics import higher_is_better
from mmlm.experiment.data import split_names
from mmlm.experiment.run import config_of_run
from mmlm.parallel import Parallel
from mmlm.pretrained.formats.subwords import piece_hashes
from mmlm.pretrained.formats.vector_files import Vectors
from mmlm.training.checkpoints import Checkpoints
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.word_vectors.context_windows import Subwords, WindowLoader, WindowPlan
from mmlm.word_vectors.cooccurrence import PairLoader, PairPlan, count_cooccurrences
from mmlm.word_vectors.objectives import WORD_VECTORS, Glove
from mmlm.word_vectors.vocabulary import Corpus, Vocabulary, count_words, sentences_of

VOCABULARY = 'vocabulary.json'
TASK = 'word_vectors'
# Settings that do not apply to training row by row, and the values that they must have.
UNUSED = {
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 0.0,
  'optimizer.lora_rules': (),
  'train.accumulate': 1,
  'train.ema_decay': 0.0,
  'train.batch_tokens': 0,
  'train.start_from': '',
  'tokenizer.kind': 'word',
}


class VectorExperiment:
  """The parts of an experiment on word vectors, each made when it is first used.

  It runs on one device: an update needs the rows that the one before has moved.

  Args:
    config: completed (`mmlm.config.complete`).
    folder: the run folder; the vocabulary is read from it, or counted and written to it.
  """

  def __init__(
    self,
    config: Any,
    folder: str | pathlib.Path,
  ):
    if config.task != TASK:
      raise UserError(f'{folder}: its task is {config.task}, expected {TASK}.')
    options = config.model.head.to_dict()
    objective = WORD_VECTORS[
      one_of(f'model.head.name of {TASK}', options.pop('name'), WORD_VECTORS)
    ]
    self.model = objective(**options)
    _check(config, self.model.optimizer)
    self.config = ConfigDict(config.to_dict())
    self.config.parallel.strategy = 'jit'
    self.folder = pathlib.Path(folder)
    self.parallel = Parallel(**self.config.parallel)

  @classmethod
  def of_run(
    cls,
    folder: str | pathlib.Path,
    assignments: dict[str, str],
  ) -> 'VectorExperiment':
    """Returns the experiment of a run folder, with overrides of its config."""
    return cls(config_of_run(folder, assignments), folder)

  # Data

  def splits(self, part: str) -> tuple[str, ...]:
    """Returns the data set's names of 'train', 'valid' or 'test'."""
    return split_names(self.config, part)

  def check(self) -> None:
    """Reads the texts of training and validation, so that what is wrong with them is an error."""
    for split in (*self.splits('train'), *self.splits('valid')):
      self.sentences(split)

  @functools.cache  # noqa: B019 an experiment lives as long as the process
  def sentences(self, split: str) -> list[list[str]]:
    """Returns the sentences of a split as lists of words."""
    data = self.config.data
    source = open_split(data, split, (), ('text',))
    sentences = list(sentences_of(source, data.languages.text, self.config.tokenizer.lowercase))
    if not sentences:
      raise UserError(f'{split}: no text in it.')
    return sentences

  @functools.cached_property
  def tokenizer(self) -> Vocabulary:
    """The words of the run; they are counted where it has not begun."""
    path = self.folder / VOCABULARY
    if path.exists() and any((self.folder / 'checkpoints').glob('[0-9]*')):
      return Vocabulary.load(path)
    (split,) = self.splits('train')
    options = self.config.tokenizer
    vocabulary = count_words(
      self.sentences(split), options.min_frequency, options.vocab_size, split
    )
    vocabulary.save(path)
    return vocabulary

  @functools.cache  # noqa: B019
  def corpus(self, split: str) -> Corpus:
    """Returns the words of a split that are in the vocabulary."""
    corpus = self.tokenizer.encode(self.sentences(split))
    if not np.any(np.diff(corpus.starts) > 1):
      raise UserError(
        f'{split}: no sentence has two words of the vocabulary '
        f'({len(self.tokenizer.words):,} words): there is no window to learn from.'
      )
    return corpus

  @functools.cached_property
  def subwords(self) -> Subwords | None:
    """The rows of the inputs of each word, its own and those of its subwords; None without these.

    Subwords have the numbers of fastText modulo `buckets`; a number that no word of the vocabulary
    has gets no row.
    """
    head = self.config.model.head
    if not head.get('longest'):
      return None
    return _subwords(self.tokenizer.words, head)

  def plan_and_loader(
    self,
    split: str,
    batch_size: int,
  ) -> tuple[Any, Any]:
    """Returns the batches of a split, and what makes them."""
    corpus = self.corpus(split)
    counts = self.tokenizer.counts
    seed = self.config.seed
    model = self.model
    if isinstance(model, Glove):
      pairs = count_cooccurrences(corpus, len(counts), model.window)
      plan = PairPlan(pairs, len(corpus.ids), batch_size, seed)
      return plan, PairLoader(plan, model.micro_batch)
    plan = WindowPlan(corpus, counts, model.subsample, batch_size, seed)
    pull = self.config.optimizer.learning_rate * model.pairs * (1 + model.negatives)
    return plan, WindowLoader(plan, counts, model, self.subwords, pull)

  # Vectors

  def initial_vectors(self) -> dict[str, Array]:
    """Returns the tables before the first step."""
    words = len(self.tokenizer.words)
    rows = words
    if self.subwords is not None:
      rows = int(self.subwords.rows.max(initial=words - 1)) + 1
    return self.model.init(jax.random.key(self.config.seed), words, rows, self.config.model.dim)

  def checkpoints(self, writing: bool = False) -> Checkpoints:
    """Returns the checkpoints of the run; a training opens them for `writing`."""
    train = self.config.train
    return Checkpoints(
      self.folder / 'checkpoints',
      train.monitor,
      train.keep_latest,
      train.keep_best,
      writing,
      self.tokenizer.fingerprint,
      higher_is_better=higher_is_better(train.monitor),
    )

  def trained_vectors(self) -> tuple[Vectors, int]:
    """Returns the vectors of the checkpoint that the config names, and its step."""
    options = self.config.evaluate
    with contextlib.closing(self.checkpoints()) as checkpoints:
      params, step = checkpoints.params(None, options.checkpoint, options.average)
    return self.vectors_of(jax.tree.map(np.asarray, params)), step

  def vectors_of(self, params: dict[str, NDArray]) -> Vectors:
    """Returns the vectors of the words, from the tables."""
    numbers = {word: number for number, word in enumerate(self.tokenizer.words)}
    return Vectors(numbers, self._array_of(params))

  def _array_of(self, params: dict[str, NDArray]) -> NDArray:
    """Returns [V, D]."""
    if isinstance(self.model, Glove):
      return (params['inputs'] + params['outputs'])[:, :-1]
    if self.subwords is None:
      return params['inputs']
    rows, starts = self.subwords
    sums = np.add.reduceat(params['inputs'][rows], starts[:-1])
    return (sums / np.diff(starts)[:, None]).astype(np.float32)


def _check(config: Any, optimizer: str) -> None:
  """Raises UserError for settings that do not apply to word vectors."""
  strategy = config.parallel.strategy
  if strategy not in ('auto', 'jit') or jax.process_count() > 1:
    raise UserError(
      f'parallel.strategy={strategy!r}: word vectors are trained by one process on one device, '
      "choose 'auto' or 'jit'."
    )
  one_of(f'optimizer.name of {config.model.head.name}', config.optimizer.name, (optimizer,))
  for key, required in UNUSED.items():
    section, name = key.split('.')
    value = config[section][name]
    if value != required:
      raise UserError(
        f'{key}={value!r}: does not apply to word vectors, which are trained row by row. '
        f'Set it to {required!r}.'
      )
  for language in filter(None, config.data.languages.values()):
    check_language(language)
  head = config.model.head
  if 0 < head.get('longest', 0) < head.get('shortest', 0):
    raise UserError(
      f'model.head.longest={head.longest} is below model.head.shortest={head.shortest}.'
    )
  if head.micro_batch % head.get('row', 1):
    raise UserError(
      f'model.head.micro_batch={head.micro_batch} does not divide by model.head.row={head.row}.'
    )
  if config.train.batch_size % head.micro_batch:
    raise UserError(
      f'train.batch_size={config.train.batch_size} does not divide by '
      f'model.head.micro_batch={head.micro_batch}.'
    )


def _subwords(words: list[str], head: Any) -> Subwords:
  """Numbers the subwords of a vocabulary, behind the V words."""
  hashes = []
  lengths = []
  for word in words:
    of_word = piece_hashes(word, head.shortest, head.longest)
    hashes += of_word
    lengths.append(len(of_word))
  numbers = np.array(hashes, np.int64) % head.buckets
  _, rows = np.unique(numbers, return_inverse=True)
  begins = np.cumsum(lengths) - lengths
  with_words = np.insert(rows + len(words), begins, np.arange(len(words)))
  starts = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)])
  return Subwords(with_words, starts)
