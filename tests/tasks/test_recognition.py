"""Runs on sounds that were given as features: they learn, are decoded with language models beside,
cascade, and say what is wrong.
"""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from program import done, read_jsonl, refused, write_jsonl

from mmlm.data.batching import Batch
from mmlm.data.filters import alignable, frames_needed, name_unknown
from mmlm.data.pipeline import Loader, Table
from mmlm.data.text import Texts
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.tasks import TASKS
from mmlm.training.losses import ctc_losses
from mmlm.utils.errors import UserError

EOS = SpecialTokens().eos_id
UNK = SpecialTokens().unk_id

LETTERS = 'abc '
CONFIG = '''"""Recognition of letters in features."""
from mmlm.config import default_config, parse_arg

HEADS = {
  'ctc': {'name': 'ctc'},
  'joint': {'name': 'joint', 'layers': 1, 'heads': 2},
  'translate': {'name': 'joint', 'layers': 1, 'heads': 2, 'ctc_labels': 'transcript'},
  'language_model': {'name': 'transformer_decoder', 'layers': 1, 'heads': 2},
  'text': {'name': 'transformer_decoder', 'layers': 1, 'heads': 2},
}
TASKS = {
  'translate': 'speech_translation', 'language_model': 'language_model', 'text': 'translation'
}


def get_config(arg=''):
  args = parse_arg(arg, head='ctc', steps=60, folder='.', train='good', valid='good')
  config = default_config()
  config.task = TASKS.get(args.head, 'recognition')
  config.data.name = 'manifest'
  train, valid = (f'{args.folder}/{name}.jsonl' for name in (args.train, args.valid))
  config.data.splits = {'train': train, 'valid': valid, 'test': (valid,)}
  config.data.dir = f'{args.folder}/data'
  config.data.train_ops = config.data.eval_ops = ()
  config.data.max_length = 48
  config.tokenizer = {
    'kind': 'char', 'source': '', 'vocab_size': 50, 'lowercase': True, 'min_frequency': 1
  }
  config.model.dim = 32
  config.model.dropout = 0.0
  encoders = {'audio': {
    'name': 'conformer', 'width': 8, 'subsampling': 2, 'channels': 8, 'layers': 1, 'heads': 2,
    'kernel': 3,
  }}
  if args.head == 'text':
    encoders = {'text': {'name': 'text_transformer', 'layers': 1, 'heads': 2}}
  config.model.encoders = {} if args.head == 'language_model' else encoders
  config.model.head = HEADS[args.head]
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup = '5 steps'
  config.train.duration = config.train.eval_every = f'{args.steps} steps'
  config.train.log_every = '20 steps'
  config.train.batch_size = config.evaluate.batch_size = 8
  config.train.label_smoothing = 0.0
  config.train.monitor = 'loss' if args.head == 'language_model' else 'cer'
  config.evaluate.metrics = ('cer', 'wer')
  config.evaluate.bootstrap_samples = 5
  config.evaluate.shuffled = False
  config.decoding.max_length = 12
  config.decoding.length_penalty = 0.0
  config.parallel.strategy = 'jit'
  return config
'''


def spoken(text: str, rng) -> np.ndarray:
  """[S, 8]: four rows or five of each letter, in noise, and two between letters."""
  rows = []
  for letter in text:
    rows += [np.eye(8)[LETTERS.index(letter)]] * rng.integers(4, 6) + [np.zeros(8)] * 2
  return (np.array(rows) + rng.normal(0, 0.05, (len(rows), 8))).astype(np.float32)


def write(folder, name='good', texts=None, **fields):
  """A manifest of sounds of texts; `fields` are functions of the text."""
  rng = np.random.default_rng(0)
  texts = texts or [
    a + b + ' ' + c for a, b, c in itertools.islice(itertools.product('abc', repeat=3), 1, 17, 2)
  ]
  lines = []
  for i, text in enumerate(texts):
    np.save(folder / f'{name}{i}.npy', spoken(text.lower().replace('z', 'a'), rng))
    lines.append(
      {'id': f'{name}{i}', 'audio': f'{name}{i}.npy', 'target': text, 'text': text}
      | {key: of(text) for key, of in fields.items()}
    )
  return write_jsonl(folder / f'{name}.jsonl', lines)


def train(folder, run, *flags, **arguments):
  (folder / 'config.py').write_text(CONFIG)
  spec = ','.join(f'{key}={value}' for key, value in ({'folder': folder} | arguments).items())
  return ['train', f'{folder}/config.py:{spec}', '--workdir', folder / run, *flags]


def scores(folder, run) -> dict:
  result = {}
  for path in (folder / run / 'scores').iterdir():
    result[path.stem] = {
      name: s['value'] for name, s in json.loads(path.read_text())['scores'].items()
    }
  return result


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A CTC run, a joint one and a language model with their vocabulary, all trained."""
  folder = tmp_path_factory.mktemp('runs')
  write(folder)
  for head in ('ctc', 'joint'):
    done(*train(folder, head, head=head))
  done(
    *train(
      folder,
      'lm',
      '--config.tokenizer.kind=run',
      f'--config.tokenizer.source={folder / "joint"}',
      head='language_model',
      steps=10,
    )
  )
  return folder


@pytest.mark.parametrize('run', ['ctc', 'joint'])
def test_a_handful_is_learned_by_heart(runs, run):
  """The vocabulary is that of the letters, and what is written is every letter."""
  (row,) = (row for row in read_jsonl(runs / run / 'metrics.jsonl') if row['kind'] == 'valid')
  assert row['cer'] == 0
  done('evaluate', runs / run)
  assert scores(runs, run)['good-60'] == {'cer': 0, 'wer': 0}
  (path,) = (runs / run / 'predictions').glob('good-60.jsonl')
  assert [row['hypothesis'] for row in read_jsonl(path)] == [
    row['references'][0] for row in read_jsonl(path)
  ]


@pytest.mark.parametrize('run', ['ctc', 'joint'])
def test_language_models_stand_beside_a_run(runs, run):
  """With a small weight what was learned stays; the scores are others."""
  beside = [
    f'--config.decoding.language_model={runs / "lm"}',
    '--config.decoding.language_model_weight=0.1',
    '--config.decoding.ngram=3',
    '--config.decoding.ngram_weight=0.1',
    '--config.decoding.max_length=10',
  ]
  if run == 'joint':
    weight = ['--config.decoding.ctc_weight=0.3']
  else:
    weight = []
  found = {}
  for name, flags in (('plain', []), ('beside', beside + weight)):
    done('evaluate', runs / run, *flags)
    found[name] = read_jsonl(runs / run / 'predictions' / 'good-60.jsonl')
  assert [row['hypothesis'] for row in found['plain']] == [
    row['hypothesis'] for row in found['beside']
  ]
  assert all(a['score'] != b['score'] for a, b in zip(found['plain'], found['beside']))


def test_what_cannot_stand_beside_a_run_is_refused(runs):
  lm = f'--config.decoding.language_model={runs / "lm"}'
  weight = '--config.decoding.language_model_weight=0.1'
  for run, flags, says in (
    ('joint', [weight], 'needs language_model'),
    (
      'joint',
      [weight, f'--config.decoding.language_model={runs / "nowhere"}'],
      'nowhere: not a run folder',
    ),
    (
      'joint',
      [weight, f'--config.decoding.language_model={runs / "ctc"}'],
      'expected a model without encoders',
    ),
    (
      'joint',
      [weight, lm, '--config.decoding.max_length=48'],
      'it reads less than 48 tokens, and decoding.max_length=48',
    ),
    ('ctc', ['--config.decoding.ctc_weight=0.5'], "decoding.ctc_weight=0.5: the head 'ctc' "),
    ('ctc', ['--config.decoding.method=sample'], "decoded by 'greedy' or 'beam'"),
  ):
    assert says in refused('evaluate', runs / run, *flags)


def test_another_vocabulary_is_refused(runs):
  write(runs, 'other', ['ab', 'bc', 'ca'])
  done(*train(runs, 'other_lm', head='language_model', steps=1, train='other', valid='other'))
  flags = [
    f'--config.decoding.language_model={runs / "other_lm"}',
    '--config.decoding.language_model_weight=0.1',
  ]
  assert 'it has another vocabulary. Train it with tokenizer.kind=run tokenizer.source=' in refused(
    'evaluate', runs / 'joint', *flags
  )


def test_a_cascade_reads_what_another_run_wrote(runs):
  done(*train(runs, 'text', head='text', steps=2))
  done('evaluate', runs / 'joint', '--greedy')
  written = runs / 'joint' / 'predictions' / 'good-60-greedy.jsonl'
  heard = write_jsonl(
    runs / 'heard.jsonl', [row | {'hypothesis': 'abc'} for row in read_jsonl(written)]
  )
  done('evaluate', runs / 'text', '--text_from', written)
  assert f'with the texts of {heard}' in done('evaluate', runs / 'text', '--text_from', heard)
  done('evaluate', runs / 'text')
  plain, cascade, changed = (
    [row['hypothesis'] for row in read_jsonl(runs / 'text' / 'predictions' / f'{name}.jsonl')]
    for name in (
      'good-2',
      'good-2-text_from_joint_good-60-greedy',
      f'good-2-text_from_{runs.parent.name}_heard',
    )
  )
  assert plain == cascade and len(set(changed)) == 1
  rows = read_jsonl(
    runs / 'text' / 'predictions' / f'good-2-text_from_{runs.parent.name}_heard.jsonl'
  )
  assert all(row['input'] == {'text': 'abc'} and row['references'] for row in rows)
  assert 'a - b' in done(
    'compare', runs / 'text', runs / 'text'
  )  # the cascades do not stand in its way
  missing = write_jsonl(runs / 'part.jsonl', read_jsonl(written)[1:])
  for argument, says in (
    (missing, "no text for the example 'good0'"),
    (runs / 'config.py', 'not a predictions file'),
    (runs / 'gone', 'No such file'),
  ):
    assert says in refused('evaluate', runs / 'text', '--text_from', argument)
  assert 'reads audio and no text' in refused('evaluate', runs / 'joint', '--text_from', written)


# What is said at the start


def test_texts_that_cannot_be_aligned_are_counted_and_named(tmp_path):
  write(tmp_path, texts=['ab c', 'ba', 'ca b', 'cc'])
  lines = read_jsonl(tmp_path / 'good.jsonl')
  lines[1]['target'] = 'ababababab'  # 14 rows at most, so 7 frames
  write_jsonl(tmp_path / 'good.jsonl', lines)
  said = done(*train(tmp_path, 'run', steps=2))
  assert (
    'good.jsonl: 1 of 4 examples have more labels than CTC can align and are left out (good1 needs '
    '10 frames'
    in said
    and ': good1.' in said
  )
  assert 'good.jsonl: 3 examples' in said
  for row in read_jsonl(tmp_path / 'run' / 'metrics.jsonl'):
    assert np.isfinite(row['loss'])
  for line in lines:
    line['target'] = 'abc' * 13
  write_jsonl(tmp_path / 'none.jsonl', lines)
  assert 'Choose a smaller subsampling' in refused(*train(tmp_path, 'other', train='none'))


def test_characters_outside_the_vocabulary_are_counted_and_named(tmp_path):
  write(tmp_path)
  write(tmp_path, 'valid', ['ab z', 'ab c', 'Za b'])
  said = done(*train(tmp_path, 'run', steps=2, valid='valid'))
  assert (
    "valid.jsonl: 2 of 3 examples hold characters outside the vocabulary, read as unknown: 'Zz' "
    '(valid0, valid2).' in said
  )
  assert 'good.jsonl: 8 of' not in said


def test_a_transcript_is_learned_beside_and_asked_for(tmp_path):
  write(tmp_path, transcript=lambda text: text[::-1])
  said = done(*train(tmp_path, 'run', head='translate', steps=2))
  assert '8 examples' in said
  assert 'no CTC branch beside a decoder that has learned the targets' in refused(
    'evaluate', tmp_path / 'run', '--config.decoding.ctc_weight=0.3'
  )
  write(tmp_path, 'without')
  assert "no example has a 'transcript'" in refused(
    *train(tmp_path, 'other', head='translate', train='without')
  )


# Parts


def test_frames_that_are_needed_are_those_of_the_loss():
  for labels in itertools.product((3, 4), repeat=3):
    needed = frames_needed(list(labels))
    for frames in (needed - 1, needed):
      mask = jnp.arange(6)[None] < frames
      _, counts = ctc_losses(
        jnp.zeros((1, 6, 5)), mask, jnp.array([labels]), jnp.ones((1, 3), bool)
      )
      assert (counts[0] > 0) == (frames >= needed)


def test_only_what_fits_is_left(capsys):
  table = Table(
    ['a', 'b', 'c'], np.arange(3), [[3, EOS]] * 3, [[]] * 3, transcripts=[[3, 3], [4], []]
  )
  left = alignable(table, table.transcripts, np.array([2, 1, 0]), 'x')
  assert (
    left.ids == ['b', 'c']
    and left.transcripts == [[4], []]
    and '1 of 3 examples' in capsys.readouterr().out
  )
  with pytest.raises(UserError, match='3 of 3'):
    alignable(table, [[3, 3]] * 3, np.zeros(3, int), 'x')


def test_unknown_characters_of_other_tokenizers_are_not_listed(capsys):
  source = [{'id': 'a', 'targets': ('ab e\u0301',), 'transcript': 'q b'}]
  for kind, says in (('char', "'qé' (a)"), ('word', '')):
    tokenizer = train_tokenizer(['ab b a'], kind)
    outputs = Texts(tokenizer)
    table = TASKS['recognition'].table(source, outputs, outputs)
    assert UNK in table.transcripts[0] and UNK in table.targets[0]
    name_unknown(table, source, tokenizer, 'x')
    assert says in capsys.readouterr().out


def test_characters_come_back_exactly():
  text = "it's  two words, näïve"
  tokenizer = train_tokenizer([text], 'char')
  assert tokenizer.decode(tokenizer.encode(text)) == text and ' ' in tokenizer.pieces


def test_a_batch_holds_transcripts_like_targets():
  outputs = Texts(train_tokenizer(['abc'], 'char'))
  source = [{'id': 'a', 'targets': ('ab',), 'transcript': 'c'}, {'id': 'b', 'targets': ('b',)}]
  table = TASKS['recognition'].table(source, outputs, outputs)
  batch = Loader(source, table, (), [], 3)(0, Batch(np.array([1, 0]), 4, 3))
  (c,) = outputs.tokenizer.encode('c')
  assert batch['transcript'].tolist() == [[0] * 4, [c, 0, 0, 0], [0] * 4] and batch[
    'transcript_mask'
  ].sum(1).tolist() == [0, 1, 0]
  assert table.lengths_of['transcript'].tolist() == [1, 0]
  decoded = TASKS['recognition'].table(source, outputs, outputs, with_targets=False)
  assert 'transcript' not in Loader(source, decoded, (), [], 3)(0, Batch(np.array([1, 0]), 4, 3))
