"""Word vectors: from a config to what training needs, and the commands that read what it has learned.

Axes: V words, D width, R rows of the inputs.
"""

import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from mmlm import config as configs
from mmlm.data.pipeline import stream
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.training import watch_of
from mmlm.pretrained.formats.vector_files import Vectors, read_vectors
from mmlm.pretrained.formats.write_vectors import write_vectors
from mmlm.training import loop
from mmlm.training.optimizers import make_schedule
from mmlm.training.step import TrainState
from mmlm.utils import run_dir as runs
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.word_vectors.context_windows import WindowLoader, WindowPlan
from mmlm.word_vectors.cooccurrence import PairLoader, PairPlan, count_cooccurrences
from mmlm.word_vectors.objectives import WORD_VECTORS, Glove
from mmlm.word_vectors.similarity import score_vectors
from mmlm.word_vectors.sparse_step import RowOptions, initial_optimizer_state, row_step
from mmlm.word_vectors.subwords import piece_hashes
from mmlm.word_vectors.vocabulary import Corpus, Vocabulary, count_words, sentences_of

VOCABULARY = 'vocabulary.json'
_VALID_BATCHES = 8  # of a validation
# What moves the rows of tables has none of these.
_UNUSED = {
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 0.0,
  'optimizer.lora_rules': (),
  'train.accumulate': 1,
  'train.ema_decay': 0.0,
  'train.batch_tokens': 0,
  'train.start_from': '',
  'tokenizer.kind': 'word',
}


class VectorExperiment(Experiment):
  """The parts of an experiment on word vectors. It runs on one device: an update needs the rows that the one before has moved."""

  ctc_labels = ''

  def __init__(self, config, folder):
    if config.task != 'word_vectors':
      raise UserError(f'{folder}: its task is {config.task}, expected word_vectors.')
    if config.parallel.strategy not in ('auto', 'jit') or jax.process_count() > 1:
      raise UserError(
        f"parallel.strategy={config.parallel.strategy!r}: word vectors are learned by one process on one device, choose 'auto' or 'jit'."
      )
    config = ConfigDict(config.to_dict())
    config.parallel.strategy = 'jit'
    super().__init__(config, folder)
    options = config.model.head.to_dict()
    self.model = WORD_VECTORS[options.pop('name')](**options)
    one_of(
      f'optimizer.name of {config.model.head.name}', config.optimizer.name, (self.model.optimizer,)
    )
    values = {
      key: functools.reduce(lambda tree, part: tree[part], key.split('.'), config)
      for key in _UNUSED
    }
    for key, wanted in _UNUSED.items():
      if values[key] != wanted:
        raise UserError(
          f'{key}={values[key]!r}: word vectors are learned row by row and have none of it, set it to {wanted!r}.'
        )
    self._check_sizes(config.model.head, config.train.batch_size)

  def _check_sizes(self, head, batch_size: int):
    least = {
      'window': 1,
      'micro_batch': 1,
      'negatives': 0,
      'shared': 1,
      'row': 1,
      'buckets': 1,
      'shortest': 1,
      'longest': 0,
    }
    for name, low in least.items():
      if head.get(name, low) < low or (name == 'window' and head.window > 255):
        raise UserError(
          f'model.head.{name}={head[name]}: expected {low} or more{", 255 at most" if name == "window" else ""}.'
        )
    if 0 < head.get('longest', 0) < head.get('shortest', 0):
      raise UserError(
        f'model.head.longest={head.longest} is below model.head.shortest={head.shortest}.'
      )
    for key, value, part in (
      ('model.head.micro_batch', head.micro_batch, head.get('row', 1)),
      ('train.batch_size', batch_size, head.micro_batch),
    ):
      if value % part:
        raise UserError(
          f'{key}={value} does not divide by {"model.head.micro_batch" if key.startswith("train") else "model.head.row"}={part}.'
        )

  def rows(self, split: str) -> dict:
    """Reads the words of a split; they are no rows of features."""
    self.sentences(split)
    return {}

  @functools.cache  # noqa: B019 an experiment lives as long as the process
  def sentences(self, split: str) -> list[list[str]]:
    config = self.config
    found = list(
      sentences_of(self.source(split), config.data.languages.text, config.tokenizer.lowercase)
    )
    if not found:
      raise UserError(f'{split}: no text in it.')
    return found

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
    corpus = self.tokenizer.encode(self.sentences(split))
    if not np.any(np.diff(corpus.starts) > 1):
      raise UserError(
        f'{split}: no sentence has two words of the vocabulary ({len(self.tokenizer.words):,} words): there is no window to learn from.'
      )
    return corpus

  @functools.cached_property
  def pieces(self) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows of the inputs, one word after another: its own and those of its pieces; [V + 1] where each begins), or None without pieces.

    Pieces have the numbers of fastText modulo `buckets`; a number that no word of the vocabulary has gets no row.
    """
    head = self.config.model.head
    words = self.tokenizer.words
    if not head.get('longest'):
      return None
    hashes = [piece_hashes(word, head.shortest, head.longest) for word in words]
    lengths = np.array([len(row) for row in hashes])
    used, rows = np.unique(
      np.array([value for row in hashes for value in row], np.int64) % head.buckets,
      return_inverse=True,
    )
    starts = np.concatenate([[0], np.cumsum(lengths + 1)])
    table = np.insert(
      rows + len(words),
      np.cumsum(lengths) - lengths,
      np.arange(len(words)),
    )
    return table, starts

  def plan_and_loader(self, split: str, batch_size: int) -> tuple:
    """Batch numbers, and what makes their batches."""
    corpus = self.corpus(split)
    counts = self.tokenizer.counts
    seed = self.config.seed
    if isinstance(self.model, Glove):
      plan = PairPlan(
        count_cooccurrences(corpus, len(counts), self.model.window),
        len(corpus.ids),
        batch_size,
        seed,
      )
      return plan, PairLoader(plan, self.model.micro_batch)
    plan = WindowPlan(corpus, counts, self.model.subsample, batch_size, seed)
    pull = self.config.optimizer.learning_rate * self.model.pairs * (1 + self.model.negatives)
    return plan, WindowLoader(plan, counts, self.model, self.pieces, pull)

  def initial_vectors(self) -> dict:
    words = len(self.tokenizer.words)
    if self.pieces is None:
      rows = words
    else:
      rows = int(self.pieces[0].max(initial=words - 1)) + 1
    return self.model.init(jax.random.key(self.config.seed), words, rows, self.config.model.dim)

  def vectors(self) -> tuple[Vectors, int]:
    """The vectors of the chosen checkpoint, and its step."""
    params, step = self.trained_params()
    return self.vectors_of(jax.tree.map(np.asarray, params)), step

  def vectors_of(self, params: dict) -> Vectors:
    return Vectors(
      {word: i for i, word in enumerate(self.tokenizer.words)}, self._rows_of_words(params)
    )

  def _rows_of_words(self, params: dict) -> np.ndarray:
    """[V, D]"""
    if isinstance(self.model, Glove):
      return (params['inputs'] + params['outputs'])[:, :-1]
    if self.pieces is None:
      return params['inputs']
    rows, starts = self.pieces
    sums = np.add.reduceat(params['inputs'][rows], starts[:-1])
    return (sums / np.diff(starts)[:, None]).astype(np.float32)


def training_parts(experiment: VectorExperiment, split: str) -> tuple[loop.Parts, TrainState]:
  """What `loop.train` needs, and the state before the first step."""
  config = experiment.config
  model = experiment.model
  one_of('train.monitor', config.train.monitor, ('loss',))
  plan, loader = experiment.plan_and_loader(split, config.train.batch_size)
  validate = _validation(experiment)

  def steps(key, of=None):
    return configs.to_steps(
      config.train[key], f'train.{key}', plan.examples_per_step, plan.steps_per_epoch, of
    )

  total = steps('duration')
  rate = make_schedule(config.optimizer, total, plan.examples_per_step, plan.steps_per_epoch)
  params = experiment.initial_vectors()
  print(
    f'{split}: {len(experiment.corpus(split).ids):,} words of the vocabulary, {plan.steps_per_epoch} steps an epoch, {total} steps in all'
  )
  parts = loop.Parts(
    options=RowOptions(model, rate, config.watch.non_finite == 'skip'),
    learning_rate=rate,
    validate=validate,
    step=row_step,
    stream=lambda start, stop: stream(_Numbers(), loader, start, stop),
    ids=lambda number: ['of epoch {} the batch {}'.format(*divmod(number, plan.steps_per_epoch))],
    schedule=loop.Schedule(
      total,
      max(1, steps('log_every', total)),
      max(1, steps('eval_every', total)),
      config.train.patience,
    ),
    watch=watch_of(config),
    skips=config.watch.skips_in_a_row,
  )
  rng = jax.random.key_data(jax.random.key(config.seed, impl='threefry2x32'))
  return parts, TrainState(
    np.zeros((), np.int32), params, initial_optimizer_state(params, model.optimizer), (), rng
  )


class _Numbers:
  """Batch number -> itself: a plan for loaders that need nothing else."""

  def __getitem__(self, number: int) -> int:
    return number


def _validation(experiment: VectorExperiment):
  """params -> mean loss a pair over the first batches of each validation split."""
  model = experiment.model
  splits = experiment.splits('valid')
  loaders = {}
  for split in splits:
    loaders[f'{split}/' if len(splits) > 1 else ''] = experiment.plan_and_loader(
      split, experiment.config.train.batch_size
    )

  @jax.jit
  def sums(params, batch):
    def of_update(_, update):
      return (None, model.gradients(params, update)[2:])

    return jax.tree.map(
      lambda x: x.sum(),
      jax.lax.scan(of_update, None, model.prepare(batch))[1],
    )

  def validate(params) -> dict:
    values = {}
    for prefix, (plan, loader) in loaders.items():
      found = np.array(
        [sums(params, loader(i, i)) for i in range(min(plan.steps_per_epoch, _VALID_BATCHES))],
        np.float64,
      ).sum(0)
      values[f'{prefix}loss'] = float(found[0] / max(found[1], 1))
    return values

  return validate


def _read(name: str, settings: dict) -> tuple[Vectors, VectorExperiment | None, int]:
  """The vectors of a run folder, a file or a package; of a run also its experiment and the step."""
  if not pathlib.Path(name).is_dir():
    if settings:
      raise UserError(f'{name} is no run folder: it has no config to set.')
    return read_vectors(name), None, 0
  experiment = VectorExperiment.of_run(name, settings)
  found, step = experiment.vectors()
  return found, experiment, step


def evaluate(
  workdir: str, splits: tuple, settings: dict, greedy: bool = False, text_from: str = ''
) -> list[dict]:
  """Scores a run of word vectors on the sets of evaluate.similarity, and writes scores/similarity-<step>.json."""
  if splits or greedy or text_from:
    raise UserError(
      'word vectors have no splits to decode: --splits, --greedy and --text_from are of other tasks. The sets are named by evaluate.similarity.'
    )
  return [_scored(workdir, settings, '', 30000, 'add')]


def similarity(vectors: str, sets: str, restrict: int, method: str, settings: dict) -> dict:
  """Scores vectors of a file, a package or a run."""
  return _scored(vectors, settings, sets, restrict, method)


def _scored(name: str, settings: dict, sets: str, restrict: int, method: str) -> dict:
  vectors, experiment, step = _read(name, settings)
  if experiment:
    options = experiment.config.evaluate
  else:
    options = configs.default_config().evaluate
  scores = score_vectors(
    vectors, sets or options.similarity, restrict, method, options.bootstrap_samples
  )
  cut = min(restrict or len(vectors.words), len(vectors.words))
  print(
    f'{name}: {len(vectors.words):,} words, {vectors.width} values each; analogies among the first {cut:,} words, by 3Cos{method.capitalize()}'
  )
  for metric, s in scores.items():
    print(
      f'  {metric:<44} {s["value"]:.4f}   95 % [{s["low"]:.4f}, {s["high"]:.4f}]   {s["n"]:,} of {s["of"]:,} known'
    )
  result = {
    'split': 'similarity',
    'step': step,
    'decoding': {},
    'shuffled': False,
    'n': len(vectors.words),
    'restrict': restrict,
    'scores': scores,
  }
  if experiment:
    suffix = '' if method == 'add' else f'-{method}'
    runs.write_json(experiment.folder / 'scores' / f'similarity-{step}{suffix}.json', result)
  return result


def export_vectors(workdir: str, output: str, format: str, settings: dict) -> None:
  """Writes the vectors of a run to a file."""
  if not pathlib.Path(workdir).is_dir():
    raise UserError(f'{workdir}: not a run folder.')
  found, experiment, step = _read(workdir, settings)
  write_vectors(output, experiment.tokenizer.words, found.array, format)
  print(f'{output}: {len(found.words):,} words, {found.width} values each, of step {step}')
