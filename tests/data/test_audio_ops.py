"""Transforms of sounds and features: what each does, and that no length is ever cut."""

import numpy as np
import pytest
from helpers.sounds import encoded, noise, tone

from mmlm.data.batching import Batch, TrainPlan
from mmlm.data.pipeline import Loader, Table
from mmlm.data.sources.manifest import ManifestSource
from mmlm.data.transforms import features
from mmlm.data.transforms.audio import RATE, Sound, log_mel_spectrogram
from mmlm.data.transforms.audio_ops import longest, shortest
from mmlm.data.transforms.features import count_rows, lengthened, rows_of, shortened
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.utils.errors import UserError


def after(*texts, of, seed=0):
  """The sound or features `of` after ops."""
  return apply_ops(parse_ops(texts), {'id': 'a', 'audio': of}, np.random.default_rng(seed))['audio']


def sound(seconds=1.0):
  return Sound(noise(seconds), RATE)


MATRIX = np.random.default_rng(1).normal(3, 2, (200, 40)).astype(np.float32)


# Sounds


def test_a_sound_has_the_rate_that_is_asked_for():
  for given in (encoded(tone(300, rate=44100), 44100), Sound(tone(300), RATE)):
    found = after('decode_sound(8000)', of=given)
    assert found.rate == 8000 and found.samples.dtype == np.float32
    assert (
      np.abs(found.samples[200:-200] - tone(300, rate=8000)[200 : len(found.samples) - 200]).max()
      < 1e-2
    )
  data = encoded(noise())
  assert np.array_equal(
    after('decode_sound', 'log_mel(40)', of=data), after('log_mel(40)', of=data)
  )
  with pytest.raises(
    UserError, match=r"Example 'a': log_mel reads 16000 samples a second, not 8000"
  ):
    after('decode_sound(8000)', 'log_mel', of=data)
  assert after('decode_sound(8000)', 'fbank(23)', of=data).shape == (100, 23)


@pytest.mark.parametrize('factor', [0.8, 1.25])
def test_speed_changes_tempo_and_pitch(factor):
  found = after(f'speed(({factor},))', of=Sound(tone(1000), RATE)).samples
  assert abs(len(found) - RATE / factor) <= 1
  peak = np.abs(np.fft.rfft(found)).argmax() * RATE / len(found)
  assert abs(peak - 1000 * factor) < 3


def test_speeds_are_drawn_among_those_given():
  lengths = {
    len(after('speed((0.5, 1, 2))', of=sound(0.1), seed=seed).samples) for seed in range(20)
  }
  assert lengths == {800, 1600, 3200}


@pytest.mark.parametrize(
  'op',
  [
    'speed(())',
    'speed((0.9, 0))',
    'speed(("a",))',
    'speed(0.9)',
    'log_mel(0)',
    'fbank(999)',
    'log_mel("a")',
  ],
)
def test_options_that_make_no_sense_are_named(op):
  with pytest.raises(UserError, match='speed|mel|bands'):
    after(op, of=sound(0.1))


def test_what_is_no_sound_is_left_alone_and_what_is_no_row_refused():
  assert apply_ops(
    parse_ops(('speed', 'log_mel', 'deltas', 'standardize')), {'id': 'a', 'text': 'b'}, None
  ) == {'id': 'a', 'text': 'b'}
  assert after('speed', 'decode_sound', 'fbank', of=MATRIX) is MATRIX
  with pytest.raises(
    UserError,
    match="'a': standardize reads features and found a sound: put log_mel or fbank before it",
  ):
    after('standardize', of=sound())
  with pytest.raises(
    UserError, match=r'deltas reads rows of features \[S, C\], not the shape \(13,\)'
  ):
    after('deltas', of=np.ones(13, np.float32))


# Features


def test_standardized_features_have_mean_0_and_variance_1():
  found = after('standardize', of=MATRIX)
  assert (
    np.allclose(found.mean(0), 0, atol=1e-5)
    and np.allclose(found.std(0), 1, atol=1e-5)
    and found.dtype == np.float32
  )
  centred = after('standardize(variance=False)', of=MATRIX)
  assert np.allclose(centred, MATRIX - MATRIX.mean(0), atol=1e-5)


@pytest.mark.parametrize('value', [0, 1e-10, -11.5129, 12345.678])
def test_what_is_constant_becomes_zero(value):
  matrix = np.stack([np.full(50, value, np.float32), MATRIX[:50, 0]], 1)
  if value:
    matrix[7, 0] = np.nextafter(matrix[7, 0], np.float32(1e9))  # as far as float32 can tell
  found = after('standardize', of=matrix)
  assert (found[:, 0] == 0).all() and np.allclose(found[:, 1].std(), 1, atol=1e-5)
  assert (after('standardize', of=matrix[:1]) == 0).all()


@pytest.mark.parametrize('op', ['log_mel', 'fbank'])
def test_silence_is_zero_after_standardizing(op):
  assert (after(op, 'standardize', 'deltas', of=Sound(np.zeros(RATE, np.float32), RATE)) == 0).all()


def test_deltas_are_slopes():
  times = np.arange(30, dtype=np.float32)[:, None]
  found = after('deltas(2)', of=times**2 * np.array([[1.0, -2.0]], np.float32))  # [30, 6]
  assert found.shape == (30, 6) and np.array_equal(found[:, 0], times[:, 0] ** 2)
  inside = slice(5, 25)
  assert np.allclose(found[inside, 2:4], 2 * times[inside] * [1, -2], rtol=1e-5)
  assert np.allclose(found[inside, 4:], [2, -4], atol=1e-3)
  assert np.array_equal(after('deltas(0)', of=MATRIX), MATRIX) and after(
    'deltas(1)', of=MATRIX[:1]
  ).shape == (1, 80)


def test_stretching_keeps_the_course_and_the_ends():
  ramp = np.linspace(0, 1, 101, dtype=np.float32)[:, None]
  found = [after('stretch(0.8, 1.25)', of=ramp, seed=seed) for seed in range(30)]
  lengths = [*map(len, found)]
  assert min(lengths) >= 80 and max(lengths) <= 127 and len(set(lengths)) > 15
  assert all(np.allclose(rows[:, 0], np.linspace(0, 1, len(rows)), atol=1e-5) for rows in found)
  assert after('stretch', of=ramp[:1]).shape == (1, 1)


def test_masks_are_no_wider_than_they_may_be():
  before = MATRIX.copy()
  fill = MATRIX.mean()
  widest = [0, 0]
  for seed in range(60):
    found = after('spec_augment(0, 1, 9, 1, 60, 0.1)', of=MATRIX, seed=seed)
    masked = found != MATRIX
    rows = masked.all(1)
    columns = masked.all(0)
    assert np.array_equal(masked, rows[:, None] | columns) and (found[masked] == fill).all()
    for axis, where in enumerate((rows, columns)):
      assert np.abs(np.diff(where.astype(int))).sum() <= 2  # one piece
      widest[axis] = max(widest[axis], where.sum())
  assert widest == [20, 9] and np.array_equal(MATRIX, before)
  assert (
    max(
      (after('spec_augment(0, 0, 0, 1, 6, 1.0)', of=MATRIX, seed=seed) != MATRIX).all(1).sum()
      for seed in range(60)
    )
    == 6
  )
  assert np.array_equal(
    after('spec_augment', of=MATRIX, seed=5), after('spec_augment', of=MATRIX, seed=5)
  )
  assert after('spec_augment(5, 3, 99, 3, 99, 1.0)', of=MATRIX[:2]).shape == (2, 40)


def test_warped_time_runs_forward_between_its_ends():
  ramp = np.arange(60, dtype=np.float32)[:, None]
  moved = set()
  for seed in range(40):
    found = after('spec_augment(8, 0, 0, 0)', of=ramp, seed=seed)[:, 0]
    assert (
      found[0] == 0
      and found[-1] == 59
      and (np.diff(found) > 0).all()
      and np.abs(found - ramp[:, 0]).max() <= 8 + 1e-3
    )
    moved.add(round(float(np.abs(found - ramp[:, 0]).max())))
  assert len(moved) > 4


# Lengths


@pytest.mark.parametrize(
  'ops',
  [
    ('speed((0.9, 1.1))', 'log_mel(8)'),
    ('speed((0.5,))', 'fbank(8)'),
    ('speed((0.33, 3))', 'log_mel(8)'),
    ('log_mel(8)', 'stretch(0.7, 1)'),
    ('speed', 'log_mel(8)', 'stretch'),
    ('log_mel(8)', 'deltas'),
  ],
)
def test_there_is_room_for_what_ops_lengthen_and_less_for_what_they_shorten(ops):
  rng = np.random.default_rng(0)
  ops = parse_ops(ops)
  plain = [op for op in ops if op.transform.change.__name__ in ('log_mel', 'fbank')]
  for number in rng.integers(1, 5000, 60):
    example = {'id': 'a', 'audio': Sound(noise(1)[:number], RATE)}
    rows = len(apply_ops(plain, example, rng)['audio'])
    counts = {'audio': np.array([rows])}
    least, most = (
      int(found['audio'][0])
      for found in (shortened(counts, shortest(ops)), lengthened(counts, longest(ops)))
    )
    assert least <= len(apply_ops(ops, example, rng)['audio']) <= most
    assert most <= (rows + 1) * longest(ops) + 1 and least >= min(rows, rows * shortest(ops) - 2)


def test_only_sounds_are_lengthened_and_an_absent_one_stays_absent():
  found = lengthened({'audio': np.array([0, 100]), 'video': np.array([7, 0])}, 1.5)
  assert found['audio'].tolist() == [0, 152] and found['video'].tolist() == [7, 0]
  ops = parse_ops(('log_mel', 'spec_augment', 'speed((1.0, 1.25))', 'flip'))
  assert longest(ops) == 1 and shortest(ops) == 0.8
  assert {
    key: rows.tolist()
    for key, rows in shortened(
      {'audio': np.array([0, 1, 100]), 'video': np.array([7])}, 0.8
    ).items()
  } == {'audio': [0, 1, 79], 'video': [7]}


def test_a_batch_holds_every_row_of_every_stretched_example():
  source = [
    {'id': str(i), 'audio': np.full((int(n), 4), 1 + i, np.float32)}
    for i, n in enumerate(np.random.default_rng(0).integers(3, 60, 40))
  ]
  ops = parse_ops(('stretch(0.6, 1.2)',))
  buckets = (20, 60, 110)
  empty = [[]] * len(source)
  plain = Table([row['id'] for row in source], np.arange(len(source)), [[1]] * len(source), empty)
  counts = count_rows(source, {'audio': 4}, [])
  table = plain.with_rows(lengthened(counts, longest(ops)))
  plan = TrainPlan(table.lengths, 8, buckets, seed=0)
  loader = Loader(source, table, ('audio',), ops, 8)
  shapes = set()
  for number in range(2 * plan.steps_per_epoch):
    batch = loader(number, plan[number])
    part = plan[number]
    shapes.add((part.length, batch['audio'].shape))
    for row, i in enumerate(part.indices):
      expected = apply_ops(ops, source[i], np.random.default_rng((0, number, row)))['audio']
      assert (
        batch['audio_mask'][row].sum() == len(expected)
        and (batch['audio'][row][batch['audio_mask'][row]] == 1 + i).all()
      )
  assert len(shapes) == len(buckets)
  tight = Loader(source, plain.with_rows(counts), ('audio',), parse_ops(('stretch(0.5, 0.5)',)), 8)
  with pytest.raises(UserError, match='rows of features'):
    tight(0, Batch(np.arange(8), 60, 8))


def test_counts_are_remembered_until_something_changes(tmp_path, monkeypatch):
  for name, seconds in (('a', 0.5), ('b', 0.25)):
    (tmp_path / f'{name}.wav').write_bytes(encoded(noise(seconds)))
  path = tmp_path / 'mine.jsonl'
  path.write_text('{"id": "a", "audio": "a.wav"}\n{"id": "b", "audio": "b.wav"}\n{"id": "c"}\n')
  counted = []
  monkeypatch.setattr(features, 'count_rows', lambda *args: counted.append(1) or count_rows(*args))

  def rows(ops=('log_mel(8)',), width=8):
    return rows_of(ManifestSource(path, require=()), {'audio': width}, ops, tmp_path / 'data')[
      'audio'
    ].tolist()

  assert rows() == [50, 25, 0] == rows() and len(counted) == 1
  assert rows(('fbank(8)',)) == [50, 25, 0] and len(counted) == 2
  (tmp_path / 'b.wav').write_bytes(encoded(noise(0.75)))
  assert rows() == [50, 75, 0] and len(counted) == 3
  (tmp_path / 'b.wav').write_bytes(b'nothing')
  for _ in range(2):  # an error is not remembered
    with pytest.raises(UserError, match="Example 'b': the sound can't be decoded"):
      rows()


def test_frames_of_a_source_without_identity_are_counted_each_time(tmp_path):
  class Examples(list):
    identity = ''

  source = Examples([{'id': 'q', 'audio': log_mel_spectrogram(noise(), 8)}])
  assert rows_of(source, {'audio': 8}, (), tmp_path)['audio'].tolist() == [100]
  assert not list(tmp_path.iterdir())


def test_a_sound_without_features_is_named():
  for given in (encoded(noise(0.1)), sound(0.1)):
    with pytest.raises(UserError, match="'a' are a sound: put log_mel or fbank"):
      count_rows([{'id': 'a', 'audio': given}], {'audio': 80})
