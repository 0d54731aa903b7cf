"""Arrays that each device has a part of, and whole ones."""

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor


def backend_mesh(device_mesh) -> dtensor.Mesh:
    """Return DTensor's mesh of Keras's `DeviceMesh`."""
    devices = [device.upper().replace("CUDA", "GPU") for device in device_mesh.devices.flatten()]
    return dtensor.create_mesh(
        list(zip(device_mesh.axis_names, device_mesh.shape, strict=True)), devices=devices
    )


def split(value, layout: dtensor.Layout) -> tf.Tensor:
    """Give each device its part of an array, and no more.

    Args:
        value: array or plain tensor, whose axes the layout's devices divide.
        layout: which axis is split over which axis of the mesh.

    Returns:
        A DTensor.
    """
    value, parts = np.asarray(value), []
    places = layout.mesh.local_device_locations()
    for device, place in zip(layout.mesh.local_devices(), places, strict=True):
        with tf.device(device):
            parts.append(tf.constant(value[_part(value.shape, layout, place)]))
    return dtensor.pack(parts, layout)


def whole(tensor: tf.Tensor) -> np.ndarray:
    """Put the parts of a DTensor together, in the memory of the host."""
    layout, parts = dtensor.fetch_layout(tensor), dtensor.unpack(tensor)
    if layout.is_fully_replicated():
        return parts[0].numpy()
    array = np.empty(tensor.shape, parts[0].dtype.as_numpy_dtype)
    for place, part in zip(layout.mesh.local_device_locations(), parts, strict=True):
        array[_part(array.shape, layout, place)] = part.numpy()
    return array


def _part(shape, layout: dtensor.Layout, place: dict[str, int]) -> tuple[slice, ...]:
    """Return what the device at a place of the mesh has of an array."""
    slices = []
    for size, axis in zip(shape, layout.sharding_specs, strict=True):
        if axis == dtensor.UNSHARDED:
            slices.append(slice(None))
        else:
            length = size // layout.mesh.dim_size(axis)
            slices.append(slice(place[axis] * length, (place[axis] + 1) * length))
    return tuple(slices)
