"""The optimizer of the recipe, step by step next to PyTorch's."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import torch
from models import as_numpy, small_backbone

from keras_megatron import MegatronBertMaskedLM, MegatronBertTextClassifier
from keras_megatron.finetuning import FinetuneSettings
from keras_megatron.finetuning.optimizer import DenseAdamW
from keras_megatron.finetuning.recipe import RECIPES, LinearWarmupDecay, Recipe, adamw

STEPS, WARMUP, PEAK = 40, 0.2, 0.05
TOLERANCE = 1e-5  # Keras takes powers of the betas in float32


def problem():
    """Return weights by name and, a step each, gradients: some above the clip, some below."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((4, 3)).astype("float32"),
        "embeddings": rng.standard_normal((5, 2)).astype("float32"),
        "bias": rng.standard_normal(3).astype("float32"),
        "gamma": rng.standard_normal(3).astype("float32"),
        "beta": rng.standard_normal(3).astype("float32"),
    }
    scales = np.geomspace(0.01, 10, STEPS)
    gradients = [
        {n: (s * rng.standard_normal(w.shape)).astype("float32") for n, w in weights.items()}
        for s in rng.permutation(scales)
    ]
    return weights, gradients


def keras_steps(optimizer) -> dict[str, np.ndarray]:
    weights, gradients = problem()
    variables = [keras.Variable(value, name=name) for name, value in weights.items()]
    optimizer.build(variables)
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(step[v.name]) for v in variables])
    return {v.name: as_numpy(v.value) for v in variables}


def torch_steps() -> dict[str, np.ndarray]:
    weights, gradients = problem()
    parameters = {n: torch.nn.Parameter(torch.from_numpy(w.copy())) for n, w in weights.items()}
    groups = [
        {"params": [p for n, p in parameters.items() if n in names], "weight_decay": decay}
        for names, decay in ((("kernel", "embeddings"), 0.01), (("bias", "gamma", "beta"), 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-8)
    warmup = int(WARMUP * STEPS)

    def share_of_peak(step):
        return step / warmup if step < warmup else (STEPS - step) / (STEPS - warmup)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_peak)
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(step[name])
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        schedule.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def difference(ours: dict, theirs: dict) -> float:
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


@pytest.mark.parity
def test_steps_equal_pytorchs(parity):
    theirs = torch_steps()
    ours = keras_steps(adamw(PEAK, STEPS, warmup=WARMUP, weight_decay=0.01))
    for name in theirs:
        parity(f"AdamW, {STEPS} steps", ours[name], theirs[name], TOLERANCE)

    decay_all = keras.optimizers.AdamW(
        LinearWarmupDecay(PEAK, STEPS, 8), weight_decay=0.01, epsilon=1e-8, global_clipnorm=1.0
    )
    for wrong in (
        decay_all,  # of biases and LayerNorms too
        adamw(PEAK, STEPS, warmup=WARMUP, weight_decay=0.0),
        adamw(PEAK, STEPS, warmup=WARMUP, weight_decay=0.01, clip=None),
        adamw(PEAK, STEPS + 1, warmup=WARMUP, weight_decay=0.01),
    ):
        assert difference(keras_steps(wrong), theirs) > 20 * TOLERANCE


def test_layer_norms_and_biases_do_not_decay():
    model = MegatronBertMaskedLM(small_backbone())
    optimizer = adamw(1e-3, 10)
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(5)
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones(variable.shape))
    zeros = [keras.ops.zeros(variable.shape) for variable in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    kept = {v.path for v in model.trainable_variables if (as_numpy(v.value) == 1).all()}
    decaying = {v.path for v in model.trainable_variables if (as_numpy(v.value) < 1).all()}
    assert len(kept) + len(decaying) == len(model.trainable_variables)

    norms = {
        f"{layer.path}/{name}"
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.LayerNormalization)
        for name in ("gamma", "beta")
    }
    biases = {v.path for v in model.trainable_variables if v.path.endswith("/bias")}
    assert norms
    assert biases
    assert kept == norms | biases
    assert {path.rpartition("/")[2] for path in decaying} == {"kernel", "embeddings"}
    assert sum(path.endswith("embeddings") for path in decaying) == 3


def test_adapters_decay_as_kernels_do():
    backbone = small_backbone()
    backbone.enable_lora(2)
    optimizer = adamw(1e-3, 10)
    optimizer.build(backbone.trainable_variables)
    adapters = [v for v in backbone.trainable_variables if "lora" in v.name]
    assert adapters
    assert all(optimizer._use_weight_decay(v) for v in adapters)


@pytest.mark.backend_independent
def test_the_rate_rises_falls_and_stays_at_the_floor():
    schedule = LinearWarmupDecay(1.0, total_steps=10, warmup_steps=4, floor=0.1)
    rates = [float(schedule(step)) for step in range(12)]
    falling = [1.0 - 0.9 * step / 6 for step in range(7)]
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, *falling, 0.1], rtol=1e-6)
    assert float(LinearWarmupDecay(1.0, total_steps=10)(0)) == 1.0
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(again(step)) for step in range(12)] == rates


@pytest.mark.backend_independent
@pytest.mark.parametrize(("make", "message"), [
    (lambda: LinearWarmupDecay(1e-3, 10, 10), "from 0 to less than total_steps, 10, not 10"),
    (lambda: LinearWarmupDecay(1e-3, 10, 0, 1e-2), "from 0 to the peak, 0.001, not 0.01"),
    (lambda: LinearWarmupDecay(-1e-3, 10), "the floor must be from 0 to the peak"),
    (lambda: adamw(1e-3, 0), "total_steps must be at least 1, not 0"),
    (lambda: adamw(1e-3, 10, warmup=1), "warmup is a share of the steps"),
    (lambda: adamw(1e-3, 10, weight_decay=-1), "weight_decay must be finite and not negative"),
    (lambda: adamw(1e-3, 10, weight_decay=math.nan), "weight_decay must be finite"),
    (lambda: Recipe(math.inf, 1, 1), "learning_rate must be positive and finite, not inf"),
    (lambda: Recipe(math.nan, 1, 1), "learning_rate must be positive and finite, not nan"),
])  # fmt: skip
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.backend_independent
def test_recipes_are_the_papers_table():
    """Arxiv 1909.08053, table 6: batch, learning rate, epochs for 336M, 1.3B and 3.9B."""
    table = {
        "mnli": [(128, 1e-5, 10)] * 3,
        "qqp": [(128, 5e-5, 12), (128, 3e-5, 12), (256, 4e-5, 12)],
        "squad1.1": [(64, 3e-5, 2), (48, 3e-5, 2), (48, 1e-5, 2)],
        "squad2.0": [(48, 3e-5, 2), (64, 3e-5, 2), (48, 1e-5, 2)],
        "race": [(32, 2e-5, 3), (16, 1e-5, 3), (32, 2e-5, 3)],
    }
    for task, rows in table.items():
        for size, row in zip(("336m", "1.3b", "3.9b"), rows, strict=True):
            recipe = RECIPES[f"{task}-{size}"]
            assert (recipe.batch_size, recipe.learning_rate, recipe.epochs) == row
    assert len(RECIPES) == 1 + sum(map(len, table.values()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["default"].epochs = 1
    optimizer = RECIPES["race-336m"].optimizer(total_steps=100)
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert float(RECIPES["race-336m"].schedule(100)(6)) == pytest.approx(2e-5)


def clipped_norm(optimizer) -> float:
    """Return the norm of the gradients that AdamW gets, of a batch where ids occur many times."""
    keras.utils.set_random_seed(0)
    classifier = MegatronBertTextClassifier(
        small_backbone(num_layers=1), num_classes=2, preprocessor=None
    )
    classifier.compile(optimizer=optimizer)
    shape = (4, 12)
    ids = {
        "token_ids": np.arange(48).reshape(shape) % 3 + 5,
        "segment_ids": np.zeros(shape, "int32"),
        "padding_mask": np.ones(shape, "int32"),
    }
    classifier.train_on_batch(ids, np.array([0, 1, 1, 0]))
    moments = [v for v in optimizer.variables if v.path.endswith("momentum")]
    moments = [as_numpy(moment) / (1 - optimizer.beta_1) for moment in moments]
    return float(np.sqrt(sum((moment**2).sum() for moment in moments)))


def test_the_global_norm_is_that_of_all_gradients():
    """As the gradients of tables are whole, Keras's own optimizer takes it too."""
    for optimizer in (
        adamw(1e-3, 10, clip=0.01),
        keras.optimizers.AdamW(1e-3, global_clipnorm=0.01),
    ):
        assert clipped_norm(optimizer) == pytest.approx(0.01, rel=1e-4)
    assert clipped_norm(adamw(1e-3, 10, clip=0.0101)) > 0.01 * 1.001  # negative control


@pytest.mark.parametrize("accumulated", [None, 2])
@pytest.mark.parametrize("clip", [None, 0.1, 1e3])
def test_steps_are_those_of_keras(accumulated, clip):
    """`DenseAdamW` has a step of its own on PyTorch."""

    def trained(optimizer_class, clip=clip, decay=0.3):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(4)])
        optimizer = optimizer_class(
            1e-2,
            weight_decay=decay,
            epsilon=1e-8,
            global_clipnorm=clip,
            gradient_accumulation_steps=accumulated,
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.compile(optimizer, "mse")
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 4))
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return np.concatenate([weight.ravel() for weight in model.get_weights()])

    ours = trained(DenseAdamW)
    np.testing.assert_allclose(ours, trained(keras.optimizers.AdamW), atol=2e-6)
    assert np.abs(ours - trained(DenseAdamW, clip=1e-7)).max() > 1e-5  # negative controls
    assert np.abs(ours - trained(DenseAdamW, decay=0.0)).max() > 1e-4


def test_gradients_that_are_given_stay_what_they_are():
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer = DenseAdamW(1e-2, global_clipnorm=0.1)
    gradient = keras.ops.convert_to_tensor(np.full(3, 7.0, "float32"))
    optimizer.apply([gradient], [variable])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(gradient), 7.0)
    assert not np.any(variable.numpy() == 1.0)


@pytest.mark.backend_independent
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_are_not_trained(dtype):
    settings = FinetuneSettings(
        task="text-classification", preset="p", train="a.tsv", dev="b.tsv", dtype=dtype
    )
    with pytest.raises(ValueError, match=f"dtype '{dtype}' .* use 'mixed_{dtype}'"):
        settings.resolved()
