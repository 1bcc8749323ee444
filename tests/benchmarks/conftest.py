"""Collects what the benchmarks measure into tables and the JSON file of pytest-benchmark."""

import platform
from collections import defaultdict
from statistics import median

import pytest
import torch
from contenders import DEFAULT

RECORDED = pytest.StashKey[dict]()


@pytest.fixture
def record(request):
    """record(figure, net, batch, contender, value)"""

    def keep(figure, net, batch, contender, value):
        request.config.stash[RECORDED][net, batch, contender][figure] = value

    return keep


def pytest_configure(config):
    config.stash[RECORDED] = defaultdict(dict)


def summary(config):
    """A row for each net, batch size and contender."""
    rows = config.stash[RECORDED]
    seconds = defaultdict(list)
    for benchmark in config._benchmarksession.benchmarks:
        info = benchmark.extra_info
        seconds[info["net"], info["batch"], info["contender"]] += benchmark.stats.data
    for key, values in seconds.items():
        rows[key].update(seconds=median(values), fastest=min(values), measurements=len(values))
    found = []
    for (net, batch, contender), figures in rows.items():
        ours = rows.get((net, batch, DEFAULT), {}).get("seconds")
        ratio = {"ratio_to_ep_spiking": figures["seconds"] / ours} if ours and "seconds" in figures else {}
        found.append({"net": net, "batch": batch, "contender": contender, **figures, **ratio})
    return found


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """What was measured before Ctrl-C is kept; the benchmark that it stopped has no data."""
    own = session.config._benchmarksession
    own.benchmarks = [b for b in own.benchmarks if b.stats.data]
    return (yield)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Medians instead of every measurement, and no host name."""
    output_json.clear()
    output_json.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        rows=summary(config),
    )


def pytest_terminal_summary(terminalreporter, config):
    from rich.console import Console
    from rich.table import Table

    rows = summary(config)
    timed = [r for r in rows if "seconds" in r or "peak_memory_mb" in r]
    for net, batch in dict.fromkeys((r["net"], r["batch"]) for r in timed):
        table = Table(title=f"{net}, batch {batch}", title_justify="left")
        for heading in ("", "ms a batch", f"of {DEFAULT}", "peak memory above start"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in timed:
            if (row["net"], row["batch"]) == (net, batch):
                table.add_row(
                    row["contender"],
                    f"{1e3 * row['seconds']:.1f}" if "seconds" in row else "-",
                    f"{row['ratio_to_ep_spiking']:.2f}" if "ratio_to_ep_spiking" in row else "-",
                    f"{row['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in row else "-",
                )
        Console().print(table)
    for row in rows:
        if "seconds_to_97" in row:
            Console().print(f"{row['net']}, {row['contender']}: {row['seconds_to_97']:.1f} s to 97 % test accuracy")
        if "seconds_to_import" in row:
            Console().print(f"import {row['contender']}: {row['seconds_to_import']:.2f} s")
