"""Open the test split before training, so that what is wrong with it is not found at the end."""

from lightning.pytorch import Callback, LightningModule, Trainer


class OpenTestSplit(Callback):
    """Sets the datamodule up for ``test`` when it has been set up for ``fit``: for runs that test after training."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the datamodule read and check its test split; its errors are those of a mistaken setting."""
        datamodule = getattr(trainer, "datamodule", None)
        if stage == "fit" and datamodule is not None:
            datamodule.setup("test")
