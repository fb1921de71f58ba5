"""What parameters start from: random numbers, pretrained weights, word vectors, statistics of
features, or another run.

Axes: B batch, S frames, C values of a frame, V vocabulary, W width of word vectors.
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmlm.data import batching
from mmlm.data.pipeline import Table, stream
from mmlm.experiment.data import ExperimentData
from mmlm.experiment.run import OpenRun
from mmlm.models.encoders import ENCODERS
from mmlm.models.heads import HEADS
from mmlm.models.multimodal import MultimodalModel
from mmlm.pretrained import family_of
from mmlm.pretrained.bert import load_pooler
from mmlm.pretrained.formats.vector_files import embedding_table, read_vectors
from mmlm.training.lora import add_lora
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import differences, flat, graft, renamed

# Examples that statistics of features are computed from: more change a mean little, and every sound
# has to be read for them.
STATISTICS_EXAMPLES = 2000
# A variance below this share of the mean square is the rounding of a constant.
SMALLEST_VARIANCE = 1e-10

Params = dict


def random_params(model: MultimodalModel, batch: dict, length: int, config: ConfigDict) -> Params:
  """Returns random parameters for the shapes of a batch, drawn from config.seed.

  Args:
    length: tokens that the head reads.
  """
  example = {key: jnp.asarray(value[:1]) for key, value in batch.items()}
  tokens = jnp.zeros((1, length), jnp.int32)
  key = jax.random.key(config.seed)
  params = jax.jit(model.init)({'params': key}, example, tokens)['params']
  return add_lora(params, config.optimizer.lora_rules, key)


def replace_initial(params: Params, data: ExperimentData, open_run: OpenRun) -> Params:
  """Returns random parameters with those in place that the config names another start for.

  Args:
    params: random parameters.
    open_run: (run folder, overrides of its config) -> its experiment.

  Raises:
    UserError: sizes or tokens differ from those of the model.
  """
  config = data.config
  params = dict(params)
  for modality, options in config.model.encoders.items():
    name = f'encoders_{modality}'
    params[name] = _initial_encoder(params[name], modality, options, data)
  for modality, statistics in _feature_statistics(data).items():
    name = f'encoders_{modality}'
    params[name] = params[name] | {'normalization': statistics}
  if 'head' in params:
    params['head'] = _initial_head(params['head'], config.model.head)
  # A resumed run does not need the other run any more.
  if config.train.start_from and not _has_checkpoints(data.folder):
    return _graft_run(params, data, open_run)
  return params


def _has_checkpoints(folder: pathlib.Path) -> bool:
  return any((folder / 'checkpoints').glob('[0-9]*'))


def _initial_encoder(
  params: Params, modality: str, options: ConfigDict, data: ExperimentData
) -> Params:
  encoder = ENCODERS[options.name]
  key = f'model.encoders.{modality}'
  if encoder.backbone and not options.frozen:
    backbone = family_of(encoder).load_params('')
    params = params | {'backbone': jax.tree.map(jnp.asarray, backbone)}
  if options.get('pretrained'):
    weights = family_of(encoder).load_params(options.pretrained)
    params = _replace_weights(params, weights, key, options.pretrained)
  if options.get('vectors'):
    params = _replace_embeddings(params, key, options.vectors, data)
  return params


def _initial_head(params: Params, options: ConfigDict) -> Params:
  pooler = options.get('pooler')
  if pooler:
    hidden = params.get('hidden', {})
    hidden = _replace_weights(hidden, load_pooler(pooler), 'model.head.hidden', pooler)
    params = params | {'hidden': hidden}
  pretrained = options.get('pretrained')
  if pretrained:
    weights = family_of(HEADS[options.name]).load_params(pretrained)
    params = _replace_weights(params, weights, 'model.head', pretrained)
  return params


def _replace_weights(params: Params, weights: dict, key: str, name: str) -> Params:
  """Returns the parameters of a part with pretrained weights in place.

  Raises:
    UserError: their shapes differ.
  """
  pretrained_shapes = _shapes(weights)
  mismatches = differences(pretrained_shapes, _shapes(params))
  if mismatches:
    title = f'{key}: shape mismatch with {name} (checkpoint -> model):'
    raise UserError('\n  '.join([title, *mismatches[:10]]))
  return params | jax.tree.map(jnp.asarray, weights)


def _shapes(params: Params) -> dict[str, tuple]:
  """Returns {name: shape}; projections to the model's width are never pretrained."""
  shapes = {}
  for name, leaf in flat(params).items():
    if not name.startswith('projection/'):
      shapes[name] = leaf.shape
  return shapes


def _replace_embeddings(params: Params, key: str, name: str, data: ExperimentData) -> Params:
  """Returns the parameters of a text encoder with word vectors as its embedding table."""
  tokens = params['tokens']
  is_projected = 'vectors' in tokens
  table = tokens['vectors'] if is_projected else tokens
  width = table['embedding'].shape[1]
  vectors = _word_vectors(data, key, name, width)
  table = table | {'embedding': jnp.asarray(vectors)}
  tokens = tokens | {'vectors': table} if is_projected else table
  return params | {'tokens': tokens}


def _word_vectors(data: ExperimentData, key: str, name: str, width: int) -> np.ndarray:
  """Returns the embedding table [V, W] of the vocabulary, from a file of word vectors."""
  vectors = read_vectors(name)
  config = data.config
  if vectors.width != width:
    raise UserError(f'{key}.vector_dim={width}: the vectors of {name} have {vectors.width} values.')
  if config.tokenizer.kind != 'word':
    raise UserError(
      f"tokenizer.kind={config.tokenizer.kind!r}: {key}.vectors are of whole words, choose 'word'."
    )
  assert data.tokenizer is not None
  return embedding_table(vectors, data.tokenizer.pieces, config.seed)


def _graft_run(params: Params, data: ExperimentData, open_run: OpenRun) -> Params:
  """Returns parameters with those of the run train.start_from that train.start_rules name."""
  folder = data.config.train.start_from
  rules = data.config.train.start_rules
  run = open_run(folder, {})
  run_params, step = run.trained_params()
  names = renamed(params, rules, 'train.start_rules')
  _check_vocabulary(params, sorted(names), data, run, folder)
  count = len(flat(params))
  print(f'{len(names)} of {count} arrays of parameters start from {folder}, step {step}.')
  weights = jax.tree.map(jnp.asarray, run.weights(run_params))
  return graft(params, weights, rules, 'train.start_rules', folder)


def _check_vocabulary(
  params: Params, names: list[str], data: ExperimentData, run: Any, folder: str
) -> None:
  """Raises UserError where embeddings of another vocabulary would be copied."""
  tokenizer = data.tokenizer
  if tokenizer is None:
    return
  leaves = flat(params)
  embeddings = [name for name in names if tokenizer.vocab_size in leaves[name].shape]
  run_tokenizer = run.data.tokenizer
  is_same = run_tokenizer is not None and run_tokenizer.fingerprint == tokenizer.fingerprint
  if embeddings and not is_same:
    raise UserError(
      f'train.start_from={folder!r}: {embeddings[0]} has an embedding for each token, and the '
      "vocabulary of that run differs. Set tokenizer.kind to 'run' and tokenizer.source to "
      f'{folder!r}, or exclude the parameter in train.start_rules.'
    )


# Statistics of features


def _feature_statistics(data: ExperimentData) -> dict[str, dict]:
  """Returns {modality whose encoder normalizes: its `mean` and `deviation` [C] in training}."""
  modalities = []
  for modality, options in data.config.model.encoders.items():
    if options.get('normalize'):
      modalities.append(modality)
  if not modalities:
    return {}
  size = data.config.evaluate.batch_size
  (split,) = data.splits('train')
  source = data.source(split)
  table = data.task.table(source, *data.texts, True)
  table = table.with_rows(data.rows(split))
  table = _sample(table, data.config.data.max_length)
  # Every process computes the statistics of all examples.
  loader = data.loader_of(source, table, size, all_parts=True)
  plan = batching.eval_plan(table.lengths, size, data.buckets)
  with stream(plan, loader, 0, len(plan), data.config.data.workers) as batches:
    return moments(batches, modalities)


def _sample(table: Table, max_length: int) -> Table:
  """Returns a random sample of the examples that are not too long."""
  fits = np.flatnonzero(table.lengths <= max_length)
  order = np.random.default_rng(0).permutation(fits)
  return table.select(np.sort(order[:STATISTICS_EXAMPLES]))


def moments(batches: Iterable[dict], modalities: list[str]) -> dict[str, dict]:
  """Computes mean and standard deviation of the frames of batches, without padding.

  Args:
    batches: with {modality: [B, S, C]}, their masks [B, S] and weights [B].

  Returns:
    {modality: {'mean': [C], 'deviation': [C]}} in float32; a deviation of 0 is replaced by 1.
  """
  sums: dict[str, Any] = dict.fromkeys(modalities, 0.0)
  for batch in batches:
    for modality in modalities:
      mask = batch[f'{modality}_mask'] & (batch['weight'] > 0)[:, None]
      frames = batch[modality][mask]  # [frames that are no padding, C]
      frames = frames.astype(np.float64)
      count = np.ones(frames.shape[1]) * len(frames)
      squares = frames**2
      sums[modality] += np.stack([count, frames.sum(0), squares.sum(0)])
  statistics = {}
  for modality, (count, total, total_square) in sums.items():
    mean = total / np.maximum(count, 1)
    mean_square = total_square / np.maximum(count, 1)
    variance = mean_square - mean**2
    varies = variance > SMALLEST_VARIANCE * mean_square
    deviation = np.sqrt(np.where(varies, variance, 1))
    statistics[modality] = {
      'mean': jnp.asarray(mean, jnp.float32),
      'deviation': jnp.asarray(deviation, jnp.float32),
    }
  return statistics
