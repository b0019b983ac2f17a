"""INT8 files of other tools, rewritten in an engine's dialect."""

__all__: tuple[str, ...] = ()
