"""Decoding with a trained run: its parameters, and predictions of a split as it is or with inputs changed."""

import pathlib
from typing import NamedTuple

import numpy as np

from mmlm.data import batching
from mmlm.data.features import count_rows
from mmlm.data.ops import parse_ops
from mmlm.data.pipeline import Table, stream
from mmlm.errors import UserError
from mmlm.evaluation.ablation import mask_words
from mmlm.evaluation.evaluator import Evaluator, shuffle_inputs
from mmlm.experiment import Experiment


class Condition(NamedTuple):
  """What is changed in the inputs of a split; every field '' changes nothing."""

  shuffled: str = ''  # a modality that every example gets from another one, or 'inputs' for all of them together
  without: str = ''  # a modality that no example has
  masked: str = ''  # a kind of words that are masked in the text (evaluation/ablation.py)

  def __str__(self):
    parts = [f'{self.masked} masked'] if self.masked else []
    parts += [f'{self.shuffled} shuffled'] if self.shuffled else []
    parts += [f'without {self.without}'] if self.without else []
    return ', '.join(parts) or 'as it is'


AS_IT_IS = Condition()


class _Changed:
  """A source whose examples have other texts, or the field `name` of another example."""

  def __init__(self, source, text=None, name: str = '', order=None):
    self.source, self.text, self.name, self.order = source, text, name, order

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i) -> dict:
    example = dict(self.source[i])
    if self.text and 'text' in example:
      example['text'] = self.text(example['text'])
    if self.name:
      other = self.source[int(self.order[i])]
      example = {key: value for key, value in example.items() if key != self.name} | {k: other[k] for k in (self.name,) if k in other}
    return example


def params_of(experiment: Experiment, loader):
  """Replicated parameters of the chosen checkpoint, and its step; the first example of `loader` gives the shapes."""
  with stream([batching.Batch(np.arange(1), experiment.buckets[-1], 1)], loader, 0, 1) as batches:
    abstract = experiment.parallel.abstract(experiment.abstract_params(next(batches)))
  params, step = experiment.trained_params(abstract)
  return experiment.parallel.place(experiment.weights(params)), step


def decode(experiment, evaluator, params, split, limit=0, condition=AS_IT_IS, progress='') -> list[dict]:
  """Predictions of a split with their references, and what the model read: {modality: the text, or the id of an example}."""
  config, source = experiment.config, experiment.source(split)
  masked = _Changed(source, text=lambda text: mask_words(text, condition.masked)) if condition.masked else source
  table = experiment.table(split, False, limit, source=masked)
  modality, other = condition.shuffled, shuffle_inputs(table, config.seed)
  tokens = modality == 'text' and modality not in experiment.widths
  given = other if modality == 'inputs' else table._replace(texts=other.texts) if tokens else table
  loader = experiment.loader(split, given, config.evaluate.batch_size)
  loader.absent = condition.without
  if modality not in ('', 'inputs') and not tokens:
    order = np.arange(len(source))
    order[table.records] = other.records
    loader.source = _Changed(loader.source, name=modality, order=order)
    loader.table = table._replace(rows=table.rows | {m: counts for m, counts in other.rows.items() if m == modality})
  found = evaluator.predict(params, loader, experiment.buckets, config.data.workers, progress)
  read = {m: other.records if modality in ('inputs', m) else table.records for m in experiment.modalities if m != condition.without}
  for i, rows in enumerate(found):
    example = source[int(table.records[i])]
    references = experiment.task.references(example)
    about = {'speaker': example['speaker']} if example.get('speaker') else {}
    if 'audio' in table.rows and experiment.task.answers == 'targets':
      about['seconds'] = int(given.rows['audio'][i]) / 100  # of a hundred rows each
    told = {m: _told(masked[int(records[i])], m) for m, records in read.items()}
    for row, reference in zip(rows, references, strict=True):
      row |= {'references': reference, 'input': told} | about
  return [row for rows in found for row in rows]


def _told(example: dict, modality: str) -> str | None:
  """What a file of predictions says of an input: the text itself, or the id of the example that it is of."""
  text = example.get('text') if modality == 'text' else None
  return text if isinstance(text, str) or (modality == 'text' and text is None) else example['id']


class Predictor:
  """A run's model, ready to answer: lists of raw examples -> rows of predictions. `step`: of its checkpoint, once it has answered.

  `buckets`: lengths to which everything is padded, so that few programs are compiled; else those of the config, and features as they come.
  """

  def __init__(self, experiment: Experiment, evaluator: Evaluator | None = None, buckets: tuple = ()):
    self.experiment, self.evaluator, self.params, self.step, self.size = experiment, evaluator or experiment.evaluator(), None, -1, 0
    self.buckets, self.whole_buckets = buckets or experiment.buckets, bool(buckets)

  def __call__(self, examples: list[dict], name: str) -> list[dict]:
    """`name` says in messages where the examples come from; one that is longer than the model reads is an error."""
    experiment = self.experiment
    table = experiment.task.table(examples, *experiment.sides, with_targets=False)
    table = table.with_rows(count_rows(examples, experiment.widths, parse_ops(experiment.config.data.eval_ops)))
    longest, limit = int(np.argmax(table.lengths)), experiment.config.data.max_length
    if table.lengths[longest] > limit:
      column = max(table.lengths_of, key=lambda column: table.lengths_of[column][longest])
      unit = f'rows of {column} features' if column in table.rows else 'tokens'
      raise UserError(f'{name}: {table.ids[longest]!r} has {table.lengths[longest]} {unit}, the model reads {limit} at most (data.max_length). Cut it.')
    loader = self._loader(examples, table)
    return [row for rows in self.evaluator.predict(self.params, loader, self.buckets) for row in rows]

  def _loader(self, examples: list[dict], table: Table):
    devices = self.experiment.parallel.devices
    # Never smaller than before: what is compiled serves again.
    self.size = max(self.size, min(self.experiment.config.evaluate.batch_size, -(-len(table.ids) // devices) * devices))
    loader = self.experiment.loader_of(examples, table, self.size)
    loader.whole_buckets = self.whole_buckets
    if self.params is None:
      self.params, self.step = params_of(self.experiment, loader)
    return loader


def file_name(split: str) -> str:
  """A split as part of a file's name."""
  path, bracket, part = split.partition('[')
  if path.endswith(('.txt', '.xz')):  # a part of plain text
    return pathlib.Path(path).stem + (bracket and f'_{part.strip("]").replace("%", "").replace(":", "_")}')
  return pathlib.Path(split).stem if split.endswith(('.jsonl', '.tsv')) else split.strip('./').replace('/', '_')
