"""Batches: every example once, fixed shapes, and the same numbers wherever they are loaded from.

Axes: B batch, T time.
"""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mmlm.data.batching import Batch, TrainPlan, eval_plan, pad, pad_features, stack
from mmlm.data.pipeline import Loader, Table, stream
from mmlm.data.transforms.ops import parse_ops
from mmlm.utils.errors import UserError

# Plans

PLANS = [  # examples, batch size, buckets
  (1, 1, (4,)),
  (1, 8, (4,)),
  (7, 8, (3, 6)),
  (8, 8, (3, 6)),
  (9, 8, (3, 6)),
  (64, 8, (2, 4, 8, 16)),
  (101, 8, (2, 4, 8, 16)),
  (100, 16, (16,)),
  (37, 5, (1, 2, 3, 4, 5, 6, 16)),
  (250, 32, (8, 16)),
]


def lengths_of(count, buckets):
  return np.random.default_rng(count).integers(1, buckets[-1] + 1, count)


def epoch(plan, number):
  return [plan[number * plan.steps_per_epoch + i] for i in range(plan.steps_per_epoch)]


def check(batches, lengths, batch_size, buckets):
  """Every example once, in batches of a bucket's shape in which all of them fit."""
  assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
  for batch in batches:
    assert 0 < len(batch.indices) <= batch_size
    assert batch.length in buckets and lengths[batch.indices].max() <= batch.length


@pytest.mark.parametrize('count, batch_size, buckets', PLANS)
def test_an_epoch_holds_every_example_once(count, batch_size, buckets):
  lengths = lengths_of(count, buckets)
  plan = TrainPlan(lengths, batch_size, buckets, seed=0)
  assert plan.steps_per_epoch == -(-count // batch_size)
  for number in range(4):
    batches = epoch(plan, number)
    check(batches, lengths, batch_size, buckets)
    assert sum(len(batch.indices) < batch_size for batch in batches) <= 1


@pytest.mark.parametrize('count, batch_size, buckets', PLANS)
def test_evaluation_holds_every_example_once(count, batch_size, buckets):
  lengths = lengths_of(count, buckets)
  batches = eval_plan(lengths, batch_size, buckets)
  check(batches, lengths, batch_size, buckets)
  assert len(batches) == -(-count // batch_size)
  for batch in batches:  # no longer than it must be
    assert batch.length == min(b for b in buckets if b >= lengths[batch.indices].max())


def test_buckets_are_used():
  """Most batches are of the bucket of their own examples: only what is left over moves up."""
  lengths = lengths_of(1000, (4, 8, 16))
  buckets = (4, 8, 16)
  batches = epoch(TrainPlan(lengths, 16, buckets, seed=0), 0)
  tight = []
  for batch in batches:
    tight.append(batch.length == min(b for b in buckets if b >= lengths[batch.indices].min()))
  assert sum(tight) >= len(batches) - len(buckets)
  assert {batch.length for batch in batches} == set(buckets)
  sizes = [batch.length for batch in batches]
  assert sizes != sorted(sizes)  # batches are shuffled too


def same(left, right):
  return all(
    a[1:] == b[1:] and a.indices.tolist() == b.indices.tolist()
    for a, b in zip(left, right, strict=True)
  )


def test_a_plan_is_a_function_of_seed_and_epoch():
  lengths = lengths_of(101, (4, 8))
  buckets = (4, 8)
  plan, again, other = (TrainPlan(lengths, 8, buckets, seed) for seed in (0, 0, 1))
  first = epoch(plan, 0)
  second = epoch(plan, 1)
  assert not same(first, second)
  assert same(second, epoch(again, 1)) and same(
    first, epoch(again, 0)
  )  # whatever was asked for before
  assert not same(first, epoch(other, 0))
  groups = []
  for batches in (first, second):
    groups.append({frozenset(batch.indices.tolist()) for batch in batches})
  assert not groups[0] & groups[1]  # the batches are made anew, not only their order


@pytest.mark.parametrize(
  'plan', [lambda *args: TrainPlan(*args, seed=0), eval_plan], ids=['train', 'eval']
)
def test_what_fits_in_no_bucket_is_an_error(plan):
  with pytest.raises(UserError, match='17 tokens.*16'):
    plan(np.array([3, 17, 2]), 2, (8, 16))
  with pytest.raises(UserError, match='^0 examples'):
    plan(np.array([], int), 2, (8, 16))


# Plans by tokens

BUDGETS = [  # examples, batch size, buckets, tokens
  (1, 1, (4,), 16),
  (7, 8, (3, 6), 60),
  (101, 8, (2, 4, 8, 16), 100),
  (500, 4, (2, 3, 5, 8, 16), 64),
  (1000, 8, (8, 16, 24, 40), 512),
  (300, 16, (4, 30), 64),
  (64, 1, (16,), 7),
]


@pytest.mark.parametrize('count, batch_size, buckets, tokens', BUDGETS)
def test_a_budget_of_tokens_bounds_every_batch(count, batch_size, buckets, tokens):
  lengths = lengths_of(count, buckets)
  plan = TrainPlan(lengths, batch_size, buckets, 0, tokens)
  for number in range(4):
    batches = epoch(plan, number)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(count))
    assert sum(len(batch.indices) < batch.size for batch in batches) <= 1
    for batch in batches:
      assert (
        0 < len(batch.indices) <= batch.size
        and lengths[batch.indices].max() <= batch.length in buckets
      )
      assert batch.size % batch_size == 0
      assert batch.size * batch.length <= tokens or batch.size == batch_size
      assert (
        batch.size + batch_size
      ) * batch.length > tokens  # as many rows as the budget has room for
  assert plan.examples_per_step * plan.steps_per_epoch == pytest.approx(count)
  # A shape of a batch is compiled once: there is one for each bucket.
  shapes = {(batch.size, batch.length) for number in range(4) for batch in epoch(plan, number)}
  assert len(shapes) <= len(buckets)


def test_a_plan_by_tokens_is_a_function_of_seed_and_epoch():
  lengths = lengths_of(300, (4, 8, 16))
  buckets = (4, 8, 16)
  plan, again, other = (TrainPlan(lengths, 4, buckets, seed, 64) for seed in (0, 0, 1))
  assert same(epoch(plan, 1), epoch(again, 1)) and same(epoch(plan, 0), epoch(again, 0))
  assert not same(epoch(plan, 0), epoch(plan, 1)) and not same(epoch(plan, 0), epoch(other, 0))
  assert plan.steps_per_epoch == other.steps_per_epoch


def test_a_batch_by_tokens_is_loaded_with_the_rows_of_its_bucket():
  loader = make_loader(('decode',))
  plan = TrainPlan(loader.table.lengths, 2, (3, 5), 0, 18)
  assert {plan[i].size for i in range(plan.steps_per_epoch)} == {6, 2}
  with stream(plan, loader, 0, plan.steps_per_epoch) as batches:
    for batch, (indices, length, size) in zip(batches, epoch(plan, 0), strict=True):
      assert batch['target'].shape == (size, length) and len(batch['image']) == size
      assert batch['weight'].sum() == len(indices)


# Padding and stacking


def test_pad():
  ids, mask = pad([[5, 6], [], [7, 8, 9]], 4, 4)
  assert ids.tolist() == [[5, 6, 0, 0], [0] * 4, [7, 8, 9, 0], [0] * 4] and ids.dtype == np.int32
  assert mask.sum(1).tolist() == [2, 0, 3, 0] and mask.dtype == bool
  assert np.all(ids[~mask] == 0)


def test_stack():
  values, present = stack([None, np.ones((2, 3), np.uint8), None], 4, None)
  assert values.shape == (4, 2, 3) and values.dtype == np.uint8
  assert present.tolist() == [False, True, False, False]
  assert np.all(values[~present] == 0) and np.all(values[1] == 1)
  with pytest.raises(UserError, match=r'\(2, 3\) and \(3, 2\)'):
    stack([np.ones((2, 3)), np.ones((3, 2))], 2, None)
  values, present = stack([None, None], 3, lambda: np.ones((2, 3), np.uint8))
  assert (
    values.shape == (3, 2, 3)
    and values.dtype == np.uint8
    and not values.any()
    and not present.any()
  )


def test_pad_features():
  values, mask = pad_features([np.ones((2, 3)), None, np.full(3, 2.0)], 4, 4, None)
  assert (
    values.shape == (4, 4, 3)
    and values.dtype == np.float32
    and mask.sum(1).tolist() == [2, 0, 1, 0]
  )
  assert values.sum(2).tolist() == [[3, 3, 0, 0], [0] * 4, [6, 0, 0, 0], [0] * 4]
  values, mask = pad_features([None], 2, 1, lambda: np.ones((1, 3)))
  assert values.shape == (1, 2, 3) and not mask.any()


# Loading


def encoded(seed, size=9):
  file = io.BytesIO()
  Image.fromarray(
    np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
  ).save(file, 'png')
  return file.getvalue()


class Source:
  """Pictures and texts; `broken` ones do not decode and `missing` ones are not there."""

  def __init__(self, count=10, broken=(), missing=()):
    self.examples = []
    for i in range(count):
      if i in broken:
        picture = b'no picture'
      else:
        picture = encoded(i)
      self.examples.append({'id': f'photo-{i}'} | ({} if i in missing else {'image': picture}))

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, i):
    return self.examples[i]


OPS = ('decode', 'random_crop(8)', 'flip', 'randaugment', 'normalize')


def make_loader(ops=OPS, seed=0, source=None, finish=None):
  source = source or Source()
  records = np.repeat(np.arange(len(source)), 2)  # two targets a picture
  targets = [[10 + i] * (1 + i % 5) for i in range(len(records))]
  texts = [[30 + i] * (1 + i % 3) for i in range(len(records))]
  table = Table([source[i]['id'] for i in records], records, targets, texts)
  if isinstance(ops, tuple):
    ops = parse_ops(ops)
  else:
    ops = ops
  return Loader(source, table, ('image', 'text'), ops, batch_size=8, seed=seed, finish=finish)


def plan_of(loader, seed=0):
  return TrainPlan(loader.table.lengths, loader.batch_size, (3, 5), seed)


def load(loader, start, stop, workers=0):
  with stream(plan_of(loader), loader, start, stop, workers) as batches:
    return list(batches)


def assert_equal(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope='module')
def batches():
  """Two epochs and a half of three steps."""
  return load(make_loader(), 0, 8)


def test_a_batch_holds_what_the_plan_says(batches):
  loader = make_loader()
  plan = plan_of(loader)
  for number, batch in enumerate(batches):
    indices, length, size = plan[number]
    assert size == 8
    n = len(indices)
    assert (
      batch['weight'].tolist() == [1.0] * n + [0.0] * (8 - n)
      and batch['weight'].dtype == np.float32
    )
    for key, rows in (('target', loader.table.targets), ('text', loader.table.texts)):
      assert batch[key].shape == batch[f'{key}_mask'].shape == (8, length)
      found = [row[mask].tolist() for row, mask in zip(batch[key], batch[f'{key}_mask'])]
      assert found == [rows[i] for i in indices] + [[]] * (8 - n)
    assert batch['image'].shape == (8, 8, 8, 3) and batch['image'].dtype == np.float32
    assert np.all(batch['image'][n:] == 0) and batch['image_mask'].tolist() == [True] * n + [
      False
    ] * (8 - n)
  assert min(len(plan[number].indices) for number in range(8)) == 4  # there was padding to look at


def test_a_picture_is_that_of_its_record():
  loader = make_loader(('decode',))
  batch = loader(0, Batch(np.array([5, 18]), 5, 8))
  for row, record in enumerate((2, 9)):
    np.testing.assert_array_equal(batch['image'][row], Image.open(io.BytesIO(encoded(record))))


def test_a_stream_starts_anywhere(batches):
  for start in (0, 1, 4, 7):
    assert_equal(load(make_loader(), start, 8), batches[start:])
  assert load(make_loader(), 8, 8) == []


def test_workers_load_the_same_batches_from_anywhere(batches):
  assert_equal(load(make_loader(), 3, 8, workers=2), batches[3:])


def test_random_ops_depend_on_seed_batch_and_row_alone():
  def draw(example, rng):
    return example | {'image': rng.random(3)}

  batch = Batch(np.array([4, 7, 4]), 5, 8)

  def values(number, batch=batch, seed=0):
    return make_loader([draw], seed)(number, batch)['image'][:3]

  first = values(0)
  np.testing.assert_array_equal(first, values(0))
  np.testing.assert_array_equal(first, values(0, Batch(np.array([1, 2, 3]), 5, 8)))
  every = np.concatenate([first, values(1), values(2), values(0, seed=1)])
  assert len(np.unique(every[:, 0])) == len(every)


def test_a_missing_modality_is_masked():
  source = Source(missing=(1,))
  source.examples[3]['image'] = b''
  batch = make_loader(source=source)(0, Batch(np.arange(8), 5, 8))
  assert batch['image_mask'].tolist() == [True, True, False, False, True, True, False, False]
  assert np.all(batch['image'][~batch['image_mask']] == 0) and batch['image'][0].std() > 0
  assert np.all(batch['weight'] == 1) and batch['text_mask'].any(1).all()


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_of_an_op_names_the_example(workers):
  loader = make_loader(source=Source(broken=(6,)))
  with pytest.raises(UserError, match="'photo-6'.*UnidentifiedImageError"):
    load(loader, 0, 3, workers)


def test_an_error_that_names_no_example_is_given_its_name():
  with pytest.raises(UserError, match=r"^Example 'photo-\d': A crop of 20 x 20"):
    load(make_loader(('decode', 'center_crop(20)')), 0, 1)


def test_an_unexpected_error_of_an_op_names_the_example_too():
  def op(example, rng):
    return {'image': np.ones(4) / [1] if example['id'] != 'photo-6' else example['nothing']}

  with pytest.raises(KeyError) as caught:
    load(make_loader([op]), 0, 3)
  assert 'photo-6' in ''.join([str(caught.value), *getattr(caught.value, '__notes__', ())])


def test_what_only_the_main_process_can_do_is_done_there(batches):
  doubled = load(make_loader(finish=lambda batch: batch | {'image': 2 * batch['image']}), 0, 3)
  assert_equal(doubled, [batch | {'image': 2 * batch['image']} for batch in batches[:3]])
  loader = make_loader(('decode',), finish=lambda batch: batch)
  assert pickle.loads(pickle.dumps(Loader.__getstate__(loader)['finish'])) is None


def test_tables():
  table = make_loader().table
  assert table.lengths.tolist() == [max(1 + i % 5, 1 + i % 3) for i in range(20)]
  part = table.select(np.array([3, 0]))
  assert part.ids == ['photo-1', 'photo-0'] and part.records.tolist() == [1, 0]
  assert part.targets == [table.targets[3], table.targets[0]] and part.texts == [
    table.texts[3],
    table.texts[0],
  ]
