"""The training loop: losses, schedules, checkpoints."""

__all__: tuple[str, ...] = ()
