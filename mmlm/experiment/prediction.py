"""Decoding with a trained run: its parameters, and predictions of a split as it is or with inputs changed."""

import pathlib
from typing import NamedTuple

import numpy as np

from mmlm.data import batching
from mmlm.data.pipeline import Table, stream
from mmlm.data.transforms.features import count_rows
from mmlm.data.transforms.ops import parse_ops
from mmlm.evaluation.ablation import mask_words
from mmlm.evaluation.evaluator import Evaluator, shuffle_inputs
from mmlm.experiment.experiment import Experiment
from mmlm.utils.errors import UserError


class Condition(NamedTuple):
  """What is changed in the inputs of a split; every field '' changes nothing."""

  shuffled: str = (
    ''  # a modality that every example gets from another one, or 'inputs' for all of them together
  )
  without: str = ''  # a modality that no example has
  masked: str = ''  # a kind of words that are masked in the text (evaluation/ablation.py)

  def __str__(self):
    if self.masked:
      parts = [f'{self.masked} masked']
    else:
      parts = []
    parts += [f'{self.shuffled} shuffled'] if self.shuffled else []
    parts += [f'without {self.without}'] if self.without else []
    return ', '.join(parts) or 'as it is'


AS_IT_IS = Condition()


class _Changed:
  """A source whose examples have other texts, or the field `name` of another example."""

  def __init__(self, source, text=None, name: str = '', order=None):
    self.source = source
    self.text = text
    self.name = name
    self.order = order

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i) -> dict:
    example = dict(self.source[i])
    if self.text and 'text' in example:
      example['text'] = self.text(example['text'])
    if self.name:
      other = self.source[int(self.order[i])]
      example = {key: value for key, value in example.items() if key != self.name} | {
        k: other[k] for k in (self.name,) if k in other
      }
    return example


def params_of(experiment: Experiment, loader):
  """Replicated parameters of the chosen checkpoint, and its step; the first example of `loader` gives the shapes."""
  with stream(
    [batching.Batch(np.arange(1), experiment.buckets[-1], 1)],
    loader,
    0,
    1,
  ) as batches:
    abstract = experiment.parallel.abstract(experiment.abstract_params(next(batches)))
  params, step = experiment.trained_params(abstract)
  return experiment.parallel.place(experiment.weights(params)), step


def decode(
  experiment, evaluator, params, split, limit=0, condition=AS_IT_IS, progress=''
) -> list[dict]:
  """Predictions of a split with their references, and what the model read: {modality: the text, or the id of an example}."""
  config = experiment.config
  source = experiment.source(split)
  if condition.masked:
    masked = _Changed(source, text=lambda text: mask_words(text, condition.masked))
  else:
    masked = source
  table = experiment.table(split, False, limit, source=masked)
  modality = condition.shuffled
  other = shuffle_inputs(table, config.seed)
  tokens = modality == 'text' and modality not in experiment.widths
  if modality == 'inputs':
    given = other
  elif tokens:
    given = table._replace(texts=other.texts)
  else:
    given = table
  loader = experiment.loader(split, given, config.evaluate.batch_size)
  loader.absent = condition.without
  if modality not in ('', 'inputs') and not tokens:
    order = np.arange(len(source))
    order[table.records] = other.records
    loader.source = _Changed(loader.source, name=modality, order=order)
    loader.table = table._replace(
      rows=table.rows | {m: counts for m, counts in other.rows.items() if m == modality}
    )
  found = evaluator.predict(params, loader, experiment.buckets, config.data.workers, progress)
  read = {}
  for m in experiment.modalities:
    if m != condition.without:
      read[m] = other.records if modality in ('inputs', m) else table.records
  for i, rows in enumerate(found):
    example = source[int(table.records[i])]
    references = experiment.task.references(example)
    if example.get('speaker'):
      about = {'speaker': example['speaker']}
    else:
      about = {}
    if 'audio' in table.rows and experiment.task.writes_text:
      about['seconds'] = int(given.rows['audio'][i]) / 100  # of a hundred rows each
    told = {m: _told(masked[int(records[i])], m) for m, records in read.items()}
    for row, reference in zip(rows, references, strict=True):
      row |= {'references': reference, 'input': told} | about
  return [row for rows in found for row in rows]


def _told(example: dict, modality: str) -> str | None:
  """What a file of predictions says of an input: the text itself, or the id of the example that it is of."""
  if modality == 'text':
    text = example.get('text')
  else:
    text = None
  if isinstance(text, str) or (modality == 'text' and text is None):
    return text
  return example['id']


class Predictor:
  """A run's model, ready to answer: lists of raw examples -> rows of predictions. `step`: of its checkpoint, once it has answered.

  `buckets`: lengths to which everything is padded, so that few programs are compiled; else those of the config, and features as they come.
  """

  def __init__(
    self, experiment: Experiment, evaluator: Evaluator | None = None, buckets: tuple = ()
  ):
    self.experiment = experiment
    self.evaluator = evaluator or experiment.evaluator()
    self.params = None
    self.step = -1
    self.size = 0
    self.buckets = buckets or experiment.buckets
    self.whole_buckets = bool(buckets)

  def __call__(self, examples: list[dict], name: str) -> list[dict]:
    """`name` says in messages where the examples come from; one that is longer than the model reads is an error."""
    experiment = self.experiment
    table = experiment.task.table(examples, *experiment.sides, with_targets=False)
    table = table.with_rows(
      count_rows(examples, experiment.widths, parse_ops(experiment.config.data.eval_ops))
    )
    longest = int(np.argmax(table.lengths))
    limit = experiment.config.data.max_length
    if table.lengths[longest] > limit:
      column = max(table.lengths_of, key=lambda column: table.lengths_of[column][longest])
      if column in table.rows:
        unit = f'rows of {column} features'
      else:
        unit = 'tokens'
      raise UserError(
        f'{name}: {table.ids[longest]!r} has {table.lengths[longest]} {unit}, the model reads {limit} at most (data.max_length). Cut it.'
      )
    loader = self._loader(examples, table)
    return [
      row for rows in self.evaluator.predict(self.params, loader, self.buckets) for row in rows
    ]

  def _loader(self, examples: list[dict], table: Table):
    devices = self.experiment.parallel.devices
    # Never smaller than before: what is compiled serves again.
    self.size = max(
      self.size,
      min(self.experiment.config.evaluate.batch_size, -(-len(table.ids) // devices) * devices),
    )
    loader = self.experiment.loader_of(examples, table, self.size)
    loader.whole_buckets = self.whole_buckets
    if self.params is None:
      self.params, self.step = params_of(self.experiment, loader)
    return loader


def file_name(split: str) -> str:
  """A split as part of a file's name."""
  path, bracket, part = split.partition('[')
  if path.endswith(('.txt', '.xz')):  # a part of plain text
    return pathlib.Path(path).stem + (
      bracket and f'_{part.strip("]").replace("%", "").replace(":", "_")}'
    )
  if split.endswith(('.jsonl', '.tsv')):
    return pathlib.Path(split).stem
  return split.strip('./').replace('/', '_')
