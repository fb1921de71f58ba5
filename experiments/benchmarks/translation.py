"""Measures how fast translation is, in turns within one run.

mmlm and its peers have the same sizes and the same batches.

  python experiments/benchmarks/translation.py [--rounds 5] [--only train,beam] [--data_dir data]

  train   real target tokens a second in training, padding not counted   against PyTorch eager
  beam    target tokens a second with 5 beams, 20 steps, against `generate` of transformers, and
          CTranslate2

Sizes: configs/translation/multi30k.py:post_norm, 10,000 pieces. Everything is float32 and weights
are random. The texts are those of Multi30k, English to German, if it lies prepared in --data_dir,
else random tokens of its lengths. The peers stand in peer_translation.py; in `beam` they have the
weights of mmlm, and the share of equal translations is printed.
"""

import functools
import pathlib
import tempfile
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
  in_turns,
  main,
  row,
)
from flax.traverse_util import flatten_dict

from mmlm.data.batching import TrainPlan, eval_plan
from mmlm.data.pipeline import Loader, Table
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.experiment.experiment import Experiment
from mmlm.models.multimodal import build_model

MULTI30K = f'{ROOT}/configs/translation/multi30k.py:post_norm'  # the only form that all peers have
VOCABULARY = 10000  # of random tokens
GOALS = {'train': 'ratio 1.2, padding under 12 %', 'beam': 'ratio 2 to generate, better 3.4'}
# One rate on both sides, low enough for a start without warm-up: the speed does not depend on it.
SETTINGS = {
  'optimizer.schedule': 'constant',
  'optimizer.warmup': '0 steps',
  'optimizer.learning_rate': '1e-4',
}


# Input


def random_table(longest: int, vocabulary: int, number: int) -> Table:
  """Random tokens; the lengths of both sides are spread, and go together, as those of Multi30k."""
  rng = np.random.default_rng(0)
  # Log-normal fit of its 29,000 pairs, end token included: 14.8 and 14.7 tokens on average,
  # correlation 0.86.
  target, text = rng.multivariate_normal([0, 0], [[1, 0.86], [0.86, 1]], number).T

  eos_id = SpecialTokens().eos_id

  def tokens(logs: np.ndarray):
    result = []
    for n in np.clip(np.round(np.exp(logs)), 2, longest).astype(int):
      result.append([*rng.integers(eos_id + 1, vocabulary, n - 1).tolist(), eos_id])
    return result

  return Table(
    list(map(str, range(number))),
    np.arange(number),
    tokens(2.646 + 0.315 * target),
    tokens(2.648 + 0.286 * text),
  )


def prepared(options: Options):
  spec = f'{MULTI30K},smoke' if options.smoke else MULTI30K
  return config_of(spec, SETTINGS | {'data.dir': str(options.data_dir)})


@functools.cache
def multi30k(data_dir: pathlib.Path) -> Experiment:
  print('multi30k: learns the tokenizer', flush=True)
  with tempfile.TemporaryDirectory() as folder:
    experiment = Experiment(config_of(MULTI30K, {'data.dir': str(data_dir)}), folder)
    _ = experiment.data.tokenizer  # while its folder is there
  return experiment


def texts(config: Any, options: Options, split: str, with_targets: bool) -> tuple[Table, int, str]:
  """The table of a split ('train' or 'test'), the vocabulary, and what is in it."""
  if options.smoke:
    return random_table(config.data.max_length, 100, 100), 100, 'smoke'
  if not list(options.data_dir.glob('multi30k/text/*/dataset_info.json')):
    print(f'multi30k is not prepared in {options.data_dir}: random tokens of its lengths')
    number = {'train': 29000, 'test': 1000}[split]
    return random_table(config.data.max_length, VOCABULARY, number), VOCABULARY, 'random tokens'
  experiment = multi30k(options.data_dir)
  (name,) = experiment.data.splits(split)
  tokenizer = experiment.data.tokenizer
  assert tokenizer is not None
  return experiment.data.table(name, with_targets), tokenizer.vocab_size, 'multi30k'


def load(table: Table, plan: TrainPlan | list, number: int, batch_size: int) -> list[dict]:
  loader = Loader([], table, ('text',), [], batch_size)
  return [loader(i, plan[i]) for i in range(number)]


def padding(table: Table, plan: TrainPlan) -> dict:
  """The share of an epoch's places that hold no token, in percent, of targets and of sources."""
  places = sum(plan[i].length * plan[i].size for i in range(plan.steps_per_epoch))

  def share(rows: Any):
    return 100 * (1 - sum(map(len, rows)) / places)

  return {'target': share(table.targets), 'source': share(table.texts)}


# Benchmarks


def train(options: Options) -> list[dict]:
  import peer
  from peer_translation import Size, Translator, tensors

  peer.use_all_cores()
  config = prepared(options)
  table, vocabulary, name = texts(config, options, 'train', with_targets=True)
  plan = TrainPlan(
    table.lengths,
    config.train.batch_size,
    config.data.buckets,
    config.seed,
    config.train.batch_tokens,
  )
  batches = load(table, plan, 3 if options.smoke else 24, config.train.batch_size)
  shares = padding(table, plan)
  print(
    f'padding in an epoch: {shares["target"]:.1f} % of the targets, '
    f'{shares["source"]:.1f} % of the sources',
    flush=True,
  )

  ours = Trainer(
    config,
    build_model(config.model, vocabulary, config.data.max_length),
    batches[0],
    plan.steps_per_epoch,
  )
  theirs = peer.Trainer(config, Translator(Size.of(config, vocabulary)), tensors)
  check_parameters(ours, theirs)
  tokens = sum(int(batch['target_mask'].sum()) for batch in batches)
  sides = {}
  for side, run in (('mmlm', ours), ('PyTorch', theirs)):
    sides[side] = (functools.partial(run, batches), tokens)
  return [
    row(
      'train',
      name,
      'tokens/s',
      in_turns(sides, options.rounds),
      GOALS['train'],
      padding_percent=shares,
    )
  ]


def beam(options: Options) -> list[dict]:
  import peer
  from peer_translation import CTranslate2, Size, convert, generator, marian

  peer.use_all_cores()
  config = prepared(options)
  table, vocabulary, name = texts(config, options, 'test', with_targets=False)
  size = config.evaluate.batch_size
  plan = eval_plan(np.array(list(map(len, table.texts))), size, config.data.buckets)
  batches = load(
    table._replace(targets=[[SpecialTokens().eos_id]] * len(table.ids)),
    plan,
    len(plan),
    size,
  )

  ours = Generator(
    config, build_model(config.model, vocabulary, config.data.max_length), batches[0], 'beam'
  )
  model = marian(flatten_dict(ours.params, sep='/'), Size.of(config, vocabulary))
  search = config.decoding.beam_size, STEPS, config.decoding.length_penalty
  words = CTranslate2.words(batches)
  with tempfile.TemporaryDirectory() as folder:
    convert(model, folder)
    layouts = {}
    for w, t in ((1, 2), (2, 1)):
      layouts[f'CTranslate2 {w} x {t}'] = CTranslate2(folder, w, t, *search)
  runs = {
    'mmlm': functools.partial(ours, batches),
    'transformers': functools.partial(generator(model, *search), batches),
  }
  for layout, run in layouts.items():
    runs[layout] = functools.partial(run, words)

  tokens = {}
  sides = {}
  for side, run in runs.items():
    tokens[side] = np.concatenate(run())
    sides[side] = (run, STEPS * len(table.ids))
  equal = {}
  for side in list(tokens)[1:]:
    # The last token aside: there mmlm may end, its peers not.
    same = (tokens[side] == tokens['mmlm'])[:, :-1].all(1)
    equal[side] = float(same.mean())
  shares = ', '.join(f'{side} {100 * share:.1f} %' for side, share in equal.items())
  print(f'equal translations: {shares}', flush=True)
  return [
    row(
      'beam',
      name,
      'tokens/s',
      in_turns(sides, options.rounds),
      GOALS['beam'],
      equal_translations=equal,
    )
  ]


if __name__ == '__main__':
  main(__doc__, {'train': train, 'beam': beam}, 'translation.json')
