"""AdamW as `keras.optimizers.AdamW` computes it, exact on TensorFlow and fast on PyTorch."""

import keras

# On PyTorch Keras puts a class of its own in the place of `keras.optimizers.AdamW`. No optimizer is
# made to see it: its variables would start JAX, whose processes must be connected before.
_KerasAdamW = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable(package="keras_megatron")
class DenseAdamW(_KerasAdamW):
    """Keras's AdamW with some things mended; the arguments are the same.

    - A schedule is asked for the rate of an update. Where gradients are accumulated, Keras asks for
      that of a part: warm-up and decay end too early.
    - TensorFlow gives the gradient of a table of embeddings by rows, one for each time that an id
      occurs, and Keras takes the global norm before they are added up: it clips too much. Here the
      norm is that of the gradient of each variable.
    - On PyTorch Keras goes over all weights a dozen times a step; with the table of embeddings
      that takes longer than the model. Here PyTorch's fused kernel goes once.
    """

    _is_fused = False  # whether the step at hand is one call of PyTorch's kernel

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _backend_apply_gradients(self, grads, trainable_variables):
        self._is_fused = self._can_fuse()
        super()._backend_apply_gradients(grads, trainable_variables)

    def _clip_gradients(self, grads):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            grads = [None if grad is None else tf.convert_to_tensor(grad) for grad in grads]
        return grads if self._is_fused else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables):
        if not self._is_fused:
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if not self._is_fused:
            return super()._backend_update_step(grads, trainable_variables, learning_rate)
        from keras_megatron.finetuning import torch_adamw

        return torch_adamw.update(self, grads, trainable_variables, learning_rate)

    def _can_fuse(self) -> bool:
        """Say whether PyTorch's kernel can do clipping, decay and update at once."""
        if keras.backend.backend() != "torch" or self.clipnorm or self.clipvalue:
            return False
        from keras_megatron.finetuning import torch_adamw

        return torch_adamw.can_fuse(self)
