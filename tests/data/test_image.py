import io

import numpy as np
import pytest
from PIL import Image

from mmlm.data.transforms.image import decode_picture
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.utils.errors import UserError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (20, 30, 3), np.uint8)


def encode(array_or_image, format='PNG', **options):
  if isinstance(array_or_image, Image.Image):
    image = array_or_image
  else:
    image = Image.fromarray(array_or_image)
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def run(*texts, image=PICTURE, seed=0):
  return apply_ops(parse_ops(texts), {'id': 'a', 'image': image}, np.random.default_rng(seed))[
    'image'
  ]


def test_decode_gives_the_pixels():
  np.testing.assert_array_equal(run('decode', image=encode(PICTURE)), PICTURE)
  assert run("decode('L')", image=encode(PICTURE)).shape == (20, 30, 1)


def test_decode_turns_by_exif():
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rows of the file are columns of the picture
  turned = decode_picture(encode(PICTURE, exif=exif.tobytes()))
  np.testing.assert_array_equal(turned, np.rot90(PICTURE, -1))


def test_decode_scales_16_bit_grey():
  wide = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
  np.testing.assert_array_equal(
    decode_picture(encode(wide), mode='L')[:, :, 0], np.arange(256).reshape(16, 16)
  )


def test_decode_shows_white_through_transparency():
  pixels = np.zeros((4, 4, 4), np.uint8)
  pixels[:2, :, 3] = 255
  for data in (
    encode(pixels),
    encode(Image.fromarray(pixels).convert('LA')),
    encode(Image.fromarray(pixels).quantize(4)),
  ):
    np.testing.assert_array_equal(decode_picture(data)[:, 0, 0], [0, 0, 255, 255])


@pytest.mark.parametrize('mode', ['CMYK', 'L', 'YCbCr'])
def test_decode_gives_rgb_of_every_jpeg(mode):
  blue = Image.new('RGB', (16, 16), (20, 30, 240)).convert(mode)
  pixel = decode_picture(encode(blue, 'JPEG', quality=95))[8, 8].astype(int)
  wanted = np.array(blue.convert('RGB').getpixel((8, 8)), int)
  assert np.abs(pixel - wanted).max() < 6


@pytest.mark.parametrize(
  'data', [b'\0', b'text', encode(PICTURE)[:300], encode(PICTURE, 'JPEG')[:-200]]
)
def test_a_broken_picture_is_named(data):
  with pytest.raises(UserError, match="'a'"):
    run('decode', image=data)


def test_an_example_without_a_picture_passes():
  for example in ({'id': 'a'}, {'id': 'a', 'image': b''}):
    assert apply_ops(parse_ops(('decode', 'resize(8)', 'normalize')), example, RNG) == {'id': 'a'}


def test_resize_and_crops_give_exact_sizes():
  assert run('resize(8)').shape == (8, 8, 3)
  assert run('resize(8, 12)').shape == (8, 12, 3)
  assert run('resize_small(10)').shape == (10, 15, 3)
  np.testing.assert_array_equal(run('center_crop(10)'), PICTURE[5:15, 10:20])
  assert run('random_resized_crop(12, 0.3)').shape == (12, 12, 3)
  with pytest.raises(UserError, match='20 x 30'):
    run('center_crop(25)')


def test_resize_is_antialiased():
  stripes = np.zeros((64, 64, 1), np.uint8)
  stripes[:, ::2] = 255
  assert abs(run('resize(8)', image=stripes).astype(int) - 127).max() < 10


def test_random_crop_reaches_every_place_and_pads_with_zeros():
  def corners(text, seeds):
    return {bytes(run(text, image=PICTURE[:4, :4], seed=seed)[0, 0]) for seed in range(seeds)}

  assert corners('random_crop(3)', 60) == {bytes(PICTURE[i, j]) for i in (0, 1) for j in (0, 1)}
  assert bytes(3) in corners('random_crop(4, pad=1)', 60)


def test_flip_mirrors_half_of_the_time():
  flipped = [np.array_equal(run('flip', seed=seed), PICTURE[:, ::-1]) for seed in range(200)]
  assert 70 < sum(flipped) < 130
  np.testing.assert_array_equal(run('flip(0.0)'), PICTURE)


@pytest.mark.parametrize('channels', [1, 3])
def test_randaugment_keeps_shape_and_grows_with_magnitude(channels):
  ramp = np.linspace(0, 255, 32, dtype=np.uint8)[:, None, None]
  smooth = np.broadcast_to(ramp, (32, 32, channels)).copy()

  def change(magnitude):
    outs = [run(f'randaugment(2, {magnitude})', image=smooth, seed=seed) for seed in range(60)]
    assert all(out.shape == smooth.shape and out.dtype == np.uint8 for out in outs)
    return np.mean([abs(out.astype(int) - smooth).mean() for out in outs])

  assert change(9) > 1.5 * change(2) > 0


def test_randomness_is_the_generators_alone():
  ops = ('random_resized_crop(16)', 'flip', 'randaugment(2, 9)')
  np.testing.assert_array_equal(run(*ops, seed=3), run(*ops, seed=3))
  assert any(not np.array_equal(run(*ops, seed=3), run(*ops, seed=seed)) for seed in range(4, 8))


def test_ops_leave_the_given_picture_alone():
  before = PICTURE.copy()
  run('random_crop(16, 2)', 'flip(1.0)', 'randaugment(3, 10)', 'normalize')
  np.testing.assert_array_equal(PICTURE, before)


def test_normalize():
  assert run("normalize('half')").dtype == np.float32
  ends = np.array([[[0], [255]]], np.uint8)
  np.testing.assert_allclose(run("normalize('half')", image=ends).ravel(), [-1, 1])
  mean = np.array((0.485, 0.456, 0.406))
  std = np.array((0.229, 0.224, 0.225))
  np.testing.assert_allclose(run('normalize'), (PICTURE / 255 - mean) / std, atol=1e-5)
  np.testing.assert_allclose(run('normalize(0.5, 0.25)'), (PICTURE / 255 - 0.5) / 0.25, atol=1e-5)
  with pytest.raises(UserError, match='1 channels'):
    run('normalize', image=PICTURE[:, :, :1])
  with pytest.raises(UserError, match='normalize last'):
    run('normalize', 'resize(8)')


@pytest.mark.parametrize(
  'text, says',
  [
    ('resise(64)', "'resize'"),
    ('resize()', 'resize'),
    ("resize('a')", "h is 'a'"),
    ('resize(64', 'resize'),
    ('flip(side=1)', 'flip'),
    ("decode('RGBA')", 'mode'),
    ("normalize('imagnet')", 'imagenet'),
    ("__import__('os')", 'Unknown op'),
    ('resize(open(1))', "Can't read"),
  ],
)
def test_a_bad_op_is_named_with_what_is_right(text, says):
  with pytest.raises(UserError, match=says) as caught:
    parse_ops((text,))
  assert repr(text) in str(caught.value)
