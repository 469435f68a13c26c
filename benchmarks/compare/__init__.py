"""The shuffled epoch of workload T, by mltrain's Loader and by what people use today.

Rows: an f32 label, 13 f32 and 26 i32 columns (160 bytes), batches of 8192, one reading process that hands out torch
tensors; on a machine that is shared, so rows by CPU time of the whole process tree are printed beside rows by the
clock.

    python -m benchmarks.compare [--rows 4000000] [--rounds 3] [--tools ray_data petastorm ...] [--data DIR]

Goals: 40 times Ray Data's ``iter_torch_batches`` with a local shuffle; ahead of all others.

What it does: makes an environment for each tool (``requirements/TOOL.txt``, exact versions, by the project's uv, kept
in the user's cache); has each write the same rows in its own format (not timed; ``--data`` keeps them); then, for each
tool, starts it and ours as two processes, lets both read an epoch that does not count, and alternates. Every epoch must
hold each row and the sum of the labels, or it is refused. A ratio is the median of the rounds' ratios. Both sides read
files that the page cache holds.

What each is set to, and where its documentation says so. Where several settings seemed sensible the faster one was
kept.

ours        As it is: windows of 3 shards of 131,072 rows.
ray_data    Parquet, a file of 20 MB a block; ``shuffle="files"`` and a local shuffle buffer of 262,144 rows, less
            than our window; one batch of prefetching, the default (4 took more CPU time and no less time); as many
            CPUs as there are. https://docs.ray.io/en/latest/data/shuffling-data.html,
            https://docs.ray.io/en/latest/data/performance-tips.html. A column a feature: two tensor columns were
            slower. Runs in the project's own environment.
ray_memory  The same after ``materialize()``: rows lie decoded in Ray's object store, for tables that fit into it. No
            goal is set beside it; it shows how much of ray_data's time is reading Parquet.
            https://docs.ray.io/en/latest/train/user-guides/data-loading-preprocessing.html
petastorm   Parquet, ``make_batch_reader`` (columnar, for Parquet that petastorm did not write) with a thread a core,
            row groups shuffled, and ``BatchedDataLoader``, "significantly faster" than ``DataLoader``, with the same
            shuffle buffer. https://petastorm.readthedocs.io/en/latest/api.html. 0.13.1 needs pyarrow < 15 and numpy <
            2, see its requirements.
litdata     ``optimize`` into chunks of 64 MB, a sample two NumPy arrays; ``StreamingDataset(shuffle=True)`` (chunks,
            and rows within 256 neighbours, its default: a weaker shuffle than the others', and 8 times as fast as one
            of whole chunks) and ``StreamingDataLoader`` with a worker a core, kept between epochs.
            ``batch_decode=0``: by default 0.2.76 decodes 256 rows at a time, which takes 3 times as long where a chunk
            is cut between two workers at no multiple of 256. https://github.com/Lightning-AI/litData#readme
streaming   mosaicml-streaming: uncompressed MDS shards of the default 64 MiB, a sample two ndarrays of fixed shape;
            ``local`` only, ``batch_size`` given to the dataset too, ``shuffle=True`` with the default algorithm and
            block; a worker a core, kept between epochs.
            https://docs.mosaicml.com/projects/streaming/en/latest/getting_started/faqs_and_tips.html and
            https://docs.mosaicml.com/projects/streaming/en/latest/dataset_configuration/shuffling.html

To their favour: Parquet readers hand out 40 tensors and are not charged for making the two matrices that ours are;
litdata and streaming get the label packed with the floats, two arrays a row instead of forty values.

The requirements were made in ``requirements/`` by ``uv pip compile --python-version 3.11 --no-annotate --no-header
TOOL.in -o TOOL.txt`` (petastorm: with ``--override petastorm-overrides.txt``).
"""
