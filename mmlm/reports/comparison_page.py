"""One page of several runs: curves over one another, what their configs differ in, scores and predictions side by side."""

import pathlib

from mmlm.reports.curves import HEIGHT, WIDTH, missing_plots, plots_of_runs
from mmlm.reports.examples import newest_predictions
from mmlm.reports.html import predictions_of
from mmlm.reports.pages import flat, read_object, write_page
from mmlm.reports.scores import side_by_side
from mmlm.tasks import task_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS

ABSENT = '(absent)'


def write_comparison(
  folders: list, examples=lambda identity: None, looks=(), output=''
) -> pathlib.Path:
  """Writes `output`, or comparison.html in the first folder, and returns its path.

  Args:
    examples: a prediction's id -> the raw example or None.
    looks: of each run (ids, file name of their predictions) -> what `attention.CloserLook` finds; none: no model is asked.

  Raises:
    UserError: the references of an example differ between runs, or a file is damaged.
  """
  runs = named(folders)
  configs = {name: read_object(folder / 'config.json') for name, folder in runs.items()}
  environments = {name: read_object(folder / 'environment.json') for name, folder in runs.items()}
  predictions = {name: _by_split(folder) for name, folder in runs.items()}
  files, alone = _common(predictions)
  asks = {}
  for number, (name, look) in enumerate(zip(runs, looks)):
    asks[number] = _asked(look, predictions[name])
  first = next(iter(configs.values()))
  return write_page(
    output or next(iter(runs.values())) / 'comparison.html',
    'compare.html.jinja',
    title=f'{len(runs)} runs',
    runs=runs,
    alone=alone,
    configs=differing(configs),
    environments=differing(environments),
    scores=side_by_side(runs),
    plots=plots_of_runs(runs),
    width=WIDTH,
    height=HEIGHT,
    missing_inputs=missing_plots(runs),
    data=predictions_of(files, first, examples, asks),
    marked=task_of(first).compares_words,
  )


def named(folders: list) -> dict[str, pathlib.Path]:
  """{name: folder}: as many of its last parts as tell each folder from the others."""
  paths = [pathlib.Path(folder) for folder in folders]
  parts = [path.resolve().parts for path in paths]
  for length in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-length:]) for part in parts]
    if len(set(names)) == len(names):
      return dict(zip(names, paths))
  raise UserError(f'{folders[0]} is named twice: name different runs.')


def differing(trees: dict) -> list[tuple[str, list[str]]]:
  """[(key, its value in each run)] of the keys in which nested dicts {run: tree} differ."""
  flats = [flat(tree) for tree in trees.values()]
  rows = []
  for key in dict.fromkeys(key for one in flats for key in one):
    rows.append((key, [str(one.get(key, ABSENT)) or repr('') for one in flats]))
  return [(key, values) for key, values in rows if len(set(values)) > 1]


def _by_split(folder) -> dict:
  """{split: (file name, rows)}, without cascades."""
  named = []
  for name, rows in newest_predictions(folder).items():
    named.append((PREDICTIONS.fullmatch(name), name, rows))
  return {match['split']: (name, rows) for match, name, rows in named if not match['texts']}


def _common(predictions: dict) -> tuple[dict, list]:
  """{split: {run: rows}} of the splits that all runs have decoded, and [(split, the runs that have not)] of the others."""
  splits = list(dict.fromkeys(split for found in predictions.values() for split in found))
  lacking = {
    split: [name for name, found in predictions.items() if split not in found] for split in splits
  }
  files = {
    split: {name: found[split][1] for name, found in predictions.items()}
    for split in splits
    if not lacking[split]
  }
  for split, of_runs in files.items():
    _check_references(split, of_runs)
  return files, [(split, names) for split, names in lacking.items() if names]


def _check_references(split: str, of_runs: dict):
  (first, rows), *others = of_runs.items()
  known = {row['id']: row['references'] for row in rows}
  for name, theirs in others:
    common = [row for row in theirs if row['id'] in known]
    if not common:
      raise UserError(
        f'{split}: {first} and {name} have no example in common, they were evaluated on different data.'
      )
    if different := [row['id'] for row in common if row['references'] != known[row['id']]]:
      raise UserError(
        f'{split}: the references of {different[0]!r} differ between {first} and {name}: they were evaluated on different data.'
      )


def _asked(look, of_splits: dict):
  return lambda ids, split: look(ids, of_splits[split][0])
