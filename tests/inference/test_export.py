"""Exported models: what others load gives what the run gives."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax import export as jax_export
from program import done, read_jsonl, refused
from safetensors.numpy import load_file

from mmlm.data.datasets import preparation
from mmlm.experiment.experiment import Experiment
from mmlm.inference import model_export as exporting
from mmlm.training.exported_weights import is_export, read_weights
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

FEW = [
  '--config.parallel.strategy=jit',
  '--config.evaluate.bootstrap_samples=5',
  '--config.evaluate.shuffled=False',
  '--config.decoding.beam_size=2',
]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A run that was evaluated, and its export."""
  folder = tmp_path_factory.mktemp('export')
  preparation.prepare('numerals/tiny', None, folder / 'data')
  done(
    'train',
    'configs/translation/numerals.py:modalities=text,smoke',
    '--workdir',
    folder / 'run',
    f'--config.data.dir={folder / "data"}',
    *FEW,
  )
  (folder / 'said').write_text(done('export', folder / 'run', '--output', folder / 'out'))
  done('evaluate', folder / 'run')
  return folder


@pytest.fixture
def copy(place, tmp_path):
  shutil.copytree(place / 'out', tmp_path / 'copy')
  return tmp_path / 'copy'


def test_the_files_and_what_is_said_of_them(place):
  out = place / 'out'
  said = (place / 'said').read_text()
  names = {
    'config.json',
    'tokenizer.json',
    'environment.json',
    'model.safetensors',
    'forward.stablehlo',
    'decode.stablehlo',
    'export.json',
  }
  assert (
    {p.name for p in out.iterdir()} == names and is_export(out) and not is_export(place / 'run')
  )
  about = json.loads((out / 'export.json').read_text())
  assert about['step'] == 6 and about['functions'].keys() == {'forward', 'decode'}
  assert all(
    found['largest_difference'] <= 1e-5 and found['file'] in said
    for found in about['functions'].values()
  )
  assert 'largest difference to the run' in said and 'the same bits as in the run' in said
  assert about['functions']['forward']['inputs'].keys() >= {'text', 'text_mask', 'target', 'weight'}
  assert about['functions']['decode']['inputs'].keys() == {'text', 'text_mask', 'weight'}


def test_safetensors_hold_the_parameters_by_path(place):
  experiment = Experiment.of_run(place / 'run', {})
  params, step = experiment.trained_params()
  found = load_file(place / 'out' / 'model.safetensors')
  assert found.keys() == flat(params).keys() and step == 6
  for name, leaf in flat(params).items():
    np.testing.assert_array_equal(found[name], leaf)


def test_an_export_answers_and_is_evaluated_like_its_run(place, tmp_path):
  given = tmp_path / 'lines.txt'
  given.write_text('twenty-three\nfour\n')
  assert done('predict', place / 'out', '--input', given) == done(
    'predict', place / 'run', '--input', given
  )
  shutil.copytree(place / 'out', tmp_path / 'out')
  done('evaluate', tmp_path / 'out')
  (path,) = (place / 'run' / 'predictions').iterdir()
  assert read_jsonl(tmp_path / 'out' / 'predictions' / path.name) == read_jsonl(path)


def test_the_functions_are_the_run_s_without_its_code(place):
  """From the files alone, as another program would."""
  weights = load_file(place / 'out' / 'model.safetensors')
  experiment = Experiment.of_run(place / 'run', {'parallel.strategy': 'jit'})
  batch = exporting.batches_of(experiment)['decode']
  found = jax_export.deserialize(bytearray((place / 'out' / 'decode.stablehlo').read_bytes())).call(
    weights, batch
  )
  real = batch['weight'] > 0
  rows = []
  for tokens in np.asarray(found['tokens'])[real]:
    rows.append(experiment.data.texts.outputs.decode_batch(tokens)[0])
  params, _ = experiment.trained_params()
  wanted = jax.jit(exporting.functions_of(experiment)['decode'])(params, batch)
  assert (
    rows
    == [
      experiment.data.texts.outputs.decode_batch(tokens)[0]
      for tokens in np.asarray(wanted['tokens'])[real]
    ]
    and len(rows) > 1
  )


def test_functions_that_differ_are_an_error(place, tmp_path, monkeypatch):
  """A function of another model than the run's."""
  honest = exporting._exported
  monkeypatch.setattr(
    exporting,
    '_exported',
    lambda fn, weights, batch, platforms: honest(
      lambda weights, batch: jax.tree.map(lambda x: x * 1.001, fn(weights, batch)),
      weights,
      batch,
      platforms,
    ),
  )
  assert "forward.stablehlo: its 'logits' differ from those of the run" in refused(
    'export', place / 'run', '--output', tmp_path / 'out'
  )


@pytest.mark.parametrize(
  'got, wanted, fits',
  [
    ([1.0, 2.0], [1.0, 2.0 + 1e-6], True),
    ([1.0, 2.0], [1.0, 2.1], False),
    ([-np.inf, 1.0], [-np.inf, 1.0], True),
    ([-np.inf, 1.0], [0.0, 1.0], False),
    ([np.nan, 1.0], [0.0, 1.0], False),
    ([1, 2], [1, 2], True),
    ([1, 2], [1, 3], False),
  ],
)
def test_what_counts_as_the_same(got, wanted, fits):
  sides = {'x': np.array(got)}, {'x': np.array(wanted)}
  if fits:
    assert exporting._difference('f', *sides) < 1e-5
  else:
    with pytest.raises(UserError, match="its 'x' differ"):
      exporting._difference('f', *sides)


def test_a_changed_byte_other_arrays_and_another_choice_are_refused(copy):
  assert 'cannot choose another' in refused(
    'predict', copy, '--input', 'four', '--config.evaluate.checkpoint=3'
  )
  params, _ = read_weights(copy)
  with pytest.raises(UserError, match=r'absent -> \(3,\)'):
    read_weights(copy, params | {'more': np.zeros(3, np.float32)})
  data = bytearray((copy / 'model.safetensors').read_bytes())
  data[-5] ^= 1
  (copy / 'model.safetensors').write_bytes(data)
  assert 'checksum' in refused('predict', copy, '--input', 'four')


def test_folders_that_are_not_for_an_export(place, copy, tmp_path):
  before = {p.name: p.read_bytes() for p in copy.iterdir()}
  argv = (
    'train',
    'configs/translation/numerals.py:modalities=text,smoke',
    '--workdir',
    copy,
    f'--config.data.dir={place / "data"}',
    *FEW,
  )
  assert 'holds an exported model, which is not trained' in refused(*argv)
  (tmp_path / 'letters').mkdir()
  (tmp_path / 'letters' / 'letter.txt').write_text('dear')
  assert 'is not empty and holds no export' in refused(
    'export', place / 'run', '--output', tmp_path / 'letters'
  )
  assert 'give another --output' in refused('export', place / 'run', '--output', place / 'run')
  assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
