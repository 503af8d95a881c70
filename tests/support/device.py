"""Where the models of parity tests live: on the CPU, or on the device that MORPHKV_DEVICE names, e.g. Vulkan0."""

import os

DEVICE = os.environ.get("MORPHKV_DEVICE")
N_GPU_LAYERS = -1 if DEVICE else 0
