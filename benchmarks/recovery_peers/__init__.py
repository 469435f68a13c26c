"""What people use today to survive the loss of a worker, each set up as its documentation says."""
