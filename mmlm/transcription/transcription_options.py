"""What to transcribe how, and what comes out."""

import dataclasses

from mmlm.data.tokenizers.whisper_tokenizer import TASKS
from mmlm.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
  """UserError when it makes no sense. The thresholds are those of Radford et al. (2022), 4.5."""

  language: str = ''  # code or English name; '' = heard from the first window
  task: str = 'transcribe'  # or 'translate', into English
  times: bool = True  # the model writes when each segment begins and ends
  beam_size: int = 5  # 1 = greedy
  best_of: int = 5  # draws of a window whose first answer was bad, of which the likeliest is kept
  temperatures: tuple = (
    0.0,
    0.2,
    0.4,
    0.6,
    0.8,
    1.0,
  )  # tried one after another while the answer is bad
  max_compression_ratio: float = 2.4  # an answer that compresses better repeats itself: bad
  min_log_prob: float = -1.0  # an answer whose mean log-probability is lower is bad
  max_no_speech: float = (
    0.6  # a window with a higher probability of no speech, and an unlikely answer, is left out
  )
  sure_no_speech: float = 0.9  # and with a higher one than this, whatever the answer
  max_first_time: float = 1.0  # seconds from the start of a window to its first segment
  max_tokens: int = (
    0  # of the answer for a window; 0 = half of the decoder's positions, the most there is
  )
  prompt: str = ''  # text that could stand before the recording: names, spelling, style
  previous: bool = False  # a window is told what was said before it
  batched: bool = (
    False  # files are cut at quiet places into windows that know nothing of each other
  )
  batch_size: int = 8  # windows decoded together
  seed: int = 0  # of the draws

  def __post_init__(self):
    for ok, what in (
      (self.task in TASKS, f'--task {self.task}: choose one of {", ".join(TASKS)}.'),
      (self.beam_size >= 1, f'--beam_size={self.beam_size}: expected 1 or more.'),
      (self.batch_size >= 1, f'--batch_size={self.batch_size}: expected 1 or more.'),
      (
        not (self.previous and self.batched),
        '--previous needs windows one after another: leave out --batched.',
      ),
      (
        self.temperatures and min(self.temperatures) >= 0,
        f'temperatures={self.temperatures}: expected one or more, none below 0.',
      ),
      (self.max_tokens >= 0, f'max_tokens={self.max_tokens}: expected 0 or more.'),
    ):
      if not ok:
        raise UserError(what)


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the model wrote for a window."""

  tokens: tuple[int, ...]  # without the end
  text: str
  avg_logprob: float  # nats a token, the end counted
  no_speech_prob: float
  temperature: float  # it was drawn at; 0 = searched for
  compression_ratio: float  # bytes of the text to bytes when it is compressed


@dataclasses.dataclass(frozen=True)
class Segment:
  start: float  # seconds from the start of the file
  end: float
  text: str
  avg_logprob: float | None = (
    None  # this and the rest: of the window that the segment is from; None where a run of ours wrote it
  )
  no_speech_prob: float | None = None
  temperature: float | None = None
  compression_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
  text: str
  language: str
  duration: float  # seconds of the recording
  segments: tuple[Segment, ...]
