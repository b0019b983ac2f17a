"""Training back: students, the training driver, the user's own finetune."""

__all__: tuple[str, ...] = ()
