"""Compares tritter with transformers on models that either of them wrote, on CPU in f32.

    pip install torch transformers accelerate safetensors
    cargo build --release -p tritter
    python tests/transformers_check.py target/release/tritter

1. A model that `tritter train` wrote is opened by transformers (ternary at load).
2. The same model packed by `tritter pack` is opened by transformers (offline `autobitlinear`).
3. A model that transformers' `save_pretrained` wrote is opened by tritter.

Each time transformers computes the logits, which go as `golden.safetensors` into a copy of the
folder, and `tritter validate` recomputes them. Prints the largest difference of each and ends
with status 1 if one is above 1e-4.

An int8 code that two orders of summing round differently moves logits by more than that bound,
so the tokens are chosen, by transformers alone, to keep every value far from a tie.
"""
import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, unpack_weights

transformers.utils.logging.disable_progress_bar()
BOUND = 1e-4
TOKENS = 4
CANDIDATES = 300
TEXT = pathlib.Path(__file__).resolve().parent.parent / "model/assets/demo/01.txt"


class Ties:
    """Smallest distance of an activation, before it is rounded to int8, from a rounding tie."""

    def __init__(self, model):
        layers = [m for m in model.modules() if isinstance(m, (AutoBitLinear, BitLinear))]
        assert layers, "transformers built no BitLinear layer: the quantisation of config.json was not seen"
        self.hooks = [layer.register_forward_pre_hook(self.see) for layer in layers]
        self.distance = 1.0

    def see(self, _layer, inputs):
        x = inputs[0].detach().double()
        x = x * (127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5))
        self.distance = min(self.distance, (x - x.floor() - 0.5).abs().min().item())

    def close(self):
        for hook in self.hooks:
            hook.remove()


def run(tritter, *arguments):
    """Runs tritter on the CPU; gives its JSON object. `validate` may end with status 1."""
    command = [str(tritter), *map(str, arguments), "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip() or (done.returncode and arguments[0] != "validate"):
        sys.exit(f"{' '.join(command)}: status {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def open_in_transformers(folder):
    """The model in f32. Packed ones keep the stored dtype despite `dtype`; upcasting is exact."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    wrong = {key: names for key, names in report.items() if names}
    assert not wrong, f"{folder}: transformers reports {wrong}"
    torch.nn.Module.float(model)
    return model.eval()


@torch.no_grad()
def choose_tokens(model, vocab):
    """The candidate whose values lie farthest from ties, and that distance."""
    ties, best, distance = Ties(model), None, -1.0
    for seed in range(CANDIDATES):
        ids = torch.randint(3, vocab, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
        ties.distance = 1.0
        model(input_ids=ids, use_cache=False)
        if ties.distance > distance:
            best, distance = ids, ties.distance
    ties.close()
    return best, distance


@torch.no_grad()
def compare(tritter, name, folder, work):
    """Puts transformers' logits beside a copy of the folder and lets tritter recompute them."""
    model = open_in_transformers(folder)
    ids, distance = choose_tokens(model, model.config.vocab_size)
    logits = model(input_ids=ids, use_cache=False).logits.float().contiguous()
    copy = work / f"{name}-golden"
    shutil.copytree(folder, copy)
    save_file({"input_ids": ids, "logits": logits}, copy / "golden.safetensors")
    (copy / "fixture.json").write_text('{"kind": "causal_lm"}\n')
    checks = {check["name"]: check for check in run(tritter, "validate", copy)["checks"]}
    assert "logits" in checks, f"{name}: `tritter validate` did not look at the logits: {list(checks)}"
    error = checks["logits"]["max_abs"]
    failed = [check for check in checks.values() if not check["pass"]]
    good = error is not None and error <= BOUND and not failed
    print(f"{name:13} logits differ by at most {error:.2e} of {logits.abs().max():.2f}, "
          f"nearest tie {distance:.1e}: {'ok' if good else 'FAILED'}")
    for check in failed:
        print(f"    {check['name']}: {check['max_abs']} is above {check['bound']}")
    return good


def same_codes(masters, packed):
    """Number of ternary codes that tritter packed otherwise than transformers rounds them."""
    masters, packed = load_file(masters / "model.safetensors"), load_file(packed / "model.safetensors")
    names = [name for name, tensor in packed.items() if tensor.dtype == torch.uint8]
    assert names, "the packed folder has no u8 weights"
    different = total = 0
    for name in names:
        weight = masters[name]
        scale = 1 / weight.abs().mean().clamp(min=1e-5)
        codes = (weight * scale).round().clamp(-1, 1)
        different += int((unpack_weights(packed[name], torch.float32) != codes).sum())
        total += codes.numel()
    print(f"packed codes  {different} of {total} differ: {'ok' if different == 0 else 'FAILED'}")
    return different == 0


def written_by_transformers(folder):
    """A random model with ternary layers at load, written by `save_pretrained`."""
    torch.manual_seed(1)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = BitNetConfig(vocab_size=300, hidden_size=96, intermediate_size=256, num_hidden_layers=2,
                          num_attention_heads=6, num_key_value_heads=2, hidden_act="relu2",
                          max_position_embeddings=128, rope_parameters=rope, bos_token_id=1, eos_token_id=2)
    plain = folder.with_name(folder.name + "-plain")
    BitNetForCausalLM(config).save_pretrained(plain)
    path = plain / "config.json"
    described = json.loads(path.read_text())
    described["quantization_config"] = {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    path.write_text(json.dumps(described))
    open_in_transformers(plain).save_pretrained(folder)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    tritter = pathlib.Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, f32 on CPU")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        tokenizer, trained, packed = work / "tokenizer.json", work / "trained", work / "packed"
        run(tritter, "tokenizer", "train", TEXT, "--out", tokenizer, "--vocab", 320)
        run(tritter, "train", "--data", TEXT, "--tokenizer", tokenizer, "--out", trained,
            "--preset", "test", "--batch", 1, "--context", 32, "--steps", 20)
        run(tritter, "pack", trained, packed)
        written_by_transformers(work / "transformers")
        good = [
            compare(tritter, "trained", trained, work),
            same_codes(trained, packed),
            compare(tritter, "packed", packed, work),
            compare(tritter, "transformers", work / "transformers", work),
        ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
