"""Search over toy models whose cache holds the whole history: a row out of order changes the
numbers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmlm.decoding.next_tokens import nucleus, top_k
from mmlm.decoding.search import search
from mmlm.decoding.search_options import SearchOptions
from mmlm.utils.errors import UserError

PAD = 0
BOS = 1
EOS = 2
METHODS = ('greedy', 'sample', 'beam')


@functools.cache
def toy(seed, batch, vocabulary=5, length=8, width=12):
  """Parameters, one set an example: logits depend on every token so far, its place, and the
  example.
  """
  embed, out = (
    jax.random.normal(k, s)
    for k, s in zip(
      jax.random.split(jax.random.key(seed)),
      ((batch, length, vocabulary, width), (batch, width, vocabulary)),
    )
  )
  return {'embed': np.asarray(embed), 'out': np.asarray(out)}


def make_step(model):
  batch = len(model['out'])

  def step(tokens, cache):
    history = jax.lax.dynamic_update_slice_in_dim(
      cache['history'], tokens[:, None], cache['count'], 1
    )
    folded = history.reshape(batch, -1, history.shape[1])  # [B, K, T]
    places = jnp.arange(history.shape[1])
    seen = jnp.where(
      (places <= cache['count'])[:, None],
      model['embed'][jnp.arange(batch)[:, None, None], places, folded],
      0,
    )
    logits = jnp.einsum('bkd,bdv->bkv', jnp.tanh(seen.sum(2)), model['out'])
    return logits.reshape(len(tokens), -1), {'history': history, 'count': cache['count'] + 1}

  return step


@functools.partial(jax.jit, static_argnames='options')
def run_jit(model, options, **kw):
  batch, length = model['embed'].shape[:2]
  cache = {
    'history': jnp.full((batch * options.beams, length), PAD, jnp.int32),
    'count': jnp.array(0),
  }
  return search(make_step(model), cache, options, **{'prompt': jnp.full((batch, 1), BOS)} | kw)


def run(model, options, **kw):
  return jax.tree.map(np.asarray, run_jit(model, options, **kw))


def log_prob(model, b, tokens, prompt=(BOS,)):
  """Of a sequence given its prompt, in float64 without any cache."""
  total = 0.0
  history = list(prompt)
  for token in tokens:
    hidden = np.tanh(model['embed'][b, np.arange(len(history)), history].sum(0, dtype=np.float64))
    logits = hidden @ model['out'][b]
    total += logits[token] - np.log(np.exp(logits).sum())
    history.append(token)
  return total


def score(log_prob, length, alpha):
  return log_prob / ((5 + length) / 6) ** alpha


@functools.cache
def sequences(seed, batch, b, max_length):
  """Every sequence there is of the words 3 and 4: (cut, log-probability, tokens)."""
  heads = [h for n in range(max_length + 1) for h in itertools.product((3, 4), repeat=n)]
  found = [(len(h) == max_length, h if len(h) == max_length else (*h, EOS)) for h in heads]
  return [(cut, log_prob(toy(seed, batch), b, tokens), tokens) for cut, tokens in found]


def brute_force(seed, batch, b, options):
  """The same, best first: (cut, -score, tokens)."""
  return sorted(
    (cut, -score(log_prob, len(tokens), options.length_penalty), tokens)
    for cut, log_prob, tokens in sequences(seed, batch, b, options.max_length)
    if cut or len(tokens) >= options.min_length
  )


def listed(result, b):
  return [tuple(int(t) for t in row[:n]) for row, n in zip(result.tokens[b], result.lengths[b])]


@pytest.mark.parametrize(
  'alpha,n_best', [(-1.0, 24), (-1.0, 1), (0.0, 24), (0.6, 1), (3.0, 1), (3.0, 3)]
)
def test_wide_beam_is_brute_force(alpha, n_best):
  options = SearchOptions(max_length=4, beam_size=24, n_best=n_best, length_penalty=alpha)
  result = run(toy(0, 12), options)
  for b in range(12):
    expected = brute_force(0, 12, b, options)[:n_best]
    assert listed(result, b) == [tokens for *_, tokens in expected]
    np.testing.assert_allclose(result.scores[b], [-s for _, s, _ in expected], rtol=1e-5)


def test_brute_force_with_min_length_and_too_few_sequences():
  options = SearchOptions(max_length=3, min_length=3, beam_size=16, n_best=16)
  result = run(toy(1, 3), options)
  for b in range(3):
    expected = brute_force(1, 3, b, options)
    assert len(expected) == 12
    assert listed(result, b) == [tokens for *_, tokens in expected] + [()] * 4
  assert np.all(np.isneginf(result.scores[:, 12:])) and np.all(result.tokens[:, 12:] == PAD)


def test_any_of_several_end_tokens_ends_a_hypothesis():
  """Only the word 3 is left: a wide beam ranks all its repetitions with either end."""
  options = SearchOptions(
    max_length=3, beam_size=12, n_best=7, length_penalty=0.0, eos_ids=(EOS, 4)
  )
  result = run(toy(0, 3), options)
  for b in range(3):
    ended = [(3,) * n + (end,) for n in range(3) for end in (EOS, 4)]
    expected = sorted(ended, key=lambda tokens: -log_prob(toy(0, 3), b, tokens))
    assert listed(result, b) == [*expected, (3, 3, 3)]
  greedy = run(toy(0, 3), SearchOptions('greedy', max_length=7, eos_ids=(EOS, 4)))
  for b in range(3):
    (tokens,) = listed(greedy, b)
    assert not {EOS, 4} & set(tokens[:-1])


@pytest.mark.parametrize(
  'options',
  [
    SearchOptions('greedy', max_length=7),
    SearchOptions('sample', max_length=7, n_best=3, temperature=2.0),
    SearchOptions('sample', max_length=7, n_best=2, top_k=2, min_length=5),
    SearchOptions('beam', max_length=7, beam_size=3, n_best=3),
    SearchOptions('beam', max_length=7, beam_size=4, n_best=2, min_length=5, length_penalty=2.0),
  ],
  ids=['greedy', 'sample', 'sample-top-k', 'beam', 'beam-min-length'],
)
def test_results_are_well_formed_and_scored_by_their_own_tokens(options):
  """Rows of a narrow beam change places often: a cache that did not follow gives other
  log-probabilities.
  """
  model = toy(2, 16, vocabulary=9)
  result = run(model, options)
  assert result.tokens.dtype == jnp.int32 and result.tokens.shape == (16, options.n_best, 7)
  ended = 0
  for b in range(16):
    found = listed(result, b)
    for n, tokens in enumerate(found):
      assert EOS not in tokens[:-1] and not {PAD, BOS} & set(tokens)
      assert len(tokens) >= options.min_length and (tokens[-1] == EOS or len(tokens) == 7)
      assert np.all(result.tokens[b, n, len(tokens) :] == PAD)
      np.testing.assert_allclose(result.log_probs[b, n], log_prob(model, b, tokens), rtol=1e-4)
      np.testing.assert_allclose(
        result.scores[b, n],
        score(result.log_probs[b, n], len(tokens), options.length_penalty),
        rtol=1e-5,
      )
    order = [(tokens[-1] != EOS, -float(s)) for tokens, s in zip(found, result.scores[b])]
    assert order == sorted(order)
    ended += sum(not cut for cut, _ in order)
  assert ended


@pytest.mark.parametrize('alpha', [-1.0, 0.0, 3.0])
def test_beam_of_one_is_greedy_and_greedy_takes_the_likeliest(alpha):
  model = toy(3, 8)
  beam = run(model, SearchOptions('beam', max_length=7, beam_size=1, length_penalty=alpha))
  greedy = run(model, SearchOptions('greedy', max_length=7, length_penalty=alpha))
  jax.tree.map(np.testing.assert_array_equal, beam, greedy)
  for b in range(8):
    tokens = listed(greedy, b)[0]
    for n, token in enumerate(tokens):
      assert token == max((EOS, 3, 4), key=lambda t: log_prob(model, b, (*tokens[:n], t)))


def test_ties_go_to_the_lower_token():
  model = jax.tree.map(np.zeros_like, toy(0, 3))
  options = SearchOptions(max_length=2, min_length=2, beam_size=4, n_best=4)
  assert listed(run(model, options), 1) == [(3, EOS), (4, EOS), (3, 3), (3, 4)]
  assert listed(run(model, SearchOptions('greedy')), 2) == [(EOS,)]


@pytest.mark.parametrize('method', METHODS)
def test_an_example_does_not_depend_on_the_batch_around_it(method):
  options = SearchOptions(method, max_length=7, beam_size=3)
  model = toy(4, 6)
  keys = jax.random.split(jax.random.key(0), 6)
  whole = run(model, options, rng=keys)
  order = np.array([4, 2, 5])
  part = run(jax.tree.map(lambda x: x[order], model), options, rng=keys[order])
  active = np.isin(np.arange(6), order)
  masked = run(model, options, rng=keys, active=active)
  assert len(set(np.asarray(whole.lengths)[:, 0].tolist())) > 1  # they stop at different steps
  for other in (part.tokens, masked.tokens[order]):
    np.testing.assert_array_equal(other, whole.tokens[order])
  np.testing.assert_allclose(part.scores, whole.scores[order], rtol=1e-5)
  assert np.all(masked.lengths[~active] == 0) and np.all(masked.tokens[~active] == PAD)


@pytest.mark.parametrize('method', METHODS)
def test_prompts_of_any_length_without_another_trace(method):
  options = SearchOptions(method, max_length=4, beam_size=3)
  model = toy(5, 3)
  traces = []

  @jax.jit
  def prompted(prompt, prompt_length, rng):
    traces.append(1)
    arrays = jax.tree.map(jnp.asarray, model)
    return run_jit.__wrapped__(arrays, options, rng=rng, prompt=prompt, prompt_length=prompt_length)

  keys = jax.random.split(jax.random.key(1), 3)
  prompt = np.array([[BOS, 3, 4, 3], [BOS, 4, 4, 4], [BOS, 3, 3, 3]])
  for lengths in ([1, 3, 2], [4, 1, 3]):
    result = prompted(prompt, np.array(lengths), keys)
    for b, n in enumerate(lengths):
      alone = run(
        jax.tree.map(lambda x, b=b: x[b : b + 1], model),
        options,
        rng=keys[b : b + 1],
        prompt=prompt[b : b + 1, :n],
      )
      assert listed(alone, 0) == listed(result, b)
      expected = log_prob(model, b, listed(result, b)[0], prompt[b, :n])
      np.testing.assert_allclose(result.log_probs[b, 0], expected, rtol=1e-4)
  assert len(traces) == 1


def fixed_step(logits, calls=None):
  """The same logits after every history; `calls` collects one entry a step that is really run."""

  def step(tokens, cache):
    if calls is not None:
      jax.debug.callback(lambda: calls.append(1))
    return jnp.broadcast_to(logits, (len(tokens), len(logits))), cache

  return step


@pytest.mark.parametrize('method', METHODS)
def test_stops_when_nothing_can_change(method):
  """The end is so likely that nothing else can win: one step, not fifty; none without an active
  example.
  """
  calls = []
  step = fixed_step(jnp.array([0.0, 0, 50, 0, 0]), calls)
  options = SearchOptions(method, max_length=50, length_penalty=1.0)
  counted = jax.jit(
    lambda active: search(step, {}, options, prompt=np.full((2, 1), BOS), active=active)
  )
  for active, steps in (([True, True], 1), ([False, True], 2), ([False, False], 2)):
    counted(np.array(active))
    jax.effects_barrier()
    assert len(calls) == steps


@pytest.mark.parametrize(
  'alpha,n_best,table,expected',
  [
    # The end comes first, but a long sequence outdoes it, or the very next one where length is
    # punished.
    (
      3.0,
      1,
      {BOS: {EOS: 0.6, 3: 0.3, 4: 0.1}, 3: {5: 1}, 4: {5: 1}, 5: {6: 1}, 6: {7: 1}, 7: {EOS: 1}},
      [(3, 5, 6, 7, EOS)],
    ),
    (-1.0, 1, {BOS: {EOS: 0.38, 3: 0.5, 4: 0.12}, 3: {EOS: 1}, 4: {EOS: 1}}, [(3, EOS)]),
    # Two words must go on beside the end, although the beam is two and only one row is there to
    # grow.
    (
      0.0,
      2,
      {BOS: {EOS: 0.4, 3: 0.35, 4: 0.25}, 3: {5: 0.4, 6: 0.3, 7: 0.3}, 4: {EOS: 1}, 5: {EOS: 1}},
      [(EOS,), (4, EOS)],
    ),
    # An end that ranks third of a beam of two does not count, or short sequences would always be
    # found first.
    (
      0.0,
      1,
      {BOS: {3: 0.4, 4: 0.35, EOS: 0.25}, 3: {5: 0.5, 6: 0.5}, 4: {5: 0.5, 6: 0.5}, 5: {EOS: 1}},
      [(3, 5, EOS)],
    ),
  ],
)
def test_narrow_beam_keeps_what_can_still_win(alpha, n_best, table, expected):
  logits = np.full((8, 8), -30.0)
  for last, row in table.items():
    for token, p in row.items():
      logits[last, token] = np.log(p)
  options = SearchOptions(max_length=9, beam_size=2, n_best=n_best, length_penalty=alpha)

  def step(tokens, cache):
    return (jnp.array(logits)[tokens], cache)

  result = search(step, {}, options, prompt=np.array([[BOS]]))
  assert listed(result, 0) == expected


def draws(logits, n=4000, **kw):
  options = SearchOptions('sample', max_length=1, **kw)
  prompt = np.full((n, 1), BOS)
  return np.asarray(
    search(fixed_step(jnp.array(logits)), {}, options, prompt=prompt).tokens
  ).ravel()


@pytest.mark.parametrize('temperature', [0.5, 1.0, 3.0])
def test_frequencies_are_the_probabilities(temperature):
  logits = np.array([9.0, 9.0, 0.3, 1.2, -0.7, 0.8])
  expected = np.where(
    np.arange(6) < 2, 0, np.exp(logits / temperature)
  )  # padding and start are never drawn
  expected /= expected.sum()
  got = np.bincount(draws(logits, temperature=temperature), minlength=6) / 4000
  assert np.all(np.abs(got - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / 4000))


@pytest.mark.parametrize(
  'kw,allowed',
  [
    ({'top_k': 1}, {7}),
    ({'top_k': 3}, {7, 5, 2}),
    ({'top_p': 0.4}, {7}),
    ({'top_p': 0.6}, {7, 5}),
    ({'top_p': 0.95}, {7, 5, 2, 3}),
    ({'top_k': 3, 'top_p': 0.6}, {7, 5}),
    ({'top_k': 3, 'top_p': 0.83}, {7, 5}),
    ({'top_k': 3, 'top_p': 0.85}, {7, 5, 2}),
  ],
  ids=str,
)
def test_draws_stay_in_the_allowed_set_and_fill_it(kw, allowed):
  with np.errstate(divide='ignore'):
    logits = np.log([0.0, 0, 0.15, 0.07, 0.02, 0.25, 0.01, 0.5])
  logits[:2] = 20  # padding and start, which must take no place among the best either
  assert set(draws(logits, **kw).tolist()) == allowed


def test_nucleus_is_the_smallest_set_of_its_mass():
  logits = np.asarray(jax.random.normal(jax.random.key(0), (20, 1000))) * 3
  for top_p in (0.1, 0.9, 0.999):
    kept = np.isfinite(nucleus(jnp.array(logits), top_p))
    p = np.asarray(jax.nn.softmax(logits.astype(np.float64), -1))
    mass = np.where(kept, p, 0).sum(-1)
    least = np.where(kept, p, 1).min(-1)
    assert np.all(mass > top_p - 1e-6) and np.all(mass - least < top_p + 1e-6)
    assert np.all(least > np.where(kept, 0, p).max(-1))


def test_draws_repeat_with_the_key_and_differ_without_it():
  model = toy(6, 8, vocabulary=30)
  options = SearchOptions('sample', max_length=7, n_best=3)
  key = jax.random.key(3)
  first, again, other = (run(model, options, rng=k).tokens for k in (key, key, jax.random.key(4)))
  np.testing.assert_array_equal(first, again)
  assert np.any(first != other)
  assert np.any(first[:, 0] != first[:, 1])
  options = SearchOptions('sample', max_length=20, min_length=20)
  steps = search(fixed_step(jnp.zeros(5)), {}, options, prompt=np.full((4, 1), BOS)).tokens[:, 0]
  assert all(
    len(set(row.tolist())) > 1 for row in np.asarray(steps[:, :19])
  )  # each step draws anew
  options = SearchOptions('sample', max_length=7)
  same = jax.tree.map(lambda x: np.repeat(x[:1], 8, 0), model)
  assert len({tuple(t) for t in np.asarray(run(same, options, rng=key).tokens[:, 0]).tolist()}) > 1


@pytest.mark.parametrize('vocabulary', [7, 640, 1003])
@pytest.mark.parametrize('ties', [False, True])
def test_top_k_is_exact(vocabulary, ties):
  x = jax.random.normal(jax.random.key(vocabulary), (50, vocabulary))
  x = jnp.round(x * 2) if ties else x
  for ours, theirs in zip(top_k(x, 6), jax.lax.top_k(x, 6)):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
  'kw,word',
  [
    ({'method': 'beem'}, "'beam'"),
    ({'max_length': 0}, 'max_length'),
    ({'min_length': 30}, 'min_length'),
    ({'beam_size': 0}, 'beam_size'),
    ({'n_best': 0}, 'n_best'),
    ({'n_best': 5}, 'beam_size'),
    ({'method': 'greedy', 'n_best': 2}, 'n_best'),
    ({'method': 'sample', 'temperature': 0.0}, 'temperature'),
    ({'method': 'sample', 'top_p': 0.0}, 'top_p'),
    ({'method': 'sample', 'top_k': -1}, 'top_k'),
    ({'top_p': 0.9}, 'sample'),
    ({'eos_ids': ()}, 'eos_ids'),
    ({'eos_ids': (-1,)}, 'eos_ids'),
  ],
  ids=str,
)
def test_options_that_make_no_sense_are_refused(kw, word):
  with pytest.raises(UserError, match=word):
    SearchOptions(**kw)
