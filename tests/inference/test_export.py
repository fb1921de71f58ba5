"""Exported models give what the run gives."""

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
from mmlm.inference import model_export
from mmlm.training.exported_weights import is_export, read_weights
from mmlm.utils.errors import UserError
from mmlm.utils.pytree import flat

CONFIG = 'configs/translation/numerals.py:modalities=text,smoke'
SMALL = [
  '--config.parallel.strategy=jit',
  '--config.evaluate.bootstrap_samples=5',
  '--config.evaluate.shuffled=False',
  '--config.decoding.beam_size=2',
]
FILES = {
  'config.json',
  'tokenizer.json',
  'environment.json',
  'model.safetensors',
  'forward.stablehlo',
  'decode.stablehlo',
  'export.json',
}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with an evaluated run, its export, and what `export` printed."""
  folder = tmp_path_factory.mktemp('export')
  preparation.prepare('numerals/tiny', None, folder / 'data')
  data = f'--config.data.dir={folder / "data"}'
  done('train', CONFIG, '--workdir', folder / 'run', data, *SMALL)
  output = done('export', folder / 'run', '--output', folder / 'export')
  (folder / 'output').write_text(output)
  done('evaluate', folder / 'run')
  return folder


@pytest.fixture
def copy(place, tmp_path):
  shutil.copytree(place / 'export', tmp_path / 'copy')
  return tmp_path / 'copy'


def test_an_export_has_its_files_and_describes_its_functions(place):
  export = place / 'export'
  output = (place / 'output').read_text()
  about = json.loads((export / 'export.json').read_text())
  functions = about['functions']
  assert {path.name for path in export.iterdir()} == FILES
  assert is_export(export)
  assert not is_export(place / 'run')
  assert about['step'] == 6
  assert functions.keys() == {'forward', 'decode'}
  assert functions['forward']['inputs'].keys() >= {'text', 'text_mask', 'target', 'weight'}
  assert functions['decode']['inputs'].keys() == {'text', 'text_mask', 'weight'}
  assert all(function['largest_difference'] <= 1e-5 for function in functions.values())
  assert all(function['file'] in output for function in functions.values())
  assert 'largest difference to the run' in output
  assert 'bit-identical to the run' in output


def test_safetensors_hold_the_parameters_by_path(place):
  params, step = Experiment.of_run(place / 'run', {}).trained_params()
  weights = load_file(place / 'export' / 'model.safetensors')
  assert step == 6
  assert weights.keys() == flat(params).keys()
  for name, leaf in flat(params).items():
    np.testing.assert_array_equal(weights[name], leaf)


def test_an_export_predicts_and_is_evaluated_like_its_run(place, copy, tmp_path):
  lines = tmp_path / 'lines.txt'
  lines.write_text('twenty-three\nfour\n')
  of_export = done('predict', place / 'export', '--input', lines)
  assert of_export == done('predict', place / 'run', '--input', lines)
  done('evaluate', copy)
  (path,) = (place / 'run' / 'predictions').iterdir()
  assert read_jsonl(copy / 'predictions' / path.name) == read_jsonl(path)


def test_an_exported_function_decodes_like_the_run(place):
  """Calls the function from the files alone, as another program would."""
  weights = load_file(place / 'export' / 'model.safetensors')
  path = place / 'export' / 'decode.stablehlo'
  exported = jax_export.deserialize(bytearray(path.read_bytes()))
  experiment = Experiment.of_run(place / 'run', {'parallel.strategy': 'jit'})
  batch = model_export.batches_of(experiment)['decode']
  params, _ = experiment.trained_params()
  decode = jax.jit(model_export.functions_of(experiment)['decode'])

  def texts(outputs):
    tokens = np.asarray(outputs['tokens'])[batch['weight'] > 0]
    return [experiment.data.texts.outputs.decode_batch(beams)[0] for beams in tokens]

  hypotheses = texts(exported.call(weights, batch))
  assert len(hypotheses) > 1
  assert hypotheses == texts(decode(params, batch))


def test_functions_of_another_model_are_an_error(place, tmp_path, monkeypatch):
  export_function = model_export._export_function

  def export_scaled(fn, *arguments):
    def scaled(weights, batch):
      return jax.tree.map(lambda x: x * 1.001, fn(weights, batch))

    return export_function(scaled, *arguments)

  monkeypatch.setattr(model_export, '_export_function', export_scaled)
  message = refused('export', place / 'run', '--output', tmp_path / 'export')
  assert "forward.stablehlo: its 'logits' differ from those of the run" in message


@pytest.mark.parametrize(
  'output, expected, is_same',
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
def test_outputs_are_the_same_within_rounding(output, expected, is_same):
  outputs = {'x': np.array(output)}, {'x': np.array(expected)}
  if is_same:
    assert model_export.largest_difference('f', *outputs) < 1e-5
  else:
    with pytest.raises(UserError, match="its 'x' differ"):
      model_export.largest_difference('f', *outputs)


def test_an_export_has_no_other_checkpoints(copy):
  message = refused('predict', copy, '--input', 'four', '--config.evaluate.checkpoint=3')
  assert 'cannot choose another' in message


def test_damaged_or_unexpected_arrays_are_refused(copy):
  params, _ = read_weights(copy)
  with pytest.raises(UserError, match=r'absent -> \(3,\)'):
    read_weights(copy, params | {'more': np.zeros(3, np.float32)})
  path = copy / 'model.safetensors'
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(content)
  assert 'checksum' in refused('predict', copy, '--input', 'four')


def test_an_export_cannot_be_trained(place, copy):
  before = {path.name: path.read_bytes() for path in copy.iterdir()}
  data = f'--config.data.dir={place / "data"}'
  message = refused('train', CONFIG, '--workdir', copy, data, *SMALL)
  assert 'holds an exported model, which cannot be trained' in message
  assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_folders_that_hold_something_else_are_refused(place, tmp_path):
  (tmp_path / 'letter.txt').write_text('dear')
  message = refused('export', place / 'run', '--output', tmp_path)
  assert 'is not empty and holds no export' in message
  message = refused('export', place / 'run', '--output', place / 'run')
  assert 'choose another --output' in message
