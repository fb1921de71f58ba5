"""The conditions of an ablation study of a run, and its predictions under each."""

from mmlm.evaluation.ablation import WORDS, mask_words, missing_curve
from mmlm.evaluation.metrics import METRICS, views
from mmlm.experiment.experiment import Experiment
from mmlm.experiment.prediction import Condition

CURVE_VIEWS = (views.labels, views.values)


def conditions_of(experiment: Experiment, split: str) -> list[Condition]:
  """Returns the conditions for a model, of which the first changes nothing.

  Lists of words to mask are English; a list without a word in the split is left out.
  """
  modalities = experiment.modalities
  not_text = [modality for modality in modalities if modality != 'text']
  conditions = [Condition()]
  for modality in modalities:
    conditions.append(Condition(shuffled=modality))
  for modality in experiment.task.removable(modalities):
    conditions.append(Condition(without=modality))
  for kind in _maskable_words(experiment, split):
    conditions.append(Condition(masked=kind))
    for modality in not_text:
      conditions.append(Condition(masked=kind, shuffled=modality))
  return conditions


def _maskable_words(experiment: Experiment, split: str) -> list[str]:
  """Returns the kinds of words that stand in the texts of a split, if they are English texts."""
  if 'text' not in experiment.modalities or 'text' in experiment.data.widths:
    return []
  if experiment.config.data.languages.text not in ('', 'en'):
    return []
  source = experiment.data.source(split)
  texts = []
  for number in range(len(source)):
    example = source[number]
    texts.append(example.get('text', ''))
  kinds = []
  for kind in WORDS:
    has_such_words = any(mask_words(text, kind) != text for text in texts)
    if has_such_words:
      kinds.append(kind)
  return kinds


def missing_curves(experiment: Experiment, predictions: dict[str, list[dict]]) -> dict:
  """Returns {modality: {metric: scores over the share of examples that lack the modality}}.

  Args:
    predictions: {condition: predictions}.
  """
  if len(experiment.modalities) < 2:
    return {}
  metrics = []
  names = experiment.config.evaluate.metrics or experiment.task.metrics
  for name in names:
    if METRICS[name].view in CURVE_VIEWS:
      metrics.append(name)
  complete = predictions[str(Condition())]
  curves = {}
  for modality in experiment.modalities:
    condition = Condition(without=modality)
    without = predictions.get(str(condition))
    if without is None:
      continue
    curves[modality] = {}
    for name in metrics:
      curve = missing_curve(complete, without, name)
      curves[modality][name] = curve
  return curves
