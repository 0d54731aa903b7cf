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

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _clip_gradients(self, grads):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            grads = [None if grad is None else tf.convert_to_tensor(grad) for grad in grads]
        return grads if self._fuses() else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables):
        if not self._fuses():
            super()._apply_weight_decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        if not self._fuses():
            return super()._backend_update_step(grads, trainable_variables, learning_rate)
        from keras_megatron.finetuning import torch_adamw

        return torch_adamw.update(self, grads, trainable_variables, learning_rate)

    def _fuses(self) -> bool:
        """Say whether PyTorch's kernel does clipping, decay and update at once."""
        if keras.backend.backend() != "torch" or self.clipnorm or self.clipvalue:
            return False
        from keras_megatron.finetuning import torch_adamw

        return torch_adamw.can_fuse(self)
