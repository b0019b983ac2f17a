"""FP16: which nodes, and the graph written with them."""

__all__: tuple[str, ...] = ()
