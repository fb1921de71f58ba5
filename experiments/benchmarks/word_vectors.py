"""Word vectors by mmlm and by gensim: the same text and settings, in turns within one run.

  python experiments/benchmarks/word_vectors.py --text FILE \
      [--only speed,quality,alone] [--seeds 3] [--epochs 5] [--sets DIR]

  speed    words of the text a second, of one epoch: skip-gram, CBOW, fastText (a vocabulary that is
           counted, programs that are compiled)
  quality  similarity sets and analogies after --epochs, mean and spread of --seeds seeds, and the
           seconds of training; GloVe of ours beside
  alone    words of the text a second without gensim, for a machine that has none (not run unless
           asked for)

FILE is a text with a sentence a line (.txt or .txt.xz), lower-cased for both sides; DIR holds
similarity sets and analogies, by default $MMLM_DATA/text/wordsim. 100 values a word, window 5, 5
negatives, subsampling 0.001, words with 5 or more places, gensim with a worker a core and buckets
of 200,000 pieces. gensim runs in a process of its own (peer_word_vectors.py), idle while the other
side is measured. PEER_PYTHON names its interpreter where it is another one. There is no wheel of
GloVe's reference to compare with.
"""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
from common import Options, config_of, in_turns, main, row, summary, with_folder

from mmlm.data.sources.plain_text import PlainTexts
from mmlm.evaluation.significance import mean_and_spread
from mmlm.pretrained.formats.vector_files import Vectors, read_vectors
from mmlm.word_vectors.similarity_scores import score_vectors
from mmlm.word_vectors.sparse_step import row_step
from mmlm.word_vectors.vector_experiment import VectorExperiment
from mmlm.word_vectors.vector_training import training_parts

CONFIG = 'configs/word_vectors/skipgram.py:'
KINDS = {'skip_gram': CONFIG, 'cbow': CONFIG + 'cbow,', 'fasttext': CONFIG + 'fasttext,'}
RATES = {'skip_gram': 0.025, 'cbow': 0.025, 'fasttext': 0.025}  # gensim's own, for both sides
SETS = ('ws-353-all', 'men-tr-3k', 'simlex-999', 'rw-stanford', 'questions-words')


class Ours:
  """Training as `mmlm train` does it, without validation and checkpoints."""

  def __init__(self, spec: str, settings: dict, text: str, folder: pathlib.Path, seed: int = 0):
    self.experiment = VectorExperiment(
      config_of(f'{spec}text={text}', settings | {'seed': str(seed)}), folder
    )
    self.parts, self.state = training_parts(self.experiment, text)
    self.step = jax.jit(functools.partial(row_step, options=self.parts.options), donate_argnums=0)
    self.steps = self.parts.schedule.total

  def __call__(self):
    """All epochs; gives their seconds."""
    began = time.perf_counter()
    with self.parts.stream(0, self.steps) as batches:
      for batch in batches:
        self.state, metrics = self.step(self.state, batch)
    if not np.isfinite(metrics['loss']):
      raise SystemExit('the loss is not finite')
    return time.perf_counter() - began

  def vectors(self) -> Vectors:
    return self.experiment.vectors_of(jax.device_get(self.state.params))


class Peer:
  """gensim in its own process; calls give the seconds of a training."""

  def __init__(self, kind: str, text: str):
    options = {
      'vector_size': 100,
      'window': 5,
      'negative': 5,
      'min_count': 5,
      'sample': 1e-3,
      'alpha': RATES[kind],
      'min_alpha': RATES[kind] * 0.004,
      'workers': len(os.sched_getaffinity(0)),
    }
    options |= {'bucket': 200000} if kind == 'fasttext' else {}
    script = pathlib.Path(__file__).with_name('peer_word_vectors.py')
    command = [
      os.environ.get('PEER_PYTHON', sys.executable),
      str(script),
      json.dumps({'text': text, 'kind': kind, 'options': options}),
    ]
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(self.process.kill)
    self.versions = self._answer()

  def __call__(self, seed: int = 0, epochs: int = 1, output: str = '') -> float:
    stdin = self.process.stdin
    assert stdin is not None
    stdin.write(json.dumps({'seed': seed, 'epochs': epochs, 'output': output}) + '\n')
    stdin.flush()
    return self._answer()

  def _answer(self):
    assert self.process.stdout is not None
    answer = self.process.stdout.readline()
    if not answer:
      raise SystemExit('gensim ended: its message stands above')
    return json.loads(answer)


def settings_of(kind: str, epochs: int, width: int = 100) -> dict:
  found = {
    'train.duration': f'{epochs} epochs',
    'optimizer.learning_rate': str(RATES[kind]),
    'model.dim': str(width),
  }
  return found | ({'model.head.buckets': '200000'} if kind == 'fasttext' else {})


def lowered(options: Options, folder: pathlib.Path) -> tuple[str, int]:
  """The text as both sides read it, in lower case, and its words."""
  if not options.text:
    raise SystemExit('--text FILE: give the text to learn from')
  lines = []
  for example in PlainTexts(options.text, {}):
    for line in '\n'.join(example['targets']).split('\n'):
      words = line.lower().split()
      if words:
        lines.append(words)
  if options.smoke:
    lines = lines[:2000]
  path = folder / 'text.txt'
  path.write_text('\n'.join(map(' '.join, lines)) + '\n', encoding='utf-8')
  return str(path), sum(map(len, lines))


# Benchmarks


def speed(options: Options, folder: pathlib.Path) -> list[dict]:
  (text, words), rows = lowered(options, folder), []
  for kind, spec in KINDS.items():
    ours = Ours(spec, settings_of(kind, 1), text, folder / kind)
    peer = Peer(kind, text)
    seconds = {'mmlm': ours, 'gensim': peer}
    rates = timed_in_turns(seconds, words, options.rounds)
    rows.append(
      row(
        'speed',
        kind,
        'words/s',
        rates,
        'a third of gensim, aim 1',
        words=words,
        peers=peer.versions,
      )
    )
  return rows


def alone(options: Options, folder: pathlib.Path) -> list[dict]:
  (text, words), rows = lowered(options, folder), []
  for kind, spec in KINDS.items():
    rates = timed_in_turns(
      {'mmlm': Ours(spec, settings_of(kind, 1), text, folder / kind)}, words, options.rounds
    )
    rows.append(row('alone', kind, 'words/s', rates, 'none set', words=words))
  return rows


def timed_in_turns(sides: dict, amount: int, rounds: int) -> dict:
  """Measures as `in_turns`, for sides that return the seconds themselves.

  gensim counts its vocabulary before.
  """
  rates: dict[str, list[float]] = {}

  def run(name: str):
    rates.setdefault(name, []).append(amount / sides[name]())

  timed = {}
  for name in sides:
    timed[name] = (functools.partial(run, name), amount)
  in_turns(timed, rounds)
  return {name: values[1:] for name, values in rates.items()}  # the first call compiles


def quality(options: Options, folder: pathlib.Path) -> list[dict]:
  (text, _), rows = lowered(options, folder), []
  for kind, spec in [*KINDS.items(), ('glove', 'configs/word_vectors/glove.py:')]:
    peer = Peer(kind, text) if kind in KINDS else None
    scores: dict = {'mmlm': [], 'gensim': []}
    seconds: dict = {'mmlm': [], 'gensim': []}
    for seed in range(1, 1 + (1 if options.smoke else options.seeds)):
      if peer:
        settings = settings_of(kind, options.epochs)
      else:
        settings = {}
      ours = Ours(spec, settings, text, folder / f'{kind}{seed}', seed)
      seconds['mmlm'].append(ours())
      scores['mmlm'].append(values_of(ours.vectors(), options))
      if peer:
        output = str(folder / f'{kind}{seed}.bin')
        seconds['gensim'].append(peer(seed, options.epochs, output))
        scores['gensim'].append(values_of(read_vectors(output), options))
    rows += [compared(kind, name, scores, seconds) for name in scores['mmlm'][0]]
  return rows


def values_of(vectors: Vectors, options: Options) -> dict:
  found = score_vectors(vectors, options.sets, samples=2)
  return {name: found[name]['value'] for name in SETS if name in found}


def compared(kind: str, name: str, scores: dict, seconds: dict) -> dict:
  sides = {}
  text = f'quality   {kind:<10} {name:<16}'
  for side, of_seeds in scores.items():
    if of_seeds:
      spread = sides[side] = mean_and_spread([score[name] for score in of_seeds])
      text += f' {side} {spread["mean"]:.4f}'
      if spread['n'] > 1:
        text += f' ± {spread["sd"]:.4f}'
      text += '  '
  print(text, flush=True)
  return {
    'benchmark': 'quality',
    'size': f'{kind}, {name}',
    'sides': sides,
    'seconds': {side: summary(some) for side, some in seconds.items() if some},
  }


FLAGS = {
  '--text': {'default': '', 'help': 'the text to learn from'},
  '--sets': {'default': '', 'help': 'similarity sets and analogies'},
  '--seeds': {'type': int, 'default': 3, 'help': 'of `quality` (default 3)'},
  '--epochs': {'type': int, 'default': 5, 'help': 'of `quality` (default 5)'},
}

if __name__ == '__main__':
  benchmarks = {
    'speed': with_folder(speed),
    'quality': with_folder(quality),
    'alone': with_folder(alone),
  }
  main(
    __doc__,
    benchmarks,
    'word_vectors.json',
    FLAGS,
    ('speed', 'quality'),
  )
