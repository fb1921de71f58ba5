"""Common code of the benchmarks.

mmlm's side of a comparison, measuring in turns, lines of results, the command line.
"""

import argparse
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from mmlm.config import load_config, override, to_steps  # noqa: E402
from mmlm.decoding.search_options import SearchOptions  # noqa: E402
from mmlm.experiment.environment import environment  # noqa: E402
from mmlm.parallel import Parallel, run_concurrently  # noqa: E402
from mmlm.tasks import TASKS  # noqa: E402
from mmlm.tasks.text_generation import TextGeneration  # noqa: E402
from mmlm.training.optimizers import make_optimizer, make_schedule  # noqa: E402
from mmlm.training.step import StepOptions, initial_state, train_step  # noqa: E402
from mmlm.utils.errors import UserError  # noqa: E402
from mmlm.utils.pytree import count  # noqa: E402
from mmlm.utils.run_dir import write_json  # noqa: E402

STEPS = 20  # of decoding

Options = argparse.Namespace  # of the command line


# Ours


def config_of(spec: str | pathlib.Path, settings: dict) -> ConfigDict:
  """Returns a config with overrides."""
  return override(load_config(str(spec)), settings)


def initial_params(model: Any, batch: dict) -> dict:
  """Returns random parameters."""
  first = jax.tree.map(lambda values: jnp.asarray(values[:1]), batch)
  key = jax.random.key(0)
  return jax.jit(model.init)({'params': key}, first, first['target'])['params']


class Trainer:
  """The train step as `mmlm train` compiles it; `params` to start from, or random ones."""

  def __init__(
    self, config: Any, model: Any, batch: dict, steps_per_epoch: int, params: Any = None
  ):
    size = config.train.batch_size
    smoothing = config.train.label_smoothing
    task = TASKS[config.task]
    if params is None:
      params = initial_params(model, batch)
    total = to_steps(config.train.duration, 'train.duration', size, steps_per_epoch)
    rate = make_schedule(config.optimizer, total, size, steps_per_epoch)

    def loss(params: Any, batch: dict, rng: jax.Array):
      return task.loss(model, params, batch, smoothing, rng)

    optimizer = make_optimizer(config.optimizer, rate, params)
    options = StepOptions(optimizer, loss, config.train.accumulate, config.train.ema_decay)
    parallel = Parallel('jit')
    self.step = parallel.step(lambda state, batch: train_step(state, batch, options))
    self.state = parallel.replicate(initial_state(params, options, config.seed))

  def __call__(self, batches: list):
    for batch in batches:
      self.state, metrics = self.step(self.state, batch)
    if not np.isfinite(metrics['loss']):
      raise SystemExit('the loss is not finite')


class Generator:
  """The decoding of `mmlm evaluate`, from inputs to tokens, forced to STEPS steps."""

  def __init__(self, config: Any, model: Any, batch: dict, method: str):
    self.params = initial_params(model, batch)
    task = TASKS[config.task]
    assert isinstance(task, TextGeneration)
    rng = jax.random.key(0)
    options = SearchOptions(
      method,
      max_length=STEPS,
      min_length=STEPS,
      beam_size=config.decoding.beam_size,
      length_penalty=config.decoding.length_penalty,
    )
    self.generate = Parallel('jit').per_example(
      lambda params, batch: task.generate(model, params, batch, options, rng)._asdict()
    )

  def __call__(self, batches: list) -> list:
    """Returns tokens [n, STEPS] of the examples of each batch."""

    def generate(batch: dict):
      return self.generate(self.params, batch)

    tokens = []
    for batch, result in zip(batches, run_concurrently(generate, batches)):
      real = batch['weight'] > 0
      if not (result['lengths'][real] == STEPS).all():
        raise SystemExit('a hypothesis does not have all steps')
      tokens.append(result['tokens'][real, 0])
    return tokens


def examples(batches: list) -> int:
  """Returns the number of examples, padding aside."""
  return sum(int(batch['weight'].sum()) for batch in batches)


def check_parameters(ours: Trainer, peer: Any):
  """Stops unless both sides train as many parameters."""
  of_ours = count(ours.state.params)
  of_peer = sum(p.numel() for p in peer.parameters)
  if of_ours != of_peer:
    raise SystemExit(f'{of_ours} parameters against {of_peer} of the peer')


# Measuring


def in_turns(sides: dict, rounds: int, warm: bool = True) -> dict:
  """Returns {name: amount of work a second in each round} of {name: (function, its amount)}.

  A first call, not counted, compiles (`warm`).
  """
  for run, _ in sides.values() if warm else ():
    run()
  rates = {name: [] for name in sides}
  for number in range(rounds):
    for name in list(sides)[:: -1 if number % 2 else 1]:
      run, amount = sides[name]
      time.sleep(0.3)  # idle OpenMP threads of the side before may spin for 0.2 s
      began = time.perf_counter()
      run()
      rates[name].append(amount / (time.perf_counter() - began))
  return rates


def summary(values: list) -> dict:
  """Returns the median and the range of measurements."""
  return {
    'median': statistics.median(values),
    'low': min(values),
    'high': max(values),
    'all': values,
  }


def row(benchmark: str, size: str, unit: str, rates: dict, goal: str, **more) -> dict:
  """Prints and returns a line of the results.

  The ratios are those of the first side's median to each other's. `more`: further values.
  """
  sides = {}
  ratios = {}
  text = f'{benchmark:<9} {size:<17}'
  first = None
  for name, values in rates.items():
    side = sides[name] = summary(values)
    text += f' {name} {side["median"]:.4g} [{side["low"]:.4g}, {side["high"]:.4g}]  '
    if first is None:
      first = side['median']
    else:
      ratios[name] = first / side['median']
  text += unit
  if ratios:
    text += f'   ratio {", ".join(f"{ratio:.2f}" for ratio in ratios.values())}'
  print(f'{text}   (goal: {goal})', flush=True)
  return {
    'benchmark': benchmark,
    'size': size,
    'unit': unit,
    'sides': sides,
    'ratios': ratios,
    'goal': goal,
    **more,
  }


# Command line


def with_folder(benchmark: Callable[..., list[dict]]) -> Callable[[Options], list[dict]]:
  """Returns options -> rows, for a benchmark that needs a folder for what it writes."""

  def run(options: Options) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
      try:
        return benchmark(options, pathlib.Path(folder))
      except UserError as error:
        raise SystemExit(str(error)) from None

  return run


def machine() -> dict:
  """Returns the environment of the run, with the processor's name and the versions of the peers."""
  described = environment()
  described['processor'] = None
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    model = re.search(r'^model name\s*:(.*)$', cpuinfo.read_text(), re.MULTILINE)
    described['processor'] = model and model[1].strip()
  for name in ('torch', 'transformers', 'ctranslate2'):
    if name in sys.modules:
      described['versions'][name] = sys.modules[name].__version__
  return described


def main(
  description: str | None,
  benchmarks: dict,
  output: str,
  flags: dict | None = None,
  default: tuple = (),
):
  """Runs the benchmarks {name: options -> rows}, all (or `default`) or those of --only.

  Args:
    output: the file beside this one.
    flags: further flags.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=5, help='measurements of each side (default 5)')
  parser.add_argument(
    '--only',
    default=','.join(default or benchmarks),
    help=f'some of {", ".join(benchmarks)}, with commas',
  )
  parser.add_argument(
    '--data_dir', type=pathlib.Path, default='data', help='prepared data sets (default data)'
  )
  parser.add_argument(
    '--output',
    type=pathlib.Path,
    default=pathlib.Path(__file__).with_name(output),
    help='JSON, written after each benchmark',
  )
  parser.add_argument('--smoke', action='store_true', help='tiny sizes: does it run?')
  for name, settings in (flags or {}).items():
    parser.add_argument(name, **settings)
  options = parser.parse_args()
  options.data_dir = options.data_dir.absolute()
  names = options.only.split(',')
  if unknown := set(names) - set(benchmarks):
    parser.error(f'--only: {", ".join(sorted(unknown))} is none of {", ".join(benchmarks)}')
  rows = []
  for name in names:
    rows += benchmarks[name](options)
    settings = {'rounds': options.rounds, 'smoke': options.smoke}
    write_json(options.output, {'environment': machine(), **settings, 'rows': rows})
  print(f'Written: {options.output}')
