"""Pictures and sounds of the examples on a page, as data URIs."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mmlm.data.transforms.image import decode_picture
from mmlm.reports.speech_view import data_uri, view_of_sound
from mmlm.utils.errors import UserError

LARGEST_SIDE = 256  # pixels of a picture in the page
SMALL_SIDE = 64  # pixels of a picture that is not blurred when it is enlarged
LARGEST_ORIGINAL = 20 << 10  # bytes of a picture that goes into the page as it is
LARGEST_MEDIA = 17 << 20  # bytes of the pictures and sounds in a page, as text
FULL = 0.98  # of LARGEST_MEDIA: nothing more is tried
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF')  # that browsers show
EXIF_ORIENTATION = 0x0112

# id of a prediction -> its raw example, None if there is none
FindExample = Callable[[str], dict | None]


def media_of(
  predictions: list[dict], find_example: FindExample, pictures: bool, sounds: bool
) -> dict[str, dict]:
  """Returns {id: {'picture', 'small', 'sound', 'note'}}, of these what there is.

  If the page would grow too large, the last predictions have none.
  """
  if not pictures and not sounds:
    return {}
  first_of_id: dict[str, dict] = {}
  for prediction in predictions:
    first_of_id.setdefault(prediction['id'], prediction)
  media: dict[str, dict] = {}
  size = 0
  for name, prediction in first_of_id.items():
    example = find_example(name)
    if example is None:
      continue
    entry: dict[str, Any] = {}
    if pictures:
      entry |= thumbnail(example.get('image'))
    if sounds:
      entry['sound'] = _sound(example, prediction)
    entry_size = _size(entry)
    if size + entry_size <= LARGEST_MEDIA:
      size += entry_size
      media[name] = entry
      continue
    media[name] = {'note': 'left out: the page would grow too large'}
    if size > FULL * LARGEST_MEDIA:
      break
  return media


def _size(entry: dict) -> int:
  sound = entry.get('sound', {})
  size = len(entry.get('picture', ''))
  size += len(sound.get('picture', ''))
  size += len(sound.get('source', ''))
  return size


def _sound(example: dict, prediction: dict) -> dict:
  view = view_of_sound(example, prediction)
  return view._asdict() | {
    'lanes': view.lanes,
    'words': [word._asdict() for word in view.words],
    'times': [time._asdict() for time in view.times],
  }


def thumbnail(content: Any) -> dict:
  """Returns {'picture': a data URI, 'small'} of encoded bytes, small enough for a page of many.

  {} without a picture that can be shown.
  """
  if not isinstance(content, bytes) or not content:
    return {}
  try:
    with Image.open(io.BytesIO(content)) as image:
      small = max(image.size) < SMALL_SIDE
      if _fits_as_it_is(image, content):
        mime_type = image.get_format_mimetype()
        assert mime_type is not None  # each of `FORMATS` has one
        uri = data_uri(mime_type, content)
        return {'picture': uri, 'small': small}
    pixels = decode_picture(content)
    return {'picture': jpeg_uri(pixels), 'small': small}
  except (UserError, OSError, Image.DecompressionBombError):
    return {}


def _fits_as_it_is(image: Any, content: bytes) -> bool:
  orientation = image.getexif().get(EXIF_ORIENTATION, 1)
  if max(image.size) > LARGEST_SIDE or len(content) > LARGEST_ORIGINAL:
    return False
  return orientation == 1 and image.format in FORMATS


def jpeg_uri(pixels: np.ndarray) -> str:
  """Returns pixels, uint8 [H, W, C], as a JPEG of at most `LARGEST_SIDE` pixels in a data URI."""
  is_grey = pixels.shape[-1] == 1
  image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
  image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
  with io.BytesIO() as file:
    image.save(file, 'JPEG', quality=72, optimize=True)
    return data_uri('image/jpeg', file.getvalue())
