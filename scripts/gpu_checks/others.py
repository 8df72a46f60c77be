"""Speed of other libraries on the same shape in the same run, with one stream each: transformers, TRL and vLLM."""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpu_checks.setting import Failed, Result, Setting, Skipped, run
from gpu_checks.speed import Shape, free
from lmix.model.sources import resolve


def transformers_generate(name: str, setting: Setting) -> Result:
    """Time transformers' `generate` with one stream and no adapter."""
    shape = Shape(name, setting)
    model: Any = shape.model()
    ids = torch.tensor([prompt.ids for prompt in shape.asked()], device=setting.device)
    ids = ids.repeat_interleave(shape.samples, dim=0)
    lengths = {"min_new_tokens": shape.tokens, "max_new_tokens": shape.tokens, "do_sample": True, "pad_token_id": 0}

    def generate() -> None:
        with torch.no_grad():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **lengths)

    generate()
    seconds = setting.seconds_of(generate)
    return {"rollout_tokens_per_second": len(ids) * shape.tokens / seconds}


def trl_step(name: str, setting: Setting) -> Result:
    """Time a step of TRL's GRPOTrainer at beta 0, with `benchmarks`."""
    if not find_spec("trl"):
        raise Skipped("TRL is not installed")
    setting.not_quick()
    setting.needs_cuda()
    shape = Shape(name, setting)
    with tempfile.TemporaryDirectory() as folder:
        save(shape, Path(folder) / "model")
        line = ["-m", "benchmarks", f"--model={folder}/model", f"--prompts={shape.prompts}", "--contenders=ours,trl"]
        line += [f"--samples={shape.samples}", f"--tokens={shape.tokens}", f"--prompt_tokens={shape.prompt_tokens}"]
        line += ["--repeats=1", f"--json={folder}/figures.json", "--pass_tokens=4096"]
        line += [f"--trl_rows={min(16, shape.prompts * shape.samples)}"]
        run(line, folder, 150)
        figures = json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))
    return {"step_vs_trl": figures["step_vs_trl"], "figures": figures["figures"]}


def vllm_rollouts(name: str, setting: Setting) -> Result:
    """Time rollouts by vLLM, with one stream and dummy weights of the same shape."""
    setting.needs_cuda()
    if not find_spec("vllm"):
        raise Skipped("vLLM is not installed")
    setting.not_quick()
    shape = Shape(name, setting)
    with tempfile.TemporaryDirectory() as folder:
        shape.config.architectures = ["Qwen2ForCausalLM"]
        shape.config.save_pretrained(folder)
        sizes = {"prompts": [p.ids for p in shape.asked()], "samples": shape.samples, "tokens": shape.tokens}
        (Path(folder) / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
        done = run([str(Path(__file__)), folder], folder, 150)
    seconds = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
    return {"rollout_tokens_per_second": shape.prompts * shape.samples * shape.tokens / seconds}


def save(shape: Shape, folder: Path) -> None:
    """Save the shape's random weights as a model folder, with the sandbox's tokenizer."""
    shape.model().save_pretrained(folder)  # not a policy's backbone: with adapters its layers have other names
    for file in Path(resolve("lmix:tiny-arithmetic")).glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    free(shape.setting)


def vllm_main(folder: str) -> None:
    """Entry point of a separate process, which frees vLLM's memory when it ends."""
    import time

    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    sizes = json.loads((Path(folder) / "sizes.json").read_text(encoding="utf-8"))
    model = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=1024)
    limits = SamplingParams(n=sizes["samples"], max_tokens=sizes["tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in sizes["prompts"]]
    model.generate(prompts, limits)
    start = time.perf_counter()
    if not model.generate(prompts, limits):
        raise Failed("vLLM gave nothing")
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    vllm_main(sys.argv[1])
