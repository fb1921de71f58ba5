"""Measures what checkpoints cost.

That is what one adds to the steps behind it, while which it is written, and how long a training
waits for one.

  python experiments/benchmarks/checkpoints.py [--rounds 5] [--only step,blocking] [--folder DIR]

  step       steps a second of the translation model in the 10 steps behind a checkpoint, against 10
             without, in turns; what a checkpoint costs is their difference, and the ratio that of
             100 steps to 100 steps and a checkpoint
  blocking   a state of 50M parameters (600 MB with Adam's moments): seconds until training goes on,
             until the step lies on the disk with its checksums, and until it is read back and
             verified

--folder is where checkpoints are written: on the disk that is asked about.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax
from common import ROOT, Options, Trainer, config_of, in_turns, main, row, summary
from translation import MULTI30K, SETTINGS, random_table

from mmlm.data.batching import TrainPlan
from mmlm.data.pipeline import Loader
from mmlm.models.multimodal import build_model
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.step import StepOptions, initial_state
from mmlm.utils.pytree import count

VOCABULARY = 10000
STEPS_BEHIND = 10
EVERY = 100
# 12 matrices of 4 WIDTH^2 values: 50M parameters
LAYERS = 12
WIDTH = 1024
FOLDER = {
  '--folder': dict(
    type=pathlib.Path, default=ROOT, help='where checkpoints are written for a while'
  )
}


def step(options: Options) -> list[dict]:
  """Times blocks of a few steps, behind a checkpoint or not, in turns.

  The writing ends within them.
  """
  config = config_of(f'{MULTI30K},smoke' if options.smoke else MULTI30K, SETTINGS)
  few, vocabulary = (2, 100) if options.smoke else (STEPS_BEHIND, VOCABULARY)
  table = random_table(config.data.max_length, vocabulary, 29000 if not options.smoke else 100)
  plan = TrainPlan(
    table.lengths,
    config.train.batch_size,
    config.data.buckets,
    config.seed,
    config.train.batch_tokens,
  )
  loader = Loader([], table, ('text',), [], config.train.batch_size)
  batches = [loader(i, plan[i]) for i in range(few)]
  trainer = Trainer(
    config,
    build_model(config.model, vocabulary, config.data.max_length),
    batches[0],
    plan.steps_per_epoch,
  )
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    checkpoints = Checkpoints(folder, higher_is_better=False)

    def behind_one():
      checkpoints.save(trainer.state, {}, {'loss': 1.0})
      trainer(batches)
      checkpoints.wait()  # for what the steps did not cover

    sides = {'behind one': (behind_one, few), 'without': (lambda: trainer(batches), few)}
    rates = in_turns(sides, options.rounds)
    checkpoints.close()
  # Of the two blocks of each round, which stand beside each other in time.
  costs = [few / slower - few / faster for slower, faster in zip(*rates.values())]
  hundred = EVERY * statistics.median(1 / rate for rate in rates['without'])
  found = row(
    'step',
    f'{count(trainer.state) / 1e6:.1f}M values',
    'steps/s',
    rates,
    'ratio of 100 steps 0.98',
    steps=few,
  )
  cost = {
    'seconds_of_a_checkpoint': summary(costs),
    'ratio_of_100_steps': hundred / (hundred + statistics.median(costs)),
  }
  print(
    f'a checkpoint costs {statistics.median(costs):.2f} s [{min(costs):.2f}, {max(costs):.2f}], '
    f'100 steps {hundred:.1f} s: ratio {cost["ratio_of_100_steps"]:.3f}',
    flush=True,
  )
  return [found | cost]


def blocking(options: Options) -> list[dict]:
  width = 64 if options.smoke else WIDTH
  params = {}
  for i in range(LAYERS):
    params[f'layer_{i}'] = {'kernel': jnp.full((width, 4 * width), 1.0 + i)}

  def no_loss(params: Any, batch: dict, rng: jax.Array):
    raise NotImplementedError('this benchmark takes no step')

  state = initial_state(params, StepOptions(optax.adam(1e-3), no_loss), 0)
  change = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  seconds = {'blocking': [], 'written': [], 'restored': []}
  abstract = jax.eval_shape(lambda: state)
  with tempfile.TemporaryDirectory(dir=options.folder) as folder:
    checkpoints = Checkpoints(folder, keep_latest=1, higher_is_better=False)
    for _ in range(options.rounds + 1):
      state = jax.block_until_ready(change(state))
      began = time.perf_counter()
      checkpoints.save(state, {}, {'loss': 1.0})
      seconds['blocking'].append(time.perf_counter() - began)
      checkpoints.wait()
      seconds['written'].append(time.perf_counter() - began)
      began = time.perf_counter()
      checkpoints.restore(abstract)
      seconds['restored'].append(time.perf_counter() - began)
    checkpoints.close()
  parameters = count(params)
  rows = []
  for name, values in seconds.items():
    measured = summary(values[1:])
    print(
      f'{parameters / 1e6:.1f}M parameters, {name:<9} {measured["median"]:.3f} s '
      f'[{measured["low"]:.3f}, {measured["high"]:.3f}]',
      flush=True,
    )
    about = {'benchmark': 'blocking', 'parameters': parameters, 'unit': 's', 'what': name}
    rows.append(about | measured)
  return rows


if __name__ == '__main__':
  main(__doc__, {'step': step, 'blocking': blocking}, 'checkpoints.json', FOLDER)
