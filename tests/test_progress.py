"""Bars: on a terminal only, from the first second, and nothing of them stays."""

import os
import re
import subprocess
import sys
import time

import pytest

SCRIPT = """
from ep_plugin.progress import track, working
with working("Loading") as next_is:
    next_is("Converting")
    print("a line of one's own")
for n in track(range(3), "Reading"):
    assert list(track(iter("ab"), "Within", 2)) == ["a", "b"]
print("done")
"""


def on_terminal(command, where, **environment):
    """What a command writes to a terminal, and after how many seconds it has begun."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    begun, first, read = time.monotonic(), None, b""
    process = subprocess.Popen(
        command, cwd=where, env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
        stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # its end
            break
        if not part:
            break
        first = first or time.monotonic() - begun
        read += part
    os.close(leader)
    assert process.wait() == 0, read.decode()
    return read.decode(), first


def left(text):
    """The lines that a terminal shows in the end."""
    lines, row = [""], 0
    for kind, move, plain in re.findall(r"\x1b\[[0-9;?]*([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", text):
        if kind == "A":
            row = max(row - 1, 0)
        elif kind == "K":
            lines[row] = ""
        elif move == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif plain:
            lines[row] += plain
    return [line.strip() for line in lines if line.strip()]


def test_bars_on_a_terminal(tmp_path):
    text, _ = on_terminal([sys.executable, "-c", SCRIPT], tmp_path)
    assert "Converting" in text
    assert "3/3" in text
    assert "Within" not in text
    assert left(text) == ["a line of one's own", "done"]


def test_no_bars_in_pipes(tmp_path):
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "a line of one's own\ndone\n"
    assert done.stderr == ""


def test_a_command_moves_from_its_first_second(tmp_path):
    (tmp_path / "mine.py").write_text("from ep_plugin.models import small_convolutional as net\n")
    command = [sys.executable, "-m", "ep_plugin.cli", "check", "mine:net", "--shape", "1,8,8"]
    text, first = on_terminal(command, tmp_path)
    assert first < 5  # of a loaded machine; an idle one takes a fifth of a second
    assert text.index("Loading") < text.index("Comparing gradients") < text.index("Nothing to mend")
    assert not [line for line in left(text) if line.startswith(("Loading", "Checking", "Comparing"))]
