"""Scores running text with a trained language model."""

import pathlib
import time
from typing import Any

import numpy as np

from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import file_name
from mmlm.utils import run_dir

# Gives the shapes of a model without encoders.
NO_INPUTS = {'weight': np.ones(1, np.float32)}


def language_params(experiment: Experiment) -> tuple[Any, int]:
  """Returns the parameters of the chosen checkpoint of a language model, and its step."""
  shapes = experiment.abstract_params(NO_INPUTS)
  abstract = experiment.parallel.abstract(shapes)
  params, step = experiment.trained_params(abstract)
  return experiment.weights(params), step


def evaluate_text(experiment: Experiment, splits: tuple[str, ...] | list[str]) -> list[dict]:
  """Scores the running text of splits; writes its predictions and scores, and prints them.

  Returns:
    The contents of the score files.
  """
  params, step = language_params(experiment)
  params = experiment.parallel.place(params)
  results = []
  for split in splits or experiment.data.splits('test'):
    result = _score_split(experiment, params, step, split)
    results.append(result)
  return results


def _score_split(experiment: Experiment, params: Any, step: int, split: str) -> dict:
  """Scores the running text of a split; returns the contents of its score file."""
  began = time.monotonic()
  config = experiment.config
  options = config.evaluate
  text = experiment.data.running_text(split)
  stretches = experiment.text_evaluator().rows(params, text)
  scores = score_predictions(
    Predictions(stretches),
    options.metrics or experiment.task.metrics,
    options.bootstrap_samples,
  )
  nats = sum(stretch['nats'] for stretch in stretches)
  tokens = sum(stretch['tokens'] for stretch in stretches)
  unknown = sum(stretch['unknown'] for stretch in stretches)
  if config.data.stream == 'continuous':
    context = {'lanes': options.batch_size}
  else:
    context = {'stride': options.stride or config.data.max_length}
  result = {
    'split': split,
    'step': step,
    'decoding': context,
    'shuffled': False,
    'n': len(stretches),
    'scores': scores,
    'nats_per_token': nats / tokens,
    'tokens': tokens,
    'unknown': unknown,
    'checkpoint': options.checkpoint,
    'average': options.average,
    'seconds': round(time.monotonic() - began, 1),
  }
  folder = experiment.folder
  name = f'{file_name(split)}-{step}'
  if options.stride != _stride_of_run(folder):
    name += f'-stride_{options.stride}'
  predictions_file = folder / 'predictions' / f'{name}.jsonl'
  scores_file = folder / 'scores' / f'{name}.json'
  run_dir.write_jsonl(predictions_file, stretches)
  run_dir.write_json(scores_file, result)
  _print(result)
  return result


def _stride_of_run(folder: pathlib.Path) -> int:
  """Returns evaluate.stride as the run was configured."""
  config = run_dir.read_json(folder / 'config.json')
  return config['evaluate'].get('stride', 0)


def _print(result: dict) -> None:
  context = []
  for name, value in result['decoding'].items():
    context.append(f'{name} {value}')
  print(
    f'{result["split"]} ({", ".join(context)}), {result["tokens"]:,} tokens, '
    f'{result["nats_per_token"]:.4f} nats a token, step {result["step"]}; '
    f'{result["n"]} stretches of text:'
  )
  for metric, score in result['scores'].items():
    value = f'{score["value"]:.4f}'
    interval = f'[{score["low"]:.4f}, {score["high"]:.4f}]'
    print(f'  {metric:<18} {value}   95 % {interval}')
