"""Faults by the hundred: modules with ``run(count, seed, folder)``. ``make chaos`` runs them all with full counts."""
