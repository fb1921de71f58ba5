"""Transcripts as files, the command `transcribe`, and the weights of whisper-tiny.en."""

import dataclasses
import json
import re
import zipfile

import numpy as np
import pytest
import soundfile
from helpers.sounds import encoded, tone
from program import done, refused, write_jsonl
from whispers import write_hugging_face

from mmlm.cli.flags import Transcribe
from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.data.transforms.audio import RATE, decode_audio
from mmlm.pretrained.whisper import find_whisper
from mmlm.transcription.subtitles import FORMATS, clock
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcript import Segment, Transcript
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.errors import UserError


def write_sound(path, samples, rate=RATE, **options):
  path.write_bytes(encoded(samples, rate, **options))
  return str(path)


# Files

TRANSCRIPT = Transcript(
  'one & two --> three',
  'en',
  4000.0,
  (
    Segment(0.0, 1.5, 'one & two'),
    Segment(3661.25, 3999.999, '--> three', -0.5, 0.1, 0.0, 1.2),
  ),
)
SRT = """1
00:00:00,000 --> 00:00:01,500
one & two

2
01:01:01,250 --> 01:06:39,999
-> three

"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:01.500
one &amp; two

01:01:01.250 --> 01:06:39.999
-&gt; three

"""


def test_files_have_the_formats_that_players_read():
  assert FORMATS['txt'](TRANSCRIPT) == 'one & two\n--> three\n'
  assert FORMATS['srt'](TRANSCRIPT) == SRT
  assert FORMATS['vtt'](TRANSCRIPT) == VTT
  fields = json.loads(FORMATS['json'](TRANSCRIPT))
  fields['segments'] = tuple(Segment(**segment) for segment in fields['segments'])
  assert Transcript(**fields) == TRANSCRIPT


def test_times_are_rounded_to_milliseconds():
  assert clock(59.9996, hours=False) == '01:00.000'
  assert clock(3600, hours=False) == '01:00:00.000'


# The command


def test_flags_and_options_have_the_same_defaults():
  flags = Transcribe(files=['a.wav'])
  options = TranscriptionOptions()
  shared = {field.name for field in dataclasses.fields(flags)} & vars(options).keys()
  assert len(shared) == 13
  for name in shared - {'beam_size', 'temperature'}:  # 0 = the default of the model; words
    assert getattr(flags, name) == getattr(options, name), name
  assert tuple(map(float, flags.temperature)) == options.temperature


@pytest.mark.parametrize(
  'options, message',
  [
    ({'task': 'translat'}, 'choose one of transcribe, translate'),
    ({'beam_size': -1}, '--beam_size=-1: expected 1 or more'),
    ({'batch_size': 0}, '--batch_size=0: expected 1 or more'),
    ({'temperature': ()}, 'expected one or more'),
    ({'temperature': (-0.1,)}, 'none below 0'),
    ({'condition_on_previous_text': True, 'batched': True}, 'leave out --batched'),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(UserError, match=message):
    TranscriptionOptions(**options)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return write_hugging_face(tmp_path_factory.mktemp('whisper') / 'hf')


def test_the_command_prints_segments_and_writes_files(tmp_path, model):
  paths = [
    write_sound(tmp_path / 'a.wav', tone(300, 1.5)),
    write_sound(tmp_path / 'b.flac', np.zeros(8000, np.float32), 8000, form='FLAC'),
  ]
  out = tmp_path / 'out'
  words = ['--output_format=json,srt', '--beam_size=1', '--without_timestamps', '--language=german']
  output = done('transcribe', *paths, '--model', model, '--output_dir', out, *words)
  assert output.startswith(f'{paths[0]}:\n[00:00.000 --> 00:01.000] ')
  assert f'{paths[1]}:\n' in output
  first, second = (json.loads((out / f'{name}.json').read_text()) for name in 'ab')
  assert first['language'] == 'de'
  assert first['duration'] == 1.5
  assert len(first['segments']) == 2
  assert second['text'] == ''
  assert (out / 'b.srt').read_text() == ''
  assert not (out / 'a.txt').exists()


@pytest.mark.parametrize(
  'argv, message',
  [
    (['a.wav', '--model', 'whisper-bas'], "Nearest: 'whisper-base'"),
    (['a.wav', '--language=germn'], "Nearest: 'german'"),
    (['a.wav', '--output_format=srx'], "Nearest: 'srt'"),
    (['a.wav', '--temperature=0,warm'], '--temperature=0,warm: expected numbers'),
    (['b.wav'], 'b.wav: no such file'),
    (['.'], 'a folder'),
    (['a.wav', 'c/a.wav'], 'would be written to the same files'),
    (['a.wav', 'text.wav'], 'text.wav: the sound cannot be decoded'),
    (['a.wav', '--config.seed=1'], 'is no run folder'),
    ([], 'takes FILES'),
  ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, model, argv, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'c').mkdir()
  for path in ('a.wav', 'c/a.wav'):
    write_sound(tmp_path / path, tone(300, 0.1))
  (tmp_path / 'text.wav').write_text('no sound')
  if '--model' not in argv:
    argv = [*argv, '--model', model]
  assert message in refused('transcribe', *argv)
  assert not list(tmp_path.glob('*.json'))


RUN = """
from mmlm.config import default_config

def get_config(arg=''):
  config = default_config()
  config.data.name = 'manifest'
  config.data.max_length = 60
  config.data.train_ops = config.data.eval_ops = ('log_mel(16)',)
  config.data.splits = {'train': 'PATH', 'valid': 'PATH', 'test': ('PATH',)}
  config.tokenizer.kind = 'char'
  config.model.dim = 16
  config.model.encoders = {'audio': {'name': 'features', 'width': 16}}
  config.train.duration = config.train.eval_every = '2 steps'
  config.train.batch_size = config.evaluate.batch_size = 8
  config.decoding.max_length = 5
  config.parallel.strategy = 'jit'
  return config
"""


def test_a_trained_run_writes_the_same_files(tmp_path):
  paths = []
  for i in range(8):
    paths.append(write_sound(tmp_path / f'{i}.wav', tone(200 + 100 * i, 0.2)))
  lines = [{'id': path, 'audio': path, 'target': 'ab'} for path in paths]
  manifest = write_jsonl(tmp_path / 'manifest.jsonl', lines)
  (tmp_path / 'run.py').write_text(RUN.replace('PATH', str(manifest)))
  run = tmp_path / 'run'
  out = tmp_path / 'out'
  done('train', tmp_path / 'run.py', '--workdir', run)
  words = ['--model', run, '--output_dir', out, '--beam_size=1']
  output = done('transcribe', *paths[:3], *words)
  greedy = '--config.decoding.method=greedy'
  predictions = done('predict', run, '--input', manifest, greedy).splitlines()
  for i, prediction in enumerate(predictions[:3]):
    text = prediction.split('\t')[1]
    transcript = json.loads((out / f'{i}.json').read_text())
    assert transcript['text'] == text
    assert transcript['duration'] == 0.2
    assert f'{paths[i]}:' in output
    cue = f'1\n00:00:00,000 --> 00:00:00,200\n{text}\n\n'
    assert (out / f'{i}.srt').read_text() == (cue if text else '')
  error = refused('transcribe', paths[0], '--model', run, '--language=en')
  assert '--language: only Whisper has this' in error
  long = write_sound(tmp_path / 'long.wav', tone(200, 1.0))
  error = refused('transcribe', long, '--model', run)
  assert "long.wav' has 100 " in error
  assert 'the model reads 60 at most (data.max_length). Cut it.' in error


# Real weights


@pytest.fixture(scope='module')
def tiny():
  try:
    find_whisper('whisper-tiny.en')
  except UserError as error:
    pytest.skip(str(error))
  return Whisper('whisper-tiny.en', TranscriptionOptions(beam_size=1))


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
def digits(shared_data, tmp_path_factory):
  """A file of spoken digits one after another, seven seconds."""
  parts = []
  with zipfile.ZipFile(shared_data / 'fsdd' / 'recordings.zip') as file:
    members = {name.rpartition('/')[2]: name for name in file.namelist()}
    for i, digit in enumerate(DIGITS):
      samples = decode_audio(file.read(members[f'{digit}_george_{i}.flac']))
      parts.append(np.pad(samples, (1600, 6400)))
  path = tmp_path_factory.mktemp('sound') / 'digits.wav'
  soundfile.write(path, np.concatenate(parts), RATE)
  return str(path)


def test_a_real_recording_is_transcribed_and_noise_is_not(tiny, digits, tmp_path, monkeypatch):
  silence = write_sound(tmp_path / 'silence.wav', np.zeros(2 * RATE, np.float32))
  noise = np.random.default_rng(0).normal(0, 0.01, 5 * RATE).astype(np.float32)
  hum = write_sound(tmp_path / 'hum.wav', noise)
  transcripts = list(Transcriber(tiny)([digits, silence, hum]))
  spoken = transcripts[0]
  words = re.findall(r'\w+', spoken.text.lower())
  assert len(words) >= 6
  assert set(words) <= {*DIGITS, *DIGITS.values()}
  assert 3 < spoken.segments[-1].end <= spoken.duration + 0.01
  assert transcripts[1].text == transcripts[2].text == ''
  monkeypatch.setattr(tiny, 'options', dataclasses.replace(tiny.options, batched=True))
  assert list(Transcriber(tiny)([digits, silence, hum])) == transcripts


def test_suppressed_tokens_are_those_of_the_package(tiny):
  folder = find_whisper('whisper-tiny.en').folder
  expected = json.loads((folder / 'config.json').read_text())
  tokenizer = WhisperTokenizer.from_folder(folder)
  assert set(tokenizer.non_speech_tokens) == set(expected['suppress_ids'])
  assert list(tokenizer.blank_tokens) == expected['suppress_ids_begin']
  assert tokenizer.english_only
  assert tokenizer.vocab_size == 51864


@pytest.mark.parity
def test_tokens_are_those_of_ctranslate2(tiny, digits, peer):
  ctranslate2 = peer('ctranslate2')
  samples = soundfile.read(digits, dtype='float32')[0]
  features = [tiny.features(samples[start:]) for start in (0, 16000, 40000)]
  folder = str(find_whisper('whisper-tiny.en').folder)
  model = ctranslate2.models.Whisper(folder, compute_type='float32')
  prompt = tiny.prompt('en')
  for frames, window in zip(features, tiny.encode(features)):
    view = ctranslate2.StorageView.from_array(np.ascontiguousarray(frames.T[None]))
    (expected,) = model.generate(view, [prompt], beam_size=1, return_no_speech_prob=True)
    (result,) = tiny.decode_at([window], [prompt], 1, 0.0)
    assert list(result.tokens) == expected.sequences_ids[0]
    assert window.no_speech_prob == pytest.approx(expected.no_speech_prob, abs=1e-3)
