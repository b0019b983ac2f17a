"""Pictures: reading files, and preprocessing for a network."""

__all__: tuple[str, ...] = ()
