"""The page of a run, one self-contained file: gathers the content of report.html.jinja."""

import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from mmlm.reports.curves import HEIGHT, WIDTH, missing_input_plots, run_plots
from mmlm.reports.examples import (
  SAMPLE_SIZE,
  add_attention,
  grade_predictions,
  group,
  newest_predictions,
  sample,
  with_ids,
)
from mmlm.reports.media import FindExample, media_of
from mmlm.reports.pages import read_object, write_page
from mmlm.reports.scores import confusions, scores_of, speech_counts
from mmlm.tasks import task_of
from mmlm.utils.errors import UserError

LEAST_SAMPLE = 3  # predictions of each split

# (ids of predictions, name of their file) -> {id: what `AttentionReader` returns}
FindAttention = Callable[[list[str], str], dict[str, dict]]


def no_example(name: str) -> None:
  """Finds no example: pages then show no pictures or sounds."""
  return None


def write_report(
  run_folder: pathlib.Path | str,
  find_example: FindExample = no_example,
  against: pathlib.Path | str | None = None,
  find_attention: FindAttention | None = None,
  output: pathlib.Path | str = '',
) -> pathlib.Path:
  """Writes the page of a run and returns its path; parts that the run has not made yet are named.

  Args:
    find_example: returns the raw example of a prediction, whose picture and sound are shown.
    against: another run, whose scores with missing inputs are drawn too.
    find_attention: returns n-best answers and attention; None: the model is not used.
    output: file of the page; '' for report.html in the run folder.

  Raises:
    UserError: there is no such folder, or a file of it is damaged.
  """
  folder = pathlib.Path(run_folder)
  compared = {'this run': folder}
  if against:
    compared[str(against)] = pathlib.Path(against)
  _check_folders(compared)
  config = read_object(folder / 'config.json')
  task = task_of(config)
  scores = scores_of(folder)
  predictions = newest_predictions(folder)
  metrics: dict[str, None] = {}
  for score in scores:
    metrics |= dict.fromkeys(score['scores'])
  by_run = {}
  for name, of_file in predictions.items():
    by_run[name] = {'this run': of_file}
  attention_of_runs = {}
  if find_attention:
    attention_of_runs[0] = find_attention
  data = predictions_data(by_run, config, find_example, attention_of_runs)
  return write_page(
    output or folder / 'report.html',
    'report.html.jinja',
    title=config.get('name') or folder.resolve().name,
    config=config,
    environment=read_object(folder / 'environment.json'),
    scores=scores,
    metrics=metrics,
    counts=speech_counts(scores),
    plots=run_plots(folder),
    missing_inputs=missing_input_plots(compared),
    confusions=confusions(predictions),
    width=WIDTH,
    height=HEIGHT,
    data=data,
    compares_words=task.compares_words,
    aligns_speech=task.aligns_speech,
  )


def _check_folders(compared: Mapping[str, pathlib.Path]) -> None:
  """Checks that both runs exist, and that the second has an ablation study."""
  for folder in compared.values():
    if not folder.is_dir():
      raise UserError(f'{folder}: no such run folder; `train` makes one.')
  _, *others = compared.values()
  for folder in others:
    studies = (folder / 'ablation').glob('*.json')
    if not any(studies):
      raise UserError(f'{folder}: no ablation study yet. Run `./launch.sh ablate {folder}` first.')


def predictions_data(
  predictions: Mapping[str, Mapping[str, list[dict]]],
  config: dict,
  find_example: FindExample,
  find_attention: Mapping[int, FindAttention],
) -> dict:
  """Returns what the script of a page reads: {'runs', 'groups', 'media', 'pictures', 'sounds'}.

  Args:
    predictions: {file name: {run: predictions}}.
    config: of the first run.
    find_attention: {number of a run: its `FindAttention`}.
  """
  task = task_of(config)
  modalities = config.get('model', {}).get('encoders', ['image'])
  sample_size = max(LEAST_SAMPLE, SAMPLE_SIZE // max(len(predictions), 1))
  groups = []
  sampled = []
  rest = []
  for name, of_runs in predictions.items():
    graded = {}
    for run, of_run in of_runs.items():
      graded[run] = grade_predictions(of_run, task)
    split_group = group(name, graded, task)
    shown_ids = {row['id'] for row in split_group['rows']}
    first_run = next(iter(graded.values()))
    shown = with_ids(first_run, shown_ids)
    of_interest = _of_interest(split_group, shown, sample_size)
    for number, find in find_attention.items():
      _add_attention_of_run(split_group, of_interest, number, find)
    groups.append(split_group)
    sampled += of_interest
    rest += shown
  pictures = 'image' in modalities
  sounds = 'audio' in modalities
  return {
    'runs': list(next(iter(predictions.values()), [])),
    'groups': groups,
    'media': media_of(sampled + rest, find_example, pictures, sounds),
    'pictures': pictures,
    'sounds': sounds,
  }


def _of_interest(split_group: dict, graded: list[dict], count: int) -> list[dict]:
  """Returns the predictions whose attention is shown.

  Of one run it is a sample, of several those in which they differ most: the page shows them first.
  """
  rows = split_group['rows']
  if len(rows[0]['answers']) == 1:
    return sample(graded, count).all()
  spread = {}
  for row in rows:
    example = row['id']
    values = [answer['value'] for answer in row['answers']]
    spread[example] = np.ptp(values)

  def order(prediction: dict) -> float:
    return -spread[prediction['id']]

  return sorted(graded, key=order)[:count]


def _add_attention_of_run(
  split_group: dict,
  of_interest: list[dict],
  run_number: int,
  find_attention: FindAttention,
) -> None:
  ids = [prediction['id'] for prediction in of_interest]
  name = split_group['name']
  left_out = add_attention(split_group, find_attention(ids, name), run_number)
  if left_out:
    print(
      f'{name}: {left_out} of {len(ids)} examples are shown without n-best answers, '
      'as the checkpoint now decodes them to other texts.'
    )
