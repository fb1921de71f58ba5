"""Text out of anything: captioning, translation, a language model; speech.py adds CTC.

Axes: B batch, R decoding rows (B times beams), T time, N hypotheses.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.decoding.score_fusion import NO_FUSION, Fusion, WeightedStep, combine
from mmlm.decoding.search import SearchResult, search
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.kv_cache import beam_numbers, cached_step, decode_step, new_cache
from mmlm.tasks import grading, smoke_forms
from mmlm.tasks.base import Grade, Measure, Task
from mmlm.training.losses import summed_loss, token_losses

WORD_F1 = Measure('word F1', higher_is_better=True)
CHRF = Measure('chrF', higher_is_better=True)


@dataclass(frozen=True)
class TextGeneration(Task):
  metrics: tuple[str, ...] = ()
  heads: tuple[str, ...] = ('transformer_decoder', 'recurrent_decoder')
  answers: str = 'targets'

  writes_text: ClassVar[bool] = True
  compares_words: ClassVar[bool] = True
  shows_attention: ClassVar[bool] = True
  verb: ClassVar[str] = 'Write'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'word_f1', WORD_F1.name, digits=2)

  def smoke(self, config: ConfigDict) -> ConfigDict:
    if 'audio' in config.model.encoders:
      return smoke_forms.text_from_sounds(config)
    return smoke_forms.text_from_pictures_or_text(config)

  def outputs(self, head, texts: Texts) -> Texts:
    """What reads and writes the answers."""
    return texts

  def texts_to_learn(self, source) -> dict[str, list[str]]:
    """The texts from which a tokenizer is trained: {'text': [...], 'target': [...]}."""
    found = {'text': [], 'target': []}
    for example in (source[i] for i in range(len(source))):
      found['text'] += filter(None, [example.get('text')])
      found['target'] += [*example['targets'], *filter(None, [example.get('transcript')])]
    return found

  def table(self, source, inputs: Texts, outputs: Texts, with_targets: bool = True) -> Table:
    """One row a target (training, loss), or one row an example (decoding)."""
    pairs = []
    for i, example in enumerate(source[i] for i in range(len(source))):
      for target in example['targets'] if with_targets else ('',):
        pairs.append(
          (
            example['id'],
            i,
            target,
            example.get('text', ''),
            with_targets and example.get('transcript') or '',
          )
        )
    ids, records, targets, texts, transcripts = map(list, zip(*pairs))
    encoded = outputs.encode_targets(targets)
    if any(transcripts):
      spoken = outputs.encode_batch(transcripts)
    else:
      spoken = []
    return Table(
      ids, np.array(records, int), encoded, inputs.encode_inputs(texts), transcripts=spoken
    )

  def loss(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Sum of the cross-entropy in nats and of its weights (tokens), for training; dropout is on when there is a key `rng`."""
    x, table, targets, weights = self._predicted(model, params, batch, rng)
    return summed_loss(x, table, targets, weights, label_smoothing), weights.sum()

  def forward(self, model, params, batch) -> dict:
    """{'logits' [B, T, V]} of every token of the targets, given those before it."""
    return {'logits': model.apply({'params': params}, batch, self._inputs(model, batch)[0])}

  def losses(self, model, params, batch):
    """The same for each example: [B] and [B]."""
    x, table, targets, weights = self._predicted(model, params, batch, None)

    def by_example(tokens):
      return tokens.reshape(batch['target'].shape).sum(1)

    return by_example(token_losses(x, table, targets) * weights), by_example(weights)

  def _predicted(self, model, params, batch, rng):
    """Every token: what the output layer sees [B T, D], that layer [V, D], the targets and the weights [B T]."""
    inputs, weights = self._inputs(model, batch)
    rngs = {} if rng is None else {'dropout': rng}
    x, table = model.apply(
      {'params': params}, batch, inputs, rng is not None, rngs=rngs, method='hidden'
    )
    return (
      x.reshape(
        -1,
        x.shape[-1],
      ),
      table,
      batch['target'].reshape(-1),
      weights.reshape(-1),
    )

  def _inputs(self, model, batch):
    """What a decoder reads, the target shifted right [B, T], and the weights of its tokens [B, T]."""
    target = batch['target']
    inputs = jnp.concatenate(
      [jnp.full_like(target[:, :1], model.special_tokens.bos_id), target[:, :-1]],
      axis=1,
    )
    return inputs, batch['target_mask'] * batch['weight'][:, None]

  def summary(self, loss: float) -> dict:
    """{'loss': nats a token, 'perplexity'}"""
    return {'loss': loss, 'perplexity': float(np.exp(min(loss, 80)))}

  def answer(
    self, model, params, batch, options: SearchOptions, rng, fusion: Fusion = NO_FUSION
  ) -> dict:
    """The fields of `generate`."""
    return self.generate(model, params, batch, options, rng, fusion)._asdict()

  def read(self, found: dict, outputs: Texts) -> list[dict]:
    """The answer for one example -> its row: hypothesis, score, the words as they were written and, of several, n_best."""
    written = outputs.decode_batch(found['tokens'])
    texts = [outputs.surface(text) for text in written]
    scores = [float(score) for score in found['scores']]
    row = {'hypothesis': texts[0], 'score': scores[0]}
    if outputs.language:
      row['words'] = written[0]
    if len(texts) > 1:
      row['n_best'] = list(zip(texts, scores))
    return [row]

  def references(self, example: dict) -> list[list[str]]:
    return [list(example['targets'])]

  def generate(
    self, model, params, batch, options: SearchOptions, rng, fusion: Fusion = NO_FUSION
  ) -> SearchResult:
    """Hypotheses [B, N, T] for a batch, by the search that `options` name, scored also by what `fusion` holds."""
    memory = model.apply({'params': params}, batch, method='encode')
    examples = len(batch['weight'])
    parts = [
      WeightedStep(1.0, *begin_decoder(model, params, memory, examples, options)),
      *fusion.steps(examples, options),
    ]
    return self.searched(parts, batch, options, rng)

  def searched(self, parts: list[WeightedStep], batch, options: SearchOptions, rng) -> SearchResult:
    """Hypotheses [B, N, T] by the sum of the parts."""
    step, cache, scored = combine(parts)
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

  verb: ClassVar[str] = 'Describe'


@dataclass(frozen=True)
class Translation(TextGeneration):
  """Translates a text, with or without a picture."""

  metrics: tuple[str, ...] = ('bleu_words', 'bleu', 'chrf', 'ter')

  measure: ClassVar[Measure] = CHRF
  verb: ClassVar[str] = 'Translate'

  def grade(self, predictions: list[dict]) -> list[Grade]:
    return grading.grade_texts(predictions, 'chrf', CHRF.name, digits=1)


def begin_decoder(model, params, memory, examples: int, options: SearchOptions):
  """(step, cache, scored) of a model's decoder for a search (decoding/score_fusion.py); `memory` None for a language model."""
  variables = {'params': params}
  width = options.beams
  cache = new_cache(None, examples, width, options.max_length)
  tokens = beam_numbers(
    examples, width
  )  # any will do: only the shapes of what they leave are of use
  _, made = model.apply(
    variables,
    tokens,
    memory,
    decode_step(cache, examples),
    method='step',
    mutable=['cache', 'memory'],
  )
  # Projected keys and values of the memory stand beside the search: one copy an example, whatever the beam.
  variables['memory'] = made.get('memory', {})
  cache['layers'] = jax.tree.map(jnp.zeros_like, made['cache'])
  return cached_step(model, variables, memory, examples, width), cache, False
