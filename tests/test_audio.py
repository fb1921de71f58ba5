"""Sounds: files of every kind to log-mel frames, and what is wrong with them."""

import io

import numpy as np
import pytest
import soundfile
from test_cli import done, write_jsonl

from mmlm.data.audio import RATE, decode_audio, log_mel_spectrogram, mel_filters
from mmlm.data.audio_ops import OPS
from mmlm.errors import UserError


def tone(hertz, seconds=1.0, rate=RATE):
  return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate).astype(np.float32) / 2


def encoded(samples, rate=RATE, form='WAV', kind=None) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, samples, rate, format=form, subtype=kind)
  return file.getvalue()


@pytest.mark.parametrize('form, kind, off', [('WAV', 'PCM_16', 1e-4), ('FLAC', None, 1e-4), ('OGG', 'VORBIS', 0.1), ('OGG', 'OPUS', 0.1), ('MP3', None, 0.1)])
def test_every_form_is_read(form, kind, off):
  samples = decode_audio(encoded(tone(440), form=form, kind=kind))
  assert samples.dtype == np.float32 and abs(len(samples) - RATE) < 2000
  middle = slice(4000, 12000)
  peak = np.abs(np.fft.rfft(samples[middle])).argmax() * RATE / 8000
  assert abs(peak - 440) < 3 and abs(np.abs(samples[middle]).max() - 0.5) < off


def test_rates_and_channels_become_ours():
  mono = decode_audio(encoded(tone(300)))
  five = decode_audio(encoded(np.stack([tone(300, rate=48000)] * 5, 1), 48000))
  assert abs(len(five) - len(mono)) <= 1 and np.abs(five[500:-500] - mono[500 : len(five) - 500]).max() < 1e-2
  assert np.allclose(decode_audio(encoded(np.stack([tone(300), -tone(300)], 1))), 0, atol=1e-4)


@pytest.mark.parametrize('data, says', [
  (b'no sound at all', "can't be decoded"), (encoded(np.zeros(0, np.float32)), 'no samples'),
  (encoded(np.full(9, np.nan, np.float32), kind='FLOAT'), 'not finite'),
])  # fmt: skip
def test_what_is_no_sound_is_named(data, says):
  with pytest.raises(UserError, match=says):
    decode_audio(data)


def test_filters_cover_the_frequencies():
  filters = mel_filters(80)
  assert filters.shape == (80, 201) and (filters >= 0).all() and (filters.sum(1) > 0).all()
  centres = filters.argmax(1)
  assert (np.diff(centres) >= 0).all() and centres[-1] > 190
  # Triangles of equal area, as far as the bins are fine enough to see it.
  assert np.allclose(filters[40:].sum(1) * RATE / 400, 1, atol=0.1)


@pytest.mark.parametrize('hertz', [200, 1000, 3000, 7000])
def test_a_tone_is_loudest_in_its_band(hertz):
  frames = log_mel_spectrogram(tone(hertz))
  assert frames.shape == (100, 80) and frames.dtype == np.float32
  assert set(frames[5:-5].argmax(1)) == {int(mel_filters(80)[:, round(hertz / 40)].argmax())}
  assert frames.max() - frames.min() <= 2 + 1e-5  # eight powers of ten, by four


def test_silence_and_the_shortest_sound_are_finite():
  for samples in (np.zeros(RATE, np.float32), np.ones(1, np.float32), tone(500, 0.01)):
    frames = log_mel_spectrogram(samples)
    assert len(frames) == max(1, len(samples) // 160) and np.isfinite(frames).all()


def test_features_pass_as_they_are():
  array = np.ones((3, 80), np.float32)
  assert OPS['log_mel']({'audio': array}, None)['audio'] is array and OPS['log_mel']({'id': 'a'}, None) == {'id': 'a'}


@pytest.mark.parity
def test_frames_are_whispers(peer):
  extractor = peer('transformers').WhisperFeatureExtractor()
  samples = (tone(440) + tone(2000) * np.linspace(0, 1, RATE)).astype(np.float32)
  theirs = extractor(samples, sampling_rate=RATE, padding='do_not_pad', return_tensors='np').input_features[0].T
  assert np.abs(log_mel_spectrogram(samples) - theirs).max() < 1e-4


def test_a_manifest_of_sounds_is_learned_and_asked(tmp_path):
  rows = []
  for i in range(24):
    high = i % 2
    (tmp_path / f'{i}.wav').write_bytes(encoded(tone(2000 if high else 200, 0.2 + 0.02 * (i % 5))))
    rows.append({'id': str(i), 'audio': f'{i}.wav', 'text': 'a tone', 'label': ('low', 'high')[high]})
  mine, folder = write_jsonl(tmp_path / 'mine.jsonl', rows), tmp_path / 'run'
  done('train', f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=16,classes=low+high', '--workdir', folder, '--config.model.dim=16',
       '--config.train.duration=40 steps', '--config.train.batch_size=8', '--config.train.eval_every=20 steps', '--config.parallel.strategy=jit',
       '--config.optimizer.learning_rate=5e-3', '--config.optimizer.warmup=2 steps')  # fmt: skip
  asked = write_jsonl(tmp_path / 'asked.jsonl', [{'id': 'q', 'audio': '0.wav', 'text': 'a tone'}, {'id': 'p', 'audio': '1.wav', 'text': 'a tone'}])
  assert done('predict', folder, '--input', asked) == 'q\tlow\np\thigh\n'
