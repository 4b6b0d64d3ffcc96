"""What Ray's own exporter tells Prometheus about a run of ours."""

import re
import urllib.request

import ray

from rayjobs.runtime.counters import exported

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]


def scrape(run: str) -> Samples:
    """Samples of one run by name and labels, of the run's own labels only."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    known = exported()
    found: Samples = {}
    for name, told, value in re.findall(r"^(ray_sharpening_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', told))
        if labels.get("run") == run and name in known:
            own = frozenset((label, labels[label]) for label in known[name] if label != "run")
            found.setdefault(name, {})[own] = float(value)
    return found
