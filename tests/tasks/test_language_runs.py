"""Runs of language models as a person meets them: trained, scored, asked to write, taken over by
other tasks, refused.
"""

import json
import random
import shutil

import numpy as np
import pytest
from program import done, read_jsonl, refused, write_jsonl

from mmlm import config as configs
from mmlm.data.batching import Batch
from mmlm.experiment.experiment import Experiment
from mmlm.sweeps.together import Trial, train_trials
from mmlm.utils.pytree import flat

TINY = [
  '--config.model.dim=16',
  '--config.model.head.layers=1',
  '--config.train.batch_size=4',
  '--config.evaluate.batch_size=4',
  '--config.parallel.strategy=jit',
  '--config.train.duration=4 steps',
  '--config.train.eval_every=2 steps',
  '--config.evaluate.bootstrap_samples=5',
  '--config.train.log_every=2 steps',
]
TRANSFORMER = [*TINY, '--config.model.head.heads=2', '--config.tokenizer.min_frequency=1']


LANES = {
  'model.dim': '8',
  'model.head.layers': '1',
  'model.head.hidden_dim': '8',
  'train.batch_size': '4',
  'evaluate.batch_size': '4',
  'train.duration': '6 steps',
  'train.eval_every': '1 steps',
  'train.keep_latest': '6',
  'optimizer.name': 'sgd',
  'optimizer.warmup': '0 steps',
  'optimizer.schedule': 'constant',
  'optimizer.average_after': '1',
  'optimizer.weight_decay': '0.0',
  'train.patience': '0',
  'parallel.strategy': 'jit',
  'evaluate.metrics': "('bits_per_character',)",
}


def sentences(count):
  draw = random.Random(0)
  result = []
  for _ in range(count):
    result.append(
      ' '.join(draw.choice(['the', 'dog', 'runs', 'café', 'on']) for _ in range(draw.randint(1, 9)))
    )
  return result


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A text, and a language model of it."""
  folder = tmp_path_factory.mktemp('language')
  (folder / 'book.txt').write_text('\n'.join(sentences(60)) + '\n')
  done(
    'train',
    f'configs/language_model/text.py:text={folder / "book.txt"},'
    'documents=line,tokens=char,context=16',
    '--workdir',
    folder / 'lm',
    *TRANSFORMER,
  )
  return folder


def test_a_run_is_scored_over_the_whole_text(place):
  said = done('evaluate', place / 'lm')
  (score,) = [json.loads(path.read_text()) for path in (place / 'lm' / 'scores').iterdir()]
  (rows,) = [read_jsonl(path) for path in (place / 'lm' / 'predictions').iterdir()]
  held_out = sentences(60)[54:]
  assert [row['references'][0] for row in rows] == held_out and 'bits_per_character' in said
  characters = sum(len(text) + 1 for text in held_out)
  nats = sum(row['nats'] for row in rows)
  assert score['tokens'] == characters
  np.testing.assert_allclose(
    score['scores']['bits_per_character']['value'], nats / np.log(2) / characters
  )
  np.testing.assert_allclose(
    score['scores']['perplexity_word']['value'],
    np.exp(nats / sum(len(text.split()) + 1 for text in held_out)),
  )
  assert 'a - b +0.0000 [+0.0000, +0.0000]' in done('compare', place / 'lm', place / 'lm')
  assert 'Report: ' in done('report', place / 'lm')
  assert 'nats a token' in (place / 'lm' / 'report.html').read_text()
  assert [path.stem for path in (place / 'lm' / 'scores').iterdir()] == [
    f'book_90_-{score["step"]}'
  ]
  valid = []
  for row in read_jsonl(place / 'lm' / 'metrics.jsonl'):
    if row['kind'] == 'valid' and row['step'] == score['step']:
      valid.append(row)
  np.testing.assert_allclose(valid[0]['loss'], score['nats_per_token'], rtol=1e-5)


def test_it_is_exported_and_planned(place, tmp_path):
  said = done(
    'export', place / 'lm', '--output', tmp_path / 'out', '--config.decoding.method=greedy'
  )
  about = json.loads((tmp_path / 'out' / 'export.json').read_text())
  assert about['functions'].keys() == {'forward', 'decode'} and 'bit-identical to the run' in said
  assert all(found['largest_difference'] <= 1e-5 for found in about['functions'].values())
  assert about['functions']['forward']['inputs'].keys() >= {'inputs', 'segments', 'positions'}
  scored = []
  for folder in (place / 'lm', tmp_path / 'out'):
    scored.append(done('evaluate', folder).split('step ', 1)[1].split('Report')[0])
  assert scored[0] == scored[1]
  text = place / 'book.txt'
  book = f'configs/language_model/text.py:text={text},documents=line,tokens=char,context=16'
  argv = [
    'plan',
    f'{book},model=lstm',
    '--devices=2',
    '--mesh=data=2',
    *(
      f'--config.{key}={LANES[key]}'
      for key in LANES
      if key.startswith('model') or key == 'train.batch_size'
    ),
  ]
  assert 'fresh [4]' in done(*argv)
  assert 'choose a multiple of 3 (1 devices times train.accumulate=3)' in refused(
    *argv, '--config.train.accumulate=3'
  )


def test_it_writes_and_goes_on_with_what_it_was_given(place, tmp_path):
  argv = ['generate', place / 'lm', '--prompt', 'the café', '--max_length', '50', '--num', '2']
  said = done(*argv)
  first, second = said.split('--- 2 of 2\n')
  assert 'the café' in first and second.startswith('the café') and first.split('\n', 1)[1] != second
  assert done(*argv) == said != done(*argv, '--seed', '1')
  assert done('generate', place / 'lm', '--temperature', '0', '--max_length', '40') == done(
    'generate', place / 'lm', '--temperature', '0', '--max_length', '40', '--seed', '3'
  )
  assert "read as unknown: 'Q'" in done(
    'generate', place / 'lm', '--prompt', 'Q', '--max_length', '2'
  )
  assert '--temperature=-1.0: expected 0 or more' in refused(
    'generate', place / 'lm', '--temperature', '-1'
  )
  assert '--top_k and --top_p have no effect' in refused(
    'generate', place / 'lm', '--temperature', '0', '--top_k', '3'
  )
  assert 'use `./launch.sh generate' in refused('predict', place / 'lm', '--input', 'a')
  assert 'reads no input' in refused('ablate', place / 'lm')
  assert "'scaled': True" in refused(
    'export', place / 'lm', '--format=huggingface', '--output', tmp_path / 'gpt2'
  )


def test_its_decoder_starts_that_of_a_translation(place, tmp_path):
  mine = tmp_path / 'mine'
  for ending, turn in (('en', 1), ('de', -1)):
    mine.with_suffix(f'.{ending}').write_text(''.join(text[::turn] + '\n' for text in sentences(8)))
  rules = (
    "((r'encoders_text/embeddings/(.*)', r'head/tokens/\\1'), (r'head/position/.*', False), "
    "(r'head/.*cross.*', False), (r'head/.*', True), (r'.*', False))"
  )
  settings = {
    'tokenizer.kind': 'run',
    'tokenizer.source': str(place / 'lm'),
    'model.dim': '16',
    'model.head.layers': '1',
    'model.head.heads': '2',
    'model.encoders.text.layers': '1',
    'model.encoders.text.heads': '2',
    'train.start_from': str(place / 'lm'),
    'train.start_rules': rules,
    'data.max_length': '80',
    'data.buckets': '()',
    'parallel.strategy': 'jit',
    'model.shared_embeddings': 'True',
  }
  config = configs.override(
    configs.load_config(
      f'configs/translation/parallel.py:train={mine},valid={mine},test={mine},moses=False'
    ),
    settings,
  )
  experiment = Experiment(config, tmp_path / 'run')
  loader = experiment.data.loader(str(mine), experiment.data.table(str(mine), True), 4)
  params = flat(experiment.initial_params(loader(0, Batch(np.arange(4), 80, 4))))
  theirs = flat(Experiment.of_run(place / 'lm', {}).checkpoints().params(None)[0])
  np.testing.assert_array_equal(
    params['encoders_text/embeddings/table'], theirs['head/tokens/table']
  )
  same = [name for name in params if name.startswith('head/transformer') and 'cross' not in name]
  assert len(same) > 10
  for name in same:
    np.testing.assert_array_equal(params[name], theirs[name])
  assert any('cross' in name for name in params) and not any('cross' in name for name in theirs)


def test_trials_of_lanes_trained_together_are_their_lone_runs(place, tmp_path, capsys):
  """What is carried, and when the mean of the parameters begins, is each trial's own; also where a
  lone run goes on.
  """
  spec = (
    f'configs/language_model/text.py:text={place / "book.txt"},'
    'documents=line,tokens=char,context=8,model=lstm'
  )
  own = [{'optimizer.learning_rate': '0.3'}, {'optimizer.learning_rate': '60.0'}]
  config = configs.load_config(spec)
  trials = [
    Trial(configs.override(config, LANES | {'name': config.name} | some), tmp_path / f'run{i}')
    for i, some in enumerate(own)
  ]
  train_trials(trials)
  begun = []
  for line in capsys.readouterr().out.splitlines():
    if 'from here' in line or 'valid' in line:
      begun.append('from here on the mean' in line)
  assert any(begun)
  for i, some in enumerate(own):
    argv = [
      'train',
      spec,
      '--workdir',
      tmp_path / f'alone{i}',
      *(f'--config.{key}={value}' for key, value in (LANES | some).items()),
    ]
    said = done(*argv)
    shutil.rmtree(tmp_path / f'alone{i}' / 'checkpoints' / '6')
    done(*argv)
    assert ('from here on the mean' in said) == (i == 1)
    states = []
    for kind in (f'run{i}', f'alone{i}'):
      states.append(Experiment.of_run(tmp_path / kind, {}).checkpoints())
    for step in (1, 2, 3, 4):
      both = [flat(one.params(None, step)[0]) for one in states]
      for name, values in both[0].items():
        # A rate at which a run gets worse makes much of the last digits.
        np.testing.assert_allclose(
          values, both[1][name], atol=5e-3, rtol=5e-3, err_msg=f'{name}, step {step}'
        )
  assert 'optimizer.average_after' in refused(*argv[:-1], '--config.optimizer.average_after=2')


@pytest.fixture(scope='module')
def masked(place):
  spec = f'configs/language_model/masked.py:text={place / "book.txt"},layers=1,dim=16,context=32'
  done(
    'train',
    spec,
    '--workdir',
    place / 'masked',
    *[flag for flag in TINY if 'head' not in flag],
    '--config.data.max_length=32',
    '--config.data.buckets=()',
    '--config.tokenizer.vocab_size=300',
  )
  return place / 'masked'


def test_an_encoder_that_found_masked_tokens_starts_a_classifier(masked, tmp_path):
  said = done('evaluate', masked)
  assert 'perplexity_masked' in said and 'masked_accuracy' in said
  mine = write_jsonl(
    tmp_path / 'mine.jsonl',
    [
      {'id': str(i), 'text': text, 'label': ['negative', 'positive'][i % 2]}
      for i, text in enumerate(sentences(8))
    ],
  )
  settings = {
    'data.name': 'manifest',
    'data.splits.train': str(mine),
    'data.splits.valid': str(mine),
    'model.encoders.text.max_positions': '32',
    'data.max_length': '32',
    'data.buckets': '()',
    'parallel.strategy': 'jit',
  }
  config = configs.override(
    configs.load_config(f'configs/sentiment/low_data.py:start={masked},layers=1,dim=16'), settings
  )
  experiment = Experiment(config, tmp_path / 'run')
  loader = experiment.data.loader(str(mine), experiment.data.table(str(mine), True), 4)
  params = flat(experiment.initial_params(loader(0, Batch(np.arange(4), 32, 4))))
  theirs = flat(Experiment.of_run(masked, {}).checkpoints().params(None)[0])
  for name in (name for name in params if name.startswith('encoders_text')):
    np.testing.assert_array_equal(params[name], theirs[name])
  assert params['head/classes/kernel'].shape == (16, 2)


def test_what_cannot_be_learned_is_refused(place, tmp_path):
  book = place / 'book.txt'

  def argv(arguments, *more):
    return [
      'train',
      f'configs/language_model/text.py:text={book},{arguments}',
      '--workdir',
      tmp_path / 'run',
      *TRANSFORMER,
      *more,
    ]

  for words, says in (
    (
      argv(
        'tokens=char',
        '--config.data.stream=windows',
        '--config.data.max_length=5000',
        '--config.evaluate.stride=0',
      ),
      'and a window data.max_length=5000',
    ),
    (
      argv('tokens=word', '--config.tokenizer.min_frequency=999'),
      'tokenizer.min_frequency=999: no word of the training texts',
    ),
    (argv('tokens=char', '--config.data.stream=continuous'), "'continuous' is for the head 'lstm'"),
    (argv('tokens=char', '--config.data.stream=stream'), "data.stream: no 'stream'"),
    (argv('tokens=char', '--config.evaluate.stride=999'), 'evaluate.stride=999'),
    (
      argv('tokens=char', '--config.optimizer.average_after=2', '--config.train.ema_decay=0.9'),
      'choose one kind of average',
    ),
    (argv('tokens=char', '--config.train.monitor=bleu'), 'train.monitor'),
  ):
    assert says in refused(*words)
  (tmp_path / 'bad.txt').write_bytes(b'good\nb\xe4d\n')
  said = refused(
    'train',
    f'configs/language_model/text.py:text={tmp_path / "bad.txt"}',
    '--workdir',
    tmp_path / 'run',
    *TRANSFORMER,
  )
  assert 'bad.txt, line 2: byte 2 is no UTF-8' in said


def test_names_elsewhere_follow_the_groups_of_a_rule():
  from mmlm.utils.errors import UserError
  from mmlm.utils.pytree import renamed

  tree = {'a': {'x': 1, 'y': 2}, 'b': {'x': 3}}
  assert renamed(tree, (('a/(.)', r'c/\1'), ('b/.*', True)), 'rules') == {
    'a/x': 'c/x',
    'a/y': 'c/y',
    'b/x': 'b/x',
  }
  assert renamed(tree, (('b/.*', False), ('.*/(x|y)', r'z/\1')), 'rules') == {
    'a/x': 'z/x',
    'a/y': 'z/y',
  }
  with pytest.raises(UserError, match='does not go with'):
    renamed(tree, (('.*', r'c/\1'),), 'rules')
