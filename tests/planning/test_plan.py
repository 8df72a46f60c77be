"""The planner's formulas against what tensors really take."""

import dataclasses
import shutil

import pytest
import torch

from lmix import cli
from lmix.model.adapters import AdapterConfig
from lmix.planning.estimates import (
    activation_bytes,
    backbone_bytes,
    host_bytes,
    largest,
    memory,
    old_seconds,
    peak,
    prefix_bytes,
    rollout_seconds,
    update_seconds,
)
from lmix.planning.published import planned_config
from lmix.planning.shape import FrozenModel, model_shape
from lmix.rollout.kv_cache import StreamCache
from lmix.rollout.packing import pack
from lmix.rollout.types import Rollout
from tests.conftest import make_policy, prompts, tiny_model, tokens
from tests.planning.runs import RUN


def shape(name="qwen2", reference=None):
    return model_shape(tiny_model(name).config, AdapterConfig(reference=reference, rank=4))


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma3"])
def test_weights_are_those_of_the_model(folders, name):
    policy, model = make_policy(name, folders), shape(name, str(folders[f"{name}-sft"]))
    loras = sum(p.numel() for n, p in policy.named_parameters() if ".lora_" in n)
    assert loras == model.lora + model.frozen_lora
    assert sum(p.numel() for p in policy.parameters()) - loras == model.linear + model.other


@pytest.mark.parametrize("double", [True, False])
def test_a_4_bit_backbone_s_bytes(folders, double):
    """Of layers that are whole blocks; scales are counted from bitsandbytes' own state."""
    import bitsandbytes as bnb

    model = dataclasses.replace(shape(), linear=512 * 1024, other=0)
    layer = bnb.nn.Linear4bit(512, 1024, bias=False, compress_statistics=double, quant_type="nf4")
    layer.to("cpu")
    state = layer.weight.quant_state
    found = layer.weight.numel() * layer.weight.element_size() + state.absmax.numel() * state.absmax.element_size()
    if double:
        found += state.state2.absmax.numel() * 4
    run = dataclasses.replace(RUN, nf4=True, double_quantization=double)
    assert backbone_bytes(model, run) == pytest.approx(found, rel=0.01)


def test_keys_and_values_are_the_cache_s(folders):
    from transformers import DynamicCache

    policy = make_policy("qwen2", folders)
    cache = StreamCache(policy.backbone.config, 2, RUN.active, RUN.prompt_tokens + RUN.tokens)
    prefill = DynamicCache()
    with torch.no_grad():
        policy.hidden(tokens(1, 3), ("policy", "reference"), [{"past_key_values": prefill, "use_cache": True}])
    cache.insert(prefill, torch.tensor([0]), torch.tensor([0]))
    found = sum(t.numel() * t.element_size() for layer in cache.layers for t in layer)
    assert memory(shape(), RUN)["rollout: keys and values"] == found


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@pytest.mark.parametrize("share", [True, False])
def test_activations_are_what_autograd_keeps(folders, name, share):
    """Tensors that the forward pass saves, each storage once, without weights."""
    policy = make_policy(name, folders)
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, int] = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    run = dataclasses.replace(RUN, prompt_tokens=80, tokens=40, samples=8, sharded=not share, pass_tokens=10**4)
    (prompt,) = prompts(tokens(80, seed=1).tolist())
    rollouts = [Rollout(prompt, g, tokens(40, seed=g).tolist()) for g in range(8)]
    packed = pack(rollouts, share_prompts=share)
    passed = 80 + 8 * 40 if share else 8 * 120
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = policy.stream_hidden(packed.input_ids, "policy", packed.prefix)
    assert hidden.requires_grad
    expected = passed * (activation_bytes(shape(name), run) + prefix_bytes(shape(name), run))
    assert sum(saved.values()) == pytest.approx(expected, rel=0.15)


def test_the_larger_phase_makes_the_peak_and_the_largest_that_fits_fits():
    model = shape()
    assert peak({"a": 1.0, "b": 2.0, "rollout: c": 40.0, "rollout: d": 5.0, "update: e": 44.0}) == 48.0
    assert peak({"a": 1.0, "b": 2.0, "rollout: c": 40.0, "update: e": 44.0}) == 47.0
    few = dataclasses.replace(RUN, slots=RUN.samples, pass_tokens=1)
    two_groups = peak(memory(model, dataclasses.replace(few, slots=2 * RUN.samples)))
    passed = peak(memory(model, dataclasses.replace(few, pass_tokens=300)))
    assert largest(model, RUN, two_groups)[0] == 2 * RUN.samples
    assert largest(model, RUN, two_groups * 0.999)[0] == RUN.samples
    assert largest(model, RUN, passed)[1] == 300
    assert largest(model, RUN, memory(model, RUN)["backbone"] / 2) == (0, 0)
    assert largest(model, RUN, 1e15) == (RUN.rows, RUN.most_tokens)


def test_what_makes_a_run_larger_is_counted():
    model = shape()

    def more(**changes) -> dict[str, float]:
        return memory(model, dataclasses.replace(RUN, **changes))

    plain = memory(model, RUN)
    assert more(evaluated=1000)["rollout: keys and values"] == plain["rollout: keys and values"]  # 16 slots hold 16
    assert (
        more(evaluated=40, slots=40)["rollout: keys and values"] == 40 / 32 * more(slots=40)["rollout: keys and values"]
    )
    assert more(mixes_logits=True)["update: logits"] == 6 * plain["update: logits"]
    # a row of 10 + 20 tokens stands alone, in a pass of fewer tokens as in one of just as many, and of 100 tokens 3 do
    assert more(pass_tokens=1) == more(pass_tokens=30)
    assert plain["update: activations"] == pytest.approx(100 / 30 * more(pass_tokens=1)["update: activations"])
    # a layer by hand: two norms' inputs in float32, 2 + 5 + 4 tensors of 4 bytes
    assert activation_bytes(model, RUN) == 3 * (2 * 64 * 4 + 4 * (2 * 64 + 5 * 64 + 4 * 96))
    slow = [
        update_seconds(model, dataclasses.replace(RUN, **changes), 1e9)
        for changes in ({}, {"keep_frozen": False}, {"kl": True})
    ]
    assert slow[0] < slow[1] < slow[2]


def test_mini_batches_cost_a_forward_pass_of_all_but_the_first():
    """The reference's are kept and need none. 4 prompts of 10 tokens, read once, x 8 completions of 20."""
    model = shape()
    assert old_seconds(model, RUN, 1e9) == 0
    four = dataclasses.replace(RUN, mini_batches=4)
    tokens = 32 * 20 + 4 * 10
    assert RUN.shares_prompts
    expected = 0.75 * 2 * (tokens * (model.linear + model.lora) + 32 * 20 * model.head) / 1e9
    assert old_seconds(model, four, 1e9) == pytest.approx(expected)
    assert old_seconds(model, dataclasses.replace(four, keep_frozen=False), 1e9) > 1.5 * expected


def test_sft_is_planned_without_rollouts(capsys):
    line = ["plan", "--config", "configs/methods/sft.yaml", "--data.task=lmix.tasks.ArithmeticTask"]
    assert cli.main([*line, "--model.backbone.path=lmix:tiny-arithmetic", "--data.prompts_per_step=24"]) == 0
    out = capsys.readouterr().out
    assert "24 demonstrations of at most 512 tokens on each" in out
    assert "rollouts 0, update" in out
    assert "model.micro_batch_tokens=" in out


def test_a_frozen_model_s_bytes_and_time_are_added():
    model, other = shape(), shape("llama")
    frozen = FrozenModel(other, nf4=False, streams=1)
    plain, both = memory(model, RUN), memory(model, dataclasses.replace(RUN, streams=1, others=(frozen,)))
    assert both["frozen models"] == sum(p.nbytes for p in tiny_model("llama").parameters())
    assert both["backbone"] == plain["backbone"]
    # the two models are of one shape: a stream on either is the same
    assert both["rollout: keys and values"] == plain["rollout: keys and values"]
    assert both["rollout: hidden states of frozen streams"] == plain["rollout: hidden states of frozen streams"]
    assert both["update: logits"] == 2 * plain["update: logits"]  # one head a model
    assert host_bytes(model, dataclasses.replace(RUN, streams=1, others=(frozen,))) == host_bytes(model, RUN)
    small = memory(model, dataclasses.replace(RUN, others=(dataclasses.replace(frozen, nf4=True),)))
    assert small["frozen models"] < both["frozen models"]
    idle = memory(model, dataclasses.replace(RUN, others=(dataclasses.replace(frozen, streams=0),)))
    assert {name: size for name, size in idle.items() if name != "frozen models"} == plain
    times = [
        update_seconds(model, dataclasses.replace(RUN, **changes), 1e9)
        for changes in ({"streams": 1}, {"others": (frozen,)}, {"others": (frozen,), "keep_frozen": False})
    ]
    assert times[0] < times[1] < times[2]
    assert rollout_seconds(model, dataclasses.replace(RUN, others=(frozen,)), 1e9, 1e9) > rollout_seconds(
        model, RUN, 1e9, 1e9
    )


def test_more_devices_share_the_work_and_shards_the_backbone():
    model = shape()
    one, four = RUN, dataclasses.replace(RUN, devices=4, slots=8)
    assert rollout_seconds(model, four, 1e9, 1e9) < rollout_seconds(model, one, 1e9, 1e9)
    assert update_seconds(model, four, 1e9) == pytest.approx(update_seconds(model, one, 1e9) / 4)
    # each rank keeps a quarter of the rows of each linear layer's weight, and all the rest
    tiny = tiny_model("qwen2")
    linears = [m for m in tiny.modules() if isinstance(m, torch.nn.Linear) and m is not tiny.get_output_embeddings()]
    shards = sum(m.weight.chunk(4)[0].nbytes for m in linears)
    rest = sum(p.nbytes for p in tiny.parameters()) - sum(m.weight.nbytes for m in linears)
    assert memory(model, dataclasses.replace(four, sharded=True))["backbone"] == shards + rest
    assert memory(model, four)["backbone"] == sum(p.nbytes for p in tiny.parameters())


def test_the_command_takes_the_flags_of_fit(capsys):
    line = ["plan", "--config", "configs/demo.yaml", "--device_gb=16", "--tflops=0.16", "--bandwidth=10"]
    assert cli.main(line) == 0
    out = capsys.readouterr().out
    assert "lmix:tiny-arithmetic" in out
    assert "fits in 16 GB" in out
    assert "seconds per step" in out
    assert cli.main([*line, "--config", "configs/strategies/fsdp2.yaml", "--trainer.devices=2"]) == 0
    assert "2 device(s), sharded" in capsys.readouterr().out
    # devices that are not here
    assert cli.main([*line, "--trainer.accelerator=gpu", "--trainer.devices=8", "--trainer.num_nodes=2"]) == 0
    assert "16 device(s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),
    ],
)
def test_the_paper_s_models_are_planned_without_a_network(name, weights):
    """The counts are those that the hub shows for these models' weights."""
    model = model_shape(planned_config(name), AdapterConfig(rank=16))
    assert model.linear + model.other == weights


def test_a_folder_or_a_file_with_nothing_but_the_configuration_will_do(tmp_path, capsys):
    tiny_model("llama").config.save_pretrained(tmp_path)
    shutil.copy(tmp_path / "config.json", tmp_path / "another.json")
    line = ["plan", "--config", "configs/demo.yaml", "--model.adapters.reference=null"]
    outputs = []
    for path in (tmp_path, tmp_path / "config.json", tmp_path / "another.json"):
        assert cli.main([*line, f"--model.backbone.path={path}"]) == 0
        outputs.append(capsys.readouterr().out.partition(": ")[2])
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no such model"}', "{}"])
def test_a_file_that_is_no_configuration_is_one_line(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"^backbone '.*x.json' is not a model's config.json: [^\n]+$"):
        planned_config(str(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device_gb=0"], "--device_gb must be positive, not 0.0"),
        (["--live=2"], "--live must lie between 0 and 1"),
        (["--trainer.strategy=ddp_spawn"], "trainer.strategy must be auto, ddp or"),
        (["--prompt_tokens=0"], "--prompt_tokens must be positive, not 0"),
        (["--model.backbone.path=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(flags, message, capsys):
    assert cli.main(["plan", "--config", "configs/demo.yaml", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_vllm_takes_the_rollouts_memory(capsys):
    flags = ["plan", "--config=lmix:demo", "--device_gb=10"]
    assert cli.main(flags) == 0
    assert "vLLM" not in capsys.readouterr().out
    assert cli.main([*flags, "--model.sampler=lmix.rollout.VLLM", "--model.sampler.memory=0.3"]) == 0
    out = capsys.readouterr().out
    assert "| rollout: vLLM | 3.00 |" in out
    assert "rollout: keys and values" not in out
    # two streams, keys and values of two heads of 32 in four layers, float32
    model = model_shape(planned_config("lmix:tiny-arithmetic"), AdapterConfig())
    row = (256 + 64) * 2 * 2 * model.layers * model.keys * 4
    weights = 4 * (model.linear + model.other + 2 * model.lora)
    assert f"room for {int((3e9 - weights) / row)} full rows at once" in out
    assert cli.main([*flags, "--model.sampler=lmix.rollout.VLLM", "--model.sampler.sleep=false"]) == 0
    assert "| vLLM | 4.00 |" in capsys.readouterr().out
    tiny = ["--model.sampler=lmix.rollout.VLLM", "--model.sampler.memory=0.0001"]
    assert cli.main([*flags, *tiny]) == 0
    assert "TOO SMALL for one row" in capsys.readouterr().out
    served = ["--model.sampler=lmix.rollout.VLLMServers", "--model.sampler.urls=[http://a]", "--model.sampler.folder=b"]
    assert cli.main([*flags, *served]) == 0
    out = capsys.readouterr().out
    assert "each vLLM server: weights" in out
    assert "rollout:" not in out
