"""Transforms of pictures, named in configs (see ops.py).

A new one is a function (image, rng, options...) -> image and one line in `IMAGE_TRANSFORMS`.

H, W: height and width in pixels; C: channels, 1 (grey) or 3 (RGB). After `decode` a picture is a
uint8 array [H, W, C], after `normalize` float32. An example without a picture (no field, or empty
bytes) passes unchanged.
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmlm.data.transforms.transform import Example, Transform
from mmlm.utils.errors import UserError

Rng = np.random.Generator
# means and standard deviations of channels
NORMALS: dict[Any, tuple] = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'half': (0.5, 0.5),
}


def decode_picture(
  data: bytes, rng: Rng | None = None, mode: Literal['RGB', 'L'] = 'RGB'
) -> np.ndarray:
  """Decodes a picture in any format that Pillow reads; EXIF rotation applied, transparency white.

  Returns:
    uint8 [H, W, 3] for mode 'RGB', [H, W, 1] for 'L'.

  Raises:
    UserError: why the picture cannot be decoded.
  """
  if not data:
    raise UserError('zero bytes')
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith('I'):  # 16-bit greyscale, which Pillow would clip at 255
      picture = Image.fromarray(
        (
          np.asarray(picture).clip(
            0,
            65535,
          )
          // 256
        ).astype(np.uint8)
      )
    elif picture.has_transparency_data:
      picture = picture.convert('RGBA')
      picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
    return np.atleast_3d(np.asarray(picture.convert(mode)))
  except Exception as error:  # Pillow's readers raise nearly every kind on broken bytes
    reason = f'{type(error).__name__}: {error}'
    raise UserError(f"the picture can't be decoded ({reason})") from error


@functools.cache
def blank_picture() -> bytes:
  """Returns the encoded bytes of a white picture, larger than any crop."""
  file = io.BytesIO()
  Image.new('RGB', (1024, 1024), 'white').save(file, 'PNG')
  return file.getvalue()


def _to_pillow(array: np.ndarray) -> Image.Image:
  if array.dtype != np.uint8:
    raise UserError(
      f'A transform of pictures that needs uint8 got {array.dtype}: put normalize last.'
    )
  return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _resized(
  array: np.ndarray,
  height: int,
  width: int,
) -> np.ndarray:
  picture = _to_pillow(array).resize((width, height), Image.Resampling.BILINEAR)
  return np.atleast_3d(np.asarray(picture))


def _crop(
  array: np.ndarray,
  top: int,
  left: int,
  h: int,
  w: int,
) -> np.ndarray:
  height, width = array.shape[:2]
  if height < h or width < w:
    raise UserError(
      f'A crop of {h} x {w} does not fit into a picture of {height} x {width}: resize first.'
    )
  return array[top : top + h, left : left + w]


def resize(
  image: np.ndarray,
  rng: Rng,
  h: int,
  w: int | None = None,
) -> np.ndarray:
  """Resizes to exactly h x w pixels (w = h by default), antialiased; the aspect may change."""
  return _resized(image, h, w or h)


def resize_small(
  image: np.ndarray,
  rng: Rng,
  n: int,
) -> np.ndarray:
  """Resizes the smaller side to n pixels, antialiased; the aspect is preserved."""
  height, width = image.shape[:2]
  scale = n / min(height, width)
  return _resized(
    image,
    max(n, round(height * scale)),
    max(n, round(width * scale)),
  )


def center_crop(
  image: np.ndarray,
  rng: Rng,
  n: int,
) -> np.ndarray:
  """Crops n x n pixels from the centre."""
  height, width = image.shape[:2]
  return _crop(image, (height - n) // 2, (width - n) // 2, n, n)


def random_crop(
  image: np.ndarray,
  rng: Rng,
  n: int,
  pad: int = 0,
) -> np.ndarray:
  """Crops n x n pixels at a uniform position, after padding every edge with `pad` zeros."""
  padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
  height, width = padded.shape[:2]
  top = rng.integers(max(height - n, 0) + 1)
  left = rng.integers(max(width - n, 0) + 1)
  return _crop(padded, top, left, n, n)


def random_resized_crop(
  image: np.ndarray, rng: Rng, n: int, min_area: float | int = 0.08
) -> np.ndarray:
  """Resizes a random rectangle to n x n pixels (Szegedy et al. 2015).

  Its area is uniform in [min_area, 1] of the picture, its aspect log-uniform in [3/4, 4/3].
  """
  height, width = image.shape[:2]
  area = height * width * rng.uniform(min_area, 1)
  aspect = np.exp(
    rng.uniform(
      np.log(3 / 4),
      np.log(4 / 3),
    )
  )
  h = min(height, max(1, round((area / aspect) ** 0.5)))
  w = min(width, max(1, round((area * aspect) ** 0.5)))
  top = rng.integers(height - h + 1)
  left = rng.integers(width - w + 1)
  return _resized(_crop(image, top, left, h, w), n, n)


def flip(
  image: np.ndarray,
  rng: Rng,
  p: float | int = 0.5,
) -> np.ndarray:
  """Mirrors left to right with probability p."""
  if rng.random() < p:
    return image[:, ::-1]
  return image


# The transforms of RandAugment: (picture, level, fill colour) -> picture
Fill = int | tuple[int, int, int]
Change = Callable[[Image.Image, float, Fill], Image.Image]


class Augmentation(NamedTuple):
  """One transform of RandAugment."""

  level: float  # at magnitude 10
  signed: bool  # whether the level may be negative
  change: Change


def _identity(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return picture


def _autocontrast(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return ImageOps.autocontrast(picture)


def _equalize(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return ImageOps.equalize(picture)


def _rotate(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return picture.rotate(level, Image.Resampling.BILINEAR, fillcolor=fill)


def _solarize(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return ImageOps.solarize(picture, max(0, 256 - round(level)))


def _posterize(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return ImageOps.posterize(picture, max(1, 8 - round(level)))


def _enhance(enhancer: Any) -> Change:
  def change(
    picture: Image.Image,
    level: float,
    fill: Fill,
  ) -> Image.Image:
    return enhancer(picture).enhance(1 + level)

  return change


def _affine(
  picture: Image.Image,
  fill: Fill,
  matrix: tuple[float, ...],
) -> Image.Image:
  return picture.transform(
    picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
  )


def _shear_x(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return _affine(picture, fill, (1, level, 0, 0, 1, 0))


def _shear_y(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return _affine(picture, fill, (1, 0, 0, level, 1, 0))


def _translate_x(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return _affine(picture, fill, (1, 0, level * picture.width, 0, 1, 0))


def _translate_y(
  picture: Image.Image,
  level: float,
  fill: Fill,
) -> Image.Image:
  return _affine(picture, fill, (1, 0, 0, 0, 1, level * picture.height))


# The 14 of the paper; seeds draw from their order.
AUGMENTATIONS = (
  Augmentation(0, False, _identity),
  Augmentation(0, False, _autocontrast),
  Augmentation(0, False, _equalize),
  Augmentation(30, True, _rotate),
  Augmentation(256, False, _solarize),
  Augmentation(4, False, _posterize),
  Augmentation(0.9, True, _enhance(ImageEnhance.Color)),
  Augmentation(0.9, True, _enhance(ImageEnhance.Contrast)),
  Augmentation(0.9, True, _enhance(ImageEnhance.Brightness)),
  Augmentation(0.9, True, _enhance(ImageEnhance.Sharpness)),
  Augmentation(0.3, True, _shear_x),
  Augmentation(0.3, True, _shear_y),
  Augmentation(0.45, True, _translate_x),
  Augmentation(0.45, True, _translate_y),
)


def randaugment(
  image: np.ndarray, rng: Rng, layers: int = 2, magnitude: float | int = 9, fill: int = 128
) -> np.ndarray:
  """Applies `layers` transforms of RandAugment (Cubuk et al. 2020), drawn uniformly.

  Args:
    magnitude: strength, of 10.
    fill: grey value of what comes from outside the picture.
  """
  picture = _to_pillow(image)
  colour = fill if image.shape[2] == 1 else (fill,) * 3
  for choice in rng.integers(len(AUGMENTATIONS), size=layers):
    augmentation = AUGMENTATIONS[choice]
    sign = -1 if augmentation.signed and rng.random() < 0.5 else 1
    picture = augmentation.change(picture, sign * augmentation.level * magnitude / 10, colour)
  return np.atleast_3d(np.asarray(picture))


def normalize(
  image: np.ndarray,
  rng: Rng,
  mean: Literal['imagenet', 'half'] | float | int | tuple = 'imagenet',
  std: float | int | tuple = 1.0,
) -> np.ndarray:
  """Converts uint8 to float32: (x / 255 - mean) / std.

  Args:
    mean: a number, one a channel, or a name for both mean and std ('half' gives [-1, 1]).
    std: a number, or one a channel.
  """
  named_mean, named_std = NORMALS.get(mean, (mean, std))
  means = np.array(named_mean, np.float32)
  if means.size > 1 and means.size != image.shape[2]:
    raise UserError(f'normalize has {means.size} means, the picture {image.shape[2]} channels.')
  return (image * np.float32(1 / 255) - means) / np.array(
    named_std,
    np.float32,
  )


@dataclasses.dataclass(frozen=True)
class ImageTransform(Transform):
  """Replaces example['image'] by `change(image, rng, options...)`."""

  field: ClassVar[str] = 'image'

  def __call__(self, example: Example, rng: Rng, **options: Any) -> Example:
    image = example.get('image')
    if image is None or not len(image):
      return {key: value for key, value in example.items() if key != 'image'}
    return {**example, 'image': self.change(image, rng, **options)}


IMAGE_TRANSFORMS: dict[str, Transform] = {
  'decode': ImageTransform(decode_picture),
  'resize': ImageTransform(resize),
  'resize_small': ImageTransform(resize_small),
  'center_crop': ImageTransform(center_crop),
  'random_crop': ImageTransform(random_crop),
  'random_resized_crop': ImageTransform(random_resized_crop),
  'flip': ImageTransform(flip),
  'randaugment': ImageTransform(randaugment),
  'normalize': ImageTransform(normalize),
}
