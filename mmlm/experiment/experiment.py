"""One experiment: a completed config and a run folder, wired to the parts that they name."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from mmlm.decoding.score_fusion import Fusion, FusionOptions
from mmlm.decoding.search_options import SearchOptions
from mmlm.evaluation.evaluator import Evaluator
from mmlm.evaluation.metrics import higher_is_better
from mmlm.evaluation.text_evaluator import Reading, TextEvaluator
from mmlm.experiment import decoding, initialization
from mmlm.experiment.checks import check_config
from mmlm.experiment.data import ExperimentData, ReplacedTexts, ctc_labels_of
from mmlm.experiment.run import config_of_run
from mmlm.models.multimodal import build_model
from mmlm.parallel import Parallel
from mmlm.tasks import TASKS
from mmlm.training.checkpoints import Checkpoints
from mmlm.training.exported_weights import is_export, read_weights
from mmlm.training.lora import merge_lora
from mmlm.utils import run_dir
from mmlm.utils.choices import one_of
from mmlm.utils.errors import UserError


class Experiment:
  """The parts of one experiment: task, data, model, parameters, evaluator.

  Args:
    config: completed config (`mmlm.config.complete`).
    folder: run folder.
    like: an experiment on the same data whose model has the same shapes; what it has read, learned
      and built serves this one too.
    share_data: keep what is read for experiments that are made `like` this one.
    replaced_texts: texts that replace those of the examples.

  Raises:
    UserError: parts that do not go together.
  """

  def __init__(
    self,
    config: Any,
    folder: str | pathlib.Path,
    like: 'Experiment | None' = None,
    share_data: bool = False,
    replaced_texts: ReplacedTexts | None = None,
  ):
    self.config = config
    self.folder = pathlib.Path(folder)
    self.task = TASKS[one_of('task', config.task, TASKS)]
    self.modalities = tuple(config.model.encoders)
    self.parallel = Parallel(**config.parallel)
    check_config(config, self.task, self.parallel)
    cache = None
    self._shared_model = None
    if like:
      cache = like.data.cache
      self._shared_model = like.model
      like.copy_tokenizer(self.folder)
    self.data = ExperimentData(
      config, self.folder, self.task, self.parallel, cache, replaced_texts, share_data
    )

  @classmethod
  def of_run(
    cls,
    folder: str | pathlib.Path,
    assignments: dict[str, str],
    replaced_texts: ReplacedTexts | None = None,
  ) -> 'Experiment':
    """Returns the experiment of a run, with overrides such as {'decoding.method': 'greedy'}."""
    return cls(config_of_run(folder, assignments), folder, replaced_texts=replaced_texts)

  def copy_tokenizer(self, folder: pathlib.Path) -> None:
    """Writes the tokenizer, if there is one, into another run folder."""
    if self.data.tokenizer:
      content = (self.folder / 'tokenizer.json').read_bytes()
      run_dir.write_atomic(folder / 'tokenizer.json', content)

  def check(self) -> None:
    """Checks data and search before anything is written.

    Raises:
      UserError: what is wrong with them.
    """
    self.data.check()
    decoding.check_decoding(self.config)

  # Model and parameters

  @functools.cached_property
  def model(self) -> Any:
    """The model of the config."""
    return self._shared_model or self.model_of(self.config)

  def model_of(self, config: Any) -> Any:
    """Returns the model of a config: the experiment's, or one in which numbers are traced."""
    tokenizer = self.data.tokenizer
    vocab_size = tokenizer.vocab_size if tokenizer else 0
    return build_model(config.model, vocab_size, config.data.max_length, self.data.special_tokens)

  def random_params(self, batch: dict) -> dict[str, Any]:
    """Returns random parameters for the shapes of a batch, drawn from config.seed."""
    return initialization.random_params(self.model, batch, self.data.buckets[0], self.config)

  def initial_params(self, batch: dict) -> dict[str, Any]:
    """Returns random parameters, with pretrained ones where the config names them."""
    return initialization.replace_initial(self.random_params(batch), self.data, type(self).of_run)

  def abstract_params(self, batch: dict) -> Any:
    """Returns shapes and types of the parameters."""
    return jax.eval_shape(lambda: self.random_params(batch))

  def weights(self, params: Any) -> Any:
    """Returns the parameters that the model reads, LoRA's products added."""
    return merge_lora(params, self.config.optimizer.lora_alpha)

  def checkpoints(self, writing: bool = False) -> Checkpoints:
    """Opens the checkpoints of the run folder."""
    train = self.config.train
    tokenizer = self.data.tokenizer
    return Checkpoints(
      self.folder / 'checkpoints',
      train.monitor,
      train.keep_latest,
      train.keep_best,
      writing,
      tokenizer.fingerprint if tokenizer else '',
      higher_is_better=higher_is_better(train.monitor),
    )

  def trained_params(self, abstract: Any = None) -> tuple[Any, int]:
    """Returns the parameters that config.evaluate names, or those of an export, and their step.

    Args:
      abstract: their shapes and types.
    """
    options = self.config.evaluate
    if not is_export(self.folder):
      with contextlib.closing(self.checkpoints()) as checkpoints:
        return checkpoints.params(abstract, options.checkpoint, options.average)
    if options.checkpoint != 'best' or options.average != 1:
      raise UserError(
        f'{self.folder} is an export: it holds one model, so evaluate.checkpoint and '
        'evaluate.average cannot choose another.'
      )
    return read_weights(self.folder, abstract)

  # Answers

  def search_options(self, **changes: Any) -> tuple[SearchOptions, FusionOptions]:
    """Returns how to search, and what with; `changes` override config.decoding."""
    return decoding.search_options(self.config, self.data.special_tokens, changes)

  def evaluator(
    self, align: bool = False, around: Callable | None = None, **changes: Any
  ) -> Evaluator:
    """Returns what decodes and scores batches.

    Args:
      align: predictions say where CTC, if there is any, finds them in the sound.
      around: task -> another one that answers in its place.
      **changes: override config.decoding.
    """
    search, fusion = self.search_options(**changes)
    task: Any = self.task
    if align and ctc_labels_of(self.config.model.head):
      task = dataclasses.replace(task, align=True)
    if around:
      task = around(task)
    return Evaluator(
      self.model,
      task,
      self.parallel,
      self.data.texts.outputs,
      search,
      self.config.seed,
      self.score_fusion(search, fusion),
    )

  def score_fusion(self, search: SearchOptions, options: FusionOptions) -> Fusion:
    """Returns what scores hypotheses beside the model, ready to use."""
    return decoding.score_fusion(self.data, search, options, Experiment.of_run)

  def text_evaluator(self) -> TextEvaluator:
    """Returns what scores running text with a language model."""
    data = self.config.data
    evaluate = self.config.evaluate
    reading = Reading(
      data.stream,
      self.data.documents_apart,
      data.max_length,
      evaluate.batch_size,
      evaluate.stride,
    )
    tokenizer = self.data.tokenizer
    assert tokenizer is not None
    return TextEvaluator(self.model, self.task, self.parallel, reading, tokenizer.lossless)
