"""What answers on the page: a run, or a Whisper. Each has a name, says what it reads, gets ready once, and answers one request after another."""

import base64
import io
import math
import pathlib
import tempfile

import numpy as np
import soundfile
from PIL import Image

from mmlm.data.transforms.audio import RATE
from mmlm.data.transforms.image import blank_picture, decode_picture
from mmlm.demo.inputs import (
  KINDS,
  Limits,
  Upload,
  check_text,
  check_upload,
  kinds_of,
  resized,
  seconds_of,
  size_of_pictures,
)
from mmlm.experiment.experiment import Experiment
from mmlm.inference.predictor import Predictor
from mmlm.pretrained.whisper import PACKAGES
from mmlm.reports.attention_maps import grid_of, looking_evaluator, picture_seen
from mmlm.reports.speech_view import sound_of, words_of
from mmlm.tasks import TASKS
from mmlm.training.exported_weights import is_export
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.errors import UserError

SHORTEST = 32  # tokens or rows: shorter inputs are padded to so many


def open_model(name: str, settings: dict, limits: Limits):
  """The model of a run folder, an export, a Whisper's folder or package; UserError where it is none of these."""
  folder = pathlib.Path(name)
  if (folder / 'checkpoints').is_dir() or is_export(folder):
    return RunModel(name, settings, limits)
  packages = {*PACKAGES, *(package.removeprefix('whisper-') for package in PACKAGES)}
  if folder.is_dir() and not [*folder.glob('model*.safetensors'), *folder.glob('model.bin*')]:
    raise UserError(
      f'{name}: neither a run folder (no checkpoints) nor a Whisper (no model.safetensors, no model.bin).'
    )
  if not folder.is_dir() and name not in packages:
    raise UserError(
      f'{name}: no such run folder, and no Whisper of this name ({", ".join(PACKAGES)}).'
    )
  if settings:
    raise UserError(f'--config.{next(iter(settings))}: {name} is a Whisper, and has no config.')
  return WhisperModel(name, limits)


class _Model:
  """`kinds`: {modality: kind of input}; `verb`: what its button says."""

  def __init__(self, name: str, task: str, kinds: dict, limits: Limits):
    self.name = name
    self.task = task
    self.verb = TASKS[task].verb
    self.kinds = kinds
    self.limits = limits

  def described(self) -> dict:
    """What the page shows of it before it is asked."""
    inputs = []
    for m, kind in self.kinds.items():
      inputs.append(
        {'modality': m, 'kind': kind, 'called': KINDS[kind][0], 'accept': ','.join(KINDS[kind][1])}
      )
    return {
      'name': self.name,
      'task': self.task.replace('_', ' '),
      'verb': self.verb,
      'inputs': inputs,
    }

  def checked(self, given: dict) -> dict:
    """{modality: text, bytes or array} of what a person gave; UserError where something is missing, no such thing, or too large."""
    if missing := [
      KINDS[kind][0]
      for modality, kind in self.kinds.items()
      if kind != 'text' and modality not in given
    ]:
      raise UserError(
        f'{self.name} reads {" and ".join(KINDS[kind][0] for kind in self.kinds.values())}: {" and ".join(missing)} is missing.'
      )
    result = {}
    for modality, kind in self.kinds.items():
      result[modality] = (
        check_text(given.get(modality, ''), self.limits)
        if kind == 'text'
        else check_upload(given[modality], kind, self.limits)
      )
    return result


class RunModel(_Model):
  """A run of ours, or an export; every answer of a text shows what the decoder attended to, where it can be known."""

  def __init__(self, folder: str, settings: dict, limits: Limits):
    self.experiment = experiment = Experiment.of_run(folder, settings)
    if not experiment.task.verb or not experiment.modalities:
      shown = ', '.join(name for name, task in TASKS.items() if task.verb)
      raise UserError(
        f'{folder}: the demo cannot show a run of the task {experiment.config.task}; '
        f'it shows {shown}.'
      )
    super().__init__(folder, experiment.config.task, kinds_of(experiment), limits)
    longest = experiment.config.data.max_length
    lengths = [SHORTEST << n for n in range(20) if SHORTEST << n < longest]
    self.predictor = Predictor(
      experiment, looking_evaluator(experiment, align=True), (*lengths, longest)
    )
    self.size = size_of_pictures(experiment)

  def get_ready(self) -> None:
    """Reads the parameters and compiles for a short input."""
    if 'features' in self.kinds.values():  # how many values these have before the ops is not known
      return
    silence = Upload('silence', wav(np.zeros(RATE, np.float32)))
    example = self._example(
      {
        m: {'text': 'a', 'picture': Upload('blank', blank_picture()), 'sound': silence}[kind]
        for m, kind in self.kinds.items()
      }
    )
    self.predictor([example], self.name)

  def __call__(self, given: dict) -> dict:
    """The answer to {modality: text or Upload}, as the page shows it."""
    example = self._example(given)
    (row,) = self.predictor([example], self.name)
    return self._answer(row) | self._shown(example, given, row)

  def _example(self, given: dict) -> dict:
    """What the run reads of a request."""
    example = {'id': 'input', **self.checked(given)}
    if 'sound' in self.kinds.values():
      seconds = seconds_of(given['audio'], self.limits.seconds)
      most = self.experiment.config.data.max_length / 100
      if seconds > most:
        raise UserError(
          f'{given["audio"].name} has {seconds:.2f} s: this run reads {most:g} s at most.'
        )
    return example | ({'image': resized(example['image'], self.size)} if self.size else {})

  def _answer(self, row: dict) -> dict:
    found = {'text': row['hypothesis'], 'score': _finite(row['score'])}
    if 'probabilities' in row:
      return found | {'probabilities': row['probabilities']}
    value_range = self.experiment.task.value_range(self.experiment.config.model.head)
    if value_range:
      return found | {'value': row['score'], 'range': list(value_range)}
    others = [[text, _finite(score)] for text, score in row.get('n_best', [])[1:]]
    return (
      found
      | {'others': others}
      | ({'transcript': row['transcript']} if 'transcript' in row else {})
    )

  def _shown(self, example: dict, given: dict, row: dict) -> dict:
    """Pictures of the inputs, and what the answer was written from."""
    found = {}
    look = row.get('look', {})
    places = {'text': {'labels': look.get('read', [])}}
    if self.kinds.get('image') == 'picture':
      seen = picture_seen(example, self.experiment.config.data.eval_ops)
      found['picture'] = self._picture(seen, given['image'].data)
      places['image'] = (
        {
          'grid': grid_of(
            look['image'].shape[1],
            *seen.shape[:2],
          )
        }
        if 'image' in look
        else {}
      )
    if self.kinds.get('audio') == 'sound':
      found['sound'] = sound_of(example, {}).picture
      places['audio'] = {'seconds': seconds_of(given['audio'], self.limits.seconds)}
    words = []
    for text, first, last in words_of(row.get('alignment', [])):
      words.append([text, first / 100, (last + 1) / 100])
    looks = [told(modality, look, where) for modality, where in places.items() if modality in look]
    return found | {'heard': words, 'attention': looks}

  def _picture(self, seen: np.ndarray, original: bytes) -> dict:
    """What the page shows of a picture, in the shape of the original where nothing is cut off."""
    cut = any('crop' in op for op in self.experiment.config.data.eval_ops)
    height, width = (seen if cut else decode_picture(original)).shape[:2]
    with io.BytesIO() as file:
      Image.fromarray(
        np.squeeze(
          seen,
          -1,
        )
        if seen.shape[-1] == 1
        else seen
      ).save(
        file,
        'PNG',
      )
      source = f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'
    return {'source': source, 'width': width, 'height': height, 'small': max(seen.shape[:2]) < 64}


class WhisperModel(_Model):
  def __init__(self, name: str, limits: Limits):
    super().__init__(name, 'recognition', {'audio': 'sound'}, limits)
    self.transcriber = Transcriber(Whisper(name, TranscriptionOptions()))

  def get_ready(self) -> None:
    whisper = self.transcriber.whisper
    encoded = whisper.encode([whisper.features(np.zeros(RATE, np.float32))])
    whisper.decode_at(encoded, [whisper.prompt('en')], 1, 0.0)

  def __call__(self, given: dict) -> dict:
    """The transcript of a sound and when each of its segments is said."""
    checked = self.checked(given)
    with tempfile.NamedTemporaryFile() as file:
      file.write(checked['audio'])
      file.flush()
      try:
        (transcript,) = self.transcriber([file.name])
      except UserError as error:
        raise UserError(str(error).replace(file.name, given['audio'].name)) from None
    heard = [[segment.text, segment.start, segment.end] for segment in transcript.segments]
    return {
      'text': transcript.text,
      'language': transcript.language,
      'heard': heard,
      'sound': sound_of({'audio': checked['audio']}, {}).picture,
    }


def told(modality: str, look: dict, where: dict) -> dict:
  """What a decoder attended to in one modality, as JSON has it; `where` says what its places are: labels, a grid or seconds."""
  weights = [[round(float(x), 4) for x in row] for row in look[modality]]
  return {
    'modality': modality,
    'words': look['words'],
    'weights': weights,
    'labels': [],
    'grid': [],
    'seconds': 0,
  } | where


def wav(samples: np.ndarray) -> bytes:
  """[N] at 16 kHz as a file."""
  with io.BytesIO() as file:
    soundfile.write(file, samples, RATE, format='WAV')
    return file.getvalue()


def _finite(value: float) -> float | None:
  return value if math.isfinite(value) else None  # JSON has no other
