"""Text out of sound: recognition and speech translation, by a decoder, by CTC, or by both on one memory (Watanabe et al. 2017).

Axes: B batch, S places of the memory, T time, V vocabulary.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from mmlm.data.text import Texts
from mmlm.decoding import ctc
from mmlm.decoding.alignment import align
from mmlm.decoding.next_tokens import is_any
from mmlm.decoding.score_fusion import NO_FUSION, Fusion, WeightedStep
from mmlm.decoding.search import SearchResult
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.encoders.subsampling import subsampled_length
from mmlm.tasks import grading
from mmlm.tasks.base import Grade, Measure
from mmlm.tasks.text_generation import CHRF, TextGeneration, begin_decoder
from mmlm.training.losses import ctc_losses, summed_loss, token_losses
from mmlm.utils.traced import is_off


@dataclass(frozen=True)
class SpeechToText(TextGeneration):
  """As text generation, where a head may also align what it writes with its memory; the blank of CTC is the padding token."""

  heads: tuple[str, ...] = (
    'transformer_decoder',
    'recurrent_decoder',
    'ctc',
    'joint',
    'joint_recurrent',
  )
  align: bool = False  # an answer also tells where in the sound CTC finds it

  aligns_speech: ClassVar[bool] = True

  def loss(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Sum of the losses in nats and of the weights: the decoder's tokens, or the labels of CTC where there is no decoder.

    With both the sum is (1 - w) times the decoder's cross-entropy and w times CTC's, w the `ctc_weight` of the head.
    """
    if is_off(share := ctc_share(model.head)):
      return super().loss(model, params, batch, label_smoothing, rng)
    decoder, aligned, labels = self._branches(model, params, batch, rng)
    if decoder is None:
      return aligned.sum(), labels.sum()
    return (1 - share) * summed_loss(
      *decoder,
      label_smoothing,
    ) + share * aligned.sum(), decoder[-1].sum()

  def forward(self, model, params, batch) -> dict:
    """{'logits' [B, T, V]} of the decoder, where there is one, and of a CTC branch {'frames' [B, S, V], 'frames_mask' [B, S]}."""
    if model.head.decodes:
      found = super().forward(model, params, batch)
    else:
      found = {}
    if ctc_share(model.head):
      memory = model.apply({'params': params}, batch, method='encode')
      found |= {
        'frames': model.apply({'params': params}, memory, method='ctc_logits'),
        'frames_mask': memory.mask,
      }
    return found

  def losses(self, model, params, batch):
    """The same for each example: [B] and [B]."""
    if not (share := ctc_share(model.head)):
      return super().losses(model, params, batch)
    decoder, aligned, labels = self._branches(model, params, batch, None)
    if decoder is None:
      return aligned, labels
    *given, weights = decoder

    def by_example(tokens):
      return tokens.reshape(batch['target'].shape).sum(1)

    return (1 - share) * by_example(token_losses(*given) * weights) + share * aligned, by_example(
      weights
    )

  def _branches(self, model, params, batch, rng):
    """What the decoder's loss needs (`_predicted`), None without a decoder; of CTC the losses and the labels they are of [B]."""
    inputs, weights = self._inputs(model, batch)
    rngs = {} if rng is None else {'dropout': rng}
    decoder, logits, frames = model.apply(
      {'params': params}, batch, inputs, rng is not None, rngs=rngs, method='branches'
    )
    name = model.head.ctc_labels
    # The end of a text is no label; in a batch of which nothing has a transcript there is no such column.
    labels = batch.get(name, inputs[:, :1])
    mask = batch.get(f'{name}_mask', jnp.zeros_like(inputs[:, :1], bool))
    special = model.special_tokens
    labels_mask = mask & ~is_any(labels, special.eos_ids)
    losses, counts = ctc_losses(logits, frames, labels, labels_mask, special.pad_id)
    if decoder is not None:
      x, table = decoder
      decoder = (
        x.reshape(
          -1,
          x.shape[-1],
        ),
        table,
        batch['target'].reshape(-1),
        weights.reshape(-1),
      )
    return decoder, losses * batch['weight'], counts * batch['weight']

  def generate(
    self, model, params, batch, options: SearchOptions, rng, fusion: Fusion = NO_FUSION
  ) -> SearchResult:
    """Hypotheses [B, N, T]: by the decoder and, so far as `fusion` says, the CTC branch of the same memory; or by CTC over frames."""
    if not ctc_share(model.head):
      return super().generate(model, params, batch, options, rng, fusion)
    examples = len(batch['weight'])
    there = batch['weight'][:, None] > 0
    memory = model.apply({'params': params}, batch, method='encode')

    def frames():
      return ctc.frame_log_probs(
        model.apply({'params': params}, memory, method='ctc_logits'), memory.mask & there, options
      )

    if not model.head.decodes:
      return _over_frames(frames(), options, fusion)
    parts = fusion.steps(examples, options)
    if fusion.ctc_weight > 0:
      parts.insert(0, WeightedStep(fusion.ctc_weight, *ctc.prefix_scorer(frames(), options)))
    if fusion.ctc_weight < 1:
      parts.insert(
        0,
        WeightedStep(
          1 - fusion.ctc_weight, *begin_decoder(model, params, memory, examples, options)
        ),
      )
    return self.searched(parts, batch, options, rng)

  def answer(
    self, model, params, batch, options: SearchOptions, rng, fusion: Fusion = NO_FUSION
  ) -> dict:
    """The fields of `generate` and, with `align` and CTC on sounds, 'heard' [B, T], the text that CTC aligns, and 'places' [B, T, 2]."""
    found = super().answer(model, params, batch, options, rng, fusion)
    return found | (
      _places(model, params, batch, found, options)
      if self.align and ctc_share(model.head) and 'audio' in batch
      else {}
    )

  def read(self, found: dict, outputs: Texts) -> list[dict]:
    """With 'alignment', [text of a piece, its first row of features, its last] in the order of the text; and the 'transcript' that it
    is of where this is not the hypothesis.
    """
    (row,) = super().read(found, outputs)
    if 'places' not in found:
      return [row]
    special = (outputs.tokenizer.pad_id, *outputs.tokenizer.eos_ids)
    heard = [token for token in found['heard'].tolist() if token not in special]
    pieces = zip(outputs.decode_pieces(heard), found['places'].tolist())
    alignment = [[text, first, last] for text, (first, last) in pieces if text and first >= 0]
    if found['transcribes']:
      transcript = {'transcript': outputs.decode_batch([heard])[0]}
    else:
      transcript = {}
    return [row | transcript | ({'alignment': alignment} if alignment else {})]


@dataclass(frozen=True)
class Recognition(SpeechToText):
  """Transcribes speech."""

  metrics: tuple[str, ...] = ('wer', 'cer')

  measure: ClassVar[Measure] = Measure('error rate, %', higher_is_better=False)
  verb: ClassVar[str] = 'Transcribe'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_error_rates(predictions)


@dataclass(frozen=True)
class SpeechTranslation(SpeechToText):
  """Translates speech to text."""

  metrics: tuple[str, ...] = ('bleu', 'chrf')

  measure: ClassVar[Measure] = CHRF
  verb: ClassVar[str] = 'Translate'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'chrf', CHRF.name, digits=1)


def _places(model, params, batch, found: dict, options: SearchOptions) -> dict:
  """Where CTC finds the best hypothesis or, of a head whose CTC learns the transcript, its own best path, in rows of the batch's features.

  Nothing where the memory has other places than the rows, subsampled: then its order need not be that of the sound.
  """
  memory = model.apply({'params': params}, batch, method='encode')
  mask = batch['audio_mask']
  factor = model.encoders['audio'].subsampling
  if memory.mask.shape[1] != subsampled_length(mask.shape[1], factor):
    return {}
  log_probs = ctc.frame_log_probs(
    model.apply({'params': params}, memory, method='ctc_logits'), memory.mask, options
  )
  tokens = found['tokens'][:, 0]
  transcribes = model.head.ctc_labels == 'transcript'
  if transcribes:
    tokens = ctc.best_path(
      log_probs, dataclasses.replace(options, max_length=log_probs.shape[1])
    ).tokens[:, 0]
  special = (options.pad_id, *options.eos_ids)
  aligned = align(log_probs, tokens, (~is_any(tokens, special)).sum(1), options.pad_id)
  last = jnp.minimum(aligned.last * factor + factor, mask.sum(1, keepdims=True)) - 1
  places = jnp.stack([aligned.first * factor, last], -1)
  return {'heard': tokens, 'places': places, 'transcribes': jnp.full(len(tokens), transcribes)}


def _over_frames(log_probs, options: SearchOptions, fusion: Fusion) -> SearchResult:
  """CTC alone: the best path, or the best prefixes with what `fusion` gives to their tokens."""
  if options.method == 'greedy':
    return ctc.best_path(log_probs, options)
  # One row, which may be asked what follows the longest prefix.
  alone = dataclasses.replace(options, method='greedy', n_best=1, max_length=options.max_length + 1)
  return ctc.prefix_beam(log_probs, options, fusion.steps(1, alone))


def ctc_share(head) -> float:
  """The weight of CTC in the loss of a head: 0 without it, 1 without a decoder."""
  return head.ctc_weight
