"""A stand-in for vLLM servers: it answers as vLLM 0.32 does, from no model, and can be told to fail."""

import json
import random
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from align.rollout import fleet, served_engine, server_weights

FACTS = {
    "vllm": "0.32.0",
    "instance": "1",
    "device": "cpu",
    "model": {"model_type": "llama", "vocab_size": 128},
    "dtype": "float32",
    "context": 64,
    "logprobs_mode": "processed_logprobs",
    "max_logprobs": 65,
    "sequences": 64,
    "in_parts": False,
    "backend": None,
    "lora_rank": 8,
    "added": {},
}

WANTED = {name: FACTS[name] for name in ("vllm", "model", "dtype", "logprobs_mode", "max_logprobs", "sequences")}
WANTED |= {"context": 48, "lora_rank": 4}


def hurry(monkeypatch):
    """Have a client wait for nothing for long, and save adapters that are two small files."""
    monkeypatch.setattr(fleet, "AGAIN_S", 0.05)
    monkeypatch.setattr(fleet, "CONNECT_S", 0.5)
    monkeypatch.setattr(served_engine, "CONNECT_S", 0.5)

    def save(model, folder, write):
        for file in server_weights.FILES:
            (folder / file).write_text(file)

    monkeypatch.setattr(server_weights.weights, "save", save)


TRANSFER = ("/pause", "/resume", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights")
TRANSFER += ("/finish_weight_update", "/shutdown_weight_transfer_engine")


class StandIn:
    """One server. `fault` is how it fails from now on; `after`: how many requests it answers before."""

    def __init__(self, url: str):
        self.url, self.facts, self.weights, self.adapters, self.workers = url, dict(FACTS), "default", {}, 1
        self.sent = []  # what was asked of its weight transfer
        self.fault, self.after, self.served, self.seen, self.paused, self.tokens = None, 0, [], [], False, 0
        self.token, self.seconds, self.gap, self.spoil = None, 0.0, 0.0, lambda reply: reply

    def restart(self) -> None:
        self.facts = {**self.facts, "instance": str(int(self.facts["instance"]) + 1)}
        self.fault, self.weights, self.adapters = None, "default", {}

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        self.seen.append(path)
        if path == "/metrics":
            return 200, f"vllm:generation_tokens_total{{}} {self.tokens}\n"
        if path == "/collective_rpc":
            return 200, {"results": [self.call(body["method"], body.get("kwargs", {}))]}
        if path == "/weight_info":
            return 200, {"weight_version": self.weights}
        if path == "/is_paused":
            return 200, {"is_paused": self.paused}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ("policy", *self.adapters)]}
        if path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
            return 200, "Success"
        if path == "/inference/v1/generate":
            return self.generate(body)
        if path == "/get_world_size":
            return 200, {"world_size": self.workers}
        if path in TRANSFER:
            return self.transfer(path, body)
        return 404, {"detail": "Not Found"}

    def transfer(self, path: str, body: dict | None) -> tuple[int, object]:
        self.sent.append((path.strip("/"), body))
        if path in ("/pause", "/resume"):
            self.paused = path == "/pause"
        if path == "/finish_weight_update" and body:
            self.weights = body["weight_version"]
        return 200, {}

    def call(self, method: str, arguments: dict) -> object:
        if method == "align_facts":
            return self.facts
        return f"/adapters/{arguments['name']}" if method == "align_put" else {}

    def generate(self, body: dict) -> tuple[int, object]:
        model, params = body["model"], body["sampling_params"]
        if model not in ("policy", *self.adapters):
            return 404, {"error": {"message": f"The model `{model}` does not exist."}}
        n, seed = params.get("n", 1), params.get("seed", 0)
        time.sleep(self.seconds)
        choices = [self.choice(i, random.Random(f"{seed + i}{body['token_ids']}"), params) for i in range(n)]
        if params.get("logprobs") is not None:
            self.served += [tuple(body["token_ids"])]
        self.tokens += sum(len(choice["token_ids"]) for choice in choices)
        reply = {"model": model, "choices": choices[::-1]}  # in no order
        if "prompt_logprobs" in params:
            reply["prompt_logprobs"] = [
                None,
                *({str(t): {"logprob": -t / 10 + self.gap}} for t in body["token_ids"][1:]),
            ]
        return 200, self.spoil(reply)

    def choice(self, index: int, chance: random.Random, params: dict) -> dict:
        ids = [chance.randrange(128) for _ in range(min(params["max_tokens"], chance.randrange(1, 6)))]
        content = [
            {"token_id": t, "logprob": -t / 7, "top_logprobs": [{"token_id": 5, "logprob": -9999.0}]} for t in ids
        ]
        span = {"version": self.weights, "start": 0, "end": len(ids)}
        reason = "abort" if self.fault == "abort" else "stop"
        found = {"index": index, "finish_reason": reason, "token_ids": ids, "weight_versions": [span]}
        return {**found, "logprobs": {"content": content}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers.get("content-length") or 0)
        self.reply(json.loads(self.rfile.read(length) or "null"))

    def do_GET(self):
        self.reply(None)

    def reply(self, body):
        one, path = self.server.one, urlsplit(self.path).path
        failing = one.fault if len(one.served) >= one.after else None
        if one.token and self.headers.get("authorization") != f"Bearer {one.token}":
            return self.send(401, {"error": "token"})
        if failing == "dead":
            self.close_connection = True
            return None
        if failing == "hang" and path not in ("/health", "/metrics"):
            while one.fault == "hang" and not self.server.over.wait(0.02):
                pass
            self.close_connection = True
            return None
        if failing == "500" and "generate" in path:
            return self.send(500, {"error": {"message": "EngineCore encountered an issue."}})
        if failing == "no json" and "generate" in path:
            return self.send(200, "<html>", "application/json")
        return self.send(*one.answer(path, body))

    def send(self, status, data, kind=None):
        text = data if isinstance(data, str) else json.dumps(data)
        kind = kind or ("text/plain" if isinstance(data, str) else "application/json")
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextmanager
def stand_ins(count: int):
    """So many of them, each on a port of its own."""
    servers = []
    for _ in range(count):
        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads, http.over = True, threading.Event()
        http.one = StandIn(f"http://127.0.0.1:{http.server_port}")
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(http)
    try:
        yield [http.one for http in servers]
    finally:
        for http in servers:
            http.over.set()
            http.shutdown()
            http.server_close()
