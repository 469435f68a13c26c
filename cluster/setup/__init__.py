"""Sets up a checkout on a bare machine: ``python3 -m cluster.setup``. Standard library only, for any Python 3.8."""
