"""What Cloud Run costs: list prices, the service files, and what was measured.

python tests/cloudrun_costs.py    # writes the table into docs/deploy.md
"""

import json
from pathlib import Path
from typing import Any

import yaml

import chatbot_arch.measure.publish as publish

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "deploy.md"
DATE = "2026-11-28"
# Dollars for a second of a vCPU and of a GiB, in Tier 1 regions such as europe-west1:
# https://cloud.google.com/run/pricing
ALWAYS = (0.000018, 0.000002)  # CPU always allocated
ANSWERING = (0.000024, 0.0000025)  # CPU while a request is under way
IDLE = (0.0000025, 0.0000025)  # an instance that is kept without one
MONTH_S = 30 * 24 * 3600
GIB = {"Mi": 1 / 1024, "Gi": 1}
TOKENS = 64  # of a reply
SPEED = "10a"  # the claim with tokens a second of both architectures, eight people asking


def size_of(name: str) -> tuple[float, float]:
    """Return a service's vCPUs and GiB."""
    text = (ROOT / "deploy" / "cloudrun" / f"{name}.yaml").read_text(encoding="utf-8")
    [container] = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    return float(limits["cpu"]), float(limits["memory"][:-2]) * GIB[limits["memory"][-2:]]


def second(name: str, prices: tuple[float, float]) -> float:
    """Return the dollars for a second of a service."""
    return sum(amount * price for amount, price in zip(size_of(name), prices, strict=True))


def costs_block(claims: list[dict[str, Any]], started: list[dict[str, Any]]) -> str:
    """Return the table, what replies cost at the measured speed, and how long a start took."""
    rows = (
        ("monolith", "always, one instance stays", ALWAYS),
        ("backend", "idle, one instance stays", IDLE),
        ("backend", "while it answers", ANSWERING),
        ("frontend", "while a page is open, and some minutes after", ALWAYS),
    )
    table = ["| service | size | paid | $ an hour | $ in 30 days |", "|:--|:--|:--|--:|--:|"]
    for name, when, prices in rows:
        cpus, gib = size_of(name)
        cost = second(name, prices)
        size = f"{cpus:g} vCPU, {gib:g} GiB"
        table.append(f"| {name} | {size} | {when} | {3600 * cost:.3f} | {MONTH_S * cost:.0f} |")
    [claim] = [each for each in claims if each["number"] == SPEED]
    speeds = claim["values"]
    seconds = [1000 * TOKENS / speeds[name] for name in ("monolith", "microservices")]
    prices = second("monolith", ALWAYS), second("backend", ANSWERING)
    paid = [each * price for each, price in zip(seconds, prices, strict=True)]
    ready = {row["image"]: row["ready_s"] for row in started}
    told = (
        f"List prices as found on {DATE} for Tier 1 regions, without the free part of a month.",
        f"At {speeds['monolith']:.0f} and {speeds['microservices']:.0f} tokens/s, as measured here",
        f"([claim {SPEED}](claims.md)), a thousand replies of {TOKENS} tokens, eight at a time,",
        f"take {seconds[0] / 60:.1f} and {seconds[1] / 60:.1f} minutes: ${paid[0]:.3f} of the",
        f"monolith, ${paid[1]:.3f} of a backend. The monolith's instance is paid without them;",
        "to the backend's, the front end's time is added. Those speeds are of the two cores here,",
        "which microservices share with their page.",
    )
    start = (
        f"A start here took {ready['backend']:.1f} s until the backend had its model, and",
        f"{ready['frontend']:.1f} s until the front end answered, each seen once. What Cloud Run",
        "adds to it, a machine and the image, was not measured.",
    )
    return "\n".join((*table, "", " ".join(told), "", " ".join(start)))


def main() -> None:
    """Write the table into the page."""
    claims, started = (
        json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("claims", "images")
    )
    block = costs_block(claims["claims"], started["rows"])
    text = publish.fill(PAGE.read_text(encoding="utf-8"), "costs", block)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
