"""Several devices on one CPU."""

import tensorflow as tf


def make_cpu_devices(count: int) -> None:
    """Have TensorFlow take this machine's CPU for several devices, `cpu:0` and so on.

    Call it at the start of a program: TensorFlow's devices are fixed once it has run anything.

    Args:
        count: how many devices to make.

    Raises:
        ValueError: it is too late, or `count` is not a positive integer.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a positive integer, not {count!r}")
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        )
    except RuntimeError:
        have = len(tf.config.list_logical_devices("CPU"))
        if have != count:
            raise ValueError(
                f"TensorFlow has {have} CPU devices already, and cannot make {count} now: call "
                "make_cpu_devices before anything else is run"
            ) from None
