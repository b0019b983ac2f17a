"""The bundle: manifest, reading, checking, writing, joining."""

__all__: tuple[str, ...] = ()
