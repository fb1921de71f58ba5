"""The program called in this process, and a small captioner on manifests for it."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from mmlm.cli import main

CONFIG = '''"""A small captioner on manifests."""
from mmlm.config import default_config, parse_arg


def get_config(arg=''):
  args = parse_arg(arg, train='train.jsonl', valid='valid.jsonl', text=False)
  config = default_config()
  config.data.name = 'manifest'
  config.data.splits = {'train': args.train, 'valid': args.valid, 'test': (args.valid,)}
  config.data.train_ops = ('decode("L")', 'random_crop(8, 1)', 'normalize("half")')
  config.data.eval_ops = ('decode("L")', 'normalize("half")')
  config.data.max_length = 8
  config.tokenizer = {'kind': 'word', 'min_frequency': 1}
  config.model.dim = 16
  config.model.encoders = {'image': {'name': 'vit', 'patch': 4, 'layers': 1, 'heads': 2}}
  if args.text:
    config.model.encoders.text = {'name': 'text_transformer', 'layers': 1, 'heads': 2}
  config.model.head = {'name': 'transformer_decoder', 'layers': 1, 'heads': 2}
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup = '2 steps'
  config.train.duration, config.train.log_every, config.train.eval_every = '30 steps', '2 steps', '3 steps'
  config.train.batch_size = config.evaluate.batch_size = 8
  config.train.keep_latest = 3
  config.train.ema_decay = 0.9
  config.evaluate.metrics = ('word_f1',)
  config.evaluate.bootstrap_samples = 10
  config.decoding.max_length = 6
  config.parallel.strategy = 'jit'
  return config
'''
TIMES = ('seconds', 'examples_per_second')
COLOURS = ('red', 'green', 'blue', 'grey')
LONG = 'this caption has so many words that it cannot be learned here'


def cli(*argv):
  """The program in this process -> exit code, what it printed, what it complained of."""
  out = io.StringIO()
  err = io.StringIO()
  with (
    pytest.MonkeyPatch.context() as patch,
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    patch.setattr(sys, 'argv', ['mmlm', *map(str, argv)])
    try:
      main.main()
      code = 0
    except SystemExit as stop:
      code = stop.code or 0
  return code, out.getvalue(), err.getvalue()


def done(*argv) -> str:
  code, out, err = cli(*argv)
  assert code == 0, (out, err)
  return out


def refused(*argv) -> str:
  """The complaint of a call that must end with exit code 2."""
  code, _, err = cli(*argv)
  assert code == 2 and 'mmlm: ' in err and 'Traceback' not in err, (code, err)
  return err


def tree(folder):
  result = {}
  for p in sorted(folder.rglob('*')):
    if p.is_file():
      result[str(p.relative_to(folder))] = p.read_bytes()
  return result


def write_jsonl(path, rows):
  path.write_text(
    ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
  )
  return path


def read_jsonl(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder):
  result = []
  for row in read_jsonl(folder / 'metrics.jsonl'):
    result.append({k: v for k, v in row.items() if k not in TIMES})
  return result


def rows(count, start=0):
  result = []
  for i in range(start, start + count):
    result.append(
      {
        'id': f'e{i}',
        'image': f'{i}.png',
        'text': COLOURS[i // 4 % 4],
        'target': f'{COLOURS[i % 4]} {COLOURS[i // 4 % 4]}',
      }
    )
  return result


class Place:
  """A folder with pictures, manifests and a config file."""

  def __init__(self, folder):
    self.folder = folder
    self.data = folder / 'data'
    self.config = folder / 'small.py'
    self.config.write_text(CONFIG)
    for i in range(32):
      Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)).save(
        folder / f'{i}.png'
      )
    self.train = write_jsonl(folder / 'train.jsonl', rows(20))
    self.valid = write_jsonl(
      folder / 'valid.jsonl', rows(8, 20) + [{'id': 'long', 'image': '28.png', 'target': LONG}]
    )

  def argv(self, workdir, *more, train=None, valid=None, text=''):
    arg = f'train={train or self.train},valid={valid or self.valid}{text}'
    return (
      'train',
      f'{self.config}:{arg}',
      '--workdir',
      workdir,
      f'--config.data.dir={self.data}',
      *more,
    )
