"""Word vectors: everything that only they need.

Importing this package registers the task and its objectives, so that configs may name them.
"""

from mmlm.config import HEAD_CLASSES
from mmlm.tasks import TASKS
from mmlm.word_vectors.objectives import WORD_VECTORS
from mmlm.word_vectors.vector_task import WordVectors

HEAD_CLASSES.update(WORD_VECTORS)
TASKS['word_vectors'] = WordVectors()
