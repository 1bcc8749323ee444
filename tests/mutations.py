"""Single changes of signs, factors, indices and conditions in the core, each of which the tests have to notice.

    python tests/mutations.py            # all of them, in a copy of the tree; two hours on one core
    python tests/mutations.py system.py  # those of files of that name

A change that the tests of its own folder let pass meets those of the whole core; with --rest what survives that meets
the whole default suite. Prints one line a change, and exits with 1 if any has survived.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import hypothesis  # noqa: F401  (here and below: so that the forks need not)
import lightning  # noqa: F401
import norse.torch  # noqa: F401
import pytest
import snntorch  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]

CORE = ["tests/estimators", "tests/dynamics", "tests/linear", "tests/neurons", "tests/test_network.py"]
EXACT = "tests/estimators/test_exactness.py"
OWN = {  # the tests most likely to notice come first, in half a minute; the first name that fits counts
    "dynamics/encoders": ["tests/dynamics/test_event_weights.py", "tests/dynamics"],
    "dynamics/deviations": [EXACT, "tests/dynamics"],
    "dynamics/activations": [EXACT, "tests/dynamics"],
    "dynamics": ["tests/dynamics/test_energy.py", "tests/dynamics/test_relaxation.py", "tests/dynamics", EXACT],
    "estimators/e": [EXACT, "tests/estimators"],
    "estimators": ["tests/estimators"],
    "linear": ["tests/linear"],
}

# A change may make a loop endless; so many seconds are far beyond what a run takes.
TOO_LONG = 900


class Mutation(NamedTuple):
    """In `file` of the package, the one place that says `old` says `new`."""

    file: str
    old: str
    new: str


SYSTEM = "dynamics/system.py"
STATE = "dynamics/network_state.py"
ACTIVATIONS = "dynamics/activations.py"
DEVIATIONS = "dynamics/deviations.py"
RELAXATION = "dynamics/relaxation.py"
ADAPTIVE = "dynamics/encoders/adaptive_delta.py"
BINARY = "dynamics/encoders/binary.py"
WEIGHTS = "dynamics/encoders/event_weights.py"
EP = "estimators/equilibrium_propagation.py"
FULL = "estimators/full_phases.py"
IMPLICIT = "estimators/implicit_differentiation.py"
FORCE = "estimators/force.py"
CONVOLUTION = "linear/convolution.py"
MODULES = "linear/modules.py"
POOLING = "linear/pooling.py"
CONCATENATION = "linear/concatenation.py"

MUTATIONS = [
    Mutation(SYSTEM, "self.levels[upper], self.levels[lower])", "self.levels[lower], self.levels[upper])"),
    Mutation(SYSTEM, "total = total - self.scales[l] * inner", "total = total + self.scales[l] * inner"),
    Mutation(SYSTEM, "self.scales[connection.target] * product", "self.scales[connection.source] * product"),
    Mutation(SYSTEM, "key=lambda l: (self.levels[l], l)", "key=lambda l: (-self.levels[l], l)"),
    Mutation(SYSTEM, "if other < l}", "if other < l - 1}"),
    Mutation(SYSTEM, "else 1 / math.prod(feedback[a:b])", "else math.prod(feedback[a:b])"),
    Mutation("dynamics/layer.py", "self.threshold / self.gain", "self.threshold * self.gain"),
    Mutation("dynamics/layer.py", "(gain > 0) & gain.isfinite()", "(gain >= 0) & gain.isfinite()"),
    Mutation(STATE, "None if is_one(t) else 1 / t", "None if is_one(t) else t"),
    Mutation(STATE, "self.system.ratio(bound.target, bound.source)", "self.system.ratio(bound.source, bound.target)"),
    Mutation(STATE, "self._add(l, change, ratio=self.system.ratio(bound.target, l))", "self._add(l, change)"),
    Mutation(STATE, "self._add(l, frame - self._shown[k])", "self._add(l, frame)"),
    Mutation(STATE, "self.membranes[l], self.coded[l].trace)", "self.coded[l].trace, self.membranes[l])"),
    Mutation(STATE, "self._up = value", "self._up = change"),
    Mutation(STATE, "other.moving = None", "other.moving = self.moving"),
    Mutation(ACTIVATIONS, "self._slope(h + x / 2)", "self._slope(h + x)"),
    Mutation(ACTIVATIONS, "h.sub_(state).mul_(threshold * scale)", "h.sub_(state).mul_(scale)"),
    Mutation(ACTIVATIONS, "torch.lerp(state, drive, step_size,", "torch.lerp(drive, state, step_size,"),
    Mutation(ACTIVATIONS, "4 * _sigmoid(h) * torch.sigmoid(2 - 4 * h)", "4 * _sigmoid(h) * torch.sigmoid(1 - 4 * h)"),
    Mutation(ACTIVATIONS, "/ 4 + r / 2", "/ 4 - r / 2"),
    Mutation(ACTIVATIONS, "torch.sigmoid(2 - 4 * lower) * fall", "torch.sigmoid(2 - 4 * upper) * fall"),
    Mutation(ACTIVATIONS, "(h >= 0) & (h <= 6)", "(h >= 0) & (h <= 1)"),
    Mutation(DEVIATIONS, "self.system.ratio(bound.target, l))", "self.system.ratio(l, bound.target))"),
    Mutation(DEVIATIONS, "alpha=0.5 / system.scales[l]", "alpha=1.0 / system.scales[l]"),
    Mutation(DEVIATIONS, "[-differences[l] for l in system.driven]", "[differences[l] for l in system.driven]"),
    Mutation(DEVIATIONS, "middles[j] * system.ratio(j, i)", "middles[j] * system.ratio(i, j)"),
    Mutation(DEVIATIONS, "order_down[k + 1 :]", "order_down[k + 2 :]"),
    Mutation(DEVIATIONS, "system.order(order)[::-1]", "system.order(order)"),
    Mutation(DEVIATIONS, 'if observe == "membrane" else phase.traces', 'if observe == "trace" else phase.traces'),
    Mutation(RELAXATION, "self.start, self.length = steps // 2,", "self.start, self.length = steps // 3,"),
    Mutation(RELAXATION, "math.log(1 - step_size)", "math.log(step_size)"),
    Mutation(RELAXATION, "> stopping * state.step_size", "> stopping / state.step_size"),
    Mutation(RELAXATION, "if levels <= deepest", "if levels < deepest"),
    Mutation(RELAXATION, "0.5 if recurrent else 1.0", "1.0 if recurrent else 0.5"),
    Mutation(ADAPTIVE, "mul_(2 / 3**digits)", "mul_(1 / 3**digits)"),
    Mutation(ADAPTIVE, "3**digits // 2", "3**digits // 3"),
    Mutation(ADAPTIVE, "log2_().ceil_()", "log2_().floor_()"),
    Mutation("dynamics/encoders/base.py", "rest - 3 * higher", "rest - 2 * higher"),
    Mutation("dynamics/encoders/graded.py", "torch.sub(signal, state.trace", "torch.add(signal, state.trace"),
    Mutation("dynamics/encoders/__init__.py", '"sigma_delta": SigmaDelta', '"sigma_delta": PredictiveSigmaDelta'),
    Mutation(BINARY, "signal, 1 / lam,", "signal, lam,"),
    Mutation(BINARY, "_fire(total, maximum / 2,", "_fire(total, maximum,"),
    Mutation(BINARY, "time**-self.exponent", "time**self.exponent"),
    Mutation(BINARY, "probability = signal / maximum", "probability = signal * maximum"),
    Mutation(WEIGHTS, "FixedEvents(self.weights, self.digits, NUDGED)", "FixedEvents(self.weights, self.digits, FREE)"),
    Mutation(WEIGHTS, "torch.lerp(weight, mean, share)", "torch.lerp(mean, weight, share)"),
    Mutation(EP, "(-self.beta * nudged, d)", "(self.beta * nudged, d)"),
    Mutation(EP, "length / ((a - b) * self.beta)", "length / ((a + b) * self.beta)"),
    Mutation(EP, "_RUNAWAY * self.beta).any()", "_RUNAWAY / self.beta).any()"),
    Mutation(FULL, "both * (-self.beta / system.scales[l])", "both * (-self.beta * system.scales[l])"),
    Mutation(FULL, "state.sweep(order, start + step + 1)", "state.sweep(order, step + 1)"),
    Mutation(FULL, "range(len(frames[0]) - self.steps, len(frames[0]))", "range(self.steps)"),
    Mutation(FULL, "weight * -system.scales[l]", "weight * -1 / system.scales[l]"),
    Mutation(IMPLICIT, "max(self.tolerance, rounding)", "min(self.tolerance, rounding)"),
    Mutation(IMPLICIT, "changes <= precision * sizes", "changes >= precision * sizes"),
    Mutation(
        FORCE, "return [u / per_sample(positive, u) for u in units], length * most", "return units, length * most"
    ),
    Mutation(FORCE, '"negative": (-1.0, 0.0)', '"negative": (1.0, 0.0)'),
    Mutation("estimators/backprop_through_time.py", "for l in system.read)", "for l in range(len(system.read)))"),
    Mutation("estimators/estimator.py", "for g in grads]).isfinite().all())", "for g in grads]).isfinite().any())"),
    Mutation(
        "linear/base.py", "return self.affine(tensors, x) - self.affine", "return self.affine(tensors, x) + self.affine"
    ),
    Mutation("linear/base.py", "if t.dim() == 4 and t.device", "if t.dim() == 3 and t.device"),
    Mutation("linear/connection.py", "part.map.affine if offset else part.map.linear", "part.map.affine"),
    Mutation("linear/connection.py", "p if p.map.is_linear else o for p, o", "p for p, _"),
    Mutation("linear/dense.py", "[rows.sum(0) if offset else None]", "[rows.mean(0) if offset else None]"),
    Mutation("linear/dense.py", "permute(0, 3, 1, 2)", "permute(0, 3, 2, 1)"),
    Mutation(CONVOLUTION, "- 2 * p + d * (k - 1) + 1", "- 2 * p + d * (k - 1)"),
    Mutation(CONVOLUTION, "pool.divisor or math.prod(pool.kernel)", "math.prod(pool.kernel)"),
    Mutation(CONVOLUTION, "set(self.dilation) == {1}", "set(self.dilation) >= {1}"),
    Mutation(MODULES, "-norm.running_mean * factor", "norm.running_mean * factor"),
    Mutation(MODULES, "device=like.device), self.p)", "device=like.device), 1 - self.p)"),
    Mutation(MODULES, "x * self.function(", "x / self.function("),
    Mutation(POOLING, "(x > low) & (x < high)", "(x > low) | (x < high)"),
    Mutation(POOLING, "set(self.padding) == {0} and not self.ceil_mode", "set(self.padding) == {0}"),
    Mutation(POOLING, 'getattr(module, "divisor_override", None)', "None"),
    Mutation(CONCATENATION, "sum(sizes[part + 1 :])", "sum(sizes[part:])"),
    Mutation(CONCATENATION, "(weight.dim() - 2), before, after)", "(weight.dim() - 2), after, before)"),
    Mutation(CONCATENATION, "dim in (1, -1 - len(following.stride))", "dim in (1, -1)"),
]


def folder(file: str) -> list[str]:
    """The tests of a file's own folder."""
    return next(tests for name, tests in OWN.items() if file.startswith(name))


def passes(tree: Path, tests: list[str]) -> bool:
    """Whether the tests pass in that tree: in a fork of this process, which has imported all that takes long."""
    child = os.fork()
    if child == 0:
        os._exit(_passes_here(tree, tests))
    end = time.monotonic() + TOO_LONG
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, 1, 2):  # 1 is a failure, 2 an error while tests were collected
                sys.exit(f"pytest {' '.join(tests)} did not run: exit code {code}")
            return code == 0
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _passes_here(tree: Path, tests: list[str]) -> int:
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    return int(pytest.main(["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests]))


def killed_by(tree: Path, mutation: Mutation, rest: bool, alone: list[str] | None) -> str | None:
    """Which tests notice the change; None if it survives."""
    path = tree / "ep_plugin" / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        stages = {"these": alone} if alone else {"its own folder's": folder(mutation.file), "the core's": CORE}
        if rest:
            stages["the whole suite"] = []
        return next((name for name, tests in stages.items() if not passes(tree, tests)), None)
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Runs the mutations that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="only those of files whose path ends so, or their numbers")
    parser.add_argument("--tests", nargs="+", help="run these alone")
    parser.add_argument("--trusted", action="store_true", help="do not first run the tests without any change")
    parser.add_argument("--rest", action="store_true", help="run the whole default suite against what survives")
    options = parser.parse_args()
    chosen = [
        (n, m)
        for n, m in enumerate(MUTATIONS, 1)
        if not options.files or str(n) in options.files or any(m.file.endswith(f) for f in options.files)
    ]
    for n, m in enumerate(MUTATIONS, 1):
        found = (ROOT / "ep_plugin" / m.file).read_text(encoding="utf-8").count(m.old)
        if found != 1:
            sys.exit(f"mutation {n}: {m.old!r} stands {found} times in {m.file}; expected once: write it anew")
    survivors = 0
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "tree"
        skipped = shutil.ignore_patterns(".git", ".venv", "*cache*", ".hypothesis", "build", "dist")
        shutil.copytree(ROOT, tree, ignore=skipped)
        if not options.trusted and not passes(tree, CORE):
            sys.exit(f"the tests fail without any change; see pytest {' '.join(CORE)}")
        for n, m in chosen:
            start = time.perf_counter()
            by = killed_by(tree, m, options.rest, options.tests)
            survivors += by is None
            verdict = f"noticed by {by} tests" if by else "SURVIVES"
            print(f"{n:3} {verdict:36} {time.perf_counter() - start:4.0f} s  {m.file}: {m.old} -> {m.new}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
