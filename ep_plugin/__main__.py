"""`python -m ep_plugin` is `ep-plugin`."""

from ep_plugin.cli import main

main()
