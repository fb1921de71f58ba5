"""On a GPU: half precision through cuDNN's attention, and numbers compared with those of the CPU.

JAX_PLATFORMS=cuda,cpu ./launch.sh test tests/parallel/test_gpu.py
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from parity_of_devices import SAME

from mmlm.models.attention import dot_product_attention
from mmlm.utils.run_dir import read_jsonl

pytestmark = pytest.mark.skipif(
  jax.default_backend() != 'gpu',
  reason='no GPU, or JAX_PLATFORMS does not name it (JAX_PLATFORMS=cuda,cpu)',
)

HEADS = 4
SIZE = 64


def mask_named(name: str, rng, batch: int, queries: int, keys: int):
  """Returns the mask of a case; None for 'none'."""
  if name == 'of keys':
    return np.arange(keys) < rng.integers(1, keys + 1, (batch, 1))
  if name == 'of pairs':
    return rng.random((batch, queries, keys)) < 0.7
  if name == 'all hidden':  # of the first example, as of one that fills a batch
    return np.arange(batch)[:, None] + np.zeros(keys, int) > 0
  return None


def arrays(queries: int, keys: int, groups: int, mask: str, batch=3):
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  inputs = (
    draw(batch, queries, HEADS, SIZE),
    draw(batch, groups, SIZE, keys),
    draw(batch, groups, keys, SIZE),
  )
  return inputs, mask_named(mask, rng, batch, queries, keys), draw(batch, queries, HEADS, SIZE)


def attended(inputs, mask, causal, upstream, dtype):
  """Returns the attention and the gradients of its product with `upstream`.

  Queries that may attend to no key count as zero.
  """
  inputs = [jnp.asarray(x, dtype) for x in inputs]
  queries = upstream.shape[1]
  keys = inputs[1].shape[-1]
  if causal:
    seen = np.tril(np.ones((queries, keys), bool))
  else:
    seen = np.ones((queries, keys), bool)
  if mask is not None:
    seen = seen & (mask if mask.ndim == 3 else mask[:, None])
  seen = seen.any(-1).reshape(-1, queries, 1, 1)

  def total(*inputs):
    out = dot_product_attention(*inputs, None if mask is None else jnp.asarray(mask), causal) * seen
    return jnp.sum(out.astype(jnp.float32) * upstream), out

  (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
  return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize('mask', ['none', 'of keys', 'of pairs', 'all hidden'])
@pytest.mark.parametrize('causal', [False, True], ids=['', 'causal'])
@pytest.mark.parametrize(
  'queries, keys, groups',
  [(64, 64, 4), (64, 64, 2), (1, 40, 4), (37, 49, 4), (30, 49, 1), (128, 256, 4)],
)
def test_half_precision_attends_as_single_does(queries, keys, groups, causal, mask):
  if causal and queries != keys:
    pytest.skip('causal attention is of a sequence to itself')
  inputs, mask, upstream = arrays(queries, keys, groups, mask)
  with jax.default_matmul_precision('highest'):
    exact = attended(inputs, mask, causal, upstream, 'float32')
  for found, expected in zip(
    attended(inputs, mask, causal, upstream, 'bfloat16'), exact, strict=True
  ):
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 0.03 * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize(
  'mask, queries, fused',
  [
    ('none', 64, True),
    ('of keys', 64, True),
    ('of pairs', 64, True),
    ('none', 37, False),
    ('of keys', 37, False),
  ],
)
def test_the_fused_kernel_is_taken(mask, queries, fused):
  inputs, mask, _ = arrays(queries, 64, HEADS, mask)
  attend = jax.jit(lambda *inputs: dot_product_attention(*inputs, mask))

  def compiled(dtype):
    return attend.lower(*(jnp.asarray(x, dtype) for x in inputs)).compile().as_text()

  assert ('cudnn$fmha' in compiled('bfloat16')) == fused and 'cudnn$fmha' not in compiled('float32')


SPECS = {
  'translation': 'configs/translation/numerals.py',
  'captioning': 'configs/captioning/unicode_pictures.py',
  'sentiment': 'configs/sentiment/generated.py',
  'speech': 'configs/speech/keypad_tones.py',
}


def run(spec: str, folder, platform: str, *flags) -> tuple[list, list]:
  """Losses and answers of the smoke form, trained and evaluated in processes of their own."""
  environment = os.environ | {
    'JAX_PLATFORMS': platform,
    'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
    'XLA_FLAGS': '',
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  }
  same = [f'--config.{key}={value}' for key, value in SAME.items()]
  flags = [
    f'--config.data.dir={folder.parent / "data"}',
    '--config.train.log_every=1 steps',
    *same,
    *flags,
  ]
  train = ['train', f'{spec}:smoke', '--workdir', folder, *flags]
  for command in (train, ['evaluate', folder]):
    ended = subprocess.run(
      [sys.executable, '-m', 'mmlm', *map(str, command)],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
  losses = [row['loss'] for row in read_jsonl(folder / 'metrics.jsonl') if row['kind'] == 'train']
  answers = []
  for path in sorted((folder / 'predictions').glob('*.jsonl')):
    for row in read_jsonl(path):
      answers.append(row['hypothesis'])
  return losses, answers


@pytest.mark.timeout(600)
@pytest.mark.parametrize('task', ['translation', 'captioning', 'sentiment', 'speech'])
def test_a_gpu_trains_as_the_cpu_does(task, tmp_path):
  """Single precision with exact products; and the way of many devices on the one there is."""
  losses, answers = run(SPECS[task], tmp_path / 'cpu', 'cpu', '--config.parallel.strategy=jit')
  environment = json.loads((tmp_path / 'cpu' / 'environment.json').read_text())
  assert environment['devices']['platform'] == 'cpu' and len(losses) > 3
  for way in ('jit', 'pmap', 'mesh'):
    found, said = run(SPECS[task], tmp_path / way, 'cuda', f'--config.parallel.strategy={way}')
    assert (
      json.loads((tmp_path / way / 'environment.json').read_text())['devices']['platform'] == 'gpu'
    )
    np.testing.assert_allclose(found, losses, rtol=2e-4, atol=1e-4)
    assert np.mean([a == b for a, b in zip(said, answers, strict=True)]) > 0.9, (
      way
    )  # near ties may fall to either side


@pytest.mark.timeout(600)
@pytest.mark.parametrize('task', ['translation', 'captioning', 'speech'])
def test_half_precision_trains_as_single_does(task, tmp_path):
  losses, _ = run(SPECS[task], tmp_path / 'single', 'cuda')
  halves, _ = run(SPECS[task], tmp_path / 'half', 'cuda', '--config.model.dtype=bfloat16')
  np.testing.assert_allclose(halves, losses, rtol=0.03)
