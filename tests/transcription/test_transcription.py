"""From sound files to transcripts: reading, windows, what is no speech, files of text, the command."""

import dataclasses
import json
import re
import zipfile

import numpy as np
import pytest
import soundfile
from program import done, refused
from test_audio import encoded, tone
from whispers import END, FIRST_TIME, write_hugging_face, write_tokenizer

from mmlm.cli.flags import Transcribe
from mmlm.data.sources.recording import Recording, quietest, stretches
from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.data.transforms.audio import RATE, decode_audio
from mmlm.pretrained.whisper import find
from mmlm.transcription.audio_windows import Track, is_no_speech, split_segments
from mmlm.transcription.subtitles import FORMATS, clock
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcript import DecodingResult, Segment, Transcript
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import EncodedWindow, Whisper
from mmlm.utils.errors import UserError


def sound(path, samples, rate=RATE, **options):
  path.write_bytes(encoded(samples, rate, **options))
  return str(path)


# Reading


@pytest.mark.parametrize('rate, channels', [(16000, 1), (8000, 1), (192000, 5)])
def test_a_recording_read_in_pieces_is_the_whole_file(tmp_path, rate, channels):
  samples = np.stack(
    [tone(300, 25, rate) * np.linspace(0, 1, 25 * rate, dtype=np.float32)] * channels, 1
  )
  path = sound(tmp_path / 'a.wav', samples, rate)
  recording = Recording(path)
  position = 0
  pieces = []
  while len(piece := recording.read(position, 7919)):
    pieces.append(piece)
    position += len(piece)
    assert len(recording._samples) <= 11 * RATE  # what was left behind is forgotten
  whole = decode_audio((tmp_path / 'a.wav').read_bytes())
  found = np.concatenate(pieces)
  assert len(found) == len(whole) == 25 * RATE and recording.duration == 25
  np.testing.assert_allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize(
  'data, says',
  [
    (b'', 'cannot be decoded'),
    (b'no sound at all', 'cannot be decoded'),
    (encoded(np.zeros(0, np.float32)), 'has no samples'),
    (encoded(np.full(9, np.nan, np.float32), kind='FLOAT'), 'not finite'),
  ],
)
def test_what_is_no_recording_is_named(tmp_path, data, says):
  (tmp_path / 'a.wav').write_bytes(data)
  with pytest.raises(UserError, match=f'a.wav: .*{says}'):
    Recording(tmp_path / 'a.wav')


def test_stretches_are_the_whole_and_are_cut_where_it_is_quiet(tmp_path):
  samples = tone(300, 40)
  quiet = (12.5, 26.0)
  for second in quiet:
    samples[int((second - 0.2) * RATE) : int((second + 0.2) * RATE)] = 0
  found = list(stretches(Recording(sound(tmp_path / 'a.wav', samples)), 15 * RATE, 5 * RATE))
  ends = [(start + len(part)) / RATE for start, part, _ in found]
  np.testing.assert_allclose(ends[:2], quiet, atol=0.2)
  assert [last for _, _, last in found] == [False] * (len(found) - 1) + [True] and all(
    len(part) <= 15 * RATE for _, part, _ in found
  )
  np.testing.assert_allclose(np.concatenate([part for _, part, _ in found]), samples, atol=1e-4)
  assert 4000 <= quietest(np.ones(16000, np.float32), 4000) <= 16000


# Windows


def T(seconds):
  return FIRST_TIME + round(seconds / 0.02)


@pytest.mark.parametrize(
  'tokens, wanted, used',
  [
    ((T(0), 5, T(0.5)), [(0, 0.5, 1)], 0.8),  # a whole segment, and nothing behind it
    ((T(0.1), 5, 6), [(0.1, 0.8, 2)], 0.8),  # no end: up to the end of the window
    ((T(0), 5, T(0.4), T(0.4), 6), [(0, 0.4, 1)], 0.4),  # what is not whole is heard again
    ((T(0), 5, T(0.4), T(0.44), 6, T(0.7)), [(0, 0.4, 1), (0.44, 0.7, 1)], 0.8),
    ((T(0), 5, T(0.3), T(0.3), 6, T(0.6), T(0.6)), [(0, 0.3, 1), (0.3, 0.6, 1)], 0.6),
    ((T(0), 5, T(1.0)), [(0, 0.8, 1)], 0.8),  # behind the end of the sound
    ((5, 6), [(0, 0.8, 2)], 0.8),
    ((T(0),), [(0, 0.8, 0)], 0.8),
    ((), [(0, 0.8, 0)], 0.8),
  ],
)
def test_spans_of_a_window(tokens, wanted, used):
  found, end = split_segments(tokens, FIRST_TIME, 0.8)
  assert [
    (round(a, 3), round(b, 3), sum(t < END for t in inner)) for a, b, inner in found
  ] == wanted and end == pytest.approx(used)


STEPS = (0.36, 0.5, 0.2, 0.62, 0.44, 0.9, 0.3, 0.26, 0.7, 0.48)  # seconds


class ReadsSteps:
  """In the place of a Whisper: hears constant stretches of a step function, writes the number of each that is whole, and begins the next."""

  def __init__(self, folder, **options):
    write_tokenizer(folder)
    self.tokenizer = WhisperTokenizer.from_folder(folder, FIRST_TIME + 51)
    self.options = TranscriptionOptions(language='en', **options)
    self.samples = RATE
    self.language = 'en'
    self.heard = []

  def features(self, samples):
    return samples

  def encode(self, windows):
    self.heard += windows
    return [EncodedWindow(samples, 0.0, 'en') for samples in windows]

  def prompt(self, language, before):
    return list(before)

  def decode(self, heard, prompts, size):
    assert size >= len(heard)
    return [self.written(one.memory) for one in heard]

  def written(self, samples):
    values = np.round(samples * 100).astype(int)
    borders = [0, *np.flatnonzero(np.diff(values)) + 1, len(values)]
    tokens = []
    for start, end in zip(borders, borders[1:]):
      tokens += [T(start / RATE), int(values[start])] + ([T(end / RATE)] if end < RATE else [])
    return DecodingResult(tuple(tokens), '', -0.1, 0.0, 0.0, 1.0)


def steps(seconds=STEPS, first=1):
  return np.concatenate(
    [np.full(round(s * RATE), (i + first) / 100, np.float32) for i, s in enumerate(seconds)]
  )


def test_every_step_is_found_once_at_its_time(tmp_path):
  path = sound(tmp_path / 'a.wav', steps())
  reader = ReadsSteps(tmp_path)
  (transcript,) = Transcriber(reader)([path])
  ends = np.cumsum(STEPS)
  assert [round(s.start, 2) for s in transcript.segments] == np.round([0, *ends[:-1]], 2).tolist()
  assert [round(s.end, 2) for s in transcript.segments] == np.round(
    ends, 2
  ).tolist() and transcript.duration == pytest.approx(ends[-1], abs=1e-3)
  assert [reader.tokenizer.encode(s.text) for s in transcript.segments] == [
    [i + 1] for i in range(len(STEPS))
  ]
  assert len(reader.heard) < 2 * len(STEPS)


def test_files_are_answered_together_and_told_in_order(tmp_path):
  lengths = (STEPS, STEPS[:1], STEPS[::-1], STEPS[2:4])
  paths = []
  for i, seconds in enumerate(lengths):
    paths.append(sound(tmp_path / f'{i}.wav', steps(seconds, 10 * i + 1)))
  alone = [next(Transcriber(ReadsSteps(tmp_path))([path])) for path in paths]
  for size in (1, 2, 8):
    told = []
    together = list(
      Transcriber(ReadsSteps(tmp_path, batch_size=size))(paths, lambda *given: told.append(given))  # noqa: B023
    )
    assert together == alone
    assert [file for file, *_ in told] == sorted(file for file, *_ in told)
    assert [s for _, some, _ in told for s in some] == [
      s for transcript in alone for s in transcript.segments
    ]
  for one, path in zip(alone, paths):  # shorter than a window: windows that are cut are the same
    if one.duration <= 1:
      assert next(Transcriber(ReadsSteps(tmp_path, batched=True))([path])) == one


def test_silence_is_passed_over_and_a_rest_is_not_a_window(tmp_path):
  samples = np.concatenate(
    [np.zeros(5 * RATE, np.float32), steps((0.5, 0.3)), np.zeros(3 * RATE, np.float32)]
  )
  reader = ReadsSteps(tmp_path)
  (transcript,) = Transcriber(reader)([sound(tmp_path / 'a.wav', samples)])
  assert [(s.start, s.end) for s in transcript.segments][:2] == [
    (5.0, 5.5),
    (5.5, 5.8),
  ] and transcript.duration == 8.8
  (transcript,) = Transcriber(reader)([sound(tmp_path / 'b.wav', np.zeros(3 * RATE, np.float32))])
  assert transcript.text == '' and transcript.segments == () and transcript.duration == 3
  track = Track(0, lambda start, count: np.ones(RATE, np.float32)[start : start + count])
  track.add(
    DecodingResult((T(0), 5, T(0.94), T(0.94)), '', -0.1, 0.0, 0.0, 1.0),
    RATE,
    reader.tokenizer,
    reader.options,
  )
  assert (
    track.position == 0.94 * RATE
    and track.next_window(RATE) is None
    and track.done
    and track.seconds == 1
  )


def test_a_word_whose_time_stands_still_ends_the_window(tmp_path):
  reader = ReadsSteps(tmp_path)
  track = Track(0, lambda start, count: np.ones(3 * RATE, np.float32)[start : start + count])
  track.add(
    DecodingResult((T(0), 5, T(0), T(0), 6), '', -0.1, 0.0, 0.0, 1.0),
    RATE,
    reader.tokenizer,
    reader.options,
  )
  assert track.position == RATE  # or it would be heard for ever


@pytest.mark.parametrize(
  'no_speech, log_prob, left_out',
  [(0.5, -2, False), (0.7, -2, True), (0.7, -0.5, False), (0.95, -0.1, True)],
)
def test_what_is_no_speech(no_speech, log_prob, left_out):
  answer = DecodingResult((5,), 'you', log_prob, no_speech, 0.0, 1.0)
  assert is_no_speech(answer, TranscriptionOptions()) == left_out
  track = Track(0, lambda start, count: np.ones(count, np.float32))
  track.add(answer, RATE, None if left_out else ReadsNothing(), TranscriptionOptions())
  assert bool(track.take_segments()) != left_out and track.position == RATE


class ReadsNothing:
  timestamp_begin = FIRST_TIME

  def decode(self, tokens):
    return ' you'


def test_a_bad_answer_is_drawn_again_hotter(tmp_path):
  model = Whisper(
    write_hugging_face(tmp_path / 'hf'), TranscriptionOptions(language='en', sample_len=12)
  )
  heard = EncodedWindow({}, 0.1, 'en')
  asked = []

  def better(first, *log_probs, heard=heard):
    asked.clear()

    def search(heard, prompts, size, temperature):
      asked.append(temperature)
      return [DecodingResult((5,), '', log_probs[len(asked) - 1], 0.1, temperature, 1.0)]

    model.decode_at = search
    return model._fall_back(first, heard, []).temperature

  unlikely = DecodingResult((5,), '', -3.0, 0.1, 0.0, 1.0)
  repeats = DecodingResult((5,), '', -0.1, 0.1, 0.0, 9.0)
  assert better(unlikely, -2.0, -0.5) == 0.4 and asked == [0.2, 0.4]
  assert better(unlikely, *[-2.0] * 5) == 1.0 and len(asked) == 5  # the last, where all are bad
  assert (
    better(repeats, -0.5) == 0.2
    and better(dataclasses.replace(repeats, compression_ratio=1.0)) == 0.0
  )
  assert (
    better(unlikely, heard=EncodedWindow({}, 0.7, 'en')) == 0.0 and not asked
  )  # nobody speaks: no wonder


# Files

TRANSCRIPT = Transcript(
  'one & two --> three',
  'en',
  4000.0,
  (Segment(0.0, 1.5, 'one & two'), Segment(3661.25, 3999.999, '--> three', -0.5, 0.1, 0.0, 1.2)),
)


def test_formats_are_those_that_players_read():
  assert FORMATS['txt'](TRANSCRIPT) == 'one & two\n--> three\n'
  assert (
    FORMATS['srt'](TRANSCRIPT)
    == '1\n00:00:00,000 --> 00:00:01,500\none & two\n\n2\n01:01:01,250 --> 01:06:39,999\n-> three\n\n'
  )
  assert FORMATS['vtt'](TRANSCRIPT) == (
    'WEBVTT\n\n00:00:00.000 --> 00:00:01.500\none &amp; two\n\n01:01:01.250 --> 01:06:39.999\n-&gt; three\n\n'
  )
  found = json.loads(FORMATS['json'](TRANSCRIPT))
  assert (
    Transcript(**found | {'segments': tuple(Segment(**s) for s in found['segments'])}) == TRANSCRIPT
  )
  assert clock(59.9996, hours=False) == '01:00.000' and clock(3600, hours=False) == '01:00:00.000'


# The command


def test_flags_and_options_have_the_same_defaults():
  flags = Transcribe(files=['a.wav'])
  options = TranscriptionOptions()
  shared = {field.name for field in dataclasses.fields(flags)} & set(vars(options))
  assert len(shared) == 13
  for name in shared - {'beam_size', 'temperature'}:  # 0 = the default of the model; words
    assert getattr(flags, name) == getattr(options, name), name
  assert tuple(map(float, flags.temperature)) == options.temperature


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')


def test_the_command_prints_and_writes(tmp_path, model):
  paths = [
    sound(tmp_path / 'a.wav', tone(300, 1.5)),
    sound(tmp_path / 'b.flac', np.zeros(8000, np.float32), 8000, form='FLAC'),
  ]
  said = done(
    'transcribe',
    *paths,
    '--model',
    model,
    '--output_dir',
    tmp_path / 'out',
    '--output_format=json,srt',
    '--beam_size=1',
    '--without_timestamps',
    '--language=german',
  )
  assert said.startswith(f'{paths[0]}:\n[00:00.000 --> 00:01.000] ') and f'{paths[1]}:\n' in said
  found = [json.loads((tmp_path / 'out' / f'{name}.json').read_text()) for name in 'ab']
  assert (
    found[0]['language'] == 'de' and len(found[0]['segments']) == 2 and found[0]['duration'] == 1.5
  )
  assert (
    found[1]['text'] == ''
    and (tmp_path / 'out' / 'b.srt').read_text() == ''
    and not (tmp_path / 'out' / 'a.txt').exists()
  )


@pytest.mark.parametrize(
  'argv, says',
  [
    (['a.wav', '--model', 'whisper-bas'], "Nearest: 'whisper-base'"),
    (['a.wav', '--language=germn'], "Nearest: 'german'"),
    (['a.wav', '--task=translat'], 'choose one of transcribe, translate'),
    (['a.wav', '--output_format=srx'], "Nearest: 'srt'"),
    (['b.wav'], 'b.wav: no such file'),
    (['.'], 'a folder'),
    (['a.wav', 'c/a.wav'], 'would be written to the same files'),
    (['a.wav', 'text.wav'], 'text.wav: the sound cannot be decoded'),
    (['a.wav', '--config.seed=1'], 'is no run folder'),
    ([], 'takes FILES'),
    (['a.wav', '--condition_on_previous_text', '--batched'], 'leave out --batched'),
    (['a.wav', '--beam_size=-1'], 'expected 1 or more'),
  ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, model, argv, says):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'c').mkdir()
  for path in ('a.wav', 'c/a.wav'):
    sound(tmp_path / path, tone(300, 0.1))
  (tmp_path / 'text.wav').write_text('no sound')
  assert says in refused('transcribe', *argv, *['--model', model] * ('--model' not in argv))
  assert not list(tmp_path.glob('*.json'))


RUN = """
from mmlm.config import default_config

def get_config(arg=''):
  config = default_config()
  config.data.name, config.data.max_length, config.data.train_ops = 'manifest', 60, ('log_mel(16)',)
  config.data.eval_ops, config.data.splits = config.data.train_ops, {'train': 'PATH', 'valid': 'PATH', 'test': ('PATH',)}
  config.tokenizer.kind, config.model.dim, config.model.encoders = 'char', 16, {'audio': {'name': 'features', 'width': 16}}
  config.train.duration, config.train.eval_every, config.train.batch_size = '2 steps', '2 steps', 8
  config.evaluate.batch_size, config.decoding.max_length, config.parallel.strategy = 8, 5, 'jit'
  return config
"""


def test_a_run_of_ours_writes_the_same_files(tmp_path):
  paths = [sound(tmp_path / f'{i}.wav', tone(200 + 100 * i, 0.2)) for i in range(8)]
  mine = tmp_path / 'mine.jsonl'
  mine.write_text(
    ''.join(json.dumps({'id': path, 'audio': path, 'target': 'ab'}) + '\n' for path in paths)
  )
  (tmp_path / 'run.py').write_text(RUN.replace('PATH', str(mine)))
  done('train', tmp_path / 'run.py', '--workdir', tmp_path / 'run')
  said = done(
    'transcribe',
    *paths[:3],
    '--model',
    tmp_path / 'run',
    '--output_dir',
    tmp_path / 'out',
    '--beam_size=1',
  )
  alone = done(
    'predict', tmp_path / 'run', '--input', mine, '--config.decoding.method=greedy'
  ).splitlines()[:3]
  for i, text in enumerate(line.split('\t')[1] for line in alone):
    found = json.loads((tmp_path / 'out' / f'{i}.json').read_text())
    assert found['text'] == text and found['duration'] == 0.2 and f'{paths[i]}:' in said
    assert (tmp_path / 'out' / f'{i}.srt').read_text() == (
      f'1\n00:00:00,000 --> 00:00:00,200\n{text}\n\n' if text else ''
    )
  assert '--language: only Whisper has this' in refused(
    'transcribe', paths[0], '--model', tmp_path / 'run', '--language=en'
  )
  long = sound(tmp_path / 'long.wav', tone(200, 1.0))
  says = "long.wav' has 100 rows of audio features, the model reads 60 at most (data.max_length). Cut it."
  assert says in refused('transcribe', long, '--model', tmp_path / 'run')


# Real weights


@pytest.fixture(scope='module')
def tiny():
  try:
    find('whisper-tiny.en')
  except UserError as error:
    pytest.skip(str(error))
  return 'whisper-tiny.en'


DIGITS = {
  '0': 'zero',
  '1': 'one',
  '3': 'three',
  '4': 'four',
  '7': 'seven',
  '8': 'eight',
  '9': 'nine',
}


@pytest.fixture(scope='module')
def spoken(shared_data, tmp_path_factory):
  """Digits one after another, seven seconds."""
  with zipfile.ZipFile(shared_data / 'fsdd' / 'recordings.zip') as file:
    names = {name.rpartition('/')[2]: name for name in file.namelist()}
    parts = []
    for i, digit in enumerate(DIGITS):
      parts.append(decode_audio(file.read(names[f'{digit}_george_{i}.flac'])))
  path = tmp_path_factory.mktemp('sound') / 'digits.wav'
  soundfile.write(path, np.concatenate([np.pad(part, (1600, 6400)) for part in parts]), RATE)
  return str(path)


def test_a_real_recording_is_transcribed(tiny, spoken, tmp_path):
  silence = sound(tmp_path / 'silence.wav', np.zeros(2 * RATE, np.float32))
  hum = sound(
    tmp_path / 'hum.wav', np.random.default_rng(0).normal(0, 0.01, 5 * RATE).astype(np.float32)
  )
  model = Whisper(tiny, TranscriptionOptions(beam_size=1))
  spoken_of = [*Transcriber(model)([spoken, silence, hum])]
  words = re.findall(r'\w+', spoken_of[0].text.lower())
  assert [
    word for word in words if word not in DIGITS and word not in DIGITS.values()
  ] == [] and len(words) >= 6
  assert 3 < spoken_of[0].segments[-1].end <= spoken_of[0].duration + 0.01
  assert spoken_of[1].text == spoken_of[2].text == ''
  model.options = dataclasses.replace(model.options, batched=True)
  assert [*Transcriber(model)([spoken, silence, hum])] == spoken_of


def test_suppressed_tokens_are_those_of_the_package(tiny):
  files = find(tiny)
  given = json.loads((files.folder / 'config.json').read_text())
  tokenizer = WhisperTokenizer.from_folder(files.folder)
  assert (
    set(tokenizer.non_speech_tokens) == set(given['suppress_ids'])
    and list(tokenizer.blank_tokens) == given['suppress_ids_begin']
  )
  assert tokenizer.english_only and tokenizer.vocab_size == 51864


@pytest.mark.parity
def test_tokens_are_those_of_ctranslate2(tiny, spoken, peer):
  ctranslate2 = peer('ctranslate2')
  model = Whisper(tiny, TranscriptionOptions(beam_size=1))
  samples = soundfile.read(spoken, dtype='float32')[0]
  frames = [model.features(samples[start:]) for start in (0, 16000, 40000)]
  theirs = ctranslate2.models.Whisper(str(find(tiny).folder), compute_type='float32')
  for features, heard in zip(frames, model.encode(frames)):
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features.T[None]))
    (found,) = theirs.generate(view, [model.prompt('en')], beam_size=1, return_no_speech_prob=True)
    (answer,) = model.decode_at([heard], [model.prompt('en')], 1, 0.0)
    assert list(answer.tokens) == found.sequences_ids[0] and heard.no_speech_prob == pytest.approx(
      found.no_speech_prob, abs=1e-3
    )
