class MegatronBertTask:
    """What every task adds to its KerasHub base class, which stands behind it in the bases.

    Ids given as numpy arrays are checked before they reach a backend. `export_to_transformers`
    comes from `keras_megatron.checkpoints`.
    """

    def __call__(self, inputs, *args, **kwargs):
        """Run the model on ids."""
        self.backbone.check_inputs(inputs)
        return super().__call__(inputs, *args, **kwargs)

    def fit(self, x=None, *args, **kwargs):
        """Train; see `keras.Model.fit`. With a preprocessor `x` may be raw text."""
        self._check_ids(x)
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """Measure loss and metrics; see `keras.Model.evaluate`."""
        self._check_ids(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x=None, *args, **kwargs):
        """Return outputs; see `keras.Model.predict`."""
        self._check_ids(x)
        return super().predict(x, *args, **kwargs)

    def _check_ids(self, x) -> None:
        # Here, not in `preprocess_samples`: KerasHub takes an error there for a hint to try
        # tf.data, whose tensors nobody checks.
        if self.preprocessor is None:
            self.backbone.check_inputs(x)


def check_tokenizer_fits(preprocessor, backbone) -> None:
    """Refuse a tokenizer with ids that the backbone's table does not have.

    Raises:
        ValueError: the vocabulary is larger than the table.
    """
    tokenizer = getattr(preprocessor, "tokenizer", None)
    if tokenizer is None or tokenizer.vocabulary is None:  # its assets are loaded later
        return
    pieces = tokenizer.vocabulary_size()
    if pieces > backbone.vocabulary_size:
        raise ValueError(
            f"the tokenizer has {pieces} pieces but the backbone's table only "
            f"{backbone.vocabulary_size} rows: use the vocabulary that the model was trained with"
        )
