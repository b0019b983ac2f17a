"""What each engine makes of a graph: its kernels, and their times."""

__all__: tuple[str, ...] = ()
