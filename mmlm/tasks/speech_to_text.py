"""Speech to text: recognition and speech translation, by a decoder, by CTC, or by both.

With both they share one memory (Watanabe et al. 2017). The blank of CTC is the padding token.
Axes: B batch, S positions of the memory, T time, N hypotheses, V vocabulary.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mmlm.data.text import Texts
from mmlm.decoding import ctc
from mmlm.decoding.alignment import align
from mmlm.decoding.next_tokens import is_any
from mmlm.decoding.score_fusion import NO_FUSION, Fusion, WeightedStep
from mmlm.decoding.search import SearchResult
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.apply import apply
from mmlm.models.encoders.subsampling import subsampled_length
from mmlm.models.multimodal import MultimodalModel
from mmlm.models.sequence import Sequence as Memory
from mmlm.tasks import grading
from mmlm.tasks.base import Batch, Grade, Measure
from mmlm.tasks.text_generation import (
  CHRF,
  TextGeneration,
  TokenOutputs,
  begin_decoder,
  dropout_keys,
  sums_by_example,
  token_outputs,
)
from mmlm.training.losses import ctc_losses, summed_loss, token_losses
from mmlm.utils.traced import is_off


@dataclass(frozen=True)
class SpeechToText(TextGeneration):
  """Writes the text of a sound.

  Attributes:
    align: answers also hold the positions of their tokens in the sound, by the CTC branch.
  """

  uses: tuple[str, ...] = ('text', 'aligned text')
  align: bool = False

  aligns_speech = True

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the losses in nats and of their weights, for training.

    With a decoder and CTC the sum is (1 - w) times the cross-entropy and w times the loss of CTC,
    w the `ctc_weight` of the head. Weights are the tokens of the decoder; without a decoder, the
    labels of CTC.
    """
    ctc_weight = model.head.ctc_weight
    if is_off(ctc_weight):
      return super().loss(model, params, batch, label_smoothing, rng)
    decoder, of_ctc, label_counts = self._branches(model, params, batch, rng)
    if decoder is None:
      return of_ctc.sum(), label_counts.sum()
    *_, weights = decoder
    cross_entropy = summed_loss(*decoder, label_smoothing)
    return (1 - ctc_weight) * cross_entropy + ctc_weight * of_ctc.sum(), weights.sum()

  def losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> tuple[jax.Array, jax.Array]:
    ctc_weight = model.head.ctc_weight
    if not ctc_weight:
      return super().losses(model, params, batch)
    decoder, of_ctc, label_counts = self._branches(model, params, batch, None)
    if decoder is None:
      return of_ctc, label_counts
    *outputs, weights = decoder
    shape = batch['target'].shape
    cross_entropy = sums_by_example(token_losses(*outputs) * weights, shape)
    total = (1 - ctc_weight) * cross_entropy + ctc_weight * of_ctc
    return total, sums_by_example(weights, shape)

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns the logits of the branches that the head has.

    Of a decoder {'logits' [B, T, V]}, of CTC {'frames' [B, S, V], 'frames_mask' [B, S]}.
    """
    outputs = {}
    if model.head.decodes:
      outputs = super().forward(model, params, batch)
    if model.head.ctc_weight:
      memory = apply(model, params, batch, method='encode')
      outputs['frames'] = apply(model, params, memory, method='ctc_logits')
      outputs['frames_mask'] = memory.mask
    return outputs

  def _branches(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[TokenOutputs | None, jax.Array, jax.Array]:
    """Returns what both losses are made of.

    Returns:
      Outputs of the decoder, None without one; losses of CTC [B] and numbers of its labels [B].
    """
    inputs, weights = self._inputs(model, batch)
    train = rng is not None
    layer, logits, frames_mask = apply(
      model, params, batch, inputs, train, rngs=dropout_keys(rng), method='branches'
    )
    name = model.head.ctc_labels
    # A batch without any transcript has no such column.
    labels = batch.get(name, inputs[:, :1])
    mask = batch.get(f'{name}_mask', jnp.zeros_like(inputs[:, :1], bool))
    special = model.special_tokens
    labels_mask = mask & ~is_any(labels, special.eos_ids)  # CTC does not learn the end of a text
    losses, counts = ctc_losses(logits, frames_mask, labels, labels_mask, special.pad_id)
    decoder = None
    if layer is not None:
      decoder = token_outputs(layer, batch['target'], weights)
    return decoder, losses * batch['weight'], counts * batch['weight']

  def generate(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> SearchResult:
    """Returns the hypotheses [B, N, T], by the decoder, by CTC, or by both.

    Args:
      fusion: states the weight of the CTC branch beside a decoder.
    """
    if not model.head.ctc_weight:
      return super().generate(model, params, batch, options, rng, fusion)
    examples = len(batch['weight'])
    active = batch['weight'][:, None] > 0
    memory = apply(model, params, batch, method='encode')
    if not model.head.decodes:
      log_probs = _frame_log_probs(model, params, memory, active, options)
      return _search_frames(log_probs, options, fusion)
    steps = fusion.steps(examples, options)
    if fusion.ctc_weight > 0:
      log_probs = _frame_log_probs(model, params, memory, active, options)
      scorer = ctc.prefix_scorer(log_probs, options)
      steps.insert(0, WeightedStep(fusion.ctc_weight, *scorer))
    if fusion.ctc_weight < 1:
      decoder = begin_decoder(model, params, memory, examples, options)
      steps.insert(0, WeightedStep(1 - fusion.ctc_weight, *decoder))
    return self.search_with(steps, batch, options, rng)

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns the fields of `generate` and, with `align`, those of `_alignment`."""
    answer = super().answer(model, params, batch, options, rng, fusion)
    if self.align and model.head.ctc_weight and 'audio' in batch:
      answer |= _alignment(model, params, batch, answer['tokens'][:, 0], options)
    return answer

  def read(self, answer: dict, outputs: Texts) -> list[dict]:
    """Returns one prediction, with the alignment of its text if there is one.

    `alignment` is [text of a token, its first frame of features, its last] in the order of the
    text. Where the aligned text is not the hypothesis, it is the `transcript`.
    """
    (prediction,) = super().read(answer, outputs)
    if 'aligned_frames' not in answer:
      return [prediction]
    special = (outputs.tokenizer.pad_id, *outputs.tokenizer.eos_ids)
    tokens = [token for token in answer['aligned_tokens'].tolist() if token not in special]
    if answer['aligns_transcript']:
      (prediction['transcript'],) = outputs.decode_batch([tokens])
    alignment = []
    for text, frames in zip(outputs.decode_pieces(tokens), answer['aligned_frames'].tolist()):
      first, last = frames
      if text and first >= 0:
        alignment.append([text, first, last])
    if alignment:
      prediction['alignment'] = alignment
    return [prediction]


@dataclass(frozen=True)
class Recognition(SpeechToText):
  """Transcribes speech."""

  metrics: tuple[str, ...] = ('wer', 'cer')

  measure = Measure('error rate, %', higher_is_better=False)
  verb = 'Transcribe'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_error_rates(predictions)


@dataclass(frozen=True)
class SpeechTranslation(SpeechToText):
  """Translates speech to text."""

  metrics: tuple[str, ...] = ('bleu', 'chrf')

  measure = CHRF
  verb = 'Translate'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'chrf', CHRF.name, digits=1)


def _frame_log_probs(
  model: MultimodalModel,
  params: dict,
  memory: Memory,
  active: jax.Array | bool,
  options: SearchOptions,
) -> jax.Array:
  """Returns the log-probabilities [B, S, V] of the CTC branch; `active` [B, 1]."""
  logits = apply(model, params, memory, method='ctc_logits')
  return ctc.frame_log_probs(logits, memory.mask & active, options)


def _alignment(
  model: MultimodalModel,
  params: dict,
  batch: Batch,
  tokens: jax.Array,
  options: SearchOptions,
) -> dict[str, jax.Array]:
  """Aligns the best hypotheses [B, T] with the frames of features, by CTC.

  If CTC learns the transcript, its best path is aligned instead.

  Returns:
    {'aligned_tokens' [B, T], 'aligned_frames' [B, T, 2] (first and last), 'aligns_transcript' [B]};
    {} if the positions of the memory are not those of the frames, subsampled: they need not be in
    the order of the sound.
  """
  memory = apply(model, params, batch, method='encode')
  mask = batch['audio_mask']
  factor = model.encoders['audio'].subsampling
  if memory.mask.shape[1] != subsampled_length(mask.shape[1], factor):
    return {}
  log_probs = _frame_log_probs(model, params, memory, True, options)
  aligns_transcript = model.head.ctc_labels == 'transcript'
  if aligns_transcript:
    untruncated = dataclasses.replace(options, max_length=log_probs.shape[1])
    tokens = ctc.best_path(log_probs, untruncated).tokens[:, 0]
  special = (options.pad_id, *options.eos_ids)
  lengths = (~is_any(tokens, special)).sum(1)
  aligned = align(log_probs, tokens, lengths, options.pad_id)
  first = aligned.first * factor
  last = jnp.minimum(aligned.last * factor + factor, mask.sum(1, keepdims=True)) - 1
  return {
    'aligned_tokens': tokens,
    'aligned_frames': jnp.stack([first, last], -1),
    'aligns_transcript': jnp.full(len(tokens), aligns_transcript),
  }


def _search_frames(log_probs: jax.Array, options: SearchOptions, fusion: Fusion) -> SearchResult:
  """Searches with CTC alone: its best path, or its best prefixes with the scores of `fusion`."""
  if options.method == 'greedy':
    return ctc.best_path(log_probs, options)
  # One beam, which may score what follows the longest prefix.
  of_one_beam = dataclasses.replace(
    options, method='greedy', n_best=1, max_length=options.max_length + 1
  )
  return ctc.prefix_beam(log_probs, options, fusion.steps(1, of_one_beam))
