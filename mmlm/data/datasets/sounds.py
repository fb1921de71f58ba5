"""Speech: FSDD (Jackson et al. 2018), AN4 (Acero and Stern 1990) and the Mboshi-French corpus
(Godard et al. 2018).
"""

import collections
import html
import pathlib
import random
import re
import sys
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.sources.parallel_text import read_lines, read_table
from mmlm.data.transforms.audio import SUFFIXES, decode_audio
from mmlm.utils.errors import UserError
from mmlm.utils.progress import progress

F = tfds.features
DIGITS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']


class Sounds(SourceDatasetBuilder, skip_registration=True):
  """Features: id, audio (the bytes of the file as they are), speaker, and those of `EXTRA`.

  Every sound is decoded once while building: a broken one raises UserError or, with skip_broken, is
  left out and counted.
  """

  AUDIO = F.Tensor(shape=(), dtype=np.object_)
  EXTRA = {'text': F.Text()}
  FIELDS = {'id': 'id', 'audio': 'audio', 'targets': 'text', 'speaker': 'speaker'}

  def _info(self) -> tfds.core.DatasetInfo:
    features = {'id': F.Text(), 'audio': self.AUDIO, 'speaker': F.Text(), **self.EXTRA}
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    result = {}
    for split, rows in self.read_splits().items():
      result[split] = self._generate_examples(split, rows)
    return result

  def read_splits(self) -> dict[str, list[dict]]:
    """{split: examples}, with the path of a sound (of the disk or in an archive) where its bytes
    will stand.
    """
    raise NotImplementedError

  def _generate_examples(
    self,
    split: str,
    rows: Any,
  ) -> Iterator:
    for row in progress(rows, f'{self.name} {split}'):
      try:
        yield row['id'], row | {'audio': self.read(row['audio'])}
      except (UserError, OSError, KeyError, zipfile.BadZipFile) as error:
        if not self.skip_broken:
          raise UserError(
            f'{row["audio"]}: unusable ({split}, {error}): replace it, or use --skip_broken.'
          ) from None
        print(
          f'{self.name} {split}: left out {row["id"]} ({error})',
          file=sys.stderr,
        )
        self.skipped.append(row['id'])

  def read(self, sound: Any) -> Any:
    data = sound.read_bytes()
    decode_audio(data)
    return data

  def missing(self, what: str) -> UserError:
    return UserError(f'{self.source}: {what}.\n{self.HOW}')


def files_in(place: pathlib.Path) -> dict:
  """{name without its ending: path} of the sounds in a folder, or in an archive `<folder>.zip`
  beside it.
  """
  if place.is_dir():
    found = place.iterdir()
  elif (archive := place.with_suffix('.zip')).is_file():
    try:
      found = zipfile.Path(archive).iterdir()
    except zipfile.BadZipFile as error:
      raise UserError(f'{archive}: cannot be unpacked ({error}).') from None
  else:
    found = ()
  return {path.stem: path for path in sorted(found, key=str) if path.suffix.lower() in SUFFIXES}


class Fsdd(Sounds):
  """Spoken digits of six speakers, 50 times each.

  Recordings 0 to 4 are the official test; 5 to 9 of the others are held out as 'valid'.
  """

  name = 'fsdd'
  EXTRA = {'word': F.Text(), 'label': F.ClassLabel(names=DIGITS)}
  FIELDS = {'id': 'id', 'audio': 'audio', 'targets': 'word', 'label': 'label', 'speaker': 'speaker'}
  HOW = """\
git clone https://github.com/Jakobovski/free-spoken-digit-dataset:  ./launch.sh prepare fsdd
--source FOLDER
FOLDER holds recordings/{digit}_{speaker}_{number}.wav (or .flac), or the same in recordings.zip."""

  def read_splits(self) -> dict[str, list]:
    splits = {'train': [], 'valid': [], 'test': []}
    for name, path in files_in(self.source / 'recordings').items():
      if not (parts := re.fullmatch(r'(\d)_(.+)_(\d+)', name)):
        raise UserError(
          f'{path}: expected a name such as 7_jackson_32.wav: digit, speaker, number.'
        )
      digit = int(parts[1])
      speaker = parts[2]
      number = int(parts[3])
      if number < 5:
        split = 'test'
      elif number < 10:
        split = 'valid'
      else:
        split = 'train'
      splits[split].append(
        {'id': name, 'audio': path, 'speaker': speaker, 'word': DIGITS[digit], 'label': digit}
      )
    if empty := [split for split, rows in splits.items() if not rows]:
      raise self.missing(f'no recordings of the split {empty[0]!r}')
    return splits


class An4(Sounds):
  """Spelled words, numbers, dates: 1,078 utterances as 13 cepstra a hundred times a second. 'valid'
  is eight of the training speakers.
  """

  name = 'an4'
  FOLDER = 'an4_mfcc'
  WIDTH = 13
  AUDIO = F.Tensor(shape=(None, WIDTH), dtype=np.float32)
  HOW = """\
Get AN4 (http://www.speech.cs.cmu.edu/databases/an4) and compute its cepstra with Sphinx:
./launch.sh prepare an4 --source FOLDER
FOLDER holds utterances.tsv (id, split, speaker, frames, text) and mfcc.npz: 'mfcc' [all frames,
13], an utterance after the other in the order of the table, and 'offsets', where each begins and
where the last ends."""

  def read_splits(self) -> dict[str, list]:
    path = self.source / 'utterances.tsv'
    if not path.is_file():
      raise self.missing('no utterances.tsv')
    rows, (cepstra, offsets) = (
      read_table(path, ('id', 'split', 'speaker', 'frames', 'text')),
      self._cepstra(),
    )
    if len(offsets) != len(rows) + 1 or offsets[-1] != len(cepstra):
      raise UserError(
        f'{path}: {len(rows)} utterances, mfcc.npz has {len(offsets) - 1} of {offsets[-1]} frames '
        f'out of {len(cepstra)}.'
      )
    speakers = sorted({row['speaker'] for row in rows if row['split'] == 'train'})
    held_out = set(
      random.Random(0).sample(
        speakers,
        max(1, len(speakers) // 9),
      )
    )
    splits = {'train': [], 'valid': [], 'test': []}
    for i, row in enumerate(rows):
      found = cepstra[offsets[i] : offsets[i + 1]].astype(np.float32)
      if (
        row['split'] not in ('train', 'test')
        or row['frames'] != str(len(found))
        or not row['text'].strip()
      ):
        raise UserError(
          f'{path}, line {i + 2}: split {row["split"]!r}, {row["frames"]} frames ({len(found)} in '
          'mfcc.npz) or an empty text.'
        )
      if not len(found) or not np.isfinite(found).all():
        raise UserError(
          f'{path}, line {i + 2}: the cepstra of {row["id"]} are none, or not finite.'
        )
      if row['speaker'] in held_out:
        split = 'valid'
      else:
        split = row['split']
      splits[split].append(
        {
          'id': row['id'],
          'audio': found,
          'speaker': row['speaker'],
          'text': row['text'].strip().lower(),
        }
      )
    return splits

  def read(self, sound: Any) -> Any:
    return sound

  def _cepstra(self) -> tuple:
    path = self.source / 'mfcc.npz'
    try:
      with np.load(path, allow_pickle=False) as file:
        cepstra = file['mfcc']
        offsets = file['offsets']
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
      raise UserError(f'{path}: no file with mfcc and offsets ({error}).\n{self.HOW}') from None
    if cepstra.ndim != 2 or cepstra.shape[1] != self.WIDTH:
      raise UserError(f'{path}: mfcc has the shape {cepstra.shape}, expected rows of {self.WIDTH}.')
    return cepstra, offsets


class Mboshi(Sounds):
  """5,130 read sentences of three speakers, written in Mboshi and translated into French, in lower
  case.

  The corpus has a training and a development split, which is the 'test' here; they share no Mboshi
  sentence, but 52 French ones. 'valid' is about a twentieth of each training speaker, without a
  sentence, Mboshi or French, that is also in 'train'.
  """

  name = 'mboshi'
  FOLDER = 'mboshi_french'
  # 1.0.0 had &apos; in its French, which sacreBLEU's 13a reads as the words '& apos ;'.
  VERSION = tfds.core.Version('1.0.1')
  EXTRA = {'mboshi': F.Text(), 'french': F.Text()}
  FIELDS = {'id': 'id', 'audio': 'audio', 'targets': 'mboshi', 'speaker': 'speaker'}
  COLUMNS = ('id', 'split', 'speaker', 'mboshi', 'french')
  SHARE = 0.055  # of the training split that is held out
  HOW = """\
git clone https://github.com/besacier/mboshi-french-parallel-corpus:  ./launch.sh prepare mboshi
--source FOLDER
FOLDER holds full_corpus_newsplit/{train,dev} with NAME.wav, NAME.mb.cleaned and NAME.fr.cleaned, or
utterances.tsv (id, split, speaker, mboshi, french) and the sounds in speech_{train,dev} or
speech_{train,dev}.zip."""

  def read_splits(self) -> dict[str, list]:
    table = self.source / 'utterances.tsv'
    splits = {'train': [], 'dev': []}
    for where, row, sound in (
      self._of_table(table)
      if table.is_file()
      else self._of_files(self.source / 'full_corpus_newsplit')
    ):
      if row['split'] not in splits or not row['mboshi'].strip() or not row['french'].strip():
        raise UserError(
          f'{where}: an empty text, or the split {row["split"]!r} is none of train, dev.'
        )
      row = {
        key: html.unescape(row[key]).strip() for key in self.COLUMNS
      }  # Moses wrote &apos; for an apostrophe
      splits[row.pop('split')].append(row | {'audio': sound})
    if empty := [split for split, rows in splits.items() if not rows]:
      raise self.missing(f'no utterance of the split {empty[0]!r}')
    held_out = self._held_out(splits['train'])
    rest, valid = (
      [row for row in splits['train'] if (row['id'] in held_out) == held] for held in (False, True)
    )
    return {'train': rest, 'valid': valid, 'test': splits['dev']}

  def _of_table(self, table: pathlib.Path) -> Iterator:
    sounds = {split: files_in(self.source / f'speech_{split}') for split in ('train', 'dev')}
    for number, row in enumerate(read_table(table, self.COLUMNS), 2):
      sound = sounds.get(row['split'], {}).get(row['id'])
      if sound is None:
        raise UserError(
          f'{table}, line {number}: no sound {row["id"]} in speech_{row["split"]} or '
          f'speech_{row["split"]}.zip.'
        )
      yield f'{table}, line {number}', row, sound

  def _of_files(self, folder: pathlib.Path) -> Iterator:
    for split in ('train', 'dev'):
      for name, sound in files_in(folder / split).items():
        texts = []
        for language in ('mb', 'fr'):
          texts.append(' '.join(read_lines(sound.with_name(f'{name}.{language}.cleaned'))))
        yield (
          sound,
          dict(
            zip(
              self.COLUMNS,
              (name, split, name.partition('_')[0], *texts),
            )
          ),
          sound,
        )

  def _held_out(self, rows: list[dict]) -> set[str]:
    """Ids of utterances whose sentences are in no other: groups that share a sentence, drawn as
    long as their speakers have room.
    """
    group = {}  # text -> list of rows, one object for all that hang together
    for row in rows:
      joined = [row]
      texts = (('mboshi', row['mboshi']), ('french', row['french']))
      for other in {id(found): found for text in texts if (found := group.get(text))}.values():
        joined += other
      group |= {
        (language, member[language]): joined
        for member in joined
        for language in ('mboshi', 'french')
      }
    groups = sorted(
      {id(found): found for found in group.values()}.values(),
      key=lambda found: min(row['id'] for row in found),
    )
    random.Random(0).shuffle(groups)
    room = {}
    for speaker, count in collections.Counter(row['speaker'] for row in rows).items():
      room[speaker] = max(1, round(self.SHARE * count))
    held_out = set()
    for found in groups:
      needed = collections.Counter(row['speaker'] for row in found)
      if all(needed[speaker] <= room[speaker] for speaker in needed):
        room = {speaker: left - needed[speaker] for speaker, left in room.items()}
        held_out |= {row['id'] for row in found}
    return held_out
