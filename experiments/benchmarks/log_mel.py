"""Measures how many seconds of sound become log-mel frames in a second of one core.

The loader's, the step's, Kaldi's filterbanks, and decoding itself.

  python experiments/benchmarks/log_mel.py            # log_mel.json
  python experiments/benchmarks/log_mel.py --smoke

The rate counts seconds of the processor, not of the clock, so that other work on the machine
matters little; one thread each.
"""

import argparse
import os
from collections.abc import Callable

for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS'):
  os.environ[name] = '1'
os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'

import io  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402
from common import main, summary  # noqa: E402

from mmlm.data.transforms.audio import (  # noqa: E402
  RATE,
  decode_audio,
  kaldi_fbank,
  log_mel_spectrogram,
  mel_filters,
)  # noqa: E402
from mmlm.models.log_mel import log_mel  # noqa: E402

FORMS = {'WAV': 'PCM_16', 'FLAC': 'PCM_16', 'OGG': 'OPUS', 'MP3': None}


def measured(name: str, function: Callable, seconds: float, options: argparse.Namespace) -> dict:
  """Returns a row: seconds of sound a second of the processor."""
  function()
  rates = []
  for _ in range(options.rounds):
    began = time.process_time()
    function()
    rates.append(seconds / (time.process_time() - began))
  measurement = summary(rates)
  print(
    f'{name:<32} {measurement["median"]:8.0f} '
    f'[{measurement["low"]:.0f}, {measurement["high"]:.0f}] times real time',
    flush=True,
  )
  return {'benchmark': name, 'unit': 'seconds of sound / second of one core', **measurement}


def features(options: argparse.Namespace) -> list[dict]:
  count, seconds = (2, 2) if options.smoke else (30, 10)
  noise = np.random.default_rng(0).normal(size=(count, seconds * RATE)) / 10
  sounds = noise.astype(np.float32)

  lengths = jnp.full(count, seconds * RATE)
  filters = jnp.asarray(mel_filters(80))

  @jax.jit
  def step(samples: jax.Array) -> jax.Array:
    return log_mel(samples, lengths, filters)[0]

  sides = {
    'log-mel, loader (numpy)': lambda: list(map(log_mel_spectrogram, sounds)),
    'log-mel, step (jax)': lambda: step(sounds).block_until_ready(),
    'Kaldi filterbanks': lambda: list(map(kaldi_fbank, sounds)),
  }
  rows = []
  for name, function in sides.items():
    rows.append(measured(name, function, count * seconds, options))
  return rows


def decoding(options: argparse.Namespace) -> list[dict]:
  count, seconds = (1, 2) if options.smoke else (10, 10)
  rows = []
  for form, kind in FORMS.items():
    for rate in (16000, 44100):
      if form == 'OGG' and rate == 44100:
        rate = 48000  # Opus has no other
      file = io.BytesIO()
      soundfile.write(
        file,
        np.random.default_rng(0).normal(size=seconds * rate) / 10,
        rate,
        format=form,
        subtype=kind,
      )
      data = file.getvalue()

      def decode(data: bytes = data):
        return [decode_audio(data) for _ in range(count)]

      rows.append(
        measured(f'decoding {form} of {rate} Hz to 16 kHz', decode, count * seconds, options)
      )
  return rows


if __name__ == '__main__':
  main(__doc__, {'features': features, 'decoding': decoding}, 'log_mel.json')
