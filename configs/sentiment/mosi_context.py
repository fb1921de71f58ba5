"""CMU-MOSI, positive or negative, from utterance features of text, sound and picture with the context of the video (Poria et al. 2017).

  ./launch.sh prepare mosi/bclstm_videos --source FOLDER
  ./launch.sh train configs/sentiment/mosi_context.py:fusion=tensor --workdir runs/tensor
  ./launch.sh evaluate runs/tensor

Dropout is that of its authors' code: 0.4 before each recurrent layer and 0.9 before the answer and the layer below it.
`:fusion=` any of mmlm/models/fusion.py, `:modalities=text+audio` any subset of text, audio and video.
"""

from mmlm.config import default_config, parse_arg, smoke

FIELDS = {'text': 'text_features', 'audio': 'audio', 'video': 'video'}
WIDTHS = {'text': 100, 'audio': 73, 'video': 100}


def get_config(arg=''):
  args = parse_arg(arg, smoke=False, fusion='late', modalities='text+audio+video')
  modalities = args.modalities.split('+')
  config = default_config()
  config.task = 'classification'
  config.data.name = 'mosi/bclstm_videos'
  config.data.fields = {'id': 'id', 'parts': 'parts', 'label': 'binary'} | {m: FIELDS[m] for m in modalities}
  # As published, all 62 training videos are trained on. The features were learned on them too, so that no score on a held-out part
  # could choose anything: 'valid' is only watched, and the number of epochs is fixed beforehand.
  config.data.splits = {'train': 'train+valid', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = config.data.eval_ops = ()
  config.data.max_length = 64
  config.tokenizer.kind = 'none'
  config.model.dim = 128
  config.model.dropout = 0.4
  config.model.encoders = {m: {'name': 'feature_recurrent', 'width': WIDTHS[m]} for m in modalities}
  config.model.fusion = {'name': args.fusion}
  config.model.context = {'name': 'feature_recurrent', 'width': config.model.dim}
  config.model.head = {'name': 'classifier', 'pool': 'each', 'hidden': 512, 'answer_dropout': 0.9, 'classes': ('negative', 'positive')}
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup = '20 steps'
  config.train.duration = '40 epochs'
  config.train.batch_size = 13
  config.train.label_smoothing = 0.0
  config.train.monitor = 'accuracy'
  config.evaluate.batch_size = 31
  config.evaluate.checkpoint = 'latest'
  config.evaluate.shuffled = False  # videos have different numbers of utterances
  return smoke(config) if args.smoke else config
