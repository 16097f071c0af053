"""chat.npz + chat_tokenizer.json -> tiny-chat-q8_0.gguf"""

import json
import os

import gguf
import numpy as np
from gguf.quants import quantize

from data import CHAT_TEMPLATE
from train_chat import CFG, SPECIAL

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def export(path):
    p = np.load("chat.npz")
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny-chat")
    w.add_description("Tiny test model trained on template text; for tests only")
    w.add_license("CC0-1.0")
    w.add_context_length(CFG["n_ctx"])
    w.add_embedding_length(CFG["n_embd"])
    w.add_block_count(CFG["n_layer"])
    w.add_feed_forward_length(CFG["n_ff"])
    w.add_head_count(CFG["n_head"])
    w.add_head_count_kv(CFG["n_kv"])
    w.add_layer_norm_rms_eps(CFG["eps"])
    w.add_rope_freq_base(CFG["rope"])
    w.add_rope_dimension_count(CFG["n_embd"] // CFG["n_head"])
    w.add_vocab_size(CFG["n_vocab"])
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    t = json.load(open("chat_tokenizer.json"))["model"]
    vocab = sorted(t["vocab"].items(), key=lambda x: x[1])
    assert [i for _, i in vocab] == list(range(CFG["n_vocab"]))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([k for k, _ in vocab])
    w.add_token_types([gguf.TokenType.CONTROL if k in SPECIAL else gguf.TokenType.NORMAL for k, _ in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["merges"]])
    w.add_eos_token_id(2)
    w.add_bos_token_id(0)
    w.add_pad_token_id(0)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)
    names = {"token_embd": "token_embd.weight", "output_norm": "output_norm.weight"}
    for k in p.files:
        x = p[k].astype(np.float32)
        name = names.get(k) or "blk.%s.weight" % k
        if x.ndim == 1:
            w.add_tensor(name, x)
        else:
            w.add_tensor(name, quantize(x, Q8_0), raw_dtype=Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    export("tiny-chat-q8_0.gguf")
    print("tiny-chat-q8_0.gguf", os.path.getsize("tiny-chat-q8_0.gguf"), "bytes")
