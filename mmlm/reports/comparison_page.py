"""The page of several runs: curves, differing configs, scores and predictions side by side."""

import pathlib
from collections.abc import Mapping, Sequence

from mmlm.reports.curves import HEIGHT, WIDTH, missing_input_plots, plots_of_runs
from mmlm.reports.examples import newest_predictions, with_ids
from mmlm.reports.media import FindExample
from mmlm.reports.pages import flatten, read_object, write_page
from mmlm.reports.run_page import FindAttention, no_example, predictions_data
from mmlm.reports.scores import scores_side_by_side
from mmlm.tasks import task_of
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import PREDICTIONS

ABSENT = '(absent)'

Path = pathlib.Path | str
# {split: (file name, predictions)} of a run
SplitFiles = dict[str, tuple[str, list[dict]]]


def write_comparison(
  folders: Sequence[Path],
  find_example: FindExample = no_example,
  find_attention: Sequence[FindAttention] = (),
  output: Path = '',
) -> pathlib.Path:
  """Writes the page of several runs and returns its path.

  Args:
    find_example: returns the raw example of a prediction.
    find_attention: of each run, returns n-best answers and attention; (): models are not used.
    output: file of the page; '' for comparison.html in the first folder.

  Raises:
    UserError: the references of an example differ between runs, or a file is damaged.
  """
  runs = short_names(folders)
  configs = {}
  environments = {}
  files = {}
  for name, folder in runs.items():
    configs[name] = read_object(folder / 'config.json')
    environments[name] = read_object(folder / 'environment.json')
    files[name] = _files_by_split(folder)
  first_config = next(iter(configs.values()))
  predictions, not_shown = _common_splits(files)
  by_split = {}
  for number, (name, find) in enumerate(zip(runs, find_attention)):
    by_split[number] = _find_by_split(find, files[name])
  return write_page(
    output or next(iter(runs.values())) / 'comparison.html',
    'compare.html.jinja',
    title=f'{len(runs)} runs',
    runs=runs,
    not_shown=not_shown,
    configs=differences(configs),
    environments=differences(environments),
    scores=scores_side_by_side(runs),
    plots=plots_of_runs(runs),
    width=WIDTH,
    height=HEIGHT,
    missing_inputs=missing_input_plots(runs),
    data=predictions_data(predictions, first_config, find_example, by_split),
    compares_words=task_of(first_config).compares_words,
  )


def short_names(folders: Sequence[Path]) -> dict[str, pathlib.Path]:
  """Returns {name: folder}; a name is as many of the last parts of a path as it takes to differ."""
  paths = [pathlib.Path(folder) for folder in folders]
  all_parts = [path.resolve().parts for path in paths]
  longest = max(map(len, all_parts))
  for length in range(1, longest + 1):
    by_name = {}
    for path, parts in zip(paths, all_parts, strict=True):
      name = '/'.join(parts[-length:])
      by_name[name] = path
    if len(by_name) == len(paths):
      return by_name
  raise UserError(f'{folders[0]} is named twice: name different runs.')


def differences(trees: Mapping[str, dict]) -> list[tuple[str, list[str]]]:
  """Returns [(key, its value in each run)] of the keys in which nested dicts {run: tree} differ."""
  flat_trees = []
  keys: dict[str, None] = {}
  for tree in trees.values():
    flat_tree = flatten(tree)
    flat_trees.append(flat_tree)
    keys |= dict.fromkeys(flat_tree)
  rows = []
  for key in keys:
    values = []
    for tree in flat_trees:
      text = str(tree.get(key, ABSENT))
      values.append(text or repr(''))
    if len(set(values)) > 1:
      rows.append((key, values))
  return rows


def _files_by_split(folder: pathlib.Path) -> SplitFiles:
  """Reads the newest predictions of each split, without cascades."""
  files = {}
  for name, predictions in newest_predictions(folder).items():
    match = PREDICTIONS.fullmatch(name)
    if match and not match['texts']:
      files[match['split']] = (name, predictions)
  return files


def _common_splits(files: Mapping[str, SplitFiles]) -> tuple[dict, list[tuple[str, list[str]]]]:
  """Returns {split: {run: predictions}} of the splits that all runs have decoded.

  The second value has the other splits: [(split, runs that have not decoded it)].
  """
  splits: dict[str, None] = {}
  for of_run in files.values():
    splits |= dict.fromkeys(of_run)
  common = {}
  not_shown = []
  for split in splits:
    by_run = {}
    lacking = []
    for name, of_run in files.items():
      if split not in of_run:
        lacking.append(name)
        continue
      _, by_run[name] = of_run[split]
    if lacking:
      not_shown.append((split, lacking))
      continue
    _check_references(split, by_run)
    common[split] = by_run
  return common, not_shown


def _check_references(split: str, predictions: Mapping[str, list[dict]]) -> None:
  (first, first_predictions), *others = predictions.items()
  references = {}
  for prediction in first_predictions:
    references[prediction['id']] = prediction['references']
  for name, of_run in others:
    common = with_ids(of_run, references)
    if not common:
      raise UserError(
        f'{split}: {first} and {name} have no example in common, '
        'they were evaluated on different data.'
      )
    for prediction in common:
      example = prediction['id']
      if prediction['references'] != references[example]:
        raise UserError(
          f'{split}: the references of {example!r} differ between {first} and {name}: '
          'they were evaluated on different data.'
        )


def _find_by_split(find_attention: FindAttention, files: SplitFiles) -> FindAttention:
  """Returns the function for predictions that are named by their split, not their file."""

  def find(ids: list[str], split: str) -> dict[str, dict]:
    file_name, _ = files[split]
    return find_attention(ids, file_name)

  return find
