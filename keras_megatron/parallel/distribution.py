"""Keras's ModelParallel, with what it would do wrong in silence made an error."""

import keras

_PAD = "load the preset with vocabulary_size=padded_vocabulary_size(pieces, devices)"
# What a split axis is, by the path of the variable that is the first to have it.
_MEANINGS = (
    ("token_embedding", "vocabulary_size", _PAD),
    ("mlm_head", "vocabulary_size", _PAD),
    ("_attention/", "num_heads", "use fewer devices for the model"),
    ("feedforward_", "intermediate_dim", "use fewer devices for the model"),
)


class MegatronParallel(keras.distribution.ModelParallel):
    """Tensor and data parallelism whose numbers are checked before anything is run.

    Args:
        layout_map: of `MegatronBertBackbone.get_layout_map`, or your own.
        batch_dim_name: the mesh's axis that batches are split over.
    """

    def __init__(self, layout_map: keras.distribution.LayoutMap, batch_dim_name: str = "batch"):
        super().__init__(
            layout_map=layout_map, batch_dim_name=batch_dim_name, auto_shard_dataset=False
        )

    def axis_size(self, name: str) -> int:
        """Return how many devices an axis of the mesh has."""
        return self.device_mesh.shape[self.device_mesh.axis_names.index(name)]

    def get_variable_layout(self, variable) -> keras.distribution.TensorLayout:
        """Return the layout of a variable.

        Raises:
            ValueError: an axis cannot be split into equal parts.
        """
        layout = super().get_variable_layout(variable)
        if len(layout.axes) != len(variable.shape):
            # int4 packs two numbers a byte, in two dimensions: it is replicated.
            layout = keras.distribution.TensorLayout([None] * len(variable.shape), self.device_mesh)
        for size, axis in zip(variable.shape, layout.axes, strict=True):
            if axis is not None and size % self.axis_size(axis):
                raise ValueError(self._not_divisible(variable.path, size, axis))
        return layout

    def get_data_layout(self, data_shape) -> keras.distribution.TensorLayout:
        """Return the layout of an array of a batch; a scalar is replicated.

        Raises:
            ValueError: the batch cannot be split into equal parts.
        """
        if not len(data_shape):
            return keras.distribution.TensorLayout([], self.device_mesh)
        size = self.axis_size(self.batch_dim_name)
        if data_shape[0] % size:
            raise ValueError(
                f"a batch of {data_shape[0]} samples cannot be split over the {size} devices of "
                f"axis {self.batch_dim_name!r}: give a multiple of {size} samples, and a "
                "batch_size that leaves no smaller rest"
            )
        return super().get_data_layout(data_shape)

    def _not_divisible(self, path: str, size: int, axis: str) -> str:
        name, remedy = f"an axis of {path}", "use fewer devices for the model"
        for part, meaning, what_to_do in _MEANINGS:
            if part in path:
                name, remedy = meaning, what_to_do
                break
        return (
            f"{name}={size} cannot be split over the {self.axis_size(axis)} devices of axis "
            f"{axis!r}: {remedy}"
        )
