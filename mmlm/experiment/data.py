"""The data of one experiment: sources, tokenizer, tables of examples and loaders of batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mmlm.data.filters import alignable, name_unknown
from mmlm.data.labels import Classes
from mmlm.data.open_split import open_split
from mmlm.data.pipeline import Loader, Table
from mmlm.data.running_text import RunningText, read_running_text
from mmlm.data.sources.tfds_source import WithTexts
from mmlm.data.text import Texts
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.transforms.audio_ops import longest, shortest
from mmlm.data.transforms.features import lengthened, rows_of, shortened
from mmlm.data.transforms.image import blank_picture
from mmlm.data.transforms.ops import parse_ops
from mmlm.experiment.tokenization import load_or_train_tokenizer
from mmlm.models.encoders import ENCODERS
from mmlm.models.encoders.subsampling import subsampled_length
from mmlm.models.heads import HEADS
from mmlm.parallel import local_mesh
from mmlm.parallel.strategies import Strategy
from mmlm.pretrained.frozen_backbone import FrozenBackbone, pick_variant
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch


class ReplacedTexts(NamedTuple):
  """Texts that replace those of the examples, as in cascaded translation.

  Attributes:
    texts: {id of an example: its text}.
    path: the file that they were read from, for messages.
  """

  texts: dict[str, str]
  path: str


class TextSides(NamedTuple):
  """What encodes the text of an example, and what encodes and decodes its answer."""

  inputs: Texts
  outputs: Texts | Classes


@dataclasses.dataclass
class DataCache:
  """What was read and computed from the data; several experiments may share one.

  Attributes:
    keep_tables: keep tables of examples too, for experiments that ask for the same ones.
  """

  keep_tables: bool = False
  values: dict = dataclasses.field(default_factory=dict)

  def get(self, key: tuple, make: Callable[[], Any]) -> Any:
    """Returns the value of a key, made at its first use."""
    if key not in self.values:
      self.values[key] = make()
    return self.values[key]


def split_names(config: Any, part: str) -> tuple[str, ...]:
  """Returns the data set's names of 'train', 'valid' or 'test' (one or several)."""
  names = config.data.splits[part]
  if isinstance(names, str):
    return (names,)
  return tuple(names)


def ctc_labels_of(head: Any) -> str:
  """Returns what the CTC branch of a head learns: 'target', 'transcript', or '' without one."""
  return head.get('ctc_labels', HEADS[head.name].ctc_labels)


class ExperimentData:
  """Sources, tokenizer, tables and loaders of an experiment, each made when it is first needed.

  Args:
    config: completed config.
    folder: run folder; the tokenizer is read from it, or trained and written to it.
    task: the task of the config.
    parallel: how devices and processes divide a batch.
    cache: of another experiment on the same data, whose values serve this one too.
    replaced_texts: texts that replace those of the examples.
    share: keep tables too, for experiments that share the cache.

  Raises:
    UserError: replaced texts for a model that reads no text.
  """

  def __init__(
    self,
    config: Any,
    folder: Any,
    task: Any,
    parallel: Strategy,
    cache: DataCache | None = None,
    replaced_texts: ReplacedTexts | None = None,
    share: bool = False,
  ):
    self.config = config
    self.folder = folder
    self.task = task
    self.parallel = parallel
    self.cache = cache or DataCache(keep_tables=share)
    self.replaced_texts = replaced_texts
    self.modalities = tuple(config.model.encoders)
    if replaced_texts and 'text' not in self.modalities:
      modalities = ', '.join(self.modalities)
      raise UserError(f'{replaced_texts.path}: this model reads {modalities} and no text.')

  # What is read

  def source(self, split: str) -> Any:
    """Returns the raw examples of a split; broken files are an error or left out."""
    return self.cache.get(('source', split), lambda: self._open(split))

  def _open(self, split: str) -> Any:
    data = self.config.data
    required = () if data.stream else (*self.modalities, self.task.answers)
    source = open_split(data, split, self.modalities, required)
    if self.replaced_texts:
      return WithTexts(source, *self.replaced_texts)
    return source

  def running_text(self, split: str) -> RunningText:
    """Returns the documents of a split as one text, for a language model."""
    return self.cache.get(('running_text', split), lambda: self._read_running_text(split))

  def _read_running_text(self, split: str) -> RunningText:
    data = self.config.data
    assert self.tokenizer is not None
    text = read_running_text(
      self.source(split), self.tokenizer, data.ends, split, data.languages.target
    )
    unknown = int(text.special_tokens.is_unknown(text.tokens).sum())
    if unknown:
      share = 100 * unknown / len(text.tokens)
      print(
        f'{split}: {unknown:,} of {len(text.tokens):,} tokens ({share:.2f} %) are unknown, '
        'read and predicted as <unk>.'
      )
    return text

  @property
  def documents_apart(self) -> bool:
    """Whether documents that share a sequence do not attend to one another."""
    return self.config.data.stream == 'packed' and not self.config.data.across

  def splits(self, part: str) -> tuple[str, ...]:
    """Returns the data set's names of 'train', 'valid' or 'test' (one or several)."""
    return split_names(self.config, part)

  @functools.cached_property
  def widths(self) -> dict[str, int]:
    """{modality that is a sequence of feature frames: values of a frame}."""
    widths = {}
    for modality, options in self.config.model.encoders.items():
      if ENCODERS[options.name].reads_features:
        widths[modality] = options.width
        if options.width < 1:
          raise UserError(f'model.encoders.{modality}.width: set the number of values of a frame.')
    return widths

  def rows(self, split: str) -> dict[str, np.ndarray]:
    """Returns {modality: frames of each example}.

    Raises:
      UserError: features that are not those that the encoders read.
    """
    data = self.config.data
    return self.cache.get(
      ('rows', split),
      lambda: rows_of(self.source(split), self.widths, data.eval_ops, data.dir),
    )

  def check(self) -> None:
    """Reads what training needs of each split, so that errors come before anything is written."""
    for split in (*self.splits('train'), *self.splits('valid')):
      self.rows(split)

  # Text

  @property
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer of the run folder, trained at its first use; None if no text is used."""
    return self.cache.get(
      ('tokenizer',),
      lambda: load_or_train_tokenizer(
        self.config, self.folder, self.task, lambda: self.source(*self.splits('train'))
      ),
    )

  @property
  def special_tokens(self) -> SpecialTokens:
    """The ids of the tokenizer's special tokens; without a tokenizer those of ours."""
    if self.tokenizer is None:
      return SpecialTokens()
    return self.tokenizer.special_tokens

  @functools.cached_property
  def texts(self) -> TextSides:
    """What encodes inputs, and what encodes and decodes answers."""
    languages = self.config.data.languages
    tokenizer: Any = self.tokenizer  # None for a task that reads and writes no text
    inputs = Texts(tokenizer, languages.text)
    outputs = Texts(tokenizer, languages.target)
    return TextSides(inputs, self.task.outputs(self.config.model.head, outputs))

  # Tables of examples

  def table(
    self,
    split: str,
    with_targets: bool,
    limit: int = 0,
    source: Any = None,
    train: bool = False,
  ) -> Table:
    """Returns the examples of a split that fit data.max_length; longer ones are counted and named.

    Args:
      with_targets: read the targets too.
      limit: keep a random sample of this size; 0 = all.
      source: the same examples with other texts.
      train: leave room for the frames that data.train_ops add.
    """

    def make() -> Table:
      return self._make_table(split, with_targets, limit, source, train)

    if not self.cache.keep_tables:
      return make()
    return self.cache.get(('table', split, with_targets, limit, source, train), make)

  def _make_table(
    self, split: str, with_targets: bool, limit: int, source: Any, train: bool
  ) -> Table:
    factor = longest(parse_ops(self.config.data.train_ops)) if train else 1
    frames = lengthened(self.rows(split), factor)
    source = source or self.source(split)
    table = self.fitting(self.task.table(source, *self.texts, with_targets), frames, split)
    if with_targets and self.tokenizer:
      table = self._alignable(table, split, train)
      name_unknown(table, source, self.tokenizer, split)
    if limit and limit < len(table.ids):
      sample = np.random.default_rng(0).choice(len(table.ids), limit, replace=False)
      table = table.select(np.sort(sample))
    return table

  def fitting(self, table: Table, frames: dict[str, np.ndarray], name: str) -> Table:
    """Returns the examples of a table that fit data.max_length.

    Args:
      frames: {modality: frames of each example}.
      name: what the examples are, for the message about those that are left out.

    Raises:
      UserError: no example fits.
    """
    limit = self.config.data.max_length
    table = table.with_rows(frames)
    fits = table.lengths <= limit
    too_long = np.flatnonzero(~fits)
    if len(too_long):
      unit = 'tokens or frames' if frames else 'tokens'
      ids = ', '.join(table.ids[i] for i in too_long[:3])
      print(
        f'{name}: {len(too_long)} of {len(table.ids)} examples are longer than '
        f'data.max_length={limit} {unit} and are left out '
        f'(the longest has {table.lengths.max()}): {ids}.'
      )
    if not fits.any():
      raise UserError(f'{name}: no example is within data.max_length={limit} tokens.')
    return table.select(np.flatnonzero(fits))

  def _alignable(self, table: Table, split: str, train: bool) -> Table:
    """Returns the examples that the CTC branch of the head can align, if it has one.

    Args:
      train: also when data.train_ops make the sound as short as they can.
    """
    labels_name = ctc_labels_of(self.config.model.head)
    if not labels_name:
      return table
    if labels_name == 'transcript':
      if not table.transcripts:
        raise UserError(
          f"{split}: no example has a 'transcript', which model.head.ctc_labels needs: "
          'name its field in data.fields.'
        )
      labels = table.transcripts
    else:
      labels = [target[:-1] for target in table.targets]
    (modality,) = self.modalities
    factor = shortest(parse_ops(self.config.data.train_ops)) if train else 1
    counts = shortened(self.rows(split), factor)
    if modality in counts:
      frames = counts[modality][table.records]
    else:
      frames = table.lengths_of[modality]
    subsampling = self.config.model.encoders[modality].get('subsampling', 1)
    return alignable(table, labels, subsampled_length(frames, subsampling), split)

  # Batches

  @functools.cached_property
  def buckets(self) -> tuple[int, ...]:
    """The lengths that batches are padded to, in increasing order."""
    data = self.config.data
    buckets = tuple(data.buckets) or (data.max_length,)
    if list(buckets) != sorted(set(buckets)) or buckets[-1] != data.max_length:
      raise UserError(
        f'data.buckets={buckets}: expected increasing lengths that end with '
        f'data.max_length={data.max_length}.'
      )
    return buckets

  @property
  def backbone(self) -> FrozenBackbone | None:
    """The frozen network in front of the picture encoder, if there is one."""
    return self.cache.get(('backbone',), self._make_backbone)

  def _make_backbone(self) -> FrozenBackbone | None:
    options = self.config.model.encoders.get('image', {})
    if not options.get('frozen'):
      return None
    # A process computes the grids of its own examples, without the others.
    alone = self.parallel if jax.process_count() == 1 else local_mesh()
    return FrozenBackbone(ENCODERS[options.name], alone)

  @property
  def blank(self) -> dict:
    """An example with nothing in it, in every modality that is not text."""
    example = {'id': 'blank', 'image': blank_picture()}
    for modality, width in self.widths.items():
      example[modality] = np.zeros((1, width), np.float32)
    return example

  def loader(
    self,
    split: str,
    table: Table,
    batch_size: int,
    train: bool = False,
    absent: str = '',
    change_source: Callable[[Any], Any] | None = None,
  ) -> Loader:
    """Returns the loader of a split; a frozen encoder that caches reads its grids from disk.

    Args:
      absent: a modality that no example has.
      change_source: source -> the same examples with other contents.
    """
    data = self.config.data
    source = self.source(split)
    if not (self.backbone and self.config.model.encoders.image.cache):
      if change_source:
        source = change_source(source)
      return self.loader_of(source, table, batch_size, train, absent)
    # Mirroring is the only random transform that can come before a grid that lies on disk.
    if tuple(op for op in data.train_ops if op != 'flip') != tuple(data.eval_ops):
      raise UserError(
        f'data.train_ops={data.train_ops} cannot be used with cached grids: they may differ from '
        "data.eval_ops by 'flip' alone. Set model.encoders.image.cache to False to compute the "
        'grids in every step.'
      )
    name = source.identity or f'{data.name}/{split}'
    grids = self.backbone.cached(source, name, data.eval_ops, 'flip' in data.train_ops, data.dir)
    blank = self.blank | {'image': grids.blank}
    return self._make_loader(
      change_source(grids) if change_source else grids,
      table,
      [pick_variant(train)],
      batch_size,
      blank=blank,
      absent=absent,
    )

  def loader_of(
    self,
    source: Any,
    table: Table,
    batch_size: int,
    train: bool = False,
    absent: str = '',
    whole_buckets: bool = False,
    all_parts: bool = False,
  ) -> Loader:
    """Returns a loader of any source, with nothing cached.

    Args:
      absent: a modality that no example has.
      whole_buckets: pad all columns to the length of the bucket, so that few shapes are compiled.
      all_parts: load whole batches in every process.
    """
    data = self.config.data
    ops = parse_ops(data.train_ops if train else data.eval_ops)
    finish = self.backbone.batch if self.backbone else None
    return self._make_loader(
      source,
      table,
      ops,
      batch_size,
      blank=self.blank,
      finish=finish,
      absent=absent,
      whole_buckets=whole_buckets,
      part=(0, 1) if all_parts else self.parallel.part,
    )

  def _make_loader(
    self, source: Any, table: Table, ops: list, batch_size: int, **options: Any
  ) -> Loader:
    options.setdefault('part', self.parallel.part)
    return Loader(
      source,
      table,
      self.modalities,
      ops,
      batch_size,
      self.config.seed,
      pad_id=self.special_tokens.pad_id,
      watch=Watch(self.config.watch.slow_seconds),
      **options,
    )
