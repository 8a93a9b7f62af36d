"""The namespace ``torch.ops.heddle``, in which every kernel registers its operators."""

import torch

LIBRARY = torch.library.Library("heddle", "FRAGMENT")
