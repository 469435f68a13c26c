"""Training on spot fleets: traces of them, a simulator of a run, and a replay through the real controller."""
