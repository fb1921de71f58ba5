"""LSTM language model with the regularisation of AWD-LSTM (Merity et al. 2018, 2 to 4).

Axes: B batch, R decoding beams, T time, D width, W width of a layer, V vocabulary.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from mmlm.models.attention import DecodeStep
from mmlm.models.embeddings import TokenEmbedding
from mmlm.models.heads.head import Decoder
from mmlm.models.layers import Dropout
from mmlm.models.sequence import Sequence
from mmlm.utils.errors import UserError
from mmlm.utils.options import option

State = tuple[Array, Array]  # cell and hidden state, each [B, W] float32


def _forget_bias_init(
  key: Array,
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
  """Returns the bias of the gates: 1 for the forget gate (Jozefowicz et al. 2015), else 0."""
  width = shape[0] // 4
  return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class LstmLayer(nn.Module):
  """An LSTM layer: (state, inputs [B, T, .]) -> (state after them, hidden states [B, T, W]).

  `weight_drop`: dropout of the recurrent weights, the same at all times (DropConnect; ibid., 2).
  """

  width: int
  weight_drop: float = 0.0
  dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    state: State,
    x: Array,
    train: bool,
  ) -> tuple[State, Array]:
    gates_of_inputs = nn.Dense(
      4 * self.width, dtype=self.dtype, bias_init=_forget_bias_init, name='input'
    )(x)  # all times at once
    weights = self.param('recurrent', nn.initializers.orthogonal(), (self.width, 4 * self.width))
    weights = Dropout(self.weight_drop)(weights, train).astype(self.dtype)

    def step(state: State, gates: Array) -> tuple[State, Array]:
      cell, hidden = state
      gates = (gates + hidden.astype(weights.dtype) @ weights).astype(jnp.float32)
      i, f, g, o = jnp.split(gates, 4, -1)
      cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
      hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
      return (cell, hidden), hidden

    state, hidden_states = jax.lax.scan(step, state, gates_of_inputs.swapaxes(0, 1))
    return state, hidden_states.swapaxes(0, 1).astype(self.dtype)


class LstmLanguageModel(Decoder):
  """LSTM layers over tokens, without a memory.

  Dropout is variational: the same at all times of a batch (Gal & Ghahramani 2016). When the
  collection 'carry' is mutable, the state starts from it and is stored in it.
  """

  produces: ClassVar[str] = 'running text'
  carries_state: ClassVar[bool] = True

  dim: int
  vocab_size: int
  layers: int = 3
  hidden_dim: int = option(0, 'of all layers but the last, which has width D; 0 = D')
  weight_drop: float = option(0.5, 'dropout of the recurrent weights')
  embedding_dropout: float = option(0.1, 'of whole words')
  input_dropout: float = option(-1.0, "of embedded tokens; below 0 = the model's dropout")
  layer_dropout: float = option(-1.0, "between layers; below 0 = the model's dropout")
  tied: bool = option(True, 'the output layer is the embedding table')
  dropout: float = 0.0
  dtype: str = 'float32'
  embeddings: TokenEmbedding | None = None  # shared with another part; None = of this decoder

  def setup(self) -> None:
    self._check()
    # Not scaled: plain SGD would move scaled embeddings D times as far as the rest.
    self.tokens = self.embeddings or TokenEmbedding(
      self.vocab_size, self.dim, self.dtype, scaled=False
    )
    self.layer = [LstmLayer(width, self.weight_drop, self.dtype) for width in self.widths]
    self.word_dropout = Dropout(self.embedding_dropout, shared=(1,))
    self.drop_input = Dropout(self._rate(self.input_dropout), shared=(1,))
    self.drop_between = Dropout(self._rate(self.layer_dropout), shared=(1,))
    self.drop_output = Dropout(self.dropout, shared=(1,))
    if self.tied:
      self.output = self.tokens
    else:
      self.output = TokenEmbedding(self.vocab_size, self.dim, self.dtype)

  @nn.nowrap
  def _check(self) -> None:
    dropouts = {
      'weight_drop': self.weight_drop,
      'embedding_dropout': self.embedding_dropout,
      'input_dropout': self.input_dropout,
      'layer_dropout': self.layer_dropout,
    }
    for name, value in dropouts.items():
      if not value < 1:
        raise UserError(f'model.head.{name}={value}: expected less than 1.')

  @nn.nowrap
  def _rate(self, value: float) -> float:
    if value < 0:
      return self.dropout
    return value

  @property
  def widths(self) -> list[int]:
    """The width of each layer."""
    return [self.hidden_dim or self.dim] * (self.layers - 1) + [self.dim]

  @nn.nowrap
  def zero_state(self, batch_size: int) -> list[State]:
    """Returns the state of each layer before the first token: zeros [B, W]."""
    states = []
    for width in self.widths:
      shape = (batch_size, width)
      states.append((jnp.zeros(shape), jnp.zeros(shape)))
    return states

  def __call__(
    self,
    tokens: Array,
    memory: Sequence | None = None,
    train: bool = False,
  ) -> Array:
    """Returns logits [B, T, V] for inputs [B, T], the target shifted right."""
    return self.output.logits(self.hidden(tokens, memory, train))

  def hidden(
    self,
    tokens: Array,
    memory: Sequence | None = None,
    train: bool = False,
  ) -> Array:
    """Returns the hidden states [B, T, D] that the output layer reads, for inputs [B, T]."""
    if memory is not None:
      raise UserError(
        "model.head.name='lstm' reads text alone, without encoders; 'recurrent_decoder' attends to "
        'a memory.'
      )
    state = self.zero_state(len(tokens))
    carries = self.is_mutable_collection('carry')
    if carries:
      state = self.get_variable('carry', 'state', state)
    x, state = self._run(tokens, state, train)
    if carries:
      self.put_variable('carry', 'state', state)
    return self.drop_output(x, train)

  def step(
    self,
    tokens: Array,
    memory: Sequence | None,
    step: DecodeStep,
  ) -> Array:
    """Returns logits [R, V] for the tokens [R]; the state is in the collection 'cache'."""
    state = self.get_variable('cache', 'state', self.zero_state(len(tokens)))
    x, state = self._run(tokens[:, None], state, False)
    self.put_variable('cache', 'state', state)
    return self.output.logits(x)[:, 0]

  def _run(
    self,
    tokens: Array,
    states: list[State],
    train: bool,
  ) -> tuple[Array, list[State]]:
    word_mask = self.word_dropout(jnp.ones((self.vocab_size, 1)), train)  # [V, 1]
    x = self.tokens(tokens)
    x = self.drop_input(x * word_mask[tokens].astype(x.dtype), train)
    new_states = []
    for number, (layer, state) in enumerate(zip(self.layer, states)):
      if number:
        x = self.drop_between(x, train)
      state, x = layer(state, x, train)
      new_states.append(state)
    return x, new_states
