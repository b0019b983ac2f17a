"""The files by which a process has an engine built by another."""

from __future__ import annotations

REQUEST, ANSWER, MODEL = "request.json", "answer.json", "model.onnx"
PLAN, TIMING = "engine.plan", "timing.cache"
NEEDS_GPU = ("tensorrt",)
"""Engines that time kernels while they are built."""
