"""Choices of samplers, without vLLM: what is refused before anything is loaded, and servers that fail."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from transformers import AutoConfig

from lmix import cli
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixed_policy import MixedPolicy
from lmix.model.mixture import Mixture
from lmix.model.servable import check_servable
from lmix.rollout.limits import Limits
from lmix.rollout.sampler import SamplerLost
from lmix.rollout.samplers import VLLM, LmixEngine, VLLMServers
from lmix.rollout.types import Draw, flatten
from lmix.rollout.vllm_local import start_error, visible_device
from lmix.rollout.vllm_sampler import Completion, VLLMSampler, fill
from lmix.rollout.vllm_servers import ServedVLLM
from tests.conftest import prompts

LIMITS = Limits(4, (7,))


class Canned(ThreadingHTTPServer):
    """Answers as a vLLM server does: every completion is 5, 6, 7; notes what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict]] = []
        self.failures = 0
        """Requests at `failing_path` that it fails before it answers."""
        self.failing_path = "/v1/completions"
        self.error: str | None = None
        self.status = 503
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def calls(self) -> list[str]:
        """What was asked for, by name."""
        return [content.get("method", path) for path, content in self.asked]


class Handler(BaseHTTPRequestHandler):
    server: Canned

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, content))
            failing = self.path == self.server.failing_path and self.server.failures > 0
            self.server.failures -= failing
        if failing:
            self.send_error(self.server.status)
            return
        answer = {
            "results": [
                {"error": self.server.error} if self.server.error else {"streams": ["policy", "reference"], "rank": 8}
            ]
        }
        if self.path == "/v1/completions":
            choice = {
                "token_ids": [5, 6, 7],
                "logprobs": {"token_logprobs": [-1.0, -2.0, -3.0]},
                "finish_reason": "stop",
            }
            answer = {"choices": [choice]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers() -> Iterator[list[Canned]]:
    made = [Canned(), Canned()]
    for server in made:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    for server in made:
        server.shutdown()
        server.server_close()


def sampler(servers: list[Canned], folder: Path, retries: int = 0) -> VLLMSampler:
    served = ServedVLLM([server.url for server in servers], 20.0, retries, 0.0, 4)
    served.check(2, 8)
    served.set_mixture(Mixture.at(0.5))
    return VLLMSampler(served, Mixture.at(0.5), folder)


def test_a_prompt_s_completions_are_drawn_by_one_server(servers, tmp_path):
    groups = sampler(servers, tmp_path).generate(prompts([1], [2], [3, 4], [5]), LIMITS, Draw(), Mixture.at(0.3), 3)
    asked = [[c["prompt"] for path, c in server.asked if path == "/v1/completions"] for server in servers]
    assert sorted(asked[0]) == [[1], [1], [1], [3, 4], [3, 4], [3, 4]]
    assert sorted(asked[1]) == [[2], [2], [2], [5], [5], [5]]
    contents = [c for server in servers for path, c in server.asked if path == "/v1/completions"]
    assert len({c["seed"] for c in contents}) == 12
    assert all(c["vllm_xargs"] == {"weights": [0.7, 0.3]} and c["stop_token_ids"] == [7] for c in contents)
    for rollout in flatten(groups):
        assert rollout.completion_ids == [5, 6, 7]
        assert rollout.ended
        assert rollout.log_probs.tolist() == [-1.0, -2.0, -3.0]


def test_a_lost_server_ends_the_draw_or_is_tried_again_with_the_run_s_weights(servers, tmp_path):
    own = sampler(servers, tmp_path, retries=1)
    own.vllm.set_policy(tmp_path / "policy")
    servers[0].asked.clear()
    servers[0].failures = 1
    own.generate(prompts([1]), LIMITS, Draw(), Mixture.at(0.3))
    order = ["/v1/completions", "lmix_set_mixture", "lmix_set_adapter", "/reset_prefix_cache", "/v1/completions"]
    assert servers[0].calls() == order
    servers[0].failures = 2
    with pytest.raises(SamplerLost, match=r"^server http://\S+ fails with status 503 on /v1/completions[^\n]*$"):
        own.generate(prompts([1]), LIMITS, Draw(), Mixture.at(0.3))
    servers[0].failures, servers[0].status = 1, 400  # a refusal is none that another try would mend
    with pytest.raises(ValueError, match=r"rejects /v1/completions with status 400") as refused:
        own.generate(prompts([1]), LIMITS, Draw(), Mixture.at(0.3))
    assert not isinstance(refused.value, SamplerLost)
    servers[0].error = "adapter has rank 9"
    with pytest.raises(ValueError, match="reports an error: adapter has rank 9"):
        own.vllm.set_policy(tmp_path / "policy")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "does not serve a mixed policy: start it on a folder that lmix export wrote"),
        (404, "rejects /collective_rpc with status 404.*start it with VLLM_SERVER_DEV_MODE=1"),
        (503, "fails with status 503 on /collective_rpc"),
    ],
)
def test_a_server_that_serves_another_model_is_one_line(status, message, servers, tmp_path):
    servers[1].failing_path, servers[1].failures, servers[1].status = "/collective_rpc", 1, status
    with pytest.raises(ValueError, match=rf"^server {servers[1].url} {message}[^\n]*$"):
        sampler(servers, tmp_path)


def test_what_a_server_serves_must_fit(servers):
    served = ServedVLLM([servers[0].url], 20.0, 0, 0.0, 4)
    with pytest.raises(ValueError, match="serves 2 streams, but the run has 3"):
        served.check(3, 8)
    with pytest.raises(ValueError, match="takes adapters up to rank 8, but the run's have 16"):
        served.check(2, 16)


def test_mixtures_that_can_t_be_drawn_together(servers, tmp_path):
    own = sampler(servers, tmp_path)
    with pytest.raises(ValueError, match="may differ only in their weights"):
        own.generate(prompts([1]), LIMITS, Draw(), [Mixture.at(0.5), Mixture.at(0.5, "probs")], 2)
    assert servers[0].calls().count("lmix_set_mixture") == 1
    own.generate(prompts([1]), LIMITS, Draw(), Mixture.at(0.5, "probs"))
    assert servers[0].calls().count("lmix_set_mixture") == 2


def test_completions_are_cut_where_lmix_s_engine_ends_them():
    (group,) = [prompts([1])[0]]
    from lmix.rollout.types import Rollout

    rollout = Rollout(group, 0)
    fill(rollout, Completion([5, 7, 6, 6], [-1.0, -2.0, -3.0, -4.0], False), LIMITS)
    assert (rollout.completion_ids, rollout.ended, len(rollout.log_probs)) == ([5, 7], True, 2)
    fill(rollout, Completion([5, 6, 6, 6], [-1.0] * 4, False), LIMITS)
    assert (rollout.completion_ids, rollout.ended) == ([5, 6, 6, 6], False)
    with pytest.raises(ValueError, match="vLLM ended a completion after 2 tokens"):
        fill(rollout, Completion([5, 6], [-1.0] * 2, True), LIMITS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"n_routed_experts": 64}, "mixture of experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ],
)
def test_backbones_that_vllm_can_t_hold(changes, words):
    config = AutoConfig.for_model("llama", **changes)
    with pytest.raises(ValueError, match=rf"^backbone 'some/model' [^\n]*{words}[^\n]*$"):
        check_servable("some/model", config)
    check_servable("some/model", AutoConfig.for_model("llama"))
    with pytest.raises(ValueError, match=r"\.gguf"):
        check_servable("model.gguf", AutoConfig.for_model("llama"))


def test_settings_that_can_t_be(merged):
    with pytest.raises(ValueError, match=r"sampler\.memory must lie between 0 and 1, not 2"):
        VLLM(memory=2)
    with pytest.raises(ValueError, match=r"sampler\.urls must name at least one server"):
        VLLMServers([], "somewhere")
    with pytest.raises(ValueError, match=r"sampler\.timeout must be positive"):
        VLLMServers(["http://a"], "somewhere", timeout=0)
    with pytest.raises(ValueError, match=r"is a whole model: turn it into an adapter with lmix delta"):
        VLLMServers(["http://a"], "somewhere").check(BackboneConfig(), AdapterConfig(reference=merged))
    LmixEngine().check(BackboneConfig(), AdapterConfig(reference=merged))


def test_why_vllm_does_not_start_is_one_line():
    refused = "1 validation error for ModelConfig\n  Value error, backbone 'x' is odd [type=value_error, ...]\n    more"
    assert start_error(ValueError(refused)) == "backbone 'x' is odd"
    assert start_error(RuntimeError("no memory\nTraceback")) == "no memory"


def test_a_rank_s_device_by_its_name():
    assert visible_device(1, None) == "1"
    assert visible_device(1, "4,5,6") == "5"


def test_without_vllm_the_error_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("lmix.rollout.vllm_local.find_spec", lambda name: None)
    flags = ["--config=lmix:demo", f"--trainer.logger.init_args.save_dir={tmp_path}"]
    assert cli.main(["fit", *flags, "--model.sampler=lmix.rollout.VLLM"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("lmix: error: vLLM is not installed: pip install")
    assert cli.main(["fit", *flags, "--model.sampler=lmix.rollout.VLLM", "--model.sampling.compile=true"]) == 1
    assert "sampling.compile works only with lmix's own engine" in capsys.readouterr().err


def test_vllm_beside_the_trainer_draws_at_the_run_s_temperature(monkeypatch):
    """The exported folder holds none, and the sampler tells vLLM only of what differs from the mixture at the start."""
    told = []
    local = {"__init__": lambda *_: None, "set_mixture": lambda _, mixture: told.append(mixture)}
    monkeypatch.setattr("lmix.rollout.samplers.LocalVLLM", type("Local", (), local))
    backbone = BackboneConfig("lmix:tiny-arithmetic", "none", dtype="float32")
    policy = MixedPolicy.from_pretrained(backbone, AdapterConfig(reference="lmix:tiny-arithmetic-sft"))
    mixture = replace(Mixture.at(0.3), temperature=0.7)
    sampler = VLLM().make(policy, backbone, mixture, 4, 64)
    assert isinstance(sampler, VLLMSampler)
    assert told == [mixture]
    assert sampler.mixture == mixture
