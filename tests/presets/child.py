"""A process that asks for the tiny preset: `child.py FOLDER`; the tests kill some of these.

`$PAUSE_IN_CONVERSION` makes it halve a file in the midst of a conversion, create the file that the
variable names, and wait to be killed.
"""

import os
import pathlib
import sys
import time

from tiny_release import register_tiny

from keras_megatron.presets import cache

convert = cache.convert_checkpoint


def convert_and_pause(source, output, **options):
    convert(source, output, **options)
    weights = pathlib.Path(output) / "model.weights.h5"
    os.truncate(weights, weights.stat().st_size // 2)
    pathlib.Path(os.environ["PAUSE_IN_CONVERSION"]).touch()
    time.sleep(120)


if "PAUSE_IN_CONVERSION" in os.environ:
    cache.convert_checkpoint = convert_and_pause
print(cache.converted_weights(register_tiny(pathlib.Path(sys.argv[1]))))
