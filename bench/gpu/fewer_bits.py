"""What products in fp8 and int8 would bring on this GPU, and cost: their rates in the shapes of Llama 3.1 8B, weights
and activations rounded row by row, and the cosine of V of block 17 to float32 on random weights.

    python fewer_bits.py       (a minute)
"""

import time

import torch
from transformers import LlamaConfig, LlamaModel

TOKENS = 16384
SHAPES = ((4096, 6144), (4096, 4096), (4096, 28672), (14336, 4096))
BLOCK = 17
# The largest number of the formats.
LARGEST = {"fp8": 448, "int8": 127}


def rate(product, operations, seconds=1.5):
    """TFLOP/s, or 10^12 operations/s, of a product that is done again and again."""
    product()
    torch.cuda.synchronize()
    started, rounds = time.time(), 0
    while time.time() - started < seconds:
        for _ in range(10):
            product()
        torch.cuda.synchronize()
        rounds += 10
    return rounds * operations / (time.time() - started) / 1e12


def row_scales(x, bits):
    return (x.abs().amax(-1, keepdim=True).float() / LARGEST[bits]).clamp_min(1e-12)


def rates(inputs, outputs):
    x = torch.randn(TOKENS, inputs, device="cuda").bfloat16()
    weight = (torch.randn(outputs, inputs, device="cuda") / inputs**0.5).bfloat16()
    operations = 2 * TOKENS * inputs * outputs
    yield "bf16", rate(lambda: x @ weight.t(), operations)
    x_scale, weight_scale = row_scales(x, "fp8"), row_scales(weight, "fp8")
    x8, weight8 = ((of.float() / scale).to(torch.float8_e4m3fn) for of, scale in ((x, x_scale), (weight, weight_scale)))
    weight_scale = weight_scale.t().contiguous()
    for fast in (False, True):
        yield f"fp8{', fast sums' if fast else ''}", rate(
            lambda: torch._scaled_mm(
                x8, weight8.t(), scale_a=x_scale, scale_b=weight_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
            ),
            operations,
        )
    xi, weighti = ((of.float() / row_scales(of, "int8")).round().to(torch.int8) for of in (x, weight))
    yield "int8", rate(lambda: torch._int_mm(xi, weighti.t()), operations)


def rounded(x, bits):
    if bits == "bf16":
        return x.bfloat16().float()
    scale = row_scales(x, bits)
    return (x / scale).to(torch.float8_e4m3fn).float() * scale if bits == "fp8" else (x / scale).round() * scale


@torch.inference_mode()
def cosines():
    """Least and mean cosine of V to float32, by the numbers of the products' operands."""
    with torch.device("cuda"):
        model = LlamaModel(LlamaConfig(
            vocab_size=1000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=BLOCK + 1,
            num_attention_heads=32, num_key_value_heads=8, rope_theta=5e5, rms_norm_eps=1e-5,
        )).eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        sized = 1 + 0.1 * noise if "norm" in name else 0.3 * noise if "embed" in name else noise / noise.shape[1] ** 0.5
        parameter.data = sized.bfloat16().float()
    last = model.layers[BLOCK]
    model.layers, model.norm = model.layers[:BLOCK], torch.nn.Identity()
    ids = torch.randint(0, 1000, (32, 128), device="cuda")
    exact = torch.nn.Linear.forward
    expected = None
    for bits in (None, "bf16", "fp8", "int8"):
        if bits:
            torch.nn.Linear.forward = lambda self, x, bits=bits: torch.nn.functional.linear(
                rounded(x, bits), rounded(self.weight, bits)
            )
        hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        torch.nn.Linear.forward = exact
        values = last.self_attn.v_proj(last.input_layernorm(hidden))
        if expected is None:
            expected = values
            continue
        cosine = torch.nn.functional.cosine_similarity(values, expected, dim=-1)
        yield bits, cosine.min().item(), cosine.mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    for shape in SHAPES:
        print(shape, ", ".join(f"{name} {value:.0f}" for name, value in rates(*shape)), flush=True)
    for bits, least, mean in cosines():
        print(f"{bits}: cosine of V to float32: least {least:.5f}, mean {mean:.5f}", flush=True)
