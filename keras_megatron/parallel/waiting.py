"""How long a process waits for another one, on the backends that run several."""

import datetime
import os

# A process that is killed closes its connections, which the others notice at once; one that hangs
# is given up after so many seconds.
TIMEOUT_VARIABLE, TIMEOUT = "KERAS_MEGATRON_TIMEOUT", 50


def waiting_time() -> datetime.timedelta:
    """Return how long a process waits for another one.

    Raises:
        ValueError: the environment says something that is no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, not {text!r}")
    return datetime.timedelta(seconds=seconds)
