"""CMU-MOSI by utterance features in the context of their video (Poria et al. 2017).

  ./launch.sh prepare mosi/bclstm_videos --source FOLDER
  ./launch.sh train configs/sentiment/mosi_context.py:fusion=tensor --workdir runs/tensor
  ./launch.sh evaluate runs/tensor

Data: positive or negative utterances. Training on all 62 training videos follows the paper.
`:fusion=` is any of mmlm/models/fusion/, `:modalities=text+audio` any subset of text, audio and
video. Scores: experiments/README.md. How the noise on the features was chosen: see NOISE.
"""

from ml_collections import ConfigDict

from configs.smoke import smoke
from mmlm.config import chosen, default_config, parse_arg

FIELDS = {'text': 'text_features', 'audio': 'audio', 'video': 'video'}
WIDTHS = {'text': 100, 'audio': 73, 'video': 100}
# Standard deviations of the noise that training adds to the features.
# The features of text and video were trained with the labels of the training videos, also of those
# that are held out here, and reveal far more of these than of other videos. The noise leaves about
# as much of each alone, on ten held-out training videos, as is revealed on test videos: 78.1 % of
# text, as reported of Poria et al. 2017, and 55.8 % of video (from memory, not checked against the
# paper). 12 leave 77.5 % +- 0.2 of text, 10 leave 81.5 % +- 0.3; of video 11 leave 58.1 % +- 1.7,
# 9 leave 60.8 % +- 1.3:
#   python -m experiments.mosi_noise --folds 1 --seeds 3 --modalities text --noise 10,12
#   python -m experiments.mosi_noise --folds 1 --seeds 3 --modalities video --noise 9,11
# The 11 were chosen before there were buckets, when they left 55.8 % +- 2.5.
# The features of sound were not trained, and reveal next to nothing of other speakers. Over all six
# folds of the training videos text alone has 77.3 %, text and video 77.6 %, and all three 73.2,
# 76.5, 77.2 and 77.5 % with a noise of 2, 4, 8 and 16 of sound (`--seeds 1
# --set model.encoders.audio.noise=8.0 --set train.duration="80 epochs"
# --set train.eval_every="80 epochs"`). 40 epochs have half a point less than 80 (76.7 % with 8), in
# half the time. Late fusion with a noise of 2, chosen on ten videos alone, had been seen on the
# test set before the folds were run (78.7 % of all three, 77.2 % of text and sound; 5 seeds,
# 80 epochs). The learning rate was tuned by hand with an earlier form of the model.
NOISE = {'text': 12.0, 'audio': 16.0, 'video': 11.0}


def encoder(modality: str) -> dict:
  """Returns the options of the encoder of a modality."""
  return {
    'name': 'feature_recurrent',
    'width': WIDTHS[modality],
    'normalize': True,
    'noise': NOISE[modality],
  }


def get_config(arg: str = '') -> ConfigDict:
  args = parse_arg(arg, smoke=False, fusion='late', modalities='text+audio+video')
  fields = chosen(args.modalities, FIELDS)
  config = default_config()
  config.task = 'classification'
  config.data.name = 'mosi/bclstm_videos'
  config.data.fields = {'id': 'id', 'parts': 'parts', 'label': 'binary'} | fields
  # 'valid' is part of the 62 training videos: it chooses nothing, and scores far too well.
  config.data.splits = {'train': 'train+valid', 'valid': 'valid', 'test': ('test',)}
  config.data.train_ops = ()
  config.data.eval_ops = ()
  config.data.max_length = 64
  config.data.buckets = (22, 32, 64)
  config.tokenizer.kind = 'none'
  config.model.dim = 64
  config.model.dropout = 0.0
  config.model.encoders = {modality: encoder(modality) for modality in fields}
  config.model.fusion = {'name': args.fusion}
  config.model.context = {'name': 'feature_recurrent', 'width': config.model.dim}
  config.model.head = {
    'name': 'classifier',
    'pool': 'each',
    'hidden': 512,
    'classes': ('negative', 'positive'),
  }
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup = '20 steps'
  config.train.duration = '40 epochs'
  config.train.eval_every = '40 epochs'
  config.train.batch_size = 13
  config.train.label_smoothing = 0.0
  config.train.monitor = 'accuracy'
  config.evaluate.batch_size = 31
  config.evaluate.checkpoint = 'latest'
  config.evaluate.shuffled = False  # videos have different numbers of utterances
  if args.smoke:
    return smoke(config)
  return config
