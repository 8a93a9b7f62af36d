"""Files of weights, read without running code: .pth, .pt, .bin, .safetensors and .npz, and directories of the Hub."""

import json
import re
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_models.checkpoints import NeedsCodeError
from lit_models.checkpoints import read_checkpoint as read_torch_checkpoint
from lit_models.pretrained.family import Checkpoint

# Where files keep their weights, the first one found: averages of weights come last.
WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "state_dict_ema", "model_ema")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Command line arguments, which timm and DeiT store beside their weights: a class without code of its own. A config of
# yacs, which Swin's training stores there, is read as the dictionary that it is: nothing of yacs is imported.
_HARMLESS: list[Any] = [Namespace, (OrderedDict, "yacs.config.CfgNode")]
_INNER = re.compile(r"^(?:module\.|_orig_mod\.)+")
# Of a LightningModule, of a module here, and of the panoptic DETR around its detector.
_OUTER = ("model.", "network.", "detr.")
_BFLOAT16 = "|V2"  # numpy's name for two bytes that it does not know


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights, or the one in a directory, and the JSON files beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, is no file of weights, or holds objects that only code could rebuild.
    """
    path = _weights_file(Path(path).expanduser())
    config, processor = (_json(path.with_name(name)) for name in ("config.json", "preprocessor_config.json"))
    content = _read(path)
    wrapper = None
    entries: dict[str, Any] = {}
    while found := next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None):
        entries |= {name: value for name, value in content.items() if name != found}
        wrapper, content = wrapper or found, content[found]
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors and "heddle" not in entries:
        raise ValueError(
            f"{path} holds no weights: its entries are {', '.join(sorted(map(str, content))) or 'none'}, and weights "
            f"are looked for there and under {', '.join(WRAPPERS)}"
        )
    inner = {_INNER.sub("", name): tensor for name, tensor in tensors.items()}
    data_parallel = any(name.startswith("module.") for name in tensors)
    return Checkpoint(path, inner, wrapper, entries, config, processor, data_parallel=data_parallel)


def without_wrapper(checkpoint: Checkpoint) -> list[Checkpoint]:
    """Return the checkpoint, then what it holds under each prefix that a module around the network gives it."""
    views = [checkpoint]
    for prefix in _OUTER:
        inside = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(prefix)}
        if inside:
            tensors = {_INNER.sub("", name.removeprefix(prefix)): tensor for name, tensor in inside.items()}
            outside = tuple(name for name in checkpoint.tensors if name not in inside)
            views.append(
                Checkpoint(
                    checkpoint.path, tensors, checkpoint.wrapper, checkpoint.entries, checkpoint.config,
                    checkpoint.processor, outside, checkpoint.data_parallel,
                )
            )  # fmt: skip
    return views


def _weights_file(path: Path) -> Path:
    if path.is_dir():
        for name in _HUB_FILES:
            if (path / name).is_file():
                return path / name
        if any(path.glob("*.index.json")):
            raise ValueError(
                f"{path} holds weights in several files: join them with save_pretrained(..., max_shard_size='50GB')"
            )
        raise FileNotFoundError(f"the directory {path} holds neither {' nor '.join(_HUB_FILES)}; name the file")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}; only local files are read")
    return path


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """Read a file by what it is, whatever its name says."""
    with path.open("rb") as file:
        beginning = file.read(9)
    if beginning.startswith(b"version h"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the weights: fetch the file itself")
    if beginning[8:9] == b"{":
        return _read_safetensors(path)
    if beginning.startswith(b"PK") and (path.suffix == ".npz" or _holds_arrays(path)):
        return _read_npz(path)
    if beginning.startswith((b"PK", b"\x80")):
        try:
            return read_torch_checkpoint(path, _HARMLESS)
        except NeedsCodeError as error:
            raise ValueError(
                f"{error}. If you trust the file, keep its weights alone: "
                "torch.save({'model': torch.load(FILE, weights_only=False)['model']}, 'weights.pth')"
            ) from error
    raise ValueError(
        f"{path} is not a file of weights, or it is damaged: .pth, .pt, .bin, .safetensors or .npz is read"
    )


def _holds_arrays(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or it is cut short: {error}") from error


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is not an .npz file, or it is cut short") from error
    except ValueError as error:
        raise ValueError(
            f"{path} holds arrays of objects, which only code can rebuild, or is damaged: {error}"
        ) from error
    tensors = {}
    for name, array in arrays.items():
        if array.dtype.str == _BFLOAT16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        elif array.dtype.kind in "fiu":
            tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors
