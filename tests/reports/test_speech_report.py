"""The page of a run on sounds: pictures, players, places of words, errors, counts; and `evaluate`
and `report` of a real run.
"""

import base64
import html
import io
import itertools

import numpy as np
import pytest
import soundfile
from PIL import Image
from program import done, read_jsonl, write_jsonl
from test_recognition import train, write
from test_reports import EVIL, data_of

from mmlm.evaluation.metrics import METRICS
from mmlm.reports import speech_view as speech
from mmlm.reports.run_page import write_report
from mmlm.reports.speech_view import SoundView, place_words, view_of_sound, words_of
from mmlm.reports.word_differences import nearest_alignment, word_differences
from mmlm.tasks.grading import grade_error_rates
from mmlm.utils import run_dir as runs

RATE = 16000


def sound(seconds=1.0, hertz=440.0, form='WAV', rate=RATE) -> bytes:
  with io.BytesIO() as file:
    soundfile.write(
      file,
      0.3 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate),
      rate,
      format=form,
    )
    return file.getvalue()


def row(hypothesis, *references, **more):
  return {
    'id': hypothesis,
    'hypothesis': hypothesis,
    'references': [*references],
    'score': -1.0,
  } | more


def bytes_of(uri: str) -> bytes:
  return base64.b64decode(uri.partition(',')[2])


def colours_of(shown) -> np.ndarray:
  """[height, width] of the picture: how light each place is."""
  with Image.open(io.BytesIO(bytes_of(shown.picture))) as image:
    assert image.format == 'PNG'
    return np.asarray(image.convert('L'), int)


# The page


PIECES = [[c, 10 * i, 10 * i + 3] for i, c in enumerate('the dog')]


@pytest.fixture
def folder(tmp_path):
  runs.write_json(
    tmp_path / 'config.json',
    {
      'name': 'Sounds',
      'task': 'recognition',
      'model': {'encoders': {'audio': {'name': 'conformer'}}},
    },
  )
  rows = [
    row('the dog', 'the dog', alignment=PIECES, speaker='anna'),
    row(f'a {EVIL}', f'{EVIL} {EVIL} b', alignment=[[EVIL, 3, 9]], transcript=EVIL, speaker=EVIL),
  ]
  runs.write_jsonl(
    tmp_path / 'predictions' / 'test-5.jsonl',
    [*rows, row('x', 'x'), row('', 'y'), row('z', 'z'), row(f'{EVIL}? {EVIL}', 'c')],
  )
  counted = {'hits': 1234, 'substitutions': 3, 'deletions': 2, 'insertions': 1}
  score = {
    'split': 'test',
    'step': 5,
    'n': 5,
    'shuffled': False,
    'decoding': {'method': 'greedy'},
    'scores': {'wer': {'value': 50.0, 'low': 1.0, 'high': 2.0}},
  }
  table = [{'speaker': EVIL, 'utterances': 2, 'words': 1500, 'wer': 12.5, 'cer': 1.0}]
  runs.write_json(
    tmp_path / 'scores' / 'test-5.json',
    score
    | {
      'words': counted,
      'characters': counted,
      'by_speaker': table,
      'audio_seconds': 3661.5,
      'decoding_seconds': 100.0,
      'real_time_factor': 0.02731,
    },
  )
  return tmp_path


def test_a_page_shows_and_plays_sounds(folder):
  data = {
    'the dog': {'audio': sound()},
    'x': {'audio': np.eye(9, 4)},
    '': {'audio': b'no sound'},
    'z': {},
  }
  page = write_report(folder, data.get).read_text()
  assert EVIL not in page and 'http' not in page and 'url(' not in page
  sounds = {name: media['sound'] for name, media in data_of(page)['media'].items()}
  assert bytes_of(sounds['the dog']['source']) == sound() and sounds['the dog'][
    'source'
  ].startswith('data:audio/wav;')
  assert {name: (s['kind'], s['note']) for name, s in sounds.items()} == {
    'the dog': ('log-mel spectrogram', ''),
    'x': ('features of the data set', 'features without a sound'),
    '': ('', sounds['']['note']),
    'z': ('', 'no sound'),
  }
  assert 'Format not recognised' in sounds['']['note']
  assert [(word['text'], word['left']) for word in sounds['the dog']['words']] == [
    ('the', 0.0),
    ('dog', 40.0),
  ]


def test_a_page_marks_the_errors_and_counts_them(folder):
  page = write_report(folder).read_text()
  rows = {row['id']: row for row in data_of(page)['groups'][0]['rows']}
  evil = rows[f'a {EVIL}']['answers'][0]
  assert (
    evil['edits'] == [['substitute', EVIL, 'a'], ['equal', EVIL, EVIL], ['delete', 'b', '']]
    and evil['transcript'] == EVIL
  )
  assert (
    rows['']['answers'][0]['edits'] == [['delete', 'y', '']]
    and rows['the dog']['speaker'] == 'anna'
  )
  assert (
    sum(row['answers'][0]['exact'] for row in rows.values()) == 3
    and evil['summary'].startswith('WER 66.7 %')
    and evil['value'] == pytest.approx(66.6667)
  )
  table = page[page.index('<h2 id="scores"') : page.index('<h2 id="curves"')]
  for told in (
    '1,234 hits, 3 substitutions, 2 deletions, 1 insertions',
    '3,661.5',
    '0.0273',
    f'<th>{html.escape(EVIL)}</th><td>2</td><td>1,500</td>'.replace('&quot;', '&#34;'),
    '<td>12.50</td><td>1.00</td>',
  ):
    assert told in table


def test_other_runs_have_no_part_of_it(folder):
  runs.write_json(
    folder / 'config.json', {'task': 'captioning', 'model': {'encoders': {'image': {}}}}
  )
  page = write_report(folder, lambda identity: {'audio': sound()}).read_text()
  data = data_of(page)
  assert (
    not data['sounds']
    and 'data:audio' not in page
    and not any('sound' in media for media in data['media'].values())
  )


def test_classes_out_of_sounds_are_shown_with_their_sound(tmp_path):
  runs.write_json(
    tmp_path / 'config.json', {'task': 'classification', 'model': {'encoders': {'audio': {}}}}
  )
  said = {
    'id': 'a',
    'hypothesis': 'yes',
    'references': ['no'],
    'score': 0.9,
    'probabilities': {'no': 0.1, 'yes': 0.9},
  }
  runs.write_jsonl(tmp_path / 'predictions' / 'test-5.jsonl', [said])
  data = data_of(write_report(tmp_path, lambda identity: {'audio': sound()}).read_text())
  assert (
    bytes_of(data['media']['a']['sound']['source']) == sound()
    and 'edits' not in data['groups'][0]['rows'][0]['answers'][0]
  )


# Sounds


@pytest.mark.parametrize(
  'form, kind',
  [('WAV', 'wav'), ('WAVEX', 'wav'), ('FLAC', 'flac'), ('OGG', 'ogg'), ('MP3', 'mpeg')],
)
def test_the_bytes_say_what_a_sound_is(form, kind):
  data = sound(form=form)
  shown = view_of_sound({'audio': data}, {})
  assert (
    shown.source.startswith(f'data:audio/{kind};base64,')
    and bytes_of(shown.source) == data
    and not shown.note
  )


def test_what_cannot_be_played_is_said(monkeypatch):
  assert view_of_sound(None, {}) == SoundView()
  aiff = view_of_sound({'audio': sound(form='AIFF')}, {})
  assert 'AIFF' in aiff.note and not aiff.source and aiff.picture
  for example in ({}, {'audio': None}, {'audio': b''}):
    assert view_of_sound(example, {}) == SoundView('no sound')
  assert "can't be decoded" in view_of_sound({'audio': sound()[:20]}, {}).note
  assert 'shape is (0, 4)' in view_of_sound({'audio': np.zeros((0, 4))}, {}).note
  monkeypatch.setattr(speech, 'LARGEST_PLAYED', 20_000)
  long = view_of_sound({'audio': sound()}, {})
  assert 'left out' in long.note and not long.source and long.picture


def test_a_picture_has_low_frequencies_at_the_bottom_and_time_to_the_right():
  low, high = (
    colours_of(view_of_sound({'audio': sound(hertz=hertz)}, {})) for hertz in (200, 4000)
  )
  assert low.shape == (80, 100) and low.mean(1).argmax() > 70 and high.mean(1).argmax() < 30
  late = np.zeros((40, 3))
  late[30:, 0] = 1
  seen = colours_of(view_of_sound({'audio': late}, {}))
  assert seen.shape == (3, 40) and seen[2, 30:].min() > seen[2, :30].max() and np.ptp(seen[:2]) == 0


def test_long_or_strange_features_are_drawn():
  loud = np.zeros((5000, 2))
  loud[2501, 1] = 1.0  # between the first rows of two columns
  seen = colours_of(
    view_of_sound({'audio': loud + np.random.default_rng(0).normal(0, 0.01, loud.shape)}, {})
  )
  assert seen.shape == (2, speech.COLUMNS) and abs(seen[0].argmax() - speech.COLUMNS / 2) < 2
  holed = np.eye(9, 4)
  holed[5, 1] = np.nan
  assert np.ptp(colours_of(view_of_sound({'audio': holed}, {}))) > 100
  for values in (np.ones((5, 4)), np.full((5, 4), np.nan), np.arange(4.0)):
    assert np.ptp(colours_of(view_of_sound({'audio': values}, {}))) == 0


# Words


@pytest.mark.parametrize(
  'pieces, words',
  [
    ([], []),
    (
      [[' a', 0, 1], ['b', 2, 3], [' ', 4, 4], ['c', 5, 6], [' d', 7, 9]],
      [('ab', 0, 3), ('c', 5, 6), ('d', 7, 9)],
    ),
    ([['a', 0, 1], ['b', 2, 3]], [('a', 0, 1), ('b', 2, 3)]),  # one word: its pieces
    ([[' ', 0, 1]], []),
    (
      [['', 0, 1], ['a', 2, 3], [' b', 4, 5]],
      [('a', 2, 3), ('b', 4, 5)],
    ),  # bytes of a letter, of which the last writes it
  ],
)
def test_pieces_make_words(pieces, words):
  assert words_of(pieces) == words


def test_words_never_stand_on_each_other_nor_outside():
  rng = np.random.default_rng(0)
  starts = np.sort(rng.integers(0, 400, 120))
  words = [('w' * rng.integers(1, 30), int(start), int(start) + 5) for start in starts]
  labels = place_words(words, 400, 520)
  assert [label.text for label in labels] == [text for text, *_ in words]
  lines = {}
  for label in labels:
    lines.setdefault(label.lane, []).append(label)
    assert 0 <= label.left <= 100 and label.left + label.length <= 100.01
  for width in (520, 900):  # the page may be wider
    for line in lines.values():
      left = [min(label.left / 100 * width, width - label.width) for label in line]
      assert left[0] >= 0 and all(
        a + label.width <= b + 0.1 for a, b, label in zip(left, left[1:], line)
      )
  assert (
    len(place_words([('a', 0, 1), ('b', 900, 950)], 400, 520)) == 2
  )  # a row behind the end of the picture


def test_times_stand_within_the_picture():
  for seconds in (0.05, 1.0, 3.7, 100.0, 1000.0):
    shown = view_of_sound({'audio': np.zeros((round(100 * seconds), 2))}, {})
    places = [time.left / 100 * shown.width for time in shown.times]
    assert (
      shown.times[0].text == '0 s'
      and places[-1] + 44 < shown.width + 1
      and all(b - a >= 69 for a, b in itertools.pairwise(places))
    )
    assert all(
      abs(time.left / 100 * seconds - float(time.text[:-2])) < 1e-4 * seconds
      for time in shown.times
    )


# Errors


def test_a_difference_is_word_by_word_with_the_nearest_reference():
  parts = word_differences(row('a b x d d', 'z', 'A b c d e f', 'q r s t u'))
  assert parts == [
    ('equal', 'a b', 'a b'),
    ('substitute', 'c', 'x'),
    ('equal', 'd', 'd'),
    ('substitute', 'e', 'd'),
    ('delete', 'f', ''),
  ]
  assert (
    word_differences(row('x y', '')) == [('insert', '', 'x'), ('insert', '', 'y')]
    and word_differences(row('', '')) == []
  )
  rng = np.random.default_rng(0)
  for _ in range(30):  # the reference that the error rate counts
    texts = [' '.join(rng.choice([*'abc'], rng.integers(0, 5))) for _ in range(4)]
    rate = METRICS['wer'].statistics(texts[:1], [texts[1:]])[0]
    wrong = [kind for kind, *_ in word_differences(row(*texts))]
    assert [wrong.count(kind) for kind in ('substitute', 'delete', 'insert')] == rate[1:].tolist()
    assert (
      sum(len(true) for kind, true, _ in nearest_alignment(row(*texts)) if kind == 'equal')
      == rate[0]
    )


def test_transcripts_are_graded_by_words_or_single_words_by_characters():
  predictions = [row('seven', 'seven'), row('sevn', 'seven'), row('two', 'seven')]
  grades = grade_error_rates(predictions)
  summaries = [grade.summary.split('·')[0] for grade in grades]
  assert summaries == ['CER 0.0 % ', 'CER 20.0 % ', 'CER 100.0 % ']
  assert [grade.exact for grade in grades] == [True, False, False]
  grades = grade_error_rates([row('one', 'one two'), row('One', 'one')])
  assert [grade.summary.split('·')[0] for grade in grades] == ['WER 50.0 % ', 'WER 0.0 % ']
  assert grades[1].exact


# A run


def test_evaluation_writes_where_words_lie_and_the_report_shows_them(tmp_path):
  write(tmp_path)
  done(*train(tmp_path, 'run', head='joint'))
  assert not [*(tmp_path / 'run').glob('predictions/*')]
  done('evaluate', tmp_path / 'run', '--greedy')
  rows = read_jsonl(tmp_path / 'run' / 'predictions' / 'good-60-greedy.jsonl')
  assert rows and all(''.join(text for text, *_ in r['alignment']) == r['hypothesis'] for r in rows)
  manifest = {}
  for line in read_jsonl(tmp_path / 'good.jsonl'):
    manifest[line['id']] = np.load(tmp_path / line['audio'])
  heard = [
    manifest[r['id']][first : last + 1].max(0).argmax() == 'abc '.index(text)
    for r in rows
    for text, first, last in r['alignment']
  ]
  assert np.mean(heard) > 0.5  # the rows of a letter hold its sound
  done('report', tmp_path / 'run')
  data = data_of((tmp_path / 'run' / 'report.html').read_text())
  assert all(media['sound']['words'] for media in data['media'].values()) and len(
    data['media']
  ) == len(rows)
  looks = [row['answers'][0]['attention'] for row in data['groups'][0]['rows']]
  assert all(
    len(look['audio']['values']) == len(look['words']) and 'text' not in look
    for look in looks
    if look['words']
  )
  write_jsonl(
    tmp_path / 'good.jsonl',
    [line | {'id': f'other {line["id"]}'} for line in read_jsonl(tmp_path / 'good.jsonl')],
  )
  done('report', tmp_path / 'run')  # of rows whose examples are gone
