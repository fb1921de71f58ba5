"""What every task states about itself; the rest of the program never compares names of tasks.

Axes: B batch, T time or labels of an example, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from ml_collections import ConfigDict

from mmlm.data.pipeline import Table
from mmlm.data.text import Texts
from mmlm.decoding.score_fusion import NO_FUSION, Fusion
from mmlm.decoding.search_options import SearchOptions
from mmlm.models.multimodal import MultimodalModel

Batch = dict[str, jax.Array]


class Pipeline(NamedTuple):
  """The experiment and the commands of a task whose model is not built of encoders and a head."""

  experiment: Callable[..., Any]  # (config, folder) -> its experiment
  training_parts: Callable[..., tuple]  # (experiment, split) -> (loop.Parts, TrainState)
  evaluate: Callable[..., list[dict]]  # (run, splits, settings, greedy, text_from) -> scores
  export: Callable[..., None]  # (run, output, format, settings)
  export_formats: tuple[str, ...]
  commands: tuple[str, ...]  # that apply to the task


class Measure(NamedTuple):
  """What single predictions are graded by in reports."""

  name: str
  higher_is_better: bool


class Grade(NamedTuple):
  """The grade of one prediction.

  Attributes:
    exact: whether the prediction equals its reference.
    value: of the task's `measure`.
    summary: the value with its name, as a report prints it.
  """

  exact: bool
  value: float
  summary: str


class Task:
  """A task; its subclasses are dataclasses, registered in TASKS by a line each.

  Attributes:
    metrics: scores of `evaluate`, unless evaluate.metrics names others.
    uses: what a head may produce for it (`Head.produces`).
    answers: the field of an example that is learned.
  """

  metrics: tuple[str, ...]
  uses: tuple[str, ...]
  answers: str

  # None: the pipeline of mmlm.experiment
  pipeline: ClassVar[Pipeline | None] = None
  # whether a sweep may train several trials as one program
  trains_vectorised: ClassVar[bool] = True
  # whether a model without encoders is an error
  needs_encoders: ClassVar[bool] = True
  # whether answers are texts, which a search writes token by token
  writes_text: ClassVar[bool] = False
  # what reports grade single predictions by
  measure: ClassVar[Measure] = Measure('word F1', higher_is_better=True)
  # whether reports mark the words in which an answer differs from its reference
  compares_words: ClassVar[bool] = False
  # whether reports show what the decoder attends to
  shows_attention: ClassVar[bool] = False
  # whether a CTC branch aligns the words of answers with the sound
  aligns_speech: ClassVar[bool] = False
  # whether `evaluate` prints the confusions of classes
  shows_confusions: ClassVar[bool] = False
  # the label of the button of the demo page; '' for a task that the demo does not show
  verb: ClassVar[str] = ''

  # Used by commands

  def continues_text(self, modalities: Sequence[str]) -> bool:
    """Returns whether a model of these modalities scores and continues plain text."""
    return False

  def transcribes(self, modalities: Sequence[str]) -> bool:
    """Returns whether a model of these modalities writes the text of sounds."""
    return self.writes_text and tuple(modalities) == ('audio',)

  def removable(self, modalities: Sequence[str]) -> list[str]:
    """Returns the modalities that an ablation removes from the examples.

    Text is kept: most tasks cannot do without it, such as translation.
    """
    return [modality for modality in modalities if modality != 'text']

  def value_range(self, head: ConfigDict) -> tuple[float, float] | None:
    """Returns the lowest and the highest answer if answers are numbers, by the head's options."""
    return None

  def smoke(self, config: ConfigDict) -> ConfigDict:
    """Returns the small form of a config: generated data, small parts, seconds on a CPU."""
    raise NotImplementedError

  # Used by reports

  def grade(self, predictions: list[dict]) -> list[Grade]:
    """Returns the grade of each prediction of a file, by `measure`."""
    raise NotImplementedError

  def displayed(self, prediction: dict) -> dict:
    """Returns a prediction as reports show it."""
    return prediction

  # Data

  def outputs(self, head: ConfigDict, texts: Texts) -> Any:
    """Returns what encodes and decodes the answers, by the head's options."""
    raise NotImplementedError

  def texts_to_learn(self, source: Sequence[dict]) -> dict[str, list[str]]:
    """Returns the texts that a tokenizer is trained on: {'text': [...], 'target': [...]}."""
    raise NotImplementedError

  def table(
    self,
    source: Sequence[dict],
    inputs: Texts,
    outputs: Any,
    with_targets: bool = True,
  ) -> Table:
    """Returns the encoded examples of a source; without targets, one entry an example."""
    raise NotImplementedError

  def references(self, example: dict) -> list[list[str]]:
    """Returns the reference answers of each part of an example; most tasks have one part."""
    raise NotImplementedError

  # Training and prediction

  def loss(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    label_smoothing: float = 0.0,
    rng: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Returns the sum of the losses of a batch and the sum of their weights, for training.

    Args:
      rng: key of the dropout masks; None trains without dropout.
    """
    raise NotImplementedError

  def losses(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns loss and weight of each example, [B] and [B], without dropout."""
    raise NotImplementedError

  def summary(self, loss: float) -> dict[str, float]:
    """Returns the scores of validation that follow from the mean loss, which is one of them."""
    raise NotImplementedError

  def forward(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
  ) -> dict[str, jax.Array]:
    """Returns the outputs of the model for a batch, as `export` writes them."""
    raise NotImplementedError

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns arrays with the answers for a batch; `read` makes predictions of them."""
    raise NotImplementedError

  def read(self, answer: dict, outputs: Any) -> list[dict]:
    """Returns the predictions of one example, one for each of its parts.

    Args:
      answer: the arrays of `answer` at the example's position in the batch.
    """
    raise NotImplementedError
