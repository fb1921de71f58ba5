"""Compares the predictions of two runs by a paired bootstrap."""

from typing import NamedTuple

from mmlm.cli import flags
from mmlm.evaluation.metrics import METRICS
from mmlm.evaluation.predictions_file import find_predictions, read_predictions
from mmlm.evaluation.score_predictions import Predictions, computable
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import file_name
from mmlm.utils.errors import UserError


class Scoring(NamedTuple):
  """How predictions are scored."""

  metrics: tuple[str, ...] = ('bleu', 'chrf', 'ter')
  samples: int = 1000
  language: str = ''


def compare(options: flags.Compare) -> dict:
  """Prints and returns {metric: result of the paired bootstrap} of two predictions files."""
  split = options.split and file_name(options.split)
  paths = [find_predictions(place, split) for place in (options.first, options.second)]
  first, second = (read_predictions(path) for path in paths)
  _check_same_examples(paths, first, second)
  scoring = _scoring_of(paths[0], options.settings)
  first_scores = Predictions(list(first.values()), scoring.language)
  second_scores = Predictions([second[name] for name in first], scoring.language)
  print(f'{len(first)} examples\n  a  {paths[0]}\n  b  {paths[1]}')
  results = {}
  for name in computable(first_scores, scoring.metrics):
    result = paired_bootstrap(
      first_scores.statistics(name),
      second_scores.statistics(name),
      METRICS[name].value,
      scoring.samples,
    )
    results[name] = result
    _print_result(name, result)
  return results


def _print_result(name: str, result: dict) -> None:
  low, high = result['difference_interval']
  second_value = result['value'] - result['difference']
  print(
    f'{name:<12} a {result["value"]:.4f}  b {second_value:.4f}  '
    f'a - b {result["difference"]:+.4f} [{low:+.4f}, {high:+.4f}]  p {result["p"]:.3f}'
  )


def _check_same_examples(paths: list, first: dict[str, dict], second: dict[str, dict]) -> None:
  """Raises UserError where the examples or the references of two files differ."""
  for name in [*first, *second]:
    if name not in first or name not in second:
      raise UserError(
        f'{paths[0]} and {paths[1]} hold different examples, {name!r} for one: '
        'only the same split can be compared.'
      )
  for name, prediction in first.items():
    if prediction['references'] != second[name]['references']:
      raise UserError(f'{paths[0]} and {paths[1]}: the references of {name!r} differ.')


def _scoring_of(path, settings: dict) -> Scoring:
  """Returns how the run of a predictions file is scored; the defaults for a file of no run."""
  folder = path.parent.parent
  if (folder / 'config.json').exists():
    experiment = Experiment.of_run(folder, settings)
    config = experiment.config
    return Scoring(
      config.evaluate.metrics or experiment.task.metrics,
      config.evaluate.bootstrap_samples,
      config.data.languages.target,
    )
  if settings:
    raise UserError(
      f'{path} is not in a run folder: there is no config to set {", ".join(settings)} in.'
    )
  return Scoring()
