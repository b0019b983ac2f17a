"""Whether it paid: scoring, timing against the original, accepting or declining."""

__all__: tuple[str, ...] = ()
