"""Writes small parity cases of Aria, LLaVA-NeXT and Qwen3-VL beyond the plain ones, with transformers as the reference.

    pip install torch==2.8.0 transformers==5.23.0   # aria: releases 4.x misplace patches
    python tools/picture_model_cases.py tests/fixtures aria
    pip install torch==2.8.0 transformers==4.57.6   # the others
    python tools/picture_model_cases.py tests/fixtures qwen3_vl qwen3_vl_moe llava_next

Each case is a folder as described in tests/parity.rs: a model with random weights in the published layout, a batch of two
prompts with pictures of which the second is padded at the left, and what the reference computed from them.
"""

import json
import math
import os
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, DynamicCache

DECODED = 6
TEXT = dict(vocab_size=71, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
            intermediate_size=20, max_position_embeddings=128, attention_bias=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
SIGHT = dict(hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2)
QWEN_SIGHT = dict(depth=3, hidden_size=16, intermediate_size=20, num_heads=2, patch_size=4, num_position_embeddings=25,
                  out_hidden_size=24, deepstack_visual_indexes=[0, 2], initializer_range=0.02)
QWEN = dict(image_token_id=60, video_token_id=61, vision_start_token_id=62, vision_end_token_id=63)
ROPE = dict(rope_type="default", mrope_section=[2, 2, 2], mrope_interleaved=True)
ARIA = dict(image_token_index=60, projector_patch_to_query_dict={"16": 5, "4": 3}, vision_feature_layer=-2)
ARIA_TEXT = dict(TEXT, model_type="aria_text", mlp_bias=True, moe_num_experts=6, moe_topk=2, moe_num_shared_experts=1)
MOE = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=10)
GRIDS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
CASES = {
    # Pictures in one grid and another: high, wide, and of one tile's size.
    "llava_next": dict(
        tiles=(dict(image_token_index=60, image_grid_pinpoints=GRIDS, vision_feature_layer=-2, vision_feature_select_strategy="default",
                    text_config=dict(TEXT, model_type="llama"),
                    vision_config=dict(SIGHT, model_type="clip_vision_model", image_size=16, patch_size=4)),
               [(90, 31), (12, 20), (16, 16)]),
    ),
    # Pictures of 16 patches, some of them padding, and of 4 in a tower that has positions for 16.
    "aria": dict(
        masked=(dict(ARIA, text_config=ARIA_TEXT, vision_config=dict(SIGHT, image_size=32, patch_size=8)), 32),
        small=(dict(ARIA, text_config=dict(ARIA_TEXT, moe_num_shared_experts=2, mlp_bias=False),
                    vision_config=dict(SIGHT, image_size=32, patch_size=8)), 16),
    ),
    "qwen3_vl_moe": dict(
        video=(dict(QWEN, text_config=dict(TEXT, **MOE, rope_scaling=ROPE, decoder_sparse_step=2), vision_config=QWEN_SIGHT), None),
    ),
    "qwen3_vl": dict(
        tied=(dict(QWEN, text_config=dict(TEXT, rope_scaling=dict(ROPE, mrope_section=[4, 1, 1]), tie_word_embeddings=True),
                   vision_config=QWEN_SIGHT, tie_word_embeddings=True), None),
    ),
}


def model_of(family, options, seed):
    torch.manual_seed(seed)
    transformers.PreTrainedModel._initialize_weights = lambda self, module, *args: None
    config = CONFIG_MAPPING[family](**json.loads(json.dumps(options)))
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            if p.dim() > 1:
                # The rows of experts and of Qwen's are inputs; the others' are outputs.
                inputs = p.shape[1] if "experts.fc" in name or name.endswith(("gate_up_proj", "down_proj")) and p.dim() == 3 else p[0].numel()
                p.copy_(noise if "embed" in name else noise * 1.1 / math.sqrt(inputs))
            else:
                p.copy_(1 + 0.15 * noise if name.endswith("weight") else 0.15 * noise)
    model.tie_weights()
    return model


def padded(rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids, (ids != 0).long()


def words(n):
    return torch.randint(3, 60, (n,)).tolist()


def aria_inputs(options, side):
    q = options["projector_patch_to_query_dict"][str((side // 8) ** 2)]
    ids, mask = padded([words(2) + [60] * q + words(1) + [60] * q + words(3), words(1) + [60] * q + words(2)])
    seen = torch.ones(3, side, side, dtype=torch.bool)
    if side == 32:
        seen[0, 17:], seen[2, :, 9:] = False, False
    return dict(input_ids=ids, attention_mask=mask, pixel_values=torch.randn(3, 3, side, side), pixel_mask=seen)


def llava_next_inputs(options, sizes):
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    side = options["vision_config"]["image_size"]
    views = [image_size_to_num_patches(size, options["image_grid_pinpoints"], side) for size in sizes]
    pixels = torch.zeros(len(sizes), max(views), 3, side, side)
    for row, n in zip(pixels, views):
        row[:n] = torch.randn(n, 3, side, side)
    return dict(pixel_values=pixels, image_sizes=torch.tensor(sizes))


def with_ids(model, inputs):
    """Two prompts whose marks are as many as the pictures have tokens, which the model itself tells."""
    counts = [len(f) for f in packed(model, inputs)]
    see = lambda i: [60] * counts[i]
    ids, mask = padded([words(2) + see(0) + words(1) + see(1) + words(3), words(1) + see(2) + words(2)])
    return dict(input_ids=ids, attention_mask=mask, **inputs)


def packed(model, inputs):
    """The tokens of each picture, with a new line behind each row of the large one."""
    return model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], vision_feature_layer=-2,
                                          vision_feature_select_strategy="default")


def qwen_inputs(options, _):
    start, image, video, end = [62], [60], [61], [63]
    see = lambda token, n: start + token * n + end
    patches = lambda grids: torch.randn(int(sum(t * h * w for t, h, w in grids)), 3 * 2 * 4 * 4)
    images, videos = [(1, 4, 6), (1, 2, 4), (1, 6, 2)], [(2, 2, 4), (3, 4, 2)]
    first = words(2) + see(image, 6) + words(1) + see(video, 2) + words(2) + see(video, 2) + words(1) + see(image, 2)
    second = words(1) + see(video, 2) + words(1) + see(video, 2) + words(1) + see(video, 2) + see(image, 3) + words(2)
    ids, mask = padded([first + words(3), second])
    return dict(input_ids=ids, attention_mask=mask, pixel_values=patches(images), image_grid_thw=torch.tensor(images),
                pixel_values_videos=patches(videos), video_grid_thw=torch.tensor(videos))


def expected_of(family, model, inputs):
    mask = inputs["attention_mask"]
    real = mask[:, :, None].float()
    text, seen = model.model.language_model, {}
    keep = lambda name: lambda module, args, kwargs: seen.update({name: (args[0] if args else kwargs["hidden_states"]).clone()})
    hooks = [layer.register_forward_pre_hook(keep(f"hidden.{i}"), with_kwargs=True) for i, layer in enumerate(text.layers)]
    hooks += [text.norm.register_forward_pre_hook(keep(f"hidden.{len(text.layers)}"), with_kwargs=True)]
    if family == "aria":
        projector = model.model.multi_modal_projector
        hooks += [projector.register_forward_hook(lambda module, args, out: seen.update(features=out.clone()))]
    out = model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    expected = {name: h * real for name, h in seen.items() if name.startswith("hidden")}
    expected["logits"] = out.logits * real
    if family == "aria":
        expected["image_features"] = seen["features"].flatten(0, 1)
    elif family == "llava_next":
        # Pictures in tiles are long: a small file has no room for the layers.
        expected = dict(logits=expected["logits"])
        expected["image_features"] = torch.cat(packed(model, inputs))
    else:
        images, _ = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        videos, _ = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        expected["image_features"], expected["video_features"] = torch.cat(images), torch.cat(videos)
        keys = "image_grid_thw", "video_grid_thw", "attention_mask"
        positions, deltas = model.model.get_rope_index(inputs["input_ids"], **{key: inputs[key].clone() for key in keys})
        expected["position_ids"], expected["rope_deltas"] = positions, deltas
    cache, step, tokens, logits, gap = DynamicCache(config=model.config.get_text_config()), dict(inputs), [], [], math.inf
    for i in range(DECODED):
        if not family.startswith("qwen3_vl"):
            step["position_ids"] = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)[:, -step["input_ids"].shape[1]:]
        else:
            step["cache_position"] = torch.arange(mask.shape[1] - step["input_ids"].shape[1], mask.shape[1])
        step["attention_mask"] = mask
        out = model(**step, past_key_values=cache, use_cache=True)
        logits.append(out.logits[:, -1])
        best = logits[-1].topk(2, -1).values
        gap = min(gap, (best[:, 0] - best[:, 1]).min().item())
        tokens.append(logits[-1].argmax(-1, keepdim=True))
        step = dict(input_ids=tokens[-1])
        mask = torch.cat([mask, torch.ones_like(tokens[-1])], 1)
    expected["greedy_tokens"], expected["greedy_logits"] = torch.cat(tokens, 1), torch.stack(logits, 1)
    return expected, gap


def write(root, family, name, options, side):
    for seed in range(1, 50):
        with torch.no_grad():
            model = model_of(family, options, seed)
            inputs = dict(aria=aria_inputs, llava_next=llava_next_inputs).get(family, qwen_inputs)(options, side)
            inputs = with_ids(model, inputs) if family == "llava_next" else inputs
            expected, gap = expected_of(family, model, inputs)
        if gap > 0.01:
            break
    folder = os.path.join(root, family, name)
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)
    save_file({n: t.contiguous().clone() for n, t in expected.items()}, os.path.join(folder, "expected.safetensors"))
    save_file(inputs, os.path.join(folder, "inputs.safetensors"))
    kind = lambda t: dict(shape=list(t.shape), dtype=str(t.dtype).removeprefix("torch."))
    case = dict(
        family=family, case=name,
        reference=dict(package="transformers", version=transformers.__version__, torch=torch.__version__,
                       **{"class": type(model).__name__}, attn_implementation="eager", script="tools/picture_model_cases.py"),
        seed=seed, dtype="float32",
        tolerance=dict(default=dict(atol=1e-4, rtol=1e-4), tensors={}, integers="exact"),
        margins=dict(greedy_min_top1_gap=gap),
        notes="Values at padding are zeros and mean nothing.",
        inputs={n: kind(t) for n, t in inputs.items()},
        expected={n: kind(t) for n, t in expected.items()},
    )
    with open(os.path.join(folder, "case.json"), "w") as file:
        json.dump(case, file, indent=1)
        file.write("\n")
    print(f"{family}/{name} seed {seed} gap {gap:.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    root, *families = sys.argv[1:]
    for family, cases in CASES.items():
        for name, (options, side) in cases.items():
            if family in families:
                write(root, family, name, options, side)
