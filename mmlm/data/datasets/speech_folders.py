"""Speech corpora in the folders that users have of them.

LibriSpeech (Panayotov et al. 2015) and CoVoST 2 (Wang et al. 2020).
"""

import pathlib

import tensorflow_datasets as tfds

from mmlm.data.datasets.sounds import Sounds
from mmlm.data.sources.parallel_text import read_lines, read_table
from mmlm.utils.errors import UserError

F = tfds.features
FROM_ENGLISH = (
  'de',
  'tr',
  'fa',
  'sv-SE',
  'mn',
  'zh-CN',
  'cy',
  'ca',
  'sl',
  'et',
  'id',
  'ar',
  'ta',
  'lv',
  'ja',
)
INTO_ENGLISH = ('fr', 'es', 'it', 'ru', 'pt', 'nl', *FROM_ENGLISH)


class LibriSpeech(Sounds):
  """A split for each top folder, its name with _ for -: 'train_clean_100', 'dev_clean'.

  Texts in lower case.
  """

  name = 'librispeech'
  HOW = """\
Get the archives of https://www.openslr.org/12 and unpack them into one folder:  ./launch.sh prepare
librispeech --source FOLDER
FOLDER, or FOLDER/LibriSpeech, holds train-clean-100/SPEAKER/CHAPTER/*.flac with
SPEAKER-CHAPTER.trans.txt, and so on. What is there is prepared; for more splits later remove
data/librispeech first."""

  def read_splits(self) -> dict[str, list]:
    root = next(
      (place for place in (self.source / 'LibriSpeech', self.source) if place.is_dir()), self.source
    )
    splits = {}
    for folder in sorted(root.iterdir()):
      if folder.is_dir():
        splits[folder.name.replace('-', '_')] = self._split(folder)
    if not (splits := {split: rows for split, rows in splits.items() if rows}):
      raise self.missing('no folder with */*/*.trans.txt below')
    return splits

  def _split(self, folder: pathlib.Path) -> list[dict]:
    rows = []
    told = set()
    for transcripts in sorted(folder.glob('*/*/*.trans.txt')):
      for number, line in enumerate(read_lines(transcripts), 1):
        name, _, text = line.partition(' ')
        sound = transcripts.with_name(f'{name}.flac')
        if not text.strip() or not (self.skip_broken or sound.is_file()):
          if not text.strip():
            what = 'no text'
          else:
            what = f'no file {sound.name} beside it'
          raise UserError(f'{transcripts}, line {number}: {name!r} has {what}.')
        told.add(sound)
        rows.append(
          {
            'id': name,
            'audio': sound,
            'speaker': transcripts.parents[1].name,
            'text': text.strip().lower(),
          }
        )
    if alone := sorted(set(folder.glob('*/*/*.flac')) - told):
      raise UserError(f'{alone[0]}: no line of a .trans.txt beside it tells its text.')
    return rows


class Covost(Sounds):
  """Common Voice recordings with a translation of each sentence, in the splits of CoVoST 2: train,
  dev, test.
  """

  name = 'covost'
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=name)
    for name in (
      *(f'{code}_en' for code in INTO_ENGLISH),
      *(f'en_{code}' for code in FROM_ENGLISH),
    )
  ]
  EXTRA = {'sentence': F.Text(), 'translation': F.Text()}
  FIELDS = {'id': 'id', 'audio': 'audio', 'targets': 'translation', 'speaker': 'speaker'}
  HOW = """\
Get the Common Voice corpus 4 of the source language (https://commonvoice.mozilla.org/datasets) and
the translations of
https://github.com/facebookresearch/covost, split them by its get_covost_splits.py:  ./launch.sh
prepare covost/fr_en --source FOLDER
FOLDER holds clips/*.mp3 and covost_v2.fr_en.{train,dev,test}.tsv with a header (path, sentence,
translation; client_id is the speaker)."""

  def read_splits(self) -> dict[str, list]:
    splits = {}
    for split in ('train', 'dev', 'test'):
      path = self.source / f'covost_v2.{self.form}.{split}.tsv'
      if path.is_file():
        splits[split] = [
          self._row(f'{path}, line {number}', row)
          for number, row in enumerate(read_table(path, ('path', 'sentence', 'translation')), 2)
        ]
    if not any(splits.values()):
      raise self.missing(f'no covost_v2.{self.form}.*.tsv with a line')
    return splits

  def _row(
    self,
    where: str,
    row: dict,
  ) -> dict:
    sound = self.source / 'clips' / row['path']
    if not row['sentence'].strip() or not row['translation'].strip():
      raise UserError(f'{where}: no sentence or no translation.')
    if not (self.skip_broken or sound.is_file()):
      raise UserError(f'{where}: no file clips/{row["path"]}.')
    return {
      'id': sound.stem,
      'audio': sound,
      'speaker': row.get('client_id', ''),
      'sentence': row['sentence'].strip(),
      'translation': row['translation'].strip(),
    }
