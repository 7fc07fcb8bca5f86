"""Small networks with specs written by hand, so that matching is tested apart from deriving."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyalign.symmetry import AxisBinding, Flat, Group, Kind, Role, Side, Site, SymmetrySpec, Wreath, state_of

RELU = "aten.relu.default"


class MLP(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (6, 16, 12, 4), activation=F.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths[:-1]))
        self.head = nn.Linear(*widths[-2:])
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class Block(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = nn.Sequential()
        if stride != 1 or i != o:
            self.short = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.short(x))


class ResNet(nn.Module):
    """The layout of the ResNet-20 of CIFAR, of any width and depth."""

    def __init__(self, widths: tuple[int, ...] = (6, 10), blocks: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0])
        layers, i = [], widths[0]
        for stage, o in enumerate(widths):
            for b in range(blocks):
                layers.append(Block(i, o, 2 if stage and not b else 1))
                i = o
        self.blocks, self.fc = nn.Sequential(*layers), nn.Linear(i, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


class Builder:
    """Collects groups, bindings and sites."""

    def __init__(self, model: nn.Module) -> None:
        self.state = state_of(model)
        self.groups: dict[str, Group] = {}
        self.bindings: list[AxisBinding] = []
        self.sites: list[Site] = []

    def group(self, name: str, size: int, kind: Kind = Kind.PERMUTATION, structure=None) -> str:
        self.groups[name] = Group(name, size, kind, structure or Flat())
        return name

    def bind(
        self,
        tensor: str,
        axis: int,
        group: str,
        side: Side = Side.COVARIANT,
        role: Role = Role.MATCHED,
        *,
        start: int = 0,
        blocks: int = 1,
        runs: int = 1,
    ) -> None:
        if tensor in self.state:
            size = self.groups[group].size
            positions = torch.arange(start, start + size * runs).reshape(size, runs)
            self.bindings.append(AxisBinding(tensor, axis, group, side, role, positions, blocks))

    def out(self, module: str, group: str) -> None:
        for tensor in ("weight", "bias"):
            self.bind(f"{module}.{tensor}", 0, group)

    def norm(self, module: str, group: str) -> None:
        self.out(module, group)
        for tensor in ("running_mean", "running_var"):
            self.bind(f"{module}.{tensor}", 0, group, role=Role.TRANSFORMED)

    def into(self, module: str, group: str, **where: int) -> None:
        self.bind(f"{module}.weight", 1, group, Side.CONTRAVARIANT, **where)

    def site(self, group: str, module: str, index: int = 0, *, axis: int = 1, op: str = RELU, **more) -> None:
        size = self.groups[group].size
        where = {"width": size, "positions": torch.arange(size).unsqueeze(1), **more}
        self.sites.append(Site(group, module, 0, op, index, axis, **where))

    def spec(self) -> SymmetrySpec:
        shapes = {name: tuple(t.shape) for name, t in self.state.items()}
        return SymmetrySpec(self.groups, tuple(self.bindings), tuple(self.sites), shapes=shapes)


def mlp_spec(model: MLP, kind: Kind = Kind.POSITIVE, op: str = RELU) -> SymmetrySpec:
    """One group for each hidden layer."""
    b = Builder(model)
    names = [f"layers.{k}" for k in range(len(model.layers))]
    for k, (name, reader) in enumerate(zip(names, [*names[1:], "head"], strict=True)):
        b.group(name, model.layers[k].out_features, kind)
        b.out(name, name)
        b.into(reader, name)
        b.site(name, "", k, op=op)
    return b.spec()


def resnet_spec(model: nn.Module) -> SymmetrySpec:
    """One group for each stage's stream and one inside each block (of `ResNet` here and of the trained pair)."""
    b = Builder(model)
    stream = b.group("conv1", model.conv1.out_channels)
    b.out("conv1", stream)
    b.norm("bn1", stream)
    b.site(stream, "")
    for k, block in enumerate(model.blocks):
        name, before = f"blocks.{k}", stream
        inner = b.group(f"{name}.conv1", block.conv1.out_channels)
        if len(block.short):
            stream = b.group(f"{name}.conv2", block.conv2.out_channels)
            b.out(f"{name}.short.0", stream)
            b.norm(f"{name}.short.1", stream)
            b.into(f"{name}.short.0", before)
        b.into(f"{name}.conv1", before)
        b.out(f"{name}.conv1", inner)
        b.norm(f"{name}.bn1", inner)
        b.into(f"{name}.conv2", inner)
        b.out(f"{name}.conv2", stream)
        b.norm(f"{name}.bn2", stream)
        b.site(inner, name, 0)
        b.site(stream, name, 1)
    b.into("fc", stream)
    return b.spec()


class Grouped(nn.Module):
    """A ResNeXt-like bottleneck: 1x1, grouped 3x3, 1x1, inside a residual stream."""

    def __init__(self, width: int = 8, blocks: int = 3, inner: int = 4, classes: int = 5) -> None:
        super().__init__()
        mid = blocks * inner
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.reduce, self.norm1 = nn.Conv2d(width, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.spread, self.norm2 = nn.Conv2d(mid, mid, 3, padding=1, groups=blocks, bias=False), nn.BatchNorm2d(mid)
        self.expand, self.head = nn.Conv2d(mid, width, 1), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        h = F.relu(self.norm2(self.spread(F.relu(self.norm1(self.reduce(x))))))
        return self.head(F.relu(x + self.expand(h)).mean((2, 3)))


def grouped_spec(model: Grouped) -> SymmetrySpec:
    """A stream, and two groups of blocks that share the order of the blocks."""
    b, blocks = Builder(model), model.spread.groups
    b.group("blocks", blocks)
    stream = b.group("stem", model.stem.out_channels)
    inside, outside = (
        b.group(n, model.spread.out_channels, structure=Wreath("blocks", blocks)) for n in ("reduce", "spread")
    )
    b.out("stem", stream)
    b.into("reduce", stream)
    b.out("reduce", inside)
    b.norm("norm1", inside)
    b.into("spread", inside, blocks=blocks)
    b.out("spread", outside)
    b.norm("norm2", outside)
    b.into("expand", outside)
    b.out("expand", stream)
    b.into("head", stream)
    for index, (group, place) in enumerate(((stream, 0), (inside, 1), (outside, 2), (stream, 3))):
        assert index == place
        b.site(group, "", place)
    return b.spec()


class Concat(nn.Module):
    """A DenseNet-like net: every layer reads all earlier outputs."""

    def __init__(self, growth: int = 5, layers: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (k + 1)) for k in range(layers))
        self.convs = nn.ModuleList(nn.Conv2d(growth * (k + 1), growth, 3, padding=1) for k in range(layers))
        self.last = nn.BatchNorm2d(growth * (layers + 1))
        self.head = nn.Linear(growth * (layers + 1) * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.adaptive_avg_pool2d(F.relu(self.last(x)), 2).flatten(1))


def concat_spec(model: Concat) -> SymmetrySpec:
    """One group for each growth layer, side by side on every later axis."""
    b, growth = Builder(model), model.stem.out_channels
    names = ["stem", *(f"convs.{k}" for k in range(len(model.convs)))]
    for at, name in enumerate(names):
        b.group(name, growth)
        b.out(name, name)
        start = at * growth
        for later in range(at, len(model.convs)):
            _seen(b, name, f"norms.{later}", later, start, growth * (later + 1))
            b.into(f"convs.{later}", name, start=start)
        _seen(b, name, "last", len(model.convs), start, growth * len(names))
        b.into("head", name, start=4 * start, runs=4)
    return b.spec()


def _seen(b: Builder, group: str, norm: str, index: int, start: int, width: int) -> None:
    for tensor, role in (
        ("weight", Role.MATCHED),
        ("bias", Role.MATCHED),
        ("running_mean", Role.TRANSFORMED),
        ("running_var", Role.TRANSFORMED),
    ):
        b.bind(f"{norm}.{tensor}", 0, group, role=role, start=start)
    positions = torch.arange(start, start + b.groups[group].size).unsqueeze(1)
    b.site(group, "", index, width=width, positions=positions)


def generic(model: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """All weights and statistics random (by `seed` alone), in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                tensor.copy_(noise * (2.0 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, tensor in model.named_buffers():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith("running_mean"):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def batches(*shape: int, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random batches."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


CASES = {
    "mlp": (MLP, mlp_spec, (20, 6)),
    "resnet": (ResNet, resnet_spec, (8, 3, 8, 8)),
    "grouped": (Grouped, grouped_spec, (8, 3, 6, 6)),
    "concat": (Concat, concat_spec, (8, 3, 6, 6)),
}
"""name -> (model class, spec of a model, shape of a batch)."""
