"""A model of MoE-LLaVA's shape on torch: transformers' CLIP tower and StableLM, whose every other feed-forward network is four of
them behind DeepSpeed's second-choice gate as the published code evaluates it (no noise; a capacity that drops nothing at four
experts). Its experts are run one after the other on the tokens that chose them, which is less work than the published einsum over all
places of the capacity.
"""

import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, StableLmConfig, StableLmForCausalLM
from transformers.models.stablelm.modeling_stablelm import StableLmMLP

# MoE-LLaVA-StableLM-1.6B-4e with 8 of its 24 layers and 32,000 of its 100,352 words.
LAYERS, EXPERTS, VOCABULARY = 8, 4, 32000
LANGUAGE = StableLmConfig(
    vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=5632, num_hidden_layers=LAYERS, num_attention_heads=32,
    num_key_value_heads=32, use_qkv_bias=True, partial_rotary_factor=0.25, layer_norm_eps=1e-5, rope_theta=10000.0,
    max_position_embeddings=4096, tie_word_embeddings=False, hidden_dropout=0.0, attention_dropout=0.0,
)
TOWER = CLIPVisionConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.deepspeed_moe = nn.Module()
        self.deepspeed_moe.gate = nn.Module()
        self.deepspeed_moe.gate.wg = nn.Linear(LANGUAGE.hidden_size, EXPERTS, bias=False)
        self.deepspeed_moe.experts = nn.Module()
        self.deepspeed_moe.experts.deepspeed_experts = nn.ModuleList(StableLmMLP(LANGUAGE) for _ in range(EXPERTS))

    def forward(self, states):
        moe, rows = self.deepspeed_moe, states.reshape(-1, states.shape[-1])
        gates = torch.softmax(nn.functional.linear(rows.float(), moe.gate.wg.weight.float()), -1)
        weights, chosen = gates.topk(2, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(rows.dtype)
        out = torch.zeros_like(rows)
        for i, expert in enumerate(moe.experts.deepspeed_experts):
            token, place = torch.where(chosen == i)
            if len(token):
                out.index_add_(0, token, expert(rows[token]) * weights[token, place, None])
        return out.reshape(states.shape)


class MoeLlava(nn.Module):
    def __init__(self):
        super().__init__()
        self.language = StableLmForCausalLM(LANGUAGE)
        for layer in self.language.model.layers[::2]:
            layer.mlp = Sparse()
        self.tower = CLIPVisionModel(TOWER)
        wide = LANGUAGE.hidden_size
        self.projector = nn.Sequential(nn.Linear(TOWER.hidden_size, wide), nn.GELU(), nn.Linear(wide, wide))

    def places(self):
        """Names in the checkpoint."""
        for name, weight in self.state_dict().items():
            part, rest = name.split(".", 1)
            if part == "language":
                yield rest, name
            elif part == "tower" and "position_ids" not in name:
                yield f"model.image_tower.image_tower.{rest}", name
            elif part == "projector":
                yield f"model.mm_projector.image_spatial_proj.{rest}", name


def make(folder):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(20261129)
    torch.set_default_dtype(torch.bfloat16)
    model = MoeLlava()
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                # Wide enough that gates decide and attention attends.
                weight.normal_(0.0, 1.0 if "embed_tokens" in name else weight[0].numel() ** -0.5)
    states = model.state_dict()
    save_file({name: states[at].contiguous() for name, at in model.places()}, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["MoELLaVAStablelmForCausalLM"], "model_type": "moe_llava_stablelm", "hidden_act": "silu",
        "vocab_size": VOCABULARY, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "num_key_value_heads": 32, "use_qkv_bias": True, "rope_pct": 0.25, "norm_eps": 1e-5,
        "rope_theta": 10000, "max_position_embeddings": 4096, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
        "image_projector_type": "mlp2x_gelu", "mm_hidden_size": 1024, "mm_image_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_feature": "patch", "mm_vision_select_layer": -2, "image_aspect_ratio": "pad",
        "tokenizer_model_max_length": 2048, "torch_dtype": "bfloat16",
        "moe": {
            "moe_enable": True, "moe_mode": "sparse", "moe_layers_idx": list(range(0, LAYERS, 2)), "ep_size": 1,
            "num_experts": [EXPERTS] * (LAYERS // 2), "top_k_experts": 2, "capacity_factor": 1.5, "eval_capacity_factor": 2.0,
            "min_capacity": 0, "use_residual": False, "router_aux_loss_coef": 0.01,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "vision_config.json").write_text(json.dumps({"model_type": "clip_vision_model", **TOWER.to_diff_dict()}) + "\n")


def load(folder, dtype):
    with torch.device("meta"):
        model = MoeLlava()
    states = load_file(Path(folder) / "model.safetensors")
    states = {at: states[name].to(dtype) for name, at in model.places()}
    model.load_state_dict(states, strict=False, assign=True)
    for module, made in [(model.tower.vision_model.embeddings, "position_ids")]:
        module.register_buffer(made, torch.arange(module.num_positions).expand((1, -1)), persistent=False)
    rotary = model.language.model.rotary_emb
    model.language.model.rotary_emb = type(rotary)(LANGUAGE)
    return model.eval()


def run(model, pixels, prompt, steps):
    """Seconds from pixels to the tokens of a picture, of a prompt of that picture and `prompt` words, and of `steps` words after it."""
    words = [(17 * i * i + 5 * i) % (VOCABULARY - 3) + 3 for i in range(prompt + steps)]
    words = torch.tensor([words])
    with torch.inference_mode():
        start = time.perf_counter()
        states = model.tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        picture = model.projector(states)
        encode = time.perf_counter() - start
        start = time.perf_counter()
        text = model.language.model.embed_tokens(words[:, :prompt])
        rows = torch.cat([text[:, :1], picture, text[:, 1:]], 1)
        answer = model.language(inputs_embeds=rows, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for at in range(prompt, prompt + steps):
            answer = model.language(words[:, at : at + 1], past_key_values=answer.past_key_values, use_cache=True)
        decode = time.perf_counter() - start
    return {"encode": encode, "prefill": prefill, "decode": decode}, answer.logits[0, -1].float().numpy()
