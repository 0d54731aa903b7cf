import grain
import keras

from keras_megatron.backbone import MegatronBertBackbone
from keras_megatron.tasks.samples import as_columns, batches, by_position
from keras_megatron.tokenizer import MegatronBertTokenizer


class MegatronBertPreprocessor:
    """What every preprocessor adds to its KerasHub base class, which stands behind it in the bases.

    Raw samples are a list or a tuple of lists ("columns"), such as two lists for pairs of texts. A
    subclass has `preprocess`, which makes arrays of a batch of them, and may have the other hooks.
    """

    backbone_cls = MegatronBertBackbone
    tokenizer_cls = MegatronBertTokenizer
    seed = None  # of shuffling and of what is drawn; another one each time if None

    def build(self, input_shape=None):
        """Build nothing: the tokenizer brings all that is needed."""
        self.built = True

    def __call__(self, x, y=None, sample_weight=None, **kwargs):
        """Preprocess; unlike in KerasHub's base a tuple is columns of samples, never `(x, y)`."""
        return super().__call__(x, y=y, sample_weight=sample_weight, **kwargs)

    def call(self, x, y=None, sample_weight=None):
        """Make a model's inputs of raw samples. What is a dict of inputs already passes through."""
        if isinstance(x, dict):
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        x, y, sample_weight = by_position((x, y, sample_weight))
        columns = as_columns(x)
        if self._use_tf_workflow():
            return self.preprocess_in_graph(columns, y, sample_weight)
        self.check_call(columns, y)
        y = None if y is None else self.prepare_labels(y)
        return self.preprocess(columns, y, sample_weight)

    def dataset(
        self, x, y=None, sample_weight=None, batch_size: int = 32, shuffle: bool = False
    ) -> grain.MapDataset:
        """Return one epoch of preprocessed batches; repeated, each epoch is shuffled anew.

        Args:
            x: raw samples, as of a call: a list, or a tuple of lists.
            y: list or array of labels, or None.
            sample_weight: list or array of weights, or None.
            batch_size: samples a batch.
            shuffle: whether to shuffle, anew each epoch.

        Returns:
            A `grain.MapDataset` of what a call returns.

        Raises:
            ValueError: there are no samples, columns differ in length, or one is not a sample.
        """
        x, y, sample_weight = by_position((x, y, sample_weight))
        columns = as_columns(x)
        self.check_samples(columns, y)
        y = None if y is None else self.prepare_labels(y)  # at once, so that all have one dtype
        return batches(self.preprocess, columns, y, sample_weight, batch_size, shuffle, self.seed)

    # === Hooks ===

    def preprocess(self, columns: tuple, y=None, sample_weight=None, rng=None):
        """Make a model's inputs of one batch, or of one sample, as NumPy arrays.

        The samples are checked already, all of a dataset's at once.

        Args:
            columns: the columns of the samples.
            y: what `prepare_labels` made of the labels, or None.
            sample_weight: weights, or None.
            rng: `np.random.Generator` of what is drawn, if anything is.

        Returns:
            `x`, `(x, y)` or `(x, y, sample_weight)`.
        """
        raise NotImplementedError

    def check_samples(self, columns: tuple, y=None) -> None:
        """Refuse, before anything is run, what is not a sample, naming its place.

        Raises:
            ValueError: a sample, or a label, is not what this task takes.
        """

    def prepare_labels(self, y):
        """Return labels, of a dataset or of a call, as `preprocess` takes them.

        Raises:
            ValueError: one is no label.
        """
        return y

    def check_call(self, columns: tuple, y=None) -> None:
        """Do what `check_samples` does for a call, whose columns may be of a single sample.

        By default nothing: the tokenizer refuses what is not text.
        """

    def preprocess_in_graph(self, columns: tuple, y=None, sample_weight=None):
        """Do what `preprocess` does inside `tf.data` and `tf.function`, where a task can.

        Raises:
            ValueError: this task cannot.
        """
        raise ValueError(
            f"{type(self).__name__} does not run in a TensorFlow graph: give fit, evaluate and "
            "predict lists, or preprocess before making a tf.data.Dataset"
        )
