"""What is cut: importance, latency model, choice of widths."""

__all__: tuple[str, ...] = ()
