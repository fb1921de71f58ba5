"""Multi30k (Elliott et al. 2016, 2017; Barrault et al. 2018): captions of Flickr30k photos with
their translations.

Translations: train 29,000, valid 1,014, test_2016 1,000 (en, de, fr, cs), test_2017 1,000 and
test_coco 461 (en, de, fr). A quarter of the photos of train, valid and test_2016 is also in
Flickr8k; no other photo is used.
"""

import collections
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.datasets.flickr8k import read_source
from mmlm.data.sources.parallel_text import read_table
from mmlm.data.transforms.image import decode_picture
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress

LANGUAGES = ('en', 'de', 'fr', 'cs')
F = tfds.features
FILES = {
  'train': 'train',
  'valid': 'val',
  'test_2016': 'test_2016_flickr',
  'test_2017': 'test_2017_flickr',
  'test_coco': 'test_2017_mscoco',
}
PHOTO_SPLITS = ('train', 'valid', 'test_2016')
DESCRIPTIONS = {
  'train': 'task2_train_with_image',
  'valid': 'task2_val_with_image',
  'test_2016': 'task2_test_2016_with_image',
}
FORMS = ('text', 'photos', 'descriptions')


class Multi30k(SourceDatasetBuilder):
  """Forms: 'text' (all pairs, no photo), 'photos' (pairs with their photo: 6,993 / 242 / 243),
  'descriptions' (those photos with five English and five German descriptions each, written
  independently).

  Features: id (the photo's name), en, de, fr, cs ('' where a split has no such language); image
  (JPEG) with photos; 'descriptions' has en and de as lists.
  """

  name = 'multi30k'
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=form) for form in FORMS]
  FIELDS = {'id': 'id', 'text': 'en', 'targets': 'de'}
  HOW = """\
Get the texts from https://github.com/multi30k/dataset (data/task1/raw, data/task2/raw) and make one
table a split, then
  ./launch.sh prepare multi30k --source FOLDER
FOLDER holds train.tsv, val.tsv, test_2016_flickr.tsv, test_2017_flickr.tsv and
test_2017_mscoco.tsv: tab-separated, not tokenised, with the columns image, flickr8k_image (the
photo's name in Flickr8k, or empty) and one a language (en, de, fr, cs).
Photos (multi30k/photos, multi30k/descriptions): Flickr8k in FOLDER/../flickr8k or
$MMLM_DATA/flickr8k; descriptions also need task2_train_with_image.tsv, task2_val_with_image.tsv and
task2_test_2016_with_image.tsv (image, flickr8k_image, lang, index, description)."""

  def _info(self) -> tfds.core.DatasetInfo:
    form = self.form
    if form == 'descriptions':
      text = F.Sequence(F.Text())
    else:
      text = F.Text()
    features: dict[str, Any] = {'id': F.Text()} | dict.fromkeys(
      LANGUAGES[:2] if form == 'descriptions' else LANGUAGES, text
    )
    if form != 'text':
      features['image'] = F.Image(shape=(None, None, 3), encoding_format='jpeg')
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    form = self.form
    splits = {
      split: list(self._examples(form, split))
      for split in (FILES if form == 'text' else PHOTO_SPLITS)
    }
    if empty := [split for split, examples in splits.items() if not examples]:
      raise UserError(
        f'{self.source}: {empty[0]} has no example{"" if form == "text" else " with a photo"}.'
      )
    if form != 'text':
      owners = collections.defaultdict(set)
      for split, examples in splits.items():
        for example in examples:
          for name in (example['id'], example['image']):
            owners[name].add(split)
      if shared := [name for name, found in owners.items() if len(found) > 1]:
        raise UserError(
          f'{self.source}: the photo {shared[0]} is in {" and ".join(sorted(owners[shared[0]]))}.'
        )
    return {split: self._generate_examples(split, examples) for split, examples in splits.items()}

  def _examples(
    self,
    form: str,
    split: str,
  ) -> Iterator[dict]:
    """Examples of a split, their image still the photo's name in Flickr8k."""
    name = (DESCRIPTIONS if form == 'descriptions' else FILES)[split]
    path = self.source / f'{name}.tsv'
    if not path.is_file():
      raise UserError(f'{path}: no such file.\n{self.HOW}')
    if form == 'descriptions':
      found = {}
      for number, row in enumerate(
        read_table(path, ('image', 'flickr8k_image', 'lang', 'index', 'description')), 2
      ):
        if row['lang'] not in LANGUAGES[:2]:
          raise UserError(
            f"{path}, line {number}: the language {row['lang']!r} is neither 'en' nor 'de'."
          )
        example = found.setdefault(
          row['image'], {'id': row['image'], 'image': row['flickr8k_image'], 'en': [], 'de': []}
        )
        example[row['lang']].append(row['description'])
      yield from found.values()
      return
    for number, row in enumerate(read_table(path, ('image', 'flickr8k_image', 'en', 'de')), 2):
      example = {'id': row['image']} | {
        language: row.get(language, '').strip() for language in LANGUAGES
      }
      if not (example['en'] and example['de']):
        raise UserError(f'{path}, line {number}: an empty text.')
      if form == 'text':
        yield example
      elif row['flickr8k_image']:
        yield example | {'image': row['flickr8k_image']}

  def _generate_examples(
    self,
    split: str,
    examples: Any,
  ) -> Iterator:
    if 'image' in examples[0]:
      pictures = self._photos()
    else:
      pictures = None
    for number, example in enumerate(progress(examples, f'{self.name} {split}')):
      if pictures:
        try:
          data = pictures[example['image']].read_bytes()
          decode_picture(data)
        except (UserError, KeyError, OSError, zipfile.BadZipFile) as error:
          if not self.skip_broken:
            raise UserError(
              f'the photo {example["image"]} ({split}) is unusable ({error}). Leave such out with '
              '--skip_broken.'
            ) from None
          self.skipped.append(example['id'])
          continue
        example = example | {'image': data}
      yield number, example

  def _photos(self):
    places = [
      self.source.parent / 'flickr8k',
      pathlib.Path(os.path.expandvars('$MMLM_DATA/flickr8k')),
    ]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
      raise UserError(
        f'no Flickr8k for the photos, looked in {places[0]} and {places[1]}.\n{self.HOW}'
      )
    return read_source(folder)[-1]
