"""./launch.sh [COMMAND] [ARGUMENT] [FLAGS]

  ./launch.sh                                  the quick start: train on generated pictures, evaluate, write a report
  ./launch.sh train CONFIG --workdir DIR       train, or go on with the run in DIR; CONFIG is a file of configs/
  ./launch.sh evaluate DIR                     decode and score with the best checkpoint of the run in DIR
  ./launch.sh predict DIR --input PATH         answer for a picture, a folder, a sentence, or a manifest
  ./launch.sh plan CONFIG --devices 8          would it fit, and what would it send? on a mesh that is not there (--mesh, --memory)
  ./launch.sh prepare NAME --source DIR        build a data set once from its original files
  ./launch.sh translate DIR < lines.txt        translate lines, or what is typed
  ./launch.sh generate DIR --prompt TEXT       a language model goes on with a text, or begins one
  ./launch.sh to_gpt2 DIR --output FOLDER      a decoder of GPT-2's shape as Hugging Face's folder
  ./launch.sh transcribe FILE...               sounds to text, subtitles and JSON, by a Whisper (--model whisper-base) or a run
  ./launch.sh similarity VECTORS               word vectors of a file, a package or a run on similarity sets and analogies
  ./launch.sh vectors DIR --output FILE        write the word vectors of a run for word2vec, GloVe, fastText or gensim
  ./launch.sh compare DIR DIR                  paired bootstrap between the predictions of two runs
  ./launch.sh ablate DIR                       is each modality used? scores with inputs shuffled, left out, masked
  ./launch.sh report DIR [DIR...]              a page of a run (DIR/report.html), of a sweep, or of several runs over one another
  ./launch.sh demo RUN...                      a page in the browser: drop a picture, speak or type, see the answer and the attention
  ./launch.sh export DIR                       the model for others: safetensors, StableHLO, config and tokenizer
  ./launch.sh sweep CONFIG                     train at points of a space of settings (CONFIG's <name>_space.py, or --space FILE)
  ./launch.sh reproduce experiments/NAME.py    run what a paper's table lacks, and render it
  ./launch.sh runs [DIR]                       the runs below a folder: state, step, best score, age
  ./launch.sh test                             run the test suite

`train` ends with exit code 75 when SIGTERM came: the state is saved, the same command goes on.
`./launch.sh COMMAND --help` shows the flags of a command. Every key of a config can be set: --config.optimizer.learning_rate=3e-4
"""

# Commands and their flags; the text above is what --help prints.

import sys

from absl import flags

from mmlm.utils.errors import UserError

TEXT = flags.DEFINE_string
LIST = flags.DEFINE_list
SWITCH = flags.DEFINE_boolean
SKIP_BROKEN = (
  SWITCH,
  'skip_broken',
  False,
  'leave out pictures and sounds that cannot be read, and count them',
)
NUMBER = flags.DEFINE_integer
REAL = flags.DEFINE_float
# command: (module of mmlm that has its function, positional arguments with spaces between, dots after the last if there may be
# several and brackets if there may be none, flags as (definer, name, default, help))
COMMANDS = {
  'quick_start': (
    'cli.commands',
    '',
    [(TEXT, 'workdir', 'runs/unicode_pictures', 'the run folder')],
  ),
  'train': (
    'cli.commands',
    'config_path',
    [
      (
        TEXT,
        'workdir',
        None,
        'the run folder (required); a run that is there already is continued',
      ),
      SKIP_BROKEN,
      (
        TEXT,
        'coordinator',
        '',
        'host:port of process 0, where several train together; Slurm and Cloud TPU tell it themselves',
      ),
      (NUMBER, 'processes', 0, 'how many processes there are (with --coordinator)'),
      (NUMBER, 'process', -1, 'the number of this one, from 0 (with --coordinator)'),
    ],
  ),
  'evaluate': (
    'cli.commands',
    'workdir',
    [
      (LIST, 'splits', [], "splits or manifests, instead of the config's data.splits.test"),
      (SWITCH, 'greedy', False, "decode greedily, whatever the config's decoding.method"),
      (
        TEXT,
        'text_from',
        '',
        'a predictions file, whose hypotheses are read in place of the texts of the splits (a cascade)',
      ),
    ],
  ),
  'predict': (
    'cli.commands',
    'workdir',
    [
      (
        TEXT,
        'input',
        None,
        'a picture, a folder of pictures, a sentence, a file of sentences, or a manifest of JSON lines (required)',
      ),
      (TEXT, 'output', '', 'also write the predictions to this file as JSON lines'),
    ],
  ),
  'plan': (
    'cli.plan',
    'config_path',
    [
      (NUMBER, 'devices', 8, 'how many devices there would be'),
      (
        TEXT,
        'mesh',
        '',
        "sizes of the axes data, fsdp and tensor, e.g. data=2,fsdp=4; '' = the config's parallel.mesh",
      ),
      (
        TEXT,
        'memory',
        '',
        'what each has, e.g. 80GB or 16GiB: ends with code 1 where that is not enough',
      ),
    ],
  ),
  'prepare': (
    'cli.commands',
    'name',
    [
      (TEXT, 'source', '', 'folder of the original files; for a manifest, none'),
      (TEXT, 'data_dir', 'data', 'where prepared data sets live (data.dir of configs)'),
      SKIP_BROKEN,
    ],
  ),
  'translate': (
    'cli.studies',
    'workdir',
    [
      (TEXT, 'image', '', 'a picture that goes with every line, for a model that reads pictures'),
      (NUMBER, 'n_best', 1, 'translations of each line'),
      (SWITCH, 'scores', False, 'print the score and a tab before each translation'),
    ],
  ),
  'generate': (
    'inference.generation',
    'workdir',
    [
      (TEXT, 'prompt', '', 'what stands before; without one the model begins'),
      (
        REAL,
        'temperature',
        1.0,
        'of the distribution that tokens are drawn from; 0 = always the likeliest',
      ),
      (NUMBER, 'top_k', 0, 'draw among so many likeliest tokens; 0 = all'),
      (REAL, 'top_p', 1.0, 'draw in the smallest set of tokens that holds this mass'),
      (
        NUMBER,
        'max_length',
        500,
        'tokens to write at most; more than the model reads at once is possible',
      ),
      (NUMBER, 'num', 1, 'texts, one after another'),
      (NUMBER, 'seed', 0, 'another one gives other texts'),
    ],
  ),
  'to_gpt2': (
    'inference.generation',
    'workdir',
    [(TEXT, 'output', None, 'the folder to write (required)')],
  ),
  'transcribe': (
    'cli.transcribe',
    'files...',
    [
      (
        TEXT,
        'model',
        'whisper-base',
        'whisper-base, whisper-tiny.en, the folder of a Whisper, or a run folder',
      ),
      (TEXT, 'language', '', "code or English name of what is spoken; '' = found out"),
      (TEXT, 'task', 'transcribe', 'transcribe, or translate into English'),
      (NUMBER, 'beam_size', 0, '1 = greedy; 0 = 5, or what the config of the run says'),
      (LIST, 'format', ['txt', 'srt', 'vtt', 'json'], 'files to write'),
      (TEXT, 'output_dir', '.', 'where they go, named as the sounds'),
      (SWITCH, 'times', True, 'the model writes when segments begin and end'),
      (TEXT, 'prompt', '', 'a text that could stand before: names, spelling, style'),
      (SWITCH, 'previous', False, 'each window is told what was said before it'),
      (
        SWITCH,
        'batched',
        False,
        'cut files at quiet places into windows that are decoded together: faster for long files',
      ),
      (NUMBER, 'batch_size', 8, 'windows decoded together, of several files or, batched, of one'),
    ],
  ),
  'similarity': (
    'word_vectors.vector_experiment',
    'vectors',
    [
      (
        TEXT,
        'sets',
        '',
        'folder or file of similarity sets and analogies; $MMLM_DATA/text/wordsim if not given',
      ),
      (NUMBER, 'restrict', 30000, 'analogies among so many of the first words; 0 = all'),
      (TEXT, 'method', 'add', 'how analogies are answered: add (3CosAdd) or mul (3CosMul)'),
    ],
  ),
  'vectors': (
    'word_vectors.vector_experiment',
    'workdir',
    [
      (TEXT, 'output', None, 'the file (required); .bin for word2vec_binary'),
      (TEXT, 'format', 'word2vec', 'word2vec, word2vec_binary, glove or fasttext'),
    ],
  ),
  'compare': (
    'cli.studies',
    'first second',
    [(TEXT, 'split', '', 'the split, where a run folder holds predictions of several')],
  ),
  'ablate': (
    'cli.studies',
    'workdir',
    [(LIST, 'splits', [], "splits or manifests, instead of the config's data.splits.test")],
  ),
  'report': (
    'reports.build',
    'folders...',
    [
      (
        TEXT,
        'against',
        '',
        'another run folder, whose scores with missing inputs are drawn beside',
      ),
      (
        SWITCH,
        'attention',
        True,
        'ask the model again about a sample: its attention and its n best answers',
      ),
      (
        TEXT,
        'output',
        '',
        'the file; report.html of the folder, or of several runs comparison.html of the first, where none is given',
      ),
    ],
  ),
  'demo': (
    'cli.demo',
    'runs...',
    [
      (
        TEXT,
        'host',
        '127.0.0.1',
        'the address to listen at; 0.0.0.0 = every one of this machine, for everybody',
      ),
      (NUMBER, 'port', 7860, '0 = any that is free'),
      (NUMBER, 'max_upload_mb', 20, 'of one request, in MiB'),
      (SWITCH, 'open', False, 'open the page in a browser'),
    ],
  ),
  'export': (
    'inference.export',
    'workdir',
    [
      (TEXT, 'output', '', 'the folder; WORKDIR/export where none is given'),
      (
        LIST,
        'platforms',
        [],
        'cpu, cuda, tpu: what the functions are made for, instead of this machine',
      ),
    ],
  ),
  'sweep': (
    'cli.sweep',
    'config_path',
    [
      (TEXT, 'space', '', 'a file with get_space(); else the one beside CONFIG'),
      (
        TEXT,
        'executor',
        'local',
        'local: processes; slurm: an array of jobs; vectorised: trials of one shape in one program',
      ),
      (
        TEXT,
        'sampler',
        '',
        'grid, random, tpe; else grid where the space has an end, and tpe where not',
      ),
      (TEXT, 'pruner', 'none', 'stops bad trials early: median, asha, hyperband'),
      (NUMBER, 'trials', 0, 'points of the space; 0 = the whole grid, else 20'),
      (NUMBER, 'seeds', 1, 'runs of each, whose mean is its score'),
      (
        TEXT,
        'workdir',
        '',
        'the folder of the sweep; one that is there already is continued. Else runs/sweeps/<name>',
      ),
      (NUMBER, 'jobs', 0, 'runs at once; 0 = one process, or as many as there are'),
      (LIST, 'slurm', [], 'options of the jobs, such as partition=gpu,time=60,gpus_per_node=1'),
    ],
  ),
  'reproduce': (
    'cli.reproduce',
    'table',
    [
      (LIST, 'rows', [], 'some of the rows; else all'),
      (NUMBER, 'seeds', 0, 'runs of each row; 0 = as many as the table says'),
      (TEXT, 'runs', 'runs/papers', 'where its run folders are'),
      (TEXT, 'data_dir', 'data', 'where prepared data sets live'),
    ],
  ),
  'runs': ('cli.sweep', '[folders...]', []),
}


def parse(argv: list[str]) -> tuple[str, dict]:
  """argv -> (command, keyword arguments for its function). `--help` prints and exits."""
  words = argv[1:]
  if words and not words[0].startswith('-'):
    command = words.pop(0)
  else:
    command = 'quick_start'
  if command not in COMMANDS:
    from mmlm.utils.choices import nearest  # imports jax, too early for the settings below

    raise UserError(
      f'no command {command!r}. Nearest: {nearest(command, COMMANDS)!r}. `./launch.sh --help` shows all.'
    )
  _, positional, definitions = COMMANDS[command]
  values = flags.FlagValues()
  for define, name, default, text in definitions:
    define(name, default, text, flag_values=values, required=default is None)
  if {'--help', '-h', '-help'} & set(words):
    if argv[1:2] == [command]:
      usage = f'./launch.sh {command} {positional.upper()} [FLAGS]'
    else:
      usage = __doc__
    print(usage, values.get_help(), sep='\n')
    sys.exit(0)
  settings = [word for word in words if word.startswith('--config.')]
  try:
    rest = values([command] + [word for word in words if word not in settings])[1:]
  except flags.Error as error:
    raise UserError(f'{command}: {error} See `./launch.sh {command} --help`.') from None
  optional = positional.startswith('[')
  positional = positional.strip('[]')
  *names, several = positional.split() if positional.endswith('...') else [*positional.split(), '']
  if len(rest) != len(names) if not several else len(rest) < len(names) + (not optional):
    wanted = positional.upper() or 'no argument'
    raise UserError(f'{command} takes {wanted}, not {rest}. See `./launch.sh {command} --help`.')
  arguments = {name: values[name].value for _, name, _, _ in definitions} | dict(zip(names, rest))
  if several:
    arguments[several.removesuffix('...')] = rest[len(names) :]
  for word in settings:
    if '=' not in word:
      raise UserError(f'{word}: write it as --config.KEY=VALUE.')
  arguments['settings'] = dict(word.removeprefix('--config.').split('=', 1) for word in settings)
  return command, arguments
