"""How long a process waits for another one, on the backends that run several."""

import datetime
import os

# A process that is killed closes its connections, which the others notice at once; one that hangs
# is given up after so many seconds.
TIMEOUT_VARIABLE, TIMEOUT = "KERAS_MEGATRON_TIMEOUT", 50
_LONGEST = 1e6  # seconds, more than eleven days: gRPC counts in 32 bits of milliseconds


def waiting_time() -> datetime.timedelta:
    """Return how long a process waits for another one.

    Raises:
        ValueError: the environment says something that is no positive number, or too large a one.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(
            f"{TIMEOUT_VARIABLE} must be a number of seconds above 0, at most {_LONGEST:.0f}, not "
            f"{text!r}"
        )
    return datetime.timedelta(seconds=seconds)
