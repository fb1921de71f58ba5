"""Flickr8k (Hodosh et al. 2013): 8,000 photos, five English captions each and, when at hand, five
Chinese ones (Li et al. 2016).

Official split: train 6,000, dev 1,000, test 1,000. The source folder may be laid out in two ways,
see HOW.
"""

import collections
import pathlib
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.transforms.image import decode_picture
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress

SPLITS = ('train', 'dev', 'test')
F = tfds.features


class Flickr8k(SourceDatasetBuilder):
  """Features: id (file name), image (the JPEG's bytes as they are), captions_en, captions_zh (may
  be empty).

  Every picture is decoded once while building: a broken one raises UserError or, with skip_broken,
  is left out and counted.
  """

  name = 'flickr8k'
  FIELDS = {'id': 'id', 'image': 'image', 'targets': 'captions_en'}
  HOW = """\
Get Flickr8k_Dataset.zip and Flickr8k_text.zip (a form at the University of Illinois, or the copy at
https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k), unpack both into one folder, then
  ./launch.sh prepare flickr8k --source FOLDER
FOLDER may hold the captions as Flickr8k.token.txt and Flickr_8k.{train,dev,test}Images.txt, or as
captions_en.tsv (split, image, index, caption), the pictures as *.jpg or in images_<split>.zip, and
Chinese captions, made from https://github.com/li-xirong/flickr8kcn, as captions_zh.tsv (split,
image, index, kind, caption)"""

  def _info(self) -> tfds.core.DatasetInfo:
    image = F.Image(shape=(None, None, 3), encoding_format='jpeg')
    captions = F.Sequence(F.Text())
    features = {'id': F.Text(), 'image': image, 'captions_en': captions, 'captions_zh': captions}
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    names, *parts = read_source(self.source)
    return {split: self._generate_examples(split, names[split], *parts) for split in SPLITS}

  def _generate_examples(
    self, split: str, names: Iterable[str], english: dict, chinese: dict, pictures: dict
  ) -> Iterator:
    for name in progress(names, f'{self.name} {split}'):
      try:
        if not english[name]:
          raise UserError('no caption')
        data = pictures[name].read_bytes()
        decode_picture(data)
        yield (
          name,
          {'id': name, 'image': data, 'captions_en': english[name], 'captions_zh': chinese[name]},
        )
      except (UserError, KeyError, OSError, zipfile.BadZipFile) as error:
        if not self.skip_broken:
          raise UserError(
            f'{self.source}: unusable {name} ({split}, {error}): replace it, or use --skip_broken.'
          ) from None
        print(
          f'{self.name} {split}: left out {name} ({error})',
          file=sys.stderr,
        )
        self.skipped.append(name)


def read_source(source: pathlib.Path) -> tuple:
  """What a folder holds, by HOW.

  Returns: names of each split; English and Chinese captions of each name (no caption is an empty
  list); the file of each name, in a folder or an archive.
  Raises: UserError when there are no captions, no pictures, or no name for a split.
  """
  names: dict[str, Any] = collections.defaultdict(dict)  # a dict or a list, its names in order
  english: dict[str, list[str]] = collections.defaultdict(list)
  chinese: dict[str, list[str]] = collections.defaultdict(list)
  for split, name, _, caption in _rows(
    source, 'captions_en.tsv', 'split', 'image', 'index', 'caption'
  ):
    names[split][name] = None
    english[name].append(caption)
  for _, name, _, kind, caption in _rows(
    source, 'captions_zh.tsv', 'split', 'image', 'index', 'kind', 'caption'
  ):
    if kind == 'written':
      chinese[name].append(caption)
  tokens = next(source.rglob('Flickr8k.token.txt'), None)
  if tokens and not english:
    for name, caption in re.findall(r'(.*)#\d+\t(.*)', tokens.read_text(encoding='utf-8')):
      english[name].append(caption)
    for split in SPLITS:
      listing = tokens.with_name(f'Flickr_8k.{split}Images.txt')
      names[split] = listing.read_text(encoding='utf-8').split() if listing.is_file() else []
  pictures = {path.name: path for path in source.rglob('*.jpg')}
  for archive in source.rglob('images_*.zip'):
    pictures |= {path.name: path for path in zipfile.Path(archive).iterdir()}
  for what, found in [('English captions', english), ('pictures', pictures)] + [
    (
      f'names of the split {split!r} (in captions_en.tsv or Flickr_8k.{split}Images.txt)',
      names[split],
    )
    for split in SPLITS
  ]:
    if not found:
      raise UserError(f'{source}: no Flickr8k here or below, there are no {what}.\n{Flickr8k.HOW}')
  return names, english, chinese, pictures


def _rows(source: pathlib.Path, name: str, *columns: str) -> list[list[str]]:
  """Tab-separated rows below the header of the first file of a name, none without a file; quotes
  are literal.
  """
  path = next(source.rglob(name), None)
  if path:
    rows = [line.split('\t') for line in path.read_text(encoding='utf-8').splitlines()]
  else:
    rows = []
  for number, row in enumerate(rows, 1):
    if len(row) != len(columns) or (number == 1 and row != [*columns]):
      raise UserError(
        f'{path}, line {number}: {len(row)} columns that should be {", ".join(columns)}, separated '
        'by tabs.'
      )
  return rows[1:]
