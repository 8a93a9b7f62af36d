"""Chooses the interpreter before any kernel is imported, and skips what needs a GPU where there is none."""

import pytest
from kernel_testing import CUDA


def pytest_collection_modifyitems(items):
    """Skip tests marked ``gpu`` on a machine without one."""
    for item in items:
        if item.get_closest_marker("gpu") and not CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
