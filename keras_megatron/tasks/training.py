import keras

from keras_megatron.layers.transformer_layer import MegatronBertLayer


class DefaultTraining:
    """How a task is trained if `compile` is not told otherwise, and that `.keras` files keep it."""

    default_learning_rate = 5e-5  # of Adam

    def compile(
        self,
        optimizer="auto",
        loss="auto",
        *,
        metrics="auto",
        weighted_metrics="auto",
        jit_compile="auto",
        **kwargs,
    ):
        """Configure training; see `keras.Model.compile`.

        Args:
            optimizer: by default Adam with `default_learning_rate`.
            loss: by default what `default_loss` returns.
            metrics: by default what `default_metrics` returns.
            weighted_metrics: likewise.
            jit_compile: bool or "auto". On PyTorch `True` compiles the transformer layer, once for
                all of them, where the model is on a GPU; the rest of a step runs as it is. On JAX
                and TensorFlow see `keras.Model.compile`.
            **kwargs: of `keras.Model.compile`, and of the KerasHub base class.
        """
        if optimizer == "auto":
            optimizer = keras.optimizers.Adam(self.default_learning_rate)
        if loss == "auto":
            loss = self.default_loss()
        given = {"metrics": metrics, "weighted_metrics": weighted_metrics}
        given = {
            name: self.default_metrics().get(name) if value == "auto" else value
            for name, value in given.items()
        }
        if keras.config.backend() == "torch":
            for layer in self.backbone._flatten_layers():
                if isinstance(layer, MegatronBertLayer):
                    layer.is_compiled = jit_compile is True
            jit_compile = False  # of the whole step: it takes minutes, and most of it is left out
        self._compile_loss = self._compile_metrics = None  # which Keras keeps where None is given
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **given, **kwargs)

    def get_compile_config(self) -> dict:
        """Return the arguments of `compile` that a `.keras` file keeps.

        `jit_compile` is not among them: what it is by default depends on the backend. The names
        that the optimizer leaves out of the weight decay are, which its own config lacks, and which
        layers are frozen, unless that is for LoRA, whose changes become part of the kernels.
        """
        config = {**super().get_compile_config()}
        config.pop("jit_compile", None)
        if config and self.optimizer:
            optimizer = _innermost(self.optimizer)
            excluded = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
            # Within the optimizer's own, where Keras leaves out what it does not know: a clone is
            # compiled by a class that knows nothing of it.
            own = {"no_weight_decay": excluded and excluded.pattern, "is_built": optimizer.built}
            if not self._has_lora():
                own["frozen_weights"] = self._frozen_weights()
            config["optimizer"] = {**config["optimizer"], **own}
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compile as a model was that is loaded from a `.keras` file.

        Keras does not for a class with a `compile` of its own. The state of the optimizer is loaded
        after this.
        """
        stored = config.get("optimizer") or {}
        self._freeze(set(stored.get("frozen_weights", [])))
        config = keras.saving.deserialize_keras_object(config)
        if excluded := stored.get("no_weight_decay"):
            _innermost(config["optimizer"]).exclude_from_weight_decay(var_names=[excluded])
        self.compile(**config)
        if stored.get("is_built"):
            self.optimizer.build(self.trainable_variables)

    def _has_lora(self) -> bool:
        return any(getattr(layer, "lora_enabled", False) for layer in self._flatten_layers())

    def _frozen_weights(self) -> list[str]:
        """Return the paths of weights in frozen layers; the order of layers is each backend's."""
        own = (weight for layer in self._flatten_layers() for weight in layer._trainable_variables)
        return sorted({weight.path for weight in own if not weight.trainable})

    def _freeze(self, paths: set[str]) -> None:
        """Freeze weights, and the layers that have no others of their own."""
        for layer in self._flatten_layers():
            own = layer._trainable_variables
            for weight in own:
                weight.trainable = weight.path not in paths
            if own:  # set so, it does not reach the layers within
                layer._trainable = any(weight.trainable for weight in own)

    def check_can_train(self) -> None:
        """Refuse weights of 16 bits, unless they are trained by gradients alone, and other weights.

        Raises:
            ValueError: as said; or layers were frozen, quantized or given adapters since the
                optimizer took its first step, which TensorFlow would not see.
        """
        optimizer = _innermost(self.optimizer)
        if getattr(optimizer, "built", False) and (
            set(map(id, optimizer._trainable_variables)) != set(map(id, self.trainable_variables))
        ):
            raise ValueError("what is trained has changed since `compile`: call it again")
        if isinstance(optimizer, keras.optimizers.SGD):
            return
        for weight in self.trainable_weights:
            check_keeps_updates(keras.backend.standardize_dtype(weight.dtype))

    def has_usual_loss(self) -> bool:
        """Say whether the loss takes the task's labels: it is the default one, or a cross entropy.

        A loss of your own may take what it likes.
        """
        usual = {type(loss) for loss in keras.tree.flatten(self.default_loss())}
        losses = keras.tree.flatten(getattr(self, "loss", None))
        return all(type(loss) in usual or _is_cross_entropy(loss) for loss in losses)

    def has_default_loss(self) -> bool:
        """Say whether the loss is the one that `compile` takes by default."""
        losses, default = (
            [loss.get_config() if isinstance(loss, keras.losses.Loss) else loss for loss in losses]
            for losses in map(
                keras.tree.flatten, (getattr(self, "loss", None), self.default_loss())
            )
        )
        return losses == default

    def has_measures_of_elements(self) -> bool:
        """Say whether all metrics are the default ones, or weighted means over labels.

        Others may look at a sample's labels together, or at padding.
        """
        given = self._compile_metrics
        if given is None:
            return True
        default = keras.tree.flatten(list(self.default_metrics().values()))
        types = {type(metric) for metric in default if isinstance(metric, keras.metrics.Metric)}
        weighted = keras.tree.flatten(given._user_weighted_metrics)
        plain = keras.tree.flatten(given._user_metrics)
        return not any(plain) and all(
            type(metric) in types or isinstance(metric, keras.metrics.MeanMetricWrapper)
            for metric in weighted
        )

    # === Hooks ===

    def default_loss(self):
        """Return the loss that `compile` takes by default; None if there is none."""

    def default_metrics(self) -> dict[str, list | dict]:
        """Return `metrics` or `weighted_metrics` for `compile`, by this name."""
        return {}


def check_keeps_updates(dtype: str) -> None:
    """Refuse to train weights in 16 bits.

    A step is smaller than what they are rounded by; and in bfloat16 Keras's Adam makes none at all,
    as its `beta_2` becomes 1.

    Args:
        dtype: of the weights, or the name of a dtype policy.

    Raises:
        ValueError: it is float16 or bfloat16.
    """
    if dtype in ("float16", "bfloat16"):
        raise ValueError(
            f"dtype {dtype!r} rounds updates away: use 'mixed_{dtype}', which keeps weights in "
            "float32"
        )


def _innermost(optimizer):
    """Return the optimizer that one which scales the loss wraps."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_cross_entropy(loss) -> bool:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.lower().replace("_", "").endswith("crossentropy")
