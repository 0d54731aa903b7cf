"""Pretraining from token files to a preset, in a folder of its own."""

import contextlib
import os

import grain
import keras

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.finetuning.atomic import replace_json
from keras_megatron.finetuning.recipe import adamw
from keras_megatron.finetuning.run_folder import METRICS, RunFolder
from keras_megatron.padding import padded_vocabulary_size
from keras_megatron.pretraining.checkpoints import Checkpoints
from keras_megatron.pretraining.progress import PretrainingLog, pretraining_metrics
from keras_megatron.pretraining.sentence_pairs import prefetched, pretraining_batches
from keras_megatron.pretraining.settings import SHAPE, PretrainSettings
from keras_megatron.pretraining.token_files import TokenFiles
from keras_megatron.processes import is_first, wait_for_all
from keras_megatron.tasks.packed_training import pack_batches
from keras_megatron.tasks.pretrainer import MegatronBertPretrainer
from keras_megatron.tasks.pretrainer_preprocessor import MegatronBertPretrainerPreprocessor
from keras_megatron.tasks.quiet import heads_are_trained
from keras_megatron.tokenizer import MegatronBertTokenizer

CHECKPOINTS = "checkpoints"
_EVALUATION_SEED = 2**31 - 1


def pretrain(
    settings: PretrainSettings,
    output: str | os.PathLike,
    *,
    save_every: int = 1000,
    keep: int = 2,
    log_every: int = 10,
    evaluate_every: int | None = None,
    workers: int = 0,
    jit_compile: bool | str = "auto",
    verbose: bool = True,
) -> dict:
    """Pretrain a model as Megatron does, or go on where a run was stopped.

    A run that was killed goes on from its last checkpoint with the losses that it would have had:
    each batch is a function of the seed and its number alone, and a checkpoint has weights, the
    optimizer's state, and the state of what dropout draws. Inside of
    `keras_megatron.parallel.model_parallel` the model is split over devices.

    Args:
        settings: of the run.
        output: folder to make, or of this very run. It gets `checkpoints`, `log.jsonl`,
            `tensorboard`, `run.json` and, at the end, `preset` and `metrics.json`.
        save_every: steps a checkpoint.
        keep: how many checkpoints are kept.
        log_every: steps a line of the log; `steps` and the other numbers are multiples of it.
        evaluate_every: steps until the held-out data is measured; at the end only if None.
        workers: processes that make batches; 0 makes them in threads of this one.
        jit_compile: of `MegatronBertPretrainer.compile`.
        verbose: whether to show a progress bar.

    Returns:
        What `metrics.json` has: `steps`, `tokens`, `seconds` and, with held-out data, `held_out`,
        a dict of metrics.

    Raises:
        ValueError: a setting, a file or the folder cannot be used; nothing has been written then.
    """
    _check_intervals(settings.steps, log_every, save_every, evaluate_every)
    if evaluate_every is not None and settings.held_out is None:
        raise ValueError("evaluate_every needs held-out data: set held_out to its token files")
    folder = RunFolder(output, settings.facts())
    checkpoints = Checkpoints(folder.path / CHECKPOINTS, keep)
    if folder.metrics:
        if is_first():
            print(f"{output} is finished: there is nothing left to do")
        return folder.metrics
    model = build_pretrainer(settings)
    _compile(model, settings, jit_compile)  # whether shapes are compiled is known then
    batches, held_out = _data(settings, model)
    wait_for_all()  # each has seen the folder as it was
    with folder.alone():
        if is_first():
            checkpoints.clean()
        wait_for_all()
        log = PretrainingLog(
            folder.path,
            checkpoints,
            settings,
            held_out,
            every={"save": save_every, "log": log_every, "evaluate": evaluate_every},
            verbose=verbose,
        )
        _fit(model, settings, batches, log, log_every, workers)
        return _finish(model, folder, log)


def build_pretrainer(settings: PretrainSettings) -> MegatronBertPretrainer:
    """Make the model of a run, with random weights or those of its preset.

    Raises:
        ValueError: the preset or the vocabulary cannot be used.
    """
    keras.utils.set_random_seed(settings.seed)
    model = _from_preset(settings) if settings.preset is not None else _from_shape(settings)
    if settings.sequence_length > model.backbone.max_sequence_length:
        raise ValueError(
            f"sequence_length={settings.sequence_length} is more than the "
            f"{model.backbone.max_sequence_length} positions of {settings.preset}"
        )
    model.backbone.gradient_checkpointing = settings.gradient_checkpointing
    model.preprocessor.sequence_length = settings.sequence_length
    return model


def _from_preset(settings: PretrainSettings) -> MegatronBertPretrainer:
    with heads_are_trained():
        model = MegatronBertPretrainer.from_preset(settings.preset, dtype=settings.dtype)
    if settings.dropout is None:
        return model
    config = model.backbone.get_config() | _dropout(settings.dropout)
    other = MegatronBertPretrainer(
        MegatronBertBackbone.from_config(config), model.preprocessor, model.head_activation
    )
    other.set_weights(model.get_weights())
    return other


def _from_shape(settings: PretrainSettings) -> MegatronBertPretrainer:
    tokenizer = MegatronBertTokenizer(settings.vocabulary, lowercase=settings.lowercase)
    shape = {name: getattr(settings, name) for name in SHAPE}
    for name in ("initializer_range", "apply_residual_connection_post_layernorm"):
        shape[name] = getattr(settings, name)
    shape["intermediate_dim"] = settings.intermediate_dim or 4 * settings.hidden_dim
    shape |= {} if settings.dropout is None else _dropout(settings.dropout)
    rows = padded_vocabulary_size(tokenizer.vocabulary_size(), model_parallel_size=1)
    backbone = MegatronBertBackbone(rows, **shape, dtype=settings.dtype)
    preprocessor = MegatronBertPretrainerPreprocessor(
        tokenizer,
        settings.sequence_length,
        mask_selection_rate=settings.selection_rate,
        max_ngram=settings.max_ngram,
        whole_word_masking=settings.whole_words,
    )
    return MegatronBertPretrainer(backbone, preprocessor)


def _dropout(rate: float) -> dict[str, float]:
    return {"dropout": rate, "attention_dropout": rate}


def _data(settings: PretrainSettings, model) -> tuple[grain.MapDataset, grain.MapDataset | None]:
    """Return the batches of all epochs, a part of a step each, and those to measure on."""
    tokenizer = model.preprocessor.tokenizer

    def batches(prefix: str, seed: int) -> grain.MapDataset:
        return pretraining_batches(
            TokenFiles.open(prefix, tokenizer),
            tokenizer,
            settings.batch_size // settings.accumulation,
            settings.sequence_length,
            settings.masking(),
            seed=seed,
            pair_rate=settings.pair_rate,
        )

    made = batches(settings.tokens, settings.seed)
    if settings.packing:
        made = pack_batches(model, made)
    if settings.held_out is None:
        return made, None
    return made, batches(settings.held_out, _EVALUATION_SEED)


def _compile(model, settings: PretrainSettings, jit_compile: bool | str) -> None:
    optimizer = adamw(
        settings.learning_rate,
        settings.steps,
        settings.warmup,
        settings.weight_decay,
        settings.final_learning_rate,
        settings.clip,
        gradient_accumulation_steps=settings.accumulation if settings.accumulation > 1 else None,
    )
    # Scales the loss if the policy is mixed_float16.
    model.compile(
        optimizer=optimizer, weighted_metrics=pretraining_metrics(), jit_compile=jit_compile
    )


def _fit(model, settings, batches, log: PretrainingLog, log_every: int, workers: int) -> None:
    if log.progress.step:
        # TensorFlow makes the variables that a state has in the first step.
        model.optimizer.build(model.trainable_variables)
        model.evaluate(batches[:1], verbose=0)
    parts = settings.accumulation
    rest = batches.repeat()[log.progress.step * parts : settings.steps * parts]
    if not len(rest):  # killed after its last step
        log.restore(model)
        return
    with contextlib.closing(iter(prefetched(rest, workers))) as made:  # ends what makes them
        keras.Model.fit(  # KerasHub's would begin the data twice, with its processes
            model,
            (batch for batch in made),
            initial_epoch=log.progress.step // log_every,
            epochs=settings.steps // log_every,
            steps_per_epoch=log_every * parts,
            callbacks=[log],
            shuffle=False,  # it is done
            verbose=0,
        )


def _finish(model, folder: RunFolder, log: PretrainingLog) -> dict:
    """Write the preset and the metrics; the last checkpoints stay, to go on from."""
    folder.save_preset(model)
    if is_first():
        replace_json(folder.path / METRICS, log.metrics())
    wait_for_all()
    return folder.metrics


def _check_intervals(steps: int, log_every: int, save_every: int, evaluate_every) -> None:
    if log_every < 1:
        raise ValueError(f"log_every must be at least 1, not {log_every}")
    numbers = {"steps": steps, "save_every": save_every, "evaluate_every": evaluate_every}
    for name, number in numbers.items():
        if number is not None and (number < 1 or number % log_every):
            raise ValueError(f"{name}={number} must be a multiple of log_every={log_every}")
