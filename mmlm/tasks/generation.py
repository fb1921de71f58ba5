"""Text out of anything: captioning now; recognition and translation are the same with other modalities and metrics.

Axes: B batch, R decoding rows (B times beams), T time, N hypotheses.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.data.tokenizers import BOS, EOS
from mmlm.decoding.search import SearchOptions, SearchResult, rows, search
from mmlm.models.attention import DecodeStep
from mmlm.training.losses import cross_entropy


@dataclass(frozen=True)
class TextGeneration:
  metrics: tuple[str, ...]

  def texts_to_learn(self, source) -> dict[str, list[str]]:
    """The texts from which a tokenizer is trained: {'text': [...], 'target': [...]}."""
    found = {'text': [], 'target': []}
    for example in (source[i] for i in range(len(source))):
      found['text'] += filter(None, [example.get('text')])
      found['target'] += example['targets']
    return found

  def table(self, source, inputs: Texts, outputs: Texts, with_targets: bool = True) -> Table:
    """One row a target (training, loss), or one row an example (decoding)."""
    pairs = [
      (example['id'], i, target, example.get('text', ''))
      for i, example in enumerate(source[i] for i in range(len(source)))
      for target in (example['targets'] if with_targets else ('',))
    ]
    ids, records, targets, texts = map(list, zip(*pairs))
    encoded = [[*row, EOS] for row in outputs.encode_batch(targets)]
    return Table(ids, np.array(records, int), encoded, [[*row, EOS] if row else [] for row in inputs.encode_batch(texts)])

  def losses(self, model, params, batch, label_smoothing=0.0, rng=None):
    """Cross-entropy sums [B] in nats and their weights [B] (tokens); dropout is on when there is a key `rng`."""
    target = batch['target']
    inputs = jnp.concatenate([jnp.full_like(target[:, :1], BOS), target[:, :-1]], axis=1)  # [B, T]
    rngs = {} if rng is None else {'dropout': rng}
    logits = model.apply({'params': params}, batch, inputs, rng is not None, rngs=rngs)  # [B, T, V]
    weight = batch['target_mask'] * batch['weight'][:, None]
    return (cross_entropy(logits, target, label_smoothing) * weight).sum(1), weight.sum(1)

  def generate(self, model, params, batch, options: SearchOptions, rng) -> SearchResult:
    """Hypotheses [B, N, T] for a batch, by the search that `options` name."""
    variables = {'params': params}
    memory = model.apply(variables, batch, method='encode')
    examples, width = len(batch['weight']), rows(options)
    own = jnp.arange(examples * width, dtype=jnp.int32) % width  # the number of each row [R] among those of its example
    writers = jnp.broadcast_to(own[:, None], (len(own), options.max_length))
    at = lambda index, writers: DecodeStep(index, writers.reshape(examples, width, -1))
    start = jnp.zeros((), jnp.int32)
    _, made = model.apply(variables, own, memory, at(start, writers), method='step', mutable=['cache', 'memory'])
    # Projected keys and values of the memory stand beside the search: one copy an example, whatever the beam.
    variables['memory'] = made.get('memory', {})

    def step(tokens, cache):
      index, writers = cache['index'], cache['writers'].at[:, cache['index']].set(own)
      now = {**variables, 'cache': cache['layers']}
      logits, new = model.apply(now, tokens, memory, at(index, writers), method='step', mutable=['cache'])
      return logits, {'index': index + 1, 'writers': writers, 'layers': new['cache']}

    cache = {'index': start, 'writers': writers, 'layers': jax.tree.map(jnp.zeros_like, made['cache'])}
    prompt = jnp.full((examples, 1), options.bos_id)
    return search(step, cache, options, prompt, rng, active=batch['weight'] > 0)
