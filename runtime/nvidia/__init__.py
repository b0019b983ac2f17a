"""What the engines tensorrt and tensorrt-rtx share: driver, building, cache, running."""

__all__: tuple[str, ...] = ()
