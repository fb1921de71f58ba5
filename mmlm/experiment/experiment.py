"""One experiment: a completed config and a run folder -> its parts, wired. Training, evaluation and prediction start here."""

import contextlib
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mmlm import config as configs
from mmlm.data.datasets import preparation
from mmlm.data.filters import alignable, name_unknown
from mmlm.data.pipeline import Loader, Table
from mmlm.data.running_text import RunningText, check_stream, read_running_text
from mmlm.data.sources.manifest import ManifestSource, check_files
from mmlm.data.sources.parallel_text import ParallelTexts
from mmlm.data.sources.plain_text import PlainTexts
from mmlm.data.sources.tfds_source import WithTexts
from mmlm.data.text import Texts, check_language, words
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer, usual_casing
from mmlm.data.transforms.audio_ops import longest, shortest
from mmlm.data.transforms.features import lengthened, rows_of, shortened
from mmlm.data.transforms.image import blank_picture
from mmlm.data.transforms.ops import parse_ops
from mmlm.decoding.ngram import begin_ngram, train_ngram
from mmlm.decoding.score_fusion import Fusion, FusionOptions, Scorer
from mmlm.decoding.search import SearchOptions
from mmlm.evaluation.evaluator import Evaluator
from mmlm.evaluation.metrics import METRICS, higher_is_better
from mmlm.evaluation.text_evaluator import Reading, TextEvaluator
from mmlm.experiment.initialization import started
from mmlm.models.encoders import ENCODERS
from mmlm.models.encoders.subsampling import subsampled_length
from mmlm.models.heads import HEADS
from mmlm.models.multimodal import build_model
from mmlm.parallel import Parallel, local_mesh
from mmlm.pretrained.bert import load_wordpiece
from mmlm.pretrained.frozen_backbone import FrozenBackbone, pick_variant
from mmlm.pretrained.gpt2 import load_gpt2_tokenizer
from mmlm.tasks import TASKS
from mmlm.tasks.text_generation import begin_decoder
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.exported_weights import is_export, read_weights
from mmlm.training.lora import add_lora, merge_lora
from mmlm.utils import run_dir as runs
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError
from mmlm.utils.watchdog import Watch


def config_of_run(folder, assignments: dict):
  """Returns the completed config of a run folder, with overrides such as {'decoding.method': 'greedy'}."""
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise UserError(
      f'{folder}: not a run folder (no config.json). '
      f'Runs are made by `./launch.sh train CONFIG --workdir {folder}`.'
    )
  return configs.override(configs.from_dict(runs.read_json(path)), assignments)


def open_split(data, split: str, modalities: tuple[str, ...], required: tuple[str, ...]):
  """Opens the raw examples of a split, named as in the data set.

  Args:
    data: the section `data` of a config.
    modalities: fields whose files are checked; broken ones are an error or left out.
    required: fields that every line of a manifest must have.
  """
  if data.name == 'parallel':
    return ParallelTexts(split, data.fields.to_dict())
  if data.name == 'text':
    return PlainTexts(split, data.fields.to_dict())
  if data.name == 'manifest':
    source = ManifestSource(split, require=required)
    return check_files(source, data.dir, data.skip_broken, modalities)
  return preparation.open_source(
    data.name, data.dir, split, data.fields.to_dict(), data.source, data.skip_broken
  )


class Experiment:
  """The parts of one experiment, each made when it is first asked for.

  Args:
    config: completed (`mmlm.config.complete`).
    folder: the run folder; the tokenizer is read from it, or trained and written to it.
  """

  def __init__(self, config, folder):
    self.config = config
    self.folder = pathlib.Path(folder)
    self.task = TASKS[one_of('task', config.task, TASKS)]
    if self.task.pipeline:
      raise UserError(
        f'task={config.task}: this command does not apply. '
        f'Commands that do: {", ".join(self.task.pipeline.commands)}.'
      )
    if not config.model.encoders and self.task.needs_encoders:
      raise UserError(f'model.encoders is empty: name one a modality, of {sorted(ENCODERS)}.')
    one_of(f'model.head.name of {config.task}', config.model.head.name, self.task.heads)
    for name in config.evaluate.metrics:
      one_of('evaluate.metrics', name, METRICS)
    for language in filter(None, config.data.languages.values()):
      check_language(language)
    self.modalities = tuple(config.model.encoders)
    for modality, options in config.model.encoders.items():
      limit = options.get('max_positions', config.data.max_length) * options.get('subsampling', 1)
      if limit < config.data.max_length and options.get('positions') in ('learned', 'sinusoidal'):
        raise UserError(
          f'data.max_length={config.data.max_length}: model.encoders.{modality} ({options.name}) has positions for {limit} alone.'
        )
    if self.ctc_labels and self.modalities not in (('audio',), ('text',), ('video',)):
      raise UserError(
        f'model.head.name={config.model.head.name!r} aligns what it writes with one sequence: name audio alone in model.encoders, not {self.modalities}.'
      )
    self.parallel = Parallel(**config.parallel)
    if config.data.stream:
      reads_text = self.task.continues_text(self.modalities)
      check_stream(config, reads_text, self.parallel.devices, self.parallel.part[1])

  @classmethod
  def of_run(cls, folder, assignments: dict) -> 'Experiment':
    """The experiment of a run folder, with overrides such as {'decoding.method': 'greedy'}."""
    return cls(config_of_run(folder, assignments), folder)

  def beside(self, config, folder) -> 'Experiment':
    """An experiment on the same data whose model has the same shapes: what this one has read, learned and built serves it too."""
    other = Experiment(config, folder)
    if self.tokenizer:
      runs.write_atomic(
        other.folder / 'tokenizer.json', (self.folder / 'tokenizer.json').read_bytes()
      )
    if not hasattr(self.table, 'cache_info'):
      self.table = functools.cache(self.table)
    other.source = self.source
    other.rows = self.rows
    other.table = self.table
    other.running_text = self.running_text
    other.__dict__ |= {
      name: getattr(self, name)
      for name in ('widths', 'buckets', 'tokenizer', 'sides', 'backbone', 'model')
    }
    return other

  # Data

  def read_texts(self, texts: dict[str, str], path: str) -> None:
    """From now on all examples have the texts {id: text}, which are those of a file `path`."""
    if 'text' not in self.modalities:
      raise UserError(f'{path}: this model reads {", ".join(self.modalities)} and no text.')
    self.source = functools.cache(
      lambda split, source=self.source: WithTexts(source(split), texts, path)
    )

  @functools.cache  # noqa: B019 an experiment lives as long as the process
  def source(self, split: str):
    """The raw examples of a split, named as in the data set; broken pictures and sounds are an error or left out."""
    data = self.config.data
    required = () if data.stream else (*self.modalities, self.task.answers)
    return open_split(data, split, self.modalities, required)

  @functools.cache  # noqa: B019
  def running_text(self, split: str) -> RunningText:
    """The documents of a split as one text, for a language model."""
    data = self.config.data
    text = read_running_text(
      self.source(split), self.tokenizer, data.ends, split, data.languages.target
    )
    if unknown := int(text.special_tokens.is_unknown(text.tokens).sum()):
      print(
        f'{split}: {unknown:,} of {len(text.tokens):,} tokens ({100 * unknown / len(text.tokens):.2f} %) are unknown, read and predicted as <unk>.'
      )
    return text

  @property
  def apart(self) -> bool:
    """Whether documents that share a row do not see each other."""
    return self.config.data.stream == 'packed' and not self.config.data.across

  def text_evaluator(self) -> TextEvaluator:
    data = self.config.data
    evaluate = self.config.evaluate
    reading = Reading(
      data.stream, self.apart, data.max_length, evaluate.batch_size, evaluate.stride
    )
    return TextEvaluator(self.model, self.task, self.parallel, reading, self.tokenizer.lossless)

  @functools.cached_property
  def widths(self) -> dict:
    """{modality that is rows of features: how many values a row has}"""
    widths = {}
    for m, options in self.config.model.encoders.items():
      if ENCODERS[options.name].reads_features:
        widths[m] = options.width
    if unknown := [m for m, width in widths.items() if width < 1]:
      raise UserError(f'model.encoders.{unknown[0]}.width: say how many values the features have.')
    return widths

  @functools.cache  # noqa: B019
  def rows(self, split: str) -> dict:
    """{modality: rows of each example}; UserError where features are not those that the encoders read."""
    return rows_of(self.source(split), self.widths, self.config.data.eval_ops, self.config.data.dir)

  def check_data(self) -> None:
    """Reports what is wrong with data and search before anything is written."""
    for split in (*self.splits('train'), *self.splits('valid')):
      self.rows(split)
    self.check_decoding()

  def splits(self, part: str) -> tuple:
    """The data set's names of 'train', 'valid' or 'test' (one or several)."""
    names = self.config.data.splits[part]
    if isinstance(names, str):
      return (names,)
    return tuple(names)

  def table(
    self, split: str, with_targets: bool, limit: int = 0, source=None, train: bool = False
  ) -> Table:
    """Examples of a split that fit data.max_length; what does not fit is counted and said, never cut.

    `source`: the same examples with other texts. `train`: there is room for what data.train_ops lengthen.
    """
    rows = lengthened(
      self.rows(split), longest(parse_ops(self.config.data.train_ops)) if train else 1
    )
    source = source or self.source(split)
    table = self.fitting(self.task.table(source, *self.sides, with_targets), rows, split)
    if with_targets and self.tokenizer:
      table = self._aligned(table, split, train)
      name_unknown(table, source, self.tokenizer, split)
    if limit and limit < len(table.ids):
      table = table.select(
        np.sort(np.random.default_rng(0).choice(len(table.ids), limit, replace=False))
      )
    return table

  def fitting(self, table: Table, rows: dict, name: str) -> Table:
    """The rows of a table that fit data.max_length; `rows` counts those of features, `name` is for the message about the others."""
    table = table.with_rows(rows)
    keep = np.flatnonzero(table.lengths <= self.config.data.max_length)
    left_out = len(table.ids) - len(keep)
    if left_out:
      print(
        f'{name}: {left_out} of {len(table.ids)} examples are longer than data.max_length={self.config.data.max_length} '
        f'tokens{" or rows of features" if rows else ""} and are left out (the longest has {table.lengths.max()}): '
        + ', '.join(
          table.ids[i] for i in np.flatnonzero(table.lengths > self.config.data.max_length)[:3]
        )
        + '.'
      )
    if not len(keep):
      raise UserError(
        f'{name}: no example is within data.max_length={self.config.data.max_length} tokens.'
      )
    return table.select(keep)

  @property
  def ctc_labels(self) -> str:
    """What the CTC branch of the head learns: 'target', 'transcript', or '' where there is none."""
    head = self.config.model.head
    return head.get('ctc_labels', HEADS[head.name].ctc_labels)

  def _aligned(self, table: Table, split: str, train: bool) -> Table:
    """What the CTC branch of the head can align, if there is one; `train`: also when data.train_ops make it as short as they may."""
    if not self.ctc_labels:
      return table
    if self.ctc_labels == 'transcript' and not table.transcripts:
      raise UserError(
        f"{split}: no example has a 'transcript', which model.head.ctc_labels asks for: name its field in data.fields."
      )
    (modality,) = self.modalities
    if self.ctc_labels == 'transcript':
      labels = table.transcripts
    else:
      labels = [row[:-1] for row in table.targets]
    counted = shortened(
      self.rows(split), shortest(parse_ops(self.config.data.train_ops)) if train else 1
    )
    if modality in counted:
      rows = counted[modality][table.records]
    else:
      rows = table.lengths_of[modality]
    return alignable(
      table,
      labels,
      subsampled_length(rows, self.config.model.encoders[modality].get('subsampling', 1)),
      split,
    )

  def loader(self, split: str, table: Table, batch_size: int, train: bool = False) -> Loader:
    """Batches of a split of the data set; a frozen encoder that caches reads its grids from disk."""
    data = self.config.data
    source = self.source(split)
    if not (self.backbone and self.config.model.encoders.image.cache):
      return self.loader_of(source, table, batch_size, train)
    # Mirroring is the one random op that can act before a grid that lies on disk.
    if tuple(op for op in data.train_ops if op != 'flip') != tuple(data.eval_ops):
      raise UserError(
        f"data.train_ops={data.train_ops} cannot be used with cached grids: they may differ from data.eval_ops by 'flip' "
        'alone. Set model.encoders.image.cache to False to compute the grids in every step.'
      )
    if data.name == 'manifest':
      name = ManifestSource(split).identity
    else:
      name = f'{data.name}/{split}'
    source = self.backbone.cached(source, name, data.eval_ops, 'flip' in data.train_ops, data.dir)
    blank = self.blank | {'image': source.blank}
    return self._ready(
      Loader(
        source,
        table,
        self.modalities,
        [pick_variant(train)],
        batch_size,
        self.config.seed,
        blank,
        pad_id=self.special_tokens.pad_id,
      )
    )

  def loader_of(self, source, table: Table, batch_size: int, train: bool = False) -> Loader:
    """Batches of any source, nothing cached."""
    ops = parse_ops(self.config.data.train_ops if train else self.config.data.eval_ops)
    if self.backbone:
      finish = self.backbone.batch
    else:
      finish = None
    return self._ready(
      Loader(
        source,
        table,
        self.modalities,
        ops,
        batch_size,
        self.config.seed,
        self.blank,
        finish,
        self.special_tokens.pad_id,
      )
    )

  def _ready(self, loader: Loader) -> Loader:
    loader.watch = Watch(self.config.watch.slow_seconds)
    loader.part = self.parallel.part
    return loader

  @property
  def blank(self) -> dict:
    """An example with nothing in it, in every modality that is not text."""
    return {'id': 'blank', 'image': blank_picture()} | {
      m: np.zeros((1, width), np.float32) for m, width in self.widths.items()
    }

  @functools.cached_property
  def buckets(self) -> tuple:
    data = self.config.data
    buckets = tuple(data.buckets) or (data.max_length,)
    if list(buckets) != sorted(set(buckets)) or buckets[-1] != data.max_length:
      raise UserError(
        f'data.buckets={buckets}: expected increasing lengths that end with data.max_length={data.max_length}.'
      )
    return buckets

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    if self.config.tokenizer.kind == 'none':
      return None
    path = self.folder / 'tokenizer.json'
    if not path.exists():
      (split,) = self.splits('train')
      options = self.config.tokenizer
      languages = self.config.data.languages
      if given := {
        'wordpiece': load_wordpiece,
        'run': tokenizer_of_run,
        'gpt2': load_gpt2_tokenizer,
      }.get(options.kind):
        given(options.source).save(path)
        return Tokenizer.load(path)
      texts = self.task.texts_to_learn(self.source(split))
      learned = {side: [words(text, languages[side]) for text in texts[side]] for side in texts}
      if options.lowercase and languages.target:
        casing = usual_casing(learned['target'])
      else:
        casing = {}
      train_tokenizer(
        [*learned['text'], *learned['target']],
        **{k: v for k, v in options.items() if k != 'source'},
        casing=casing,
      ).save(path)
    return Tokenizer.load(path)

  @property
  def special_tokens(self) -> SpecialTokens:
    """Returns the ids of the tokenizer's special tokens; without a tokenizer those of ours."""
    if self.tokenizer is None:
      return SpecialTokens()
    return self.tokenizer.special_tokens

  @functools.cached_property
  def sides(self) -> tuple:
    """What reads the text of an example, and what reads and writes the answers of the task."""
    languages = self.config.data.languages
    return Texts(self.tokenizer, languages.text), self.task.outputs(
      self.config.model.head, Texts(self.tokenizer, languages.target)
    )

  # Model

  @functools.cached_property
  def backbone(self) -> FrozenBackbone | None:
    """The frozen network in front of the picture encoder, if there is one."""
    options = self.config.model.encoders.get('image', {})
    # Grids are of the rows of this process, computed without the others.
    if jax.process_count() == 1:
      alone = self.parallel
    else:
      alone = local_mesh()
    if options.get('frozen'):
      return FrozenBackbone(options.name, alone)
    return None

  @functools.cached_property
  def model(self):
    return self.model_of(self.config)

  def model_of(self, config):
    """The model of `config`: that of the experiment, or one in which numbers are traced."""
    return build_model(
      config.model,
      self.tokenizer.vocab_size if self.tokenizer else 0,
      config.data.max_length,
      self.special_tokens,
    )

  def _random_params(self, batch: dict):
    """Random parameters for a batch's shapes (seeded)."""
    row = {key: jnp.asarray(value[:1]) for key, value in batch.items()}
    inputs = jnp.zeros((1, self.buckets[0]), jnp.int32)
    key = jax.random.key(self.config.seed)
    options = self.config.optimizer
    return add_lora(
      jax.jit(self.model.init)({'params': key}, row, inputs)['params'], options.lora_rules, key
    )

  def weights(self, params):
    """Parameters of a checkpoint -> those that the model reads."""
    return merge_lora(params, self.config.optimizer.lora_alpha)

  def initial_params(self, batch: dict):
    """Those, with what an encoder or the head starts from where the config names it (mmlm/experiment/initialization.py)."""
    return started(self, self._random_params(batch))

  def abstract_params(self, batch: dict):
    """Shapes and types of the parameters."""
    return jax.eval_shape(lambda: self._random_params(batch))

  def checkpoints(self, writing: bool = False) -> Checkpoints:
    train = self.config.train
    folder = self.folder / 'checkpoints'
    if self.tokenizer:
      vocabulary = self.tokenizer.fingerprint
    else:
      vocabulary = ''
    return Checkpoints(
      folder,
      train.monitor,
      train.keep_latest,
      train.keep_best,
      writing,
      vocabulary,
      higher_is_better=higher_is_better(train.monitor),
    )

  def trained_params(self, abstract=None) -> tuple:
    """The parameters that `evaluate` names, or those of an export where the folder is one, and their step; `abstract`: their shapes and types."""
    options = self.config.evaluate
    if not is_export(self.folder):
      with contextlib.closing(self.checkpoints()) as checkpoints:
        return checkpoints.params(abstract, options.checkpoint, options.average)
    if options.checkpoint != 'best' or options.average != 1:
      raise UserError(
        f'{self.folder} is an export: it holds one model, for which evaluate.checkpoint and evaluate.average cannot choose another.'
      )
    return read_weights(self.folder, abstract)

  def check_decoding(self) -> None:
    """Raises UserError where config.decoding cannot be used; reads no tokenizer."""
    search, _ = self._decoding({})
    SearchOptions(**search)

  def search_options(self, **changes) -> tuple[SearchOptions, FusionOptions]:
    """Returns how to search, and what with; `changes` override the config's decoding."""
    decoding, fusion = self._decoding(changes)
    special = self.special_tokens
    search = SearchOptions(
      **decoding, pad_id=special.pad_id, bos_id=special.bos_id, eos_ids=special.eos_ids
    )
    return search, fusion

  def _decoding(self, changes: dict) -> tuple[dict, FusionOptions]:
    """Returns the fields of SearchOptions that a config has, and the scorers."""
    decoding = self.config.decoding.to_dict() | changes
    head = self.config.model.head.name
    decoding['max_length'] = decoding['max_length'] or self.config.data.max_length
    fusion = FusionOptions(
      **{field.name: decoding.pop(field.name) for field in dataclasses.fields(FusionOptions)}
    )
    if fusion.ctc_weight and (head == 'ctc' or self.ctc_labels != 'target'):
      raise UserError(
        f'decoding.ctc_weight={fusion.ctc_weight}: the head {head!r} has no CTC branch that has learned the targets beside a decoder.'
      )
    if head == 'ctc' and decoding['method'] == 'sample':
      raise UserError(
        "decoding.method='sample': a CTC head alone is decoded by 'greedy' or 'beam'."
      )
    return decoding, fusion

  def evaluator(self, align: bool = False, around=None, **changes) -> Evaluator:
    """`changes` override the config's decoding; with `align` predictions tell where CTC, if there is any, finds them in the sound.

    `around`: task -> another one that answers in its place.
    """
    options, fusion = self.search_options(**changes)
    if align and self.ctc_labels:
      task = dataclasses.replace(self.task, align=True)
    else:
      task = self.task
    task = around(task) if around else task
    return Evaluator(
      self.model,
      task,
      self.parallel,
      self.sides[1],
      options,
      self.config.seed,
      self.fusion(options, fusion),
    )

  def fusion(self, search: SearchOptions, options: FusionOptions) -> Fusion:
    """What is searched with beside the model, ready to score."""
    found = []
    if options.ngram_weight:
      (split,) = self.splits('train')
      targets = self.task.table(self.source(split), *self.sides).targets
      found.append(
        (
          Scorer(options.ngram_weight, begin_ngram),
          train_ngram(targets, options.ngram, self.tokenizer.vocab_size, search),
        )
      )
    if options.language_model_weight:
      other = Experiment.of_run(
        options.language_model,
        {f'parallel.{key}': str(value) for key, value in self.config.parallel.items()},
      )
      params = self._language_model_params(other, search)

      def begin(arrays, examples, options):
        return begin_decoder(other.model, arrays, None, examples, options)

      found.append((Scorer(options.language_model_weight, begin), params))
    if found:
      return Fusion(options.ctc_weight, *zip(*found))
    return Fusion(options.ctc_weight)

  def _language_model_params(self, other: 'Experiment', search: SearchOptions):
    """The parameters of the run of a language model; UserError where it cannot score what this one writes."""
    name = f'decoding.language_model={self.config.decoding.language_model}'
    if not other.task.continues_text(other.modalities):
      raise UserError(
        f'{name}: its task is {other.config.task} and it reads {", ".join(other.modalities)}: expected a model without encoders.'
      )
    if other.tokenizer.fingerprint != self.tokenizer.fingerprint:
      raise UserError(
        f'{name}: its vocabulary is another one. Train it with tokenizer.kind=run tokenizer.source={self.folder}, which takes over that of this run.'
      )
    if not other.config.data.ends:
      raise UserError(
        f'{name}: it has not learned where texts end (data.ends=False), so that it would never let one end.'
      )
    if other.config.data.max_length <= search.max_length:
      raise UserError(
        f'{name}: it reads less than {other.config.data.max_length} tokens, and decoding.max_length={search.max_length}.'
      )
    params, _ = other.trained_params(other.abstract_params({'weight': np.ones(1, np.float32)}))
    return other.weights(params)


def tokenizer_of_run(run: str) -> Tokenizer:
  path = pathlib.Path(run) / 'tokenizer.json'
  if not path.is_file():
    raise UserError(
      f"tokenizer.source={run!r}: with tokenizer.kind='run' it is the folder of a run with a tokenizer.json."
    )
  return Tokenizer.load(path)
