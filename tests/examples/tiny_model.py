"""A tiny Llama model with random weights, in the form of SmolLM2's file."""

from pathlib import Path

import gguf
import numpy as np
import tokenizers

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 32, 64, 4, 2, 8, 2
# Fixed: with float16 keys, one seed in 700 has two tokens so close that correct roundings choose differently.
SEED = 2024


def write_model(path: Path, architecture: str = "llama", drop: str = "", extra: str = "", scale: float = 1.0) -> Path:
    """Two layers; without the tensor `drop`, with another named `extra`, all weights times `scale`."""
    rng = np.random.default_rng(SEED)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*CONTROL, *letters, "th", "the", "Ġthe"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h", "th e", "Ġ the"])
    kv = KV_HEADS * HEAD_DIM
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (HIDDEN,),
            f"blk.{i}.ffn_norm": (HIDDEN,),
            f"blk.{i}.attn_q": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k": (kv, HIDDEN),
            f"blk.{i}.attn_v": (kv, HIDDEN),
            f"blk.{i}.attn_output": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate": (FFN, HIDDEN),
            f"blk.{i}.ffn_up": (FFN, HIDDEN),
            f"blk.{i}.ffn_down": (HIDDEN, FFN),
        }
    if extra:
        shapes[extra] = (HIDDEN,)
    shapes.pop(drop, None)
    for name, shape in shapes.items():
        spread = 1.0 if len(shape) == 1 else 1.5 / np.sqrt(shape[-1])  # wide enough for attention to matter
        writer.add_tensor(f"{name}.weight", (scale * spread * rng.standard_normal(shape)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
