"""What mkdocs is told beside its configuration: the site is made of all that lies here, and begins with the guide."""

from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import ConfigurationError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files

HERE = Path(__file__).parent
# Pages that would be index.html of their directories otherwise.
PLACES = {"guide/index.md": "index.html", "README.md": "results/index.html"}


def on_config(config: MkDocsConfig) -> None:
    """Pages link to notebooks and figures, so that all of it is the site; mkdocs.yml may not name its own directory."""
    if Path(config.site_dir).resolve().is_relative_to(HERE.parent):
        raise ConfigurationError("the site would be written into the repository; build it elsewhere: -d DIRECTORY")
    config.docs_dir = str(HERE)


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> None:
    """The first page is the quick start."""
    for source, place in PLACES.items():
        file = files.get_file_from_path(source)
        assert file is not None, f"{source} is not there"
        file.dest_uri = place


class Examples(griffe.Extension):
    """The reference shows the docstrings' `Example:` as code: griffe knows that section by its plural alone."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
