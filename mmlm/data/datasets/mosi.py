"""CMU-MOSI (Zadeh et al. 2016): 2,199 utterances of 93 reviews on video, scored from -3 to 3.

Two splits are in use. The standard one, 1,284 / 229 / 686, and that of bc-LSTM (Poria et al. 2017),
1,447 / 752 by videos. The utterance features of text and video that are in use were learned on the
training labels of the latter: 558 of the 686 test utterances of the standard split are among them.
They can be had with the split of bc-LSTM only.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mmlm.data.datasets.builder import SourceDatasetBuilder
from mmlm.data.sources.parallel_text import read_table
from mmlm.utils.errors import UserError

F = tfds.features
WIDTHS = {'text': 100, 'audio': 73, 'video': 100}
COLUMNS = (
  'id',
  'video',
  'segment',
  'split',
  'bclstm_split',
  'label',
  'label_source',
  'binary',
  'text',
)
FORMS = ('standard', 'bclstm', 'bclstm_videos')
LEAK = (
  'mosi/standard has no field {0!r}: the {0} features come from classifiers that were trained on '
  "most of this split's test utterances, so "
  'that any score would be one of training examples. Read them from mosi/bclstm or '
  'mosi/bclstm_videos; text and audio are free of this.'
)


class Mosi(SourceDatasetBuilder):
  """Features of the forms:

  'standard': id, text (the transcript), audio [73] (openSMILE), label (the score), binary
  (negative, positive).
  'bclstm': the same with text_features [100] (CNN) and video [100] (3D-CNN).
  'bclstm_videos': one example a video: id, parts (names of its utterances), text_features, audio,
  video [T, ...], label [T], binary [T].

  The validation split of the last two is ten training videos.
  """

  name = 'mosi'
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=form) for form in FORMS]
  FIELDS = {'id': 'id', 'text': 'text', 'label': 'label'}
  HOW = """\
./launch.sh prepare mosi/standard --source FOLDER   (or mosi/bclstm, mosi/bclstm_videos)
FOLDER holds utterances.tsv (id, video, segment, split, bclstm_split, label, label_source, binary,
text), made from the transcripts and labels of CMU-MultimodalSDK
(https://github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK), and features.npz (text, audio, video, a
row an utterance), from bc-LSTM/data of https://github.com/declare-lab/multimodal-deep-learning."""

  @classmethod
  def check_features(
    cls,
    form: str,
    features: Iterable[str],
  ) -> None:
    """Raises UserError for a feature that the standard form leaves out on purpose."""
    if form not in ('', 'standard'):
      return
    for name in features:
      if name in ('video', 'text_features'):
        raise UserError(LEAK.format(name))

  def _info(self) -> tfds.core.DatasetInfo:
    form = self.form
    several = form == 'bclstm_videos'

    def wrap(feature: Any) -> Any:
      return F.Sequence(feature) if several else feature

    def shape(width: int) -> tuple:
      return (None, width) if several else (width,)

    features = {
      'id': F.Text(),
      'label': wrap(F.Scalar(dtype=np.float32)),
      'binary': wrap(F.ClassLabel(names=['negative', 'positive'])),
    }
    features['audio'] = F.Tensor(shape=shape(WIDTHS['audio']), dtype=np.float32)
    features |= {'parts': F.Sequence(F.Text())} if several else {'text': F.Text()}
    if form != 'standard':
      features |= {
        name: F.Tensor(shape=shape(100), dtype=np.float32) for name in ('text_features', 'video')
      }
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
    rows = self._read()
    features = self._features()
    form = self.form
    if wrong := [name for name, values in features.items() if len(values) != len(rows)]:
      raise UserError(
        f'{self.source}: features.npz has {len(features[wrong[0]])} rows of {wrong[0]}, '
        f'utterances.tsv {len(rows)}.'
      )
    videos = sorted({row['video'] for row in rows if row['bclstm_split'] == 'train'})
    held_out = set(random.Random(0).sample(videos, 10))
    examples = {'train': [], 'valid': [], 'test': []}
    for i, row in enumerate(rows):
      if form == 'standard':
        split = row['split']
      elif row['video'] in held_out:
        split = 'valid'
      else:
        split = row['bclstm_split']
      label = float(row['label'] or 'nan')
      binary = int(row['binary'])
      if form == 'standard' and row['label_source'] == 'missing':
        continue  # two training utterances: their score is not known, only that it is positive
      example = {
        'id': row['id'],
        'text': row['text'],
        'label': label,
        'binary': binary,
        'audio': features['audio'][i],
      }
      if form != 'standard':
        example |= {'text_features': features['text'][i], 'video': features['video'][i]}
      examples[split].append(
        example
        | {
          'of': row['video'],
          'segment': int(row['segment']),
        }
      )
    return {split: self._generate_examples(found) for split, found in examples.items()}

  def _read(self) -> list[dict]:
    path = self.source / 'utterances.tsv'
    rows = read_table(path, COLUMNS)
    for number, row in enumerate(rows, 2):
      if (
        row['split'] not in ('train', 'valid', 'test')
        or row['bclstm_split'] not in ('train', 'test')
        or row['binary'] not in ('0', '1')
      ):
        raise UserError(
          f'{path}, line {number}: split {row["split"]!r}, bclstm_split {row["bclstm_split"]!r} or '
          f'binary {row["binary"]!r} is none.'
        )
    return rows

  def _features(self) -> dict:
    path = self.source / 'features.npz'
    try:
      with np.load(path, allow_pickle=False) as file:
        found = {name: np.asarray(file[name], np.float32) for name in WIDTHS}
    except (OSError, ValueError, KeyError) as error:
      raise UserError(
        f'{path}: no feature file with {", ".join(WIDTHS)} ({error}).\n{self.HOW}'
      ) from None
    for name, width in WIDTHS.items():
      if found[name].shape[1:] != (width,):
        raise UserError(
          f'{path}: {name} has the shape {found[name].shape}, expected rows of {width}.'
        )
      if (bad := ~np.isfinite(found[name])).any():
        raise UserError(
          f'{path}: {name} has a value that is not finite, in row {int(np.argwhere(bad)[0][0])}.'
        )
    return found

  def _generate_examples(self, examples: Iterable) -> Iterator:
    if self.form != 'bclstm_videos':
      for example in examples:
        yield (
          example['id'],
          {key: value for key, value in example.items() if key not in ('of', 'segment')},
        )
      return
    for video in sorted({example['of'] for example in examples}):
      parts = sorted(
        (example for example in examples if example['of'] == video),
        key=lambda example: example['segment'],
      )

      def column(key: str, parts: list[dict] = parts) -> list:
        return [part[key] for part in parts]

      arrays = {key: np.stack(column(key)) for key in ('text_features', 'audio', 'video')}
      yield (
        video,
        {
          'id': video,
          'parts': column('id'),
          'label': column('label'),
          'binary': column('binary'),
          **arrays,
        },
      )
