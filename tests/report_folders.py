"""Folders that pages are written of, without training: runs with predictions and pictures, and a
sweep as optuna leaves it.
"""

import io
import math
import random

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from PIL import Image

from mmlm.utils import run_dir as runs

EVIL = '<script>alert("x")</script>'
NOUNS = ('dog', 'cat', 'man', 'woman', 'horse', 'child')


def photo(seed: int, side=500) -> bytes:
  """A JPEG as large as a photo: smooth colours with some noise."""
  rng = np.random.default_rng(seed)
  colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
    (side, side * 3 // 4), Image.Resampling.BICUBIC
  )
  noisy = np.clip(
    np.asarray(colours, int) + rng.integers(-12, 13, (side * 3 // 4, side, 1)), 0, 255
  ).astype(np.uint8)
  with io.BytesIO() as file:
    Image.fromarray(noisy).save(file, 'JPEG', quality=90)
    return file.getvalue()


def caption_run(folder, count=60, seed=0, task='captioning', width=32, references=0):
  """A run with curves, a score and predictions, of which every third is right."""
  rng = random.Random(seed)
  draw = random.Random(references)
  runs.write_json(
    folder / 'config.json',
    {
      'name': 'Captions',
      'task': task,
      'seed': seed,
      'model': {'width': width, 'encoders': {'image': {}}},
    },
  )
  runs.write_json(folder / 'environment.json', {'versions': {'jax': '0.10'}})
  rows = [{'step': step, 'kind': 'train', 'loss': 5.0 / step + seed} for step in range(1, 101)]
  rows += [
    {'step': step, 'kind': 'valid', 'loss': 6.0 / step + seed, 'bleu_4': step / 1000}
    for step in range(10, 101, 10)
  ]
  runs.write_jsonl(folder / 'metrics.jsonl', rows)
  score = {'value': 0.2 + seed / 100, 'low': 0.1, 'high': 0.3}
  runs.write_json(
    folder / 'scores' / 'test-100.json',
    {
      'split': 'test',
      'step': 100,
      'shuffled': False,
      'n': count,
      'decoding': {'method': 'beam', 'beam_size': 4},
      'scores': {'bleu_4': score},
    },
  )
  predictions = []
  for i in range(count):
    truth = f'a {draw.choice(NOUNS)} and a {draw.choice(NOUNS)} on {EVIL if i == 7 else "grass"}'
    if i % 3 == 0:
      said = truth
    else:
      said = truth.replace('and a', rng.choice(('with the', 'and', 'and a big')))
    predictions.append(
      {
        'id': f'p{i:04}.jpg',
        'references': [truth, f'animals {i}'],
        'hypothesis': said,
        'score': -float(i),
      }
    )
  runs.write_jsonl(folder / 'predictions' / 'test-100.jsonl', predictions)
  return folder


def swept(folder, count=30, score=True):
  """A sweep over four parameters: one trial in eleven fails, one in seven is stopped; without
  `score` all fail.
  """
  folder.mkdir(parents=True)
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  storage = JournalStorage(JournalFileBackend(str(folder / 'journal.log')))
  study = optuna.create_study(
    storage=storage,
    study_name='sweep',
    direction='maximize',
    sampler=optuna.samplers.RandomSampler(0),
  )
  rows = [_trial(study, folder, number, score) for number in range(count)]
  runs.write_json(folder / 'results.json', rows)
  runs.write_json(
    folder / 'sweep.json',
    {
      'spec': 'configs/translation/x.py',
      'space': 'product(...)',
      'sampler': 'random',
      'pruner': 'asha',
      'seeds': 1,
      'config': {'seed': 0},
    },
  )
  return folder


def _trial(study, folder, number: int, score: bool) -> dict:
  trial = study.ask()
  point = {
    'optimizer.learning_rate': trial.suggest_float('optimizer.learning_rate', 1e-5, 1e-2, log=True),
    'model.dropout': trial.suggest_float('model.dropout', 0.0, 0.5),
    'model.fusion.name': trial.suggest_categorical('model.fusion.name', ['gated', 'late', EVIL]),
    'model.layers': trial.suggest_int('model.layers', 1, 6),
  }
  value = (
    60
    - 4 * (math.log10(point['optimizer.learning_rate']) + 3) ** 2
    - 10 * (point['model.dropout'] - 0.2) ** 2
  )
  if number % 11 == 7 or not score:
    state = 'fail'
  elif number % 7 == 3:
    state = 'pruned'
  else:
    state = 'complete'
  study.tell(
    trial, value if state == 'complete' else None, getattr(optuna.trial.TrialState, state.upper())
  )
  if state == 'complete':
    path = folder / 'runs' / f'{number:04d}' / 'metrics.jsonl'
    runs.write_jsonl(
      path,
      [
        {'step': step, 'kind': 'valid', 'bleu': value * (1 - math.exp(-step / 30))}
        for step in range(10, 101, 10)
      ],
    )
  settings = {key: text if isinstance(text, str) else repr(text) for key, text in point.items()}
  return {
    'trial': number,
    'state': state,
    'settings': settings,
    'monitor': 'bleu',
    'score': value if state == 'complete' else None,
    'error': f'{number:04d}: the loss is no number {EVIL}' if state == 'fail' else '',
    'parameters': trial.params,
    'runs': [{'run': f'runs/{number:04d}', 'state': 'done', 'score': value, 'step': 100}],
  }
