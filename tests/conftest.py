"""Shared by every test: one thread, so that the small tensors here do not fight over cores."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
