"""Smallest configurations of mlx-lm architectures."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tests.kv import tiny

WINDOW = 48

COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "vocab_size": 97,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "logits_scaling": 1.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 0.5,
}

MLA: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 16,
}

SCALED_ROPE: dict[str, Any] = {
    "rope_theta": 10000.0,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 4096,
}

FULL: dict[str, dict[str, Any]] = {
    "llama": {"layer_types": None},
    "apertus": {"post_norm": True, "qk_norm": True},
    "bailing_moe": {"norm_topk_prob": True},
    "cohere": {"use_qk_norm": False},
    "dots1": {},
    "ernie4_5": {},
    "exaone": {"num_layers": 2},
    "gemma": {},
    "gemma2": {},
    "glm4": {},
    "gpt2": {"n_ctx": 512, "n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "gpt_bigcode": {"n_embd": 128, "n_layer": 2, "n_inner": 64, "n_head": 4, "n_positions": 512},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25},
    "granite": {},
    "granitemoe": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "internlm2": {},
    "minicpm": {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 1.0},
    "mixtral": {},
    "nemotron": {"hidden_act": "relu2"},
    "olmo2": {},
    "olmoe": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {"layer_types": None},
    "stablelm": {"use_qkv_bias": True},
    "starcoder2": {},
    # Key dim 48 and value dim 32; 48 needs a dense rotation.
    "deepseek_v2": MLA | {"rope_scaling": {"type": "yarn", "factor": 1.0, "mscale_all_dim": 0}},
    "minicpm3": MLA
    | {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 1.0, "rope_scaling": {"type": "longrope"}},
}
"""Full attention in every layer."""

SLIDING: dict[str, dict[str, Any]] = {
    "llama with windows": {},
    "afmoe": {"num_dense_layers": 1},
    "baichuan_m1": {
        "sliding_window_layers": [0],
        "conv_window": 2,
        "num_swa_attention_heads": 4,
        "num_swa_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "cohere2": {"sliding_window_pattern": 2},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "text_config": {
            "model_type": "gemma3n_text",
            **{key: COMMON[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")},
            **{key: COMMON[key] for key in ("head_dim", "rms_norm_eps", "vocab_size", "sliding_window")},
            "num_hidden_layers": 4,
            "intermediate_size": 64,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 97,
            "max_position_embeddings": 4096,
            "rope_local_base_freq": 10000.0,
            "rope_theta": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "global_head_dim": 64,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 16,
        "rope_parameters": {"sliding_attention": {}, "full_attention": {}},
    },
    "gpt_oss": {},
    "mellum": {
        "rope_parameters": {kind: {"rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")}
    },
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0],
        "moe_layer_freq": [0, 0],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 32,
        "swa_v_head_dim": 16,
        "v_head_dim": 16,
    },
    "ministral3": {"rope_parameters": SCALED_ROPE},
    "olmo3": {},
    "plamo3": {"window_size": WINDOW, "sliding_window_pattern": 2},
    "iquestloopcoder": {"loop_num": 2, "loop_window_size": WINDOW},
}
"""Sliding windows in some layers, full attention in at least one."""

PARTLY: dict[str, dict[str, Any]] = {
    "llama4": {
        "text_config": {
            **COMMON,
            "model_type": "llama4_text",
            "num_hidden_layers": 4,
            "attention_chunk_size": WINDOW,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 64,
            "rope_scaling": None,
        }
    },
    "minimax_m3_vl": {
        "text_config": {
            **COMMON,
            "dense_intermediate_size": 64,
            "shared_intermediate_size": 32,
            "layer_types": ["sparse_attention", "full_attention"],
            "index_n_heads": 2,
            "index_head_dim": 16,
            "index_block_size": 16,
            "index_topk_blocks": 2,
        }
    },
}
"""Chunked or indexed attention in some layers, which stays uncompressed."""

HYBRID: dict[str, dict[str, Any]] = {
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_d_state": 16,
        "mamba_n_heads": 2,
        "mamba_d_head": 32,
        "mamba_n_groups": 1,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_proj_bias": False,
        "mamba_conv_bias": True,
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "lfm2": {
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 128,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 64,
        "full_attn_idxs": [1],
        "layer_types": None,
    },
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_conv_bias": True,
    },
    "olmo_hybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "linear_allow_neg_eigval": True,
    },
    "plamo2": {
        "hidden_size_per_head": 32,
        "mamba_num_heads": 4,
        "mamba_d_state": 16,
        "num_hidden_layers": 2,
    },
    "qwen3_next": {
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "full_attention_interval": 2,
    },
}
"""Recurrent state in some layers or beside attention; attention is compressed."""

LATENT_ONLY: dict[str, dict[str, Any]] = {
    "deepseek_v3": MLA,
    "deepseek_v32": MLA | {"index_head_dim": 32, "index_n_heads": 2, "index_topk": 64},
    "glm4_moe_lite": MLA,
    "longcat_flash": MLA
    | {
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "ffn_hidden_size": 64,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "mistral4": MLA | {"rope_parameters": SCALED_ROPE},
}
"""Latent attention (MLA) in every layer: no scheme applies."""

WINDOWS_ONLY: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {
        "attention_window_size": WINDOW,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
        "lru_width": 128,
    },
}
"""Sliding windows and recurrent state, no full attention."""

FAMILIES = FULL | SLIDING | PARTLY | HYBRID | WINDOWS_ONLY | LATENT_ONLY


@lru_cache(maxsize=2)
def model(name: str) -> Any:
    """The model of a family, cached because building it takes most of a test."""
    config = FAMILIES[name]
    return tiny.build(name.split()[0], **(config if "text_config" in config else COMMON | config))
