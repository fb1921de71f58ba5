"""mmlm: multimodal language processing with JAX and Flax.

    examples --transforms--> batch --encoders--> sequences --fusion--> memory --head--> outputs
    outputs --loss--> gradients --> state            or --search--> hypotheses --metrics--> scores

Rooms, from the top; imports go down only:

    cli             one file a command, named as the command; flags.py: all commands and their flags
    reports, demo   pages about runs; a page that answers
    sweeps          many runs: spaces, samplers, executors, several trials in one program
    inference       answers for raw examples, writes and scores text, exports models
    word_vectors    all that only word vectors need
    experiment      a config and a run folder, wired to task, data, model, parameters, evaluator
    tasks           what a task reads, its loss, its answers, its small form
    training        train step, loop, losses, optimizers, LoRA, checkpoints, logs
    transcription   long sounds to text and subtitles
    config          the schema (one key a line), reading, checking, durations
    pretrained      weights and tokenizers from elsewhere, one file a family
    models          encoders, fusions, heads and the layers that they share
    evaluation      metrics, evaluators, significance, ablation
    data            data sets, sources, transforms, tokenizers, batches
    decoding        search, CTC, n-grams, score fusion, alignment
    parallel        jit, pmap and mesh strategies, sharding rules, hosts
    utils           errors, run folders, parameters by path, watchdog

A new part is a class (or function) and one line in the dict of its room: COMMANDS (cli.flags),
TASKS (tasks), ENCODERS, FUSIONS, HEADS (models), METRICS (evaluation.metrics), DATASETS
(data.datasets), SOURCES (data.sources), IMAGE_TRANSFORMS, AUDIO_TRANSFORMS (data.transforms),
OPTIMIZERS, SCHEDULES (training.optimizers), FAMILIES (pretrained). What others need to know of a
part stands on its class.
"""
