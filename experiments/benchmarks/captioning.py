"""How fast captioning is: mmlm and its peers on the same sizes and the same batches, in turns within one run.

  python experiments/benchmarks/captioning.py [--rounds 5] [--only train,greedy,beam,startup,pipeline] [--data_dir data]

  train     training examples a second                    against PyTorch eager
  greedy    captions a second, grid to tokens, 20 steps   against `generate` of transformers
  beam      the same with 4 beams
  startup   seconds from the start of `mmlm train` to its first step, with a cold and a warm compilation cache
  pipeline  examples a second that the input pipeline gives, against those that the train step takes

Sizes: 'flickr8k' is configs/captioning/flickr8k.py; 'large' has 3 layers, D 512, 8 heads and 8,000 words over a
grid of 49 places. Everything is float32; weights are random, and the end token is forbidden until the last step,
on both sides. The peers stand in peer.py. `startup` and `pipeline` use real data, and take Flickr8k only if it lies
prepared, with its grids, in --data_dir.
"""

import argparse
import functools
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from mmlm.commands import environment  # noqa: E402
from mmlm.config import load_config, override, to_steps  # noqa: E402
from mmlm.data.batching import TrainPlan, pad  # noqa: E402
from mmlm.data.pipeline import stream  # noqa: E402
from mmlm.data.tokenizers import BOS, EOS, PAD  # noqa: E402
from mmlm.decoding.search import SearchOptions  # noqa: E402
from mmlm.experiment import Experiment  # noqa: E402
from mmlm.models.multimodal import build_model  # noqa: E402
from mmlm.parallel import Parallel, side_by_side  # noqa: E402
from mmlm.runs import write_json  # noqa: E402
from mmlm.tasks import TASKS  # noqa: E402
from mmlm.training.optimizers import make_optimizer, make_schedule  # noqa: E402
from mmlm.training.step import StepOptions, initial_state, train_step  # noqa: E402
from mmlm.trees import count  # noqa: E402

GRID = (49, 1280)  # places and channels of EfficientNet-Lite0 at 224 x 224
FLICKR8K = ROOT / 'configs/captioning/flickr8k.py'
PICTURES = ROOT / 'configs/captioning/unicode_pictures.py'
STEPS = 20  # of decoding
GOALS = {
  'train': 'ratio 1.2',
  'greedy': 'none',
  'beam': 'ratio 2, better 5',
  'startup': 'warm under 15 s',
  'pipeline': 'ratio 2',
}
# Overrides of configs/captioning/flickr8k.py, and words in the vocabulary (2,550 stand 5 times in its captions).
SIZES = {
  'flickr8k': ({}, 2550),
  'large': ({'model.dim': '512', 'model.encoders.image.layers': '0'}, 8000),
}
SMOKE_SIZES = {'smoke': ({'model.dim': '32', 'train.batch_size': '8'}, 100)}


# Ours


def initial_params(model, batch: dict):
  row = {key: jnp.asarray(value[:1]) for key, value in batch.items()}
  return jax.jit(model.init)({'params': jax.random.key(0)}, row, jnp.asarray(row['target']))['params']


class Trainer:
  """The train step as `mmlm train` compiles it."""

  def __init__(self, config, model, batch: dict, steps_per_epoch: int):
    size, smoothing, task = config.train.batch_size, config.train.label_smoothing, TASKS[config.task]
    params = initial_params(model, batch)
    total = to_steps(config.train.duration, 'train.duration', size, steps_per_epoch)
    rate = make_schedule(config.optimizer, total, size, steps_per_epoch)

    def loss(params, batch, rng):
      losses, weights = task.losses(model, params, batch, smoothing, rng)
      return losses.sum(), weights.sum()

    optimizer = make_optimizer(config.optimizer, rate, params)
    options = StepOptions(optimizer, loss, config.train.accumulate, config.train.ema_decay)
    parallel = Parallel('jit')
    self.step = parallel.step(lambda state, batch: train_step(state, batch, options))
    self.state = parallel.replicate(initial_state(params, options, config.seed))

  def __call__(self, batches: list) -> int:
    for batch in batches:
      self.state, metrics = self.step(self.state, batch)
    if not np.isfinite(metrics['loss']):
      raise SystemExit('the loss is not finite')
    return sum(int(batch['weight'].sum()) for batch in batches)


class Generator:
  """The decoding of `mmlm evaluate`, from grids to tokens."""

  def __init__(self, config, model, batch: dict, method: str):
    self.params = initial_params(model, batch)
    task, rng = TASKS[config.task], jax.random.key(0)
    options = SearchOptions(
      method, max_length=STEPS, min_length=STEPS, beam_size=config.decoding.beam_size,
      length_penalty=config.decoding.length_penalty, pad_id=PAD, bos_id=BOS, eos_id=EOS,
    )  # fmt: skip
    generate = lambda params, batch: task.generate(model, params, batch, options, rng)._asdict()
    self.generate = Parallel('jit').rows(generate)

  def __call__(self, batches: list) -> int:
    for _, found in side_by_side(functools.partial(self.generate, self.params), batches):
      if not (found['lengths'] == STEPS).all():
        raise SystemExit('a caption does not have all steps')
    return sum(int(batch['weight'].sum()) for batch in batches)


# Input


def config_of(path, settings: dict):
  return override(load_config(str(path)), settings)


def random_batches(config, vocabulary: int, number: int) -> list[dict]:
  """Random grids and words, bucketed as in training; lengths are spread like those of Flickr8k's captions."""
  rng, size = np.random.default_rng(0), config.train.batch_size
  longest = config.data.max_length
  # Log-normal fit of its 40,455 captions: 12.8 tokens on average, end token included.
  lengths = np.clip(np.round(rng.lognormal(2.507, 0.307, 30000)), 2, longest).astype(int)
  plan = TrainPlan(lengths, size, config.data.buckets, seed=0)
  batches = []
  for i in range(number):
    rows = [rng.integers(EOS + 1, vocabulary, n).tolist() for n in lengths[plan[i].indices]]
    target, mask = pad(rows, plan[i].length, size)
    grid = np.abs(rng.standard_normal((size, *GRID), np.float32)).astype(np.float16)
    batch = {'image': grid, 'image_mask': np.ones(size, bool), 'weight': np.ones(size, np.float32)}
    batches.append(batch | {'target': target, 'target_mask': mask})
  return batches


# Measuring


def in_turns(sides: dict, rounds: int) -> dict:
  """{name: () -> amount of work} -> {name: amount a second in each round}; a first call, not counted, compiles."""
  for run in sides.values():
    run()
  rates = {name: [] for name in sides}
  for number in range(rounds):
    for name in list(sides)[:: -1 if number % 2 else 1]:
      began = time.perf_counter()
      amount = sides[name]()
      rates[name].append(amount / (time.perf_counter() - began))
  return rates


def summary(values: list) -> dict:
  return {'median': statistics.median(values), 'low': min(values), 'high': max(values), 'all': values}


def row(benchmark: str, size: str, unit: str, rates: dict) -> dict:
  """A line of the results, printed; the ratio is that of the first side's median to the second's."""
  sides = {name: summary(values) for name, values in rates.items()}
  medians = [side['median'] for side in sides.values()]
  ratio = medians[0] / medians[1]
  text = '   '.join(f'{name} {s["median"]:.4g} [{s["low"]:.4g}, {s["high"]:.4g}]' for name, s in sides.items())
  print(f'{benchmark:<9} {size:<17} {text}  {unit}   ratio {ratio:.2f}   (goal: {GOALS[benchmark]})', flush=True)
  return {'benchmark': benchmark, 'size': size, 'unit': unit, 'sides': sides, 'ratio': ratio, 'goal': GOALS[benchmark]}


def against_peer(kind: str, options) -> list[dict]:
  """Training, greedy search or beam search at each size."""
  import torch
  from peer import Generator as PeerGenerator
  from peer import Size
  from peer import Trainer as PeerTrainer

  torch.set_num_threads(os.cpu_count())
  rows = []
  for name, (settings, vocabulary) in (SMOKE_SIZES if options.smoke else SIZES).items():
    config = config_of(FLICKR8K, settings)
    batches = random_batches(config, vocabulary, 2 if options.smoke else 16)
    size = Size.of(config, vocabulary, GRID)
    model = build_model(config.model, vocabulary, config.data.max_length)
    if kind == 'train':
      ours, peer = Trainer(config, model, batches[0], len(batches)), PeerTrainer(config, size)
      parameters = count(ours.state.params), sum(p.numel() for p in peer.parameters)
      if parameters[0] != parameters[1]:
        raise SystemExit(f'{name}: {parameters[0]} parameters against {parameters[1]} of the peer')
    else:
      beams = config.decoding.beam_size if kind == 'beam' else 1
      ours = Generator(config, model, batches[0], kind)
      peer = PeerGenerator(size, beams, STEPS, config.decoding.length_penalty)
    names = ('mmlm', 'PyTorch' if kind == 'train' else 'transformers')
    sides = {side: functools.partial(run, batches) for side, run in zip(names, (ours, peer))}
    unit = 'examples/s' if kind == 'train' else 'captions/s'
    rows.append(row(kind, name, unit, in_turns(sides, options.rounds)))
  return rows


def real_configs(options) -> dict:
  """{name: config spec} of the experiments whose data are here or can be made here."""
  found = {'unicode_pictures': f'{PICTURES}:smoke' if options.smoke else str(PICTURES)}
  if options.smoke:
    return found
  if list(options.data_dir.glob('flickr8k/*/dataset_info.json')) and list(options.data_dir.glob('features/*.npy')):
    return found | {'flickr8k': str(FLICKR8K)}
  print(f'flickr8k is not prepared in {options.data_dir}, with its grids: left out of startup and pipeline')
  return found


def first_step_seconds(spec: str, options, cache: str) -> float:
  """From the start of a process to the line of its first training step, the training of a tokenizer included."""
  with tempfile.TemporaryDirectory() as folder:
    # tensorboardX imports torch where it is installed, and mmlm does not install it: this stands in its way.
    pathlib.Path(folder, 'torch.py').write_text("raise ImportError('hidden')\n")
    arguments = ['train', spec, '--workdir', f'{folder}/run', f'--config.data.dir={options.data_dir}']
    command = [sys.executable, '-m', 'mmlm.main', *arguments, '--config.train.duration=1 steps']
    env = os.environ | {'PYTHONPATH': f'{folder}:{ROOT}', 'JAX_COMPILATION_CACHE_DIR': cache}
    began, lines = time.perf_counter(), []
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, cwd=folder, env=env, **pipes) as process:
      try:
        for line in process.stdout:
          lines.append(line)
          if line.startswith('step ') and '1/1 ' in line:
            return time.perf_counter() - began
      finally:
        process.kill()  # it would go on to validate
  raise SystemExit(f'{" ".join(command)} gave no line of step 1:\n{"".join(lines)}')


def startup(options) -> list[dict]:
  rows = []
  for name, spec in real_configs(options).items():
    Experiment(config_of(spec, {'data.dir': str(options.data_dir)}), '').source('train')  # prepares the data, not timed
    with tempfile.TemporaryDirectory() as cache:
      cold = [first_step_seconds(spec, options, cache)]
      warm = [first_step_seconds(spec, options, cache) for _ in range(options.rounds)]
    rows.append(row('startup', name, 's', {'warm': warm, 'cold': cold}))
  return rows


def pipeline(options) -> list[dict]:
  """Each side alone has the whole machine, as loading and training have when they are measured against each other."""
  rows = []
  for name, spec in real_configs(options).items():
    with tempfile.TemporaryDirectory() as folder:
      config = config_of(spec, {'data.dir': str(options.data_dir)})
      experiment, size = Experiment(config, folder), config.train.batch_size
      table = experiment.table('train', with_targets=True)
      plan = TrainPlan(table.lengths, size, experiment.buckets, config.seed)
      loader = experiment.loader('train', table, size, train=True)
      number = min(plan.steps_per_epoch, 100)

      with stream(plan, loader, 0, min(number, 8)) as some:
        batches = list(some)
      trainer = Trainer(config, experiment.model, batches[0], plan.steps_per_epoch)
      load = functools.partial(drain, plan, loader, number, config.data.workers)
      sides = {'pipeline': load, 'train step': functools.partial(trainer, batches)}
      rows.append(row('pipeline', name, 'examples/s', in_turns(sides, options.rounds)))
  return rows


def drain(plan, loader, number: int, workers: int) -> int:
  with stream(plan, loader, 0, number, workers) as batches:
    return sum(int(batch['weight'].sum()) for batch in batches)


BENCHMARKS = {
  'train': lambda options: against_peer('train', options),
  'greedy': lambda options: against_peer('greedy', options),
  'beam': lambda options: against_peer('beam', options),
  'startup': startup,
  'pipeline': pipeline,
}


def machine() -> dict:
  """Environment of the run, with the processor's name and the versions of the peers."""
  found = environment()
  lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines() if os.path.exists('/proc/cpuinfo') else []
  found['processor'] = next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), None)
  for name in ('torch', 'transformers'):
    if name in sys.modules:
      found['versions'][name] = sys.modules[name].__version__
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=5, help='measurements of each side (default 5)')
  parser.add_argument('--only', default=','.join(BENCHMARKS), help='some of the five, with commas')
  parser.add_argument('--data_dir', type=pathlib.Path, default='data', help='prepared data sets (default data)')
  output = pathlib.Path(__file__).with_name('results.json')
  parser.add_argument('--output', type=pathlib.Path, default=output, help='JSON, written after each benchmark')
  parser.add_argument('--smoke', action='store_true', help='tiny sizes: does it run?')
  options = parser.parse_args()
  options.data_dir = options.data_dir.absolute()
  names = options.only.split(',')
  if unknown := set(names) - set(BENCHMARKS):
    parser.error(f'--only: {", ".join(sorted(unknown))} is none of {", ".join(BENCHMARKS)}')
  rows = []
  for name in names:
    rows += BENCHMARKS[name](options)
    settings = {'rounds': options.rounds, 'smoke': options.smoke}
    write_json(options.output, {'environment': machine(), **settings, 'rows': rows})
  print(f'Written: {options.output}')


if __name__ == '__main__':
  main()
