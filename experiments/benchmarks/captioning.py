"""Measures how fast captioning is, in turns within one run.

mmlm and its peers have the same sizes and the same batches.

  python experiments/benchmarks/captioning.py [--rounds 5] [--only train,greedy,beam,startup] \
      [--data_dir data]

  train     training examples a second                    against PyTorch eager
  greedy    captions a second, grid to tokens, 20 steps   against `generate` of transformers
  beam      the same with 4 beams
  startup   seconds from the start of `mmlm train` to its first step, with a cold and a warm
            compilation cache

Sizes: 'flickr8k' is configs/captioning/flickr8k.py; 'large' has 3 layers, D 512, 8 heads and 8,000
words over a grid of 49 places. Everything is float32; weights are random, and the end token is
forbidden until the last step, on both sides. The peers stand in peer_captioning.py. `startup` uses
real data, and takes Flickr8k only if it lies prepared, with its grids, in --data_dir.
"""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from common import (
  ROOT,
  STEPS,
  Generator,
  Options,
  Trainer,
  check_parameters,
  config_of,
  examples,
  in_turns,
  main,
  row,
)

from mmlm.data.batching import TrainPlan, pad
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.experiment.experiment import Experiment
from mmlm.models.multimodal import build_model

GRID = (49, 1280)  # places and channels of EfficientNet-Lite0 at 224 x 224
FLICKR8K = ROOT / 'configs/captioning/flickr8k.py'
PICTURES = ROOT / 'configs/captioning/unicode_pictures.py'
GOALS = {
  'train': 'ratio 1.2',
  'greedy': 'none',
  'beam': 'ratio 2, better 5',
  'startup': 'warm under 15 s',
}
# Overrides of configs/captioning/flickr8k.py, and words in the vocabulary (2,550 occur 5 times in
# its captions).
SIZES = {
  'flickr8k': ({}, 2550),
  'large': ({'model.dim': '512', 'model.encoders.image.layers': '0'}, 8000),
}
SMOKE_SIZES = {'smoke': ({'model.dim': '32', 'train.batch_size': '8'}, 100)}


def random_batches(config: Any, vocabulary: int, number: int) -> list[dict]:
  """Returns random grids and words, bucketed as in training.

  Lengths are spread like those of Flickr8k's captions.
  """
  rng = np.random.default_rng(0)
  size = config.train.batch_size
  longest = config.data.max_length
  # Log-normal fit of its 40,455 captions: 12.8 tokens on average, end token included.
  lengths = np.clip(np.round(rng.lognormal(2.507, 0.307, 30000)), 2, longest).astype(int)
  plan = TrainPlan(lengths, size, config.data.buckets, seed=0)
  batches = []
  first = SpecialTokens().eos_id + 1
  for i in range(number):
    rows = [rng.integers(first, vocabulary, n).tolist() for n in lengths[plan[i].indices]]
    target, mask = pad(rows, plan[i].length, size)
    grid = np.abs(rng.standard_normal((size, *GRID), np.float32)).astype(np.float16)
    batch = {'image': grid, 'image_mask': np.ones(size, bool), 'weight': np.ones(size, np.float32)}
    batches.append(batch | {'target': target, 'target_mask': mask})
  return batches


def against_peer(kind: str, options: Options) -> list[dict]:
  """Training, greedy search or beam search at each size."""
  import peer
  from peer_captioning import Captioner, Size, generator, tensors

  peer.use_all_cores()
  rows = []
  for name, (settings, vocabulary) in (SMOKE_SIZES if options.smoke else SIZES).items():
    config = config_of(FLICKR8K, settings)
    batches = random_batches(config, vocabulary, 2 if options.smoke else 16)
    size = Size.of(config, vocabulary, GRID)
    model = build_model(config.model, vocabulary, config.data.max_length)
    if kind == 'train':
      ours = Trainer(config, model, batches[0], len(batches))
      theirs = peer.Trainer(config, Captioner(size), tensors)
      check_parameters(ours, theirs)
    else:
      if kind == 'beam':
        beams = config.decoding.beam_size
      else:
        beams = 1
      ours = Generator(config, model, batches[0], kind)
      theirs = generator(size, beams, STEPS, config.decoding.length_penalty)
    names = ('mmlm', 'PyTorch' if kind == 'train' else 'transformers')
    sides = {}
    for side, run in zip(names, (ours, theirs)):
      sides[side] = (functools.partial(run, batches), examples(batches))
    if kind == 'train':
      unit = 'examples/s'
    else:
      unit = 'captions/s'
    rows.append(row(kind, name, unit, in_turns(sides, options.rounds), GOALS[kind]))
  return rows


def real_configs(options: Options) -> dict:
  """{name: config spec} of the experiments whose data are here or can be made here."""
  found = {'unicode_pictures': f'{PICTURES}:smoke' if options.smoke else str(PICTURES)}
  if options.smoke:
    return found
  if list(options.data_dir.glob('flickr8k/*/dataset_info.json')) and list(
    options.data_dir.glob('features/*.npy')
  ):
    return found | {'flickr8k': str(FLICKR8K)}
  print(f'flickr8k is not prepared in {options.data_dir}, with its grids: left out of startup')
  return found


def first_step_seconds(spec: str, options: Options, cache: str) -> float:
  """Returns the seconds from the start of a process to its first training step.

  The training of a tokenizer is included.
  """
  with tempfile.TemporaryDirectory() as folder:
    # Hides torch: tensorboardX imports it where it is installed, and mmlm does not install it.
    pathlib.Path(folder, 'torch.py').write_text("raise ImportError('hidden')\n")
    arguments = [
      'train',
      spec,
      '--workdir',
      f'{folder}/run',
      f'--config.data.dir={options.data_dir}',
    ]
    command = [sys.executable, '-m', 'mmlm', *arguments, '--config.train.duration=1 steps']
    env = os.environ | {'PYTHONPATH': f'{folder}:{ROOT}', 'JAX_COMPILATION_CACHE_DIR': cache}
    began = time.perf_counter()
    lines = []
    with subprocess.Popen(
      command,
      cwd=folder,
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    ) as process:
      assert process.stdout is not None
      try:
        for line in process.stdout:
          lines.append(line)
          if line.startswith('step ') and '1/1 ' in line:
            return time.perf_counter() - began
      finally:
        process.kill()  # it would go on to validate
  raise SystemExit(f'{" ".join(command)} gave no line of step 1:\n{"".join(lines)}')


def startup(options: Options) -> list[dict]:
  rows = []
  for name, spec in real_configs(options).items():
    experiment = Experiment(config_of(spec, {'data.dir': str(options.data_dir)}), '')
    experiment.data.source('train')  # prepares the data, not timed
    with tempfile.TemporaryDirectory() as cache:
      cold = [first_step_seconds(spec, options, cache)]
      warm = [first_step_seconds(spec, options, cache) for _ in range(options.rounds)]
    rows.append(row('startup', name, 's', {'warm': warm, 'cold': cold}, GOALS['startup']))
  return rows


BENCHMARKS = {
  'train': lambda options: against_peer('train', options),
  'greedy': lambda options: against_peer('greedy', options),
  'beam': lambda options: against_peer('beam', options),
  'startup': startup,
}


if __name__ == '__main__':
  main(__doc__, BENCHMARKS, 'results.json')
