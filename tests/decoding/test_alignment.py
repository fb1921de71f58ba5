"""Viterbi alignment of texts under CTC against every path, and what evaluation writes of it.

Axes: B batch, S frames, T tokens, V vocabulary.
"""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_ctc import BLANK, LENGTHS, WORDS, B, S, collapsed, frames_of, logits_of, mask_of
from test_joint import example_batch, setup_of

from mmlm.data.text import Texts
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer
from mmlm.decoding import ctc
from mmlm.decoding.alignment import align
from mmlm.decoding.search_options import SearchOptions
from mmlm.tasks.speech_to_text import SpeechToText

OPTIONS = SearchOptions('greedy', max_length=S)
OUTPUTS = Texts(train_tokenizer(['abc'], 'char'))
run = jax.jit(functools.partial(align, blank=BLANK))


def aligned(log_probs, texts, width=4):
  tokens = np.zeros((len(texts), width), np.int32)
  for i, text in enumerate(texts):
    tokens[i, : len(text)] = text
    tokens[i, len(text) :] = 5  # not read
  return jax.tree.map(np.asarray, run(log_probs, jnp.array(tokens), jnp.array([*map(len, texts)])))


def best_of_all(log_probs, text):
  """(log-probability of the likeliest path that writes `text`, first and last frame of each token):
  every path is tried.
  """

  def score(path):
    return sum(float(log_probs[t, label]) for t, label in enumerate(path))

  path = max(
    (p for p in itertools.product((BLANK, *WORDS), repeat=len(log_probs)) if collapsed(p) == text),
    key=score,
    default=None,
  )
  if path is None:
    return None
  runs = []
  start = 0
  for label, group in itertools.groupby(path):
    end = start + len([*group])
    runs += [(start, end - 1)] if label != BLANK else []
    start = end
  return score(path), runs


TEXTS = [(), (3,), (3, 4), (4, 4), (3, 3, 5), (5, 4, 5), (3, 4, 5, 3), (4, 4, 4, 4)]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('text', TEXTS)
def test_the_alignment_is_the_best_of_all_paths(seed, text):
  log_probs = frames_of(seed, OPTIONS)
  found = aligned(log_probs, [text] * B)
  for b in range(B):
    best = best_of_all(np.asarray(log_probs[b, : LENGTHS[b]], np.float64), text)
    places = [*zip(found.first[b].tolist(), found.last[b].tolist())]
    if best is None:  # fewer frames than the text needs
      assert found.log_prob[b] < ctc.LOG_ZERO / 2 and places == [(-1, -1)] * 4
      continue
    np.testing.assert_allclose(found.log_prob[b], best[0], rtol=1e-4, atol=1e-5)
    assert places == best[1] + [(-1, -1)] * (4 - len(text))


def test_padding_of_frames_and_of_texts_changes_nothing():
  texts = [(3, 4), (5,), (4,), ()]
  wide = np.full((B, S + 3, 6), 7, np.float32)
  wide[:, :S] = logits_of(1)
  longer = ctc.frame_log_probs(jnp.array(wide), jnp.array(mask_of(S + 3)), OPTIONS)
  plain = aligned(frames_of(1, OPTIONS), texts)
  padded = aligned(longer, texts, 7)
  for name in ('first', 'last'):
    np.testing.assert_array_equal(getattr(padded, name)[:, :4], getattr(plain, name))
  np.testing.assert_allclose(padded.log_prob, plain.log_prob, rtol=1e-5)


# What evaluation writes


def answered(setup, batch, align=True):
  task = SpeechToText((), align=align)
  answer = jax.jit(
    lambda batch: task.answer(
      setup.model, setup.params, batch, SearchOptions('greedy', max_length=8), jax.random.key(0)
    )
  )
  found = jax.tree.map(np.asarray, answer(batch))
  return found, [
    task.read({key: value[i] for key, value in found.items()}, OUTPUTS)[0] for i in range(3)
  ]


@pytest.mark.parametrize('head', ['ctc', 'joint'])
def test_pieces_lie_in_the_sound_one_after_the_other_whatever_the_padding(head):
  setup = setup_of(head)
  found, rows = answered(setup, example_batch())
  _, wide = answered(setup, example_batch(5, 22, 7))
  assert rows == [row | {'score': pytest.approx(row['score'], rel=1e-3)} for row in wide]
  for row, length in zip(rows, (16, 9, 13)):
    if 'alignment' not in row:
      assert head == 'joint' or not row['hypothesis']
      continue
    assert ''.join(text for text, *_ in row['alignment']) == row['hypothesis']
    places = [place for _, *places in row['alignment'] for place in places]
    assert places == sorted(places) and places[0] >= 0 and places[-1] < length
    assert all(
      first % 2 == 0 and (last % 2 == 1 or last == length - 1)
      for _, first, last in row['alignment']
    )  # subsampled by 2
  assert any('alignment' in row for row in rows)
  plain, without = answered(setup, example_batch(), align=False)
  assert set(found) - set(plain) == {
    'aligned_tokens',
    'aligned_frames',
    'aligns_transcript',
  } and not any('alignment' in row for row in without)


def test_a_head_whose_ctc_learns_transcripts_aligns_its_own():
  setup = setup_of('joint', ctc_labels='transcript')
  batch = example_batch(transcript=True)
  _, rows = answered(setup, batch)
  memory = setup.apply('encode', batch)
  log_probs = ctc.frame_log_probs(setup.apply('ctc_logits', memory), memory.mask, OPTIONS)
  options = SearchOptions('greedy', max_length=16)
  best = ctc.best_path(log_probs, options)
  texts = OUTPUTS.decode_batch(
    [row[:n] for row, n in zip(np.asarray(best.tokens[:, 0]), np.asarray(best.lengths[:, 0]))]
  )
  assert [row['transcript'] for row in rows] == texts and any(texts)
  assert [''.join(text for text, *_ in row.get('alignment', [])) for row in rows] == texts


def test_a_model_without_ctc_or_without_a_sound_aligns_nothing():
  batch = example_batch()
  setup = setup_of('ctc')
  task = SpeechToText((), align=True)
  assert 'aligned_frames' in jax.eval_shape(
    lambda: task.answer(setup.model, setup.params, batch, OPTIONS, jax.random.key(0))
  )

  class Reordered:  # a memory of other places than the sound
    head = setup.model.head
    encoders = {'audio': types.SimpleNamespace(subsampling=1)}
    apply = staticmethod(setup.model.apply)

  assert 'aligned_frames' not in jax.eval_shape(
    lambda: task.answer(Reordered, setup.params, batch, OPTIONS, jax.random.key(0))
  )


# Pieces


@pytest.mark.parametrize('kind', ['char', 'word', 'bpe', 'subword', 'unigram'])
def test_pieces_make_the_text(kind):
  text = 'two three, né sixteen'
  outputs = Texts(train_tokenizer([text] * 3, kind, 300 if kind == 'bpe' else 60))
  tokens = outputs.tokenizer.encode(text)
  pieces = outputs.decode_pieces(tokens)
  assert len(pieces) == len(tokens) and ''.join(pieces) == outputs.decode_batch([tokens])[0]


def test_bytes_wait_for_their_character():
  outputs = Texts(train_tokenizer(['ab'], 'bpe', 300))
  pieces = outputs.decode_pieces(outputs.tokenizer.encode('aé€'))
  assert pieces[-6:] == ['a', '', 'é', '', '', '€'] and not any(pieces[:-6])
