"""Every config of configs/ in its smoke form, from training to the report, and a set of the TFDS catalogue by a config alone."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image
from test_cli import done, read_jsonl, refused

from mmlm import commands
from mmlm.data import prepare

FILES = sorted(ROOT.glob('configs/*/*.py'))
# A frozen network needs seconds for each hundred pictures: a few are enough.
FEW = {'train': 'train[:32]', 'valid': 'valid[:8]', 'test': 'test_faces[:8]'}
FEWER = [f'--config.data.splits.{part}={split}' for part, split in FEW.items()]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The generated set, prepared once, and the cached grids of the configs, which are all the same."""
  folder = tmp_path_factory.mktemp('data')
  prepare.prepare('unicode_pictures/tiny', None, folder)
  return folder


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
  """METEOR's program needs seconds to start; it is left out where there is none."""
  monkeypatch.setattr('mmlm.evaluation.meteor.shutil.which', lambda name: None)


def through(spec, folder, data, *settings):
  """Trains, evaluates, predicts and reports -> (what training printed, rows of the scores, rows of the predictions)."""
  said = done('train', spec, '--workdir', folder, f'--config.data.dir={data}', '--config.parallel.strategy=jit', *settings)
  done('evaluate', folder)
  scores = {p.stem: json.loads(p.read_text()) for p in (folder / 'scores').iterdir()}
  (plain,) = (name for name in scores if f'{name}-shuffled' in scores)
  return said, scores, read_jsonl(folder / 'predictions' / f'{plain}.jsonl')


def png(value, side=32) -> bytes:
  file = io.BytesIO()
  Image.new('RGB', (side, side), (value, 40, 80)).save(file, 'PNG')
  return file.getvalue()


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_smoke_form_goes_from_training_to_the_report(path, data, tmp_path):
  folder = tmp_path / 'run'
  said, scores, rows = through(f'{path}:smoke', folder, data, *FEWER)
  assert '32 examples' in said and '6 steps in all' in said and '6/6 100 %' in said
  assert [row['step'] for row in read_jsonl(folder / 'metrics.jsonl') if row['kind'] == 'valid'] == [3, 6]
  assert len(scores) == 2 and all(s['n'] == 8 and s['scores'] for s in scores.values())
  assert all(0 <= v['low'] <= v['value'] <= v['high'] for s in scores.values() for v in s['scores'].values())
  assert len({row['id'] for row in rows}) == 8
  assert all(row['references'][0].startswith('latin ') and isinstance(row['hypothesis'], str) for row in rows)
  (tmp_path / 'mine.png').write_bytes(png(200))
  said = done('predict', folder, '--input', tmp_path / 'mine.png')
  assert said.startswith('mine.png\t')
  assert str(folder / 'report.html') in done('report', folder)
  page = (folder / 'report.html').read_text()
  assert 'data:image/png;base64' in page and rows[0]['references'][0] in page


def test_the_quick_start(data, tmp_path, monkeypatch):
  monkeypatch.setattr(commands, 'QUICK_START', f'{commands.QUICK_START}:smoke')
  monkeypatch.chdir(tmp_path)
  said = done(f'--config.data.dir={data}', '--config.parallel.strategy=jit', *FEWER)
  folder = tmp_path / 'runs' / 'unicode_pictures'
  assert '6/6 100 %' in said and 'exact_match' in said and 'inputs shuffled' in said
  rows = read_jsonl(folder / 'predictions' / f'test_faces[:8]-{_step(folder)}.jsonl')
  assert all(f'  {row["references"][0]:<48} {row["hypothesis"]}\n' in said for row in rows)
  assert said.splitlines()[-1] == 'Report: runs/unicode_pictures/report.html' and (folder / 'report.html').exists()


def _step(folder):
  (step,) = {int(p.stem.rpartition('-')[2]) for p in (folder / 'scores').iterdir() if 'shuffled' not in p.name}
  return step


def test_grids_on_disk_are_those_of_the_network(data, tmp_path):
  """One training with the grids computed in every step gives the numbers of one with the grids from disk."""
  spec = f'{ROOT}/configs/captioning/manifest.py:smoke'
  same = ['--config.train.duration=2 steps', '--config.data.train_ops=("decode","resize(64)","normalize")',
          '--config.data.eval_ops=("decode","resize(64)","normalize")', '--config.train.monitor=loss', f'--config.data.dir={data}',
          '--config.parallel.strategy=jit', '--config.train.log_every=1 steps', *FEWER]  # fmt: skip
  losses = []
  for cache in (True, False):
    folder = tmp_path / str(cache)
    done('train', spec, '--workdir', folder, f'--config.model.encoders.image.cache={cache}', *same)
    losses.append([row['loss'] for row in read_jsonl(folder / 'metrics.jsonl')])
  assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize('settings, says', [
  (['data.splits.train=trian'], "no split 'trian'"),
  (['data.splits.valid=train[:0]'], "split 'train[:0]'"),
  (['data.fields={"image": 1}'], 'data.fields'),
  (['data.name=unicode_pictures/huge'], 'full, tiny'),
])  # fmt: skip
def test_a_split_that_is_not_there(data, tmp_path, settings, says):
  spec = f'{ROOT}/configs/captioning/unicode_pictures.py:smoke'
  argv = ['train', spec, '--workdir', tmp_path / 'run', f'--config.data.dir={data}', '--config.parallel.strategy=jit']
  assert says in refused(*argv, *(f'--config.{s}' for s in settings))
  assert not (tmp_path / 'run').exists()


def test_random_ops_cannot_act_on_grids_from_disk(data, tmp_path):
  spec = f'{ROOT}/configs/captioning/flickr8k.py:smoke'
  said = refused('train', spec, '--workdir', tmp_path / 'run', f'--config.data.dir={data}', '--config.parallel.strategy=jit',
                 '--config.data.train_ops=("decode","randaugment","resize(224)","normalize")')  # fmt: skip
  assert 'cannot be used with cached grids' in said and 'model.encoders.image.cache' in said


class CocoLike(tfds.core.GeneratorBasedBuilder):
  """As sets of the TFDS catalogue look: pictures with several captions in a Sequence of dicts."""

  VERSION = tfds.core.Version('1.1.0')

  def _info(self):
    F = tfds.features
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({
      'image': F.Image(shape=(None, None, 3)), 'image/filename': F.Text(),
      'captions': F.Sequence({'text': F.Text(), 'id': np.int64})}))  # fmt: skip

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(0, 16), 'val': self._generate_examples(16, 24), 'test': self._generate_examples(24, 28)}

  def _generate_examples(self, start, stop):
    for i in range(start, stop):
      captions = [{'text': text, 'id': i} for text in ('a red square', f'A square, {"dark" if i < 14 else "bright"}')]
      yield i, {'image': png(i * 9, 20 + i), 'image/filename': f'{i}.png', 'captions': captions}


def test_a_set_of_the_catalogue_by_a_config_alone(tmp_path):
  tfds.disable_progress_bar()
  CocoLike(data_dir=str(tmp_path / 'data'), file_format='array_record').download_and_prepare()
  spec = f'{ROOT}/configs/captioning/catalogue.py:name=coco_like,id=image/filename'
  small = ['--config.model.dim=32', '--config.model.head.layers=1', '--config.train.duration=3 steps', '--config.train.batch_size=16',
           '--config.evaluate.batch_size=8', '--config.tokenizer.min_frequency=1', '--config.evaluate.bootstrap_samples=10',
           '--config.data.buckets=(40,)', '--config.train.monitor=bleu_1']  # fmt: skip
  said, scores, rows = through(spec, tmp_path / 'run', tmp_path / 'data', *small)
  assert 'train: 32 examples' in said  # two captions a picture
  assert {row['id'] for row in rows} == {f'{i}.png' for i in range(24, 28)}
  assert all(row['references'] == ['a red square', 'A square, bright'] for row in rows)
  tokens = (tmp_path / 'run' / 'tokenizer.json').read_text()
  assert '"bright"' in tokens and '"A"' not in tokens
  shutil.move(tmp_path / 'data' / 'coco_like', tmp_path / 'data' / 'moved')
  said = refused('evaluate', tmp_path / 'run')
  assert "No data set 'coco_like'" in said and 'moved' in said and 'array_record' in said
