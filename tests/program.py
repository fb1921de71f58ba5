"""The program called in this process, and a small captioner on manifests for it."""

import contextlib
import io
import json
import pathlib
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
  config.train.duration = '30 steps'
  config.train.log_every = '2 steps'
  config.train.eval_every = '3 steps'
  config.train.batch_size = config.evaluate.batch_size = 8
  config.train.keep_latest = 3
  config.train.ema_decay = 0.9
  config.evaluate.metrics = ('word_f1',)
  config.evaluate.bootstrap_samples = 10
  config.decoding.max_length = 6
  config.parallel.strategy = 'jit'
  return config
'''
# Keys of metrics.jsonl that differ between two equal runs.
TIMES = ('seconds', 'examples_per_second')
COLOURS = ('red', 'green', 'blue', 'grey')
LONG = 'this caption has so many words that it cannot be learned here'


def cli(*argv) -> tuple[int, str, str]:
  """Runs the program in this process; returns its exit code, output and errors."""
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
  """Returns the output of a call that must succeed."""
  code, out, err = cli(*argv)
  assert code == 0, (out, err)
  return out


def refused(*argv) -> str:
  """Returns the message of a call that must end with exit code 2."""
  code, _, err = cli(*argv)
  assert code == 2, (code, err)
  assert 'mmlm: ' in err
  assert 'Traceback' not in err
  return err


def tree(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns {path: content} of all files below a folder."""
  contents = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file():
      contents[str(path.relative_to(folder))] = path.read_bytes()
  return contents


def write_jsonl(path: pathlib.Path, rows) -> pathlib.Path:
  """Writes a line for each object; a string is written as it is."""
  lines = []
  for row in rows:
    line = row if isinstance(row, str) else json.dumps(row)
    lines.append(line + '\n')
  path.write_text(''.join(lines))
  return path


def read_jsonl(path: pathlib.Path) -> list:
  return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder: pathlib.Path) -> list[dict]:
  """Returns the lines of metrics.jsonl without times."""
  lines = []
  for line in read_jsonl(folder / 'metrics.jsonl'):
    lines.append({key: value for key, value in line.items() if key not in TIMES})
  return lines


def rows(count: int, start: int = 0) -> list[dict]:
  """Returns lines of a manifest, whose captions are two colours."""
  lines = []
  for i in range(start, start + count):
    first = COLOURS[i % 4]
    second = COLOURS[i // 4 % 4]
    lines.append(
      {'id': f'e{i}', 'image': f'{i}.png', 'text': second, 'target': f'{first} {second}'}
    )
  return lines


class Place:
  """A folder with pictures, manifests and a config file."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.data = folder / 'data'
    self.config = folder / 'small.py'
    self.config.write_text(CONFIG)
    for i in range(32):
      pixels = np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8)
      Image.fromarray(pixels).save(folder / f'{i}.png')
    long = {'id': 'long', 'image': '28.png', 'target': LONG}
    self.train = write_jsonl(folder / 'train.jsonl', rows(20))
    self.valid = write_jsonl(folder / 'valid.jsonl', [*rows(8, 20), long])

  def argv(self, workdir, *more, train=None, valid=None, text='') -> tuple:
    """Returns the words of a training in `workdir`."""
    arg = f'train={train or self.train},valid={valid or self.valid}{text}'
    return (
      'train',
      f'{self.config}:{arg}',
      '--workdir',
      workdir,
      f'--config.data.dir={self.data}',
      *more,
    )
