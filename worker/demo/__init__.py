"""The main job, end to end, on real digits: ``python -m worker.demo``."""
