"""A fine-tuning run that kills its own process: a program that test_run.py starts."""

import json
import os
import signal
import sys

from keras_megatron.finetuning import FinetuneSettings, finetune, training_state
from keras_megatron.finetuning.atomic import PARTIAL
from keras_megatron.finetuning.training_log import TrainingLog


def kill() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(epoch: int, step: int) -> None:
    """Kill at the end of a step, both counted from 1."""
    on_train_batch_end = TrainingLog.on_train_batch_end

    def end(self, batch, logs=None):
        on_train_batch_end(self, batch, logs)
        if (self.progress.epoch + 1, self.progress.step) == (epoch, step):
            kill()

    TrainingLog.on_train_batch_end = end


def kill_while_writing(number: int) -> None:
    """Kill when half of a state is written, the first one being number 1."""
    replace_file, states = training_state.replace_file, []

    def write_half(path, write):
        states.append(path)
        if len(states) < number:
            replace_file(path, write)
            return
        partial = path.with_name(path.name + PARTIAL)
        write(partial)
        with open(partial, "r+b") as file:
            file.truncate(partial.stat().st_size // 2)
        kill()

    training_state.replace_file = write_half


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    if arguments["when"] == "second state":
        kill_while_writing(number=2)
    else:
        kill_after(epoch=2, step=3)
    settings = FinetuneSettings(**arguments["settings"])
    finetune(settings, arguments["output"], verbose=0, log_every=1, save_every=2)
