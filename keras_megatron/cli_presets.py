"""What the commands make of the option `--preset`."""

DEFAULT_PRESET = "megatron_bert_tiny_uncased"
_FILL_MASKS = ("MegatronBertMaskedLM", "MegatronBertPretrainer", "MegatronBertCausalLM")  # by head


def check_preset(preset: str) -> None:
    """Refuse what is no preset; see `keras_megatron.presets.names`, imported when it is needed."""
    from keras_megatron.presets.names import check_preset as check

    check(preset)


def check_fills_masks(preset: str) -> None:
    """Refuse a preset without the head that scores words: its answers would be random.

    Raises:
        ValueError: as said.
    """
    from keras_megatron.presets.stored_task import stored_task

    stored = stored_task(preset)
    if stored is None or stored.name not in _FILL_MASKS:
        kind = stored.name if stored else "a backbone alone"
        raise ValueError(
            f"{preset} holds {kind}, which has no head that fills masks: give the preset of a "
            "MegatronBertMaskedLM or MegatronBertPretrainer"
        )
