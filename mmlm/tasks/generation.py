"""Text out of anything: captioning now; recognition and translation are the same with other modalities and metrics.

Axes: B batch, R decoding rows (B times beams), T time, N hypotheses.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.data.pipeline import Table
from mmlm.data.tokenizers import BOS, EOS
from mmlm.decoding.search import SearchOptions, SearchResult, rows, search
from mmlm.models.attention import DecodeStep
from mmlm.training.losses import cross_entropy


@dataclass(frozen=True)
class TextGeneration:
  metrics: tuple[str, ...]

  def texts_to_learn(self, source) -> list[str]:
    """The texts from which a tokenizer is trained."""
    texts = []
    for i in range(len(source)):
      example = source[i]
      texts += [*example['targets'], *filter(None, [example.get('text')])]
    return texts

  def table(self, source, tokenizer, with_targets: bool = True) -> Table:
    """One row a target (training, loss), or one row an example (decoding)."""
    ids, records, targets, texts = [], [], [], []
    for i in range(len(source)):
      example = source[i]
      for target in example['targets'] if with_targets else ('',):
        ids.append(example['id'])
        records.append(i)
        targets.append(target)
        texts.append(example.get('text', ''))
    encoded = [[*row, EOS] for row in tokenizer.encode_batch(targets)]
    return Table(ids, np.array(records, int), encoded, tokenizer.encode_batch(texts))

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
    length = options.max_length
    tokens = jnp.zeros(len(batch['weight']) * rows(options), jnp.int32)
    start = DecodeStep(jnp.zeros((), jnp.int32), length)
    _, made = model.apply(variables, tokens, memory, start, method='step', mutable=['cache', 'memory'])
    # Projected keys and values of the memory stand beside the search: one copy an example, whatever the beam.
    variables['memory'] = made.get('memory', {})

    def step(tokens, cache):
      at = DecodeStep(cache['index'], length)
      logits, new = model.apply(
        {**variables, 'cache': cache['layers']}, tokens, memory, at, method='step', mutable=['cache']
      )
      return logits, {'index': cache['index'] + 1, 'layers': new['cache']}

    cache = {'index': start.index, 'layers': jax.tree.map(jnp.zeros_like, made['cache'])}
    return search(step, cache, options, rng, active=batch['weight'] > 0)
