"""What docs/compatibility.md has in its tables; the cells come from tests, see matrices.py."""

from __future__ import annotations

from matrices import Table

ARCHITECTURES = {
    "gpt2": "GPT-2",
    "bert": "BERT",
    "bert-words": "BERT, token classification",
    "roberta": "RoBERTa",
    "distilbert": "DistilBERT",
    "modernbert": "ModernBERT",
    "llama": "Llama",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "opt": "OPT",
    "t5": "T5",
    "vit": "ViT",
    "clip": "CLIP vision",
    "dinov2": "DINOv2",
    "resnet": "ResNet",
}

_TIED = ("gpt2", "gemma", "opt", "t5")

TABLES = {
    "architectures": Table(
        corner="architecture",
        rows=ARCHITECTURES,
        columns={
            "load": "loaded = built",
            "switch": "W_k bit for bit",
            "unmerge": "unmerged = built without",
            "export": "export, same bits",
            "features": "clusters by features",
            "tied": "tied weights once",
            "resize": "resizing refused",
        },
        files=("tests/models/test_architectures.py",),
        absent=(
            *(
                (name, "tied", "ties no weights")
                for name in ARCHITECTURES
                if name not in ("gpt2", "gemma", "opt", "t5")
            ),
            *((name, "resize", "has no token embeddings") for name in ("vit", "clip", "dinov2", "resnet")),
        ),
    ),
    "peft": Table(
        corner="operation",
        rows={
            "from_pretrained": "`PeftModel.from_pretrained`",
            "load_adapter": "`load_adapter`",
            "set_adapter": "`set_adapter`",
            "disable_adapter": "`disable_adapter`",
            "delete_adapter": "`delete_adapter`",
            "merge_and_unload": "`merge_and_unload`",
            "unload": "`unload`",
            "save_pretrained": "`save_pretrained`",
            "push_to_hub": "`push_to_hub` and back",
            "auto": "`AutoPeftModel…`",
            "low_cpu_mem_usage": "`low_cpu_mem_usage=True`",
            "generate": "`generate`",
            "hundreds": "200 adapters at the cost of their bits",
            "transformers load": "transformers: `model.load_adapter`",
            "transformers set": "transformers: `model.set_adapter`",
            "transformers disable": "transformers: `disable_adapters`, `enable_adapters`",
            "transformers delete": "transformers: `model.delete_adapter`",
        },
        columns={name: ARCHITECTURES[name] for name in ("gpt2", "llama", "bert", "t5", "vit", "clip")},
        files=("tests/models/test_mask_adapter.py", "tests/models/test_mask_adapter_hub.py"),
        absent=tuple(("generate", name, "does not generate") for name in ("bert", "vit", "clip")),
    ),
    "quantized": Table(
        corner="stored weights",
        rows={"nf4": "4 bits, nf4", "nf4-double": "4 bits, nf4, double quantisation", "int8": "8 bits"},
        columns={
            "unmerge": "unmerged = built without",
            "process": "another process",
            "stored": "stored before",
            "hub": "from the Hub",
            "peft": "PEFT alone",
            "refused": "another base",
        },
        files=("tests/models/test_quantized_bases.py", "tests/hub/test_hub_quantized.py"),
    ),
    "spaces": Table(
        corner="adapter, `peft_merging`, tasks",
        rows={
            "lora-frozen_a": "LoRA, `frozen_a`, text labels",
            "lora-parameters": "LoRA, `parameters`, text labels",
            "lora-product": "LoRA, `product`, text labels",
            "lora-frozen_a-lm": "LoRA, `frozen_a`, completions",
            "rslora-dropout-product-lm": "rsLoRA with dropout, `product`, completions",
            "lora-frozen_a-image": "LoRA, `frozen_a`, images",
            "dora-parameters": "DoRA, `parameters`, text labels",
            "loha-parameters-image": "LoHa, `parameters`, images",
            "lokr-product-image": "LoKr, `product`, images",
            "oft-parameters-image": "OFT, `parameters`, images",
            "ia3-parameters": "IA³, `parameters`, text labels",
            "ia3-product": "IA³, `product`, text labels",
            "vera-parameters": "VeRA, `parameters`, text labels",
            "adalora": "AdaLoRA",
            "prompts": "prompt and prefix tuning",
        },
        columns={
            "unmerge": "unmerged = built without",
            "export": "export, plain model",
            "adapter": "export, PEFT adapter",
        },
        files=("tests/base_models/test_peft_space.py",),
        absent=(
            ("*-product*", "adapter", "the product is in the base weights: there is no adapter to write"),
            (
                "vera-*",
                "adapter",
                "PEFT writes what layers share from its own wrapper only: export merged",
            ),
            ("adalora", "*", "refused: its ranks change while it trains, so tasks cannot be added"),
            ("prompts", "*", "refused: they are not weights of a layer, so tasks cannot be added"),
        ),
    ),
}
