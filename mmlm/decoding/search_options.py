"""Options of a search."""

import dataclasses
from collections.abc import Iterator

from mmlm.utils.choices import nearest
from mmlm.utils.errors import UserError

METHODS = ('greedy', 'sample', 'beam')


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """How to search; hashable, so that it can be a static argument of `jax.jit`.

  Raises:
    UserError: values out of range, or that contradict each other.
  """

  method: str = 'beam'
  max_length: int = 20  # generated tokens, the end token included, the prompt not
  min_length: int = 0  # no hypothesis ends before this length
  beam_size: int = 4  # for 'beam' only
  n_best: int = 1  # hypotheses returned of an example; for 'sample' the number of independent draws
  length_penalty: float = 0.6  # alpha of Wu et al. (2016), equation 14; 0 ranks by log-probability
  temperature: float = 1.0  # for 'sample' only: first temperature, then top_k, then top_p
  top_k: int = 0  # draws among this many most likely tokens; 0 is all
  top_p: float = 1.0  # draws from the nucleus of this mass (Holtzman et al. 2020)
  pad_id: int = 0  # never generated; fills what follows the end
  bos_id: int = 1  # never generated unless it is also an end token
  eos_ids: tuple[int, ...] = (2,)  # any of them ends a hypothesis; CTC scores the end as the first

  def __post_init__(self) -> None:
    for problem in self._problems():
      raise UserError(f'decoding: {problem}')

  @property
  def beams(self) -> int:
    """Returns K, the number of hypotheses of an example that the step and the cache hold."""
    return {'greedy': 1, 'sample': self.n_best, 'beam': self.beam_size}[self.method]

  def _problems(self) -> Iterator[str]:
    if self.method not in METHODS:
      suggestion = nearest(self.method, METHODS)
      yield f'method={self.method!r} is none of {METHODS}; did you mean {suggestion!r}?'
    for name, smallest in SMALLEST.items():
      if getattr(self, name) < smallest:
        yield f'{name}={getattr(self, name)} must be at least {smallest}'
    if self.min_length > self.max_length:
      yield f'min_length={self.min_length} is more than max_length={self.max_length}'
    if self.n_best > self.beams:
      yield (
        f'n_best={self.n_best} is more than the hypotheses that are searched: '
        f'beam_size={self.beam_size} with method beam, 1 with greedy'
      )
    if self.temperature <= 0:
      yield f'temperature={self.temperature} must be above 0; for 0 use greedy'
    if not 0 < self.top_p <= 1:
      yield f'top_p={self.top_p} must lie in (0, 1]'
    draws_plainly = (self.temperature, self.top_k, self.top_p) == (1.0, 0, 1.0)
    if self.method != 'sample' and not draws_plainly:
      yield f'temperature, top_k and top_p need method sample, not {self.method}'
    if not self.eos_ids or min(self.eos_ids) < 0:
      yield f'eos_ids={self.eos_ids} must be one id or more, each at least 0'


SMALLEST = {
  'max_length': 1,
  'min_length': 0,
  'beam_size': 1,
  'n_best': 1,
  'top_k': 0,
  'pad_id': 0,
  'bos_id': 0,
}
