"""Labels out of anything: a class or a number for an example, or for each of its parts (the utterances of a video).

Axes: B batch, T labels of an example (1, or its parts), C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmlm.data.labels import Classes, Range
from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Grade, Measure, Task
from mmlm.utils.errors import UserError


def labels_of(example: dict) -> list:
  """The labels of an example, as the source has them; [] without any."""
  label = example.get('label', [])
  if isinstance(label, list | tuple | np.ndarray):
    return list(label)
  return [label]


@dataclass(frozen=True)
class LabelPrediction(Task):
  metrics: tuple[str, ...] = ()
  heads: tuple[str, ...] = ()
  answers: str = 'label'

  verb: ClassVar[str] = 'Predict'

  def removable(self, modalities: Sequence[str]) -> list[str]:
    """Returns all modalities of a model that reads several: a text may be removed too."""
    if len(modalities) > 1:
      return list(modalities)
    return super().removable(modalities)

  def outputs(self, head, texts: Texts) -> Classes | Range:
    """What reads and writes labels, by the options of the head."""
    each = head.pool == 'each'
    if head.name == 'classifier':
      return Classes(head.classes, each)
    return Range(head.low, head.high, each)

  def texts_to_learn(self, source) -> dict[str, list[str]]:
    return {
      'text': [text for i in range(len(source)) if isinstance(text := source[i].get('text'), str)],
      'target': [],
    }

  def table(self, source, inputs: Texts, outputs, with_targets: bool = True) -> Table:
    """One row an example; labels are read where they are wanted, so that a user may ask without knowing them."""
    ids = []
    texts = []
    labels = []
    parts = []
    for example in (source[i] for i in range(len(source))):
      found = labels_of(example)
      if outputs.each:
        names = example.get('parts', [])
      else:
        names = [example['id']]
      if with_targets and (not found or len(found) != len(names)):
        if outputs.each:
          hint = f" for its {len(names)} parts (model.head.pool='each')"
        else:
          hint = ': give it one'
        raise UserError(
          f'{example["id"]} has {len(found) or "no"} label{"s" * (len(found) > 1)}{hint}.'
        )
      ids.append(example['id'])
      texts.append(
        text if isinstance(text := example.get('text', ''), str) else ''
      )  # else features
      parts.append(list(map(str, names)))
      labels.append(
        [outputs.encode(label, part) for label, part in zip(found, names)]
        if with_targets
        else [0] * len(names)
      )
    return Table(
      ids,
      np.arange(len(ids)),
      [[]] * len(ids),
      inputs.encode_inputs(texts),
      labels,
      parts if outputs.each else [],
    )

  def loss(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Sum of the losses and of their weights (labels), for training; dropout is on when there is a key `rng`."""
    losses, weights = self._losses(model, params, batch, label_smoothing, rng)
    return losses.sum(), weights.sum()

  def forward(self, model, params, batch) -> dict:
    """{'outputs'}: logits [B, T, C] or numbers [B, T]."""
    return {'outputs': model.apply({'params': params}, batch, None)}

  def losses(self, model, params, batch):
    """The same for each example: [B] and [B]."""
    losses, weights = self._losses(model, params, batch, 0.0, None)
    return losses.sum(1), weights.sum(1)

  def _losses(self, model, params, batch, label_smoothing, rng):
    """[B, T] and [B, T]."""
    outputs = model.apply(
      {'params': params}, batch, None, rng is not None, rngs={} if rng is None else {'dropout': rng}
    )
    label = batch['label']
    weights = batch['label_mask'] * batch['weight'][:, None]
    if outputs.ndim == 3:
      wanted = optax.smooth_labels(jax.nn.one_hot(label, outputs.shape[-1]), label_smoothing)
      losses = optax.softmax_cross_entropy(outputs, wanted)
    else:
      if model.head.loss == 'l1':
        losses = jnp.abs(outputs - label)
      else:
        losses = jnp.square(outputs - label)
    return losses * weights, weights

  def summary(self, loss: float) -> dict:
    """{'loss': a label}"""
    return {'loss': loss}

  def answer(self, model, params, batch, options, rng, fusion=None) -> dict:
    """{'outputs'}: probabilities [B, T, C] or numbers [B, T]."""
    outputs = model.apply({'params': params}, batch, None)
    return {
      'outputs': jax.nn.softmax(outputs) if outputs.ndim == 3 else outputs,
      'there': batch['label_mask'],
    }

  def read(self, found: dict, outputs) -> list[dict]:
    """The answer for one example -> a row for each of its parts."""
    rows = []
    for output in found['outputs'][found['there']]:
      if isinstance(outputs, Range):
        rows.append({'hypothesis': f'{output:.4f}', 'score': float(output)})
      else:
        best = int(np.argmax(output))
        probabilities = dict(zip(outputs.names, map(float, output)))
        rows.append(
          {
            'hypothesis': outputs.names[best],
            'score': float(output[best]),
            'probabilities': probabilities,
          }
        )
    return rows

  def references(self, example: dict) -> list[list[str]]:
    """The references of each part."""
    return [[str(label)] for label in labels_of(example)]


@dataclass(frozen=True)
class Classification(LabelPrediction):
  """Predicts a class of an example or of each of its parts."""

  metrics: tuple[str, ...] = ('accuracy', 'macro_f1', 'weighted_f1', 'calibration_error')
  heads: tuple[str, ...] = ('classifier',)

  measure: ClassVar[Measure] = Measure('probability of the correct class', higher_is_better=True)
  shows_confusions: ClassVar[bool] = True

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_classes(predictions)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.labels(config, 'label')


@dataclass(frozen=True)
class Regression(LabelPrediction):
  """Predicts a number for an example or for each of its parts."""

  metrics: tuple[str, ...] = (
    'mae',
    'pearson',
    'acc_7',
    'acc_5',
    'acc_2_has0',
    'f1_has0',
    'acc_2_non0',
    'f1_non0',
  )
  heads: tuple[str, ...] = ('regressor',)

  measure: ClassVar[Measure] = Measure('distance', higher_is_better=False)

  def value_range(self, head: ConfigDict) -> tuple[float, float]:
    return head.low, head.high

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_numbers(predictions)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.labels(config, 'score')
