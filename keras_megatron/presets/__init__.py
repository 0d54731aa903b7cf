"""The names that `from_preset` knows, the loading of what is not in Keras's own format, and saving.

Importing this package makes all known to KerasHub.
"""

from keras_megatron.presets.loader import install_loader
from keras_megatron.presets.names import install_checks
from keras_megatron.presets.registry import register_built_in
from keras_megatron.presets.saver import install_saver

register_built_in()
install_loader()
install_saver()
install_checks()
