"""What a person gives to the page: of which kind it must be, how large it may be, and how a run gets it."""

import io
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from mmlm.data.transforms.audio import READ, SUFFIXES
from mmlm.data.transforms.features import read_features
from mmlm.data.transforms.image import decode_picture
from mmlm.experiment.experiment import Experiment
from mmlm.utils.errors import UserError

MAKES_FEATURES = ('log_mel', 'fbank')  # ops that make features of a sound
SIZES = (
  'resize',
  'resize_small',
  'center_crop',
  'random_crop',
  'random_resized_crop',
)  # ops that give pictures their size
# Kind: what it is called, and the endings that the page offers.
KINDS = {
  'text': ('a text', ()),
  'picture': ('a picture', ('image/*',)),
  'sound': ('a sound', ('audio/*', *sorted(SUFFIXES))),
  'features': ('features (.npy)', ('.npy',)),
}


class Limits(NamedTuple):
  """Of one request."""

  bytes: int
  pixels: int = 40_000_000
  seconds: float = 180.0
  characters: int = 5000


class Upload(NamedTuple):
  name: str  # as the person calls it
  data: bytes


def kinds_of(experiment: Experiment) -> dict[str, str]:
  """{modality that the run reads: its kind}; UserError for a run that a page has no inputs for."""
  config = experiment.config
  kinds = {}
  if config.model.head.get('pool') == 'each' or config.model.context.name:
    raise UserError(
      f'{experiment.folder} judges the parts of an example, which a page cannot take: use `./launch.sh predict` with a manifest.'
    )
  computed = any(op.split('(')[0].strip() in MAKES_FEATURES for op in config.data.eval_ops)
  for modality in experiment.modalities:
    kinds[modality] = {'text': 'text', 'image': 'picture'}.get(modality, 'features')
    if modality in experiment.data.widths:
      kinds[modality] = 'sound' if modality == 'audio' and computed else 'features'
  return kinds


def check_text(text: str, limits: Limits) -> str:
  """The text on one line; UserError where there is none or too much of it."""
  text = ' '.join(text.split())
  if not text:
    raise UserError('the text is empty: type a sentence.')
  if len(text) > limits.characters:
    raise UserError(f'the text has {len(text):,} characters: {limits.characters:,} at most.')
  return text


def check_upload(upload: Upload, kind: str, limits: Limits):
  """The bytes of a picture or sound, or an array of features; UserError names what is no such thing or too large."""
  if not upload.data:
    raise UserError(f'{upload.name} has zero bytes.')
  return {'picture': _picture, 'sound': _sound, 'features': _features}[kind](upload, limits)


def _picture(upload: Upload, limits: Limits) -> bytes:
  too_many = f'{upload.name}: more than {limits.pixels / 1e6:.0f} million pixels. Make it smaller.'
  try:
    with Image.open(io.BytesIO(upload.data)) as picture:  # the head alone
      pixels = picture.width * picture.height
  except Image.DecompressionBombError:
    raise UserError(too_many) from None
  except Exception:  # Pillow's readers raise nearly every kind on broken bytes
    raise UserError(
      f'{upload.name} is no picture that can be read: give JPEG, PNG, WebP, GIF, BMP or TIFF.'
    ) from None
  if pixels > limits.pixels:
    raise UserError(too_many)
  try:
    decode_picture(upload.data)
  except UserError as error:
    raise UserError(f'{upload.name}: {error}') from None
  return upload.data


def _sound(upload: Upload, limits: Limits) -> bytes:
  seconds_of(upload, limits.seconds)
  return upload.data


def seconds_of(upload: Upload, most: float) -> float:
  """How long a sound is; UserError where it is none, or longer than `most`. What its head says of that is not believed."""
  try:
    with soundfile.SoundFile(io.BytesIO(upload.data)) as file:
      frames = 0
      block = 1
      while block and frames <= most * file.samplerate:
        block = len(file.read(max(1, READ // file.channels), dtype='float32'))
        frames += block
  except (soundfile.LibsndfileError, RuntimeError, ValueError):
    raise UserError(
      f'{upload.name} is no sound that can be read: give WAV, FLAC, Ogg, Opus or MP3.'
    ) from None
  if frames > most * file.samplerate:
    raise UserError(f'{upload.name} is longer than {most:g} s, the most that is taken: cut it.')
  return frames / file.samplerate


def _features(upload: Upload, limits: Limits) -> np.ndarray:
  file = _Named(upload.data)
  file.name = upload.name
  return read_features(file)


class _Named(io.BytesIO):
  """Bytes that messages call by a name."""

  name = ''

  def __str__(self):
    return self.name


def size_of_pictures(experiment: Experiment) -> tuple[int, int] | None:
  """Height and width of the data set's pictures, where no op gives them a size: what is given must be made as large. Else None."""
  if 'image' not in experiment.modalities or any(
    op.split('(')[0].strip() in SIZES for op in experiment.config.data.eval_ops
  ):
    return None
  (split,) = experiment.data.splits('valid')[:1]
  source = experiment.data.source(split)
  return decode_picture(source[0]['image']).shape[:2]


def resized(data: bytes, size: tuple[int, int]) -> bytes:
  """A picture as a PNG of [H, W] pixels."""
  with io.BytesIO() as file:
    Image.fromarray(decode_picture(data)).resize(size[::-1], Image.Resampling.BILINEAR).save(
      file, 'PNG'
    )
    return file.getvalue()
