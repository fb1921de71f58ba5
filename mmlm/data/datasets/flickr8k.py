"""Flickr8k (Hodosh et al. 2013): 8,000 photos, five English captions each and, when at hand, five Chinese
ones (Li et al. 2016).

Official split: train 6,000, dev 1,000, test 1,000. The source folder may be laid out in three ways, see HOW.
"""

import collections
import json
import pathlib
import sys
import zipfile

import tensorflow_datasets as tfds

from mmlm.data.datasets import progress
from mmlm.data.image import decode_picture
from mmlm.errors import UserError

SPLITS = ('train', 'dev', 'test')
F = tfds.features


class Flickr8k(tfds.core.GeneratorBasedBuilder):
  """Features: id (file name), image (the JPEG's bytes as they are), captions_en, captions_zh (may be empty).

  Every picture is decoded once while building: a broken one raises UserError or, with skip_broken, is left
  out and counted.
  """

  name = 'flickr8k'
  VERSION = tfds.core.Version('1.0.0')
  FIELDS = {'id': 'id', 'image': 'image', 'targets': 'captions_en'}
  HOW = """\
Get Flickr8k_Dataset.zip and Flickr8k_text.zip (a form at the University of Illinois, or the copy at
https://github.com/jbrownlee/Datasets/releases/tag/Flickr8k), unpack both into one folder, then
  ./launch.sh prepare flickr8k --source FOLDER
Chinese captions: captions_zh.tsv in that folder (split, image, index, kind, caption), made from
https://github.com/li-xirong/flickr8kcn
FOLDER may be laid out as
  (a) captions_en.tsv (split, image, index, caption; captions_zh.tsv beside it adds Chinese) and images_<split>.zip
  (b) Flickr8k.token.txt, Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt and a folder of *.jpg
  (c) dataset_flickr8k.json (Karpathy's) and a folder of *.jpg"""

  def __init__(self, *, source, skip_broken=False, **kwargs):
    self.source, self.skip_broken, self.skipped = pathlib.Path(source), skip_broken, []
    super().__init__(**kwargs)

  def _info(self):
    image, captions = F.Image(shape=(None, None, 3), encoding_format='jpeg'), F.Sequence(F.Text())
    features = {'id': F.Text(), 'image': image, 'captions_en': captions, 'captions_zh': captions}
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    names, english, read = read_layout(self.source)
    chinese = _chinese(self.source)
    for split in SPLITS:
      if not names[split]:
        raise UserError(f'{self.source}: no picture is in the split {split!r}.')
    return {split: self._generate_examples(split, names[split], english, chinese, read) for split in SPLITS}

  def _generate_examples(self, split, names, english, chinese, read):
    for name in progress(names, f'{self.name} {split}'):
      try:
        if not english.get(name):
          raise ValueError('no caption')
        data = read(name)
        decode_picture(data)
        yield name, {'id': name, 'image': data, 'captions_en': english[name], 'captions_zh': chinese.get(name, [])}
      except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        if not self.skip_broken:
          raise UserError(f'{self.source}: the picture {name} ({split}) is unusable ({error}). Replace it, or leave '
                          'such pictures out with --skip_broken.') from None
        print(f'{self.name} {split}: left out {name} ({error})', file=sys.stderr)
        self.skipped.append(name)


def read_layout(source) -> tuple:
  """(names of each split, English captions of each name, function from a name to its bytes). UserError: no
  known layout.
  """
  for name, read in LAYOUTS.items():
    for path in sorted(source.rglob(name)):
      return read(source, path)
  raise UserError(f'{source}: no Flickr8k here (looked for {", ".join(LAYOUTS)}, and below).\n{Flickr8k.HOW}')


def _rows(path, columns):
  """Tab-separated rows below a header as dicts; quotes are literal."""
  header, *lines = path.read_text(encoding='utf-8').splitlines() or ['']
  if header != '\t'.join(columns):
    raise UserError(f'{path}, line 1: the header must be {", ".join(columns)}, separated by tabs.')
  for number, line in enumerate(lines, 2):
    cells = line.split('\t')
    if len(cells) != len(columns):
      raise UserError(f'{path}, line {number}: {len(cells)} columns instead of {len(columns)}.')
    yield dict(zip(columns, cells))


def _read_tsv(source, path):
  names, captions = {split: {} for split in SPLITS}, collections.defaultdict(list)
  for row in _rows(path, ('split', 'image', 'index', 'caption')):
    if row['split'] in names:
      names[row['split']][row['image']] = None
      captions[row['image']].append(row['caption'])
  archives = [zipfile.ZipFile(archive) for archive in sorted(path.parent.glob('images_*.zip'))]
  if not archives:
    raise UserError(f'{path.parent}: captions_en.tsv is there, images_<split>.zip is not.\n{Flickr8k.HOW}')
  where = {member: archive for archive in archives for member in archive.namelist()}
  return {split: list(found) for split, found in names.items()}, captions, lambda name: where[name].read(name)


def _read_original(source, path):
  captions, names = collections.defaultdict(list), {}
  for line in path.read_text(encoding='utf-8').splitlines():
    name, _, caption = line.partition('\t')
    captions[name.partition('#')[0]].append(caption)
  for split in SPLITS:
    listing = path.with_name(f'Flickr_8k.{split}Images.txt')
    if not listing.is_file():
      raise UserError(f'{listing}: not there, but it says which pictures are in the split {split!r}.\n{Flickr8k.HOW}')
    names[split] = listing.read_text(encoding='utf-8').split()
  return names, captions, _folder_reader(source)


def _read_karpathy(source, path):
  names, captions = {split: [] for split in SPLITS}, {}
  for image in json.loads(path.read_text(encoding='utf-8'))['images']:
    names[{'val': 'dev'}.get(image['split'], image['split'])].append(image['filename'])
    captions[image['filename']] = [sentence['raw'].strip() for sentence in image['sentences']]
  return names, captions, _folder_reader(source)


def _folder_reader(source):
  pictures = {path.name: path for path in source.rglob('*.jpg')}
  if not pictures:
    raise UserError(f'{source}: the captions are there, but no *.jpg in this folder or below.\n{Flickr8k.HOW}')
  return lambda name: pictures[name].read_bytes()


LAYOUTS = {'captions_en.tsv': _read_tsv, 'Flickr8k.token.txt': _read_original, 'dataset_flickr8k.json': _read_karpathy}


def _chinese(source):
  captions = collections.defaultdict(list)
  for path in sorted(source.rglob('captions_zh.tsv'))[:1]:
    for row in _rows(path, ('split', 'image', 'index', 'kind', 'caption')):
      if row['kind'] == 'written':
        captions[row['image']].append(row['caption'])
  return captions
