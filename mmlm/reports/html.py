"""One self-contained page of a run; report.html.jinja is the page, here its content is gathered."""

import pathlib

import numpy as np

from mmlm.reports import speech_view as speech
from mmlm.reports.curves import HEIGHT, WIDTH, missing_plots, run_plots
from mmlm.reports.examples import (
  SAMPLE,
  add_looks,
  graded,
  group,
  media_of,
  newest_predictions,
  sample,
)
from mmlm.reports.pages import read_object, write_page
from mmlm.reports.scores import confusions, scores_of
from mmlm.tasks import task_of
from mmlm.utils.errors import UserError


def write_report(
  run_folder, examples=lambda identity: None, against=None, look=None, output=''
) -> pathlib.Path:
  """Writes `output`, or <run_folder>/report.html, and returns its path; what the run has not made yet is named.

  Args:
    examples: a prediction's id -> the raw example, whose picture and sound are shown, or None.
    against: another run, whose scores with missing inputs are drawn beside.
    look: (ids, file name of their predictions) -> what `attention.CloserLook` finds for these ids; None: the model is not asked.

  Raises:
    UserError: there is no such folder, or a file of it is damaged.
  """
  folder = pathlib.Path(run_folder)
  sides = {'this run': folder} | ({str(against): pathlib.Path(against)} if against else {})
  for place in sides.values():
    if not place.is_dir():
      raise UserError(f'{place}: no such run folder; `train` makes one.')
  if against and not [*(pathlib.Path(against) / 'ablation').glob('*.json')]:
    raise UserError(
      f'{against}: nothing was taken away from its inputs yet; `./launch.sh ablate {against}` does it.'
    )
  config = read_object(folder / 'config.json')
  scores = scores_of(folder)
  files = newest_predictions(folder)
  task = task_of(config)
  shown = predictions_of(
    {name: {'this run': rows} for name, rows in files.items()},
    config,
    examples,
    {} if look is None else {0: look},
  )
  return write_page(
    output or folder / 'report.html',
    'report.html.jinja',
    title=config.get('name') or folder.resolve().name,
    config=config,
    environment=read_object(folder / 'environment.json'),
    scores=scores,
    metrics=dict.fromkeys(name for score in scores for name in score['scores']),
    counts=speech.counts(scores),
    plots=run_plots(folder),
    missing_inputs=missing_plots(sides),
    confusions=confusions(files),
    width=WIDTH,
    height=HEIGHT,
    data=shown,
    marked=task.compares_words,
    spoken=task.aligns_speech,
  )


def _of_interest(found: dict, rows: list, count: int) -> list:
  """The graded rows that the model is asked about: of one run a sample, of several those that the page shows first, where they differ most."""
  if len(found['rows'][0]['said']) == 1:
    return [row for part in sample(rows, count).values() for row in part]
  spread = {row['id']: np.ptp([answer['value'] for answer in row['said']]) for row in found['rows']}
  return sorted(rows, key=lambda row: -spread[row['id']])[:count]


def predictions_of(files: dict, config: dict, examples, looks: dict) -> dict:
  """What the script of a page reads: {'runs', 'groups', 'media'}.

  Args:
    files: {file name: {run: rows}}.
    config: of the first run.
    looks: {number of a run: its `look` (see `write_report`)}.
  """
  task = task_of(config)
  reads = config.get('model', {}).get('encoders', ['image'])
  answers = {
    name: {run: graded(rows, task) for run, rows in of_runs.items()}
    for name, of_runs in files.items()
  }
  groups = [group(name, of_runs, task) for name, of_runs in answers.items()]
  each = max(3, SAMPLE // max(len(files), 1))
  firsts = []
  for found, of_runs in zip(groups, answers.values()):
    there = {row['id'] for row in found['rows']}
    rows = [row for row in next(iter(of_runs.values())) if row['id'] in there]
    chosen = _of_interest(found, rows, each)
    for number, look in looks.items():
      if left_out := add_looks([found], look([row['id'] for row in chosen], found['name']), number):
        print(
          f'{found["name"]}: {left_out} of {len(chosen)} examples are shown without alternatives, the checkpoint now says something else.'
        )
    firsts.append((chosen, rows))
  rows = [row for chosen, _ in firsts for row in chosen] + [
    row for _, rest in firsts for row in rest
  ]
  pictures = 'image' in reads
  sounds = 'audio' in reads
  media = media_of(rows, examples, pictures, sounds)
  return {
    'runs': list(next(iter(files.values()), [])),
    'groups': groups,
    'media': media,
    'pictures': pictures,
    'sounds': sounds,
  }
