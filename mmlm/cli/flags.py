"""The table of commands: a dataclass a command, a line a flag.

A command is a class here, a line of COMMANDS and the file mmlm/cli/COMMAND.py with a function of
the same name that takes the dataclass. The first line of that file's docstring is its help.
"""

import ast
import dataclasses
import pathlib
import textwrap
from typing import Any, ClassVar

CONFIG_HELP = 'file of configs/, with :VARIANT behind it where the file has variants'
RUN_HELP = 'run folder, or the folder of an export'
SPLITS_HELP = "splits or manifests, in place of the config's data.splits.test"
SKIP_BROKEN_HELP = 'leave out and count pictures and sounds that cannot be read'
EXPORT_FORMATS_HELP = (
  'safetensors (weights, config, tokenizer), stablehlo (these and compiled functions), '
  'huggingface (a language model as GPT-2), '
  'word2vec, word2vec_binary, glove or fasttext (word vectors)'
)
TEMPERATURES = ['0', '0.2', '0.4', '0.6', '0.8', '1.0']
DATA_DIR_HELP = 'folder of prepared data sets (data.dir of configs)'


def argument(help: str, optional: bool = False) -> Any:
  """Returns a positional argument; a list takes all words that remain, none if `optional`."""
  metadata = {'help': help, 'positional': True, 'optional': optional}
  return dataclasses.field(metadata=metadata)


def required(help: str) -> Any:
  """Returns a flag that must be given."""
  return dataclasses.field(metadata={'help': help, 'positional': False})


def flag(default: Any, help: str) -> Any:
  """Returns a flag with a default."""
  metadata = {'help': help, 'positional': False}
  if isinstance(default, list):
    return dataclasses.field(default_factory=default.copy, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """What every command takes.

  Attributes:
    settings: keys of the config and their new values, from --config.KEY=VALUE.
  """

  reads_config: ClassVar[bool] = True
  settings: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickStart(Command):
  workdir: str = flag('runs/unicode_pictures', 'run folder')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Command):
  config: str = argument(CONFIG_HELP)
  workdir: str = required('run folder; a run that is already in it is resumed')
  skip_broken: bool = flag(False, SKIP_BROKEN_HELP)
  coordinator: str = flag('', 'HOST:PORT of process 0 (Slurm and Cloud TPU: found automatically)')
  processes: int = flag(0, 'number of processes that train together (with --coordinator)')
  process: int = flag(-1, 'index of this process, from 0 (with --coordinator)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
  run: str = argument(RUN_HELP)
  splits: list[str] = flag([], SPLITS_HELP)
  greedy: bool = flag(False, "decode greedily, whatever the config's decoding.method is")
  text_from: str = flag('', 'predictions file whose hypotheses replace the input texts (a cascade)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(Command):
  run: str = argument(RUN_HELP)
  input: str = required('picture, sound, folder of these, sentence, file of sentences, or manifest')
  output: str = flag('', 'file for the predictions, as JSON lines')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Command):
  config: str = argument(CONFIG_HELP)
  devices: int = flag(8, 'number of simulated devices')
  mesh: str = flag('', "axis sizes, such as data=2,fsdp=4 (default: the config's parallel.mesh)")
  memory: str = flag(
    '', 'memory of a device, such as 80GB or 16GiB: exit code 1 if it is too small'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Command):
  reads_config: ClassVar[bool] = False
  name: str = argument('data set, or a manifest to check')
  source: str = flag('', 'folder of the original files')
  data_dir: str = flag('data', DATA_DIR_HELP)
  skip_broken: bool = flag(False, SKIP_BROKEN_HELP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translate(Command):
  run: str = argument(RUN_HELP)
  image: str = flag('', 'picture that belongs to every line, for a model that reads pictures')
  n_best: int = flag(1, 'number of translations of each line')
  scores: bool = flag(False, 'print the score and a tab before each translation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate(Command):
  run: str = argument(RUN_HELP)
  prompt: str = flag('', 'text to continue (empty: generate from scratch)')
  temperature: float = flag(1.0, 'sampling temperature; 0 = always the most likely token')
  top_k: int = flag(0, 'sample from the k most likely tokens; 0 = from all')
  top_p: float = flag(1.0, 'sample from the smallest set of tokens with this total probability')
  max_length: int = flag(500, "maximum number of new tokens; may exceed the model's context")
  num: int = flag(1, 'number of texts')
  seed: int = flag(0, 'random seed of the sampling')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcribe(Command):
  files: list[str] = argument('sound files')
  model: str = flag('whisper-base', 'whisper-base, whisper-tiny.en, folder of a Whisper, or run')
  language: str = flag('', 'spoken language, as a code or in English (empty: detect it)')
  task: str = flag('transcribe', 'transcribe, or translate into English')
  output_dir: str = flag('.', 'folder of the output files, which are named as the sounds')
  output_format: list[str] = flag(['txt', 'srt', 'vtt', 'json'], 'formats of the output files')
  beam_size: int = flag(0, "beams; 1 = greedy, 0 = 5 for Whisper, the config's for a run")
  best_of: int = flag(5, 'number of samples at a temperature above 0')
  temperature: list[str] = flag(
    TEMPERATURES, 'temperatures, tried in turn until the thresholds hold'
  )
  compression_ratio_threshold: float = flag(2.4, 'try the next temperature above this ratio')
  logprob_threshold: float = flag(-1.0, 'try the next temperature below this mean')
  no_speech_threshold: float = flag(
    0.6, 'no speech above this probability and below logprob_threshold'
  )
  without_timestamps: bool = flag(False, 'write text alone, without the times of segments')
  initial_prompt: str = flag('', 'text before the recording: names, spelling, style')
  condition_on_previous_text: bool = flag(False, 'prompt a window with the text before it')
  batched: bool = flag(False, 'cut files at quiet places and decode the parts together: faster')
  batch_size: int = flag(8, 'number of windows that are decoded together')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(Command):
  vectors: str = argument('file, package or run folder of word vectors')
  sets: str = flag('', 'folder or file of similarity sets (default: $MMLM_DATA/text/wordsim)')
  restrict: int = flag(30000, 'answer analogies among this many first words; 0 = all')
  method: str = flag('add', 'answer analogies by add (3CosAdd) or mul (3CosMul)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Command):
  first: str = argument('run folder or predictions file')
  second: str = argument('run folder or predictions file')
  split: str = flag('', 'split, where a run folder holds predictions of several')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablate(Command):
  run: str = argument(RUN_HELP)
  splits: list[str] = flag([], SPLITS_HELP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Command):
  folders: list[str] = argument('run folders, or the folder of a sweep')
  against: str = flag('', 'run folder whose scores with missing inputs are drawn for comparison')
  attention: bool = flag(True, 'decode a sample again to show attention and n-best lists')
  output: str = flag('', 'file (default: report.html or comparison.html in the first folder)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Command):
  runs: list[str] = argument('run folders, exports, and names or folders of Whispers')
  host: str = flag('127.0.0.1', 'address to listen on; 0.0.0.0 = all, open to everybody')
  port: int = flag(7860, 'port to listen on; 0 = any that is free')
  max_upload_mb: int = flag(20, 'largest request, in MiB')
  open: bool = flag(False, 'open the page in a browser')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Command):
  run: str = argument('run folder')
  format: list[str] = flag(['safetensors', 'stablehlo'], EXPORT_FORMATS_HELP)
  output: str = flag('', 'folder, or file of word vectors (default of a model: RUN/export)')
  platforms: list[str] = flag([], 'cpu, cuda, tpu: platforms of the functions (default: this one)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Command):
  config: str = argument(CONFIG_HELP)
  space: str = flag('', 'file with get_space() (default: NAME_space.py beside the config NAME.py)')
  executor: str = flag('local', 'local (processes), slurm (an array of jobs), or vectorised (vmap)')
  sampler: str = flag('', 'grid, random or tpe (default: grid for a finite space, else tpe)')
  pruner: str = flag('none', 'stop bad trials early: median, asha or hyperband')
  trials: int = flag(0, 'number of trials; 0 = the whole grid, or 20 of an infinite space')
  seeds: int = flag(1, 'runs of each trial, which is scored by their mean')
  workdir: str = flag('', 'folder of the sweep, resumed if it exists (default: runs/sweeps/NAME)')
  jobs: int = flag(0, 'runs at a time; 0 = one process, or as many as there are')
  slurm: list[str] = flag([], 'options of the jobs, such as partition=gpu,time=60')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduce(Command):
  table: str = argument('file of experiments/')
  rows: list[str] = flag([], 'rows of the table (default: all)')
  seeds: int = flag(0, 'runs of each row; 0 = as many as the table says')
  runs: str = flag('runs/papers', 'folder of the run folders')
  data_dir: str = flag('data', DATA_DIR_HELP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs(Command):
  reads_config: ClassVar[bool] = False
  folders: list[str] = argument('folders to search (default: runs)', optional=True)


COMMANDS: dict[str, type[Command]] = {
  'quick_start': QuickStart,
  'train': Train,
  'evaluate': Evaluate,
  'predict': Predict,
  'prepare': Prepare,
  'plan': Plan,
  'translate': Translate,
  'generate': Generate,
  'transcribe': Transcribe,
  'similarity': Similarity,
  'compare': Compare,
  'ablate': Ablate,
  'report': Report,
  'demo': Demo,
  'export': Export,
  'sweep': Sweep,
  'reproduce': Reproduce,
  'runs': Runs,
}

# Commands of earlier versions, and what replaces them.
RENAMED = {
  'to_gpt2': 'export RUN --format huggingface --output FOLDER',
  'vectors': 'export RUN --format word2vec --output FILE',
}

GENERAL_HELP = """./launch.sh [COMMAND] [ARGUMENTS] [FLAGS]

{commands}
  {test}  Runs the tests.

Without a command: {quick_start}
`./launch.sh COMMAND --help` shows the flags of a command. Every key of a config can be set, for
example --config.optimizer.learning_rate=3e-4; --config=FILE is the same as the argument CONFIG.
`train` ends with exit code 75 after SIGTERM: the state is saved, and the same command resumes it.
"""


def positional_of(command: type[Command]) -> list[dataclasses.Field]:
  """Returns the positional arguments of a command, in order."""
  return [field for field in dataclasses.fields(command) if field.metadata.get('positional')]


def flags_of(command: type[Command]) -> list[dataclasses.Field]:
  """Returns the flags of a command, in order."""
  fields = dataclasses.fields(command)
  return [field for field in fields if field.metadata and not field.metadata['positional']]


def summary(name: str) -> str:
  """Returns the first line of the docstring of mmlm/cli/NAME.py, without importing it."""
  path = pathlib.Path(__file__).with_name(f'{name}.py')
  docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
  assert docstring, f'{path} has no docstring, which is the help of the command.'
  return docstring.splitlines()[0]


def usage(name: str) -> str:
  """Returns the name of a command and its positional arguments: 'compare FIRST SECOND'."""
  words = [name]
  for field in positional_of(COMMANDS[name]):
    word = field.name.upper()
    if field.type is not str:
      word += '...'
    if field.metadata['optional']:
      word = f'[{word}]'
    words.append(word)
  return ' '.join(words)


def general_help() -> str:
  """Returns all commands, each with its sentence."""
  names = [name for name in COMMANDS if name != 'quick_start']
  width = max(len(usage(name)) for name in names)
  lines = [f'  {usage(name):<{width}}  {summary(name)}' for name in names]
  return GENERAL_HELP.format(
    commands='\n'.join(lines), test=f'{"test":<{width}}', quick_start=summary('quick_start')
  )


def command_help(name: str) -> str:
  """Returns the usage of a command, its sentence, its arguments and its flags."""
  command = COMMANDS[name]
  lines = [f'./launch.sh {usage(name)} [FLAGS]', '', summary(name), '']
  for field in positional_of(command):
    lines += _entry(field.name.upper(), field.metadata['help'])
  for field in flags_of(command):
    lines += _entry(_flag_syntax(field), field.metadata['help'] + _default_text(field))
  if command.reads_config:
    lines += _entry('--config.KEY=VALUE', 'change a key of the config')
  return '\n'.join(lines)


def _entry(syntax: str, help: str) -> list[str]:
  """Returns the lines of one argument or flag."""
  indent = ' ' * 26
  lines = textwrap.wrap(help, 98, initial_indent=indent, subsequent_indent=indent)
  if len(syntax) < 23:
    lines[0] = f'  {syntax:<24}{lines[0].lstrip()}'
    return lines
  return [f'  {syntax}', *lines]


def _flag_syntax(field: dataclasses.Field) -> str:
  if field.type is bool:
    return f'--[no]{field.name}'
  placeholders = {str: 'TEXT', int: 'N', float: 'X'}
  return f'--{field.name}={placeholders.get(field.type, "A,B")}'


def _default_text(field: dataclasses.Field) -> str:
  if field.default_factory is not dataclasses.MISSING:
    default = ','.join(field.default_factory())
  else:
    default = field.default
  if default is dataclasses.MISSING:
    return ' (required)'
  if default == '' or field.type is bool and not default:
    return ''
  return f' (default: {str(default).lower() if field.type is bool else default})'
