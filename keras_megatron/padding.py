"""How many rows Megatron-LM's table of words has."""

ROWS_MULTIPLE = 128


def padded_vocabulary_size(
    pieces: int, model_parallel_size: int, multiple: int = ROWS_MULTIPLE
) -> int:
    """Return Megatron's size of the token table for a tokenizer.

    Megatron-LM pads to a multiple of 128 times the tensor-parallel size
    (`--make-vocab-size-divisible-by`), so that each device has as many rows.

    Args:
        pieces: the tokenizer's vocabulary size.
        model_parallel_size: devices that the table is split over.
        multiple: of the rows of each device.
    """
    rows = multiple * model_parallel_size
    return -(-pieces // rows) * rows
