"""Distillation: what a student learns from a teacher's logits (Touvron et al. 2021, section 4).

https://arxiv.org/abs/2012.12877. Hard distillation takes the teacher's decision for a second label; the student has a
distillation token and a head of its own for it. Soft distillation (Hinton et al. 2015) takes the teacher's
probabilities at a temperature.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class TeacherConfig:
    """Which network teaches.

    Attributes:
        source: A checkpoint of this project, a public checkpoint (``.pth``, ``.safetensors``, ``.npz``), or
            ``torchvision:NAME`` or ``timm:NAME``, whose weights are downloaded if they are not there.
        weights: Of a network by name: ``default``, a name of torchvision's weights such as ``IMAGENET1K_V2``, or null
            for random ones.
        image_size: Side to which images are resized for the teacher; null resizes only for networks that take one
            size alone. So a ConvNet sees the student's images as they are, as in DeiT.
    """

    source: str = ""
    weights: str | None = "default"
    image_size: int | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("distillation.teacher.source must name a file, torchvision:NAME or timm:NAME; it is empty")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"distillation.teacher.image_size must be at least 1 or null, got {self.image_size}")

    @property
    def library(self) -> str | None:
        """``torchvision`` or ``timm`` for a network by name, None for a file."""
        library, colon, _ = self.source.partition(":")
        return library if colon and library in ("torchvision", "timm") else None

    @property
    def name(self) -> str:
        """Name of the network in its library, or the file."""
        return self.source.partition(":")[2] if self.library else self.source


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is distilled; its loss is ``(1 - alpha) * loss + alpha * distillation loss``.

    Attributes:
        teacher: Which network teaches.
        mode: ``hard`` or ``soft``.
        alpha: Share of the distillation loss, in [0, 1].
        temperature: τ, by which soft distillation divides both logits.
        reduction: Of the soft loss: ``numel`` is DeiT's code, ``KL · τ² / (batch · classes)``; ``batchmean`` is
            ``KL · τ² / batch`` (Hinton et al., timm), larger by the number of classes.
        class_head: Distil a network without a distillation head through the logits of its classes; soft mode only.
    """

    teacher: TeacherConfig
    mode: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    reduction: Literal["numel", "batchmean"] = "numel"
    class_head: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"distillation.alpha must be in [0, 1], got {self.alpha}")
        if self.temperature <= 0.0:
            raise ValueError(f"distillation.temperature must be above 0, got {self.temperature}")
        if self.class_head and self.mode == "hard":
            raise ValueError(
                "distillation.class_head is for soft distillation: the label and the teacher's decision would "
                "contradict each other in one head; set distillation.mode: soft, or use a network with two heads"
            )

    def check_heads(self, two_heads: bool, network: str) -> None:
        """Raise a ValueError unless a network has the head that is to be distilled."""
        if two_heads and self.class_head:
            raise ValueError(
                f"distillation.class_head is true, but {network} has a distillation head, which would never be trained"
            )
        if not two_heads and not self.class_head:
            soft = ", or distillation.class_head: true" if self.mode == "soft" else ""
            raise ValueError(
                f"distillation.mode is {self.mode}, but {network} has no distillation head: use a network that has one "
                f"(VisionTransformer with distilled: true){soft}"
            )


def distillation_loss(student: Tensor, teacher: Tensor, config: DistillationConfig) -> Tensor:
    """Return the sum over a batch of what the student pays for differing from its teacher.

    Args:
        student: (batch, classes) logits of the distilled head.
        teacher: (batch, classes) logits, without gradients.
        config: Mode, temperature and reduction. Hard labels are never smoothed.

    Returns:
        A scalar, float32; divided by the batch it is the loss of DeiT's code.
    """
    student, teacher = student.float(), teacher.float()
    if config.mode == "hard":
        return functional.cross_entropy(student, teacher.argmax(1), reduction="sum")
    temperature = config.temperature
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="sum",
        log_target=True,
    )
    scale = temperature**2 / (student.shape[1] if config.reduction == "numel" else 1)
    return divergence * scale
