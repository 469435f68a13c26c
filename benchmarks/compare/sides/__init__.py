"""The tools, a module each: how rows are prepared for it, and an epoch of shuffled batches.

``PACKAGES`` names what decides its speed; ``settings()`` says what was set; ``prepare(folder, rows)`` writes its own
format; ``epochs(folder, batch_size)`` yields epochs without end, each an iterator of the batches' labels. A batch is
made whole, as torch tensors in memory, before its labels are handed out.
"""
