"""What is in a file, and why it is slow."""

__all__: tuple[str, ...] = ()
