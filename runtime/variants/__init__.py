"""Which variant of a bundle runs here."""

__all__: tuple[str, ...] = ()
