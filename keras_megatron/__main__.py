"""`python -m keras_megatron`: the command, for launchers that start modules (`torchrun -m`)."""

from keras_megatron.cli import main

main()
