"""Sounds: reading files, and the features that are computed of samples.

N: samples; S: frames, 100 a second; M: mel bands.
"""

import functools
import io
import re
from typing import NamedTuple

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
READ = (
  1 << 20
)  # samples a channel that are decoded at a time: an hour of many channels is never in memory at once
FRAMES = 256  # frames that are computed at a time: they stay in the cache of the processor


class Sound(NamedTuple):
  samples: np.ndarray  # [N] float32, -1 to 1
  rate: int  # samples a second


def decode_audio(data: bytes, rate: int = RATE) -> np.ndarray:
  """The bytes of a WAV, FLAC, Ogg, Opus or MP3 file -> [N] float32 of -1 to 1 at `rate`, the mean of its channels.

  Raises UserError with the reason when it is no sound, an empty one, one with samples that are not finite, or ends too early.
  """
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      if file.samplerate != rate:
        stream = soxr.ResampleStream(file.samplerate, rate, 1, dtype='float32')
      else:
        stream = None
      parts = []
      declared = file.frames
      while len(block := file.read(READ, dtype='float32', always_2d=True)):
        parts.append(block.mean(1) if block.shape[1] > 1 else block[:, 0])
        if not np.isfinite(block).all():
          raise UserError('the sound has samples that are not finite')
        declared -= len(block)
        parts[-1] = stream.resample_chunk(parts[-1]) if stream else parts[-1]
      if stream:
        parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
      _check_end(data, file, declared)
  except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
    raise UserError(
      f"the sound can't be decoded ({getattr(error, 'error_string', error)})"
    ) from None
  samples = np.concatenate([np.zeros(0, np.float32), *parts])
  if not len(samples):
    raise UserError('the sound has no samples')
  return samples


def _check_end(data: bytes, file: soundfile.SoundFile, missing: int):
  """UserError when a file has less sound than it says, `missing` samples or by the marks of its format: its decoder would not tell."""
  cut = (
    file.frames // 50 < missing < 1 << 40
  )  # the length of an MP3 is an estimate; that of a stream unknown and huge
  if file.format == 'WAV' and (
    found := re.search(r'^data : (\d+) \(should be (\d+)\)', file.extra_info, re.MULTILINE)
  ):
    cut = (
      int(found[2]) < int(found[1]) < (1 << 31) - 1
    )  # a program that wrote into a pipe leaves the largest number
  if file.format == 'OGG':
    at = data.rfind(
      b'OggS'
    )  # the last page: its sixth byte holds the flag of the end, then come the sizes of its segments
    if len(data) > at + 26:
      sizes = data[at + 27 : at + 27 + data[at + 26]]
    else:
      sizes = b''
    cut = not sizes or not data[at + 5] & 4 or at + 27 + len(sizes) + sum(sizes) > len(data)
  if cut:
    raise UserError('the file of the sound ends before its sound does: it was cut off')


@functools.cache
def mel_filters(bands: int, rate: int = RATE, size: int = WINDOW) -> np.ndarray:
  """[M, size / 2 + 1] triangles of equal area on Slaney's mel scale (linear to 1 kHz, then logarithmic), as Whisper's."""

  def to_hertz(mel):
    return np.where(
      mel < 15,
      mel * 200 / 3,
      1000 * np.exp((mel - 15) * np.log(6.4) / 27),
    )

  top = 15 + np.log(rate / 2 / 1000) * 27 / np.log(6.4)
  edges = to_hertz(np.linspace(0, top, bands + 2))
  slopes = np.subtract.outer(edges, np.fft.rfftfreq(size, 1 / rate))
  width = np.diff(edges)[:, None]
  triangles = np.maximum(
    0,
    np.minimum(
      -slopes[:-2] / width[:-1],
      slopes[2:] / width[1:],
    ),
  )
  return (triangles * 2 / (edges[2:] - edges[:-2])[:, None]).astype(np.float32)


@functools.cache
def _sparse_filters(bands: int):
  """Not for the fewer products alone: a dense one would start threads, and those of several loaders wait for each other."""
  return scipy.sparse.csr_array(mel_filters(bands))


def log_mel_spectrogram(samples: np.ndarray, bands: int = 80) -> np.ndarray:
  """[N] at 16 kHz -> [S, M] float32, S = N // 160, as Whisper computes it (Radford et al. 2022, 2.2): frames of 25 ms each 10 ms."""
  padded = np.pad(samples, WINDOW // 2, 'reflect' if len(samples) > WINDOW // 2 else 'constant')
  frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][
    : max(1, len(samples) // HOP)
  ]  # [S, 400]
  window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
  found = np.empty((len(frames), bands), np.float32)
  for start in range(0, len(frames), FRAMES):
    spectrum = scipy.fft.rfft(frames[start : start + FRAMES] * window, overwrite_x=True)
    found[start : start + FRAMES] = (
      _sparse_filters(bands) @ (spectrum.real**2 + spectrum.imag**2).T
    ).T
  np.log10(np.maximum(found, 1e-10, out=found), out=found)
  np.maximum(found, found.max() - 8, out=found)
  found += 4
  found /= 4
  return found


def kaldi_fbank(samples: np.ndarray, rate: int = RATE, bands: int = 80) -> np.ndarray:
  """[N] -> [S, M] float32, Kaldi's log filterbank energies (Povey et al. 2011): frames of 25 ms each 10 ms, pre-emphasis, no dither.

  S = N / (rate / 100), rounded, 1 at least: the frames go to the very end (Kaldi's snip_edges is off). Raises UserError when `bands`
  are fewer than 3 or too many for the rate.
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
  computer.accept_waveform(
    rate, np.pad(samples, (0, max(0, rate // 100 - len(samples)))) * 32768
  )  # it counts in 16 bits
  computer.input_finished()
  return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
