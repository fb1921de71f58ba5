"""Writes the page of a run, of several runs, or of a sweep: `./launch.sh report`."""

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from mmlm.experiment.experiment import Experiment
from mmlm.reports.attention_maps import AttentionReader
from mmlm.reports.comparison_page import write_comparison
from mmlm.reports.pages import read_object
from mmlm.reports.run_page import write_report
from mmlm.reports.sweep_page import write_sweep
from mmlm.sweeps.listing import SWEEP
from mmlm.tasks import pipeline_of_run
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS


def report(
  folders: Sequence[str],
  settings: dict[str, str],
  against: str = '',
  attention: bool = True,
  output: str = '',
) -> None:
  """Writes report.html into the folder of a run or sweep; of several runs a comparison.html.

  Args:
    settings: overrides of the configs.
    against: another run, whose curves with missing inputs are drawn too.
    attention: decode a sample of the examples again, for n-best answers and attention.
    output: another file for the page.
  """
  folders = list(dict.fromkeys(str(pathlib.Path(folder)) for folder in folders))
  for folder in folders:
    if not any((pathlib.Path(folder) / name).is_file() for name in ('config.json', SWEEP)):
      raise UserError(
        f'{folder}: not a run folder (no config.json) nor a sweep (no {SWEEP}). '
        '`train` and `sweep` make them.'
      )
  sweeps = [folder for folder in folders if (pathlib.Path(folder) / SWEEP).exists()]
  if (len(folders) > 1 or sweeps) and against:
    raise UserError('--against goes with one run: name both runs without it, `report RUN RUN`.')
  if sweeps and len(folders) > 1:
    raise UserError(
      f'{sweeps[0]} is a sweep, and a page of several folders needs runs. '
      f'Its runs are in {sweeps[0]}/runs.'
    )
  if sweeps:
    path = write_sweep(folders[0], output)
  elif len(folders) > 1:
    path = _write_comparison(folders, settings, attention, output)
  else:
    path = _write_report(folders[0], settings, against, attention, output)
  print(f'Report: {path}')


def _write_report(
  folder: str, settings: dict[str, str], against: str, attention: bool, output: str
) -> pathlib.Path:
  if pipeline_of_run(folder):  # it has no predictions
    return write_report(folder, output=output)
  run = ReportedRun(folder, settings)
  find_attention = run.find_attention if attention else None
  return write_report(folder, run.find_example, against or None, find_attention, output)


def _write_comparison(
  folders: list[str], settings: dict[str, str], attention: bool, output: str
) -> pathlib.Path:
  tasks = {}
  for folder in folders:
    tasks[folder] = read_object(pathlib.Path(folder) / 'config.json').get('task')
  if len(set(tasks.values())) > 1:
    lines = ''.join(f'\n  {folder}: {task}' for folder, task in tasks.items())
    raise UserError(
      'runs of different tasks have no scores or predictions in common; '
      f'name runs of one task.{lines}'
    )
  if pipeline_of_run(folders[0]):
    return write_comparison(folders, output=output)
  runs = [ReportedRun(folder, settings) for folder in folders]
  find_attention = []
  if attention:
    find_attention = [run.find_attention for run in runs]
  return write_comparison(folders, runs[0].find_example, find_attention, output)


class ReportedRun:
  """Finds the examples and the attention of a run for its page."""

  def __init__(self, folder: str, settings: dict[str, str]):
    self.experiment = Experiment.of_run(folder, settings)
    self._readers: dict[str, AttentionReader] = {}

  @functools.cached_property
  def _positions(self) -> Mapping[str, tuple]:
    """{id: (source, position in it)} of the examples of validation and test.

    Empty, with a message, if the data cannot be read.
    """
    experiment = self.experiment
    sources = []
    try:
      for part in ('valid', 'test'):
        sources += [experiment.data.source(split) for split in experiment.data.splits(part)]
    except UserError as error:
      print(
        f'{experiment.folder}: the page is without pictures, sounds and attention, '
        f'its data cannot be read: {error}'
      )
      return {}
    positions = {}
    for source in sources:
      for i in range(len(source)):
        positions[source[i]['id']] = (source, i)
    return positions

  def find_example(self, name: str) -> dict | None:
    """Returns the raw example of an id."""
    if name not in self._positions:
      return None
    source, i = self._positions[name]
    return source[i]

  def find_attention(self, ids: list[str], file_name: str) -> dict[str, dict]:
    """Decodes examples again, as `AttentionReader` does.

    Args:
      ids: of predictions.
      file_name: of these predictions.

    Returns:
      {}, with a message, if the checkpoint cannot be read or is another than that of the file.
    """
    experiment = self.experiment
    match = PREDICTIONS.fullmatch(file_name)
    assert match is not None  # as `newest_predictions` reads no other files
    examples = [self.find_example(name) for name in ids]
    examples = [example for example in examples if example is not None]
    if not examples or not self._has_attention(match):
      return {}
    method = match['method'] or ''
    if method not in self._readers:
      self._readers[method] = AttentionReader(experiment, method)
    reader = self._readers[method]
    try:
      attention = reader(examples)
    except UserError as error:
      print(f'{file_name}: without attention and n-best answers, decoding fails: {error}')
      return {}
    if reader.step == int(match['step']):
      return attention
    print(
      f'{file_name}: without attention and n-best answers, the checkpoint is of step '
      f'{reader.step}. `./launch.sh evaluate {experiment.folder}` decodes with it.'
    )
    return {}

  def _has_attention(self, match: re.Match[str]) -> bool:
    """Returns whether the predictions of a file can be decoded again."""
    if not self.experiment.task.shows_attention or not self.experiment.modalities:
      return False
    if match['texts']:  # a cascade reads other texts than those of the examples
      return False
    return match['method'] != 'sample'
