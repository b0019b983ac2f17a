"""What shall be done: settings, recipes, what a pass is given, targets."""

__all__: tuple[str, ...] = ()
