"""What can be cut: which channels leave together, and the cutting."""

__all__: tuple[str, ...] = ()
