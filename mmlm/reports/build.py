"""`./launch.sh report`: one run, several over one another, or a sweep."""

import functools
import pathlib

from mmlm.experiment.experiment import Experiment
from mmlm.reports.attention_maps import CloserLook
from mmlm.reports.comparison_page import write_comparison
from mmlm.reports.html import write_report
from mmlm.reports.pages import read_object
from mmlm.reports.sweep_page import write_sweep
from mmlm.sweeps.listing import SWEEP
from mmlm.tasks import pipeline_of_run
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS


def report(
  folders: list, settings: dict, against: str = '', attention: bool = True, output: str = ''
) -> None:
  """Writes report.html into the folder of a run or of a sweep; of several runs comparison.html into the first, or `output`.

  `against`: another run, whose curves with missing inputs are drawn beside. `attention`: the checkpoint is asked again about the examples of a sample.
  """
  folders = list(dict.fromkeys(str(pathlib.Path(folder)) for folder in folders))
  for folder in folders:
    if not any((pathlib.Path(folder) / name).is_file() for name in ('config.json', SWEEP)):
      raise UserError(
        f'{folder}: not a run folder (no config.json) nor a sweep (no {SWEEP}). `train` and `sweep` make them.'
      )
  sweeps = [folder for folder in folders if (pathlib.Path(folder) / SWEEP).exists()]
  if (len(folders) > 1 or sweeps) and against:
    raise UserError('--against goes with one run: name both runs without it, `report RUN RUN`.')
  if sweeps and len(folders) > 1:
    raise UserError(
      f'{sweeps[0]} is a sweep: a page of several is of runs. Its runs are in {sweeps[0]}/runs.'
    )
  if sweeps:
    path = write_sweep(folders[0], output)
  elif len(folders) > 1:
    path = _several(folders, settings, attention, output)
  else:
    path = _single(folders[0], settings, against, attention, output)
  print(f'Report: {path}')


def _single(folder: str, settings: dict, against: str, attention: bool, output: str):
  if pipeline_of_run(folder):  # there are no predictions to show
    return write_report(folder, output=output)
  asked = Asked(folder, settings)
  return write_report(
    folder, asked.example, against or None, asked.look if attention else None, output
  )


def _several(folders: list, settings: dict, attention: bool, output: str):
  tasks = {}
  for folder in folders:
    tasks[folder] = read_object(pathlib.Path(folder) / 'config.json').get('task')
  if len(set(tasks.values())) > 1:
    told = ''.join(f'\n  {folder}: {task}' for folder, task in tasks.items())
    raise UserError(
      f'runs of different tasks have no scores or predictions in common; name runs of one task.{told}'
    )
  if pipeline_of_run(folders[0]):
    return write_comparison(folders, output=output)
  asked = [Asked(folder, settings) for folder in folders]
  return write_comparison(
    folders, asked[0].example, [each.look for each in asked] if attention else [], output
  )


class Asked:
  """A run whose data and checkpoint a page asks for."""

  def __init__(self, folder: str, settings: dict):
    self.experiment = Experiment.of_run(folder, settings)
    self.looks = functools.cache(lambda method: CloserLook(self.experiment, method))

  @functools.cached_property
  def places(self) -> dict:
    """{id: (source, place in it)} of the examples of validation and test; none, with a word, where the data are not there."""
    experiment = self.experiment
    try:
      sources = []
      for part in ('valid', 'test'):
        for split in experiment.data.splits(part):
          sources.append(experiment.data.source(split))
    except UserError as error:
      print(
        f'{experiment.folder}: the page is without pictures, sounds and attention, its data cannot be read: {error}'
      )
      return {}
    return {source[i]['id']: (source, i) for source in sources for i in range(len(source))}

  def example(self, identity: str) -> dict | None:
    source, i = self.places.get(identity, ([None], 0))
    return source[i]

  def look(self, ids: list, name: str) -> dict:
    """What `attention.CloserLook` finds for the predictions `ids` of a file `name`; {} with a word where the checkpoint cannot tell."""
    experiment = self.experiment
    match = PREDICTIONS.fullmatch(name)
    examples = [example for example in map(self.example, ids) if example is not None]
    if (
      not experiment.task.shows_attention
      or not experiment.modalities
      or not examples
      or match['method'] == 'sample'
      or match['texts']
    ):
      return {}  # a cascade read other texts than those of the examples
    closer = self.looks(match['method'] or '')
    try:
      found = closer(examples)
    except UserError as error:
      print(f'{name}: without attention and alternatives, the model cannot be asked: {error}')
      return {}
    if closer.step == int(match['step']):
      return found
    print(
      f'{name}: without attention and alternatives, the checkpoint is of step {closer.step}. `./launch.sh evaluate {experiment.folder}` decodes with it.'
    )
    return {}
