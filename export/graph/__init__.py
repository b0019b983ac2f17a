"""The float32 graph: captured from torch, normalized, read and written."""

__all__: tuple[str, ...] = ()
