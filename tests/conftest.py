"""What all tests share: one thread, because tiny products wait longer for each other than they compute."""

import torch

torch.set_num_threads(1)
