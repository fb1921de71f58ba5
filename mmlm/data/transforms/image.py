"""Picture ops: `op(example, rng, options...) -> example`, named in configs (see ops.py).

H, W: height and width in pixels; C: channels, 1 (grey) or 3 (RGB). After `decode` a picture is a uint8 array
[H, W, C] between all ops, after `normalize` float32. An example without a picture (field missing or empty
bytes) passes without it.
"""

import functools
import io
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmlm.utils.errors import UserError

NORMALS = {'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 'half': (0.5, 0.5)}


def decode_picture(data: bytes, rng=None, mode: Literal['RGB', 'L'] = 'RGB') -> np.ndarray:
  """Encoded bytes (anything that Pillow reads) to uint8 [H, W, 3] ('RGB') or [H, W, 1] ('L'), turned as EXIF says; transparency
  shows white.

  Raises UserError with the reason when the picture is broken.
  """
  if not data:
    raise UserError('zero bytes')
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I'):  # 16-bit greyscale, which Pillow would clip at 255
      picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
    elif picture.has_transparency_data:
      picture = picture.convert('RGBA')
      picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return np.atleast_3d(picture.convert(mode))
  except Exception as error:  # Pillow's readers raise nearly every kind on broken bytes
    raise UserError(f"the picture can't be decoded ({type(error).__name__}: {error})") from error


@functools.cache
def blank_picture() -> bytes:
  """Encoded bytes of a white picture, larger than any crop."""
  file = io.BytesIO()
  Image.new('RGB', (1024, 1024), 'white').save(file, 'PNG')
  return file.getvalue()


def _pillow(array):
  if array.dtype != np.uint8:
    raise UserError(f'A picture op that needs uint8 got {array.dtype}: put normalize last.')
  return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _resized(array, h, w):
  return np.atleast_3d(_pillow(array).resize((w, h), Image.Resampling.BILINEAR))


def _crop(array, top, left, h, w):
  height, width = array.shape[:2]
  if height < h or width < w:
    raise UserError(
      f'A crop of {h} x {w} does not fit into a picture of {height} x {width}: resize first.'
    )
  return array[top : top + h, left : left + w]


def resize(image, rng, h: int, w: int | None = None):
  """To exactly h x w pixels (w = h by default), antialiased, aspect not kept."""
  return _resized(image, h, w or h)


def resize_small(image, rng, n: int):
  """The smaller side to n pixels, aspect kept, antialiased."""
  scale = n / min(image.shape[:2])
  return _resized(image, *(max(n, round(side * scale)) for side in image.shape[:2]))


def center_crop(image, rng, n: int):
  return _crop(image, *((side - n) // 2 for side in image.shape[:2]), n, n)


def random_crop(image, rng, n: int, pad: int = 0):
  """n x n pixels at a uniform place, after `pad` pixels of zeros at every edge."""
  image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  return _crop(
    image,
    *(rng.integers(max(side - n, 0) + 1) for side in image.shape[:2]),
    n,
    n,
  )


def random_resized_crop(image, rng, n: int, min_area: float | int = 0.08):
  """n x n pixels from a rectangle of uniform area in [min_area, 1] and log-uniform aspect in [3/4, 4/3]
  (Szegedy et al. 2015).
  """
  height, width = image.shape[:2]
  area = height * width * rng.uniform(min_area, 1)
  aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
  h = min(height, max(1, round((area / aspect) ** 0.5)))
  w = min(width, max(1, round((area * aspect) ** 0.5)))
  return _resized(
    _crop(
      image,
      rng.integers(height - h + 1),
      rng.integers(width - w + 1),
      h,
      w,
    ),
    n,
    n,
  )


def flip(image, rng, p: float | int = 0.5):
  """Mirrored left to right with probability p."""
  if rng.random() < p:
    return image[:, ::-1]
  return image


def _affine(picture, fill, *matrix):
  return picture.transform(
    picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
  )


def _enhance(kind):
  return 0.9, True, lambda p, level, fill: kind(p).enhance(1 + level)


# The 14 ops of the paper: (level at magnitude 10, has a sign, function of picture, level and fill).
_AUGMENTS = (
  (0, False, lambda p, level, fill: p),
  (0, False, lambda p, level, fill: ImageOps.autocontrast(p)),
  (0, False, lambda p, level, fill: ImageOps.equalize(p)),
  (30, True, lambda p, level, fill: p.rotate(level, Image.Resampling.BILINEAR, fillcolor=fill)),
  (256, False, lambda p, level, fill: ImageOps.solarize(p, max(0, 256 - round(level)))),
  (4, False, lambda p, level, fill: ImageOps.posterize(p, max(1, 8 - round(level)))),
  *map(
    _enhance,
    (ImageEnhance.Color, ImageEnhance.Contrast, ImageEnhance.Brightness, ImageEnhance.Sharpness),
  ),
  (0.3, True, lambda p, level, fill: _affine(p, fill, 1, level, 0, 0, 1, 0)),
  (0.3, True, lambda p, level, fill: _affine(p, fill, 1, 0, 0, level, 1, 0)),
  (0.45, True, lambda p, level, fill: _affine(p, fill, 1, 0, level * p.width, 0, 1, 0)),
  (0.45, True, lambda p, level, fill: _affine(p, fill, 1, 0, 0, 0, 1, level * p.height)),
)


def randaugment(image, rng, layers: int = 2, magnitude: float | int = 9, fill: int = 128):
  """RandAugment (Cubuk et al. 2020): `layers` of its 14 ops, drawn uniformly, at `magnitude` of 10; holes get grey
  `fill`.
  """
  picture = _pillow(image)
  if image.shape[2] == 1:
    colour = fill
  else:
    colour = (fill,) * 3
  for choice in rng.integers(len(_AUGMENTS), size=layers):
    top, signed, apply = _AUGMENTS[choice]
    sign = -1 if signed and rng.random() < 0.5 else 1
    picture = apply(picture, sign * top * magnitude / 10, colour)
  return np.atleast_3d(picture)


def normalize(
  image,
  rng,
  mean: Literal['imagenet', 'half'] | float | int | tuple = 'imagenet',
  std: float | int | tuple = 1.0,
):
  """uint8 to float32 (x / 255 - mean) / std; `mean` and `std` are numbers, one a channel, or `mean` names both ('half'
  gives [-1, 1]).
  """
  mean, std = (np.array(value, np.float32) for value in NORMALS.get(mean, (mean, std)))
  if mean.size > 1 and mean.size != image.shape[2]:
    raise UserError(f'normalize has {mean.size} means, the picture {image.shape[2]} channels.')
  return (image * np.float32(1 / 255) - mean) / std


def _image_op(change):
  """The op that replaces example['image'] by `change(image, rng, options...)`."""

  @functools.wraps(change)
  def op(example, rng, **options):
    image = example.get('image')
    if image is None or not len(image):
      return {key: value for key, value in example.items() if key != 'image'}
    return {**example, 'image': change(image, rng, **options)}

  return op


CHANGES = (
  resize,
  resize_small,
  center_crop,
  random_crop,
  random_resized_crop,
  flip,
  randaugment,
  normalize,
)
OPS = {'decode': _image_op(decode_picture)} | {
  change.__name__: _image_op(change) for change in CHANGES
}
