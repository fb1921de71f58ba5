"""Measures how fast a character model is trained.

mmlm and PyTorch on the same batches, in turns within one run.

  python experiments/benchmarks/language_model.py [--rounds 5] [--data_dir data]

  train   steps a second, dropout 0, batches as `mmlm train` draws them, against a PyTorch module
          of the same size and sums, eager

Sizes: configs/language_model/tiny_shakespeare.py (nanoGPT's for a CPU: 4 layers, D 128, context 64,
batches of 12), everything float32, the optimizer's step included. The characters are those of Tiny
Shakespeare, if it lies prepared in --data_dir, else random ones. The peer stands in
peer_language_model.py; the script stops unless both have as many parameters and, with the same
weights, the same loss.
"""

import functools
import tempfile
from typing import Any

import numpy as np
from common import ROOT, Options, Trainer, check_parameters, config_of, in_turns, main, row

from mmlm.data.running_text import RandomWindows, RunningText, StreamLoader
from mmlm.experiment.experiment import Experiment
from mmlm.models.multimodal import build_model

SHAKESPEARE = f'{ROOT}/configs/language_model/tiny_shakespeare.py'
# One rate on both sides, low enough for a start without warm-up: the speed does not depend on it.
SETTINGS = {
  'optimizer.schedule': 'constant',
  'optimizer.warmup': '0 steps',
  'optimizer.learning_rate': '1e-4',
  'model.head.positions': 'learned',  # as those of the peer
}
SMOKE = {
  'data.max_length': '16',
  'model.dim': '16',
  'model.head.layers': '1',
  'train.batch_size': '2',
}
VOCABULARY = 69  # of random characters: 65 and the special ones
GOAL = 'ratio 1'


def text_of(config: Any, options: Options) -> tuple[RunningText, int, str]:
  """The text, its vocabulary, and what is in it."""
  if not options.smoke and list(options.data_dir.glob('tiny_shakespeare/*/dataset_info.json')):
    with tempfile.TemporaryDirectory() as folder:
      experiment = Experiment(config, folder)
      text = experiment.data.running_text('train')
      tokenizer = experiment.data.tokenizer
      assert tokenizer is not None
      return text, tokenizer.vocab_size, 'tiny_shakespeare'
  size = 1000 if options.smoke else 1003854
  tokens = np.random.default_rng(0).integers(4, VOCABULARY, size).astype(np.int32)
  return (
    RunningText('random', ['random'], [''], np.array([0, size]), tokens, np.arange(size)),
    VOCABULARY,
    'smoke' if options.smoke else 'random',
  )


def train(options: Options) -> list[dict]:
  import peer
  from peer_language_model import Decoder, Size, tensors

  peer.use_all_cores()
  config = config_of(
    SHAKESPEARE, SETTINGS | {'data.dir': str(options.data_dir)} | (SMOKE if options.smoke else {})
  )
  text, vocabulary, name = text_of(config, options)
  plan = RandomWindows(text, config.data.max_length, config.train.batch_size, config.seed)
  loader = StreamLoader(text, plan)
  batches = [loader(number, plan[number]) for number in range(3 if options.smoke else 200)]
  ours = Trainer(
    config,
    build_model(config.model, vocabulary, config.data.max_length),
    batches[0],
    plan.steps_per_epoch,
  )
  theirs = peer.Trainer(config, Decoder(Size.of(config, vocabulary)), tensors)
  check_parameters(ours, theirs)
  theirs.model.load(ours.state.params)
  loss = theirs.loss(batches[0]).item()
  ours.state, metrics = ours.step(ours.state, batches[0])
  if abs(float(metrics['loss']) - loss) > 1e-3:
    raise SystemExit(f'with the same weights the losses are {float(metrics["loss"])} and {loss}')
  sides = {}
  for side, run in (('mmlm', ours), ('PyTorch', theirs)):
    sides[side] = (functools.partial(run, batches), len(batches))
  return [row('train', name, 'steps/s', in_turns(sides, options.rounds), GOAL)]


if __name__ == '__main__':
  main(__doc__, {'train': train}, 'language_model.json')
