"""A model that is loaded from a `.keras` file goes on training where it was."""

import os
import subprocess
import sys
import warnings

import keras
import pytest
from small_tasks import CASES

from keras_megatron.finetuning.recipe import adamw

NAMES = ("TextClassifier", "Pretrainer", "CausalLM")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda case: case.name)
def test_training_goes_on_after_loading(case, tmp_path):
    model = case.make(seed=0, attention_dropout=0.0)
    optimizer = adamw(1e-2, total_steps=9, warmup=0.0, weight_decay=1.0)  # not of biases
    model.compile(optimizer=optimizer, run_eagerly=True)  # no need to compile
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(model.preprocessor(case.x, y=case.y))

    def losses(model):
        return model.fit(
            x, y, sample_weight=sample_weight, epochs=3, shuffle=False, verbose=0
        ).history["loss"]

    losses(model)
    model.save(tmp_path / "model.keras")
    expected = losses(model)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert losses(loaded) == pytest.approx(expected, rel=1e-5)
    # Negative controls: a new optimizer, and one that has the state but decays biases too.
    for state in (False, True):
        other = keras.saving.load_model(tmp_path / "model.keras")
        plain = optimizer.from_config(optimizer.get_config())
        if state:
            plain.build(other.trainable_variables)
            for variable, saved in zip(plain.variables, other.optimizer.variables, strict=True):
                variable.assign(saved)
        other.compile(optimizer=plain, run_eagerly=True)
        assert losses(other) != pytest.approx(expected, rel=1e-3)


def test_what_compile_was_given_is_kept(tmp_path):
    model = next(case for case in CASES if case.name == "CausalLM").make()
    model.compile(optimizer=keras.optimizers.SGD(0.5), sampler="greedy")
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of an optimizer that has no state yet, too
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.sampler) is type(model.sampler)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert float(loaded.optimizer.learning_rate) == 0.5
    assert type(loaded.loss) is type(model.loss)
    assert "jit_compile" not in model.get_compile_config()  # that is a matter of the backend


def freeze_all(task):
    task.backbone.trainable = False


def freeze_the_lower_half(task):
    task.backbone.embeddings.trainable = False
    task.backbone.get_layer("transformer_layer_0").trainable = False


def thaw_a_part(task):
    task.backbone.trainable = False
    task.backbone.get_layer("transformer_layer_0").self_attention.query.trainable = True


@pytest.mark.parametrize("freeze", [freeze_all, freeze_the_lower_half, thaw_a_part])
def test_what_is_frozen_stays_so(freeze, tmp_path):
    case = next(case for case in CASES if case.name == "TextClassifier")
    model = case.make(seed=0)
    every = len(model.trainable_variables)
    freeze(model)
    model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
    x, y, _ = keras.utils.unpack_x_y_sample_weight(model.preprocessor(case.x, y=case.y))
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of an optimizer of other weights
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    trained = [variable.path for variable in model.trainable_variables]
    assert [variable.path for variable in loaded.trainable_variables] == trained
    assert len(trained) < every
    model.save_to_preset(tmp_path / "preset")  # which is to start from
    preset = type(model).from_preset(str(tmp_path / "preset"))
    assert len(preset.trainable_variables) == every


_OTHER_BACKEND = """
import sys, keras
import keras_megatron
model = keras.saving.load_model(sys.argv[1])
print(*sorted(variable.path for variable in model.trainable_variables), sep="\\n")
"""


@pytest.mark.parametrize("with_preprocessor", [True, False])
def test_what_is_frozen_stays_so_on_another_backend(with_preprocessor, tmp_path):
    """Backends list layers in other orders."""
    model = next(case for case in CASES if case.name == "TextClassifier").make()
    if not with_preprocessor:
        model = type(model)(model.backbone, num_classes=2, preprocessor=None)
    freeze_the_lower_half(model)
    model.compile()
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    other = "torch" if keras.config.backend() == "jax" else "jax"
    found = subprocess.run(
        [sys.executable, "-c", _OTHER_BACKEND, str(tmp_path / "model.keras")],
        env={**os.environ, "KERAS_BACKEND": other},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    assert found == sorted(variable.path for variable in model.trainable_variables)


def test_weights_without_decay_stay_so_below_loss_scaling(tmp_path):
    model = next(case for case in CASES if case.name == "TextClassifier").make()
    model.compile(keras.optimizers.LossScaleOptimizer(adamw(1e-2, 9)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for task in (model, loaded):
        decayed = [
            v
            for v in task.trainable_variables
            if task.optimizer.inner_optimizer._use_weight_decay(v)
        ]
        assert decayed
        assert not [v.path for v in decayed if v.path.endswith("bias")]


def test_nothing_is_measured_if_nothing_is_asked():
    model = next(case for case in CASES if case.name == "TextClassifier").make()
    model.compile(loss="mse", metrics=None, weighted_metrics=None)
    assert set(model.evaluate(["a", "b"], [[1.5, 0], [0, 2]], return_dict=True, verbose=0)) == {
        "loss"
    }


def test_a_backbone_is_frozen_by_its_argument():
    backbone = next(case for case in CASES if case.name == "TextClassifier").make().backbone
    frozen = type(backbone).from_config({**backbone.get_config(), "trainable": False})
    assert not keras.Model(frozen.input, frozen.output).trainable_variables
    assert backbone.trainable_variables
