"""Compares Whisper by mmlm with CTranslate2, faster-whisper and transformers.

The same weights and recordings, in turns within one run.

  python experiments/benchmarks/whisper.py [--only equality,speed] [--recordings 60] \
      [--models whisper-base,whisper-tiny.en] [--data_dir DIR]

  equality  greedy transcripts, with times and without, against the package ctranslate2 on the same
            features: token for token
  speed     seconds of sound a second, greedy with times, from samples to tokens, windows of 30
            seconds: one at a time, and 8 together

DIR holds fsdd/recordings.zip (spoken digits) and mboshi_french/speech_dev.zip; where espeak-ng is
installed it reads English sentences, and `speed` transcribes those, else digits one after another.
Each peer runs in a process of its own (peer_whisper.py), on all cores, and is idle while another is
measured. All compute in float32, from float16 weights, but for the int8 of faster-whisper.
PEER_PYTHON names the interpreter of the peers where it is another one.
"""

import atexit
import functools
import io
import json
import operator
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

import numpy as np
import soundfile
from common import Options, in_turns, main, row
from safetensors.numpy import save_file

from mmlm.data.transforms.audio import RATE, decode_audio
from mmlm.pretrained.whisper import Sizes, find_whisper, read_state
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import write_json

SETS = {'digit': 'fsdd/recordings.zip', 'mboshi': 'mboshi_french/speech_dev.zip'}
SENTENCES = (
  'The committee met on Tuesday to discuss the annual budget. Several members were absent, but '
  'the chairman decided to go on.',
  'Once upon a time there was a small village at the foot of a mountain. Every morning the '
  'baker opened his shop before sunrise.',
  'Please turn left at the second traffic light, then drive straight ahead for about two miles '
  'until you see the old church.',
  'Water boils at one hundred degrees at sea level. On a high mountain it boils sooner, and an '
  'egg takes longer to cook.',
  'She had never seen so many books in one place. They stood on every shelf, lay on every '
  'chair, and filled the window sills.',
  'The train to the north leaves at a quarter past nine from platform seven. Passengers should '
  'not leave their bags alone.',
  'In nineteen sixty nine two men walked on the moon. They brought back more than twenty '
  'kilograms of stones and dust.',
  'Our neighbour grows tomatoes, beans and three kinds of potatoes behind his house. In August '
  'he gives most of them away.',
  'The doctor asked him to breathe in slowly, to hold his breath for a moment, and then to '
  'breathe out again through his mouth.',
  'A language that nobody writes down can still be rich in stories. Its speakers learn them '
  'from their parents, and change them.',
)
BATCH = 8


# Input


def from_zip(path: pathlib.Path, number: int) -> list[np.ndarray]:
  """So many of the sounds of a zip, evenly spread."""
  if not path.is_file():
    raise SystemExit(f'{path}: no such file. --data_dir DIR holds {", ".join(SETS.values())}.')
  with zipfile.ZipFile(path) as file:
    names = sorted(name for name in file.namelist() if name.endswith(('.flac', '.ogg', '.opus')))
    result = []
    for i in np.linspace(0, len(names) - 1, number).astype(int):
      result.append(decode_audio(file.read(names[i])))
    return result


def read_aloud(number: int) -> list[np.ndarray]:
  """English sentences by espeak-ng, at several speeds; none where it is not installed."""
  if not shutil.which('espeak-ng'):
    print('espeak-ng is not installed: no read sentences')
    return []
  found = []
  for i in range(number):
    command = [
      'espeak-ng',
      '-v',
      'en',
      '-s',
      str(140 + 10 * (i // len(SENTENCES))),
      '--stdout',
      SENTENCES[i % len(SENTENCES)],
    ]
    samples, rate = soundfile.read(
      io.BytesIO(subprocess.run(command, capture_output=True, check=True).stdout), dtype='int16'
    )
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format='WAV')
    found.append(decode_audio(file.getvalue()))
  return found


def recordings(options: Options) -> dict[str, np.ndarray]:
  """{name: samples}: half are digits, a quarter Mboshi, a quarter read sentences."""
  if options.smoke:
    number = 4
  else:
    number = options.recordings
  read = read_aloud(number // 4)
  mboshi = from_zip(options.data_dir / SETS['mboshi'], number // 4)
  digits = from_zip(options.data_dir / SETS['digit'], number - len(mboshi) - len(read))
  result = {}
  for kind, some in (('digit', digits), ('mboshi', mboshi), ('sentence', read)):
    for i, samples in enumerate(some):
      result[f'{kind} {i}'] = samples
  return result


def long_windows(options: Options) -> list[np.ndarray]:
  """Windows of some 25 seconds: three sentences each, or digits with pauses."""
  number = 1 if options.smoke else BATCH
  sentences = read_aloud(3 * number)
  digits = []
  if not sentences:
    for digit in from_zip(options.data_dir / SETS['digit'], 30 * number):
      digits.append(np.pad(digit, (0, 4800)))
  windows = []
  for i in range(number):
    parts = sentences[3 * i : 3 * i + 3] or digits[i::number]
    windows.append(np.concatenate(parts)[: 30 * RATE])
  return windows


# Sides


def write_folders(name: str, folder: pathlib.Path) -> dict[str, str]:
  """The weights of a package as CTranslate2's folder and as Hugging Face's."""
  files = find_whisper(name)
  ctranslate2 = folder / 'ctranslate2'
  transformers = folder / 'transformers'
  for place in (ctranslate2, transformers):
    shutil.copytree(files.folder, place, ignore=shutil.ignore_patterns('model.bin*', '__pycache__'))
  with open(ctranslate2 / 'model.bin', 'wb') as whole:
    for part in files.weights:
      whole.write(part.read_bytes())
  sizes, state = read_state(files)
  arrays = {}
  for key, value in state.items():
    arrays[f'model.{key}'] = np.ascontiguousarray(value.astype(np.float32))
  save_file(arrays, transformers / 'model.safetensors')
  write_json(transformers / 'config.json', hugging_face_config(sizes))
  return {'ctranslate2': str(ctranslate2), 'transformers': str(transformers)}


def hugging_face_config(sizes: Sizes) -> dict:
  return {
    'model_type': 'whisper',
    'architectures': ['WhisperForConditionalGeneration'],
    'vocab_size': sizes.vocabulary,
    'num_mel_bins': sizes.mel_bands,
    'd_model': sizes.width,
    'encoder_layers': sizes.encoder_layers,
    'decoder_layers': sizes.decoder_layers,
    'activation_function': 'gelu',
    'encoder_attention_heads': sizes.encoder_heads,
    'decoder_attention_heads': sizes.decoder_heads,
    'encoder_ffn_dim': sizes.encoder_ffn,
    'decoder_ffn_dim': sizes.decoder_ffn,
    'max_source_positions': sizes.frames // 2,
    'max_target_positions': sizes.text_length,
  }


class Peer:
  """One side of peer_whisper.py in its own process; calls give the tokens of each window."""

  def __init__(self, side: str, folder: str, settings: dict):
    script = pathlib.Path(__file__).with_name('peer_whisper.py')
    command = [
      os.environ.get('PEER_PYTHON', sys.executable),
      str(script),
      side,
      folder,
      json.dumps(settings),
    ]
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(self.process.kill)
    self.versions = self._answer()

  def __call__(self, path: str, prompts: list) -> list[list[int]]:
    """`path`: an .npz of windows."""
    stdin = self.process.stdin
    assert stdin is not None
    stdin.write(json.dumps({'path': path, 'prompts': prompts}) + '\n')
    stdin.flush()
    return self._answer()

  def _answer(self):
    assert self.process.stdout is not None
    answer = self.process.stdout.readline()
    if not answer:
      raise SystemExit('a peer ended: its message stands above')
    return json.loads(answer)


def settings_of(model: Whisper) -> dict:
  """What the peers need to know beside their folder."""
  tokenizer = model.tokenizer
  return {
    'end': tokenizer.eot,
    'first_time': tokenizer.timestamp_begin,
    'never': [*tokenizer.non_speech_tokens, tokenizer.no_timestamps],
    'not_first': list(tokenizer.blank_tokens),
    'max_tokens': model.max_length,
    'english_only': tokenizer.english_only,
    'batch': BATCH,
  }


def ours(
  model: Whisper, windows: list[np.ndarray], prompt: list[int], together: int
) -> list[list[int]]:
  """Samples of windows -> tokens, by the search that `mmlm transcribe` starts with."""
  found = []
  for i in range(0, len(windows), together):
    encoded = model.encode(list(map(model.features, windows[i : i + together])))
    for result in model.decode_at(encoded, [prompt] * len(encoded), together, 0.0):
      found.append(list(result.tokens))
  return found


# Benchmarks


def equality(options: Options, name: str, folder: pathlib.Path) -> list[dict]:
  sounds = recordings(options)
  rows = []
  places = write_folders(name, folder)
  for times in (True, False):
    model = Whisper(
      name, TranscriptionOptions(beam_size=1, language='en', without_timestamps=not times)
    )
    prompt = model.prompt('en')
    path = str(folder / 'features.npz')
    np.savez(path, *map(model.features, sounds.values()))
    peer = Peer('features', places['ctranslate2'], settings_of(model))
    theirs = peer(path, [prompt] * len(sounds))
    mine = [ours(model, [samples], prompt, 1)[0] for samples in sounds.values()]
    different = {
      key: {'mmlm': a, 'ctranslate2': b} for key, a, b in zip(sounds, mine, theirs) if a != b
    }
    what = 'with times' if times else 'without times'
    print(
      f'equality  {name}, {what}: {len(sounds) - len(different)} of {len(sounds)} equal, '
      f'{sum(map(len, mine))} tokens',
      flush=True,
    )
    for key, both in different.items():
      print(
        f'  {key}: ' + ' | '.join(model.tokenizer.decode(tokens, times) for tokens in both.values())
      )
    rows.append(
      {
        'benchmark': 'equality',
        'size': f'{name}, {what}',
        'recordings': len(sounds),
        'equal': len(sounds) - len(different),
        'tokens': sum(map(len, mine)),
        'different': different,
        'peers': peer.versions,
      }
    )
  return rows


SIDES = {
  'ctranslate2': ('samples', 'ctranslate2'),
  'ctranslate2, 8 together': ('samples_together', 'ctranslate2'),
  'faster-whisper float32': ('faster_float32', 'ctranslate2'),
  'faster-whisper int8': ('faster_int8', 'ctranslate2'),
  'transformers': ('transformers', 'transformers'),
}


def speed(options: Options, name: str, folder: pathlib.Path) -> list[dict]:
  windows = long_windows(options)
  places = write_folders(name, folder)
  model = Whisper(name, TranscriptionOptions(beam_size=1, language='en'))
  prompt = model.prompt('en')
  path = str(folder / 'samples.npz')
  np.savez(path, *windows)
  seconds = sum(map(len, windows)) / RATE
  runs = {
    'mmlm': functools.partial(ours, model, windows, prompt, 1),
    'mmlm, 8 together': functools.partial(ours, model, windows, prompt, BATCH),
  }
  versions = {}
  for side, (kind, place) in SIDES.items():
    peer = Peer(kind, places[place], settings_of(model))
    versions |= peer.versions
    runs[side] = functools.partial(peer, path, [prompt] * len(windows))
  tokens = {}
  same = {}
  sides = {}
  for side, run in runs.items():
    tokens[side] = run()
    same[side] = sum(map(operator.eq, tokens['mmlm'], tokens[side]))
    sides[side] = (run, seconds)
  print(
    f'{len(windows)} windows, {seconds:.0f} s of sound; as mmlm writes them: {same}', flush=True
  )
  for side, of_side in tokens.items():
    for mine, theirs in zip(tokens['mmlm'], of_side):
      if mine != theirs:
        print(f'  mmlm: {model.tokenizer.decode(mine, True)}')
        print(f'  {side}: {model.tokenizer.decode(theirs, True)}', flush=True)
        break
  rates = in_turns(sides, options.rounds)
  return [
    row(
      'speed',
      name,
      'seconds of sound/s',
      rates,
      '5 on base; PyTorch; 1.5 times CTranslate2',
      windows=len(windows),
      equal=same,
      peers=versions,
    )
  ]


def for_models(benchmark: Callable[..., list[dict]]):
  """options -> rows of all models; each has a folder of its own."""

  def run(options: Options) -> list[dict]:
    rows = []
    for name in ['whisper-tiny.en'] if options.smoke else options.models.split(','):
      with tempfile.TemporaryDirectory() as folder:
        try:
          rows += benchmark(options, name, pathlib.Path(folder))
        except UserError as error:
          raise SystemExit(str(error)) from None
    return rows

  return run


FLAGS = {
  '--recordings': {'type': int, 'default': 60, 'help': 'of `equality` (default 60)'},
  '--models': {'default': 'whisper-base,whisper-tiny.en', 'help': 'with commas'},
}

if __name__ == '__main__':
  main(
    __doc__, {'equality': for_models(equality), 'speed': for_models(speed)}, 'whisper.json', FLAGS
  )
