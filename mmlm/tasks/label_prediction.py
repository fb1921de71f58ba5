"""Label prediction: a class or a number for an example, or for each of its parts.

The parts of an example are, for instance, the utterances of a video.
Axes: B batch, T labels of an example (1, or its parts), C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmlm.data.labels import Classes, Range
from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.decoding.score_fusion import NO_FUSION, Fusion
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.apply import apply
from mmlm.models.multimodal import MultimodalModel
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Batch, Grade, Measure, Task
from mmlm.tasks.text_generation import dropout_keys
from mmlm.utils.errors import UserError


def labels_of(example: dict) -> list:
  """Returns the labels of an example as the source has them; [] without any."""
  label = example.get('label', [])
  if isinstance(label, list | tuple | np.ndarray):
    return list(label)
  return [label]


@dataclass(frozen=True)
class LabelPrediction(Task):
  """Predicts labels; its subclasses choose the head that does."""

  metrics: tuple[str, ...] = ()
  uses: tuple[str, ...] = ()
  answers: str = 'label'

  verb = 'Predict'

  def removable(self, modalities: Sequence[str]) -> list[str]:
    """Returns all modalities of a model that reads several: a text may be removed too."""
    if len(modalities) > 1:
      return list(modalities)
    return super().removable(modalities)

  def texts_to_learn(self, source: Sequence[dict]) -> dict[str, list[str]]:
    texts = []
    for i in range(len(source)):
      text = source[i].get('text')
      if isinstance(text, str):
        texts.append(text)
    return {'text': texts, 'target': []}

  def table(
    self,
    source: Sequence[dict],
    inputs: Texts,
    outputs: Classes | Range,
    with_targets: bool = True,
  ) -> Table:
    """Returns an entry for each example.

    Raises:
      UserError: targets are needed, and an example has no label or not one for each part.
    """
    ids = []
    texts = []
    labels = []
    parts = []
    for i in range(len(source)):
      example = source[i]
      names = [example['id']]
      if outputs.each:
        names = example.get('parts', [])
      ids.append(example['id'])
      text = example.get('text', '')
      texts.append(text if isinstance(text, str) else '')  # features are read by the loader
      parts.append([str(name) for name in names])
      labels.append([0] * len(names))
      if with_targets:
        labels[-1] = _encode_labels(example, names, outputs)
    encoded_texts = inputs.encode_inputs(texts)
    no_targets = [[]] * len(ids)
    if not outputs.each:
      parts = []
    return Table(ids, np.arange(len(ids)), no_targets, encoded_texts, labels, parts)

  def references(self, example: dict) -> list[list[str]]:
    return [[str(label)] for label in labels_of(example)]

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the losses and of their weights (labels), for training."""
    losses, weights = self._label_losses(model, params, batch, label_smoothing, rng)
    return losses.sum(), weights.sum()

  def losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> tuple[jax.Array, jax.Array]:
    losses, weights = self._label_losses(model, params, batch, 0.0, None)
    return losses.sum(1), weights.sum(1)

  def summary(self, loss: float) -> dict[str, float]:
    """Returns {'loss': of a label}."""
    return {'loss': loss}

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns {'outputs'}: logits [B, T, C] or numbers [B, T]."""
    return {'outputs': apply(model, params, batch, None)}

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns {'outputs', 'mask' [B, T]}: probabilities [B, T, C] or numbers [B, T]."""
    outputs = apply(model, params, batch, None)
    return {'outputs': self._predicted(outputs), 'mask': batch['label_mask']}

  def _label_losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float,
    rng: jax.Array | None,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns loss and weight of each label, [B, T] and [B, T]."""
    train = rng is not None
    outputs = apply(model, params, batch, None, train, rngs=dropout_keys(rng))
    weights = batch['label_mask'] * batch['weight'][:, None]
    losses = self._output_losses(model, outputs, batch['label'], label_smoothing)
    return losses * weights, weights

  def _output_losses(
    self,
    model: MultimodalModel,
    outputs: jax.Array,
    label: jax.Array,
    label_smoothing: float,
  ) -> jax.Array:
    """Returns the loss [B, T] of the outputs of the head for labels [B, T]."""
    raise NotImplementedError(f'{type(self).__name__}._output_losses')

  def _predicted(self, outputs: jax.Array) -> jax.Array:
    """Returns what predictions are read from, of the outputs of the head."""
    return outputs


def _encode_labels(example: dict, names: list, outputs: Classes | Range) -> list:
  """Returns the encoded label of each part of an example."""
  labels = labels_of(example)
  if not labels or len(labels) != len(names):
    count = len(labels) or 'no'
    noun = 'labels' if len(labels) > 1 else 'label'
    hint = 'Expected 1.'
    if outputs.each:
      hint = f"It has {len(names)} parts, and model.head.pool='each' needs a label for each."
    raise UserError(f'{example["id"]} has {count} {noun}. {hint}')
  return [outputs.encode(label, name) for label, name in zip(labels, names)]


@dataclass(frozen=True)
class Classification(LabelPrediction):
  """Predicts a class of an example or of each of its parts."""

  metrics: tuple[str, ...] = ('accuracy', 'macro_f1', 'weighted_f1', 'calibration_error')
  uses: tuple[str, ...] = ('classes',)

  measure = Measure('probability of the correct class', higher_is_better=True)
  shows_confusions = True

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_classes(predictions)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.labels(config, 'label')

  def outputs(self, head: ConfigDict, texts: Texts) -> Classes:
    return Classes(head.classes, head.pool == 'each')

  def _output_losses(
    self,
    model: MultimodalModel,
    outputs: jax.Array,
    label: jax.Array,
    label_smoothing: float,
  ) -> jax.Array:
    one_hot = jax.nn.one_hot(label, outputs.shape[-1])
    target = optax.smooth_labels(one_hot, label_smoothing)
    return optax.softmax_cross_entropy(outputs, target)

  def _predicted(self, outputs: jax.Array) -> jax.Array:
    return jax.nn.softmax(outputs)

  def read(self, answer: dict, outputs: Classes) -> list[dict]:
    """Returns for each part the likeliest class, its probability, and those of all classes."""
    predictions = []
    for probabilities in answer['outputs'][answer['mask']]:
      best = int(np.argmax(probabilities))
      by_class = dict(zip(outputs.names, map(float, probabilities)))
      prediction = {
        'hypothesis': outputs.names[best],
        'score': float(probabilities[best]),
        'probabilities': by_class,
      }
      predictions.append(prediction)
    return predictions


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
  uses: tuple[str, ...] = ('value',)

  measure = Measure('distance', higher_is_better=False)

  def value_range(self, head: ConfigDict) -> tuple[float, float]:
    return head.low, head.high

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_numbers(predictions)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    return smoke_forms.labels(config, 'score')

  def outputs(self, head: ConfigDict, texts: Texts) -> Range:
    return Range(head.low, head.high, head.pool == 'each')

  def _output_losses(
    self,
    model: MultimodalModel,
    outputs: jax.Array,
    label: jax.Array,
    label_smoothing: float,
  ) -> jax.Array:
    if model.head.loss == 'l1':
      return jnp.abs(outputs - label)
    return jnp.square(outputs - label)

  def read(self, answer: dict, outputs: Range) -> list[dict]:
    """Returns for each part the number, also as text."""
    values = [float(value) for value in answer['outputs'][answer['mask']]]
    return [{'hypothesis': f'{value:.4f}', 'score': value} for value in values]
