"""What each node costs in INT8: time and noise."""

__all__: tuple[str, ...] = ()
