"""What products of bf16 weights would lose if x were rounded to bf16 too, as `vdpbf16ps` and its kin do.

    python scripts/bf16_activations.py assets/nano testdata/llama_tiny ...

Runs each model with Transformers in f32 on 64 random tokens: as it is, with the input of every linear
layer rounded to bf16, and with it split into two bf16 parts. Prints the largest change of a logit as a
share of the largest logit. The golden tests allow 1e-4. Needs torch and transformers
(scripts/requirements.txt).
"""

import sys

import torch
from transformers import AutoModelForCausalLM


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def split(x: torch.Tensor) -> torch.Tensor:
    return rounded(x) + rounded(x - rounded(x))


@torch.no_grad()
def logits(model, ids, change=None):
    hooks = []
    if change:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                hook = lambda _, inputs: (change(inputs[0]),)
                hooks.append(module.register_forward_pre_hook(hook))
    result = model(ids).logits
    for hook in hooks:
        hook.remove()
    return result


def main() -> None:
    for path in sys.argv[1:]:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        seeded = torch.Generator().manual_seed(1)
        ids = torch.randint(0, model.config.vocab_size, (1, 64), generator=seeded)
        exact = logits(model, ids)
        for change in (rounded, split):
            moved = (logits(model, ids, change) - exact).abs().max() / exact.abs().max()
            print(f"{path}  {change.__name__:<8} {moved.item():.1e}")


main()
