"""The compiled CUDA implementations of the engine. A tensor: anything with __dlpack__, or an unused capsule."""

def build() -> dict[str, str]:
    """What the module was compiled with, and for which architectures."""

def device_count() -> int:
    """The number of CUDA devices; 0 without a driver."""

def why_not(device: int) -> str:
    """Why kernels cannot run on this device: no driver, no device, too low a compute capability; or an empty text."""
