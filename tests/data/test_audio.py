"""Sounds: files of every kind to log-mel frames, and what is wrong with them."""

import tracemalloc

import jax
import numpy as np
import pytest
import soxr
from helpers.sounds import encoded, noise, tone
from program import done, write_jsonl

from mmlm.data.transforms import audio
from mmlm.data.transforms.audio import (
  RATE,
  decode_audio,
  kaldi_fbank,
  log_mel_spectrogram,
  mel_filters,
)
from mmlm.data.transforms.audio_ops import AUDIO_TRANSFORMS
from mmlm.models.log_mel import log_mel
from mmlm.utils.errors import UserError


@pytest.mark.parametrize(
  'form, kind, off',
  [
    ('WAV', 'PCM_16', 1e-4),
    ('FLAC', None, 1e-4),
    ('OGG', 'VORBIS', 0.1),
    ('OGG', 'OPUS', 0.1),
    ('MP3', None, 0.1),
  ],
)
def test_every_form_is_read(form, kind, off):
  samples = decode_audio(encoded(tone(440), form=form, kind=kind))
  assert samples.dtype == np.float32 and abs(len(samples) - RATE) < 2000
  middle = slice(4000, 12000)
  peak = np.abs(np.fft.rfft(samples[middle])).argmax() * RATE / 8000
  assert abs(peak - 440) < 3 and abs(np.abs(samples[middle]).max() - 0.5) < off


def test_rates_and_channels_become_ours():
  mono = decode_audio(encoded(tone(300)))
  five = decode_audio(encoded(np.stack([tone(300, rate=48000)] * 5, 1), 48000))
  assert (
    abs(len(five) - len(mono)) <= 1
    and np.abs(five[500:-500] - mono[500 : len(five) - 500]).max() < 1e-2
  )
  assert np.allclose(decode_audio(encoded(np.stack([tone(300), -tone(300)], 1))), 0, atol=1e-4)


FORMS = [
  ('WAV', 'PCM_16'),
  ('WAV', 'FLOAT'),
  ('FLAC', None),
  ('OGG', 'VORBIS'),
  ('OGG', 'OPUS'),
  ('MP3', None),
]


@pytest.mark.parametrize('form, kind', FORMS)
@pytest.mark.parametrize('seconds', [0.2, 4])
def test_a_file_that_was_cut_off_is_named_and_a_whole_one_is_read(form, kind, seconds):
  data = encoded(noise(seconds), form=form, kind=kind)
  assert len(decode_audio(data)) == round(seconds * RATE)
  for share in (0.95, 0.5):
    with pytest.raises(UserError, match="cut off|can't be decoded"):
      decode_audio(data[: int(len(data) * share)])


@pytest.mark.parametrize('kind', ['VORBIS', 'OPUS'])
def test_a_stream_that_lacks_its_last_page_is_named(kind):
  data = encoded(noise(4), form='OGG', kind=kind)
  with pytest.raises(UserError, match='cut off'):
    decode_audio(data[: data.rfind(b'OggS')])


def test_a_wav_of_a_pipe_has_no_true_length_and_is_read():
  data = bytearray(encoded(tone(440)))
  data[40:44] = b'\xff' * 4  # the size of its data, behind 'data'
  assert data[36:40] == b'data' and len(decode_audio(bytes(data))) == RATE


def test_long_files_are_read_in_pieces_that_do_not_show(monkeypatch):
  stereo = np.stack([noise(1, 44100), tone(500, 1, 44100)], 1)
  expected = soxr.resample(stereo.mean(1), 44100, RATE)
  monkeypatch.setattr(audio, 'READ', 999)
  assert np.allclose(decode_audio(encoded(stereo, 44100, kind='FLOAT')), expected, atol=1e-6)
  at_192 = decode_audio(encoded(tone(440, 0.5, 192000), 192000))
  assert (
    abs(len(at_192) - 8000) <= 1
    and np.abs(at_192[200:-200] - tone(440, 0.5)[200 : len(at_192) - 200]).max() < 1e-2
  )


def test_an_hour_is_read_in_bounded_memory():
  data = encoded(np.zeros(3600 * 8000, np.float32), 8000, kind='PCM_U8')
  tracemalloc.start()
  frames = log_mel_spectrogram(decode_audio(data))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert frames.shape == (360_000, 80) and np.isfinite(frames).all()
  assert peak < 8e8  # all its frames of 400 samples together would be as much alone


@pytest.mark.parametrize(
  'data, says',
  [
    (b'no sound at all', "can't be decoded"),
    (encoded(np.zeros(0, np.float32)), 'no samples'),
    (encoded(np.full(9, np.nan, np.float32), kind='FLOAT'), 'not finite'),
  ],
)
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


def test_frames_that_are_computed_together_do_not_matter(monkeypatch):
  samples = noise(1.3)
  whole = log_mel_spectrogram(samples)
  monkeypatch.setattr(audio, 'FRAMES', 7)
  assert np.allclose(log_mel_spectrogram(samples), whole, atol=1e-6)


def test_frames_on_a_device_are_those_of_the_loader():
  sounds = [
    noise(1),
    noise(0.4),
    tone(440, 0.73),
    noise(0.0126),
    noise(0.0125),
    np.zeros(800, np.float32),
    np.ones(1, np.float32),
  ]
  sounds.append(
    np.concatenate([noise(0.5) * np.float32(1e-6), tone(440, 0.003)])
  )  # loudest where no frame has its middle
  lengths = np.array([*map(len, sounds)])
  for beyond in (0, 7):  # what stands behind the ends of sounds, and how far
    samples = np.full((len(sounds), RATE + 160 * beyond), beyond, np.float32)
    for row, sound in zip(samples, sounds):
      row[: len(sound)] = sound
    values, mask = map(np.asarray, jax.jit(log_mel)(samples, lengths, mel_filters(80)))
    for sound, frames, real in zip(sounds, values, mask):
      expected = log_mel_spectrogram(sound)
      assert real.sum() == len(expected) and real[: len(expected)].all()
      assert np.abs(frames[real] - expected).max() <= 1e-5 and not frames[~real].any()


def test_filterbanks_are_kaldis():
  frames = kaldi_fbank(noise(1))
  assert frames.shape == (100, 80) and frames.dtype == np.float32
  assert np.array_equal(frames, kaldi_fbank(noise(1)))  # no dither
  assert np.allclose(
    kaldi_fbank(2 * noise(1)), frames + 2 * np.log(2), atol=1e-3
  )  # logarithms of energies
  # A step of 16 bits is 1: of white noise each of 257 frequencies has its variance times the
  # squares of the window.
  window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
  emphasis = 1 + 0.97**2 - 2 * 0.97 * np.cos(2 * np.pi * np.arange(257) / 512)
  widest = np.log(
    np.square(3276.8) * np.square(window).sum() * emphasis[-12:].mean()
  )  # of the last band, 13 frequencies to its middle
  assert frames[:, -1].mean() == pytest.approx(widest + np.log(13), abs=1)

  def mel(hertz):
    return 1127 * np.log(1 + hertz / 700)

  for hertz in (500, 1500, 4000):
    place = (mel(hertz) - mel(20)) / (mel(8000) - mel(20)) * 81 - 1
    assert abs(np.bincount(kaldi_fbank(tone(hertz)).argmax(1)).argmax() - place) < 1
  assert kaldi_fbank(noise(1, 8000), 8000, 23).shape == (100, 23)
  for samples in (np.zeros(RATE, np.float32), np.ones(1, np.float32), noise(0.01)):
    frames = kaldi_fbank(samples)
    assert len(frames) == max(1, len(samples) // 160) and np.isfinite(frames).all()
  for bands in (2, 300):
    with pytest.raises(UserError, match=f'{bands} bands'):
      kaldi_fbank(noise(0.1), RATE, bands)


def test_features_pass_as_they_are():
  array = np.ones((3, 80), np.float32)
  assert AUDIO_TRANSFORMS['log_mel']({'audio': array}, None)['audio'] is array and AUDIO_TRANSFORMS[
    'log_mel'
  ]({'id': 'a'}, None) == {'id': 'a'}


@pytest.mark.parity
def test_frames_are_whispers(peer):
  extractor = peer('transformers').WhisperFeatureExtractor()
  samples = (tone(440) + tone(2000) * np.linspace(0, 1, RATE)).astype(np.float32)
  theirs = (
    extractor(samples, sampling_rate=RATE, padding='do_not_pad', return_tensors='np')
    .input_features[0]
    .T
  )
  assert np.abs(log_mel_spectrogram(samples) - theirs).max() < 1e-4


def test_a_manifest_of_sounds_is_learned_and_asked(tmp_path):
  rows = []
  for i in range(24):
    high = i % 2
    (tmp_path / f'{i}.wav').write_bytes(encoded(tone(2000 if high else 200, 0.2 + 0.02 * (i % 5))))
    rows.append(
      {'id': str(i), 'audio': f'{i}.wav', 'text': 'a tone', 'label': ('low', 'high')[high]}
    )
  mine = write_jsonl(tmp_path / 'mine.jsonl', rows)
  folder = tmp_path / 'run'
  done(
    'train',
    f'configs/sentiment/manifest.py:train={mine},valid={mine},audio=16,classes=low+high',
    '--workdir',
    folder,
    '--config.model.dim=16',
    '--config.train.duration=40 steps',
    '--config.train.batch_size=8',
    '--config.train.eval_every=20 steps',
    '--config.parallel.strategy=jit',
    '--config.optimizer.learning_rate=5e-3',
    '--config.optimizer.warmup=2 steps',
  )
  asked = write_jsonl(
    tmp_path / 'asked.jsonl',
    [
      {'id': 'q', 'audio': '0.wav', 'text': 'a tone'},
      {'id': 'p', 'audio': '1.wav', 'text': 'a tone'},
    ],
  )
  assert done('predict', folder, '--input', asked) == 'q\tlow\np\thigh\n'
