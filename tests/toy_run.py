"""A small training run that tests interrupt and damage.

Its model is linear in the pixels of tiny pictures, which the real input pipeline loads.
"""

import io
import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from mmlm.data import batching
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.data.transforms.ops import parse_ops
from mmlm.evaluation.metrics import higher_is_better
from mmlm.parallel import Parallel
from mmlm.training import loop
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.step import StepOptions, TrainState, initial_state

COUNT = 20
BATCH = 8
TOTAL = 10
TIMES = ('seconds', 'examples_per_second')


def png(value):
  file = io.BytesIO()
  Image.fromarray(np.random.default_rng(value).integers(0, 256, (4, 4), np.uint8)).save(file, 'PNG')
  return file.getvalue()


def toy_loss(noise):
  """Returns the squared error of the model; with `noise`, half of the pixels are dropped."""

  def loss(params, batch, rng):
    x = batch['image'].reshape(len(batch['weight']), -1)
    if noise:
      x = x * jax.random.bernoulli(rng, 0.5, x.shape)
    error = x @ params['w'] + params['b'] - batch['target'].sum(1) / 10
    return (error**2 * batch['weight']).sum(), batch['weight'].sum()

  return loss


def one_loss(params):
  return {'loss': float(jnp.square(params['w'] - 1).sum())}


class Toy:
  """The training run in `folder`; every part of it can be replaced."""

  def __init__(
    self,
    folder,
    strategy='jit',
    noise=True,
    workers=0,
    validate=one_loss,
    at=lambda number: None,
    bad=None,
    monitor='loss',
    keep=(2, 1),
    patience=0,
    ema=0.9,
    total=TOTAL,
  ):
    self.folder = pathlib.Path(folder)
    self.parallel = Parallel(strategy)
    self.source = [{'id': f'e{i}', 'image': png(i), 'targets': ('',)} for i in range(COUNT)]
    table = Table(
      [e['id'] for e in self.source],
      np.arange(COUNT),
      [[i % 7] for i in range(COUNT)],
      [[]] * COUNT,
    )
    ops = parse_ops(('decode("L")', 'random_crop(4, 1)', 'normalize("half")'))
    self.loader = Loader(self.source, table, ('image',), ops, BATCH)
    self.plan = batching.TrainPlan(table.lengths, BATCH, (2,), seed=1)
    self.monitor = monitor
    self.keep = keep
    self.workers = workers
    self.at = at
    self.bad = bad
    options = StepOptions(optax.adam(0.1), toy_loss(noise), ema_decay=ema)
    self.state = initial_state({'w': jnp.zeros(16), 'b': jnp.zeros(())}, options, seed=3)
    self.parts = loop.Parts(
      options=options,
      learning_rate=lambda step: 0.1,
      stream=self.stream,
      validate=validate,
      ids=lambda number: [table.ids[i] for i in self.plan[number].indices],
      schedule=loop.Schedule(total, 2, 3, patience),
    )

  def stream(self, start, stop):
    return _Watched(
      stream(self.plan, self.loader, start, stop, self.workers), start, self.at, self.bad
    )

  def checkpoints(self, writing=True):
    return Checkpoints(
      self.folder / 'checkpoints',
      self.monitor,
      *self.keep,
      writing=writing,
      higher_is_better=higher_is_better(self.monitor),
    )

  def train(self):
    self.folder.mkdir(parents=True, exist_ok=True)
    loop.train(self.parts, self.parallel, self.state, self.checkpoints(), self.folder)
    return self

  def restored(self):
    """Returns the newest state, as arrays on the host, and what was saved beside it."""
    checkpoints = self.checkpoints(writing=False)
    state, meta = checkpoints.restore(jax.eval_shape(lambda: self.state))
    return jax.device_get(state), meta

  def best(self, which='best', average=1):
    params, step = self.checkpoints(writing=False).params(self.state.params, which, average)
    return jax.device_get(params), step

  def steps(self):
    return self.checkpoints(writing=False).steps()

  def metrics(self):
    rows = [json.loads(line) for line in (self.folder / 'metrics.jsonl').read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


class _Watched:
  """A stream that calls `at(number)` before each batch.

  The pictures of batch `bad` are infinite.
  """

  def __init__(self, inner, number, at, bad):
    self.inner = inner
    self.number = number
    self.at = at
    self.bad = bad

  def __enter__(self):
    return self._batches(self.inner.__enter__())

  def _batches(self, batches):
    for number, batch in enumerate(batches, self.number):
      self.at(number)
      if number == self.bad:
        batch = batch | {'image': np.full_like(batch['image'], np.inf)}
      yield batch

  def __exit__(self, *error):
    return self.inner.__exit__(*error)


def killed_at(number, how=signal.SIGTERM):
  return lambda n: os.kill(os.getpid(), how) if n == number else None


def equal(left, right):
  return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def close(left, right, tolerance):
  return jax.tree.all(
    jax.tree.map(lambda a, b: np.allclose(a, b, rtol=tolerance, atol=tolerance), left, right)
  )


def tree(folder):
  result = {}
  for p in sorted(folder.rglob('*')):
    if p.is_file():
      result[str(p.relative_to(folder))] = p.read_bytes()
  return result


def fill(folder, scores, **options):
  """Saves checkpoints with these scores; the parameters are the number of the step."""
  options['higher_is_better'] = higher_is_better(options.get('monitor', 'loss'))
  checkpoints = Checkpoints(folder, **options)
  for step, score in enumerate(scores, 1):
    params = {'w': jnp.full(3, float(step))}
    checkpoints.save(
      TrainState(jnp.array(step), params, (), (), jnp.zeros(2, jnp.uint32)),
      {},
      {options.get('monitor', 'loss'): score},
    )
  checkpoints.close()
  return Checkpoints(folder, **options, writing=False)


def value(checkpoints, *args):
  params, step = checkpoints.params({'w': jnp.zeros(3)}, *args)
  return float(params['w'][0]), step
