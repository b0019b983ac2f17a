"""The engines: one file each, and what they share."""

__all__: tuple[str, ...] = ()
