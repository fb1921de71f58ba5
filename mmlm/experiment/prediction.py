"""Predictions of a split by a trained run, with its inputs as they are or changed."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mmlm.data import batching
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.evaluation.ablation import mask_words
from mmlm.evaluation.evaluator import Evaluator, shuffle_inputs
from mmlm.experiment.experiment import Experiment

FRAMES_PER_SECOND = 100


class Condition(NamedTuple):
  """What is changed in the inputs of a split; every field '' changes nothing.

  Attributes:
    shuffled: a modality that every example gets from another one, or 'inputs' for all together.
    without: a modality that no example has.
    masked: a kind of words that are masked in the text (evaluation/ablation.py).
  """

  shuffled: str = ''
  without: str = ''
  masked: str = ''

  def __str__(self) -> str:
    parts = []
    if self.masked:
      parts.append(f'{self.masked} masked')
    if self.shuffled:
      parts.append(f'{self.shuffled} shuffled')
    if self.without:
      parts.append(f'without {self.without}')
    return ', '.join(parts) or 'as it is'


AS_IT_IS = Condition()


class _Changed:
  """A source whose examples have other texts, or the field `name` of another example."""

  def __init__(
    self,
    source: Any,
    text: Callable[[str], str] | None = None,
    name: str = '',
    order: np.ndarray | None = None,
  ):
    self.source = source
    self.text = text
    self.name = name
    self.order = order

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, i: int) -> dict:
    example = dict(self.source[i])
    if self.text and 'text' in example:
      example['text'] = self.text(example['text'])
    if self.order is not None:
      donor = self.source[int(self.order[i])]
      example.pop(self.name, None)
      if self.name in donor:
        example[self.name] = donor[self.name]
    return example


def params_of(experiment: Experiment, loader: Loader) -> tuple[Any, int]:
  """Returns the parameters of the chosen checkpoint, on the devices, and its step.

  Args:
    loader: its first example gives the shapes.
  """
  first = batching.Batch(np.arange(1), experiment.data.buckets[-1], 1)
  with stream([first], loader, 0, 1) as batches:
    shapes = experiment.abstract_params(next(batches))
  params, step = experiment.trained_params(experiment.parallel.abstract(shapes))
  return experiment.parallel.place(experiment.weights(params)), step


def decode(
  experiment: Experiment,
  evaluator: Evaluator,
  params: Any,
  split: str,
  limit: int = 0,
  condition: Condition = AS_IT_IS,
  progress: str = '',
) -> list[dict]:
  """Returns the predictions of a split with their references and inputs.

  Args:
    limit: decode a random sample of this size; 0 = all.
    condition: what is changed in the inputs.
    progress: name of the progress bar; '' = none.

  Returns:
    Predictions; 'input' of each is {modality: the text, or the id of the example that it is of}.
  """
  config = experiment.config
  data = experiment.data
  source = data.source(split)
  masked = source
  if condition.masked:
    masked = _Changed(source, text=lambda text: mask_words(text, condition.masked))
  table = data.table(split, False, limit, source=masked)
  shuffled = shuffle_inputs(table, config.seed)
  inputs = _inputs_of(table, shuffled, condition.shuffled, data.widths)
  loader = data.loader(
    split,
    inputs.table,
    config.evaluate.batch_size,
    absent=condition.without,
    change_source=inputs.change_source,
  )
  answers = evaluator.predict(params, loader, data.buckets, config.data.workers, progress)
  records = {}
  for modality in experiment.modalities:
    if modality != condition.without:
      is_shuffled = condition.shuffled in ('inputs', modality)
      records[modality] = shuffled.records if is_shuffled else table.records
  predictions = []
  for i, rows in enumerate(answers):
    example = source[int(table.records[i])]
    details = _details_of(example)
    if 'audio' in table.rows and experiment.task.writes_text:
      details['seconds'] = int(inputs.seconds_of['audio'][i]) / FRAMES_PER_SECOND
    read = {m: _input_of(masked[int(records[m][i])], m) for m in records}
    references = experiment.task.references(example)
    for row, reference in zip(rows, references, strict=True):
      predictions.append(row | {'references': reference, 'input': read} | details)
  return predictions


class _Inputs(NamedTuple):
  """The inputs of a split under a condition.

  Attributes:
    table: the table that is loaded.
    seconds_of: {modality: frames of each example} of what is heard.
    change_source: what else is changed in the source, or None.
  """

  table: Table
  seconds_of: dict[str, np.ndarray]
  change_source: Callable[[Any], Any] | None


def _inputs_of(table: Table, shuffled: Table, modality: str, widths: dict[str, int]) -> _Inputs:
  """Returns the inputs of a table with those of a modality ('inputs': all, '': none) shuffled."""
  if modality == 'inputs':
    return _Inputs(shuffled, shuffled.rows, None)
  if modality == 'text' and modality not in widths:
    return _Inputs(table._replace(texts=shuffled.texts), table.rows, None)
  if not modality:
    return _Inputs(table, table.rows, None)

  def change_source(source: Any) -> '_Changed':
    order = np.arange(len(source))
    order[table.records] = shuffled.records
    return _Changed(source, name=modality, order=order)

  rows = dict(table.rows)
  if modality in shuffled.rows:
    rows[modality] = shuffled.rows[modality]
  return _Inputs(table._replace(rows=rows), table.rows, change_source)


def _details_of(example: dict) -> dict:
  if example.get('speaker'):
    return {'speaker': example['speaker']}
  return {}


def _input_of(example: dict, modality: str) -> str | None:
  """Returns what a predictions file says of an input: the text, or the id of its example."""
  if modality == 'text':
    text = example.get('text')
    if text is None or isinstance(text, str):
      return text
  return example['id']


def file_name(split: str) -> str:
  """Returns a split as part of a file's name."""
  path, bracket, part = split.partition('[')
  if path.endswith(('.txt', '.xz')):  # a part of plain text
    name = pathlib.Path(path).stem
    if bracket:
      part = part.strip(']').replace('%', '').replace(':', '_')
      name += f'_{part}'
    return name
  if split.endswith(('.jsonl', '.tsv')):
    return pathlib.Path(split).stem
  return split.strip('./').replace('/', '_')
