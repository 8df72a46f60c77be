"""Remote vLLM servers over HTTP: OpenAI's completions, and vLLM's own endpoints that change what is served."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

from lmix.model.mixture import POLICY, Mixture
from lmix.rollout.sampler import Progress, SamplerLost
from lmix.rollout.vllm_sampler import Completion, Request

T = TypeVar("T")


class ServerFailed(SamplerLost):
    """A server answers with a status of 500 or more.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """One server. Its methods raise SamplerLost if it does not answer, and ValueError if it rejects a request."""

    url: str
    timeout: float
    """Seconds to wait for an answer."""

    def post(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """Send JSON, and return the JSON of the answer; None if it has no body."""
        request = HTTPRequest(
            self.url.rstrip("/") + path, json.dumps(content or {}).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                body = answer.read()
        except HTTPError as error:
            text = " ".join(error.read().decode(errors="replace").split())[:500]
            if error.code >= 500:
                raise ServerFailed(
                    f"server {self.url} fails with status {error.code} on {path}: {text}", error.code
                ) from error
            hint = " (start it with VLLM_SERVER_DEV_MODE=1)" if error.code == 404 else ""
            raise ValueError(f"server {self.url} rejects {path} with status {error.code}: {text}{hint}") from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            reason = error.reason if isinstance(error, URLError) else error
            raise SamplerLost(f"server {self.url} does not answer within {self.timeout:g} s: {reason}") from error
        return json.loads(body) if body else None

    def call(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of `lmix.vllm.worker`."""
        answer = self.post("/collective_rpc", {"method": method, "args": list(args)})["results"][0]
        if "error" in answer:
            raise ValueError(f"server {self.url} reports an error: {answer['error']}")
        return answer

    def set_policy(self, folder: Path) -> None:
        self.call("lmix_set_adapter", POLICY, str(folder.absolute()))
        self.post("/reset_prefix_cache")

    def set_mixture(self, mixture: Mixture) -> None:
        values = list(mixture.weights), mixture.kind, mixture.temperature, mixture.plausibility
        self.call("lmix_set_mixture", *values)

    def complete(self, request: Request) -> Completion:
        content = {
            "prompt": request.prompt_ids,
            "return_token_ids": True,
            "vllm_xargs": {"weights": list(request.weights)},
            **request.sampling,
        }
        (choice,) = self.post("/v1/completions", content)["choices"]
        return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] == "stop")


class ServedVLLM:
    """Several servers; a `VLLMClient`. Prompts are divided among them: one server draws all completions of a prompt.

    Args:
        urls: URLs of the servers, such as http://node1:8000.
        timeout: seconds to wait for a completion or a change of weights.
        retries: how often a server that does not answer is tried again.
        retry_seconds: seconds between two tries.
        connections: concurrent requests per server.
    """

    def __init__(
        self, urls: Sequence[str], timeout: float, retries: int, retry_seconds: float, connections: int
    ) -> None:
        self.servers = [Server(url, timeout) for url in urls]
        self.retries, self.retry_seconds, self.connections = retries, retry_seconds, connections
        self.policy: Path | None = None
        self.mixture: Mixture | None = None

    def check(self, streams: int, rank: int) -> None:
        """Check that all servers serve a mixed policy that the run's adapters fit.

        Args:
            streams: number of streams of the run.
            rank: largest rank of its adapters.

        Raises:
            ValueError: a server does not answer, or serves something else.
        """
        for server in self.servers:
            try:
                state = server.call("lmix_state")
            except ServerFailed as error:
                if error.status != HTTPStatus.INTERNAL_SERVER_ERROR:  # vLLM's, for a method that no worker has
                    raise
                raise ValueError(
                    f"server {server.url} does not serve a mixed policy: start it on a folder that lmix export wrote"
                ) from error
            if len(state["streams"]) != streams:
                raise ValueError(
                    f"server {server.url} serves {len(state['streams'])} streams, but the run has {streams}: export "
                    "the run's adapters and serve them"
                )
            if state["rank"] < rank:
                raise ValueError(
                    f"server {server.url} takes adapters up to rank {state['rank']}, but the run's have {rank}: "
                    "export the run's adapters and serve them"
                )

    def set_mixture(self, mixture: Mixture) -> None:
        """See `VLLMClient.set_mixture`."""
        self.mixture = mixture
        for server in self.servers:
            self._retried(server, lambda server=server: server.set_mixture(mixture))

    def set_policy(self, folder: Path) -> None:
        """See `VLLMClient.set_policy`."""
        self.policy = folder
        for server in self.servers:
            self._retried(server, lambda server=server: server.set_policy(folder))

    def complete(self, requests: Sequence[Request], progress: Progress | None) -> list[Completion]:
        """See `VLLMClient.complete`."""
        completions: dict[int, Completion] = {}
        tokens = 0

        def draw(request: Request) -> Completion:
            server = self.servers[request.group % len(self.servers)]
            return self._retried(server, lambda: server.complete(request))

        with ThreadPoolExecutor(min(len(requests), self.connections * len(self.servers))) as pool:
            under_way = {pool.submit(draw, request): place for place, request in enumerate(requests)}
            try:
                for future in as_completed(under_way):
                    completions[under_way[future]] = future.result()
                    tokens += len(completions[under_way[future]].ids)
                    if progress is not None:
                        progress(len(completions), len(requests), tokens)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [completions[place] for place in range(len(requests))]

    def _retried(self, server: Server, call: Callable[[], T]) -> T:
        """The call's result. A lost server gets the run's mixture and policy before it is tried again."""
        for tries_left in range(self.retries, -1, -1):
            try:
                if tries_left < self.retries:
                    self._restore(server)
                return call()
            except SamplerLost:
                if not tries_left:
                    raise
                time.sleep(self.retry_seconds)
        raise AssertionError("unreachable")

    def _restore(self, server: Server) -> None:
        """Send the run's mixture and policy to a server, which may have been restarted."""
        if self.mixture is not None:
            server.set_mixture(self.mixture)
        if self.policy is not None:
            server.set_policy(self.policy)
