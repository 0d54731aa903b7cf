"""Samples that arrive in batches: of a `keras.utils.PyDataset`, a generator or PyTorch's loader."""

import functools
from collections.abc import Callable, Iterator, Mapping

import grain
import keras
import numpy as np

from keras_megatron.tasks.class_weights import class_weights, with_class_weights
from keras_megatron.tasks.kept_weights import kept_weights, one_at_a_time
from keras_megatron.tasks.quiet import quiet
from keras_megatron.tasks.samples import from_epoch, positive

_LOADER = "torch.utils.data.dataloader"  # looked for by name: PyTorch may not be installed


class StreamedSamples:
    """Training, measuring and predicting on batches of samples, raw or of ids, as they come.

    They come from a `keras.utils.PyDataset`, a generator or PyTorch's `DataLoader`, as `x`,
    `(x, y)` or `(x, y, sample_weight)`, and keep their order and their size. Other data is left to
    the class behind this one in the bases.
    """

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Train; see `RawSamples.fit`."""
        self.check_can_train()
        with kept_weights(self, kwargs):
            return self._fit(x, y, *args, validation_data=validation_data, **kwargs)

    def _fit(self, x, y, *args, validation_data, **kwargs):
        weights = kwargs.pop("class_weight", None)
        if weights is not None:
            weights = class_weights(self, weights)
        if not is_stream(x) and not is_stream(validation_data):
            kwargs |= {"class_weight": weights} if weights else {}
            return super().fit(x, y, *args, validation_data=validation_data, **kwargs)
        batch_size = positive("batch_size", kwargs.get("batch_size"))
        if is_stream(validation_data):
            validation_data = self._ready(validation_data, kwargs, "validation_steps")
        else:
            validation_data = self._validation_of_fit(validation_data, batch_size, kwargs)
        if is_stream(x):
            x = self._ready(x, kwargs, "steps_per_epoch", class_weight=weights)
        else:
            x, y = self._batches_of_fit(x, y, kwargs, weights)
        with quiet():
            return keras.Model.fit(self, x, y, *args, validation_data=validation_data, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Measure loss and metrics; see `keras.Model.evaluate`."""
        with kept_weights(self):
            if not is_stream(x):
                return super().evaluate(x, y, *args, **kwargs)
            x = self._ready(x, kwargs, "steps")
            with quiet():
                return keras.Model.evaluate(self, x, y, *args, **kwargs)

    def predict(self, x=None, *args, **kwargs):
        """Return logits; see `RawSamples.predict`. Batches that come ready are not packed."""
        with one_at_a_time(), kept_weights(self):
            if not is_stream(x):
                return super().predict(x, *args, **kwargs)
            x = self._ready(x, kwargs, "steps", needs_labels=False)
            with quiet():
                return keras.Model.predict(self, x, *args, **kwargs)

    def prepare_batch(
        self, x, y=None, sample_weight=None, needs_labels=True, class_weight=None
    ) -> tuple:
        """Return a batch of raw samples, or of ids, as the model is trained on it.

        Raises:
            ValueError: as of `fit`.
        """
        _, x, y, sample_weight = self.checked(x, y, sample_weight, needs_labels)
        made = self.preprocess_samples(x, y, sample_weight)
        made = made if isinstance(made, tuple) else (made,)
        return with_class_weights(made, class_weight) if class_weight else made

    def _ready(self, data, arguments: dict, steps_name: str, **options):
        """Return a stream of prepared batches; where it must be said, set how many there are."""
        prepare = functools.partial(self.prepare_batch, **options)
        stream, steps = prepared(data, prepare)
        if arguments.get(steps_name) is None and steps is not None:
            arguments[steps_name] = steps
        if steps_name == "steps_per_epoch" and not isinstance(stream, keras.utils.PyDataset):
            arguments.setdefault("shuffle", False)  # they are taken as they come
        return stream

    def _validation_of_fit(self, data, batch_size: int | None, arguments: dict):
        """Return validation data as `keras.Model.fit` takes it, of data that is no stream."""
        _refuse_raw_dataset(data)
        made = self._validation_batches(data, batch_size, arguments)
        if not isinstance(made, grain.MapDataset) or made is data:
            return made
        steps = arguments.get("validation_steps")
        arguments["validation_steps"] = min(steps or len(made), len(made))
        return made.repeat(arguments.get("epochs", 1))

    def _batches_of_fit(self, x, y, arguments: dict, weights: dict | None) -> tuple:
        """Return what `keras.Model.fit` takes as x and y, of data that is no stream."""
        raw, x, y, sample_weight = self.checked(x, y, arguments.get("sample_weight"))
        if not raw:
            _refuse_raw_dataset(x)
            arguments["class_weight"] = weights
            return x, y
        arguments.pop("sample_weight", None)
        batch_size, shuffle = (
            arguments.pop("batch_size", None) or 32,
            arguments.get("shuffle", True),
        )
        batches = self.batches(x, y, sample_weight, batch_size, shuffle)
        if weights:
            batches = batches.map(functools.partial(with_class_weights, weights=weights))
        arguments["shuffle"] = False  # it is done, anew in each epoch: they lie one behind another
        if arguments.get("steps_per_epoch") is None:
            arguments["steps_per_epoch"] = len(batches)
        return from_epoch(batches, arguments).repeat(arguments.get("epochs", 1)), None


def is_stream(data) -> bool:
    """Say whether data is a PyDataset, an iterator or PyTorch's DataLoader."""
    return isinstance(data, keras.utils.PyDataset | Iterator) or _is_loader(data)


def _refuse_raw_dataset(data) -> None:
    """Refuse a `tf.data` or Grain dataset of raw samples, which KerasHub prepares but not Keras.

    Raises:
        ValueError: as said.
    """
    is_tensorflow = hasattr(data, "element_spec")
    if not is_tensorflow and not isinstance(data, grain.MapDataset | grain.IterDataset):
        return
    element = data.element_spec if is_tensorflow else next(iter(data), ({},))
    x = element[0] if isinstance(element, tuple) else element
    if not isinstance(x, Mapping):
        raise ValueError(
            f"a {type(data).__name__} of raw samples beside a generator, a PyDataset or a "
            "DataLoader is not prepared: give both in one kind, or samples in lists"
        )


def prepared(data, prepare_batch: Callable) -> tuple:
    """Return a stream whose batches are preprocessed, as `keras.Model` takes it.

    Args:
        data: a stream of `x`, `(x, y)` or `(x, y, sample_weight)`.
        prepare_batch: a function of these three.

    Returns:
        The stream, and how many steps an epoch has if that must be said: else None.
    """
    parts = _parts_of_loader if _is_loader(data) else _parts

    def prepare(batch):
        return prepare_batch(*parts(batch))

    if isinstance(data, keras.utils.PyDataset):
        return (data if isinstance(data, _Prepared) else _Prepared(data, prepare)), None
    if not _is_loader(data):
        return (prepare(batch) for batch in data), None
    try:
        steps = len(data)
    except TypeError:  # of an IterableDataset
        return (prepare(batch) for batch in data), None
    if not steps:
        raise ValueError(
            "the DataLoader has no batches: give more samples, a smaller batch_size, or "
            "drop_last=False"
        )
    return (prepare(batch) for batch in _forever(data)), steps


class _Prepared(keras.utils.PyDataset):
    """A PyDataset whose batches are preprocessed."""

    def __init__(self, data: keras.utils.PyDataset, prepare: Callable):
        parallel = {"workers": data.workers, "max_queue_size": data.max_queue_size}
        super().__init__(**parallel)  # in threads: a model does not go to other processes
        self._data, self._prepare = data, prepare

    @property
    def num_batches(self) -> int | None:
        return self._data.num_batches

    def __getitem__(self, index: int):
        return self._prepare(self._data[index])

    def on_epoch_begin(self):
        self._data.on_epoch_begin()

    def on_epoch_end(self):
        self._data.on_epoch_end()


def _forever(loader) -> Iterator:
    while True:
        yield from loader


def _is_loader(data) -> bool:
    return any(cls.__module__ == _LOADER for cls in type(data).__mro__)


def _parts(batch) -> tuple:
    """Return x, y and sample_weight of a batch: a tuple of them; what is no tuple is x alone."""
    if isinstance(batch, list) and batch and isinstance(batch[0], Mapping):
        batch = tuple(batch)  # ids with labels, which Keras takes as a list too
    if not isinstance(batch, tuple):
        return batch, None, None
    if all(isinstance(text, str) for text in batch):
        return list(batch), None, None
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    if isinstance(x, tuple) and all(isinstance(text, str) for text in x):
        x = list(x)
    elif isinstance(x, tuple) and all(isinstance(column, tuple) for column in x):
        x = tuple(map(list, x))
    return x, _as_array(y), _as_array(sample_weight)


def _parts_of_loader(batch) -> tuple:
    """Return x, y and sample_weight of a batch of PyTorch's loader, which makes lists of tuples."""
    if isinstance(batch, list) and not all(isinstance(text, str) for text in batch):
        batch = tuple(batch)
    if isinstance(batch, tuple) and batch:
        x, *labels = batch
        if isinstance(x, list) and all(isinstance(column, tuple) for column in x):
            x = tuple(x)
        batch = (x, *map(_by_sample, labels))
    return _parts(batch)


def _by_sample(labels):
    """Return labels with an axis of samples first: lists in samples came as a tensor a place."""
    if not isinstance(labels, list) or not all(hasattr(part, "shape") for part in labels):
        return labels
    return np.stack([keras.ops.convert_to_numpy(part) for part in labels], axis=-1)


def _as_array(values):
    """Return labels or weights as arrays where a loader made tensors of them; names stay."""

    def convert(leaf):
        is_plain = leaf is None or isinstance(leaf, str | np.ndarray) or np.isscalar(leaf)
        return leaf if is_plain else keras.ops.convert_to_numpy(leaf)

    return keras.tree.map_structure(convert, values)
