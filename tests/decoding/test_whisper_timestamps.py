"""The rules of Whisper's times: what may be written after what."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.decoding.whisper_timestamps import Rules, apply_rules, initial_progress, update

FIRST_TIME = 14
NEVER = (2, 11, 12, 13)
RULES = Rules(
  eot=10,
  timestamp_begin=FIRST_TIME,
  max_initial_timestamp_index=3,
  suppress_tokens=NEVER,
  suppress_at_begin=(3, 10),
)
VOCABULARY = 24


def sample(rules, count=60, steps=30):
  """Returns lists of tokens that were sampled among those allowed, up to their end."""

  @jax.jit
  def step(progress, tokens, key):
    progress = update(progress, tokens, rules)
    logits = 3 * jax.random.normal(key, (count, VOCABULARY))
    return progress, apply_rules(logits, progress, rules)

  progress = initial_progress(jnp.ones(count, int), rules)
  tokens = jnp.full(count, 11)
  columns = []
  for key in jax.random.split(jax.random.key(0), steps):
    progress, logits = step(progress, tokens, key)
    assert np.isfinite(logits.max(-1)).all()  # something is always allowed
    tokens = logits.argmax(-1)
    columns.append(np.array(tokens))
  sequences = []
  for row in np.stack(columns, 1).tolist():
    end = row.index(rules.eot) + 1 if rules.eot in row else len(row)
    sequences.append(row[:end])
  return sequences


def kinds_of(tokens):
  """Returns a letter a token: T for a time, E for the end, x for text."""
  letters = []
  for token in tokens:
    if token >= FIRST_TIME:
      letters.append('T')
    else:
      letters.append('E' if token == RULES.eot else 'x')
  return ''.join(letters)


def test_times_stand_in_pairs_and_never_go_back():
  sequences = sample(RULES)
  for tokens in sequences:
    assert not set(NEVER) & set(tokens)
    assert FIRST_TIME <= tokens[0] <= FIRST_TIME + RULES.max_initial_timestamp_index
    times = [token for token in tokens if token >= FIRST_TIME]
    assert times == sorted(times)
    kinds = kinds_of(tokens)
    assert not kinds.startswith('TT')
    assert 'TTT' not in kinds
    assert 'xTx' not in kinds
  assert any('TT' in kinds_of(tokens) for tokens in sequences)
  assert len({tokens[0] for tokens in sequences}) > 1


def test_a_segment_with_text_takes_time():
  for tokens in sample(RULES):
    latest = 0
    for before, token in itertools.pairwise([RULES.eot, *tokens]):
      if token >= FIRST_TIME:
        if before < FIRST_TIME and latest:
          assert token > latest
        latest = token


def test_without_times_the_first_token_is_text_that_may_come_first():
  rules = dataclasses.replace(RULES, without_timestamps=True)
  first = {tokens[0] for tokens in sample(rules, steps=1)}
  assert not {*NEVER, 3, 10} & first


def test_all_times_together_outweigh_one_text():
  progress = initial_progress(jnp.array([1]), RULES)
  for token in (11, FIRST_TIME, 5):  # the prompt, a time, a text: both may follow
    progress = update(progress, jnp.array([token]), RULES)
  logits = jnp.full((1, VOCABULARY), -9.0).at[0, 4].set(1.0).at[0, 20:].set(0.0)
  assert int(apply_rules(logits, progress, RULES).argmax()) >= 20
  more_likely = logits.at[0, 4].set(2.0)
  assert int(apply_rules(more_likely, progress, RULES).argmax()) == 4
