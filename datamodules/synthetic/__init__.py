"""Built-in corpora, written in the very formats that the datamodules read."""
