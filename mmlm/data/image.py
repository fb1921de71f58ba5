"""Picture ops: factories of small callables `op(example, rng) -> example`, named in configs (see ops.py).

H, W: height and width in pixels; C: channels, 1 (grey) or 3 (RGB). After `decode` a picture is a uint8 array
[H, W, C] between all ops, after `normalize` float32. An example without a picture (field missing or empty
bytes) passes unchanged.
"""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmlm.errors import UserError

NORMALS = {'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 'half': (0.5, 0.5), 'unit': (0.0, 1.0)}


def decode_picture(data: bytes, mode='RGB', near=0) -> np.ndarray:
  """Encoded bytes (anything that Pillow reads) to uint8 [H, W, C], turned as EXIF says; transparency shows
  white.

  `near` > 0 lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, both sides still at least `near`.
  Raises ValueError with the reason when the picture is broken.
  """
  if not data:
    raise ValueError('zero bytes')
  try:
    with Image.open(io.BytesIO(data)) as picture:
      if near:
        picture.draft(None, (near, near))
      picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I'):  # 16-bit greyscale, which Pillow would clip at 255
      picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 256).astype(np.uint8))
    elif picture.has_transparency_data:
      picture = picture.convert('RGBA')
      picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return _array(picture.convert(mode))
  except Exception as error:  # Pillow's readers raise nearly every kind on broken bytes
    raise ValueError(f'{type(error).__name__}: {error}') from error


def _array(picture) -> np.ndarray:
  array = np.asarray(picture)
  return array[:, :, None] if array.ndim == 2 else array


def _pillow(array):
  if array.dtype != np.uint8:
    raise UserError(f'A picture op that needs uint8 got {array.dtype}: put normalize last.')
  return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _on_image(change):
  """The op that replaces example['image'] [H, W, C] by `change(image, rng)`."""
  def op(example, rng):
    if example.get('image') is None:
      return example
    return {**example, 'image': change(example['image'], rng)}
  return op


def decode(mode: str = 'RGB', near: int = 0):
  """Encoded bytes to uint8 [H, W, 3] ('RGB') or [H, W, 1] ('L'); see `decode_picture`. UserError names the
  example.
  """
  if mode not in ('RGB', 'L'):
    raise ValueError("mode must be 'RGB' or 'L'")

  def op(example, rng):
    if not example.get('image'):
      return {key: value for key, value in example.items() if key != 'image'}
    try:
      return {**example, 'image': decode_picture(example['image'], mode, near)}
    except ValueError as error:
      raise UserError(f"The picture of example '{example.get('id')}' can't be decoded ({error}).") from error
  return op


def _resized(array, h, w):
  if array.shape[:2] == (h, w):
    return array
  return _array(_pillow(array).resize((w, h), Image.Resampling.BILINEAR))


def resize(h: int, w: int | None = None):
  """To exactly h x w pixels (w = h by default), antialiased, aspect not kept."""
  return _on_image(lambda array, rng: _resized(array, h, w or h))


def resize_small(n: int):
  """The smaller side to n pixels, aspect kept, antialiased."""
  def change(array, rng):
    scale = n / min(array.shape[:2])
    return _resized(array, *(max(n, round(side * scale)) for side in array.shape[:2]))
  return _on_image(change)


def _crop(array, top, left, h, w):
  height, width = array.shape[:2]
  if height < h or width < w:
    raise UserError(f'A crop of {h} x {w} does not fit into a picture of {height} x {width}: resize first.')
  return array[top:top + h, left:left + w]


def center_crop(n: int):
  def change(array, rng):
    top, left = ((side - n) // 2 for side in array.shape[:2])
    return _crop(array, top, left, n, n)
  return _on_image(change)


def random_crop(n: int, pad: int = 0):
  """n x n pixels at a uniform place, after `pad` pixels of zeros at every edge."""
  def change(array, rng):
    array = np.pad(array, ((pad, pad), (pad, pad), (0, 0)))
    top, left = (int(rng.integers(max(side - n, 0) + 1)) for side in array.shape[:2])
    return _crop(array, top, left, n, n)
  return _on_image(change)


def random_resized_crop(n: int, min_area: float | int = 0.08):
  """n x n pixels from a rectangle of uniform area in [min_area, 1] and log-uniform aspect in [3/4, 4/3]
  (Szegedy et al. 2015).
  """
  if not 0 < min_area <= 1:
    raise ValueError('min_area must be in (0, 1]')

  def change(array, rng):
    height, width = array.shape[:2]
    area = height * width * rng.uniform(min_area, 1)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    h = min(height, max(1, round((area / aspect) ** 0.5)))
    w = min(width, max(1, round((area * aspect) ** 0.5)))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return _resized(_crop(array, top, left, h, w), n, n)
  return _on_image(change)


def flip(p: float | int = 0.5):
  """Mirrored left to right with probability p."""
  return _on_image(lambda array, rng: array[:, ::-1] if rng.random() < p else array)


def _affine(*matrix):
  def apply(picture, level, fill):
    levels = {'x': level, 'w': level * picture.width, 'h': level * picture.height}
    values = [levels.get(value, value) for value in matrix]
    return picture.transform(picture.size, Image.Transform.AFFINE, values, Image.Resampling.BILINEAR,
                             fillcolor=fill)
  return apply


def _enhance(kind):
  return lambda picture, level, fill: kind(picture).enhance(1 + level)


# The 14 ops of the paper: (level at magnitude 10, has a sign, function of picture, level and fill).
_AUGMENTS = (
    (0, False, lambda picture, level, fill: picture),
    (0, False, lambda picture, level, fill: ImageOps.autocontrast(picture)),
    (0, False, lambda picture, level, fill: ImageOps.equalize(picture)),
    (30, True, lambda picture, level, fill: picture.rotate(level, Image.Resampling.BILINEAR, fillcolor=fill)),
    (256, False, lambda picture, level, fill: ImageOps.solarize(picture, max(0, 256 - round(level)))),
    (4, False, lambda picture, level, fill: ImageOps.posterize(picture, max(1, 8 - round(level)))),
    (0.9, True, _enhance(ImageEnhance.Color)),
    (0.9, True, _enhance(ImageEnhance.Contrast)),
    (0.9, True, _enhance(ImageEnhance.Brightness)),
    (0.9, True, _enhance(ImageEnhance.Sharpness)),
    (0.3, True, _affine(1, 'x', 0, 0, 1, 0)),
    (0.3, True, _affine(1, 0, 0, 'x', 1, 0)),
    (0.45, True, _affine(1, 0, 'w', 0, 1, 0)),
    (0.45, True, _affine(1, 0, 0, 0, 1, 'h')))


def randaugment(layers: int = 2, magnitude: float | int = 9, fill: int = 128):
  """RandAugment (Cubuk et al. 2020): `layers` of its 14 ops, drawn uniformly, at `magnitude` of 10; holes
  get grey `fill`.
  """
  def change(array, rng):
    picture = _pillow(array)
    colour = fill if array.shape[2] == 1 else (fill,) * array.shape[2]
    for choice in rng.integers(len(_AUGMENTS), size=layers):
      top, signed, apply = _AUGMENTS[choice]
      sign = -1 if signed and rng.random() < 0.5 else 1
      picture = apply(picture, sign * top * magnitude / 10, colour)
    return _array(picture)
  return _on_image(change)


def normalize(mean: str | float | int | tuple = 'imagenet', std: float | int | tuple | None = None):
  """uint8 to float32 (x / 255 - mean) / std; a name ('imagenet', 'half' for [-1, 1], 'unit' for [0, 1]) or
  numbers, one a channel.
  """
  if isinstance(mean, str) != (std is None) or isinstance(mean, str) and mean not in NORMALS:
    raise ValueError(f'give one of {", ".join(NORMALS)}, or a mean and a std')
  mean, std = (np.array(v, np.float32) for v in (NORMALS[mean] if isinstance(mean, str) else (mean, std)))

  def change(array, rng):
    if mean.size > 1 and mean.size != array.shape[2]:
      raise UserError(f'normalize has {mean.size} means, the picture {array.shape[2]} channels.')
    return (array * np.float32(1 / 255) - mean) / std
  return _on_image(change)


OPS = {op.__name__: op for op in (decode, resize, resize_small, center_crop, random_crop, random_resized_crop,
                                  flip, randaugment, normalize)}
