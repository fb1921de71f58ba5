"""The models of the demo: each states what it reads, and answers one request after another.

A model is a run of ours, an export of one, or a Whisper.
"""

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
from mmlm.reports.attention_maps import attention_evaluator, grid_of, model_picture
from mmlm.reports.speech_view import data_uri, view_of_sound, words_of
from mmlm.tasks import TASKS
from mmlm.training.exported_weights import is_export
from mmlm.transcription.transcriber import Transcriber
from mmlm.transcription.transcription_options import TranscriptionOptions
from mmlm.transcription.whisper_model import Whisper
from mmlm.utils.errors import UserError

SHORTEST = 32  # tokens or frames: shorter inputs are padded to so many
SMALL_SIDE = 64  # pixels of a picture that the page enlarges without blurring
FRAMES_A_SECOND = 100

# {modality: text or Upload}
ModelInputs = dict[str, str | Upload]


def open_model(name: str, settings: dict[str, str], limits: Limits) -> 'DemoModel':
  """Opens the model of a run folder, an export, or a Whisper's folder or package.

  Raises:
    UserError: `name` is none of these.
  """
  folder = pathlib.Path(name)
  if (folder / 'checkpoints').is_dir() or is_export(folder):
    return RunModel(name, settings, limits)
  short_names = [package.removeprefix('whisper-') for package in PACKAGES]
  weights = [*folder.glob('model*.safetensors'), *folder.glob('model.bin*')]
  if folder.is_dir() and not weights:
    raise UserError(
      f'{name}: neither a run folder (no checkpoints) nor a Whisper '
      '(no model.safetensors, no model.bin).'
    )
  if not folder.is_dir() and name not in (*PACKAGES, *short_names):
    raise UserError(
      f'{name}: no such run folder, and no Whisper of this name ({", ".join(PACKAGES)}).'
    )
  if settings:
    raise UserError(f'--config.{next(iter(settings))}: {name} is a Whisper, and has no config.')
  return WhisperModel(name, limits)


class DemoModel:
  """A model of the demo.

  Args:
    task: name of its task, whose `verb` labels the button.
    kinds: {modality: kind of input}.
  """

  def __init__(self, name: str, task: str, kinds: dict[str, str], limits: Limits):
    self.name = name
    self.task = task
    self.verb = TASKS[task].verb
    self.kinds = kinds
    self.limits = limits

  def get_ready(self) -> None:
    """Reads the parameters and compiles for a short input."""
    raise NotImplementedError

  def __call__(self, request: ModelInputs) -> dict:
    """Returns the answer to a request as the page shows it."""
    raise NotImplementedError

  def described(self) -> dict:
    """Returns what the page shows of the model before any request."""
    inputs = []
    for modality, kind in self.kinds.items():
      called, accept = KINDS[kind]
      inputs.append(
        {'modality': modality, 'kind': kind, 'called': called, 'accept': ','.join(accept)}
      )
    return {
      'name': self.name,
      'task': self.task.replace('_', ' '),
      'verb': self.verb,
      'inputs': inputs,
    }

  def checked(self, request: ModelInputs) -> dict:
    """Returns {modality: text, bytes or array} of a request.

    Raises:
      UserError: an input is missing, is not of its kind, or too large.
    """
    names = {modality: KINDS[kind][0] for modality, kind in self.kinds.items()}
    missing = []
    for modality, kind in self.kinds.items():
      if kind != 'text' and modality not in request:
        missing.append(names[modality])
    if missing:
      raise UserError(
        f'{self.name} reads {" and ".join(names.values())}: {" and ".join(missing)} is missing.'
      )
    inputs = {}
    for modality, kind in self.kinds.items():
      if kind == 'text':
        text = request.get(modality, '')
        assert isinstance(text, str)
        inputs[modality] = check_text(text, self.limits)
      else:
        inputs[modality] = check_upload(_upload(request, modality), kind, self.limits)
    return inputs


class RunModel(DemoModel):
  """A run of ours, or an export; answers that are texts also have the attention of the decoder."""

  def __init__(self, folder: str, settings: dict[str, str], limits: Limits):
    experiment = Experiment.of_run(folder, settings)
    self.experiment = experiment
    if not experiment.task.verb or not experiment.modalities:
      shown = ', '.join(name for name, task in TASKS.items() if task.verb)
      raise UserError(
        f'{folder}: the demo cannot show a run of the task {experiment.config.task}; '
        f'it shows {shown}.'
      )
    super().__init__(folder, experiment.config.task, kinds_of(experiment), limits)
    longest = experiment.config.data.max_length
    lengths = [SHORTEST << n for n in range(20) if SHORTEST << n < longest]
    evaluator = attention_evaluator(experiment, align=True)
    self.predictor = Predictor(experiment, evaluator, (*lengths, longest))
    self.picture_size = size_of_pictures(experiment)

  def get_ready(self) -> None:
    if 'features' in self.kinds.values():  # their width before the transforms is not known
      return
    examples = {
      'text': 'a',
      'picture': Upload('blank', blank_picture()),
      'sound': Upload('silence', wav(np.zeros(RATE, np.float32))),
    }
    request = {modality: examples[kind] for modality, kind in self.kinds.items()}
    self.predictor([self._example(request)], self.name)

  def __call__(self, request: ModelInputs) -> dict:
    example = self._example(request)
    (prediction,) = self.predictor([example], self.name)
    return self._answer(prediction) | self._views(example, request, prediction)

  def _example(self, request: ModelInputs) -> dict:
    """Returns the raw example of a request."""
    example = {'id': 'input', **self.checked(request)}
    if 'sound' in self.kinds.values():
      sound = _upload(request, 'audio')
      seconds = seconds_of(sound, self.limits.seconds)
      most = self.experiment.config.data.max_length / FRAMES_A_SECOND
      if seconds > most:
        raise UserError(f'{sound.name} has {seconds:.2f} s: this run reads {most:g} s at most.')
    if self.picture_size:
      example['image'] = resized(example['image'], self.picture_size)
    return example

  def _answer(self, prediction: dict) -> dict:
    answer = {'text': prediction['hypothesis'], 'score': _finite(prediction['score'])}
    if 'probabilities' in prediction:
      answer['probabilities'] = prediction['probabilities']
      return answer
    value_range = self.experiment.task.value_range(self.experiment.config.model.head)
    if value_range:
      return answer | {'value': prediction['score'], 'range': list(value_range)}
    _, *others = prediction.get('n_best', [()])
    answer['others'] = [[text, _finite(score)] for text, score in others]
    if 'transcript' in prediction:
      answer['transcript'] = prediction['transcript']
    return answer

  def _views(self, example: dict, request: ModelInputs, prediction: dict) -> dict:
    """Returns pictures of the inputs, the times of words, and the attention to the inputs."""
    views = {}
    attention = prediction.get('attention', {})
    positions = {'text': {'labels': attention.get('read_words', [])}}
    if self.kinds.get('image') == 'picture':
      pixels = model_picture(example, self.experiment.config.data.eval_ops)
      assert pixels is not None
      views['picture'] = self._picture(pixels, _upload(request, 'image').data)
      if 'image' in attention:
        grid = grid_of(attention['image'].shape[1], *pixels.shape[:2])
        positions['image'] = {'grid': grid}
    if self.kinds.get('audio') == 'sound':
      views['sound'] = view_of_sound(example, {}).picture
      seconds = seconds_of(_upload(request, 'audio'), self.limits.seconds)
      positions['audio'] = {'seconds': seconds}
    views['times'] = []
    for text, first, last in words_of(prediction.get('alignment', [])):
      start = first / FRAMES_A_SECOND
      views['times'].append([text, start, (last + 1) / FRAMES_A_SECOND])
    views['attention'] = []
    for modality, of_modality in positions.items():
      if modality in attention:
        views['attention'].append(attention_view(modality, attention, of_modality))
    return views

  def _picture(self, pixels: np.ndarray, original: bytes) -> dict:
    """Returns a picture for the page, in the shape of the original unless the model crops it."""
    is_cropped = any('crop' in op for op in self.experiment.config.data.eval_ops)
    shape = pixels.shape if is_cropped else decode_picture(original).shape
    if pixels.shape[-1] == 1:
      image = Image.fromarray(np.squeeze(pixels, -1))
    else:
      image = Image.fromarray(pixels)
    with io.BytesIO() as file:
      image.save(file, 'PNG')
      source = data_uri('image/png', file.getvalue())
    return {
      'source': source,
      'width': shape[1],
      'height': shape[0],
      'small': max(pixels.shape[:2]) < SMALL_SIDE,
    }


class WhisperModel(DemoModel):
  """A Whisper, which transcribes sounds."""

  def __init__(self, name: str, limits: Limits):
    super().__init__(name, 'recognition', {'audio': 'sound'}, limits)
    self.transcriber = Transcriber(Whisper(name, TranscriptionOptions()))

  def get_ready(self) -> None:
    whisper = self.transcriber.whisper
    encoded = whisper.encode([whisper.features(np.zeros(RATE, np.float32))])
    whisper.decode_at(encoded, [whisper.prompt('en')], 1, 0.0)

  def __call__(self, request: ModelInputs) -> dict:
    """Returns the transcript of a sound, and the times of its segments."""
    sound = self.checked(request)['audio']
    with tempfile.NamedTemporaryFile() as file:
      file.write(sound)
      file.flush()
      try:
        (transcript,) = self.transcriber([file.name])
      except UserError as error:
        message = str(error).replace(file.name, _upload(request, 'audio').name)
        raise UserError(message) from None
    return {
      'text': transcript.text,
      'language': transcript.language,
      'times': [[segment.text, segment.start, segment.end] for segment in transcript.segments],
      'sound': view_of_sound({'audio': sound}, {}).picture,
    }


def _upload(request: ModelInputs, modality: str) -> Upload:
  """Returns the file of a request; the server has checked that it is one."""
  upload = request[modality]
  assert isinstance(upload, Upload)
  return upload


def attention_view(modality: str, attention: dict, positions: dict) -> dict:
  """Returns the attention to one modality for the page.

  Args:
    positions: what the positions of the modality are: labels, a grid or seconds.
  """
  weights = []
  for of_word in attention[modality]:
    weights.append([round(float(weight), 4) for weight in of_word])
  view = {
    'modality': modality,
    'words': attention['words'],
    'weights': weights,
    'labels': [],
    'grid': [],
    'seconds': 0,
  }
  return view | positions


def wav(samples: np.ndarray) -> bytes:
  """Returns samples [N] at 16 kHz as the bytes of a WAV file."""
  with io.BytesIO() as file:
    soundfile.write(file, samples, RATE, format='WAV')
    return file.getvalue()


def _finite(value: float) -> float | None:
  """Returns a value that JSON can hold."""
  return value if math.isfinite(value) else None
