"""From sound files to transcripts: reading, windows, silence, several files together."""

import numpy as np
import pytest
from helpers.sounds import encoded, tone
from whispers import END, FIRST_TIME, write_tokenizer

from mmlm.data.sources.recording import Recording, quietest, stretches
from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.data.transforms.audio import RATE, decode_audio
from mmlm.transcription.audio_windows import Track, is_no_speech, split_segments
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcript import DecodingResult
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import EncodedWindow
from mmlm.utils.errors import UserError


def write_sound(path, samples, rate=RATE):
  path.write_bytes(encoded(samples, rate))
  return str(path)


# Reading


@pytest.mark.parametrize('rate, channels', [(16000, 1), (8000, 1), (192000, 5)])
def test_a_recording_read_in_pieces_is_the_whole_file(tmp_path, rate, channels):
  fading_in = np.linspace(0, 1, 25 * rate, dtype=np.float32)
  samples = np.stack([tone(300, 25, rate) * fading_in] * channels, 1)
  path = write_sound(tmp_path / 'a.wav', samples, rate)
  recording = Recording(path)
  position = 0
  pieces = []
  while len(piece := recording.read(position, 7919)):
    pieces.append(piece)
    position += len(piece)
    assert len(recording._samples) <= 11 * RATE  # what was read is not stored
  assert position == 25 * RATE
  assert recording.duration == 25
  whole = decode_audio((tmp_path / 'a.wav').read_bytes())
  np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-3)


@pytest.mark.parametrize(
  'data, message',
  [
    (b'', 'cannot be decoded'),
    (b'no sound at all', 'cannot be decoded'),
    (encoded(np.zeros(0, np.float32)), 'has no samples'),
    (encoded(np.full(9, np.nan, np.float32), kind='FLOAT'), 'not finite'),
  ],
)
def test_a_file_that_is_no_recording_is_named(tmp_path, data, message):
  (tmp_path / 'a.wav').write_bytes(data)
  with pytest.raises(UserError, match=f'a.wav: .*{message}'):
    Recording(tmp_path / 'a.wav')


def test_stretches_are_the_whole_file_and_are_cut_where_it_is_quiet(tmp_path):
  samples = tone(300, 40)
  quiet = (12.5, 26.0)
  for second in quiet:
    samples[int((second - 0.2) * RATE) : int((second + 0.2) * RATE)] = 0
  recording = Recording(write_sound(tmp_path / 'a.wav', samples))
  starts, parts, is_last = zip(*stretches(recording, 15 * RATE, 5 * RATE))
  ends = [(start + len(part)) / RATE for start, part in zip(starts, parts)]
  np.testing.assert_allclose(ends[:2], quiet, atol=0.2)
  assert is_last == (False,) * (len(parts) - 1) + (True,)
  assert all(len(part) <= 15 * RATE for part in parts)
  np.testing.assert_allclose(np.concatenate(parts), samples, atol=1e-4)
  assert 4000 <= quietest(np.ones(16000, np.float32), 4000) <= 16000


# Windows


def time_token(seconds):
  return FIRST_TIME + round(seconds / 0.02)


T = time_token


@pytest.mark.parametrize(
  'tokens, expected, finished',
  [
    ((T(0), 5, T(0.5)), [(0, 0.5, 1)], 0.8),  # a complete segment, and nothing after it
    ((T(0.1), 5, 6), [(0.1, 0.8, 2)], 0.8),  # no end: up to the end of the window
    ((T(0), 5, T(0.4), T(0.4), 6), [(0, 0.4, 1)], 0.4),  # the incomplete rest is decoded again
    ((T(0), 5, T(0.4), T(0.44), 6, T(0.7)), [(0, 0.4, 1), (0.44, 0.7, 1)], 0.8),
    ((T(0), 5, T(0.3), T(0.3), 6, T(0.6), T(0.6)), [(0, 0.3, 1), (0.3, 0.6, 1)], 0.6),
    ((T(0), 5, T(1.0)), [(0, 0.8, 1)], 0.8),  # after the end of the sound
    ((5, 6), [(0, 0.8, 2)], 0.8),
    ((T(0),), [(0, 0.8, 0)], 0.8),
    ((), [(0, 0.8, 0)], 0.8),
  ],
)
def test_a_window_is_split_at_its_times(tokens, expected, finished):
  spans, end = split_segments(tokens, FIRST_TIME, 0.8)
  found = []
  for span in spans:
    texts = [token for token in span.tokens if token < END]
    found.append((round(span.start, 3), round(span.end, 3), len(texts)))
  assert found == expected
  assert end == pytest.approx(finished)


def result_of(*tokens, log_prob=-0.1, no_speech_prob=0.0):
  return DecodingResult(tokens, '', log_prob, no_speech_prob, 0.0, 1.0)


def constant_track(seconds):
  samples = np.ones(seconds * RATE, np.float32)
  return Track(0, lambda start, count: samples[start : start + count])


class FixedText:
  """In the place of a tokenizer: every text is 'you'."""

  timestamp_begin = FIRST_TIME

  def decode(self, tokens):
    return ' you'


def test_a_window_whose_last_time_is_its_start_is_not_decoded_for_ever():
  track = constant_track(3)
  track.add(result_of(T(0), 5, T(0), T(0), 6), RATE, FixedText(), TranscriptionOptions())
  assert track.position == RATE


def test_a_short_rest_of_a_file_is_not_a_window():
  track = constant_track(1)
  track.add(result_of(T(0), 5, T(0.94), T(0.94)), RATE, FixedText(), TranscriptionOptions())
  assert track.position == 0.94 * RATE
  assert track.next_window(RATE) is None
  assert track.done
  assert track.seconds == 1


@pytest.mark.parametrize(
  'no_speech_prob, log_prob, is_silent',
  [(0.5, -2, False), (0.7, -2, True), (0.7, -0.5, False), (0.95, -0.1, True)],
)
def test_a_window_without_speech_has_no_segment(no_speech_prob, log_prob, is_silent):
  result = result_of(5, log_prob=log_prob, no_speech_prob=no_speech_prob)
  assert is_no_speech(result, TranscriptionOptions()) == is_silent
  track = constant_track(1)
  track.add(result, RATE, FixedText(), TranscriptionOptions())
  assert bool(track.take_segments()) != is_silent
  assert track.position == RATE


# Files

STEPS = (0.36, 0.5, 0.2, 0.62, 0.44, 0.9, 0.3, 0.26, 0.7, 0.48)  # seconds


class ReadsSteps:
  """In the place of Whisper: reads a step function.

  It writes the number of each step that is whole, with its times, and begins the next step.
  """

  def __init__(self, folder, **options):
    write_tokenizer(folder)
    self.tokenizer = WhisperTokenizer.from_folder(folder, FIRST_TIME + 51)
    self.options = TranscriptionOptions(language='en', **options)
    self.samples = RATE
    self.language = 'en'
    self.windows = 0

  def features(self, samples):
    return samples

  def encode(self, windows):
    self.windows += len(windows)
    return [EncodedWindow(samples, 0.0, 'en') for samples in windows]

  def prompt(self, language, before):
    return list(before)

  def decode(self, windows, prompts, batch_size):
    assert batch_size >= len(windows)
    return [self.write(window.memory) for window in windows]

  def write(self, samples):
    values = np.round(samples * 100).astype(int)
    borders = [0, *np.flatnonzero(np.diff(values)) + 1, len(values)]
    tokens = []
    for start, end in zip(borders, borders[1:]):
      tokens += [T(start / RATE), int(values[start])]
      if end < RATE:
        tokens.append(T(end / RATE))
    return result_of(*tokens)


def step_function(seconds=STEPS, first=1):
  """Returns samples whose steps have the values first / 100, (first + 1) / 100, ..."""
  steps = []
  for number, duration in enumerate(seconds, first):
    steps.append(np.full(round(duration * RATE), number / 100, np.float32))
  return np.concatenate(steps)


def test_every_step_is_found_once_at_its_time(tmp_path):
  path = write_sound(tmp_path / 'a.wav', step_function())
  reader = ReadsSteps(tmp_path)
  (transcript,) = Transcriber(reader)([path])
  segments = transcript.segments
  borders = np.concatenate([[0], np.cumsum(STEPS)])
  np.testing.assert_allclose([segment.start for segment in segments], borders[:-1], atol=1e-6)
  np.testing.assert_allclose([segment.end for segment in segments], borders[1:], atol=1e-6)
  assert transcript.duration == pytest.approx(borders[-1], abs=1e-3)
  for number, segment in enumerate(segments, 1):
    assert reader.tokenizer.encode(segment.text) == [number]
  assert reader.windows < 2 * len(STEPS)


@pytest.fixture(scope='module')
def four_files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('files')
  paths = []
  for i, seconds in enumerate((STEPS, STEPS[:1], STEPS[::-1], STEPS[2:4])):
    paths.append(write_sound(folder / f'{i}.wav', step_function(seconds, 10 * i + 1)))
  return paths


@pytest.mark.parametrize('batch_size', [1, 2, 8])
def test_files_that_are_decoded_together_have_the_transcripts_of_each_alone(
  tmp_path, four_files, batch_size
):
  alone = [next(Transcriber(ReadsSteps(tmp_path))([path])) for path in four_files]
  files = []
  segments = []

  def listener(file, new_segments, seconds):
    files.append(file)
    segments.extend(new_segments)

  transcriber = Transcriber(ReadsSteps(tmp_path, batch_size=batch_size))
  assert list(transcriber(four_files, listener)) == alone
  assert files == sorted(files)
  expected = []
  for transcript in alone:
    expected += transcript.segments
  assert segments == expected


def test_a_file_shorter_than_a_window_is_the_same_when_batched(tmp_path, four_files):
  for path in (four_files[1], four_files[3]):
    transcript = next(Transcriber(ReadsSteps(tmp_path))([path]))
    assert transcript.duration <= 1
    assert next(Transcriber(ReadsSteps(tmp_path, batched=True))([path])) == transcript


def test_silence_is_skipped(tmp_path):
  silence = np.zeros(5 * RATE, np.float32)
  samples = np.concatenate([silence, step_function((0.5, 0.3)), silence])
  reader = ReadsSteps(tmp_path)
  path = write_sound(tmp_path / 'a.wav', samples)
  (transcript,) = Transcriber(reader)([path])
  times = [(segment.start, segment.end) for segment in transcript.segments]
  assert times[:2] == [(5.0, 5.5), (5.5, 5.8)]
  assert transcript.duration == 10.8
  path = write_sound(tmp_path / 'b.wav', silence)
  (transcript,) = Transcriber(reader)([path])
  assert (transcript.text, transcript.segments, transcript.duration) == ('', (), 5)
