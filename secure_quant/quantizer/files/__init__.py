"""Float models from files: what ``quantize`` takes besides a module."""
