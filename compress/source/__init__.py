"""What the user brings: network, weights, pictures, task."""

__all__: tuple[str, ...] = ()
