"""Measures what share of a device's products a second training uses.

It runs the train step of `mmlm train`, on random tokens.

  python experiments/benchmarks/mfu.py [--rounds 3] [--only decoder,translation]

  decoder       a language model of GPT-2's size (12 layers, D 768, 12 heads, 50,304 tokens, 124M
                parameters), windows of 1,024 tokens
  translation   Transformer-base (6 + 6 layers, D 512, feed-forward 2,048, 8 heads, one table of
                32,000 pieces; Vaswani et al. 2017, table 3), batches by tokens; 8 of each of the
                two shapes that an epoch has most of

MFU counts the products of the forward and backward pass, once each, padding included, against the
peak of the data sheet in half precision (mmlm/parallel/compiled.py), for all devices there are.
Computation is in bfloat16 on a GPU or TPU and in float32, with no MFU, on a CPU.
"""

import collections
import functools
from typing import Any

import jax
import numpy as np
from common import ROOT, Options, Trainer, config_of, in_turns, main, row
from translation import random_table

from mmlm.data.batching import TrainPlan
from mmlm.data.pipeline import Loader
from mmlm.data.running_text import RandomWindows, RunningText, StreamLoader
from mmlm.models.multimodal import build_model
from mmlm.parallel import peak_flops
from mmlm.utils.pytree import count

SETTINGS = {
  'optimizer.schedule': 'constant',
  'optimizer.warmup': '0 steps',
  'optimizer.learning_rate': '1e-4',
  'model.dropout': '0.0',
}
DECODER = SETTINGS | {
  'model.dim': '768',
  'model.head.layers': '12',
  'model.head.heads': '12',
  'model.head.hidden_dropout': 'False',
  'model.head.positions': 'learned',
  'data.max_length': '1024',
  'train.batch_size': '32',
}
BASE = SETTINGS | {
  'model.dim': '512',
  'model.encoders.text.layers': '6',
  'model.encoders.text.heads': '8',
  'model.head.layers': '6',
  'model.head.heads': '8',
  'train.batch_tokens': '32768',
  'train.ema_decay': '0.0',
}
TINY = {
  'model.dim': '32',
  'model.head.heads': '4',
  'train.batch_size': '8',
  'train.batch_tokens': '0',
}


def configured(spec: str, settings: dict, options: Options):
  if jax.default_backend() == 'cpu':
    half = {}
  else:
    half = {'model.dtype': 'bfloat16'}
  return config_of(f'{ROOT}/configs/{spec}', settings | half | (TINY if options.smoke else {}))


def decoder(options: Options) -> list[dict]:
  config = configured(
    'language_model/tiny_shakespeare.py',
    DECODER | ({'data.max_length': '32'} if options.smoke else {}),
    options,
  )
  length, vocabulary = (10_000, 100) if options.smoke else (2_000_000, 50_304)
  tokens = np.random.default_rng(0).integers(4, vocabulary, length).astype(np.int32)
  text = RunningText('random', ['random'], [''], np.array([0, length]), tokens, np.arange(length))
  plan = RandomWindows(text, config.data.max_length, config.train.batch_size, 0)
  loader = StreamLoader(text, plan)
  return measured(
    'decoder',
    config,
    vocabulary,
    [loader(i, plan[i]) for i in range(20)],
    plan.steps_per_epoch,
    options,
  )


def translation(options: Options) -> list[dict]:
  config = configured('translation/parallel.py:moses=False', BASE, options)
  vocabulary, pairs = (100, 200) if options.smoke else (32_000, 29_000)
  table = random_table(config.data.max_length, vocabulary, pairs)
  plan = TrainPlan(
    table.lengths, config.train.batch_size, config.data.buckets, 0, config.train.batch_tokens
  )
  loader = Loader([], table, ('text',), [], config.train.batch_size)
  batches = commonest([loader(i, plan[i]) for i in range(plan.steps_per_epoch)])
  return measured('translation', config, vocabulary, batches, plan.steps_per_epoch, options)


def commonest(batches: list, shapes: int = 2, each: int = 8) -> list:
  """Returns batches of the most frequent shapes.

  Each shape is a program, and compiling all of them says nothing.
  """

  def shape(batch: dict):
    return (batch['text'].shape, batch['target'].shape)

  chosen = []
  for common, _ in collections.Counter(map(shape, batches)).most_common(shapes):
    of_shape = [batch for batch in batches if shape(batch) == common]
    chosen += of_shape[:each]
  return chosen


def measured(
  name: str,
  config: Any,
  vocabulary: int,
  batches: list,
  steps_per_epoch: int,
  options: Options,
) -> list[dict]:
  """Tokens a second and MFU over these batches."""
  trainer = Trainer(
    config,
    build_model(config.model, vocabulary, config.data.max_length),
    batches[0],
    steps_per_epoch,
  )
  flops = 0.0
  for batch in batches:  # compiles
    trainer([batch])
    cost = trainer.step.cost
    assert cost is not None
    flops += cost.flops
  amount = sum(int(batch['target_mask'].sum()) for batch in batches)
  (rates,) = in_turns(
    {'mmlm': (functools.partial(trainer, batches), amount)}, options.rounds
  ).values()
  peak = peak_flops()
  shares = None
  text = f'{flops * np.median(rates) / amount / 1e12:.3f} TFLOP/s, no peak known'
  if peak:
    shares = [flops * rate / amount / (peak * jax.device_count()) for rate in rates]
    text = f'MFU {100 * float(np.median(shares)):.1f} %'
  size = f'{count(trainer.state.params) / 1e6:.0f}M values'
  print(f'{name}: {config.model.dtype}, {len(batches)} batches, {text}', flush=True)
  more = {
    'dtype': config.model.dtype,
    'flops_a_step': flops / len(batches),
    'peak': peak,
    'mfu': shares,
  }
  return [row(name, size, 'target tokens/s', {'mmlm': rates}, 'none set', **more)]


if __name__ == '__main__':
  main(__doc__, {'decoder': decoder, 'translation': translation}, 'mfu.json')
