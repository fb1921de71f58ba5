"""Word vectors: runs of every kind, stopped, logged and read."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from test_vectors import SENTENCES

from mmlm.cli import flags
from mmlm.cli.evaluate import evaluate
from mmlm.cli.export import export
from mmlm.cli.predict import predict
from mmlm.cli.report import report
from mmlm.cli.similarity import similarity as score_similarity
from mmlm.cli.train import train
from mmlm.config import load_config, override
from mmlm.pretrained.formats.vector_files import read_vectors
from mmlm.utils.errors import UserError
from mmlm.utils.run_dir import read_json, read_jsonl
from mmlm.word_vectors import similarity_scores
from mmlm.word_vectors.sparse_step import row_step
from mmlm.word_vectors.vector_experiment import VectorExperiment
from mmlm.word_vectors.vector_training import training_parts


def text_of(folder):
  path = folder / 'text.txt'
  path.write_text('\n'.join(' '.join(sentence) for sentence in SENTENCES))
  return path


@pytest.fixture(scope='module', params=['skipgram', 'skipgram:fasttext', 'skipgram:cbow', 'glove'])
def run(request, tmp_path_factory):
  """(the command line of a config, the folder of its finished run)"""
  folder = tmp_path_factory.mktemp('run')
  name, _, arg = request.param.partition(':')
  spec = f'configs/word_vectors/{name}.py:smoke,text={text_of(folder)}' + f',{arg}' * bool(arg)
  train(flags.Train(config=spec, workdir=str(folder / 'run')))
  return spec, folder / 'run'


@pytest.mark.parametrize(
  'run', ['skipgram:fasttext', 'glove'], indirect=True
)  # each rule of updates and each kind of batch
def test_a_run_that_was_stopped_ends_with_the_same_bits(run, tmp_path, capsys):
  spec, folder = run
  shutil.copytree(folder, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
  train(flags.Train(config=spec, workdir=str(tmp_path / 'run')))
  assert 'Resumed at step 3 of 6' in capsys.readouterr().out
  one, two = (
    VectorExperiment.of_run(place, {'evaluate.checkpoint': 'latest'}).trained_vectors()
    for place in (folder, tmp_path / 'run')
  )
  assert one[1] == two[1] == 6
  np.testing.assert_array_equal(one[0].array, two[0].array)


def test_a_run_is_logged_saved_scored_and_read(run, tmp_path, monkeypatch, capsys):
  spec, folder = run
  rows = read_jsonl(folder / 'metrics.jsonl')
  assert [row['step'] for row in rows if row['kind'] == 'valid'] == [3, 6] and all(
    np.isfinite(row['loss']) for row in rows
  )
  (tmp_path / 'pairs.txt').write_text(
    '\n'.join(f'w{i} w{i + 1} {i}' for i in range(6)) + '\nw1 nowhere 3\n'
  )
  (found,) = evaluate(
    flags.Evaluate(run=str(folder), settings={'evaluate.similarity': str(tmp_path)})
  )
  assert found['scores']['pairs']['n'] == 6 and found['scores']['pairs']['of'] == 7
  assert '6 of 7 known' in capsys.readouterr().out
  assert read_json(folder / 'scores' / f'similarity-{found["step"]}.json') == json.loads(
    json.dumps(found)
  )
  report(flags.Report(folders=[str(folder)]))
  assert (folder / 'report.html').is_file()
  export(
    flags.Export(
      run=str(folder),
      output=str(tmp_path / 'v.txt'),
      format=['glove'],
    )
  )
  read, (mine, _) = (
    read_vectors(str(tmp_path / 'v.txt')),
    VectorExperiment.of_run(folder, {}).trained_vectors(),
  )
  np.testing.assert_array_equal(read.array, mine.array)
  assert read.words == mine.words and mine.array.shape[1] == 8
  again = score_similarity(
    flags.Similarity(
      vectors=str(tmp_path / 'v.txt'),
      sets=str(tmp_path / 'pairs.txt'),
      restrict=0,
    )
  )
  assert again['scores'] == found['scores']
  with pytest.raises(UserError, match='this command does not apply'):
    predict(flags.Predict(run=str(folder), input='w1'))


def test_learning_learns(tmp_path):
  """Words that stand in the same places come near each other, whatever learns them."""
  draw = np.random.default_rng(1)
  text = '\n'.join(
    ' '.join(f'{kind}{draw.integers(4)}' for _ in range(12))
    for kind in draw.choice(['a', 'b'], 300)
  )
  (tmp_path / 'text.txt').write_text(text)
  for name in ('skipgram:smoke', 'skipgram:smoke,cbow', 'skipgram:smoke,fasttext', 'glove:smoke'):
    name, arg = name.split(':')
    spec = f'configs/word_vectors/{name}.py:{arg},text={tmp_path / "text.txt"}'
    config = override(
      load_config(spec),
      {'optimizer.learning_rate': '0.2', 'train.duration': '100 steps', 'train.batch_size': '512'}
      | ({} if name == 'glove' else {'model.head.subsample': '0.0'}),
    )
    experiment = VectorExperiment(config, tmp_path / f'{name}{arg}')
    parts, state = training_parts(experiment, str(tmp_path / 'text.txt'))
    step = jax.jit(functools.partial(row_step, options=parts.options))
    with parts.stream(0, 100) as batches:
      for batch in batches:
        state, metrics = step(state, batch)
    known = similarity_scores.UnitVectors(
      experiment.vectors_of(jax.tree.map(np.asarray, state.params))
    )
    cosines = known.array @ known.array.T
    same = np.array(
      [
        [one[0] == other[0] for other in experiment.tokenizer.words]
        for one in experiment.tokenizer.words
      ]
    )
    assert cosines[same].min() > cosines[~same].max(), name


@pytest.mark.parametrize(
  'settings, says',
  [
    ({'model.head.window': '0'}, 'model.head.window=0: expected 1 or more, and less than 256'),
    (
      {'model.head.micro_batch': '40'},
      r'model.head.micro_batch=40 does not divide by model.head.row=16',
    ),
    (
      {'train.batch_size': '100'},
      r'train.batch_size=100 does not divide by model.head.micro_batch=64',
    ),
    ({'optimizer.name': 'adamw'}, "optimizer.name of skip_gram: no 'adamw'"),
    (
      {'optimizer.clip_norm': '1.0'},
      'optimizer.clip_norm=1.0: does not apply',
    ),
    ({'parallel.strategy': 'pmap'}, 'on one device'),
    ({'parallel.strategy': 'mesh'}, 'on one device'),
    ({'tokenizer.min_frequency': '9999'}, r'no word occurs 9999 times or more'),
    (
      {'tokenizer.vocab_size': '1', 'model.head.subsample': '0.0'},
      'no sentence has two words of the vocabulary',
    ),
    ({'data.splits.train': 'nowhere.txt'}, 'nowhere.txt: No such file'),
  ],
)
def test_what_cannot_be_learned_is_reported(tmp_path, settings, says):
  (tmp_path / 'text.txt').write_text('a b\nc a\nd e\n' * 20)
  with pytest.raises(UserError, match=says):
    train(
      flags.Train(
        config=f'configs/word_vectors/skipgram.py:smoke,text={tmp_path / "text.txt"}',
        workdir=str(tmp_path / 'run'),
        settings=settings,
      )
    )
