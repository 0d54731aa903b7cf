"""The names that `from_preset` knows, and the loading of what is not in Keras's own format.

Importing this package makes both known to KerasHub.
"""

from keras_megatron.presets.loader import install_loader
from keras_megatron.presets.registry import register_built_in

register_built_in()
install_loader()
