"""Data sets with labels, features, and runs that answer with labels: a class or a score, for an
example or each of its parts.
"""

import json
import re

import numpy as np
import pytest
from program import done, read_jsonl, refused, write_jsonl

from mmlm import config as configs
from mmlm.data.datasets import preparation
from mmlm.data.labels import Classes, Range
from mmlm.data.transforms.features import count_rows
from mmlm.utils.errors import UserError

VIDEOS = {f'v{i:02}': 2 + i % 4 for i in range(24)}  # utterances of each
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


def mosi(folder, change=lambda rows, features: None):
  """A small CMU-MOSI whose labels can be read off its features."""
  rows = []
  features = {'text': [], 'audio': [], 'video': []}
  rng = np.random.default_rng(0)
  for i, (video, count) in enumerate(VIDEOS.items()):
    for k in range(1, count + 1):
      label = round(float(rng.uniform(-3, 3)), 1)
      split = 'test' if i % 3 == 2 else 'train'
      rows.append(
        {
          'id': f'{video}_{k}',
          'video': video,
          'segment': str(k),
          'split': 'valid' if i % 9 == 0 else split,
          'bclstm_split': split,
          'label': str(label),
          'label_source': 'csv',
          'binary': str(int(label >= 0)),
          'text': f'it is {"good" if label >= 0 else "bad"}',
        }
      )
      for name, width in (('text', 100), ('audio', 73), ('video', 100)):
        features[name].append(np.sign(label + 0.01) * np.ones(width) + rng.normal(0, 0.5, width))
  features = {name: np.array(values, np.float32) for name, values in features.items()}
  change(rows, features)
  folder.mkdir(parents=True, exist_ok=True)
  table = '\n'.join(
    '\t'.join(row) for row in [COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]
  )
  (folder / 'utterances.tsv').write_text(table + '\n')
  np.savez(folder / 'features.npz', **features)
  return folder


# Data sets


def test_mosi_has_its_forms(tmp_path):
  source = mosi(tmp_path / 'mosi')
  found = {}
  for form in ('standard', 'bclstm'):
    found[form] = preparation.open_source(f'mosi/{form}', tmp_path / 'data', 'test', None, source)
  assert all(
    example.keys() == {'id', 'text', 'label'}
    for part in found.values()
    for example in (part[0], part[1])
  )
  fields = {
    'id': 'id',
    'parts': 'parts',
    'label': 'binary',
    'audio': 'audio',
    'video': 'video',
    'text': 'text_features',
  }
  videos = preparation.open_source('mosi/bclstm_videos', tmp_path / 'data', 'test', fields, source)
  assert sorted(videos[i]['id'] for i in range(len(videos))) == [
    name for i, name in enumerate(VIDEOS) if i % 3 == 2
  ]
  for i in range(len(videos)):
    example = videos[i]
    count = VIDEOS[example['id']]
    assert example['parts'] == [f'{example["id"]}_{k}' for k in range(1, count + 1)]
    assert example['audio'].shape == (count, 73) and len(example['label']) == count
    assert [label == 'positive' for label in example['label']] == (
      example['audio'].mean(1) > 0
    ).tolist()
  held_out = preparation.open_source(
    'mosi/bclstm_videos', tmp_path / 'data', 'valid', fields, source
  )
  assert len(held_out) == 10


@pytest.mark.parametrize('field', ['video', 'text_features'])
def test_leaking_features_cannot_be_had_with_the_standard_split(tmp_path, field):
  for name in ('mosi/standard', 'mosi'):
    with pytest.raises(UserError, match='trained on most of this split.*mosi/bclstm'):
      preparation.open_source(
        name, tmp_path / 'data', 'test', {'id': 'id', 'x': field}, mosi(tmp_path / 'mosi')
      )


def _nan(rows, features):
  features['audio'][3, 7] = np.nan


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda rows, features: rows.pop(), r'features.npz has \d+ rows of text, utterances.tsv \d+'),
    (_nan, 'audio has a value that is not finite, in row 3'),
    (
      lambda rows, features: features.update(video=features['video'][:, :9]),
      r'video has the shape \(\d+, 9\), expected rows of 100',
    ),
    (lambda rows, features: features.pop('text'), 'no feature file with text'),
    (lambda rows, features: rows[4].update(split='tset'), "line 6: split 'tset'"),
  ],
)
def test_a_bad_mosi_is_named(tmp_path, change, says):
  with pytest.raises(UserError, match=says):
    preparation.prepare('mosi/bclstm', mosi(tmp_path / 'mosi', change), tmp_path / 'data')
  assert not (tmp_path / 'data' / 'mosi' / 'bclstm' / '1.0.0').exists()


def test_sst2_and_mr_and_vader_are_read(tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  (source / 'train.tsv').write_text('sentence\tlabel\na "good film \t1\nbad\t0\n')
  (source / 'dev.tsv').write_text('label\tsentence\n1\tfine\n')
  (source / 'test.tsv').write_text('index\tsentence\n0\twho knows\n')  # GLUE keeps its labels
  (source / 'rt-polarity.all.txt').write_text(''.join(f'{i % 2} sentence {i}\n' for i in range(40)))
  (source / 'tweets.tsv').write_text(
    'id\tscore\ttext\n' + ''.join(f'{i // 2}_{i % 2}\t{i / 10 - 2}\ttext {i}\n' for i in range(40))
  )

  def rows(name, split):
    result = []
    for found in [preparation.open_source(name, tmp_path / 'data', split, None, source)]:
      for i in range(len(found)):
        result.append(dict(found[i]))
    return result

  assert sorted((row['text'], row['label']) for row in rows('sst2', 'train')) == [
    ('a "good film', 'positive'),
    ('bad', 'negative'),
  ]
  assert [row['label'] for row in rows('sst2', 'dev')] == ['positive']
  with pytest.raises(UserError, match="no split 'test'"):
    rows('sst2', 'test')
  folds = [rows('mr', f'fold_{k}') for k in range(10)]
  assert [len(fold) for fold in folds] == [4] * 10 and len(
    {row['text'] for fold in folds for row in fold}
  ) == 40
  assert all(sum(row['label'] == 'positive' for row in fold) == 2 for fold in folds)
  parts = {split: rows('vader/tweets', split) for split in ('train', 'valid', 'test')}
  owners = [{row['id'].split('_')[0] for row in part} for part in parts.values()]
  assert (
    sum(map(len, parts.values())) == 40
    and not owners[0] & owners[1]
    and not owners[0] & owners[2]
    and not owners[1] & owners[2]
  )


@pytest.mark.parametrize(
  'name, file, content, says',
  [
    (
      'sst2',
      'train.tsv',
      'sentence\tlabel\nfine\t2\n',
      r"train.tsv, line 2: expected a sentence with label 0 or 1, found '2'",
    ),
    (
      'sst2',
      'train.tsv',
      'a\tb\nfine\t1\n',
      'train.tsv, line 1: expected the columns sentence and label',
    ),
    ('mr', 'rt-polarity.all.txt', '1 fine\nfine\n', 'line 2: expected 0 or 1, a space'),
    ('vader/tweets', 'tweets.tsv', 'id\tscore\ttext\n1\tmuch\tfine\n', "line 2: the score 'much'"),
    (
      'vader/tweets',
      'tweets.tsv',
      'id\tscore\ttext\n1\t5\tfine\n',
      'line 2: expected a text with a score from -4 to 4',
    ),
    ('mr', 'other.txt', '', 'no rt-polarity.all.txt'),
  ],
)
def test_bad_sentences_are_named_with_file_and_line(tmp_path, name, file, content, says):
  (tmp_path / 'source').mkdir()
  (tmp_path / 'source' / 'dev.tsv').write_text('sentence\tlabel\nfine\t1\n')
  (tmp_path / 'source' / file).write_text(content)
  with pytest.raises(UserError, match=says):
    preparation.prepare(name, tmp_path / 'source', tmp_path / 'data')


# Labels and features


@pytest.mark.parametrize(
  'call, says',
  [
    (
      lambda: Classes(('a', 'b')).encode('c', 'x 7'),
      r"the label 'c' of x 7 is not among model.head.classes=\('a', 'b'\)",
    ),
    (lambda: Classes(('a', 'a')), 'no name twice'),
    (lambda: Range(-3, 3).encode(3.5, 'x 7'), 'the label 3.5 of x 7 is not a number from -3 to 3'),
    (lambda: Range(-3, 3).encode(float('nan'), 'x 7'), 'the label nan'),
    (lambda: Range(-3, 3).encode('good', 'x 7'), "the label 'good'"),
  ],
)
def test_labels_that_are_none_are_named(call, says):
  with pytest.raises(UserError, match=says):
    call()


@pytest.mark.parametrize(
  'array, says',
  [
    (
      np.ones((3, 4), np.float32),
      "the audio features of 'a' have 4 values, model.encoders.audio.width=5",
    ),
    (np.full((2, 5), np.inf, np.float32), r'not finite, at \(0, 0\)'),
    (np.ones((0, 5), np.float32), 'have no row'),
    (np.ones((1, 2, 5), np.float32), r'the shape \(1, 2, 5\)'),
  ],
)
def test_features_that_are_wrong_are_named(array, says):
  good = [
    {'id': 'b'},
    {'id': 'c', 'audio': np.ones(5, np.float32)},
    {'id': 'd', 'audio': np.ones((3, 5), np.float32)},
  ]
  assert count_rows(good, {'audio': 5})['audio'].tolist() == [0, 1, 3]
  with pytest.raises(UserError, match=says):
    count_rows([{'id': 'a', 'audio': array}], {'audio': 5})


# Runs


def test_the_utterances_of_a_video_are_answered_one_by_one(tmp_path):
  preparation.prepare('mosi/bclstm_videos', mosi(tmp_path / 'mosi'), tmp_path / 'data')
  few = [
    '--config.train.duration=30 epochs',
    '--config.train.eval_every=15 epochs',
    '--config.train.batch_size=4',
    '--config.model.dim=16',
    '--config.model.head.answer_dropout=0.3',
    '--config.evaluate.batch_size=4',
    '--config.parallel.strategy=jit',
    '--config.evaluate.bootstrap_samples=5',
  ]
  folder = tmp_path / 'run'
  done(
    'train',
    'configs/sentiment/mosi_context.py:fusion=late',
    '--workdir',
    folder,
    f'--config.data.dir={tmp_path / "data"}',
    *few,
  )
  said = done('evaluate', folder)
  assert float(re.search(r'accuracy +([\d.]+)', said)[1]) > 0.9  # the sign of any feature tells it
  (path,) = (folder / 'predictions').iterdir()
  rows = read_jsonl(path)
  assert 'masked' not in done(
    'ablate', folder, '--splits', 'test'
  )  # features of a text hold no words
  shuffled = read_jsonl(path.with_name(f'{path.stem}-text_shuffled.jsonl'))
  assert [row['id'] for row in shuffled] == [row['id'] for row in rows]
  assert [row['probabilities'] for row in shuffled] != [row['probabilities'] for row in rows]
  wanted = []
  for i, (video, count) in enumerate(VIDEOS.items()):
    if i % 3 == 2:
      for k in range(1, count + 1):
        wanted.append(f'{video}_{k}')
  assert sorted(row['id'] for row in rows) == sorted(wanted)
  assert all(
    sum(row['probabilities'].values()) == pytest.approx(1) and row['score'] >= 0.5 for row in rows
  )


def test_what_a_generated_example_lacks_is_not_there(tmp_path):
  fields = {name: name for name in ('id', 'text', 'image', 'audio', 'label')}
  train, test = (
    preparation.open_source('three_modalities/tiny', tmp_path / 'data', split, fields)
    for split in ('train', 'test')
  )
  there = []
  for source in (train, test):
    there.append(
      tuple(
        bool(example['text']) + 2 * bool(example['image']) + 4 * ('audio' in example)
        for example in (source[i] for i in range(len(source)))
      )
    )
  assert set(there[0]) == {1, 2, 3, 4, 5, 6, 7} and set(there[1]) == {7}


def features_manifest(
  folder, name='mine', width=5, unit=1, label=lambda value: 'positive' if value > 0 else 'negative'
):
  rng = np.random.default_rng(0)
  rows = []
  for i in range(24):
    value = rng.normal()
    np.save(
      folder / f'{name}{i}.npy', np.float32(unit * rng.normal(value, 0.1, (1 + i % 3, width)))
    )
    rows.append(
      {
        'id': f'{name} {i}',
        'audio': f'{name}{i}.npy',
        'text': f'word{i % 4} here',
        'label': label(value),
      }
    )
  return write_jsonl(folder / f'{name}.jsonl', rows)


def test_a_manifest_with_features_and_labels_is_learned_and_asked(tmp_path):
  mine = features_manifest(tmp_path)
  folder = tmp_path / 'run'
  argv = [
    'train',
    f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=5',
    '--workdir',
    folder,
    '--config.train.duration=6 steps',
    '--config.train.batch_size=8',
    '--config.train.eval_every=3 steps',
    '--config.parallel.strategy=jit',
    '--config.model.dim=16',
  ]
  assert '24 examples' in done(*argv)
  asked = write_jsonl(
    tmp_path / 'asked.jsonl', [{'id': 'q', 'audio': 'mine0.npy', 'text': 'word1 here'}]
  )
  assert done('predict', folder, '--input', asked).split('\t')[1].strip() in (
    'positive',
    'negative',
  )
  features_manifest(tmp_path, 'wide', width=6)
  asked = write_jsonl(
    tmp_path / 'asked.jsonl', [{'id': 'q', 'audio': 'wide0.npy', 'text': 'word1 here'}]
  )
  assert "the audio features of 'q' have 6 values, model.encoders.audio.width=5" in refused(
    'predict', folder, '--input', asked
  )


def test_a_class_that_only_the_test_split_has_is_named(tmp_path):
  mine = features_manifest(tmp_path)
  folder = tmp_path / 'run'
  other = features_manifest(tmp_path, 'other', label=lambda value: 'mixed')
  said = refused(
    'train',
    f'configs/sentiment/manifest.py:train={mine},valid={other},audio=5',
    '--workdir',
    folder,
  )
  assert "the label 'mixed' of other 0 is not among model.head.classes" in said


def test_a_class_without_a_training_example_is_named(tmp_path):
  mine = features_manifest(tmp_path)
  spec = (
    f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=5,'
    'classes=negative+neutral+positive'
  )
  assert f"{mine}: no example of the class 'neutral'" in refused(
    'train', spec, '--workdir', tmp_path / 'run'
  )


def test_a_sentence_is_answered(tmp_path):
  folder = tmp_path / 'run'
  rows = []
  for i in range(24):
    rows.append(
      {
        'id': str(i),
        'text': f'a {"good" if i % 2 else "bad"} film {i}',
        'label': ['negative', 'positive'][i % 2],
      }
    )
  mine = write_jsonl(tmp_path / 'mine.jsonl', rows)
  done(
    'train',
    f'configs/sentiment/manifest.py:train={mine},valid={mine}',
    '--workdir',
    folder,
    '--config.train.duration=80 steps',
    '--config.optimizer.warmup=5 steps',
    '--config.train.batch_size=8',
    '--config.train.eval_every=40 steps',
    '--config.parallel.strategy=jit',
    '--config.model.dim=16',
  )
  assert done('predict', folder, '--input', 'a good film 3') == 'sentence\tpositive\n'
  (tmp_path / 'lines.txt').write_text('a bad film 4\na good film 5\n')
  assert (
    done('predict', folder, '--input', tmp_path / 'lines.txt')
    == 'line 1\tnegative\nline 2\tpositive\n'
  )
  (tmp_path / 'lines.txt').write_text('a bad film\n\n')
  assert 'line 2: empty' in refused('predict', folder, '--input', tmp_path / 'lines.txt')


def test_a_head_that_cannot_answer_a_task_is_refused(tmp_path):
  spec = 'configs/sentiment/generated.py:smoke'
  said = refused(
    'train', spec, '--workdir', tmp_path / 'run', '--config.model.head.name=transformer_decoder'
  )
  assert (
    "model.head.name of classification: no 'transformer_decoder'. Nearest: 'classifier'" in said
  )
  assert json.loads(json.dumps(configs.load_config(spec).to_dict()))['task'] == 'classification'
