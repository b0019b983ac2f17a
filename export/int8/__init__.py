"""INT8: dialects, plan, placement of quantizers, the graph written with them."""

__all__: tuple[str, ...] = ()
