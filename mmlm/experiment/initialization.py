"""What the parameters of an experiment start from: pretrained weights, word vectors, another run, and the statistics of features."""

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.data import batching
from mmlm.data.pipeline import stream
from mmlm.models.encoders import ENCODERS
from mmlm.models.heads import HEADS
from mmlm.pretrained import family_of
from mmlm.pretrained.bert import load_pooler
from mmlm.pretrained.formats.vector_files import embedding_table, read_vectors
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences, flat, graft, renamed

NORMALIZED_BY = (
  2000  # examples at most: more tell little of a mean, and of sounds each has to be read
)


def started(experiment, params: dict) -> dict:
  """Random parameters of an experiment, with what its config lets its parts start from in their place.

  Raises:
    UserError: where sizes or tokens differ from those of the model.
  """
  config = experiment.config
  for modality, options in config.model.encoders.items():
    encoder = ENCODERS[options.name]
    if encoder.backbone and not options.frozen:
      params[f'encoders_{modality}']['backbone'] = jax.tree.map(
        jnp.asarray, family_of(encoder).load_params('')
      )
    part = params[f'encoders_{modality}']
    if options.get('pretrained'):
      weights = family_of(encoder).load_params(options.pretrained)
      params[f'encoders_{modality}'] = _loaded(
        weights, part, f'model.encoders.{modality}', options.pretrained
      )
    if options.get('vectors'):
      tokens = part['tokens'].get('vectors', part['tokens'])
      tokens['embedding'] = jnp.asarray(
        _word_vectors(experiment, modality, options, tokens['embedding'].shape[1])
      )
  for modality, statistics in _statistics(experiment).items():
    params[f'encoders_{modality}']['normalization'] = statistics
  if name := config.model.head.get('pooler'):
    params['head']['hidden'] = _loaded(
      load_pooler(name), params['head'].get('hidden', {}), 'model.head.hidden', name
    )
  if name := config.model.head.get('pretrained'):
    weights = family_of(HEADS[config.model.head.name]).load_params(name)
    params['head'] = _loaded(weights, params['head'], 'model.head', name)
  # A run that goes on needs the other no more.
  fresh = not any((experiment.folder / 'checkpoints').glob('[0-9]*'))
  if config.train.start_from and fresh:
    return _of_run(experiment, params, config.train.start_from)
  return params


def _of_run(experiment, params: dict, run: str) -> dict:
  """`params` with those of another run that train.start_rules take."""
  other = type(experiment).of_run(run, {})
  rules = experiment.config.train.start_rules
  tokenizer = experiment.data.tokenizer
  theirs, step = other.trained_params()
  taken = renamed(params, rules, 'train.start_rules')
  words = []
  for name in sorted(taken):
    if tokenizer and tokenizer.vocab_size in flat(params)[name].shape:
      words.append(name)
  if words and getattr(other.data.tokenizer, 'fingerprint', '') != tokenizer.fingerprint:
    raise UserError(
      f"train.start_from={run!r}: {words[0]} has a row a token, and the tokens there are others. Set tokenizer.kind to 'run' and "
      f'tokenizer.source to {run!r}, or leave it out in train.start_rules.'
    )
  print(f'{len(taken)} of {len(flat(params))} arrays of parameters start from {run}, step {step}.')
  return graft(
    params, jax.tree.map(jnp.asarray, other.weights(theirs)), rules, 'train.start_rules', run
  )


def _word_vectors(experiment, modality: str, options, width: int) -> np.ndarray:
  """The table [V, W] of an encoder that starts from word vectors."""
  vectors = read_vectors(options.vectors)
  key = f'model.encoders.{modality}'
  config = experiment.config
  if vectors.width != width:
    raise UserError(
      f'{key}.vector_dim={width}: the vectors of {options.vectors} have {vectors.width} values.'
    )
  if config.tokenizer.kind != 'word':
    raise UserError(
      f"tokenizer.kind={config.tokenizer.kind!r}: {key}.vectors are of whole words, choose 'word'."
    )
  return embedding_table(vectors, experiment.data.tokenizer.pieces, config.seed)


def _statistics(experiment) -> dict[str, dict]:
  """{modality whose encoder normalises: `mean` and `deviation` [C] of its features in the training split}"""
  names = []
  for modality, options in experiment.config.model.encoders.items():
    if options.get('normalize'):
      names.append(modality)
  if not names:
    return {}
  (split,), config = experiment.data.splits('train'), experiment.config
  source = experiment.data.source(split)
  table = experiment.task.table(source, *experiment.data.texts, True).with_rows(
    experiment.data.rows(split)
  )
  fits = np.random.default_rng(0).permutation(
    np.flatnonzero(table.lengths <= config.data.max_length)
  )
  table = table.select(np.sort(fits[:NORMALIZED_BY]))
  # Every process computes the statistics of all examples.
  loader = experiment.data.loader_of(source, table, config.evaluate.batch_size, all_parts=True)
  plan = batching.eval_plan(table.lengths, config.evaluate.batch_size, experiment.data.buckets)
  with stream(plan, loader, 0, len(plan), config.data.workers) as batches:
    return moments(batches, names)


def moments(batches, names: list[str]) -> dict[str, dict]:
  """{name: {'mean', 'deviation'}}, each [C] float32, of the rows of `batches` [B, S, C] that are there; 1 stands for a deviation of 0."""
  sums = {name: 0.0 for name in names}
  for batch in batches:
    for name in names:
      rows = batch[name][batch[f'{name}_mask'] & (batch['weight'] > 0)[:, None]].astype(np.float64)
      sums[name] += np.stack(
        [
          np.ones(rows.shape[1]) * len(rows),
          rows.sum(0),
          (rows**2).sum(0),
        ]
      )
  found = {}
  for name, (count, first, second) in sums.items():
    mean = first / np.maximum(count, 1)
    square = second / np.maximum(count, 1)
    variance = square - mean**2
    # What is left of a constant by rounding is no deviation.
    deviation = np.sqrt(np.where(variance > 1e-10 * square, variance, 1))
    found[name] = {
      'mean': jnp.asarray(mean, jnp.float32),
      'deviation': jnp.asarray(deviation, jnp.float32),
    }
  return found


def _loaded(weights: dict, part: dict, key: str, name: str) -> dict:
  """The parameters of a part with the pretrained `weights` in it; UserError where their shapes differ."""

  def shapes(tree):
    result = {}
    for name, leaf in flat(tree).items():
      if not name.startswith('projection/'):
        result[name] = leaf.shape
    return result

  if bad := differences(shapes(weights), shapes(part)):
    raise UserError('\n  '.join([f'{key} has not the sizes of {name} (there -> here):', *bad[:10]]))
  return part | jax.tree.map(jnp.asarray, weights)
