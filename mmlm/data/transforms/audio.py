"""Sounds: reading files, and the features that are computed of samples.

N: samples; S: frames, 100 a second; M: mel bands.
"""

import functools
import io
import re
from typing import Any, NamedTuple

import kaldi_native_fbank
import numpy as np
import scipy.fft
import scipy.sparse
import soundfile
import soxr

from mmlm.utils.errors import UserError

RATE = 16000
WINDOW = 400
HOP = 160
SUFFIXES = {'.wav', '.flac', '.ogg', '.opus', '.mp3'}
# Samples of a channel decoded at a time: an hour of many channels is never in memory at once.
READ = 1 << 20
# Frames computed at a time: they stay in the cache of the processor.
FRAMES = 256


class Sound(NamedTuple):
  """A decoded sound."""

  samples: np.ndarray  # [N] float32, -1 to 1
  rate: int  # samples a second


def decode_audio(data: bytes, rate: int = RATE) -> np.ndarray:
  """Decodes a WAV, FLAC, Ogg, Opus or MP3 file.

  Returns:
    [N] float32 of -1 to 1 at `rate`, the mean of the channels.

  Raises:
    UserError: not a sound, an empty one, samples that are not finite, or a file that was cut off.
  """
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      parts = _resampled_blocks(data, file, rate)
  except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
    reason = getattr(error, 'error_string', error)
    raise UserError(f"the sound can't be decoded ({reason})") from None
  samples = np.concatenate([np.zeros(0, np.float32), *parts])
  if not len(samples):
    raise UserError('the sound has no samples')
  return samples


def _resampled_blocks(
  data: bytes,
  file: soundfile.SoundFile,
  rate: int,
) -> list[np.ndarray]:
  """Returns the samples of a file at `rate`, the mean of its channels, in blocks."""
  resampler = None
  if file.samplerate != rate:
    resampler = soxr.ResampleStream(file.samplerate, rate, 1, dtype='float32')
  blocks = []
  missing = file.frames
  while len(block := file.read(READ, dtype='float32', always_2d=True)):
    if not np.isfinite(block).all():
      raise UserError('the sound has samples that are not finite')
    missing -= len(block)
    mono = block.mean(1) if block.shape[1] > 1 else block[:, 0]
    blocks.append(resampler.resample_chunk(mono) if resampler else mono)
  if resampler:
    blocks.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
  _check_end(data, file, missing)
  return blocks


def _check_end(
  data: bytes,
  file: soundfile.SoundFile,
  missing: int,
) -> None:
  """Raises a UserError for a file that ends before its sound, which its decoder does not report.

  Args:
    missing: samples that the file declares and lacks.
  """
  # The length of an MP3 is an estimate; that of a stream is unknown and huge.
  cut_off = file.frames // 50 < missing < 1 << 40
  if file.format == 'WAV':
    sizes = re.search(r'^data : (\d+) \(should be (\d+)\)', file.extra_info, re.MULTILINE)
    if sizes:
      declared, actual = map(int, sizes.groups())
      # A program that wrote into a pipe declares the largest number.
      cut_off = actual < declared < (1 << 31) - 1
  if file.format == 'OGG':
    cut_off = not _has_last_ogg_page(data)
  if cut_off:
    raise UserError('the file of the sound ends before its sound does: it was cut off')


def _has_last_ogg_page(data: bytes) -> bool:
  """Returns whether Ogg data ends with a complete page that is marked as the last."""
  start = data.rfind(b'OggS')
  header_end = start + 27
  if len(data) < header_end:
    return False
  segment_sizes = data[header_end : header_end + data[start + 26]]
  is_last = bool(data[start + 5] & 4)
  if not segment_sizes or start < 0 or not is_last:
    return False
  return header_end + len(segment_sizes) + sum(segment_sizes) <= len(data)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
  """Converts Slaney's mel scale: linear to 1 kHz, then logarithmic."""
  logarithmic = 1000 * np.exp((mel - 15) * np.log(6.4) / 27)
  return np.where(mel < 15, mel * 200 / 3, logarithmic)


@functools.cache
def mel_filters(
  bands: int,
  rate: int = RATE,
  size: int = WINDOW,
) -> np.ndarray:
  """Returns [M, size / 2 + 1] triangles of equal area on Slaney's mel scale, as Whisper's."""
  top = 15 + np.log(rate / 2 / 1000) * 27 / np.log(6.4)
  edges = _mel_to_hertz(np.linspace(0, top, bands + 2))
  slopes = np.subtract.outer(edges, np.fft.rfftfreq(size, 1 / rate))
  width = np.diff(edges)[:, None]
  rising = -slopes[:-2] / width[:-1]
  falling = slopes[2:] / width[1:]
  triangles = np.maximum(0, np.minimum(rising, falling))
  return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).astype(np.float32)


@functools.cache
def _sparse_filters(bands: int) -> scipy.sparse.csr_array:
  """Returns sparse filters.

  They need fewer products, and a dense product starts threads, for which loaders wait.
  """
  return scipy.sparse.csr_array(mel_filters(bands))


def log_mel_spectrogram(samples: np.ndarray, bands: int = 80) -> np.ndarray:
  """Computes Whisper's log-mel spectrogram (Radford et al. 2022, 2.2): 25 ms frames every 10 ms.

  Args:
    samples: [N] at 16 kHz.

  Returns:
    [S, M] float32, S = N // 160, 1 at least.
  """
  padding_mode = 'reflect' if len(samples) > WINDOW // 2 else 'constant'
  padded = np.pad(samples, WINDOW // 2, padding_mode)
  windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
  frames = windows[::HOP][: max(1, len(samples) // HOP)]  # [S, 400]
  hann = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
  log_mel = np.empty((len(frames), bands), np.float32)
  for start in range(0, len(frames), FRAMES):
    spectrum: Any = scipy.fft.rfft(frames[start : start + FRAMES] * hann, overwrite_x=True)
    power = spectrum.real**2 + spectrum.imag**2
    log_mel[start : start + FRAMES] = (_sparse_filters(bands) @ power.T).T
  np.log10(np.maximum(log_mel, 1e-10, out=log_mel), out=log_mel)
  np.maximum(log_mel, log_mel.max() - 8, out=log_mel)
  log_mel += 4
  log_mel /= 4
  return log_mel


def kaldi_fbank(
  samples: np.ndarray,
  rate: int = RATE,
  bands: int = 80,
) -> np.ndarray:
  """Computes Kaldi's log filterbank energies (Povey et al. 2011).

  Frames of 25 ms every 10 ms to the very end (snip_edges is off), pre-emphasis, no dither.

  Args:
    samples: [N] at `rate`.

  Returns:
    [S, M] float32, S = N / (rate / 100), rounded, 1 at least.

  Raises:
    UserError: `bands` are fewer than 3 or too many for the rate.
  """
  options = kaldi_native_fbank.FbankOptions()
  options.frame_opts.samp_freq = rate
  options.frame_opts.dither = 0
  options.frame_opts.snip_edges = False
  options.mel_opts.num_bins = bands
  try:
    computer = kaldi_native_fbank.OnlineFbank(options)
  except ValueError as error:
    raise UserError(f'{bands} bands of a sound of {rate} samples a second: {error}') from None
  padded = np.pad(
    samples,
    (0, max(0, rate // 100 - len(samples))),
  )
  amplitudes: Any = padded * 32768  # of 16 bits
  computer.accept_waveform(rate, amplitudes)
  computer.input_finished()
  return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
