from pathlib import Path

import pytest
from lightning.pytorch.loggers.logger import DummyLogger


class Images(DummyLogger):
    """Stands for W&B's logger, of which only ``log_image`` matters here."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def log_image(self, key, images):
        self.logged.append((key, [Path(image).name for image in images], Path(images[0]).read_bytes()[:4]))


@pytest.fixture
def image_logger():
    return Images()
