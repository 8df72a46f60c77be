"""vLLM's OpenAI server on an exported folder, and rollouts by servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from lmix.inspection.export import export
from lmix.model.adapters import AdapterConfig
from lmix.model.backbone import BackboneConfig
from lmix.model.mixture import Mixture
from lmix.rollout.engine import Engine
from lmix.rollout.limits import Limits
from lmix.rollout.sampler import SamplerLost
from lmix.rollout.samplers import VLLMServers
from lmix.rollout.types import Draw, flatten
from lmix.training.checkpoints import PolicyCheckpoint
from lmix.training.grpo import GRPOModule
from tests.conftest import prompts
from tests.training.helpers import data, module, trainer

pytestmark = pytest.mark.vllm
FLAGS = "--dtype=float32 --enforce-eager --max-model-len=256 --max-num-batched-tokens=2048 --no-enable-chunked-prefill"
ASKED = {"role": "user", "content": "Tom has 13 apples. Tom buys 4 more. How many apples does Tom have now?"}


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.folder, self.log = f"http://127.0.0.1:{port}", folder, log
        self.start()

    def start(self) -> None:
        port = self.url.rpartition(":")[2]
        module_ = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder), "--port", port]
        template = self.log.with_name("template")
        template.write_text("{{ messages[-1].content }}")  # the embedded model has none
        flags = [
            f"--chat-template={template}",
            "--host=127.0.0.1",
            "--served-model-name=mixed",
            "--gpu-memory-utilization=0.1",
            *FLAGS.split(),
        ]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *module_, *flags], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                urlopen(f"{self.url}/health", timeout=1).read()
                return
            except (URLError, OSError):
                time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self) -> None:
        """The server and its engine at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def post(self, path: str, **content):
        request = Request(self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=300) as answer:
            body = answer.read().decode()
        return json.loads(body) if body.startswith(("{", "[")) else body


@pytest.fixture(scope="module")
def policy() -> GRPOModule:
    m = module()
    m.configure_model()
    return m


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("server")
    adapters = AdapterConfig(reference="lmix:tiny-arithmetic-sft", rank=4)
    export(str(root / "export"), backbone=BackboneConfig(quantization="none", dtype="float32"), adapters=adapters)
    served = Served(root / "export", root / "log")
    yield served
    served.kill()


def test_chat_streaming_and_alpha(server):
    def answer(**extra) -> str:
        found = server.post("/v1/chat/completions", messages=[ASKED], temperature=0, max_tokens=48, **extra)
        return found["choices"][0]["message"]["content"]

    assert "17" in answer(vllm_xargs={"alpha": 1.0})
    streamed = server.post("/v1/chat/completions", messages=[ASKED], temperature=0, max_tokens=48, stream=True)
    parts = [json.loads(line[6:]) for line in streamed.split("\n") if line.startswith("data: {")]
    assert len(parts) > 5
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"]) == answer()
    state = server.post("/collective_rpc", method="lmix_set_alpha", args=[1.0])["results"][0]
    assert state["weights"] == [0.0, 1.0]
    assert answer() == answer(vllm_xargs={"alpha": 1.0}) != answer(vllm_xargs={"alpha": 0.0})
    server.post("/collective_rpc", method="lmix_set_alpha", args=[0.5])
    for wrong in ({"alpha": 7}, {"weights": [1]}):
        with pytest.raises(HTTPError) as refused:
            answer(vllm_xargs=wrong)
        assert refused.value.code == 400


def test_many_at_once_and_one_that_is_too_large(server):
    def ask(number: int) -> int:
        found = server.post("/v1/completions", prompt=f"Ann has {number} pens.", max_tokens=4 + number % 9, seed=number)
        return found["usage"]["completion_tokens"]

    with ThreadPoolExecutor(200) as pool:
        counts = list(pool.map(ask, range(200)))
    assert len(counts) == 200
    assert min(counts) >= 1
    with pytest.raises(HTTPError) as refused:
        server.post("/v1/completions", prompt=[5] * 300, max_tokens=4)
    assert refused.value.code == 400
    assert "256" in refused.value.read().decode()


def test_rollouts_by_servers_are_the_engine_s(server, policy, tmp_path):
    choice = VLLMServers([server.url], str(tmp_path / "policy"))
    sampler = choice.make(policy.policy, policy.backbone, Mixture.at(0.5), 16, 0)
    sampler.sync(policy.policy)
    asked = prompts([5, 6, 7], list(range(4, 40)), [9] * 20)
    for mixture in (Mixture.at(0.3), [Mixture.at(0.0), Mixture.at(1.0)]):
        samples = 1 if isinstance(mixture, Mixture) else len(mixture)
        arguments = asked, Limits(16, policy.end_ids, min_new_tokens=3), Draw(greedy=True), mixture, samples
        expected = flatten(Engine(policy.policy).generate(*arguments))
        for found, own in zip(flatten(sampler.generate(*arguments)), expected, strict=True):
            assert found.completion_ids == own.completion_ids
            assert found.ended == own.ended
            assert float((found.log_probs - own.log_probs).abs().max()) < 1e-4


def test_what_is_no_server_of_a_mixed_policy_is_one_line(server, policy, tmp_path):
    def make(url: str, m: GRPOModule) -> None:
        VLLMServers([url], str(tmp_path), timeout=30).make(m.policy, m.backbone, Mixture.at(0.5), 4, 0)

    with pytest.raises(SamplerLost, match=r"^server http://127.0.0.1:9 does not answer[^\n]*$"):
        make("http://127.0.0.1:9", policy)
    larger = module(adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft", rank=128))
    larger.configure_model()
    with pytest.raises(ValueError, match=r"^server \S+ takes adapters up to rank[^\n]*128[^\n]*$"):
        make(server.url, larger)
    ensemble = module(
        weights=[0.5, 0.25, 0.25],
        adapters=AdapterConfig(reference="lmix:tiny-arithmetic-sft", experts=["base"], rank=4),
    )
    ensemble.configure_model()
    with pytest.raises(ValueError, match=r"^server \S+ serves 2 streams, but the run has 3[^\n]*$"):
        make(server.url, ensemble)


@pytest.mark.slow
def test_a_server_that_dies_ends_the_run_or_is_tried_again(server, tmp_path):
    class Dies(PolicyCheckpoint):
        def __init__(self, restart: bool) -> None:
            super().__init__(every_n_steps=1)
            self.restart = restart

        def on_train_batch_end(self, trainer, *args, **kwargs) -> None:
            super().on_train_batch_end(trainer, *args, **kwargs)
            if trainer.global_step == 1:
                server.kill()
                if self.restart:
                    server.start()

    def run(name: str, restart: bool) -> dict[str, float]:
        folder = tmp_path / name
        choice = VLLMServers([server.url], str(folder / "policy"), timeout=60, retries=int(restart), retry_seconds=1)
        m = module(sampler=choice)
        t = trainer(folder, 3, callbacks=[Dies(restart)], default_root_dir=folder)
        t.fit(m, data())
        return {name: float(value) for name, value in t.callback_metrics.items()}

    # started anew it serves the exported policy: the next sync, after the step, gives it the trained one
    metrics = run("again", True)
    assert metrics["step"] == 3
    with pytest.raises(SamplerLost, match=r"does not answer.*resume with --ckpt_path=.*step=0001\.ckpt"):
        run("ends", False)
    server.start()
