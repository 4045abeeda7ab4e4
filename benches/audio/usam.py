"""U-SAM's encoder of sounds (CED-base) and its Q-Former in torch, with random weights under the published names.

Layers as the papers have them (arXiv 2308.11957, 2305.13880), written with torch's fused attention: what a careful user would run.
"""

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

CED = {"embed_dim": 768, "depth": 12, "num_heads": 12, "target_length": 1012}
QFORMER = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 2}
# Of CED, Whisper-small and MERT side by side; tokens of a window.
WIDTH, WINDOW = 2304, 17


def attend(q, k, v, heads):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)})

    def forward(self, x):
        x = x + self.attn["proj"](attend(*self.attn["qkv"](self.norm1(x)).chunk(3, -1), self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Ced(nn.Module):
    def __init__(self):
        super().__init__()
        d = CED["embed_dim"]
        self.init_bn = nn.Sequential(nn.Identity(), nn.BatchNorm2d(64))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, d, 16, 16)})
        self.time_pos_embed = nn.Parameter(torch.randn(1, d, 1, CED["target_length"] // 16))
        self.freq_pos_embed = nn.Parameter(torch.randn(1, d, 4, 1))
        self.blocks = nn.ModuleList(Block(d, CED["num_heads"]) for _ in range(CED["depth"]))
        self.norm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, mels):  # (b, 64, t), t at most 1012
        x = self.init_bn(mels[:, :, None]).squeeze(2)
        x = self.patch_embed["proj"](x[:, None])  # (b, d, 4, t / 16)
        x = (x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    def __init__(self, h, inputs, heads):
        super().__init__()
        self.heads = heads
        self.self = nn.ModuleDict({"query": nn.Linear(h, h), "key": nn.Linear(inputs, h), "value": nn.Linear(inputs, h)})
        self.output = nn.ModuleDict({"dense": nn.Linear(h, h), "LayerNorm": nn.LayerNorm(h, eps=1e-12)})

    def forward(self, x, z):
        y = attend(self.self["query"](x), self.self["key"](z), self.self["value"](z), self.heads)
        return self.output["LayerNorm"](x + self.output["dense"](y))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        h, heads, inner = QFORMER["hidden_size"], QFORMER["num_attention_heads"], QFORMER["intermediate_size"]
        self.attention, self.crossattention = Attention(h, h, heads), Attention(h, WIDTH, heads)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(h, inner)})
        self.output_query = nn.ModuleDict({"dense": nn.Linear(inner, h), "LayerNorm": nn.LayerNorm(h, eps=1e-12)})

    def forward(self, x, z):
        x = self.crossattention(self.attention(x, x), z)
        y = self.output_query["dense"](F.gelu(self.intermediate_query["dense"](x)))
        return self.output_query["LayerNorm"](x + y)


class QFormer(nn.Module):
    def __init__(self):
        super().__init__()
        h = QFORMER["hidden_size"]
        self.speech_query_tokens = nn.Parameter(0.02 * torch.randn(1, 1, h))
        bert = {
            "embeddings": nn.ModuleDict({"LayerNorm": nn.LayerNorm(h, eps=1e-12)}),
            "encoder": nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(QFORMER["num_hidden_layers"]))}),
        }
        self.speech_former = nn.ModuleDict({"bert": nn.ModuleDict(bert)})

    def forward(self, tokens):  # (b, t, WIDTH)
        b, windows = len(tokens), tokens.shape[1] // WINDOW
        z = tokens[:, : windows * WINDOW].reshape(b * windows, WINDOW, -1)
        bert = self.speech_former["bert"]
        x = bert["embeddings"]["LayerNorm"](self.speech_query_tokens).expand(len(z), -1, -1)
        for layer in bert["encoder"]["layer"]:
            x = layer(x, z)
        return x.reshape(b, windows, -1)


MODULES = {"ced": Ced, "qformer": QFormer}


def make(folder):
    """Both, and ten seconds of tokens for the Q-Former."""
    torch.manual_seed(20261129)
    for name, module in MODULES.items():
        weights = module().state_dict()
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / f"{name}.safetensors")
    save_file({"tokens": torch.randn(1, 252, WIDTH)}, folder / "tokens.safetensors")


def load(folder, name, dtype):
    module = MODULES[name]()
    module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return module.to(dtype).eval()
