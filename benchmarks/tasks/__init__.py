"""Tasks: what "as good as before" means."""

__all__: tuple[str, ...] = ()
