"""New parts are defined in this file alone and registered by one line each; every command finds
them.
"""

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from program import done, read_jsonl

from mmlm.data.datasets import DATASETS
from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.evaluation.metrics import METRICS, views
from mmlm.evaluation.metrics.metric import Metric, mean_statistics
from mmlm.experiment.experiment import Experiment
from mmlm.models.embeddings import TokenEmbedding, token_embedding
from mmlm.models.encoders import ENCODERS
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.fusion import FUSIONS
from mmlm.models.fusion.fusion import Fusion, concatenated
from mmlm.models.sequence import Sequence
from mmlm.tasks import TASKS
from mmlm.tasks.text_generation import TextGeneration
from mmlm.training.optimizers import OPTIMIZERS

COLOURS = ('red', 'green', 'blue', 'grey')
F = tfds.features


class ColourPairs(DatasetBuilder):
  """A picture and the name of a colour; the target is that name, three to five times."""

  name = 'colour_pairs'
  FIELDS = {'id': 'id', 'image': 'image', 'text': 'colour', 'targets': 'caption'}

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'id': F.Text(),
      'image': F.Image(shape=(8, 8, 1)),
      'colour': F.Text(),
      'caption': F.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features))

  def _split_generators(self, dl_manager: Any) -> dict:
    return {'train': self._generate_examples(0, 32), 'test': self._generate_examples(32, 40)}

  def _generate_examples(self, start: int, stop: int) -> Iterator[tuple]:
    for i in range(start, stop):
      file = io.BytesIO()
      Image.fromarray(np.full((8, 8), 30 * (i % 4), np.uint8)).save(file, 'PNG')
      colour = COLOURS[i % 4]
      caption = ' '.join([colour] * (3 + i % 3))
      yield i, {'id': str(i), 'image': file.getvalue(), 'colour': colour, 'caption': caption}


class TextFirst(Fusion):
  """The text, then one vector for all other modalities: only positions of the text are known."""

  dim: int

  @staticmethod
  def keeps_positions(modalities: Iterable[str], main: str) -> list[str]:
    return ['text']

  @nn.compact
  def __call__(self, sequences: dict[str, Sequence], train: bool = False) -> Sequence:
    parts = [sequences['text']]
    for name in sorted(sequences.keys() - {'text'}):
      values, mask = sequences[name]
      mean = jnp.where(mask[..., None], values, 0).mean(1, keepdims=True)
      parts.append(Sequence(nn.Dense(self.dim, name=name)(mean), mask.any(1, keepdims=True)))
    return concatenated(parts)


class Embeddings(Encoder, kw_only=True):
  """Tokens [B, S] -> their embeddings [B, S, D]."""

  reads_features: ClassVar[bool] = False

  dim: int
  dtype: str = 'float32'
  vocab_size: int
  vectors: str = ''
  vector_dim: int = 0
  embeddings: TokenEmbedding | None = None

  @nn.compact
  def __call__(self, tokens: Any, mask: Any, train: bool = False) -> Sequence:
    return Sequence(token_embedding(self)(tokens), mask)


def length_gaps(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
  """Returns the differences of lengths in characters."""
  gaps = []
  for hypothesis, (reference,) in zip(hypotheses, references):
    gaps.append(abs(len(hypothesis) - len(reference)))
  return mean_statistics(gaps)


@dataclasses.dataclass(frozen=True)
class ColourNaming(TextGeneration):
  """Names the colour of a picture."""

  metrics: tuple[str, ...] = ('length_gap', 'word_f1')

  def smoke(self, config: Any) -> Any:
    config.data.name = 'colour_pairs'
    config.train.duration = '24 steps'
    return config


def sign_descent(config: Any) -> optax.GradientTransformation:
  """Descends by the signs of gradients."""
  return optax.scale_by_sign()


CONFIG = """
from configs.smoke import smoke
from mmlm.config import default_config

def get_config(arg=''):
  config = default_config()
  config.task = 'colour_naming'
  config.data.splits = {'train': 'train', 'valid': 'test', 'test': ('test',)}
  config.data.train_ops = config.data.eval_ops = ('decode("L")', 'normalize("half")')
  config.data.max_length = 8
  config.tokenizer = {'kind': 'word', 'min_frequency': 1}
  config.model.dim = 16
  config.model.encoders = {
    'text': {'name': 'plain_embeddings'},
    'image': {'name': 'vit', 'patch': 4, 'layers': 1, 'heads': 2},
  }
  config.model.fusion = {'name': 'text_first'}
  config.model.head = {'name': 'transformer_decoder', 'layers': 1, 'heads': 2}
  config.optimizer.name = 'sign_descent'
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup = '1 step'
  config.train.log_every = '4 steps'
  config.train.eval_every = '4 steps'
  config.train.monitor = 'length_gap'
  config.train.keep_latest = 1
  config.train.batch_size = config.evaluate.batch_size = 8
  config.evaluate.bootstrap_samples = 10
  config.decoding.max_length = 8
  config.decoding.method = 'greedy'
  config.parallel.strategy = 'jit'
  return smoke(config)
"""
SPACE = """
from mmlm.sweeps.spaces import choices

def get_space():
  return choices('optimizer.learning_rate', 1e-3, 1e-2)
"""


@pytest.fixture(scope='module')
def parts() -> Iterator[None]:
  """Registers each part by one line."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(DATASETS, 'colour_pairs', ColourPairs)
    patch.setitem(FUSIONS, 'text_first', TextFirst)
    patch.setitem(ENCODERS, 'plain_embeddings', Embeddings)
    patch.setitem(
      METRICS,
      'length_gap',
      Metric(
        definition='mean difference of lengths in characters',
        higher_is_better=False,
        view=views.surface,
        statistics=length_gaps,
      ),
    )
    patch.setitem(TASKS, 'colour_naming', ColourNaming())
    patch.setitem(OPTIMIZERS, 'sign_descent', sign_descent)
    yield


@pytest.fixture(scope='module')
def place(parts, tmp_path_factory):
  """A folder with a config and a trained run."""
  folder = tmp_path_factory.mktemp('extending')
  (folder / 'colours.py').write_text(CONFIG)
  (folder / 'colours_space.py').write_text(SPACE)
  done('train', folder / 'colours.py', '--workdir', folder / 'run', data_dir(folder))
  return folder


def data_dir(folder) -> str:
  return f'--config.data.dir={folder / "data"}'


def test_the_best_checkpoint_has_the_lowest_value_of_an_error_metric(place):
  scores = {}
  for line in read_jsonl(place / 'run' / 'metrics.jsonl'):
    for name, value in line.items():
      if name.rpartition('/')[2] == 'length_gap':
        scores[line['step']] = value
  assert len(set(scores.values())) > 1
  experiment = Experiment.of_run(place / 'run', {})
  _, best = experiment.trained_params()
  assert scores[best] == min(scores.values())


def test_a_run_of_new_parts_is_evaluated_by_its_own_metric(place):
  output = done('evaluate', place / 'run')
  assert 'length_gap' in output
  assert 'word_f1' in output


def test_the_report_shows_attention_to_the_positions_that_the_fusion_keeps(place):
  done('evaluate', place / 'run')
  done('report', place / 'run')
  page = (place / 'run' / 'report.html').read_text()
  match = re.search('<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
  assert match is not None
  shown = []
  for group in json.loads(match[1])['groups']:
    for prediction in group['rows']:
      attention = prediction['answers'][0].get('attention')
      if attention:
        shown.append(attention)
  assert shown
  for attention in shown:
    assert 'text' in attention
    assert 'image' not in attention


def test_a_sweep_trains_new_parts_and_shows_their_metric(place):
  output = done(
    'sweep',
    place / 'colours.py',
    '--executor=vectorised',
    '--workdir',
    place / 'sweep',
    data_dir(place),
  )
  results = re.findall(r'length_gap\D+([\d.]+)', output)
  assert results, output
