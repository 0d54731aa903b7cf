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
        # Here too: KerasHub takes an error in `preprocess_samples` for a hint to try tf.data, whose
        # tensors nobody checks.
        self.backbone.check_inputs(x)
        validation_data = kwargs.get("validation_data")
        if isinstance(validation_data, tuple):
            self.backbone.check_inputs(validation_data[0])
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """Measure loss and metrics; see `keras.Model.evaluate`."""
        self.backbone.check_inputs(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x=None, *args, **kwargs):
        """Return outputs; see `keras.Model.predict`."""
        self.backbone.check_inputs(x)
        return super().predict(x, *args, **kwargs)

    def preprocess_samples(self, x, y=None, sample_weight=None):
        """Apply the preprocessor, if there is one, to a batch."""
        self.backbone.check_inputs(x)
        return super().preprocess_samples(x, y, sample_weight)

    def quantize(self, mode, config=None, **kwargs):
        """Quantize the backbone; see `keras.Model.quantize`. The small head keeps its precision."""
        self.backbone.quantize(mode, config=config, **kwargs)
        self.train_function = self.test_function = self.predict_function = None


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
