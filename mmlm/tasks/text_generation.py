"""Text generation: captioning and translation; other tasks that write text are its subclasses.

Axes: B batch, R decoding beams (K of each example), N hypotheses, T time, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.decoding.score_fusion import NO_FUSION, Fusion, WeightedStep, combine
from mmlm.decoding.search import SearchResult, search
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.apply import apply
from mmlm.models.kv_cache import StepFunction, beam_numbers, cached_step, decode_step, new_cache
from mmlm.models.multimodal import MultimodalModel
from mmlm.models.sequence import Sequence as Memory
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Batch, Grade, Measure, Task
from mmlm.training.losses import summed_loss, token_losses

CHRF = Measure('chrF', higher_is_better=True)
LARGEST_EXPONENT = 80  # of a perplexity


class TokenOutputs(NamedTuple):
  """What the cross-entropy of the tokens of a batch is computed from; N = B T tokens."""

  hidden_states: jax.Array  # [N, D], inputs of the output layer
  output_table: jax.Array  # [V, D], the output layer
  targets: jax.Array  # [N]
  weights: jax.Array  # [N]


def token_outputs(
  layer: tuple[jax.Array, jax.Array], targets: jax.Array, weights: jax.Array
) -> TokenOutputs:
  """Flattens hidden states [B, T, D], targets and weights [B, T]."""
  hidden_states, output_table = layer
  flat_states = hidden_states.reshape(-1, hidden_states.shape[-1])
  return TokenOutputs(flat_states, output_table, targets.reshape(-1), weights.reshape(-1))


def sums_by_example(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Sums values of tokens [B T] over each example, [B]; `shape` is (B, T)."""
  return values.reshape(shape).sum(1)


def dropout_keys(rng: jax.Array | None) -> dict[str, jax.Array]:
  """Returns the random keys of a model, none without a key."""
  if rng is None:
    return {}
  return {'dropout': rng}


@dataclass(frozen=True)
class TextGeneration(Task):
  """Writes a text by searching with a decoder."""

  metrics: tuple[str, ...] = ()
  uses: tuple[str, ...] = ('text',)
  answers: str = 'targets'

  writes_text = True
  compares_words = True
  shows_attention = True
  verb = 'Write'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'word_f1', self.measure.name, digits=2)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    if 'audio' in config.model.encoders:
      return smoke_forms.text_from_sounds(config)
    return smoke_forms.text_from_pictures_or_text(config)

  def outputs(self, head: ConfigDict, texts: Texts) -> Texts:
    return texts

  def texts_to_learn(self, source: Sequence[dict]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {'text': [], 'target': []}
    for i in range(len(source)):
      example = source[i]
      if example.get('text'):
        texts['text'].append(example['text'])
      texts['target'] += example['targets']
      if example.get('transcript'):
        texts['target'].append(example['transcript'])
    return texts

  def table(
    self,
    source: Sequence[dict],
    inputs: Texts,
    outputs: Texts,
    with_targets: bool = True,
  ) -> Table:
    """Returns an entry for each target (training, loss) or for each example (decoding)."""
    ids = []
    records = []
    targets = []
    texts = []
    transcripts = []
    for i in range(len(source)):
      example = source[i]
      transcript = ''
      if with_targets:
        transcript = example.get('transcript') or ''
      for target in example['targets'] if with_targets else ('',):
        ids.append(example['id'])
        records.append(i)
        targets.append(target)
        texts.append(example.get('text', ''))
        transcripts.append(transcript)
    encoded_transcripts = []
    if any(transcripts):
      encoded_transcripts = outputs.encode_batch(transcripts)
    return Table(
      ids,
      np.array(records, int),
      outputs.encode_targets(targets),
      inputs.encode_inputs(texts),
      transcripts=encoded_transcripts,
    )

  def references(self, example: dict) -> list[list[str]]:
    return [list(example['targets'])]

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the cross-entropy in nats and of its weights (tokens), for training."""
    outputs = self._token_outputs(model, params, batch, rng)
    return summed_loss(*outputs, label_smoothing), outputs.weights.sum()

  def losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> tuple[jax.Array, jax.Array]:
    *outputs, weights = self._token_outputs(model, params, batch, None)
    shape = batch['target'].shape
    nats = sums_by_example(token_losses(*outputs) * weights, shape)
    return nats, sums_by_example(weights, shape)

  def summary(self, loss: float) -> dict[str, float]:
    """Returns {'loss': nats a token, 'perplexity'}."""
    return {'loss': loss, 'perplexity': float(np.exp(min(loss, LARGEST_EXPONENT)))}

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns {'logits' [B, T, V]} of every token of the targets, given those before it."""
    inputs, _ = self._inputs(model, batch)
    return {'logits': apply(model, params, batch, inputs)}

  def _token_outputs(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    rng: jax.Array | None,
  ) -> TokenOutputs:
    inputs, weights = self._inputs(model, batch)
    train = rng is not None
    layer = apply(model, params, batch, inputs, train, rngs=dropout_keys(rng), method='hidden')
    return token_outputs(layer, batch['target'], weights)

  def _inputs(self, model: MultimodalModel, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Returns the decoder inputs, the target shifted right, and the weights of tokens, [B, T]."""
    target = batch['target']
    start = jnp.full_like(target[:, :1], model.special_tokens.bos_id)
    inputs = jnp.concatenate([start, target[:, :-1]], axis=1)
    return inputs, batch['target_mask'] * batch['weight'][:, None]

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns the fields of the result of `generate`."""
    return self.generate(model, params, batch, options, rng, fusion)._asdict()

  def read(self, answer: dict, outputs: Texts) -> list[dict]:
    """Returns one prediction: hypothesis, score, `words` before Moses' rules, n_best of several."""
    words = outputs.decode_batch(answer['tokens'])
    texts = [outputs.surface(text) for text in words]
    scores = [float(score) for score in answer['scores']]
    prediction: dict[str, Any] = {'hypothesis': texts[0], 'score': scores[0]}
    if outputs.language:
      prediction['words'] = words[0]
    if len(texts) > 1:
      prediction['n_best'] = list(zip(texts, scores))
    return [prediction]

  def generate(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> SearchResult:
    """Returns the hypotheses [B, N, T] of a batch.

    Args:
      fusion: what is added to the scores of the model.
    """
    memory = apply(model, params, batch, method='encode')
    examples = len(batch['weight'])
    decoder = begin_decoder(model, params, memory, examples, options)
    steps = [WeightedStep(1.0, *decoder), *fusion.steps(examples, options)]
    return self.search_with(steps, batch, options, rng)

  def search_with(
    self,
    steps: list[WeightedStep],
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
  ) -> SearchResult:
    """Returns the hypotheses [B, N, T] by the weighted sum of step functions."""
    step, cache, scored = combine(steps)
    prompt = jnp.full((len(batch['weight']), 1), options.bos_id)
    return search(step, cache, options, prompt, rng, active=batch['weight'] > 0, scored=scored)


@dataclass(frozen=True)
class Captioning(TextGeneration):
  """Describes a picture."""

  metrics: tuple[str, ...] = (
    'bleu_1',
    'bleu_2',
    'bleu_3',
    'bleu_4',
    'rouge_l',
    'cider_d',
    'meteor',
  )

  verb = 'Describe'


@dataclass(frozen=True)
class Translation(TextGeneration):
  """Translates a text, with or without a picture."""

  metrics: tuple[str, ...] = ('bleu_words', 'bleu', 'chrf', 'ter')

  measure = CHRF
  verb = 'Translate'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'chrf', CHRF.name, digits=1)


def begin_decoder(
  model: MultimodalModel,
  params: dict,
  memory: Memory | None,
  examples: int,
  options: SearchOptions,
) -> tuple[StepFunction, dict, bool]:
  """Returns (step, cache, scored) of the decoder of a model for a search.

  Args:
    memory: None for a language model.
  """
  cache = new_cache(None, examples, options.beams, options.max_length)
  # Any tokens will do: only the shapes of the cache that they fill are used.
  tokens = beam_numbers(examples, options.beams)
  _, filled = apply(
    model,
    params,
    tokens,
    memory,
    decode_step(cache, examples),
    method='step',
    mutable=['cache', 'memory'],
  )
  # The projected keys and values of the memory stay outside of the cache: one copy for all beams.
  variables = {'params': params, 'memory': filled.get('memory', {})}
  cache['layers'] = jax.tree.map(jnp.zeros_like, filled['cache'])
  step = cached_step(model, variables, memory, examples, options.beams)
  return step, cache, False
