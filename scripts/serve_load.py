"""Load, floods, hang-ups and soaks of a running server, from one asynchronous process.

    python scripts/serve_load.py load    --url http://127.0.0.1:8000 [--seconds 60] [--concurrent 32] [--endpoint chat]
    python scripts/serve_load.py flood   --url ... [--concurrent 200]
    python scripts/serve_load.py hangups --url ... [--concurrent 50]
    python scripts/serve_load.py limit   --url ... --token ADMIN      (the budget lowered and raised while requests run)
    python scripts/serve_load.py soak    --url ... --pid PID [--minutes 10]

Each prints one line per finding and ends with `all well` (0) or what failed (1). Random pictures of 112 x 112; greedy answers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

MIB = 1 << 20


def picture(seed: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (112, 112, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PICTURES = [picture(seed) for seed in range(64)]
TEXTS = ["a bird with a blue crown and a grey back", "a red bird", "a small brown bird with a white belly"]


def request(endpoint: str, i: int, tokens: int = 24) -> tuple[str, dict[str, Any]]:
    url = PICTURES[i % len(PICTURES)]
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Describe the bird."}]}
    match endpoint:
        case "chat":
            return "/v1/chat/completions", {"model": "mllm", "messages": [turn], "max_tokens": tokens}
        case "stream":
            return "/v1/chat/completions", {"model": "mllm", "messages": [turn], "max_tokens": tokens, "stream": True}
        case "score":
            return "/v1/score", {"model": "mllm", "messages": [turn], "continuations": TEXTS}
        case "embeddings":
            return "/v1/embeddings", {"model": "encoder", "input": [url], "encoding_format": "base64"}
        case "text":
            return "/v1/chat/completions", {
                "model": "mllm",
                "messages": [{"role": "user", "content": f"Describe bird {i}."}],
                "max_tokens": tokens,
            }
    raise SystemExit(f"no endpoint {endpoint}")


@dataclass
class Outcome:
    """Seconds of each 200, and how often each status came."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    took: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.took if self.took else 0.0

    def line(self, name: str) -> str:
        p = statistics.quantiles(self.seconds, n=20) if len(self.seconds) > 1 else [0.0] * 19
        shown = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items(), key=str))
        return f"{name}: {self.rate:.1f} requests/s, p50 {1000 * p[9]:.0f} ms, p95 {1000 * p[18]:.0f} ms over {self.took:.0f} s ({shown})"


def web(url: str, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=180, trust_env=False, verify=False, **options)


async def drive(url: str, endpoint: str, concurrent: int, seconds: float, *, patient: bool = False) -> Outcome:
    """`concurrent` users, each with one request at a time. `patient`: a 429 is obeyed, else asked again after a moment.

    Each has a connection pool of his own: one of 200 connections would look at all of them with each request, and measure itself.
    """
    outcome, began = Outcome(), time.perf_counter()
    end = began + seconds

    async def user(number: int) -> None:
        async with web(url) as client:
            await ask(number, client)

    async def ask(i: int, client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            path, body = request(endpoint, i)
            i += concurrent
            asked = time.perf_counter()
            try:
                reply = await client.post(path, json=body)
            except httpx.HTTPError as error:
                outcome.statuses[type(error).__name__] += 1
                continue
            outcome.statuses[reply.status_code] += 1
            if reply.status_code == 200:
                outcome.seconds.append(time.perf_counter() - asked)
            elif reply.status_code == 429:
                await asyncio.sleep(float(reply.headers["Retry-After"]) if patient else 0.2)

    await asyncio.gather(*(user(n) for n in range(concurrent)))
    outcome.took = time.perf_counter() - began
    return outcome


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """Of /metrics, sums over labels."""
    found: Counter[str] = Counter()
    for line in (await client.get("/metrics")).text.splitlines():
        if match := re.match(r"(fgvr_\w+|process_\w+)(?:\{.*\})? (\S+)$", line):
            found[match[1]] += float(match[2])  # type: ignore[assignment]
    return dict(found)


async def sampled(client: httpx.AsyncClient, ended: asyncio.Event) -> list[tuple[int, int]]:
    """(used, limit) again and again until the end."""
    found = []
    while not ended.is_set():
        data = (await client.get("/api/v1/memory/stats")).json()["data"]
        found.append((data["total_memory_usage"], data["memory_limit"]))
        await asyncio.sleep(0.25)
    return found


async def load(args: argparse.Namespace) -> list[str]:
    await drive(args.url, args.endpoint, 2, 3)  # models come in
    one = await drive(args.url, args.endpoint, 1, min(20.0, args.seconds))
    print(one.line(f"{args.endpoint}, 1 at a time"), flush=True)
    many = await drive(args.url, args.endpoint, args.concurrent, args.seconds)
    print(many.line(f"{args.endpoint}, {args.concurrent} concurrent"), flush=True)
    ratio = many.rate / one.rate
    print(f"ratio {ratio:.2f}")
    failed = [] if set(many.statuses) == {200} else [f"not only 200: {dict(many.statuses)}"]
    return failed + ([] if ratio >= args.least else [f"{ratio:.2f} times the throughput of one at a time, wanted {args.least}"])


async def flood(args: argparse.Namespace) -> list[str]:
    async with web(args.url) as client:
        ended = asyncio.Event()
        watching = asyncio.create_task(sampled(client, ended))
        outcome = await drive(args.url, args.endpoint, args.concurrent, args.seconds)
        ended.set()
        samples = await watching
    print(outcome.line(f"{args.endpoint}, {args.concurrent} concurrent"))
    worst = max(used / limit for used, limit in samples)
    print(f"{len(samples)} samples of memory, at most {worst:.1%} of the budget")
    failed = [] if set(outcome.statuses) <= {200, 429} else [f"other answers than 200 and 429: {dict(outcome.statuses)}"]
    return failed + ([] if worst <= 1 else ["over the budget"]) + ([] if 200 in outcome.statuses else ["nothing was served"])


async def hangups(args: argparse.Namespace) -> list[str]:
    """Every second one streams; each leaves somewhere between its request and its answer."""

    async def leave(i: int) -> str:
        path, body = request("stream" if i % 2 else "chat", i, tokens=200)
        pause = 0.02 + 0.03 * (i % 13)
        async with web(args.url) as client:
            if i % 2 == 0:
                try:
                    await client.post(path, json=body, timeout=httpx.Timeout(pause, connect=10))
                except httpx.TimeoutException:
                    return "left"
                return "answered before it could leave"
            async with client.stream("POST", path, json=body) as stream:
                if stream.status_code == 429:
                    return "429"
                async for _ in stream.aiter_lines():
                    return "left"
        return "answered before it could leave"

    failed = []
    async with web(args.url) as client:
        for _ in range(args.rounds):
            print(dict(Counter(await asyncio.gather(*(leave(i) for i in range(args.concurrent))))), flush=True)
        until = time.perf_counter() + 30
        while time.perf_counter() < until:
            now = await figures(client)
            held = {name: now[name] for name in ("fgvr_model_leases", "fgvr_queue_jobs", "fgvr_requests_in_flight")}
            if not any(held.values()):
                break
            await asyncio.sleep(0.1)
        else:
            failed.append(f"still held after 30 s: {held}")
        print(f"afterwards: {held}")
        after = await drive(args.url, "chat", 2, 2)
        print(after.line("and it still serves"))
        if set(after.statuses) != {200}:
            failed.append(f"afterwards {dict(after.statuses)}")
    return failed


async def limit(args: argparse.Namespace) -> list[str]:
    """Encoder requests run all the while; the limit goes below what is resident, then back."""
    admin = {"Authorization": f"Bearer {args.token}"}
    failed: list[str] = []
    async with web(args.url) as client:
        before = (await client.get("/api/v1/memory/stats")).json()["data"]["memory_limit"]
        for role in ("mllm", "encoder", "joint"):
            (await client.post(f"/api/v1/models/{role}/load", headers=admin)).raise_for_status()
        running = asyncio.create_task(drive(args.url, args.endpoint, 8, args.seconds, patient=True))
        await asyncio.sleep(args.seconds / 6)
        rows = (await client.get("/api/v1/memory/models")).json()["data"]
        full = sum(row["bytes"] for row in rows if row["state"] in ("resident", "draining"))
        used = max([s["total_memory_usage"] for s in [(await client.get("/api/v1/memory/stats")).json()["data"] for _ in range(20)]])
        target, refused = used - 1, Counter[int]()
        lowered = None
        for share in (0.2, 0.4, 0.6, 0.8, 0.9, 1.0):  # below what is leased: 409 with the plan; the first that can be is taken
            reply = await client.post("/api/v1/memory/limit", params={"limit_gb": share * target / 2**30}, headers=admin)
            refused[reply.status_code] += 1
            if reply.status_code == 409:
                assert reply.json()["data"]["plan"]["parts"] is not None
                continue
            lowered = reply.json()["data"]
            break
        if lowered is None:
            return ["no lower limit was accepted"]
        rows = (await client.get("/api/v1/memory/models")).json()["data"]
        left = sum(row["bytes"] for row in rows if row["state"] in ("resident", "draining"))
        print(f"resident {full / MIB:.1f} MiB, used {used / MIB:.1f} MiB; limit {before / MIB:.0f} MiB, lowered (answers {dict(refused)})")
        print(f"limit {lowered['memory_limit'] / MIB:.1f} MiB: resident {left / MIB:.1f} MiB, used {lowered['used'] / MIB:.1f} MiB")
        if lowered["used"] > lowered["memory_limit"]:
            failed.append("more in use than the new limit")
        if left >= full:
            failed.append("nothing left the device")
        await asyncio.sleep(args.seconds / 4)
        (await client.post("/api/v1/memory/limit", params={"limit_gb": before / 2**30}, headers=admin)).raise_for_status()
        for role in ("mllm", "encoder", "joint"):
            (await client.post(f"/api/v1/models/{role}/load", headers=admin)).raise_for_status()
        rows = (await client.get("/api/v1/memory/models")).json()["data"]
        print("raised again: " + ", ".join(f"{row['role']} {row['state']} ({row['loads']} loads)" for row in rows))
        outcome = await running
        print(outcome.line(f"{args.endpoint} meanwhile"))
        if not set(outcome.statuses) <= {200, 429}:
            failed.append(f"requests failed: {dict(outcome.statuses)}")
        cached = (await client.get("/api/v1/memory/stats")).json()["data"]["total_memory_usage"]
        freed = (await client.post("/api/v1/memory/cleanup", headers=admin)).json()["data"]
        left = (await client.get("/api/v1/memory/stats")).json()["data"]["total_memory_usage"]
        print(f"clean-up says {freed['released_bytes']} bytes came back; the ledger fell by {cached - left}")
        if freed["released_bytes"] != cached - left:
            failed.append("clean-up says other bytes than the ledger")
    return failed


async def soak(args: argparse.Namespace) -> list[str]:
    """Every kind of request at once; memory, handles and threads of the server's process once a minute."""
    process = psutil.Process(args.pid)
    mix, rows = ("chat", "stream", "score", "embeddings", "text"), []
    for endpoint in mix:
        await drive(args.url, endpoint, 4, 5)
    total: Counter[int | str] = Counter()
    for minute in range(round(args.minutes) + 1):
        full = process.memory_full_info()
        rows.append((full.uss / MIB, process.num_fds(), process.num_threads()))
        print(f"minute {minute}: USS {rows[-1][0]:.1f} MiB, {rows[-1][1]} handles, {rows[-1][2]} threads; {dict(total)}", flush=True)
        if minute == round(args.minutes):
            break
        done = await asyncio.gather(*(drive(args.url, endpoint, 4, 60) for endpoint in mix))
        total.update(sum((o.statuses for o in done), Counter()))
    failed = [] if set(total) <= {200, 429} else [f"other answers than 200 and 429: {dict(total)}"]
    settled = rows[len(rows) // 2 :]  # caches of allocators and libraries fill in the first half
    growth = (settled[-1][0] - settled[0][0]) / max(1, len(settled) - 1)
    print(f"second half: {growth:+.2f} MiB per minute; handles {rows[1][1]} -> {rows[-1][1]}, threads {rows[1][2]} -> {rows[-1][2]}")
    if growth > args.growth:
        failed.append(f"memory grows by {growth:.2f} MiB per minute")
    return failed + (["handles grow"] if rows[-1][1] > rows[1][1] + 8 else []) + (["threads grow"] if rows[-1][2] > rows[1][2] + 4 else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "flood", "hangups", "limit", "soak"))
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--concurrent", type=int)
    parser.add_argument("--endpoint", default="chat", choices=("chat", "stream", "score", "embeddings", "text"))
    parser.add_argument("--least", type=float, default=3.0, help="load: times the throughput of one at a time")
    parser.add_argument("--rounds", type=int, default=3, help="hangups")
    parser.add_argument("--token", default="", help="limit: the admin token")
    parser.add_argument("--pid", type=int, help="soak: of the server")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--growth", type=float, default=1.0, help="soak: MiB per minute that are allowed")
    args = parser.parse_args()
    args.concurrent = args.concurrent or {"load": 32, "flood": 200, "hangups": 50}.get(args.what, 8)
    failed = asyncio.run({"load": load, "flood": flood, "hangups": hangups, "limit": limit, "soak": soak}[args.what](args))
    print("; ".join(f"FAILED: {words}" for words in failed) or "all well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
