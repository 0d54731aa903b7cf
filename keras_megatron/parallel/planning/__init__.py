"""What a training step needs on each device and sends between devices, before there are any."""

from keras_megatron.parallel.planning.plans import Plan, make_plans
from keras_megatron.parallel.planning.workload import Workload

__all__ = ["Plan", "Workload", "make_plans"]
