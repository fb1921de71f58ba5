"""Error rates: against a plain edit distance, their intervals, comparisons and reports."""

import itertools
import json
import random

import jiwer
import numpy as np
import pytest
from helpers.sounds import encoded, tone
from program import write_jsonl

from mmlm.cli import flags
from mmlm.cli.evaluate import evaluate
from mmlm.cli.predict import predict
from mmlm.cli.train import train
from mmlm.evaluation.metrics import METRICS, higher_is_better, speech_metrics
from mmlm.evaluation.metrics.speech_metrics import (
  KINDS,
  alignment,
  error_rate,
  error_report,
  format_report,
  timing,
)
from mmlm.evaluation.score_predictions import Predictions, score_predictions
from mmlm.evaluation.significance import paired_bootstrap
from mmlm.inference.input_files import read_inputs
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl

CONFIG = '''"""Two tones."""
from mmlm.config import default_config


def get_config(arg=''):
  config = default_config()
  config.task = 'captioning'
  config.data.name = 'manifest'
  config.data.splits = {'train': arg, 'valid': arg, 'test': (arg,)}
  config.data.train_ops = (
    'speed((0.9, 1.0))',
    'log_mel(16)',
    'spec_augment(2, 1, 2, 1, 3)',
    'standardize',
  )
  config.data.eval_ops = ('log_mel(16)', 'standardize')
  config.data.max_length = 40
  config.tokenizer = {'kind': 'word', 'min_frequency': 1}
  config.model.dim = 16
  config.model.encoders = {'audio': {'name': 'feature_recurrent', 'width': 16}}
  config.model.head = {'name': 'recurrent_decoder'}
  config.optimizer.learning_rate = 2e-2
  config.optimizer.warmup = '2 steps'
  config.train.duration, config.train.eval_every = '40 steps', '40 steps'
  config.train.batch_size = config.evaluate.batch_size = 8
  config.train.monitor = 'wer'
  config.evaluate.metrics = ('wer', 'cer')
  config.evaluate.shuffled = False
  config.evaluate.bootstrap_samples = 10
  config.decoding.max_length = 6
  config.parallel.strategy = 'jit'
  return config
'''
WORDS = ['one', 'two', 'three', 'oh', 'é']


def corpus(seed=0, noise=0.2, size=60):
  """Rows of predictions of three speakers: words left out, put in and exchanged."""
  rng = random.Random(seed)
  rows = []
  for i in range(size):
    true = [random.Random(i + k).choice(WORDS) for k in range(1 + i % 7)]
    said = []
    for word in true:
      if rng.random() > noise / 2:
        said.append(rng.choice(WORDS) if rng.random() < noise else word)
    said += [rng.choice(WORDS)] * (rng.random() < noise)
    rows.append(
      {
        'id': str(i),
        'hypothesis': ' '.join(said),
        'references': [' '.join(true)],
        'speaker': 'abc'[i % 3],
        'seconds': 1.5,
      }
    )
  return rows


def distance(first, second) -> int:
  """Levenshtein's, by its table."""
  table = np.zeros((len(first) + 1, len(second) + 1), int)
  table[:, 0], table[0] = np.arange(len(first) + 1), np.arange(len(second) + 1)
  for i, j in itertools.product(range(1, len(first) + 1), range(1, len(second) + 1)):
    table[i, j] = min(
      table[i - 1, j] + 1,
      table[i, j - 1] + 1,
      table[i - 1, j - 1] + (first[i - 1] != second[j - 1]),
    )
  return int(table[-1, -1])


@pytest.mark.parametrize('name, split', [('wer', str.split), ('cer', list)])
def test_rates_are_edits_over_the_length_of_the_references(name, split):
  rows = corpus()
  pairs = [(split(row['references'][0]), split(row['hypothesis'])) for row in rows]
  counts = Predictions(rows).statistics(name)
  assert counts[:, 1:].sum(1).tolist() == [distance(*pair) for pair in pairs]
  assert (
    counts[:, :3].sum(1).tolist() == [len(true) for true, _ in pairs]
    and (counts[:, [0, 1, 3]].sum(1) == [len(said) for _, said in pairs]).all()
  )
  found = score_predictions(Predictions(rows), [name], 200)[name]
  assert found['value'] == pytest.approx(
    100 * sum(distance(*pair) for pair in pairs) / sum(len(true) for true, _ in pairs)
  )
  assert (
    found['low'] < found['value'] < found['high']
    and not higher_is_better(name)
    and not higher_is_better(f'dev/{name}')
  )
  theirs = {'wer': jiwer.wer, 'cer': jiwer.cer}[name](
    [row['references'][0] for row in rows], [row['hypothesis'] for row in rows]
  )
  assert found['value'] == pytest.approx(100 * theirs)


def rate(name, hypothesis, *references) -> float:
  return float(error_rate(METRICS[name].statistics([hypothesis], [list(references)]).sum(0)))


def test_case_spaces_and_composition_do_not_count_and_punctuation_does():
  assert rate('wer', ' A  b\n', 'a B') == rate('cer', ' A  b\n', 'a B') == 0
  assert rate('cer', 'e\u0301', '\xe9') == 0 and rate('cer', 'e', '\xe9') == 100
  assert rate('wer', 'a, b', 'a b') == 50 and rate('cer', 'ab', 'a b') == pytest.approx(100 / 3)


def test_the_ends_of_the_scale():
  assert (
    rate('wer', '', 'a b') == 100 == rate('cer', '', 'a b') and rate('wer', 'x y z', 'a') == 300
  )
  assert (
    rate('wer_normalized', 'uh a', 'um') == 100 and rate('wer_normalized', 'uh', 'um') == 0
  )  # nothing is left of the reference
  assert rate('wer', 'a b c', 'x y z', 'a b') == 50  # of the nearest reference
  sums = np.array([[3, 1, 0, 0], [0, 0, 0, 0]])
  assert error_rate(sums).tolist() == [25, 0]


def test_whispers_normaliser_is_an_option():
  said = "Okay, it's 50 percent of Mr. Smith's colour"
  true = 'okay it is fifty percent of mister smith is color'
  assert rate('wer', said, true) > 60 and rate('wer_normalized', said, true) == 0
  assert (
    rate('wer_normalized', 'TWENTY-THREE!', '23') == 0
    and speech_metrics.whispers_english('Um, the honour') == 'the honor'
  )


def test_alignment_spells_out_the_errors():
  assert alignment('the Cat sat down', 'the cat sits right down') == [
    ('equal', ['the', 'cat'], ['the', 'cat']),
    ('insert', [], ['sits']),
    ('substitute', ['sat'], ['right']),
    ('equal', ['down'], ['down']),
  ]
  assert alignment('a b', '') == [('delete', ['a', 'b'], [])]
  for row in corpus():
    parts = alignment(row['references'][0], row['hypothesis'])
    assert [word for _, true, _ in parts for word in true] == row['references'][0].split()
    assert [word for *_, said in parts for word in said] == row['hypothesis'].split()


def test_two_systems_are_compared_by_their_sums():
  good, bad = (Predictions(corpus(noise=noise)).statistics('wer') for noise in (0.05, 0.4))
  found = paired_bootstrap(good, bad, METRICS['wer'].value, 500)
  assert found['difference'] < -10 and found['p'] < 0.02
  assert paired_bootstrap(good, good, METRICS['wer'].value, 50)['p'] == 1


def report_of(rows):
  views = Predictions(rows)
  return error_report(rows, views.statistics('wer'), views.statistics('cer'))


def test_speakers_add_up_to_the_whole():
  rows = corpus()
  report = report_of(rows)
  assert [row['speaker'] for row in report['by_speaker']] == ['a', 'b', 'c']
  assert sum(row['utterances'] for row in report['by_speaker']) == 60
  length = sum(report['words'][kind] for kind in KINDS[:3])
  assert sum(row['words'] for row in report['by_speaker']) == length
  weighted = sum(row['wer'] * row['words'] for row in report['by_speaker']) / length
  assert weighted == pytest.approx(
    score_predictions(Predictions(rows), ['wer'], 1)['wer']['value'], abs=0.02
  )
  own = [row for row in rows if row['speaker'] == 'b']
  assert report['by_speaker'][1]['cer'] == pytest.approx(
    score_predictions(Predictions(own), ['cer'], 1)['cer']['value'], abs=0.01
  )
  assert report['characters'] == dict(
    zip(
      KINDS,
      speech_metrics.edits(
        [row['hypothesis'] for row in rows],
        [row['references'] for row in rows],
        jiwer.process_characters,
      ).sum(0),
    )
  )
  silent = []
  for row in rows:
    silent.append({key: value for key, value in row.items() if key not in ('speaker', 'seconds')})
  assert (
    report_of(silent) == {key: report[key] for key in ('words', 'characters')}
    and timing(silent, 3) == {}
  )
  mixed = report_of([*rows, silent[0]])['by_speaker']
  assert mixed[0] == {'speaker': 'unknown', 'utterances': 1} | {
    key: mixed[0][key] for key in ('words', 'wer', 'cer')
  }
  lines = format_report(report | timing(rows, 9)).splitlines()
  assert (
    len(lines) == 6
    and 'hits' in lines[0]
    and lines[-1].endswith(
      '90 s of sound in 9.0 s, compilation and loading included: real-time factor 0.1000'
    )
  )


def test_an_evaluation_of_speech_reports_speakers_errors_and_speed(tmp_path, capsys):
  rows = []
  for i in range(24):
    (tmp_path / f'{i}.flac').write_bytes(
      encoded(tone(2000 if i % 2 else 200, 0.2 + 0.02 * (i % 5)), form='FLAC')
    )
    row = {'id': str(i), 'audio': f'{i}.flac', 'target': ('a low tone', 'so high')[i % 2]}
    rows.append(row | ({'speaker': 'xy'[i % 3 == 0]} if i else {}))
  mine = write_jsonl(tmp_path / 'mine.jsonl', rows)
  folder = tmp_path / 'run'
  (tmp_path / 'config.py').write_text(CONFIG)
  spec = f'{tmp_path}/config.py:{mine}'
  settings = {'data.dir': str(tmp_path / 'data')}
  train(flags.Train(config=spec, workdir=str(folder), settings=settings))
  evaluate(flags.Evaluate(run=str(folder)))
  output = capsys.readouterr().out
  assert 'substitutions' in output and 'real-time factor' in output and 'WER' in output
  score = read_json(next((folder / 'scores').glob('*.json')))
  assert score['audio_seconds'] == pytest.approx(
    sum(0.2 + 0.02 * (i % 5) for i in range(24)), abs=0.01
  )
  assert 0 < score['decoding_seconds'] <= score['seconds'] + 0.1
  assert score['real_time_factor'] == pytest.approx(
    score['decoding_seconds'] / score['audio_seconds'], rel=0.05
  )
  assert [(row['speaker'], row['utterances']) for row in score['by_speaker']] == [
    ('unknown', 1),
    ('x', 16),
    ('y', 7),
  ]
  assert score['scores']['wer']['value'] < 30, 'two tones are not told apart'
  predictions = read_jsonl(next((folder / 'predictions').glob('*.jsonl')))
  assert (
    predictions[1]['speaker'] == 'x'
    and predictions[1]['seconds'] == 0.22
    and 'speaker' not in predictions[0]
  )
  # A sound, and a folder of sounds, can be asked without a manifest.
  predict(flags.Predict(run=str(folder), input=str(tmp_path / '1.flac')))
  assert capsys.readouterr().out == '1.flac\tso high\n'
  (tmp_path / 'some' / 'more').mkdir(parents=True)
  for name in ('b.flac', 'more/a.WAV'):
    (tmp_path / 'some' / name).write_bytes(encoded(tone(200, 0.2)))
  predict(flags.Predict(run=str(folder), input=str(tmp_path / 'some')))
  assert capsys.readouterr().out == 'b.flac\ta low tone\nmore/a.WAV\ta low tone\n'


@pytest.mark.parametrize(
  'name, says',
  [
    ('empty.wav', "the sound of 'empty.wav' has zero bytes"),
    ('none', 'no such file'),
    ('folder', 'no sound'),
  ],
)
def test_what_is_no_sound_is_refused_before_the_model(tmp_path, name, says):
  (tmp_path / 'empty.wav').write_bytes(b'')
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match=says):
    read_inputs(str(tmp_path / name), ('audio',))
  with pytest.raises(UserError, match='this model reads audio, text'):
    read_inputs(str(tmp_path / 'empty.wav'), ('audio', 'text'))
  np.save(tmp_path / 'a.npy', np.ones((3, 4)))
  (example,) = read_inputs(str(tmp_path / 'a.npy'), ('audio',))
  assert example['id'] == 'a.npy' and json.dumps(example['audio'].tolist()) == json.dumps(
    [[1.0] * 4] * 3
  )
