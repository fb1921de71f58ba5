"""Seeds trained as one program are those trained one by one."""

import re

import numpy as np
import pytest
from test_cli import done
from test_sentiment import mosi

from mmlm import config as configs
from mmlm.data import prepare
from mmlm.errors import UserError
from mmlm.experiment import Experiment
from mmlm.inference import params_of
from mmlm.sweeps.together import train_together
from mmlm.trees import flat

SPEC = 'configs/sentiment/mosi_context.py:fusion=low_rank,modalities=text+audio'
FEW = {'train.duration': '3 epochs', 'train.eval_every': '3 epochs', 'train.batch_size': '4', 'model.dim': '8', 'model.head.hidden': '8', 'parallel.strategy': 'jit', 'optimizer.epsilon': '1e-6'}


def test_seeds_together_are_seeds_one_by_one(tmp_path):
  prepare.prepare('mosi/bclstm_videos', mosi(tmp_path / 'mosi'), tmp_path / 'data')
  settings = FEW | {'data.dir': str(tmp_path / 'data')}
  config = configs.override(configs.load_config(SPEC), settings)
  experiments = train_together(config, {seed: tmp_path / f'together{seed}' for seed in (3, 4)})
  found = []
  for seed, experiment in zip((3, 4), experiments):
    alone = tmp_path / f'alone{seed}'
    done('train', SPEC, '--workdir', alone, f'--config.seed={seed}', *(f'--config.{key}={value}' for key, value in settings.items()))
    loader = experiment.loader('test', experiment.table('test', False), 4)
    both = [flat(params_of(Experiment.of_run(folder, {'evaluate.checkpoint': 'latest'}), loader)[0]) for folder in (experiment.folder, alone)]
    for name, values in both[0].items():
      np.testing.assert_allclose(values, both[1][name], atol=1e-5, err_msg=name)
    found.append(both[0])
    assert re.search(r'accuracy +[\d.]+', done('evaluate', experiment.folder, '--config.evaluate.checkpoint=latest'))
  assert any(np.abs(found[0][name] - found[1][name]).max() > 1e-3 for name in found[0])
  with pytest.raises(UserError, match='is not empty'):
    train_together(config, {3: tmp_path / 'together3'})


def test_buckets_are_refused(tmp_path):
  config = configs.override(configs.load_config(SPEC), {'data.buckets': '(32, 64)'})
  with pytest.raises(UserError, match='need batches of one shape'):
    train_together(config, {0: tmp_path / 'run'})
