"""What runs in which precision: INT8, FP16, bfloat16, mixtures, training for INT8."""

__all__: tuple[str, ...] = ()
