"""Trains the tiny chat model (llama architecture) on template text; CPU, JAX.

Writes chat.npz and chat_tokenizer.json. Environment: STEPS, SEED, POOL (documents), RESUME (a chat.npz to go on from),
LATE (1 or 2: the later phases' mix of questions).
"""

import os
import random
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import data

CFG = dict(n_vocab=1024, n_embd=128, n_layer=4, n_head=4, n_kv=2, n_ff=384, n_ctx=512, eps=1e-5, rope=10000.0)
STEPS, B, T, LR = int(os.environ.get("STEPS", 1200)), 8, 256, 3e-3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def build_tokenizer():
    """A byte-level BPE tokenizer of the template text."""
    r = random.Random(1)
    text = (
        [t for _ in range(6000) for _, t in data.conversation(r)]
        + [data.plain(r) for _ in range(1000)]
        + ["system user assistant tool\n"] * 200
    )
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=CFG["n_vocab"],
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tok


def make_pool(tok, r, n):
    """n documents as (ids, weights): the assistant's text counts fully, the rest little."""
    parts, docs = [], []
    for _ in range(n):
        if r.random() < 0.08:
            d = [(None, data.plain(r))]
        else:
            d = data.conversation(r)
        docs.append(d)
        parts += [t for _, t in d]
    enc = iter(tok.encode_batch(parts))
    head = {k: [1] + tok.encode(k + "\n").ids for k in ("system", "user", "assistant", "tool")}
    nl = tok.encode("\n").ids
    out = []
    for d in docs:
        ids, w = [], []
        for role, _ in d:
            b = next(enc).ids
            if role is None:
                ids += b + [0]
                w += [1.0] * (len(b) + 1)
                continue
            a = head[role]
            x = 1.0 if role == "assistant" else 0.1
            ids += a + b + [2] + nl
            w += [0.02] * len(a) + [x] * (len(b) + 1) + [0.02] * len(nl)
        out.append((np.array(ids, np.int32), np.array(w, np.float32)))
    return out


def batch(pool, r):
    """Documents packed into rows: ids, loss weights, document numbers and positions inside the document."""
    I = np.zeros((B, T + 1), np.int32)
    W = np.zeros((B, T + 1), np.float32)
    S = np.zeros((B, T + 1), np.int32)
    P = np.zeros((B, T + 1), np.int32)
    for b in range(B):
        n, s = 0, 0
        while n < T + 1:
            i, w = pool[r.randrange(len(pool))]
            m = min(len(i), T + 1 - n)
            s += 1
            I[b, n : n + m] = i[:m]
            W[b, n : n + m] = w[:m]
            W[b, n] = 0
            S[b, n : n + m] = s
            P[b, n : n + m] = np.arange(m)
            n += m
    return I, W, S, P


def init(key, c):
    """Random weights, named as in the GGUF without their suffix."""
    hd = c["n_embd"] // c["n_head"]
    k = iter(jax.random.split(key, 8 * c["n_layer"] + 1))
    n = lambda sh, s=0.02: jax.random.normal(next(k), sh, jnp.float32) * s
    p = {"token_embd": n((c["n_vocab"], c["n_embd"]), 0.05), "output_norm": jnp.ones(c["n_embd"])}
    out = 0.02 / (2 * c["n_layer"]) ** 0.5
    for l in range(c["n_layer"]):
        p |= {
            f"{l}.attn_norm": jnp.ones(c["n_embd"]),
            f"{l}.ffn_norm": jnp.ones(c["n_embd"]),
            f"{l}.attn_q": n((c["n_embd"], c["n_embd"]), 0.06),
            f"{l}.attn_k": n((c["n_kv"] * hd, c["n_embd"]), 0.06),
            f"{l}.attn_v": n((c["n_kv"] * hd, c["n_embd"]), 0.06),
            f"{l}.attn_output": n((c["n_embd"], c["n_embd"]), out),
            f"{l}.ffn_gate": n((c["n_ff"], c["n_embd"]), 0.06),
            f"{l}.ffn_up": n((c["n_ff"], c["n_embd"]), 0.06),
            f"{l}.ffn_down": n((c["n_embd"], c["n_ff"]), out),
        }
    return p


rms = lambda x, g, e: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + e) * g


def rope(x, pos, base):  # pairs of neighbours, as llama.cpp's llama architecture does
    d = x.shape[-1]
    f = base ** (-jnp.arange(0, d, 2) / d)
    a = pos[..., None, None] * f
    x1, x2 = x[..., 0::2], x[..., 1::2]
    c, s = jnp.cos(a), jnp.sin(a)
    return jnp.stack([x1 * c - x2 * s, x1 * s + x2 * c], -1).reshape(x.shape)


def forward(p, ids, seg, pos, c):
    """Hidden states; a position sees the earlier ones of its own document."""
    B_, T_ = ids.shape
    hd = c["n_embd"] // c["n_head"]
    x = p["token_embd"][ids]
    mask = (seg[:, :, None] == seg[:, None, :]) & jnp.tril(jnp.ones((T_, T_), bool))
    bias = jnp.repeat(jnp.where(mask, 0.0, -1e9), c["n_head"], 0)
    for l in range(c["n_layer"]):
        h = rms(x, p[f"{l}.attn_norm"], c["eps"])
        q = rope((h @ p[f"{l}.attn_q"].T).reshape(B_, T_, c["n_head"], hd), pos, c["rope"])
        k = rope((h @ p[f"{l}.attn_k"].T).reshape(B_, T_, c["n_kv"], hd), pos, c["rope"])
        v = (h @ p[f"{l}.attn_v"].T).reshape(B_, T_, c["n_kv"], hd)
        g = c["n_head"] // c["n_kv"]
        # Flat batched products are fast on CPU.
        heads = lambda z: z.transpose(0, 2, 1, 3).reshape(B_ * c["n_head"], T_, hd)
        q, k, v = heads(q), heads(jnp.repeat(k, g, 2)), heads(jnp.repeat(v, g, 2))
        a = jax.nn.softmax(jnp.einsum("btd,bsd->bts", q, k) * hd**-0.5 + bias, -1)
        o = (
            jnp.einsum("bts,bsd->btd", a, v)
            .reshape(B_, c["n_head"], T_, hd)
            .transpose(0, 2, 1, 3)
            .reshape(B_, T_, c["n_embd"])
        )
        x = x + o @ p[f"{l}.attn_output"].T
        h = rms(x, p[f"{l}.ffn_norm"], c["eps"])
        x = x + (jax.nn.silu(h @ p[f"{l}.ffn_gate"].T) * (h @ p[f"{l}.ffn_up"].T)) @ p[f"{l}.ffn_down"].T
    return rms(x, p["output_norm"], c["eps"])


def loss_fn(p, I, W, S, P):
    """The weighted loss, and the loss on the assistant's text alone."""
    h = forward(p, I[:, :-1], S[:, :-1], P[:, :-1], CFG)
    lg = h @ p["token_embd"].T
    y, w = I[:, 1:], W[:, 1:]
    nll = jax.nn.logsumexp(lg, -1) - jnp.take_along_axis(lg, y[..., None], -1)[..., 0]
    full = w > 0.5
    return (nll * w).sum() / w.sum(), (nll * full).sum() / jnp.maximum(full.sum(), 1)


@jax.jit
def step(p, m, v, t, lr, I, W, S, P):
    """One step of AdamW with clipped gradients."""
    (l, la), g = jax.value_and_grad(loss_fn, has_aux=True)(p, I, W, S, P)
    gn = jnp.sqrt(sum((x * x).sum() for x in jax.tree.leaves(g)))
    sc = jnp.minimum(1.0, 1.0 / gn)
    m = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b * sc, m, g)
    v = jax.tree.map(lambda a, b: 0.98 * a + 0.02 * (b * sc) ** 2, v, g)
    up = lambda q, a, b: q - lr * (
        (a / (1 - 0.9**t)) / (jnp.sqrt(b / (1 - 0.98**t)) + 1e-8) + (0.02 * q if q.ndim > 1 else 0.0)
    )
    return jax.tree.map(up, p, m, v), m, v, l, la


def main():
    tok = build_tokenizer()
    tok.save("chat_tokenizer.json")  # before the weights change: a resumed run must meet the same tokens
    late = os.environ.get("LATE")
    if late == "1":
        data.WEIGHTS = data.WEIGHTS_LATE
    if late == "2":
        data.WEIGHTS, data.SUM_MAX = data.WEIGHTS_LAST, 10
    p = init(jax.random.PRNGKey(0), CFG)
    if os.environ.get("RESUME"):  # weights only; the optimizer starts anew
        p = {k: jnp.asarray(x) for k, x in np.load(os.environ["RESUME"]).items()}
    print("vocabulary", tok.get_vocab_size(), "parameters", sum(x.size for x in jax.tree.leaves(p)))
    m = jax.tree.map(jnp.zeros_like, p)
    v = jax.tree.map(jnp.zeros_like, p)
    r = random.Random(int(os.environ.get("SEED", 7)))
    pool = make_pool(tok, r, int(os.environ.get("POOL", 30000)))
    cpu0 = time.process_time()
    for i in range(1, STEPS + 1):
        lr = LR * min(1, i / 60) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * i / STEPS)))
        p, m, v, l, la = step(p, m, v, float(i), lr, *batch(pool, r))
        if i % 25 == 0 or i == 1:
            cpu = time.process_time() - cpu0
            print("step %d loss %.4f answer %.4f cpu %.0f s" % (i, l, la, cpu), flush=True)
        if i % 100 == 0 or i == STEPS:
            np.savez("chat.npz", **{k: np.asarray(x) for k, x in p.items()})


if __name__ == "__main__":
    main()
