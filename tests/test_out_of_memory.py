"""Where memory runs out the command line tells in one line which batch it was. (Under a limit of the address space.)"""

import subprocess
import sys

import pytest
import torch

from ep_plugin.out_of_memory import in_a_batch_of, is_out_of_memory, too_large

# Everything is imported and has run once; what is there then, and 300 MB, are all that the process may have.
LIMITED = """
import resource, sys
import torch
from ep_plugin import cli
torch.set_num_threads(1)
from typer.testing import CliRunner
for arguments in {warm}:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.argv = ["ep-plugin", *{arguments}]
cli.main()
"""
FIT = """
model:
  class_path: ep_plugin.EPLightningModule
  init_args:
    model: {class_path: ep_plugin.convert, init_args: {net: {class_path: ep_plugin.models.small_convolutional}}}
data: {class_path: ep_plugin.DigitsDataModule, init_args: {batch_size: 500}}
trainer:
  {accelerator: cpu, max_epochs: 1, logger: false, enable_checkpointing: false, enable_progress_bar: false,
   enable_model_summary: false, num_sanity_val_steps: 0}
"""
PROFILE = ["profile", "--repeats", "1", "--batch-size"]


def limited(arguments, warm, place):
    code = LIMITED.format(arguments=arguments, warm=warm)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=place)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit of a process's address space")
@pytest.mark.parametrize("size", [3_000, 1_000_000])  # in the midst of a step, and for the input itself
def test_a_profile_names_its_batch(size, tmp_path):
    done = limited([*PROFILE, str(size)], [[*PROFILE, "1"]], tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "Warning" not in line and not line.startswith("  ")]
    assert line == (
        f"ep-plugin: memory has run out with a batch of {size}; give a smaller one, such as --batch-size "
        f"{size // 4}, or a smaller net"
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you ..."), True),
        (RuntimeError("std::bad_alloc"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=repr,
)
def test_what_says_that_memory_has_run_out(error, expected):
    assert is_out_of_memory(error) is expected
    raised = ValueError if expected else type(error)
    with pytest.raises(raised, match="a batch of 64;" if expected else str(error)), in_a_batch_of(64):
        raise error


def test_a_batch_of_one_or_of_no_known_size():
    assert "smaller net" in too_large(1, "--batch-size")
    assert "--batch-size" not in too_large(1, "--batch-size")
    assert too_large(None, "--n").startswith("memory has run out with a batch; give a smaller one, such as --n 16")


def test_fit_names_its_batch(monkeypatch, capsys, tmp_path):
    from ep_plugin import EPLightningModule
    from ep_plugin.lightning import cli

    def full(self, *args):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(EPLightningModule, "training_step", full)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(FIT)
    with pytest.raises(SystemExit) as stopped:
        cli.run("fit", ["--config", "small.yaml"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "ep-plugin: memory has run out with a batch of 500; give a smaller one, such as --data.init_args.batch_size "
        "125, or a smaller net"
    )
