"""The client's secrets of the engine with one host, which is being built and not served yet."""
