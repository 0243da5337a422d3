"""Shared by all rooms: one thread, so that tests are quick and reproducible on any machine."""

import torch

pytest_plugins = ["tests.servers"]

torch.set_num_threads(1)
