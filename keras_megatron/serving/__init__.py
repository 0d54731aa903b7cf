"""Ways to serve a model without this package: SavedModel, ONNX, OpenVINO."""

from keras_megatron.serving.exporting import Exported, export

__all__ = ["Exported", "export"]
