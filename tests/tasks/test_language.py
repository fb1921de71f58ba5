"""Language models: state that goes on, documents apart, one pure step, evaluation of a whole text,
averages, writing.

Axes: B rows, T tokens of a row, N tokens of a text, V vocabulary.
"""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmlm.data.running_text import (
  Lanes,
  ListedSequences,
  StreamLoader,
  best_fit,
  read_running_text,
  sliding_windows,
)
from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.decoding.search import search
from mmlm.decoding.search_options import SearchOptions
from mmlm.evaluation.text_evaluator import Reading, TextEvaluator
from mmlm.inference.generation import StreamedText, TokenGenerator
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.fusion import FUSIONS
from mmlm.models.heads import HEADS
from mmlm.models.heads.lstm_language_model import LstmLayer
from mmlm.models.layers import Dropout
from mmlm.models.multimodal import MultimodalModel
from mmlm.parallel import Parallel
from mmlm.tasks import TASKS
from mmlm.tasks.text_generation import begin_decoder
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.loop import Keeper, Schedule
from mmlm.training.losses import token_losses
from mmlm.training.step import StepOptions, initial_state, train_step

BOS = SpecialTokens().bos_id
EOS = SpecialTokens().eos_id
UNK = SpecialTokens().unk_id

TASK = TASKS['language_model']
DOCUMENTS = ('abcab cab', 'ba', 'c', 'aabbcc abc', 'cba', 'b')
close = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-4)


@functools.cache
def text():
  tokenizer = train_tokenizer(DOCUMENTS, 'char', 20, exact=True)
  return read_running_text(
    [{'id': str(i), 'targets': (t,)} for i, t in enumerate(DOCUMENTS)], tokenizer, True, 'here'
  )


@functools.cache
def built(kind: str):
  """(model, parameters) of a small language model, its weights large enough to tell one token from
  another.
  """
  options = {
    'lstm': dict(name='lstm', layers=2, hidden_dim=6, weight_drop=0.3, embedding_dropout=0.2),
    'learned': dict(name='transformer_decoder', layers=1, heads=2, max_length=40),
    'rotary': dict(
      name='transformer_decoder',
      layers=2,
      heads=2,
      max_length=40,
      positions='rotary',
      output_bias=True,
    ),
  }[kind]
  head = HEADS[options.pop('name')](dim=8, vocab_size=8, **options)
  model = MultimodalModel({}, FUSIONS['concatenation'](dim=8), head)
  params = jax.jit(model.init)({'params': jax.random.key(0)}, {}, jnp.zeros((1, 4), jnp.int32))[
    'params'
  ]

  def noise(x):
    return np.random.default_rng(x.size).normal(0, 0.3, x.shape).astype(np.float32)

  return model, jax.tree.map(lambda x: np.asarray(x) + noise(x), params)


@functools.cache
def reader(kind: str):
  model, params = built(kind)
  return jax.jit(lambda inputs: jax.nn.log_softmax(model.apply({'params': params}, {}, inputs)))


def log_probs(kind: str, inputs) -> np.ndarray:
  """[T, V] behind each of some inputs, read in one go from nothing."""
  return np.asarray(
    reader(kind)(np.pad(np.asarray(inputs), (0, 40 - len(inputs)))[None])[0, : len(inputs)]
  )


def nats_in_one_row(kind: str, begin: int, end: int):
  """The nats of the tokens begin..end, read so."""
  return -log_probs(kind, text().inputs[begin:end])[
    np.arange(end - begin), text().tokens[begin:end]
  ]


def evaluator(kind, strategy='jit', **options):
  model, params = built(kind)
  parallel = Parallel(strategy)
  settings = {
    'stream': 'windows',
    'apart': False,
    'length': 8,
    'batch_size': 4,
    'stride': 0,
  } | options
  return TextEvaluator(model, TASK, parallel, Reading(**settings), whole=True), parallel.replicate(
    params
  )


# The LSTM


def test_the_equations_are_those_of_the_lstm():
  layer = LstmLayer(3)
  x = jax.random.normal(jax.random.key(1), (2, 4, 5))
  start = (jnp.ones((2, 3)), jnp.full((2, 3), 0.5))
  (cell, hidden), params = (
    start,
    jax.jit(layer.init, static_argnums=3)(jax.random.key(0), start, x, False),
  )
  assert params['params']['input']['bias'].tolist() == [0] * 3 + [1] * 3 + [0] * 6
  (last, _), out = jax.jit(lambda: layer.apply(params, start, x, False))()
  given = jax.tree.map(np.asarray, params['params'])

  def sigmoid(y):
    return 1 / (1 + np.exp(-y))

  for t in range(4):
    gates = (
      np.asarray(x)[:, t] @ given['input']['kernel']
      + given['input']['bias']
      + np.asarray(hidden) @ given['recurrent']
    )
    i, f, g, o = np.split(gates, 4, -1)
    cell = sigmoid(f) * np.asarray(cell) + sigmoid(i) * np.tanh(g)
    hidden = sigmoid(o) * np.tanh(cell)
    close(out[:, t], hidden)
  close(last, cell)


def test_shared_axes_are_dropped_as_one():
  x = jnp.ones((3, 50, 40))

  def drop(shared):
    return np.asarray(
      jax.jit(
        lambda: Dropout(0.5, shared).apply({}, x, True, rngs={'dropout': jax.random.key(0)})
      )()
    )

  locked = drop((1,))
  assert (
    (locked == locked[:, :1]).all()
    and 0.3 < (locked == 0).mean() < 0.7
    and len(np.unique(locked[:, 0], axis=0)) == 3
  )
  assert (drop((1, 2)) == drop((1, 2))[:, :1, :1]).all() and not (drop(()) == drop(())[:, :1]).all()


def test_weight_drop_changes_what_is_between_states_alone():
  layer = LstmLayer(4, weight_drop=0.5)
  x = jax.random.normal(jax.random.key(1), (2, 3, 5))
  zero = (jnp.zeros((2, 4)), jnp.zeros((2, 4)))
  params = jax.jit(layer.init, static_argnums=3)(jax.random.key(0), zero, x, False)
  apply = jax.jit(
    lambda train, key: layer.apply(params, zero, x, train, rngs={'dropout': jax.random.key(key)})[
      1
    ],
    static_argnums=0,
  )

  def run(train, key):
    return np.asarray(apply(train, key))

  close(run(True, 1)[:, 0], run(False, 1)[:, 0])  # no state yet
  assert (
    np.abs(run(True, 1)[:, 1:] - run(False, 1)[:, 1:]).max()
    > 1e-3
    < np.abs(run(True, 1)[:, 1:] - run(True, 2)[:, 1:]).max()
  )


# State that goes on


@pytest.mark.parametrize('strategy', ['jit', 'pmap', 'mesh'])
def test_lanes_give_the_nats_of_one_long_row(strategy):
  total = len(text().tokens)
  rows = 8
  lane = -(-total // rows)
  expected = np.concatenate(
    [nats_in_one_row('lstm', b, min(b + lane, total)) for b in range(0, total, lane)]
  )
  run, params = evaluator('lstm', strategy, stream='continuous', length=2, batch_size=rows)
  close(run.nats(params, text()), expected)


@functools.cache
def compiled(strategy: str, accumulate: int, averages: bool):
  """`averages`: a program is compiled for one structure of states."""
  model, _ = built('lstm')

  def loss(params, batch, rng):
    return TASK.loss(model, params, batch, 0.0, None)  # each device has its own dropout

  options = StepOptions(optax.sgd(0.5), loss, accumulate)
  parallel = Parallel(strategy)
  return (
    parallel,
    options,
    parallel.step(lambda state, batch: train_step(state, batch, options), accumulate),
  )


def lane_steps(
  strategy='jit', accumulate=1, steps=6, state=None, start=0, averages=False, batch_size=8
):
  model, params = built('lstm')
  plan = Lanes(text(), 2, batch_size, seed=1)
  averages = averages or state is not None and bool(jax.tree.leaves(state.averaged))
  loader, (parallel, options, step) = (
    StreamLoader(text(), plan),
    compiled(strategy, accumulate, averages),
  )

  def begin():
    return initial_state(params, options, 0, TASK.first_carry(model, batch_size), averages)

  state = parallel.place(state if state is not None else begin())
  losses = []
  for number in range(start, steps):
    state, metrics = step(state, loader(number, plan[number]))
    losses.append(float(metrics['loss']))
  return jax.device_get(parallel.unreplicate(state)), losses


def test_the_same_numbers_however_lanes_are_divided():
  expected, losses = lane_steps()
  for other in ({'strategy': 'pmap'}, {'strategy': 'mesh'}, {'accumulate': 2}):
    found, same = lane_steps(**other)
    close(losses, same)
    jax.tree.map(close, expected.params, found.params)
    jax.tree.map(close, expected.carry, found.carry)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.carry)) > 0.05


def test_a_stopped_run_goes_on_with_its_state_on_other_devices():
  expected, losses = lane_steps()
  half, _ = lane_steps(steps=3)
  again, rest = lane_steps(state=half, start=3)
  jax.tree.map(np.testing.assert_array_equal, expected, again)
  assert rest == losses[3:]
  for strategy in ('pmap', 'mesh'):
    elsewhere, _ = lane_steps(strategy, state=half, start=3)
    jax.tree.map(close, expected.params, elsewhere.params)
  forgetful, _ = lane_steps(
    state=half._replace(carry=jax.tree.map(np.zeros_like, half.carry)), start=3
  )
  assert (
    max(
      np.abs(a - b).max()
      for a, b in zip(jax.tree.leaves(expected.params), jax.tree.leaves(forgetful.params))
    )
    > 1e-4
  )


def test_a_fresh_lane_remembers_nothing():
  model, params = built('lstm')
  batch = StreamLoader(text(), Lanes(text(), 4, 2, 0))(0, Lanes(text(), 4, 2, 0)[0])
  carry = jax.tree.map(jnp.ones_like, TASK.first_carry(model, 2))
  run = jax.jit(lambda batch: TASK.token_nats(model, params, batch)['nats'])

  def nats(fresh):
    return run(batch | {'carry': carry, 'fresh': np.array(fresh)})

  clean = run({key: value for key, value in batch.items() if key != 'fresh'})
  close(nats([True, True]), clean)
  close(nats([True, False])[0], clean[0])
  assert np.abs(nats([True, False])[1] - clean[1]).max() > 1e-3


# Documents apart


@pytest.mark.parametrize('kind', ['learned', 'rotary'])
def test_packed_documents_are_read_as_if_alone(kind):
  borders = text().starts.tolist()
  alone = np.concatenate(
    [nats_in_one_row(kind, begin, end) for begin, end in zip(borders, borders[1:])]
  )
  run, params = evaluator(kind, stream='packed', apart=True, length=16, batch_size=2)
  close(run.nats(params, text()), alone)
  together, params = evaluator(kind, length=len(text().tokens), batch_size=1)
  found = together.nats(params, text())
  close(found, nats_in_one_row(kind, 0, len(text().tokens)))
  assert np.abs(found - alone).max() > 1e-3


def test_a_loss_is_the_mean_of_the_predicted_tokens():
  model, params = built('rotary')
  rows = best_fit(
    [
      span
      for a, b in zip(text().starts, text().starts[1:])
      for span in sliding_windows(int(a), int(b), 6, 2)
    ],
    12,
  )
  plan = ListedSequences(rows, 12, len(rows))
  batch = StreamLoader(text(), plan, apart=True)(0, plan[0])
  (total, weight), found = jax.jit(
    lambda: (TASK.loss(model, params, batch), TASK.token_nats(model, params, batch))
  )()
  nats = np.asarray(found['nats'])
  close(total, nats[batch['target_mask']].sum())
  assert weight == len(text().tokens)


def test_sliding_windows_see_what_stands_before():
  run, params = evaluator('learned', length=8, stride=3, batch_size=3)
  found = run.nats(params, text())
  spans = sliding_windows(0, len(text().tokens), 8, 3)
  for start, first, stop in spans:
    close(found[first:stop], nats_in_one_row('learned', start, stop)[first - start :])


def test_a_biased_output_is_one_column_more():
  layer = TokenEmbedding(6, 4, biased=True)
  draw = np.random.default_rng(0).normal
  x = draw(size=(3, 4)).astype(np.float32)
  params = {'table': draw(size=(6, 4)).astype(np.float32), 'bias': np.arange(6, dtype=np.float32)}

  @jax.jit
  def run():
    wide, table = layer.apply({'params': params}, x, method='layer')
    return layer.apply({'params': params}, x, method='logits'), token_losses(
      wide, table, np.array([1, 0, 5])
    )

  logits, losses = run()
  close(logits, x @ params['table'].T + params['bias'])
  close(losses, np.log(np.exp(logits).sum(1)) - np.asarray(logits)[np.arange(3), [1, 0, 5]])


# Averages


def test_the_mean_follows_until_it_begins_and_then_counts_every_iterate():
  before, _ = lane_steps(steps=2, averages=True)
  jax.tree.map(np.testing.assert_array_equal, before.ema, before.params)
  assert before.averaged == 0
  iterates = [before.params]
  state = before._replace(averaged=np.int32(1))
  for number in range(2, 5):
    state, _ = lane_steps(steps=number + 1, start=number, state=state)
    iterates.append(state.params)
  assert state.averaged == 4
  jax.tree.map(lambda mean, *each: close(mean, np.mean(each, 0)), state.ema, *iterates)


def test_averaging_begins_when_no_validation_has_been_better_for_a_while():
  begun = []
  loop = types.SimpleNamespace(
    parts=types.SimpleNamespace(schedule=Schedule(100, 1, 1, 0, 2)),
    meta={},
    checkpoints=types.SimpleNamespace(sign=-1),
  )
  for score in (5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 2.9):
    begun.append(Keeper._averaging_begins(loop, types.SimpleNamespace(averaged=np.int32(0)), score))
  # Worse than the best of those more than two before: 3.5 is better than 5.0, 3.2 than 4.0, 3.1 is
  # worse than 3.0.
  assert begun == [False, False, False, False, False, True, False]
  assert not Keeper._averaging_begins(loop, types.SimpleNamespace(averaged=np.int32(4)), 9.0)


def test_a_checkpoint_holds_what_is_carried_and_how_many_are_averaged(tmp_path):
  state, _ = lane_steps(steps=2, averages=True)
  state = state._replace(averaged=np.int32(7))
  with contextlib.closing(Checkpoints(tmp_path, higher_is_better=False)) as checkpoints:
    checkpoints.save(state, {}, {'loss': 1.0})
  again, _ = Checkpoints(tmp_path, higher_is_better=False).restore(jax.eval_shape(lambda: state))
  jax.tree.map(np.testing.assert_array_equal, again, state)
  assert again.averaged == 7 and jax.tree.structure(again) == jax.tree.structure(state)


# Writing


@pytest.mark.parametrize('kind', ['learned', 'lstm'])
def test_it_writes_what_the_search_finds(kind):
  model, params = built(kind)
  options = SearchOptions('greedy', max_length=20, min_length=20)
  step, cache, _ = begin_decoder(model, params, None, 1, options)
  wanted = jax.jit(lambda: search(step, cache, options, jnp.array([[BOS]])).tokens[0, 0])().tolist()
  # A state needs no context.
  writer = TokenGenerator(
    model,
    params,
    4 if kind == 'lstm' else 40,
    SearchOptions('greedy', max_length=1 << 30, min_length=1 << 30),
  )
  assert list(writer([BOS], jax.random.key(0), 20)) == wanted
  assert list(writer([BOS, *wanted[:5]], jax.random.key(0), 15)) == wanted[5:]


def test_beams_of_an_lstm_have_each_their_own_state():
  model, params = built('lstm')
  options = SearchOptions('beam', max_length=6, beam_size=3, n_best=3, length_penalty=0.0)
  step, cache, _ = begin_decoder(model, params, None, 1, options)
  found = jax.device_get(jax.jit(lambda: search(step, cache, options, jnp.array([[BOS]])))())
  for tokens, length, wanted in zip(found.tokens[0], found.lengths[0], found.log_probs[0]):
    tokens = tokens[:length]
    close(log_probs('lstm', [BOS, *tokens[:-1]])[np.arange(length), tokens].sum(), wanted)


def test_a_full_context_is_half_read_again():
  model, params = built('rotary')
  options = SearchOptions('sample', max_length=1 << 30, min_length=1 << 30, temperature=0.7)
  writer = TokenGenerator(model, params, 6, options)
  tokens = [BOS, *writer([BOS], jax.random.key(3), 30)]
  assert len(tokens) == 31 and EOS not in tokens and BOS not in tokens[1:]
  assert (
    tokens[1:]
    == list(writer([BOS], jax.random.key(3), 30))
    != list(writer([BOS], jax.random.key(4), 30))
  )
  greedy = TokenGenerator(
    model, params, 6, SearchOptions('greedy', max_length=1 << 30, min_length=1 << 30)
  )
  said = [BOS]
  context = [BOS]
  for token in greedy([BOS], jax.random.key(0), 20):
    if len(context) > 6:
      context = context[-3:]
    else:
      context = context
    assert token == UNK + log_probs('rotary', context)[-1, UNK:].argmax()
    said = [*said, token]
    context = [*context, token]


def test_an_end_stops_it():
  model, params = built('rotary')
  ends = jax.tree.map(np.copy, params)
  ends['head']['tokens']['bias'][EOS] = 100
  writer = TokenGenerator(model, ends, 6, SearchOptions('greedy', max_length=1 << 30))
  assert list(writer([BOS], jax.random.key(0), 20)) == []


@pytest.mark.parametrize('kind', ['bpe', 'word', 'char'])
def test_what_is_spelled_is_the_text(kind):
  if kind != 'word':
    written = 'naïve 日本語 of the  mat 😀'
  else:
    written = 'the mat of the cat'
  tokenizer = train_tokenizer([written], kind, 300, exact=True)
  tokens = tokenizer.encode(written)
  spelled = StreamedText(tokenizer, [])
  pieces = [spelled(token) for token in tokens]
  assert ''.join(pieces) == written and '\N{REPLACEMENT CHARACTER}' not in ''.join(pieces)
