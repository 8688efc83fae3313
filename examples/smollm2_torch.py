"""The dense layers of smollm2.Model once more, in torch on any device; float32 throughout."""

import torch


def dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


class Forward:
    """Takes what `smollm2.Model.forward` takes, and gives the same logits as a tensor on the device.

    q, k and v reach `attend` as tensors of that device too.
    """

    def __init__(self, model, device: str) -> None:
        self._device, self._eps, self._head_dim = torch.device(device), float(model.eps), model.head_dim
        self._frequencies, self._embedding, self._norm = map(
            self._tensor, (model.frequencies, model.embedding, model.norm)
        )
        self._layers = [{name: self._tensor(weight) for name, weight in layer.items()} for layer in model.layers]

    def _tensor(self, values) -> torch.Tensor:
        return torch.tensor(values, device=self._device)

    @torch.inference_mode()
    def __call__(self, tokens, positions, attend, rows=slice(None)) -> torch.Tensor:
        angles = torch.outer(self._tensor(list(positions)).double(), self._frequencies)
        cos, sin = (f(angles).float()[:, None] for f in (torch.cos, torch.sin))
        x = self._embedding[self._tensor(list(tokens))]
        for i, w in enumerate(self._layers):
            h = self._rms_norm(x, w["attn_norm"])
            q, k, v = ((h @ w[name].T).view(len(h), -1, self._head_dim) for name in ("attn_q", "attn_k", "attn_v"))
            out = attend(i, rotate(q, cos, sin), rotate(k, cos, sin), v)
            x = x + out.reshape(len(x), -1) @ w["attn_output"].T
            h = self._rms_norm(x, w["ffn_norm"])
            x = x + (torch.nn.functional.silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        return self._rms_norm(x[rows], self._norm) @ self._embedding.T

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self._eps) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """smollm2.rotate."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).view(x.shape)
