"""One experiment: a completed config and a run folder -> its parts, wired. Training, evaluation and prediction start here."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mmlm import config as configs
from mmlm import runs
from mmlm.data import prepare
from mmlm.data.manifest import ManifestSource, check_pictures, fingerprint
from mmlm.data.ops import parse_ops
from mmlm.data.parallel_text import ParallelTexts
from mmlm.data.pipeline import Loader, Table
from mmlm.data.text import Texts, check_language, words
from mmlm.data.tokenizers import BOS, EOS, PAD, Tokenizer, train_tokenizer, usual_casing
from mmlm.decoding.search import SearchOptions
from mmlm.errors import UserError
from mmlm.evaluation.evaluator import Evaluator
from mmlm.evaluation.text_metrics import METRICS
from mmlm.models.multimodal import build_model
from mmlm.parallel import Parallel
from mmlm.pretrained.features import BACKBONES, FrozenBackbone, pick_variant
from mmlm.tasks import TASKS
from mmlm.training.checkpoints import Checkpoints
from mmlm.trees import one_of


class Experiment:
  """The parts of one experiment, each made when it is first asked for.

  Args:
    config: completed (`mmlm.config.complete`).
    folder: the run folder; the tokenizer is read from it, or trained and written to it.
  """

  def __init__(self, config, folder):
    self.config, self.folder = config, pathlib.Path(folder)
    self.task = TASKS[one_of('task', config.task, TASKS)]
    for name in config.evaluate.metrics:
      one_of('evaluate.metrics', name, METRICS)
    for language in filter(None, config.data.languages.values()):
      check_language(language)
    self.modalities = tuple(config.model.encoders)
    self.parallel = Parallel(config.parallel.strategy)
    for part, accumulate in (('train', config.train.accumulate), ('evaluate', 1)):
      size, devices = config[part].batch_size, self.parallel.devices
      if size % (devices * accumulate):
        times = f' times train.accumulate={accumulate}' if accumulate > 1 else ''
        raise UserError(f'{part}.batch_size={size} does not divide by {devices} devices{times}.')

  @classmethod
  def of_run(cls, folder, assignments: dict) -> 'Experiment':
    """The experiment of a run folder, with overrides such as {'decoding.method': 'greedy'}."""
    path = pathlib.Path(folder) / 'config.json'
    if not path.is_file():
      raise UserError(f'{folder}: not a run folder (no config.json). Runs are made by `./launch.sh train CONFIG --workdir {folder}`.')
    return cls(configs.override(configs.from_dict(runs.read_json(path)), assignments), folder)

  # Data

  @functools.cache  # noqa: B019 an experiment lives as long as the process
  def source(self, split: str):
    """The raw examples of a split, named as in the data set; broken pictures are an error or left out."""
    data = self.config.data
    if data.name == 'parallel':
      return ParallelTexts(split, data.fields.to_dict())
    if data.name == 'manifest':
      source = ManifestSource(split, require=(*self.modalities, 'targets'))
      return check_pictures(source, data.dir, data.skip_broken) if 'image' in self.modalities else source
    return prepare.open_source(data.name, data.dir, split, data.fields.to_dict(), data.source, data.skip_broken)

  def splits(self, part: str) -> tuple:
    """The data set's names of 'train', 'valid' or 'test' (one or several)."""
    names = self.config.data.splits[part]
    return (names,) if isinstance(names, str) else tuple(names)

  def table(self, split: str, with_targets: bool, limit: int = 0, source=None) -> Table:
    """Examples of a split that fit data.max_length; what does not fit is counted and said, never cut.

    `source`: the same examples with other texts.
    """
    table = self.fitting(self.task.table(source or self.source(split), *self.sides, with_targets), split)
    if limit and limit < len(table.ids):
      table = table.select(np.sort(np.random.default_rng(0).choice(len(table.ids), limit, replace=False)))
    return table

  def fitting(self, table: Table, name: str) -> Table:
    """The rows of a table that fit data.max_length; `name` is for the message about the others."""
    keep = np.flatnonzero(table.lengths <= self.config.data.max_length)
    left_out = len(table.ids) - len(keep)
    if left_out:
      print(
        f'{name}: {left_out} of {len(table.ids)} examples are longer than data.max_length={self.config.data.max_length} '
        f'tokens and are left out (the longest has {table.lengths.max()}): '
        + ', '.join(table.ids[i] for i in np.flatnonzero(table.lengths > self.config.data.max_length)[:3]) + '.'
      )
    if not len(keep):
      raise UserError(f'{name}: no example is within data.max_length={self.config.data.max_length} tokens.')
    return table.select(keep)

  def loader(self, split: str, table: Table, batch_size: int, train: bool = False) -> Loader:
    """Batches of a split of the data set; a frozen encoder that caches reads its grids from disk."""
    data, source = self.config.data, self.source(split)
    if not (self.backbone and self.config.model.encoders.image.cache):
      return self.loader_of(source, table, batch_size, train)
    # Mirroring is the one random op that can act before a grid that lies on disk.
    if tuple(op for op in data.train_ops if op != 'flip') != tuple(data.eval_ops):
      raise UserError(
        f"data.train_ops={data.train_ops} cannot be used with cached grids: they may differ from data.eval_ops by 'flip' "
        'alone. Set model.encoders.image.cache to False to compute the grids in every step.'
      )
    name = f'{data.name}/{split}'
    if data.name == 'manifest':
      name = f'{pathlib.Path(split).absolute()} {fingerprint(ManifestSource(split))}'
    source = self.backbone.cached(source, name, data.eval_ops, 'flip' in data.train_ops, data.dir)
    return Loader(source, table, self.modalities, [pick_variant(train)], batch_size, self.config.seed)

  def loader_of(self, source, table: Table, batch_size: int, train: bool = False) -> Loader:
    """Batches of any source, nothing cached."""
    ops = parse_ops(self.config.data.train_ops if train else self.config.data.eval_ops)
    finish = self.backbone.batch if self.backbone else None
    return Loader(source, table, self.modalities, ops, batch_size, self.config.seed, finish)

  @functools.cached_property
  def buckets(self) -> tuple:
    data = self.config.data
    buckets = tuple(data.buckets) or (data.max_length,)
    if list(buckets) != sorted(set(buckets)) or buckets[-1] != data.max_length:
      raise UserError(f'data.buckets={buckets}: expected increasing lengths that end with data.max_length={data.max_length}.')
    return buckets

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    path = self.folder / 'tokenizer.json'
    if not path.exists():
      (split,) = self.splits('train')
      options, languages = self.config.tokenizer, self.config.data.languages
      texts = self.task.texts_to_learn(self.source(split))
      learned = {side: [words(text, languages[side]) for text in texts[side]] for side in texts}
      casing = usual_casing(learned['target']) if options.lowercase and languages.target else {}
      train_tokenizer([*learned['text'], *learned['target']], **options.to_dict(), casing=casing).save(path)
    return Tokenizer.load(path)

  @functools.cached_property
  def sides(self) -> tuple[Texts, Texts]:
    """The tokenizer as the text of an example and its targets see it."""
    languages = self.config.data.languages
    return Texts(self.tokenizer, languages.text), Texts(self.tokenizer, languages.target)

  # Model

  @functools.cached_property
  def backbone(self) -> FrozenBackbone | None:
    """The frozen network in front of the picture encoder, if there is one."""
    options = self.config.model.encoders.get('image', {})
    return FrozenBackbone(options.name, self.parallel) if options.get('frozen') else None

  @functools.cached_property
  def model(self):
    return build_model(self.config.model, self.tokenizer.vocab_size, self.config.data.max_length)

  def initial_params(self, batch: dict):
    """Random parameters for a batch's shapes (seeded), with pretrained weights where an encoder is not frozen."""
    row = {key: jnp.asarray(value[:1]) for key, value in batch.items()}
    inputs = jnp.zeros((1, self.buckets[0]), jnp.int32)
    params = jax.jit(self.model.init)({'params': jax.random.key(self.config.seed)}, row, inputs)['params']
    for modality, options in self.config.model.encoders.items():
      if options.name in BACKBONES and not options.frozen:
        params[f'encoders_{modality}']['backbone'] = jax.tree.map(jnp.asarray, BACKBONES[options.name][1]())
    return params

  def abstract_params(self, batch: dict):
    """Shapes and types of the parameters."""
    return jax.eval_shape(lambda: self.initial_params(batch))

  def checkpoints(self, writing: bool = False) -> Checkpoints:
    train = self.config.train
    folder, vocabulary = self.folder / 'checkpoints', self.tokenizer.fingerprint
    return Checkpoints(folder, train.monitor, train.keep_latest, train.keep_best, writing, vocabulary)

  def search_options(self, **changes) -> SearchOptions:
    decoding = self.config.decoding.to_dict() | changes
    decoding['max_length'] = decoding['max_length'] or self.config.data.max_length
    return SearchOptions(**decoding, pad_id=PAD, bos_id=BOS, eos_id=EOS)

  def evaluator(self, **changes) -> Evaluator:
    """`changes` override the config's decoding."""
    return Evaluator(self.model, self.task, self.parallel, self.sides[1], self.search_options(**changes), self.config.seed)

