"""Networks and graphs of NIR, the Neuromorphic Intermediate Representation (neuroir.org), both ways.

`to_nir` writes a converged network with its feedback, `from_nir` reads a graph of any library as a convergent network,
and `as_module` gives the plain net in between.
"""

from ep_plugin.extras import needed_by

with needed_by("ep_plugin.nir"):
    import nir as _nir  # noqa: F401

from ep_plugin.nir.reading import as_module as as_module
from ep_plugin.nir.reading import from_nir as from_nir
from ep_plugin.nir.writing import to_nir as to_nir
