"""Generated set: a sentence, a face and a melody, each of which may displease, leave cold or
please; the label needs all that are there.

Each says one of three values, and the label is the sum of those that are there modulo 3: whoever
does not look at one of them can only guess. Half of the training examples lack one or two. Without
these nothing could be learned: no modality and no pair tells anything of the label of three.
Held-out examples have all three.
"""

import functools
import io
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw

from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.utils.progress import progress

F = tfds.features
CLASSES = ['negative', 'neutral', 'positive']
SIZES = {
  'full': {'train': 12000, 'valid': 500, 'test': 1000},
  'tiny': {'train': 200, 'valid': 32, 'test': 32},
}
WORDS = (
  ('dreadful', 'boring', 'weak', 'lifeless', 'clumsy', 'stale'),
  ('ordinary', 'average', 'usual', 'plain', 'common', 'expected'),
  ('brilliant', 'moving', 'funny', 'gripping', 'lovely', 'fresh'),
)
FRAMES = (
  'the film is {}',
  'i found the acting {}',
  'a {} story',
  'what a {} ending',
  'her part was {} as well',
  'it was {} from the first scene on',
)
SIDE = 32
BANDS = 12


class ThreeModalities(DatasetBuilder):
  """Features: id, text, image (PNG [32, 32, 1], a face), audio ([S, 12], the energies of a melody
  over time), label (the class), score (-1, 0, 1).

  What an example lacks is empty.
  """

  name = 'three_modalities'
  VERSION = tfds.core.Version('2.0.0')
  FIELDS = {'id': 'id', 'text': 'text', 'image': 'image', 'audio': 'audio', 'label': 'label'}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SIZES]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'id': F.Text(),
      'text': F.Text(),
      'image': F.Tensor(shape=(), dtype=np.object_),
      'audio': F.Tensor(shape=(None, BANDS), dtype=np.float32),
      'label': F.ClassLabel(names=CLASSES),
      'score': F.Scalar(dtype=np.float32),
    }
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    result = {}
    for split, size in SIZES[self.form].items():
      result[split] = self._generate_examples(split, size)
    return result

  def _generate_examples(
    self,
    split: str,
    size: Any,
  ) -> Iterator:
    for number in progress(range(size), f'{self.name} {split}'):
      yield number, draw(f'{split}/{number}')


def draw(name: str) -> dict:
  """The example of a name, which begins with its split: its values and all that is left to chance
  follow from it.
  """
  rng = random.Random(name)
  values = [rng.randrange(3) for _ in range(3)]
  few = name.startswith('train/') and rng.randrange(2)
  there = set(
    rng.sample(
      range(3),
      rng.choice((1, 2)) if few else 3,
    )
  )
  said, seen, heard = values
  label = sum(values[k] for k in there) % 3
  return {
    'id': name,
    'text': rng.choice(FRAMES).format(rng.choice(WORDS[said])) if 0 in there else '',
    'image': face(seen, rng) if 1 in there else b'',
    'audio': melody(heard, rng) if 2 in there else np.zeros((0, BANDS), np.float32),
    'label': label,
    'score': label - 1,
  }


def face(value: int, rng: random.Random) -> bytes:
  """A PNG of a round face, its mouth turned down (0), straight (1) or up (2)."""
  picture = Image.new('L', (SIDE, SIDE))
  pen = ImageDraw.Draw(picture)
  grey = rng.randrange(150, 256)
  x = rng.randrange(15, 18)
  y = rng.randrange(15, 18)
  r = rng.randrange(11, 13)
  pen.ellipse(
    (x - r, y - r, x + r, y + r),
    outline=grey,
  )
  for side in (-1, 1):
    pen.point(
      (x + side * r // 3, y - r // 3),
      grey,
    )
  bend = (value - 1) * r / 2
  mouth = []
  for dx in range(-int(0.6 * r), int(0.6 * r) + 1):
    mouth.append(
      (
        x + dx,
        y + r / 2 + bend * (1 - 2 * (dx / (0.6 * r)) ** 2) / 2,
      )
    )
  pen.line(mouth, grey, 2)
  pixels = np.asarray(
    picture,
    np.float32,
  ) + np.random.default_rng(rng.randrange(1 << 30)).normal(0, 6, (SIDE, SIDE))
  file = io.BytesIO()
  Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
    file,
    'PNG',
  )
  return file.getvalue()


@functools.cache
def _bell() -> np.ndarray:
  return np.array([math.exp(-((k - BANDS) ** 2) / 2) for k in range(2 * BANDS + 1)])


def melody(value: int, rng: random.Random) -> np.ndarray:
  """[S, 12]: a tone that falls (0), stays (1) or rises (2), from anywhere, in noise."""
  steps = rng.randrange(8, 17)
  rise = (value - 1) * rng.randrange(4, 7)
  start = rng.uniform(
    max(0, -rise),
    min(BANDS - 1, BANDS - 1 - rise),
  )
  centres = [round(start + rise * t / (steps - 1)) for t in range(steps)]
  noise = np.random.default_rng(rng.randrange(1 << 30)).normal(
    0,
    0.1,
    (steps, BANDS),
  )
  return (np.stack([_bell()[BANDS - c : 2 * BANDS - c] for c in centres]) + noise).astype(
    np.float32
  )
