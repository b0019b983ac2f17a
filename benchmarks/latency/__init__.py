"""Latency: measured in processes of its own, and compared."""

__all__: tuple[str, ...] = ()
