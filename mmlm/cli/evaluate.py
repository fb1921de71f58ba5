"""Decodes and scores the test split with the best checkpoint."""

import pathlib
import time
from typing import NamedTuple

from mmlm.cli import flags
from mmlm.evaluation.evaluator import Evaluator
from mmlm.evaluation.metrics.label_metrics import confusion_table
from mmlm.evaluation.metrics.speech_metrics import error_report, format_report, timing
from mmlm.evaluation.predictions_file import read_predictions
from mmlm.evaluation.score_predictions import Predictions, check_reference_words, score_predictions
from mmlm.experiment.data import ReplacedTexts
from mmlm.experiment.decoding import GREEDY
from mmlm.experiment.environment import announce_environment
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition, decode, file_name, params_of
from mmlm.inference.scoring import evaluate_text
from mmlm.tasks import pipeline_of_run
from mmlm.utils import run_dir

MOST_CLASSES = 12  # of a confusion table that fits a terminal


def evaluate(options: flags.Evaluate) -> list[dict]:
  """Writes predictions and scores of each split, also with inputs shuffled; returns the scores."""
  pipeline = pipeline_of_run(options.run)
  if pipeline:
    return pipeline.evaluate(
      options.run, options.splits, options.settings, options.greedy, options.text_from
    )
  replaced_texts = None
  if options.text_from:
    texts = {}
    for name, prediction in read_predictions(options.text_from).items():
      texts[name] = prediction['hypothesis']
    replaced_texts = ReplacedTexts(texts, options.text_from)
  experiment = Experiment.of_run(options.run, options.settings, replaced_texts)
  announce_environment()
  config = experiment.config
  if experiment.task.continues_text(experiment.modalities):
    return evaluate_text(experiment, options.splits)
  splits = options.splits or experiment.data.splits('test')
  evaluation = _Evaluation.of(experiment, splits, options.greedy, options.text_from)
  for split in splits:  # before anything is decoded
    source = experiment.data.source(split)
    references = (source[i]['targets'] for i in range(len(source)))
    check_reference_words(references, split, config)
  results = []
  for split in splits:
    results.append(evaluation.score(split, shuffled=False))
    if config.evaluate.shuffled:
      results.append(evaluation.score(split, shuffled=True))
  return results


class _Evaluation(NamedTuple):
  """A trained model, and how it decodes.

  Attributes:
    step: the step of the checkpoint.
    decoding: keys of config.decoding; empty where nothing is searched, as for labels.
    method: the method of the decoding if it is not the config's, else ''.
    text_from: the predictions file whose hypotheses are the input texts, or ''.
  """

  experiment: Experiment
  evaluator: Evaluator
  params: dict
  step: int
  decoding: dict
  method: str
  text_from: str

  @classmethod
  def of(cls, experiment: Experiment, splits, greedy: bool, text_from: str) -> '_Evaluation':
    """Loads the checkpoint; the first of the splits gives the shapes."""
    config = experiment.config
    changes = GREEDY if greedy else {}
    evaluator = experiment.evaluator(align=True, **changes)
    decoding = {}
    method = ''
    if experiment.task.writes_text:
      decoding = config.decoding.to_dict() | changes
      if decoding['method'] != config.decoding.method:
        method = decoding['method']
    table = experiment.data.table(splits[0], False)
    loader = experiment.data.loader(splits[0], table, config.evaluate.batch_size)
    params, step = params_of(experiment, loader)
    return cls(experiment, evaluator, params, step, decoding, method, text_from)

  def score(self, split: str, shuffled: bool) -> dict:
    """Decodes a split, writes predictions and scores, prints and returns the scores."""
    began = time.monotonic()
    name = self._file_name(split, shuffled)
    predictions = decode(
      self.experiment,
      self.evaluator,
      self.params,
      split,
      condition=Condition(shuffled='inputs' if shuffled else ''),
      progress=name,
    )
    speech = timing(predictions, time.monotonic() - began)
    config = self.experiment.config
    scorable = Predictions(predictions, config.data.languages.target)
    metrics = config.evaluate.metrics or self.experiment.task.metrics
    scores = score_predictions(scorable, metrics, config.evaluate.bootstrap_samples)
    if 'wer' in scores or 'cer' in scores:
      speech |= error_report(predictions, scorable.statistics('wer'), scorable.statistics('cer'))
    result = {
      'split': split,
      'step': self.step,
      'decoding': self.decoding,
      'shuffled': shuffled,
      'n': len(predictions),
      'scores': scores,
      'checkpoint': config.evaluate.checkpoint,
      'average': config.evaluate.average,
      'seconds': round(time.monotonic() - began, 1),
    }
    if self.text_from:
      result['text_from'] = self.text_from
    result |= speech
    folder = self.experiment.folder
    run_dir.write_jsonl(folder / 'predictions' / f'{name}.jsonl', predictions)
    run_dir.write_json(folder / 'scores' / f'{name}.json', result)
    self._print(result)
    if speech:
      print(format_report(speech))
    shows_confusions = self.experiment.task.shows_confusions
    if shows_confusions and len(config.model.head.classes) <= MOST_CLASSES:
      print(_format_confusions(predictions))
    return result

  def _file_name(self, split: str, shuffled: bool) -> str:
    """Returns the name of the files of predictions and scores, without their endings."""
    parts = [file_name(split), str(self.step)]
    if self.method:
      parts.append(self.method)
    if self.text_from:
      path = pathlib.Path(self.text_from).absolute()
      parts.append(f'text_from_{path.parents[1].name}_{path.stem}')
    if shuffled:
      parts.append('shuffled')
    return '-'.join(parts)

  def _print(self, result: dict) -> None:
    parts = [result['split']]
    if self.decoding:
      parts.append(f'({self.decoding["method"]})')
    if self.text_from:
      parts.append(f'with the texts of {self.text_from}')
    if result['shuffled']:
      parts.append('with inputs shuffled')
    print(f'{" ".join(parts)}, {result["n"]} examples, step {self.step}:')
    for metric, score in result['scores'].items():
      interval = f'[{score["low"]:.4f}, {score["high"]:.4f}]'
      print(f'  {metric:<12} {score["value"]:.4f}   95 % {interval}')


def _format_confusions(predictions: list[dict]) -> str:
  """Returns a line for each true class: how often each class was predicted."""
  names, table = confusion_table(predictions)
  width = max(len(name) for name in names)
  lines = []
  for name, counts in zip(names, table):
    predicted = [f'{other} {count}' for other, count in zip(names, counts)]
    lines.append(f'  {name:<{width}} predicted as {", ".join(predicted)}')
  return '\n'.join(lines)
