"""Tests whether each modality is used: scores with inputs shuffled, left out and masked."""

from mmlm.cli import flags
from mmlm.evaluation.ablation import ablation_table, format_table
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, decode, file_name, params_of
from mmlm.inference.ablation_conditions import conditions_of, missing_curves
from mmlm.utils import run_dir
from mmlm.utils.errors import UserError


def ablate(options: flags.Ablate) -> list[list[dict]]:
  """Prints, writes and returns the table of each split; predictions are written too."""
  experiment = Experiment.of_run(options.run, options.settings)
  if not experiment.modalities:
    raise UserError(
      f'{options.run} holds a language model, which reads no input that could be changed.'
    )
  splits = options.splits or experiment.data.splits('test')
  table = experiment.data.table(splits[0], False)
  loader = experiment.data.loader(splits[0], table, experiment.config.evaluate.batch_size)
  params, step = params_of(experiment, loader)
  evaluator = experiment.evaluator()
  return [_ablate_split(experiment, evaluator, params, step, split) for split in splits]


def _ablate_split(experiment: Experiment, evaluator, params, step: int, split: str) -> list[dict]:
  """Decodes a split under every condition; returns its table."""
  config = experiment.config
  predictions = {}
  files = {}
  folder = experiment.folder
  for condition in conditions_of(experiment, split):
    name = _prediction_name(split, step, condition)
    file = f'{name}.jsonl'
    result = decode(experiment, evaluator, params, split, condition=condition, progress=name)
    run_dir.write_jsonl(folder / 'predictions' / file, result)
    predictions[str(condition)] = result
    files[str(condition)] = file
  predictions = _common_examples(predictions)
  metrics = config.evaluate.metrics or experiment.task.metrics
  table = ablation_table(
    predictions, metrics, config.evaluate.bootstrap_samples, config.data.languages.target
  )
  for row in table:
    row['predictions'] = files[row['condition']]
  print(f'\n{split}, step {step}\n{format_table(table, metrics)}')
  curves = missing_curves(experiment, predictions)
  _print_curves(curves)
  study = {'split': split, 'step': step, 'rows': table, 'missing': curves}
  run_dir.write_json(folder / 'ablation' / f'{file_name(split)}.json', study)
  return table


def _prediction_name(split: str, step: int, condition: Condition) -> str:
  """Returns the name of a predictions file, without its ending: test-900-image_shuffled."""
  name = f'{file_name(split)}-{step}'
  if any(condition):
    name += f'-{condition}'.replace(', ', '-').replace(' ', '_')
  return name


def _common_examples(predictions: dict[str, list[dict]]) -> dict[str, list[dict]]:
  """Returns the examples that every condition has: masks may make a text too long."""
  common = _ids(next(iter(predictions.values())))
  for of_condition in predictions.values():
    common &= _ids(of_condition)
  result = {}
  for condition, of_condition in predictions.items():
    kept = [prediction for prediction in of_condition if prediction['id'] in common]
    result[condition] = kept
  return result


def _ids(predictions: list[dict]) -> set[str]:
  return {prediction['id'] for prediction in predictions}


def _print_curves(curves: dict) -> None:
  """Prints the first metric of each modality that was left out."""
  for modality, of_metrics in curves.items():
    if not of_metrics:
      continue
    metric, curve = next(iter(of_metrics.items()))
    points = []
    for point in curve[::2]:
      share = 100 * point['share']
      points.append(f'{share:.0f} % {point["value"]:.3f}')
    print(f'{metric} by share of examples that lack {modality}: {"  ".join(points)}')
