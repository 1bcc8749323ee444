"""The guide's code runs as pasted, its commands exist, and its reference has every public name."""

import json
import re
import warnings
from importlib import import_module

import pytest
import torch
import typer
from test_readme import PAGES, ROOT, blocks

import ep_plugin as ep
from ep_plugin.cli import app

GUIDE = ROOT / "examples" / "guide"
# Run by tests that look at what comes of it.
LOOKED_AT = [ROOT / "README.md", GUIDE / "index.md", GUIDE / "extending.md"]
OTHERS = [page for page in PAGES if page not in LOOKED_AT and blocks(page, "python")]
FORWARDED = ("fit", "validate", "test")  # Lightning's own command line, with options of its own


def named(page):
    return str(page.relative_to(ROOT))


def run(page):
    """Executes a page's blocks in order, in one namespace, which is returned."""
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ep.ConversionWarning)
        for block in blocks(page, "python"):
            exec(compile(block, named(page), "exec"), names)
    return names


@pytest.mark.parametrize("page", OTHERS, ids=named)
def test_the_code_of_a_page_runs_as_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(page)


def test_what_the_quick_start_trains_has_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(GUIDE / "index.md")["task"].trainer.callback_metrics["val/accuracy"] > 0.85


def test_the_commands_of_all_pages_exist():
    """With their options, where these are the package's own."""
    commands = typer.main.get_command(app).commands
    found = [
        (page, match)
        for page in PAGES
        for block in blocks(page, "bash")
        for match in re.findall(r"ep-plugin (\S+)(.*)", block)
    ]
    assert len(found) > 8
    for page, (command, arguments) in found:
        assert command in commands, f"{named(page)}: ep-plugin {command}"
        if command not in FORWARDED:
            options = {name for parameter in commands[command].params for name in parameter.opts}
            assert set(re.findall(r"--[\w-]+", arguments)) <= options, f"{named(page)}: ep-plugin {command}{arguments}"


def test_the_reference_has_every_public_name_once():
    """Of the package, its reference nets, its pictures and the limits of chips; and names of its modules that exist."""
    public_part, deeper = (
        re.findall(r"^::: (ep_plugin[\w.]*)\.(\w+)$", part, re.M)
        for part in (GUIDE / "api.md").read_text().split("## Extend\n")
    )
    nets = set(ep.models.__all__) - {"REFERENCE_NETS"}
    public = {"ep_plugin": ep.__all__, "ep_plugin.models": nets}
    public |= {f"ep_plugin.{name}": getattr(ep, name).__all__ for name in ("plots", "chips")}
    assert sorted(public_part) == sorted((home, name) for home, names in public.items() for name in names)
    assert len(set(deeper)) == len(deeper)
    for home, name in deeper:
        assert hasattr(import_module(home), name), f"{home}.{name}"
    extending = (GUIDE / "extending.md").read_text()
    for names in re.findall(r"^from ep_plugin\.\S+ import (.+)$", extending, re.M):
        missing = set(names.split(", ")) - {name for _, name in public_part + deeper}
        assert not missing, f"extending.md imports {missing}"


@pytest.fixture(scope="module")
def names():
    """What the page on extending defines. (It writes no files.)"""
    torch.manual_seed(0)
    return run(GUIDE / "extending.md")


class TestExtending:
    """The page's own encoder, activation, neuron, linear module, estimator and data set."""

    @pytest.mark.parametrize(
        ("made", "least"),
        [("shrinking", 0.99), ("saturating", 0.99), ("integrating", 0.99), ("thin", 0.99), ("truncated", 0.999)],
    )
    def test_trains_by_the_right_gradient(self, names, made, least):
        model, data = names[made], names["data"]
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        losses = []
        x, y = next(iter(data.train_dataloader()))
        for _ in range(2):
            loss = torch.nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            assert all(bool(p.grad.any()) for p in model.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[1] < losses[0]
        x, y = names["x"], names["y"]
        assert names["least_cosine"](model, x, y) > least

    def test_the_potential_is_that_of_the_activation(self, names):
        drive = torch.linspace(0.01, 5, 50, dtype=torch.float64)
        state = names["rate"](drive).requires_grad_()
        (inverse,) = torch.autograd.grad(names["potential"](state).sum(), state)
        torch.testing.assert_close(inverse, drive)

    def test_events_of_the_encoder_close_the_gap(self, names):
        """To the last weight, and without a number of the whole layer."""
        signal, encoder = torch.rand(4, 10), names["Shrinking"]()
        state = encoder.start(signal, 0)
        for time in range(1, 9):
            message = encoder.encode(signal, state, time, 1.0)
            assert set(message.events.unique().tolist()) <= {-1.0, 0.0, 1.0}
            assert message.weight is None
        assert (signal - state.trace).abs().max() <= 0.6**8

    def test_an_encoder_is_one_short_file_that_a_configuration_names(self, tmp_path, monkeypatch):
        from ep_plugin.lightning.cli import from_arguments

        (code,) = (block for block in blocks(GUIDE / "extending.md", "python") if "class Shrinking" in block)
        assert len(code.splitlines()) <= 40
        (tmp_path / "shrinking.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # which a run sets; taken back after the test
        encoder = {"class_path": "shrinking.Shrinking", "init_args": {"shrink": 0.7}}
        arguments = ["--config", str(ROOT / "examples" / "configs" / "digits.yaml"), "--trainer.accelerator=cpu"]
        arguments += ["--model.init_args.model.init_args.encoder", json.dumps(encoder)]
        model = from_arguments(arguments, run=False).model
        assert repr(model.model.encoder) == "Shrinking(shrink=0.7)"

    def test_a_net_learns_the_data_set(self, names):
        data = names["Bars"](batch_size=32)
        model = ep.convert(ep.initialize_(torch.nn.Sequential(torch.nn.Flatten(), *parts())))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        data.setup()
        for _ in range(2):
            for x, y in data.train_dataloader():
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        right = [(model(x).argmax(1) == y).float().mean() for x, y in data.test_dataloader()]
        assert torch.stack(right).mean() > 0.9


def parts():
    import snntorch as snn

    return torch.nn.Linear(64, 32), snn.Leaky(beta=0.9), torch.nn.Linear(32, 2)
