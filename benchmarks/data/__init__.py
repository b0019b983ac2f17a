"""Where pictures come from, and how a network is run on them."""

__all__: tuple[str, ...] = ()
