"""LSTM language model with the regularisation of AWD-LSTM (Merity et al. 2018, 2 to 4), whose state may go on from batch to batch.

Axes: B batch, R decoding rows, T time, D width, W width of a layer, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.layers import Dropout
from mmlm.utils.errors import UserError


def _forget_little(key, shape, dtype=jnp.float32):
  """Bias of the gates: 1 for the forget gate (Jozefowicz et al. 2015), else 0."""
  width = shape[0] // 4
  return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class LstmLayer(nn.Module):
  """x [B, T, .] and the state (cell, hidden), each [B, W] float32 -> the state behind it, [B, T, W].

  `weight_drop` leaves out weights between hidden states, the same ones at all times (DropConnect; ibid., 2).
  """

  width: int
  weight_drop: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, state, x, train):
    given = nn.Dense(4 * self.width, dtype=self.dtype, bias_init=_forget_little, name='input')(
      x
    )  # all times at once
    weights = self.param('recurrent', nn.initializers.orthogonal(), (self.width, 4 * self.width))
    weights = Dropout(self.weight_drop)(weights, train).astype(self.dtype)

    def step(state, given):
      cell, hidden = state
      entered, kept, new, shown = jnp.split(
        (given + hidden.astype(weights.dtype) @ weights).astype(jnp.float32), 4, -1
      )
      cell = jax.nn.sigmoid(kept) * cell + jax.nn.sigmoid(entered) * jnp.tanh(new)
      hidden = jax.nn.sigmoid(shown) * jnp.tanh(cell)
      return (cell, hidden), hidden

    state, out = jax.lax.scan(step, state, given.swapaxes(0, 1))
    return state, out.swapaxes(0, 1).astype(self.dtype)


class LstmLanguageModel(nn.Module):
  """LSTM layers over tokens, without a memory.

  Dropout is variational, the same at all times of a batch (Gal & Ghahramani 2016): `input_dropout` of the embedded tokens, `layer_dropout`
  between layers, the model's dropout of the output; below 0 the first two are the model's as well. `embedding_dropout` leaves out whole
  words. When the collection 'carry' is mutable the state goes on from there and is left there.
  """

  dim: int
  vocab_size: int
  layers: int = 3
  hidden_dim: int = (
    0  # of all layers but the last, which has the width of the embedding; 0 = that width
  )
  weight_drop: float = 0.5
  embedding_dropout: float = 0.1
  input_dropout: float = -1.0
  layer_dropout: float = -1.0
  tied: bool = True
  dropout: float = 0.0
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None  # those of another part, or its own

  def setup(self):
    for name in ('weight_drop', 'embedding_dropout', 'input_dropout', 'layer_dropout'):
      if not getattr(self, name) < 1:
        raise UserError(f'model.head.{name}={getattr(self, name)}: expected less than 1.')
    # Rows as they are: plain SGD would move scaled ones D times as far as the rest.
    self.tokens = self.embeddings or TokenEmbedding(
      self.vocab_size, self.dim, self.dtype, scaled=False
    )
    self.layer = [LstmLayer(width, self.weight_drop, self.dtype) for width in self.widths]

    def rate(own):
      return self.dropout if own < 0 else own

    self.word_dropout = Dropout(self.embedding_dropout, shared=(1,))
    self.drop_input = Dropout(rate(self.input_dropout), shared=(1,))
    self.drop_between = Dropout(rate(self.layer_dropout), shared=(1,))
    self.drop_output = Dropout(self.dropout, shared=(1,))
    if self.tied:
      self.output = self.tokens
    else:
      self.output = TokenEmbedding(self.vocab_size, self.dim, self.dtype)

  @property
  def widths(self) -> list[int]:
    return [self.hidden_dim or self.dim] * (self.layers - 1) + [self.dim]

  @nn.nowrap
  def zero_state(self, rows: int) -> list:
    """What each layer starts from: (cell, hidden), zeros [B, W]."""
    return [(jnp.zeros((rows, width)), jnp.zeros((rows, width))) for width in self.widths]

  def __call__(self, tokens, memory=None, train=False):
    """Inputs [B, T] (the target shifted right) -> logits [B, T, V]."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(self, tokens, memory=None, train=False):
    """Inputs [B, T] -> [B, T, D], what the output layer sees."""
    if memory is not None:
      raise UserError(
        "model.head.name='lstm' reads text alone, without encoders; 'recurrent_decoder' attends to a memory."
      )
    carries = self.is_mutable_collection('carry')
    if carries:
      state = self.get_variable('carry', 'state', self.zero_state(len(tokens)))
    else:
      state = self.zero_state(len(tokens))
    x, state = self._run(tokens, state, train)
    if carries:
      self.put_variable('carry', 'state', state)
    return self.drop_output(x, train)

  def step(self, tokens, memory, step):
    """The tokens [R] -> logits [R, V]; the state stands in the collection 'cache', rows first."""
    x, state = self._run(
      tokens[:, None], self.get_variable('cache', 'state', self.zero_state(len(tokens))), False
    )
    self.put_variable('cache', 'state', state)
    return self.output.logits(x)[:, 0]

  def _run(self, tokens, state, train):
    kept = self.word_dropout(jnp.ones((self.vocab_size, 1)), train)  # [V, 1]
    x = self.tokens(tokens)
    x = self.drop_input(x * kept[tokens].astype(x.dtype), train)
    new = []
    for number, (layer, begun) in enumerate(zip(self.layer, state)):
      x = self.drop_between(x, train) if number else x
      ended, x = layer(begun, x, train)
      new.append(ended)
    return x, new
