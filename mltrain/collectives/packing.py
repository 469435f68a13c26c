"""Tensors of any type as few long vectors of bytes, and back: what a library need not know how to send."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Tensors are packed into vectors of about this size.
_BYTES = 64 << 20


def pack(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Vectors of bytes, one after another, each with the tensors it is a copy of: of one device, in order."""
    members: list[Tensor] = []
    room, device = 0, None
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if members and (size > room or tensor.device != device):
            yield torch.cat([_bytes_of(member) for member in members]), members
            members = []
        if not members:
            room, device = _BYTES, tensor.device
        members.append(tensor)
        room -= size
    if members:
        yield torch.cat([_bytes_of(member) for member in members]), members


def unpack(flat: Tensor, members: Sequence[Tensor]) -> None:
    """Overwrites the tensors that a vector was packed from, or others of the same shapes and types."""
    parts = torch.split(flat, [member.numel() * member.element_size() for member in members])
    for member, part in zip(members, parts, strict=True):
        value = part.clone().view(member.dtype) if member.dtype != torch.bool else part.bool()
        member.copy_(value.reshape(member.shape))


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
