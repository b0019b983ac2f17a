"""What calibration sees of a network: observers and ranges."""

__all__: tuple[str, ...] = ()
