"""How to transcribe: the options of Whisper, under Whisper's names."""

import dataclasses

from mmlm.data.tokenizers.whisper_tokenizer import TASKS
from mmlm.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class TranscriptionOptions:
  """Options of a transcription; a value out of its range is a UserError.

  Defaults and thresholds are those of Radford et al. (2022), section 4.5.
  """

  # Spoken language, as a code or in English; '' = detected from the first window.
  language: str = ''
  # 'transcribe', or 'translate' into English.
  task: str = 'transcribe'
  # Whether the model writes text alone, without the times of segments.
  without_timestamps: bool = False
  # Width of the beam search; 1 = greedy.
  beam_size: int = 5
  # Number of samples at a temperature above 0, of which the most likely is taken.
  best_of: int = 5
  # Temperatures that are tried in turn while the result of a window fails a threshold.
  temperature: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
  # A text that compresses better than this repeats itself and fails.
  compression_ratio_threshold: float = 2.4
  # A result with a lower mean log-probability of its tokens fails.
  logprob_threshold: float = -1.0
  # A window is silent above this probability of no speech, if its result also fails the
  # threshold of the log-probability,
  no_speech_threshold: float = 0.6
  # and above this one, whatever its result.
  certain_no_speech_threshold: float = 0.9
  # Latest start of the first segment of a window, in seconds.
  max_initial_timestamp: float = 1.0
  # Maximum number of tokens of a window; 0 = half of the decoder's positions, the maximum.
  sample_len: int = 0
  # Text before the recording: names, spelling, style.
  initial_prompt: str = ''
  # Whether the text of the windows before is the prompt of a window.
  condition_on_previous_text: bool = False
  # Whether files are cut at quiet places into parts that are decoded independently.
  batched: bool = False
  # Number of windows that are decoded together.
  batch_size: int = 8
  # Seed of the samples.
  seed: int = 0

  def __post_init__(self):
    if self.task not in TASKS:
      raise UserError(f'--task {self.task}: choose one of {", ".join(TASKS)}.')
    for name, least in (('beam_size', 1), ('batch_size', 1), ('sample_len', 0)):
      value = getattr(self, name)
      if value < least:
        raise UserError(f'--{name}={value}: expected {least} or more.')
    if self.condition_on_previous_text and self.batched:
      raise UserError(
        '--condition_on_previous_text needs windows one after another: leave out --batched.'
      )
    if not self.temperature or min(self.temperature) < 0:
      raise UserError(f'--temperature={self.temperature}: expected one or more, none below 0.')
