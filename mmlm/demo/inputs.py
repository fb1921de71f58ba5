"""Inputs of the demo page: their kinds, their limits, and how a run reads them."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

from mmlm.data.transforms.audio import READ, SUFFIXES
from mmlm.data.transforms.features import read_features
from mmlm.data.transforms.image import decode_picture
from mmlm.experiment.experiment import Experiment
from mmlm.utils.errors import UserError

FEATURE_OPS = ('log_mel', 'fbank')  # that compute the features of a sound
# Ops that set the size of pictures.
SIZE_OPS = ('resize', 'resize_small', 'center_crop', 'random_crop', 'random_resized_crop')
# {kind: (its name on the page, endings that the page accepts)}
KINDS = {
  'text': ('a text', ()),
  'picture': ('a picture', ('image/*',)),
  'sound': ('a sound', ('audio/*', *sorted(SUFFIXES))),
  'features': ('features (.npy)', ('.npy',)),
}


class Limits(NamedTuple):
  """The limits of one request."""

  bytes: int
  pixels: int = 40_000_000
  seconds: float = 180.0
  characters: int = 5000


class Upload(NamedTuple):
  """A file of a request."""

  name: str
  data: bytes


def kinds_of(experiment: Experiment) -> dict[str, str]:
  """Returns {modality of a run: the kind of its input}.

  Raises:
    UserError: the page has no inputs for the run.
  """
  config = experiment.config
  if config.model.head.get('pool') == 'each' or config.model.context.name:
    raise UserError(
      f'{experiment.folder} labels the parts of an example, which the page cannot take: '
      'use `./launch.sh predict` with a manifest.'
    )
  kinds = {}
  for modality in experiment.modalities:
    if modality in experiment.data.widths:
      is_sound = modality == 'audio' and _has_op(config.data.eval_ops, FEATURE_OPS)
      kinds[modality] = 'sound' if is_sound else 'features'
    else:
      kinds[modality] = {'text': 'text', 'image': 'picture'}.get(modality, 'features')
  return kinds


def _has_op(ops: tuple[str, ...], names: tuple[str, ...]) -> bool:
  return any(op.split('(')[0].strip() in names for op in ops)


def check_text(text: str, limits: Limits) -> str:
  """Returns a text on one line.

  Raises:
    UserError: it is empty or too long.
  """
  text = ' '.join(text.split())
  if not text:
    raise UserError('the text is empty: type a sentence.')
  if len(text) > limits.characters:
    raise UserError(f'the text has {len(text):,} characters: {limits.characters:,} at most.')
  return text


def check_upload(upload: Upload, kind: str, limits: Limits) -> bytes | np.ndarray:
  """Returns the bytes of a picture or sound, or an array of features.

  Raises:
    UserError: the file is not of this kind, or too large.
  """
  if not upload.data:
    raise UserError(f'{upload.name} has zero bytes.')
  return CHECKS[kind](upload, limits)


def _check_picture(upload: Upload, limits: Limits) -> bytes:
  too_many = f'{upload.name}: more than {limits.pixels / 1e6:.0f} million pixels. Make it smaller.'
  try:
    with Image.open(io.BytesIO(upload.data)) as picture:  # reads the header only
      pixels = picture.width * picture.height
  except Image.DecompressionBombError:
    raise UserError(too_many) from None
  except Exception:  # Pillow's readers raise nearly every kind on broken bytes
    raise UserError(
      f'{upload.name} is not a picture that can be read: use JPEG, PNG, WebP, GIF, BMP or TIFF.'
    ) from None
  if pixels > limits.pixels:
    raise UserError(too_many)
  try:
    decode_picture(upload.data)
  except UserError as error:
    raise UserError(f'{upload.name}: {error}') from None
  return upload.data


def _check_sound(upload: Upload, limits: Limits) -> bytes:
  seconds_of(upload, limits.seconds)
  return upload.data


def _check_features(upload: Upload, limits: Limits) -> np.ndarray:
  return read_features(_NamedBytes(upload))


CHECKS: dict[str, Callable[[Upload, Limits], Any]] = {
  'picture': _check_picture,
  'sound': _check_sound,
  'features': _check_features,
}


class _NamedBytes(io.BytesIO):
  """Bytes that messages call by the name of their file."""

  def __init__(self, upload: Upload):
    super().__init__(upload.data)
    self.name = upload.name

  def __str__(self) -> str:
    return self.name


def seconds_of(upload: Upload, most: float) -> float:
  """Returns the length of a sound. It is decoded: its header may be wrong.

  Raises:
    UserError: it is not a sound, or longer than `most`.
  """
  try:
    with soundfile.SoundFile(io.BytesIO(upload.data)) as file:
      block_size = max(1, READ // file.channels)
      frames = 0
      block = 1
      while block and frames <= most * file.samplerate:
        block = len(file.read(block_size, dtype='float32'))
        frames += block
  except (soundfile.LibsndfileError, RuntimeError, ValueError):
    raise UserError(
      f'{upload.name} is not a sound that can be read: use WAV, FLAC, Ogg, Opus or MP3.'
    ) from None
  if frames > most * file.samplerate:
    raise UserError(f'{upload.name} is longer than {most:g} s. Cut it.')
  return frames / file.samplerate


def size_of_pictures(experiment: Experiment) -> tuple[int, int] | None:
  """Returns the height and width to which pictures must be resized; None if transforms do it.

  They are those of the pictures of the data set.
  """
  if 'image' not in experiment.modalities:
    return None
  if _has_op(experiment.config.data.eval_ops, SIZE_OPS):
    return None
  split, *_ = experiment.data.splits('valid')
  source = experiment.data.source(split)
  height, width = decode_picture(source[0]['image']).shape[:2]
  return height, width


def resized(picture: bytes, size: tuple[int, int]) -> bytes:
  """Returns a picture as a PNG of [H, W] pixels."""
  height, width = size
  image = Image.fromarray(decode_picture(picture))
  with io.BytesIO() as file:
    image.resize((width, height), Image.Resampling.BILINEAR).save(file, 'PNG')
    return file.getvalue()
