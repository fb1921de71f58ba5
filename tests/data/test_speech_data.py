"""Speech data sets: small folders as users have them, what is refused, and the counts of the real
data.
"""

import collections
import io
import shutil
import zipfile

import numpy as np
import pytest
import soundfile
from helpers.sounds import encoded, noise
from num2words import num2words

from mmlm.data.datasets import DATASETS, keypad_tones, preparation, sounds
from mmlm.data.datasets.sounds import Mboshi
from mmlm.data.transforms.audio import decode_audio
from mmlm.data.transforms.features import count_rows
from mmlm.data.transforms.ops import parse_ops
from mmlm.utils.errors import UserError


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'original'
  root.mkdir()
  return root


def sound(path, seconds=0.1, form='FLAC', **more):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(encoded(noise(seconds, seed=len(str(path))), form=form, **more))


def table(path, columns, *rows):
  path.write_text(
    ''.join('\t'.join(map(str, row)) + '\n' for row in (columns, *rows)), encoding='utf-8'
  )


def opened(name, root, split, fields=None, **options):
  return preparation.open_source(name, root.parent / 'data', split, fields, root, **options)


def examples(*args, **options) -> list[dict]:
  source = opened(*args, **options)
  return sorted((source[i] for i in range(len(source))), key=lambda row: row['id'])


def refused(name, root, says):
  with pytest.raises(UserError, match=says):
    opened(name, root, 'train')
  assert not [*(root.parent / 'data').rglob('dataset_info.json')]


# FSDD


def digits(root, form='wav', archive=False):
  for digit in (0, 7):
    for number in (0, 4, 5, 9, 10, 49):
      sound(root / 'recordings' / f'{digit}_jackson_{number}.{form}', form=form.upper())
  if archive:
    with zipfile.ZipFile(root / 'recordings.zip', 'w') as file:
      for path in (root / 'recordings').iterdir():
        file.write(path, path.name)
    shutil.rmtree(root / 'recordings')


@pytest.mark.parametrize('form, archive', [('wav', False), ('flac', True)])
def test_digits_are_split_by_their_number(root, form, archive):
  digits(root, form, archive)
  found = {split: examples('fsdd', root, split) for split in ('train', 'valid', 'test')}
  numbers = {}
  for split, rows in found.items():
    numbers[split] = [int(row['id'].rpartition('_')[2]) for row in rows]
  assert numbers == {'train': [10, 49] * 2, 'valid': [5, 9] * 2, 'test': [0, 4] * 2}
  for row in sum(found.values(), []):
    word = num2words(int(row['id'][0]))
    assert (row['targets'], row['label'], row['speaker']) == ((word,), word, 'jackson') and len(
      decode_audio(row['audio'])
    ) == 1600


def test_a_broken_recording_is_named_or_left_out(root, capsys):
  digits(root)
  (root / 'recordings' / '7_jackson_49.wav').write_bytes(b'nothing')
  refused('fsdd', root, r"7_jackson_49\.wav: unusable \(train, the sound can't be decoded")
  assert len(examples('fsdd', root, 'train', skip_broken=True)) == 3
  assert 'left out 7_jackson_49' in capsys.readouterr().err


def test_other_names_and_an_empty_folder_are_refused(root):
  refused('fsdd', root, r"no recordings of the split 'train'.\ngit clone")
  digits(root)
  sound(root / 'recordings' / 'seven.wav')
  refused('fsdd', root, r'seven\.wav: expected a name such as')
  with pytest.raises(UserError, match='git clone'):
    preparation.prepare('fsdd', root / 'nowhere', root.parent / 'data')


# AN4


def cepstra(root, texts=('YES', 'E N T E R', 'FIVE') * 6, frames=None, **arrays):
  rows = []
  for i, text in enumerate(texts):
    rows.append((f'u{i}', 'test' if i % 6 == 5 else 'train', f's{i % 6}', 4 + i, text))
  table(root / 'utterances.tsv', ('id', 'split', 'speaker', 'frames', 'text'), *rows)
  if frames is None:
    offsets = np.cumsum([0, *(row[3] for row in rows)])
  else:
    offsets = frames
  matrix = np.random.default_rng(0).normal(size=(offsets[-1], 13)).astype(np.float16)
  np.savez(root / 'mfcc.npz', **{'mfcc': matrix, 'offsets': offsets} | arrays)
  return rows, matrix, offsets


def test_cepstra_are_those_of_their_utterance(root):
  rows, matrix, offsets = cepstra(root)
  found = {split: examples('an4', root, split) for split in ('train', 'valid', 'test')}
  speakers = {split: {row['speaker'] for row in part} for split, part in found.items()}
  assert len(speakers['valid']) == 1 and len(speakers['train']) == 4 and speakers['test'] == {'s5'}
  assert not speakers['valid'] & speakers['train']
  assert sum(map(len, found.values())) == len(rows)
  for row in sum(found.values(), []):
    i = int(row['id'][1:])
    assert (
      np.array_equal(row['audio'], matrix[offsets[i] : offsets[i + 1]].astype(np.float32))
      and row['audio'].dtype == np.float32
    )
    assert row['targets'] == (rows[i][4].lower(),)


@pytest.mark.parametrize(
  'broken, says',
  [
    ({'mfcc': np.ones((9, 12))}, r'mfcc has the shape \(9, 12\), expected rows of 13'),
    ({'offsets': np.arange(3)}, '18 utterances, mfcc.npz has 2'),
    ({'frames': np.arange(19) * 5}, r'line 2: .* 4 frames \(5 in'),
    ({'texts': ('YES', ' ')}, r'line 3: .*empty text'),
    ({'mfcc': np.full((225, 13), np.nan)}, 'line 2: the cepstra of u0 are none, or not finite'),
  ],
)
def test_broken_cepstra_are_named(root, broken, says):
  cepstra(root, **broken)
  refused('an4', root, says)


def test_missing_cepstra_are_explained(root):
  refused('an4', root, r'no utterances\.tsv.\nGet AN4')
  cepstra(root)
  (root / 'mfcc.npz').write_bytes(b'nothing')
  refused('an4', root, r'mfcc\.npz: no file with mfcc and offsets')


# Mboshi

SENTENCES = [(f'ngá {i}', f'j&apos; ai {i // 2 if i < 20 else i} .') for i in range(60)]


def mboshi(root, as_table: bool):
  """The sentences by two speakers in turn; the first twenty share their French in pairs."""
  rows = [
    ('dev' if i % 10 == 9 else 'train', f'{"ab"[i % 3 == 0]}x_{i}', *texts)
    for i, texts in enumerate(SENTENCES)
  ]
  rows += [('train', 'ax_again', *SENTENCES[40])]
  if as_table:
    table(
      root / 'utterances.tsv',
      Mboshi.COLUMNS,
      *((name, split, name.partition('_')[0], *texts) for split, name, *texts in rows),
    )
  for split, name, *texts in rows:
    folder = root / (f'speech_{split}' if as_table else f'full_corpus_newsplit/{split}')
    sound(
      folder / f'{name}.{"opus" if as_table else "wav"}',
      form='OGG' if as_table else 'WAV',
      kind='OPUS' if as_table else None,
    )
    for ending, text in zip(('mb', 'fr'), texts if not as_table else ()):
      (folder / f'{name}.{ending}.cleaned').write_text(text + '\n', encoding='utf-8')
  return rows


@pytest.mark.parametrize('as_table', [True, False])
def test_one_set_serves_recognition_translation_and_text(root, as_table, monkeypatch):
  monkeypatch.setattr(Mboshi, 'SHARE', 0.2)
  rows = {name: (split, *texts) for split, name, *texts in mboshi(root, as_table)}
  fields = {'id': 'id', 'audio': 'audio', 'targets': 'french', 'transcript': 'mboshi'}
  found = {split: examples('mboshi', root, split, fields) for split in ('train', 'valid', 'test')}
  assert {row['id'] for row in found['test']} == {
    name for name, row in rows.items() if row[0] == 'dev'
  }
  for row in sum(found.values(), []):
    _, transcript, french = rows[row['id']]
    assert (row['transcript'], *row['targets']) == (
      transcript,
      french.replace('&apos;', "'"),
    ) and len(decode_audio(row['audio'])) > 1000
  assert examples('mboshi', root, 'test')[0].keys() == {'id', 'audio', 'targets', 'speaker'}
  text = examples('mboshi', root, 'valid', {'id': 'id', 'text': 'mboshi', 'targets': 'french'})
  assert [(row['text'], *row['targets']) for row in text] == [
    (row['transcript'], *row['targets']) for row in found['valid']
  ]
  # No sentence of 'valid' is in 'train', and each speaker has the share.
  for pick in (lambda row: row['transcript'], lambda row: row['targets']):
    assert not {pick(row) for row in found['train']} & {pick(row) for row in found['valid']}

  def speakers(part):
    return collections.Counter(row['id'][0] for row in part)

  assert speakers(found['valid']) == {
    name: round(0.2 * count) for name, count in speakers(found['train'] + found['valid']).items()
  }


def test_a_corpus_with_holes_is_refused(root):
  refused('mboshi', root, "no utterance of the split 'train'.\ngit clone")
  mboshi(root, True)
  (root / 'speech_train' / 'ax_4.opus').unlink()
  refused('mboshi', root, r'utterances\.tsv, line 6: no sound ax_4 in speech_train')
  (root / 'utterances.tsv').unlink()
  mboshi(root, False)
  place = root / 'full_corpus_newsplit' / 'train' / 'ax_4.fr.cleaned'
  place.write_text('\n')
  refused('mboshi', root, r'ax_4\.wav: an empty text')
  place.unlink()
  refused('mboshi', root, r'ax_4\.fr\.cleaned: No such file')


# Folders


def libri(root):
  for folder, speaker, chapter in (
    ('train-clean-100', 19, 198),
    ('train-clean-100', 26, 495),
    ('dev-clean', 84, 121),
  ):
    place = root / folder / str(speaker) / str(chapter)
    lines = [f'{speaker}-{chapter}-{i:04d} CHAPTER {"AB"[i]}' for i in range(2)]
    for line in lines:
      sound(place / f'{line.partition(" ")[0]}.flac')
    (place / f'{speaker}-{chapter}.trans.txt').write_text('\n'.join(lines) + '\n')
  return place


@pytest.mark.parametrize('below', ['', 'LibriSpeech'])
def test_librispeech_as_it_is_unpacked(root, below):
  libri(root / below)
  (root / below / 'README.TXT').write_text('x')
  (root / below / 'empty').mkdir()
  found = examples('librispeech', root, 'train_clean_100')
  assert [(row['id'], row['speaker'], row['targets']) for row in found] == [
    ('19-198-0000', '19', ('chapter a',)),
    ('19-198-0001', '19', ('chapter b',)),
    ('26-495-0000', '26', ('chapter a',)),
    ('26-495-0001', '26', ('chapter b',)),
  ]
  assert len(examples('librispeech', root, 'dev_clean')) == 2
  with pytest.raises(UserError, match=r'dev_clean \(2\), train_clean_100 \(4\)'):
    opened('librispeech', root, 'test_clean')


def test_librispeech_with_holes_is_refused(root):
  refused('librispeech', root, r'no folder with .*\nGet the archives')
  place = libri(root)
  transcripts = place / '84-121.trans.txt'
  text = transcripts.read_text()
  transcripts.write_text(text + '84-121-0002 MORE\n')
  refused(
    'librispeech', root, r"84-121\.trans\.txt, line 3: '84-121-0002' has no file 84-121-0002\.flac"
  )
  transcripts.write_text(text.replace(' CHAPTER B', ''))
  refused('librispeech', root, r"line 2: '84-121-0001' has no text")
  transcripts.write_text(text.splitlines()[0] + '\n')
  refused('librispeech', root, r'84-121-0001\.flac: no line of a \.trans\.txt')


def covost(root, **changes):
  rows = [(f'c{i}.mp3', f'phrase {i}', f'sentence {i}', f'client{i % 2}') for i in range(4)]
  for split, part in (('train', rows[:2]), ('dev', rows[2:3]), ('test', rows[3:])):
    table(
      root / f'covost_v2.fr_en.{split}.tsv', ('path', 'sentence', 'translation', 'client_id'), *part
    )
  for name, *_ in rows:
    sound(root / 'clips' / name, 0.5, 'MP3')


def test_covost_as_its_splits_are_written(root):
  covost(root)
  found = examples('covost/fr_en', root, 'train')
  assert [(row['id'], row['targets'], row['speaker']) for row in found] == [
    ('c0', ('sentence 0',), 'client0'),
    ('c1', ('sentence 1',), 'client1'),
  ]
  assert [len(decode_audio(row['audio'])) for row in found] == [8000] * 2
  cascade = examples(
    'covost/fr_en', root, 'test', {'audio': 'audio', 'targets': 'sentence', 'id': 'id'}
  )
  assert [row['targets'] for row in cascade] == [('phrase 3',)]
  with pytest.raises(UserError, match="no form 'fr_de'"):
    opened('covost/fr_de', root, 'train')


def test_covost_with_holes_is_refused_or_left_out(root):
  refused('covost/fr_en', root, r'no covost_v2\.fr_en\.\*\.tsv with a line.\nGet the Common Voice')
  covost(root)
  (root / 'clips' / 'c1.mp3').unlink()
  refused('covost/fr_en', root, r'covost_v2\.fr_en\.train\.tsv, line 3: no file clips/c1\.mp3')
  table(root / 'covost_v2.fr_en.dev.tsv', ('path', 'sentence'), ('c2.mp3', 'phrase'))
  refused('covost/fr_en', root, r"dev\.tsv, line 1: no column 'translation'|train\.tsv, line 3")
  covost(root)
  table(
    root / 'covost_v2.fr_en.test.tsv',
    ('path', 'sentence', 'translation'),
    ('c3.mp3', 'phrase', ' '),
  )
  refused('covost/fr_en', root, r'test\.tsv, line 2: no sentence or no translation')
  covost(root)
  (root / 'clips' / 'c1.mp3').unlink()
  assert [row['id'] for row in examples('covost/fr_en', root, 'train', skip_broken=True)] == ['c0']


# Generated


@pytest.fixture(scope='module')
def keypad(tmp_path_factory):
  """{split: examples} with all fields."""
  fields = {'id': 'id', 'audio': 'audio', 'targets': 'words', 'text': 'digits'}
  folder = tmp_path_factory.mktemp('data')
  sources = {}
  for split in ('train', 'valid', 'test'):
    sources[split] = preparation.open_source('keypad_tones/tiny', folder, split, fields)
  return {split: [source[i] for i in range(len(source))] for split, source in sources.items()}


def test_no_sequence_of_keys_is_in_two_splits(keypad):
  assert {split: len(rows) for split, rows in keypad.items()} == {
    'train': 200,
    'valid': 32,
    'test': 32,
  }
  texts = [row['text'] for rows in keypad.values() for row in rows]
  assert (
    len(set(texts)) == 264
    and {len(text) for text in texts} == {4, 5, 6, 7, 8}
    and set(''.join(texts)) == set('0123456789')
  )
  for row in keypad['test']:
    assert row['targets'] == (' '.join(num2words(int(digit)) for digit in row['text']),)


def test_the_keys_can_be_heard_and_only_they_differ_by_chance(keypad, monkeypatch):
  """Goertzel: where tones are loud, the two loudest frequencies of the keypad name the key."""
  assert (
    keypad_tones.dial('0123') == keypad_tones.dial('0123')
    and len({len(row['audio']) for row in keypad['test']}) > 20
  )
  rates = {soundfile.info(io.BytesIO(row['audio'])).samplerate for row in keypad['test']}
  assert rates == {keypad_tones.RATE}
  right = 0
  for row in keypad['test']:
    samples, _ = soundfile.read(io.BytesIO(row['audio']))
    heard = [heard_key(samples[start : start + 320]) for start in range(0, len(samples) - 320, 80)]
    told = ''.join(key for key, before in zip(heard, ['', *heard]) if key and key != before)
    expected = ''.join(
      digit for digit, before in zip(row['text'], ' ' + row['text']) if digit != before
    )
    right += set(expected) <= set(told)
  assert right > 25


def heard_key(samples) -> str:
  times = np.arange(len(samples)) / keypad_tones.RATE

  def level(hertz):
    return max(
      abs(samples @ np.exp(-2j * np.pi * hertz * share * times)) for share in (0.985, 1, 1.015)
    )

  low, high = ([level(hertz) for hertz in group] for group in (keypad_tones.LOW, keypad_tones.HIGH))
  return keypad_tones.KEYS[int(np.argmax(low))][int(np.argmax(high))]


# The real data


def real(shared_data, tmp_path, name, split, fields=None):
  folder = shared_data / (DATASETS[name].FOLDER or name)
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  return preparation.open_source(name, tmp_path, split, fields, folder)


def test_real_digits(shared_data, tmp_path):
  counts = {}
  for split in ('train', 'valid', 'test', 'train+valid'):
    counts[split] = len(real(shared_data, tmp_path, 'fsdd', split))
  assert counts == {'train': 2400, 'valid': 300, 'test': 300, 'train+valid': 2700}
  told = (shared_data / 'fsdd' / 'recordings.tsv').read_text().splitlines()[1:]
  official = {}
  for name, split, _, word, *_ in (line.split('\t') for line in told):
    official[name] = (split, word)
  test = real(shared_data, tmp_path, 'fsdd', 'test')
  assert all(official[test[i]['id']] == ('test', *test[i]['targets']) for i in range(300))
  rows = count_rows([test[i] for i in range(20)], {'audio': 40}, parse_ops(('log_mel(40)',)))[
    'audio'
  ]
  seconds = [
    float(line.split('\t')[-1])
    for line in told
    if line.split('\t')[0] in {test[i]['id'] for i in range(20)}
  ]
  assert sum(rows) / 100 == pytest.approx(sum(seconds), abs=0.2)


def test_real_cepstra(shared_data, tmp_path):
  found = {}
  for split in ('train', 'valid', 'test'):
    found[split] = real(shared_data, tmp_path, 'an4', split)
  assert {split: len(source) for split, source in found.items()} == {
    'train': 843,
    'valid': 105,
    'test': 130,
  }
  words = sum(len(found['test'][i]['targets'][0].split()) for i in range(130))
  assert words == 773
  counts = count_rows(found['test'], {'audio': 39}, parse_ops(('standardize', 'deltas')))['audio']
  assert counts.min() >= 69 and counts.max() <= 639


def test_real_mboshi_is_held_out_without_its_sentences(shared_data):
  """Of the table alone: decoding its hours takes longer than a test may."""
  folder = shared_data / Mboshi.FOLDER
  if not folder.is_dir():
    pytest.skip(f'no {folder}')
  builder = sounds.Mboshi.__new__(sounds.Mboshi)
  builder.source = folder
  found = builder.read_splits()
  assert {split: len(rows) for split, rows in found.items()} == {
    'train': 4362,
    'valid': 254,
    'test': 514,
  }
  assert not [row['french'] for rows in found.values() for row in rows if '&' in row['french']]
  for language in ('mboshi', 'french'):
    assert not {row[language] for row in found['train']} & {row[language] for row in found['valid']}
  assert collections.Counter(row['speaker'] for row in found['valid']) == {
    'abiayi': 183,
    'kouarata': 61,
    'martial': 10,
  }
  assert all(len(decode_audio(row['audio'].read_bytes())) > 16000 for row in found['valid'][:5])
