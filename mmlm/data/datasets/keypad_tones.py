"""Generated set: digits dialled on a keypad, as sounds of two tones each in noise, and the digits
as words.

No sequence of digits stands in two splits, and tempo, loudness, pitch and noise differ from sound
to sound.
"""

import io
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile
import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.data.datasets.sounds import DIGITS
from mmlm.utils.progress import progress

F = tfds.features
RATE = 8000
SIZES = {
  'full': {'train': 4000, 'valid': 300, 'test': 500},
  'tiny': {'train': 200, 'valid': 32, 'test': 32},
}
# Hz of the rows and columns of the keypad (ITU-T Q.23)
LOW = (697, 770, 852, 941)
HIGH = (1209, 1336, 1477)
KEYS = ('123', '456', '789', '*0#')
LENGTHS = (4, 8)  # digits of a sequence, from and to


class KeypadTones(DatasetBuilder):
  """Features: id (split and number), audio (FLAC, 8 kHz, 0.5 to 3 seconds), digits ('5205'), words
  ('five two zero five').
  """

  name = 'keypad_tones'
  FIELDS = {'id': 'id', 'audio': 'audio', 'targets': 'words'}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SIZES]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'id': F.Text(),
      'audio': F.Tensor(shape=(), dtype=np.object_),
      'digits': F.Text(),
      'words': F.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    sizes = SIZES[self.form]
    rng = random.Random(0)
    found = {}
    while len(found) < sum(sizes.values()):
      found[''.join(rng.choices('0123456789', k=rng.randint(*LENGTHS)))] = None
    sequences = iter(found)
    result = {}
    for split, size in sizes.items():
      result[split] = self._generate_examples(split, [next(sequences) for _ in range(size)])
    return result

  def _generate_examples(
    self,
    split: str,
    sequences: Any,
  ) -> Iterator:
    for number, digits in enumerate(progress(sequences, f'{self.name} {split}')):
      words = ' '.join(DIGITS[int(digit)] for digit in digits)
      yield (
        number,
        {'id': f'{split}/{number}', 'audio': dial(digits), 'digits': digits, 'words': words},
      )


def dial(digits: str) -> bytes:
  """Returns a FLAC of the keys, pressed one after the other; the digits seed its randomness."""
  rng = np.random.default_rng([int(digit) for digit in digits])
  tempo = rng.uniform(0.7, 1.4)
  detuned = rng.uniform(0.985, 1.015)
  parts = [_silence(rng, 1)]
  for digit in digits:
    row = next(i for i, keys in enumerate(KEYS) if digit in keys)
    times = np.arange(int(RATE * tempo * rng.uniform(0.06, 0.14))) / RATE
    waves = []
    for hertz in (LOW[row], HIGH[KEYS[row].index(digit)]):
      waves.append(np.sin(2 * np.pi * (hertz * detuned * times + rng.uniform())))
    parts += [
      waves[0] + rng.uniform(0.6, 1.4) * waves[1],
      _silence(rng, tempo),
    ]
  samples = np.concatenate(parts) * rng.uniform(0.05, 0.2)
  samples += rng.normal(
    0,
    samples.std() * rng.uniform(0.3, 2),
    len(samples),
  )  # of 10 to -6 dB
  file = io.BytesIO()
  soundfile.write(file, np.clip(samples, -1, 1), RATE, format='FLAC', subtype='PCM_16')
  return file.getvalue()


def _silence(rng: np.random.Generator, tempo: float) -> np.ndarray:
  return np.zeros(int(RATE * tempo * rng.uniform(0.03, 0.12)))
