"""vLLM on the trainer's device, in a process of its own or in this one."""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lmix.errors import first_line
from lmix.model.mixture import POLICY, Mixture
from lmix.rollout.sampler import Progress, SamplerLost
from lmix.rollout.vllm_sampler import Completion, Request

RANK = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell a process its rank. They are hidden from vLLM, which would join the trainer's process group."""


class LocalVLLM:
    """A vLLM engine on one device; a `VLLMClient`. Its methods raise SamplerLost if its process has ended.

    Args:
        folder: a folder of `lmix export`; read only while vLLM starts.
        settings: arguments of `vllm.LLM`.
        device: the trainer's device.
        sleeps: free vLLM's memory between rollout phases; GPUs only.

    Raises:
        ValueError: vLLM is not installed, or does not start.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], device: torch.device, sleeps: bool = False) -> None:
        check_installed()
        self.sleeps, self.asleep = sleeps, False
        self._policy: Path | None = None
        self._numbers = itertools.count()
        if sleeps:
            settings = settings | {"enable_sleep_mode": True}
        with environment(device):
            try:
                from vllm import LLM  # pyright: ignore

                self.llm = LLM(model=str(folder), **settings)
            except Exception as error:
                raise ValueError(f"vLLM does not start: {start_error(error)}") from error

    def complete(self, requests: Sequence[Request], progress: Progress | None) -> list[Completion]:
        """See `VLLMClient.complete`."""
        with lost_where_ended():
            self._wake()
            completions = self._run(requests, progress)
            if self.sleeps:
                self.llm.sleep(level=1)
                self.asleep = True
        return completions

    def set_mixture(self, mixture: Mixture) -> None:
        """See `VLLMClient.set_mixture`."""
        values = list(mixture.weights), mixture.kind, mixture.temperature, mixture.plausibility
        with lost_where_ended():
            self._call("lmix_set_mixture", *values)

    def set_policy(self, folder: Path) -> None:
        """See `VLLMClient.set_policy`. While vLLM sleeps, the adapter is not read; it is read when vLLM wakes."""
        self._policy = folder
        if not self.asleep:
            with lost_where_ended():
                self._read_policy()

    def _read_policy(self) -> None:
        if self._policy is not None:
            self._call("lmix_set_adapter", POLICY, str(self._policy))
            assert self.llm.reset_prefix_cache(), "vLLM still has requests"
            self._policy = None

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False
            self._read_policy()

    def _call(self, method: str, *args: Any) -> None:
        for answer in self.llm.collective_rpc(method, args=args):
            if "error" in answer:
                raise ValueError(answer["error"])

    def _run(self, requests: Sequence[Request], progress: Progress | None) -> list[Completion]:
        from vllm import SamplingParams  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore

        engine, place_of, tokens = self.llm.llm_engine, {}, 0
        for place, request in enumerate(requests):
            settings = {"detokenize": "stop" in request.sampling, **request.sampling}
            extra = {"weights": list(request.weights)}
            parameters = SamplingParams(**settings, extra_args=extra, output_kind=RequestOutputKind.FINAL_ONLY)
            number = str(next(self._numbers))
            place_of[number] = place
            engine.add_request(number, {"prompt_token_ids": request.prompt_ids}, parameters)
        completions: dict[int, Completion] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    completions[place_of[output.request_id]] = completion_of(output.outputs[0])
                    tokens += len(output.outputs[0].token_ids)
                    if progress is not None:
                        progress(len(completions), len(requests), tokens)
        return [completions[place] for place in range(len(requests))]


@contextmanager
def lost_where_ended() -> Iterator[None]:
    """Turn the error that vLLM raises after its process has ended into SamplerLost."""
    from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore

    try:
        yield
    except EngineDeadError as error:
        raise SamplerLost(f"vLLM's process has ended ({first_line(error)}); see its output for the cause") from error


def completion_of(output: Any) -> Completion:
    """Convert vLLM's output of one completion."""
    ids = list(output.token_ids)
    log_probs = [of_place[token].logprob for token, of_place in zip(ids, output.logprobs, strict=True)]
    return Completion(ids, log_probs, output.finish_reason == "stop")


def start_error(error: Exception) -> str:
    """Why vLLM does not start, in one line. For a rejected setting, the message without pydantic's text around it."""
    refused = re.search(r"Value error, (.*?)(?: \[type=|$)", str(error), re.MULTILINE)
    return refused[1] if refused else first_line(error)


def check_installed() -> None:
    """Raise a one-line ValueError if vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ValueError("vLLM is not installed: pip install 'lmix[vllm]' in an environment of its own (docs/serve.md)")


@contextmanager
def environment(device: torch.device) -> Iterator[None]:
    """Set the environment for vLLM's start: one visible device, not the trainer's rank, and fewer log messages unless
    the user has set a level."""
    before = dict(os.environ)
    for name in [name for name in before if name in RANK or name.startswith("TORCHELASTIC_")]:
        del os.environ[name]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # this process is already in the trainer's process group
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # a fork would lose the trainer's threads
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    if device.type == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(device.index or 0, before.get("CUDA_VISIBLE_DEVICES"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def visible_device(index: int, visible: str | None) -> str:
    """The value of CUDA_VISIBLE_DEVICES that shows another process only this device."""
    return visible.split(",")[index] if visible else str(index)
