"""The task of learning word vectors.

Tables are learned, not a network, so it has its own pipeline.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from ml_collections import ConfigDict

from mmlm.pretrained.formats.write_vectors import FORMATS
from mmlm.tasks.base import Pipeline, Task
from mmlm.word_vectors.vector_commands import evaluate, export
from mmlm.word_vectors.vector_experiment import VectorExperiment
from mmlm.word_vectors.vector_training import training_parts


@dataclass(frozen=True)
class WordVectors(Task):
  """Word vectors of plain text: skip-gram, CBOW and GloVe."""

  metrics: tuple[str, ...] = ()
  uses: tuple[str, ...] = ()  # no head: its objectives are in WORD_VECTORS
  answers: str = 'text'  # the field of an example that is learned

  trains_vectorised: ClassVar[bool] = False
  pipeline: ClassVar[Pipeline] = Pipeline(
    experiment=VectorExperiment,
    training_parts=training_parts,
    evaluate=evaluate,
    export=export,
    export_formats=tuple(FORMATS),
    commands=('train', 'sweep', 'evaluate', 'similarity', 'export', 'report'),
  )

  def smoke(self, config: Any) -> ConfigDict:
    """Returns the small form of a config: few words, few steps."""
    config.tokenizer.min_frequency = 1
    config.model.dim = 8
    config.train.batch_size = 256
    config.model.head.unlock()['micro_batch'] = 64
    config.train.duration = '6 steps'
    config.train.log_every = '2 steps'
    config.train.eval_every = '50 %'
    return config
